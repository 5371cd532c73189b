//! Compaction topics: beside the log, each of their queues has a log of its own that keeps the newest message of each key.
//!
//! ```text
//! compaction/compactionLog/TOPIC/QUEUE/0000…   records as in the commit log, but each with its position here; a blank ends a file
//! compaction/compactionCq/TOPIC/QUEUE/0000…    the units of batch queues, one a record; each file has the name of its log file
//! ```
//! The flusher copies the queue's new messages (those with a key) here as it writes their queue entries: [`Compaction::follow`]. From
//! time to time policy has the full files compacted ([`Compactor::compact`], in a thread of policy's): what a newer message of
//! the same key has replaced is left out, and so are messages without a body up to the newest one looked at (who is in the middle of
//! the queue just then may miss that a key was deleted, as with Apache's broker). The file that is being written to is never
//! compacted. Offsets stay what they were. Whoever reads the queue gets from here what has been copied ([`Compaction::read`]), and
//! what has not from the log as ever; so messages stay readable when their log files have expired.
//!
//! Memory: one row a file; while compacting, up to `map_bytes` for the newest offset of each key. Keys that find no room in it are left to
//! the next time.
//!
//! A crash at any moment loses nothing. The log files here are the truth: units that do not fit them are made again from them. Compacted
//! files are written aside, synced, and take the names of the old ones one by one, oldest first. Whatever of that has happened, the
//! files hold all that must be kept, in order; offsets that an earlier file has already are passed over, and the
//! next compaction removes them. What the commit log does not have (a power cut) is cut off, what is missing is copied again.

use std::collections::hash_map::{Entry as Place, HashMap, RandomState};
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::batch_queue::{BatchEntry, UNIT_BYTES};
use crate::commit_log::{failed_sync, file_name, parse_file_name, LogReader};
use crate::consume_queue::{Entry, FileUnit, QueueKey};
use crate::disk::{Disk, DiskFile, Mode};
use crate::error::Error;
use crate::property::{java_hash, scan};
use crate::pull::{Found, Limits};
use crate::record::{
    encode_blank, looks_like_record_at, read_u32, RecordView, BLANK_BYTES, MAGIC_BLANK, PHYSICAL_OFFSET_AT,
    RECORD_BYTES_MIN,
};
use crate::store::{lock, Shared};
use crate::tables::Filter;

const UNIT: u64 = UNIT_BYTES as u64;
/// Where compacted files are written before they take the place of others.
const ASIDE: &str = "compacting";
/// What Apache's broker appends to the names of files it is about to replace.
const REPLACED: &str = ".delete";
/// So much is copied before it is written.
const WRITE_BYTES: usize = 1 << 20;
/// Read at a time from a log file that is read as a whole.
const WINDOW_BYTES: usize = 1 << 20;
/// Units and queue entries read at a time.
const UNITS_AT_ONCE: u64 = 1024;
/// Units read at a time for a pull.
const UNITS_A_PULL: u64 = 64;
/// Memory a key takes while compacting: its hash, its offset and what the table needs beside them at its emptiest.
const KEY_BYTES: usize = 64;
/// Room for so many keys there is in any case.
const KEYS_MIN: usize = 100;

/// File sizes in bytes by Apache's rules, from the two configured: whole units, and a log file that is a multiple of it.
pub fn file_sizes(log_bytes: u64, queue_bytes: u64) -> (u64, u64) {
    let queue_bytes = (queue_bytes / UNIT).max(3) * UNIT;
    let (times, rest) = (log_bytes / queue_bytes, log_bytes % queue_bytes);
    let log_bytes = match times {
        ..5 => 5 * queue_bytes,
        times if rest > 0 && rest < queue_bytes / 2 => times * queue_bytes,
        times => (times + 1) * queue_bytes,
    };
    (log_bytes, queue_bytes)
}

/// What is known of one file and the file of its units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    base: u64,
    /// Units to pass over: an earlier file has their offsets.
    skip: u64,
    units: u64,
    /// Offsets of the first unit that is not passed over, and of the last.
    first: i64,
    last: i64,
    /// End of the last record in the file.
    log_end: u64,
}

/// Where files are and how large.
#[derive(Clone)]
struct Files {
    disk: Arc<dyn Disk>,
    log_dir: PathBuf,
    queue_dir: PathBuf,
    log_bytes: u64,
    queue_bytes: u64,
}

type File = Arc<dyn DiskFile>;

impl Files {
    fn aside(&self) -> Files {
        Files { log_dir: self.log_dir.join(ASIDE), queue_dir: self.queue_dir.join(ASIDE), ..self.clone() }
    }

    fn log(&self, base: u64) -> PathBuf {
        self.log_dir.join(file_name(base))
    }

    fn queue(&self, base: u64) -> PathBuf {
        self.queue_dir.join(file_name(base))
    }

    fn open(&self, base: u64) -> io::Result<(File, File)> {
        Ok((self.disk.open(&self.log(base), Mode::Read)?, self.disk.open(&self.queue(base), Mode::Read)?))
    }

    /// A file of this size, made when missing.
    fn make(&self, path: &Path, bytes: u64) -> io::Result<File> {
        let file = match self.disk.open(path, Mode::Create) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dirs(path.parent().unwrap_or(path))?;
                self.disk.open(path, Mode::Create)?
            }
            other => other?,
        };
        if file.len()? != bytes {
            file.set_len(bytes)?;
        }
        Ok(file)
    }

    fn remove(&self, base: u64) -> io::Result<()> {
        for path in [self.log(base), self.queue(base)] {
            match self.disk.remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    fn remove_aside(&self) -> io::Result<()> {
        self.disk.remove_tree(&self.log_dir.join(ASIDE))?;
        self.disk.remove_tree(&self.queue_dir.join(ASIDE))
    }

    fn sync(&self, base: u64) -> io::Result<()> {
        for path in [self.log(base), self.queue(base)] {
            self.disk.open(&path, Mode::Write)?.sync_data()?;
        }
        Ok(())
    }

    fn sync_dirs(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.log_dir)?;
        self.disk.sync_dir(&self.queue_dir)
    }

    /// Makes all names up to the store's root survive a power cut.
    fn sync_all_dirs(&self) -> io::Result<()> {
        for dir in [&self.log_dir, &self.queue_dir] {
            for dir in dir.ancestors().take(5) {
                self.disk.sync_dir(dir)?;
            }
        }
        Ok(())
    }
}

/// The units `from..to`, fewer when they cannot be read.
fn units(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<Vec<BatchEntry>> {
    let mut bytes = vec![0; (to.saturating_sub(from) * UNIT) as usize];
    let got = file.read_at(from * UNIT, &mut bytes)?;
    Ok(bytes[..got].chunks_exact(UNIT_BYTES).map_while(BatchEntry::read).collect())
}

/// Number of the first unit of `from..to` for which `is_before` is false.
fn first_unit(
    file: &dyn DiskFile,
    from: u64,
    to: u64,
    is_before: impl Fn(Option<&BatchEntry>) -> bool,
) -> io::Result<u64> {
    let (mut low, mut high) = (from, to);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(units(file, middle, middle + 1)?.first()) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// Records of one log file in the order they lie there, read ahead.
struct Window {
    file: File,
    file_bytes: u64,
    base: u64,
    from: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn new(file: File, base: u64) -> io::Result<Window> {
        Ok(Window { file_bytes: file.len()?, file, base, from: 0, bytes: Vec::new() })
    }

    fn bytes(&mut self, at: u64, size: usize) -> io::Result<Option<&[u8]>> {
        let end = at + size as u64;
        if at < self.from || end > self.from + self.bytes.len() as u64 {
            let ahead = self.file_bytes.saturating_sub(at).min(WINDOW_BYTES as u64);
            self.bytes.resize(size.max(ahead as usize), 0);
            let got = self.file.read_at(at, &mut self.bytes)?;
            self.bytes.truncate(got);
            self.from = at;
        }
        let start = (at - self.from) as usize;
        Ok(self.bytes.get(start..start + size))
    }

    /// The record of a unit.
    fn record(&mut self, unit: &BatchEntry) -> io::Result<Option<RecordView<'_>>> {
        let at = unit.position.wrapping_sub(self.base);
        let position = unit.position;
        let Some(bytes) = (at < 1 << 40).then(|| self.bytes(at, unit.size as usize)).transpose()?.flatten() else {
            return Ok(None);
        };
        if read_u32(bytes, 0) != Some(unit.size) || !looks_like_record_at(bytes, position) {
            return Ok(None);
        }
        Ok(RecordView::parse(bytes).filter(|view| view.queue_offset == unit.base))
    }

    /// The record at `at` if there is a whole one.
    fn record_at(&mut self, at: u64) -> io::Result<Option<RecordView<'_>>> {
        let Some(size) = self.bytes(at, RECORD_BYTES_MIN)?.and_then(|head| read_u32(head, 0)) else { return Ok(None) };
        if (size as usize) < RECORD_BYTES_MIN || size > i32::MAX as u32 {
            return Ok(None);
        }
        let position = self.base + at;
        let bytes = self.bytes(at, size as usize)?.filter(|bytes| looks_like_record_at(bytes, position));
        Ok(bytes.and_then(RecordView::parse).filter(RecordView::is_intact))
    }
}

/// The key of a message here: all of KEYS. `None`: it has none.
fn key_of<'a>(view: &RecordView<'a>) -> Option<&'a [u8]> {
    let keys = scan(view.properties).keys.of(view.properties);
    (!keys.iter().all(u8::is_ascii_whitespace)).then_some(keys)
}

/// Writes records and their units, file after file.
struct Appender<'f> {
    files: &'f Files,
    segment: Option<Segment>,
    next_base: u64,
    /// What of the segment is not written yet, and where it belongs.
    log: Vec<u8>,
    log_from: u64,
    queue: Vec<u8>,
    queue_from: u64,
    /// Written: the segment begun with as it is now, and those made.
    written: Vec<Segment>,
}

impl<'f> Appender<'f> {
    /// Goes on behind `last`.
    fn new(files: &'f Files, last: Option<Segment>) -> Appender<'f> {
        let (log_from, queue_from) = last.map_or((0, 0), |s| (s.log_end, s.units * UNIT));
        let next_base = last.map_or(0, |s| s.base + files.log_bytes);
        Appender {
            files,
            segment: last,
            next_base,
            log: Vec::new(),
            log_from,
            queue: Vec::new(),
            queue_from,
            written: Vec::new(),
        }
    }

    fn waiting(&self) -> usize {
        self.log.len()
    }

    /// Appends; false if the record fits no file.
    fn put(&mut self, record: &[u8], offset: i64, tags_code: i64, store_timestamp: i64) -> io::Result<bool> {
        let needed = record.len() as u64 + BLANK_BYTES;
        if needed > self.files.log_bytes {
            return Ok(false);
        }
        let is_full =
            |s: &Segment| (s.units + 1) * UNIT >= self.files.queue_bytes || needed > self.files.log_bytes - s.log_end;
        if self.segment.as_ref().is_some_and(is_full) {
            self.end_file()?;
        }
        let segment = self.segment.get_or_insert(Segment {
            base: self.next_base,
            skip: 0,
            units: 0,
            first: offset,
            last: offset,
            log_end: 0,
        });
        let position = segment.base + segment.log_end;
        let at = self.log.len() + PHYSICAL_OFFSET_AT;
        self.log.extend_from_slice(record);
        self.log[at..at + 8].copy_from_slice(&position.to_be_bytes());
        let unit =
            BatchEntry { position, size: record.len() as u32, tags_code, store_timestamp, base: offset, count: 1 };
        self.queue.extend_from_slice(&unit.encode());
        segment.units += 1;
        segment.last = offset;
        segment.log_end += record.len() as u64;
        if self.waiting() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(true)
    }

    /// Ends the file as Apache's broker does: a blank, and a unit that is none.
    fn end_file(&mut self) -> io::Result<()> {
        let Some(segment) = self.segment else { return Ok(()) };
        encode_blank(&mut self.log, self.files.log_bytes - segment.log_end);
        if (segment.units + 1) * UNIT <= self.files.queue_bytes {
            self.queue.extend_from_slice(&BatchEntry::END);
        }
        self.write()?;
        self.segment = None;
        self.next_base = segment.base + self.files.log_bytes;
        (self.log_from, self.queue_from) = (0, 0);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(segment) = self.segment.filter(|_| !self.log.is_empty()) else { return Ok(()) };
        let files = self.files;
        files.make(&files.log(segment.base), files.log_bytes)?.write_at(self.log_from, &self.log)?;
        files.make(&files.queue(segment.base), files.queue_bytes)?.write_at(self.queue_from, &self.queue)?;
        self.log_from += self.log.len() as u64;
        self.queue_from += self.queue.len() as u64;
        self.log.clear();
        self.queue.clear();
        match self.written.last_mut().filter(|s| s.base == segment.base) {
            Some(last) => *last = segment,
            None => self.written.push(segment),
        }
        Ok(())
    }
}

/// What readers see.
struct View {
    segments: Vec<Segment>,
    /// Offset of the queue's next message to copy.
    next: i64,
    deleted: bool,
    /// What was here did not belong to this topic: it begins anew.
    renewed: bool,
}

/// One queue's compacted log.
pub(crate) struct Compaction {
    pub topic: Arc<str>,
    pub queue_id: u32,
    files: Files,
    /// Held for as long as it takes to read a batch, or to rename a file.
    view: Mutex<View>,
    /// Files that are not synced; who holds it appends.
    unsynced: Mutex<BTreeSet<u64>>,
    /// What is copied of the messages before this offset is on the device.
    synced: AtomicI64,
    /// Who holds it replaces files.
    replacing: Mutex<()>,
}

/// What a queue that is opened is compared with.
pub(crate) struct Truth<'a> {
    /// Offset of its next message.
    pub next: i64,
    /// What is newer need not be on the device.
    pub synced_ms: i64,
    /// Store time of the message at an offset, if the log has it.
    pub store_time: &'a mut dyn FnMut(i64) -> Option<i64>,
    pub say: &'a dyn Fn(&str),
}

impl Truth<'_> {
    fn is_doubtful(&self, unit: &BatchEntry) -> bool {
        unit.store_timestamp > self.synced_ms
    }
}

impl Compaction {
    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    /// Opens what there is of a queue, and repairs it.
    ///
    /// # Errors
    /// [`Error::Unusable`] when its files cannot be read, [`Error::DiskFull`] when repairs cannot be written.
    pub fn open(shared: &Shared, topic: &Arc<str>, queue_id: u32, truth: &mut Truth<'_>) -> Result<Compaction, Error> {
        let options = &shared.options;
        let dir = |name: &str| options.root.join("compaction").join(name).join(&**topic).join(queue_id.to_string());
        let (log_bytes, queue_bytes) =
            file_sizes(options.compaction_log_file_bytes, options.compaction_queue_file_bytes);
        let mut files = Files {
            disk: shared.disk.clone(),
            log_dir: dir("compactionLog"),
            queue_dir: dir("compactionCq"),
            log_bytes,
            queue_bytes,
        };
        let view = load(&mut files, truth).map_err(|e| Error::open("opening", &files.log_dir, &e))?;
        let doubtful = truth.synced_ms < i64::MAX;
        let synced = if doubtful { 0 } else { view.next };
        Ok(Compaction {
            topic: topic.clone(),
            queue_id,
            unsynced: Mutex::new(view.segments.iter().filter(|_| doubtful).map(|s| s.base).collect()),
            synced: AtomicI64::new(synced),
            files,
            view: Mutex::new(view),
            replacing: Mutex::new(()),
        })
    }

    /// First offset there is.
    pub fn min(&self) -> Option<i64> {
        self.view().segments.first().map(|segment| segment.first)
    }

    /// Messages before this offset need no log file any more: what is copied of them is on the device.
    pub fn synced(&self) -> i64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Appends what matches from `from` on and lies before `end` to `out`, as far as the limits allow. True: the read ends here. False:
    /// there is nothing more here, it goes on in the log at `found.next_offset`.
    pub fn read(
        &self,
        from: i64,
        end: i64,
        limits: &Limits,
        filter: &Filter,
        found: &mut Found,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let view = self.view();
        found.next_offset = from;
        if from >= view.next.min(end) {
            return Ok(false);
        }
        let mut looked = 0;
        let behind = view.segments.partition_point(|segment| segment.last < from);
        'look: for segment in &view.segments[behind..] {
            let (log, queue) = self.files.open(segment.base)?;
            let mut at = first_unit(queue.as_ref(), segment.skip, segment.units, |unit| {
                unit.map_or(true, |unit| unit.base < from)
            })?;
            while at < segment.units {
                let next = units(queue.as_ref(), at, (at + UNITS_A_PULL).min(segment.units))?;
                if next.is_empty() {
                    break;
                }
                at += next.len() as u64;
                for unit in next {
                    if unit.base >= end {
                        break 'look;
                    }
                    let size = u64::from(unit.size);
                    let full = found.count >= limits.count_max || found.bytes + size > limits.bytes_max;
                    if (found.count > 0 && full) || looked >= limits.filter_entries_max {
                        return Ok(true);
                    }
                    looked += 1;
                    if filter.admits(unit.tags_code) {
                        let start = out.len();
                        out.resize(start + unit.size as usize, 0);
                        let at = unit.position.saturating_sub(segment.base);
                        let whole = log.read_at(at, &mut out[start..])? == unit.size as usize
                            && looks_like_record_at(&out[start..], unit.position);
                        let matches = || {
                            !filter.asks_record(unit.tags_code)
                                || RecordView::parse(&out[start..]).is_some_and(|v| filter.matches(v.properties))
                        };
                        if whole && matches() {
                            found.count += 1;
                            found.bytes += size;
                        } else {
                            out.truncate(start);
                        }
                    }
                    found.next_offset = unit.base + 1;
                }
            }
        }
        if found.count == 0 {
            found.next_offset = found.next_offset.max(view.next.min(end));
        }
        Ok(found.count > 0)
    }

    /// Copies what the queue's files have more than is here. `between` is called from time to time.
    ///
    /// # Errors
    /// [`Error::Unusable`] when something cannot be read: it goes on there the next time.
    pub fn follow(
        &self,
        shared: &Shared,
        number: u32,
        reader: &mut LogReader,
        between: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let failed = |e: io::Error| Error::write("writing", &self.files.log_dir, &e);
        let mut entries = Vec::new();
        loop {
            let mut unsynced = lock(&self.unsynced);
            let (next, last) = {
                let view = self.view();
                if view.deleted {
                    return Ok(());
                }
                (view.next, view.segments.last().copied())
            };
            let (min, end) = {
                let state = shared.state();
                let queue = &state.queues[number as usize];
                (queue.min, if queue.deleted { 0 } else { queue.tail_base })
            };
            let from = next.max(min);
            if from >= end {
                return Ok(());
            }
            let key = QueueKey { number, topic: &self.topic, queue_id: self.queue_id };
            let mut queue_files = lock(&shared.queue_files);
            let file = from as u64 / queue_files.units;
            let file_end = end.min(((file + 1) * queue_files.units) as i64);
            let count = UNITS_AT_ONCE.min((file_end - from) as u64) as usize;
            let read = queue_files.read(key, from as u64, count, &mut entries);
            let path = queue_files.path(&self.topic, self.queue_id, file);
            drop(queue_files);
            let mut at = from;
            match read {
                // The file is missing: what comes behind it is there.
                Err(e) if e.kind() == io::ErrorKind::NotFound => at = file_end,
                other => other.map_err(|e| Error::open("reading", &path, &e))?,
            }
            let mut appender = Appender::new(&self.files, last);
            let mut unreadable = None;
            let mut copy = Vec::new();
            for unit in entries.chunks_exact(Entry::BYTES) {
                let offset = at;
                at += 1;
                let Some(entry) = Entry::read(unit).filter(|entry| !entry.is_hole()) else { continue };
                let record = match reader.record_for_good(&shared.log, entry.position, entry.size) {
                    Ok(Some(record)) => record,
                    Ok(None) => continue,
                    Err(e) => {
                        at = offset;
                        let path = shared.log.path(shared.log.base_of(entry.position));
                        unreadable = Some(Error::open("opening", &path, &e));
                        break;
                    }
                };
                copy.clear();
                copy.extend_from_slice(record);
                if reader.is_damaged(&shared.log, entry.position, entry.size) {
                    continue;
                }
                let Some(view) = RecordView::parse(&copy).filter(|view| key_of(view).is_some()) else { continue };
                if !appender.put(&copy, offset, entry.tags_code, view.store_timestamp).map_err(failed)? {
                    shared.notice(format!(
                        "message {offset} of {}/{} is larger than a compaction log file: it is not kept",
                        self.topic, self.queue_id
                    ));
                }
            }
            if at == from {
                return unreadable.map_or(Ok(()), Err);
            }
            appender.write().map_err(failed)?;
            unsynced.extend(appender.written.iter().map(|segment| segment.base));
            let mut view = self.view();
            for segment in appender.written {
                match view.segments.last_mut().filter(|last| last.base == segment.base) {
                    Some(last) => *last = segment,
                    None => view.segments.push(segment),
                }
            }
            view.next = at;
            drop((view, unsynced));
            if let Some(error) = unreadable {
                return Err(error);
            }
            between()?;
        }
    }

    /// Syncs what [`Compaction::follow`] wrote.
    pub fn sync(&self) -> Result<(), Error> {
        let (bases, next) = {
            let mut unsynced = lock(&self.unsynced);
            let view = self.view();
            if view.deleted {
                return Ok(());
            }
            (std::mem::take(&mut *unsynced), view.next)
        };
        if bases.is_empty() {
            self.synced.store(next, Ordering::Release);
            return Ok(());
        }
        let is_gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let synced = || {
            for base in &bases {
                match self.files.sync(*base) {
                    // Compacted meanwhile, which syncs what it writes; or the topic was deleted.
                    Err(e) if is_gone(&e) => {}
                    other => other?,
                }
            }
            self.files.sync_all_dirs()
        };
        match synced() {
            Err(e) if is_gone(&e) && self.view().deleted => return Ok(()),
            Err(e) => {
                lock(&self.unsynced).extend(bases); // what could not be opened is tried again
                return Err(failed_sync(&self.files.log_dir, &e));
            }
            Ok(()) => {}
        }
        self.synced.store(next, Ordering::Release);
        Ok(())
    }

    /// The topic is gone: nothing is written or replaced any more.
    pub fn delete(&self) {
        let _appending = lock(&self.unsynced);
        let mut view = self.view();
        view.deleted = true;
        view.segments.clear();
    }

    /// Returns when nobody replaces files.
    pub fn wait(&self) {
        drop(lock(&self.replacing));
    }

    /// Reads the records of a file in order, for as long as `each` says so; passes over what cannot be read.
    fn each_record(
        &self,
        segment: &Segment,
        mut each: impl FnMut(&BatchEntry, &RecordView<'_>) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let (log, queue) = self.files.open(segment.base)?;
        let mut window = Window::new(log, segment.base)?;
        let mut at = segment.skip;
        while at < segment.units {
            let next = units(queue.as_ref(), at, (at + UNITS_AT_ONCE).min(segment.units))?;
            if next.is_empty() {
                break;
            }
            at += next.len() as u64;
            for unit in next {
                let Some(view) = window.record(&unit)? else { continue };
                if !each(&unit, &view)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Puts compacted files in the place of the first `old` ones. False: the topic is gone.
    fn replace(&self, old: &[Segment], new: &[Segment]) -> io::Result<bool> {
        let aside = self.files.aside();
        let newest_old = old.last().map_or(0, |segment| segment.base);
        for done in 1..=new.len() {
            let segment = new[done - 1];
            let mut kept = new[..done].to_vec();
            for rest in old.iter().filter(|rest| rest.base > segment.base) {
                kept.extend(self.beyond(rest, segment.last)?);
            }
            let mut view = self.view();
            if view.deleted {
                return Ok(false);
            }
            self.files.disk.rename(&aside.log(segment.base), &self.files.log(segment.base))?;
            self.files.disk.rename(&aside.queue(segment.base), &self.files.queue(segment.base))?;
            kept.extend(view.segments.iter().filter(|s| s.base > newest_old));
            view.segments = kept;
            drop(view);
            self.files.sync_dirs()?;
        }
        let first_gone = new.last().map_or(0, |segment| segment.base + self.files.log_bytes);
        for gone in old.iter().filter(|segment| segment.base >= first_gone) {
            let mut view = self.view();
            if view.deleted {
                return Ok(false);
            }
            view.segments.retain(|segment| segment.base != gone.base);
            drop(view);
            self.files.remove(gone.base)?;
        }
        self.files.sync_dirs()?;
        Ok(true)
    }

    /// The part of a file that lies behind `last`.
    fn beyond(&self, segment: &Segment, last: i64) -> io::Result<Option<Segment>> {
        if segment.first > last {
            return Ok(Some(*segment));
        }
        if segment.last <= last {
            return Ok(None);
        }
        let queue = self.files.disk.open(&self.files.queue(segment.base), Mode::Read)?;
        beyond(queue.as_ref(), segment, last).map(Some)
    }
}

/// Removes what there is of a topic.
pub(crate) fn remove_topic(disk: &dyn Disk, root: &Path, topic: &str) -> io::Result<()> {
    for dir in ["compactionLog", "compactionCq"] {
        match disk.remove_tree(&root.join("compaction").join(dir).join(topic)) {
            // It is being compacted: who does that tidies up, and what else is left is recognised when it is opened again.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOTEMPTY.raw_os_error()) => {}
            other => other?,
        }
    }
    Ok(())
}

/// `segment`, whose last offset is behind `last`, without what is not.
fn beyond(queue: &dyn DiskFile, segment: &Segment, last: i64) -> io::Result<Segment> {
    let skip = first_unit(queue, segment.skip, segment.units, |unit| unit.map_or(true, |unit| unit.base <= last))?;
    let first = units(queue, skip, skip + 1)?.first().map_or(segment.last, |unit| unit.base);
    Ok(Segment { skip, first, ..*segment })
}

// ------------------------------------------------------------------------------------------------------------- opening

/// Reads what there is of a queue, and repairs it.
fn load(files: &mut Files, truth: &mut Truth<'_>) -> io::Result<View> {
    finish_apaches_replacing(files)?;
    files.remove_aside()?;
    let mut bases: BTreeSet<u64> = names(files, &files.log_dir)?;
    if let Some(base) = bases.first() {
        // An existing queue keeps its sizes.
        let bytes = files.disk.file_len(&files.log(*base))?;
        if bytes > 0 && bases.iter().all(|base| base % bytes == 0) {
            files.log_bytes = bytes;
        }
        let bytes = files.disk.file_len(&files.queue(*base)).unwrap_or(0);
        if bytes > 0 && bytes % UNIT == 0 {
            files.queue_bytes = bytes;
        }
    }
    bases.retain(|base| base % files.log_bytes == 0);
    for stray in names(files, &files.queue_dir)?.difference(&bases) {
        files.remove(*stray)?;
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut damaged = false;
    // A file ends before its end: those behind it that were not synced are none of its continuation.
    let mut torn = false;
    for base in bases {
        let fits = if damaged { None } else { read_segment(files, base)? };
        let segment = match fits {
            Some(segment) => Some(segment),
            None if damaged => None,
            None => {
                (truth.say)(&format!("{}: units are made again", files.queue(base).display()));
                make_units(files, base)?
            }
        };
        let last = segments.last().map_or(-1, |segment| segment.last);
        torn |= segment.is_none();
        let Some(segment) = segment.filter(|segment| segment.last > last) else {
            files.remove(base)?;
            continue;
        };
        let queue = files.disk.open(&files.queue(base), Mode::Read)?;
        let mut segment = beyond(queue.as_ref(), &segment, last)?;
        if torn && units(queue.as_ref(), segment.skip, segment.skip + 1)?.iter().any(|unit| truth.is_doubtful(unit)) {
            damaged = true;
            (truth.say)(&format!("{} is removed: what belongs before it is not whole", files.log(base).display()));
            files.remove(base)?;
            continue;
        }
        let whole = whole_units(files, &segment, truth)?;
        if whole < segment.units {
            damaged = true;
            (truth.say)(&format!(
                "{} is cut: what follows is not in the commit log or not whole",
                files.log(base).display()
            ));
            match cut(files, &segment, whole)? {
                Some(rest) => segment = rest,
                None => {
                    files.remove(base)?;
                    continue;
                }
            }
        }
        // One that was compacted is replaced as a whole, and Apache's broker writes no end into it.
        let as_copied = segment.first == last + 1 && segment.last - last == (segment.units - segment.skip) as i64;
        torn |= truth.synced_ms < i64::MAX && as_copied && !has_end(files, &segment)?;
        segments.push(segment);
    }
    let mut renewed = false;
    if let Some(last) = segments.last() {
        let queue = files.disk.open(&files.queue(last.base), Mode::Read)?;
        let unit = units(queue.as_ref(), last.units - 1, last.units)?;
        let here = unit.first().map(|unit| unit.store_timestamp);
        let there = (truth.store_time)(last.last);
        if there.is_some() && here != there {
            (truth.say)(&format!("{} is of another life of its topic: removed", files.log_dir.display()));
            for segment in std::mem::take(&mut segments) {
                files.remove(segment.base)?;
            }
            renewed = true;
        }
    }
    let next = segments.last().map_or(0, |segment| segment.last + 1);
    Ok(View { segments, next, deleted: false, renewed })
}

fn names(files: &Files, dir: &Path) -> io::Result<BTreeSet<u64>> {
    let entries = files.disk.list(dir)?;
    Ok(entries.iter().filter(|e| !e.is_dir).filter_map(|e| parse_file_name(&e.name)).collect())
}

/// Apache's broker was killed while it replaced files: those not replaced yet get their names back.
fn finish_apaches_replacing(files: &Files) -> io::Result<()> {
    for dir in [&files.log_dir, &files.queue_dir] {
        for entry in files.disk.list(dir)? {
            let Some(name) = entry.name.strip_suffix(REPLACED).filter(|name| parse_file_name(name).is_some()) else {
                continue;
            };
            let (from, to) = (dir.join(&entry.name), dir.join(name));
            if files.disk.exists(&to) {
                files.disk.remove_file(&from)?;
            } else {
                files.disk.rename(&from, &to)?;
            }
        }
    }
    Ok(())
}

/// A file by its units; `None` unless they are of the records there.
fn read_segment(files: &Files, base: u64) -> io::Result<Option<Segment>> {
    let Ok(queue) = files.disk.open(&files.queue(base), Mode::Read) else { return Ok(None) };
    let log = files.disk.open(&files.log(base), Mode::Read)?;
    if log.len()? != files.log_bytes || queue.len()? != files.queue_bytes {
        return Ok(None);
    }
    let count = first_unit(queue.as_ref(), 0, files.queue_bytes / UNIT, |unit| unit.is_some())?;
    let first = units(queue.as_ref(), 0, count.min(1))?;
    let last = units(queue.as_ref(), count.saturating_sub(1), count)?;
    let (Some(first), Some(last)) = (first.first(), last.first()) else { return Ok(None) };
    let mut window = Window::new(log, base)?;
    // A file's records are some of those that were here before, in the same order: where both ends fit, all do.
    if first.position != base || window.record(first)?.is_none() || window.record(last)?.is_none() {
        return Ok(None);
    }
    let log_end = last.position - base + u64::from(last.size);
    Ok(Some(Segment { base, skip: 0, units: count, first: first.base, last: last.base, log_end }))
}

/// Makes the units of a file again; `None`: it has no record.
fn make_units(files: &Files, base: u64) -> io::Result<Option<Segment>> {
    let log = files.disk.open(&files.log(base), Mode::Write)?;
    if log.len()? != files.log_bytes {
        log.set_len(files.log_bytes)?;
    }
    let mut window = Window::new(log, base)?;
    let mut segment: Option<Segment> = None;
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(view) = window.record_at(at)? {
        let (offset, size) = (view.queue_offset, view.raw.len() as u64);
        let full = segment.is_some_and(|s| (s.units + 1) * UNIT >= files.queue_bytes || offset <= s.last);
        if full || offset < 0 {
            break;
        }
        let unit = BatchEntry {
            position: base + at,
            size: size as u32,
            tags_code: i64::from(java_hash(scan(view.properties).tags.of(view.properties))),
            store_timestamp: view.store_timestamp,
            base: offset,
            count: 1,
        };
        bytes.extend_from_slice(&unit.encode());
        let segment =
            segment.get_or_insert(Segment { base, skip: 0, units: 0, first: offset, last: offset, log_end: 0 });
        at += size;
        *segment = Segment { units: segment.units + 1, last: offset, log_end: at, ..*segment };
    }
    let queue = files.make(&files.queue(base), files.queue_bytes)?;
    queue.set_len(0)?;
    queue.set_len(files.queue_bytes)?;
    queue.write_at(0, &bytes)?;
    Ok(segment)
}

/// How many of a file's units the log vouches for: their offsets are below the queue's next, and their records are whole.
fn whole_units(files: &Files, segment: &Segment, truth: &Truth<'_>) -> io::Result<u64> {
    let (log, queue) = files.open(segment.base)?;
    let known =
        first_unit(queue.as_ref(), segment.skip, segment.units, |unit| unit.is_some_and(|u| u.base < truth.next))?;
    let newest = units(queue.as_ref(), known.saturating_sub(1), known)?;
    if !newest.first().is_some_and(|unit| truth.is_doubtful(unit)) {
        return Ok(known);
    }
    let mut window = Window::new(log, segment.base)?;
    let mut at = segment.skip;
    while at < known {
        let next = units(queue.as_ref(), at, (at + UNITS_AT_ONCE).min(known))?;
        for unit in &next {
            if truth.is_doubtful(unit) && !window.record(unit)?.is_some_and(|view| view.is_intact()) {
                return Ok(at);
            }
            at += 1;
        }
        if next.is_empty() {
            return Ok(at);
        }
    }
    Ok(known)
}

/// True if the blank that ends a full file lies behind the last record.
fn has_end(files: &Files, segment: &Segment) -> io::Result<bool> {
    let mut head = [0; BLANK_BYTES as usize];
    let got = files.disk.open(&files.log(segment.base), Mode::Read)?.read_at(segment.log_end, &mut head)?;
    let room = read_u32(&head, 0).map(u64::from);
    Ok(got == head.len() && room == Some(files.log_bytes - segment.log_end) && read_u32(&head, 4) == Some(MAGIC_BLANK))
}

/// Cuts a file behind its first `count` units; `None`: nothing is left.
fn cut(files: &Files, segment: &Segment, count: u64) -> io::Result<Option<Segment>> {
    if count <= segment.skip {
        return Ok(None);
    }
    let queue = files.disk.open(&files.queue(segment.base), Mode::Write)?;
    let Some(last) = units(queue.as_ref(), count - 1, count)?.first().copied() else { return Ok(None) };
    let log_end = last.position - segment.base + u64::from(last.size);
    let log = files.disk.open(&files.log(segment.base), Mode::Write)?;
    for (file, keep, bytes) in [(queue, count * UNIT, files.queue_bytes), (log, log_end, files.log_bytes)] {
        file.set_len(keep)?;
        file.set_len(bytes)?;
    }
    Ok(Some(Segment { units: count, last: last.base, log_end, ..*segment }))
}

// ---------------------------------------------------------------------------------------------------------- compacting

/// What one compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Messages up to this offset have been compared by their keys; to be handed in the next time.
    pub position: i64,
    /// Messages in the files compacted, and how many of them were kept.
    pub before: u64,
    pub after: u64,
}

/// The newest offset of each key, as far as there is room.
struct Newest {
    offsets: HashMap<(u64, u64), i64>,
    hashers: (RandomState, RandomState),
    room: usize,
    /// The newest offset taken in.
    last: i64,
}

impl Newest {
    fn new(map_bytes: usize, keys_max: u64) -> Newest {
        let room = (map_bytes / KEY_BYTES).max(KEYS_MIN);
        let offsets = HashMap::with_capacity(room.min(keys_max as usize));
        Newest { offsets, hashers: Default::default(), room, last: -1 }
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        (self.hashers.0.hash_one(key), self.hashers.1.hash_one(key))
    }

    /// False: there is no room.
    fn put(&mut self, key: &[u8], offset: i64) -> bool {
        let full = self.offsets.len() >= self.room;
        match self.offsets.entry(self.hash(key)) {
            Place::Occupied(mut place) => *place.get_mut() = offset,
            Place::Vacant(_) if full => return false,
            Place::Vacant(place) => {
                place.insert(offset);
            }
        }
        self.last = offset;
        true
    }

    fn keeps(&self, view: &RecordView<'_>) -> bool {
        if view.queue_offset > self.last {
            return true;
        }
        let newest = key_of(view).map(|key| self.offsets.get(&self.hash(key)).copied().unwrap_or(-1));
        newest.is_some_and(|newest| view.queue_offset >= newest) && !view.body.is_empty()
    }
}

/// Compacts, in any thread. Ends early when the store is closed.
#[derive(Clone)]
pub struct Compactor {
    shared: Arc<Shared>,
}

impl Compactor {
    pub(crate) fn new(shared: Arc<Shared>) -> Compactor {
        Compactor { shared }
    }

    /// Compacts a queue's full files, if there are any with messages behind `position` (-1: all). `None`: nothing to do.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::DiskFailed`]: everything is as it was then, or as a later compaction can go on with.
    pub fn compact(&self, topic: &str, queue_id: u32, position: i64) -> Result<Option<Compacted>, Error> {
        let found = {
            let all = lock(&self.shared.compactions);
            all.values().find(|c| &*c.topic == topic && c.queue_id == queue_id).cloned()
        };
        let Some(compaction) = found else { return Ok(None) };
        let _replacing = lock(&compaction.replacing);
        let compacted = self.compact_files(&compaction, position);
        let deleted = compaction.view().deleted;
        let cleaned = compaction.files.remove_aside();
        if deleted {
            return Ok(None);
        }
        cleaned.map_err(|e| Error::write("clearing", &compaction.files.aside().log_dir, &e))?;
        compacted
    }

    fn stopped(&self) -> bool {
        self.shared.closing.load(Ordering::Acquire) || self.shared.has_failed()
    }

    fn compact_files(&self, compaction: &Compaction, position: i64) -> Result<Option<Compacted>, Error> {
        let failed = |e: io::Error| Error::write("compacting", &compaction.files.log_dir, &e);
        let (old, position) = {
            let view = compaction.view();
            let full = view.segments.len().saturating_sub(1);
            // A position of an earlier life says nothing.
            let known = !view.renewed && position < view.next;
            (view.segments[..full].to_vec(), if known { position } else { -1 })
        };
        let count = |segments: &[Segment]| segments.iter().map(|s| s.units - s.skip).sum::<u64>();
        let fresh: Vec<Segment> = old.iter().filter(|segment| segment.last > position).copied().collect();
        if fresh.is_empty() {
            return Ok(None);
        }
        // What replaces an older message must survive a power cut as surely as that.
        let synced = lock(&self.shared.worker).sync_log(&self.shared, self.shared.log.written());
        synced.map_err(|error| {
            self.shared.report(&error);
            error
        })?;
        let mut newest = Newest::new(self.shared.options.compaction_map_bytes, count(&fresh));
        for segment in &fresh {
            let more = compaction.each_record(segment, |unit, view| {
                let counts = unit.base > position;
                Ok(!self.stopped() && key_of(view).filter(|_| counts).map_or(true, |key| newest.put(key, unit.base)))
            });
            if !more.map_err(failed)? {
                break;
            }
        }
        let aside = compaction.files.aside();
        compaction.files.remove_aside().map_err(failed)?;
        let mut appender = Appender::new(&aside, None);
        for segment in &old {
            let whole = compaction.each_record(segment, |unit, view| {
                if newest.keeps(view) {
                    appender.put(view.raw, unit.base, unit.tags_code, unit.store_timestamp)?;
                }
                Ok(!self.stopped())
            });
            if !whole.map_err(failed)? {
                return Ok(None);
            }
        }
        appender.end_file().map_err(failed)?;
        let new = appender.written;
        let synced = || {
            new.iter().try_for_each(|segment| aside.sync(segment.base))?;
            if new.is_empty() {
                return Ok(());
            }
            aside.sync_all_dirs()
        };
        synced().map_err(failed)?;
        if self.stopped() || !compaction.replace(&old, &new).map_err(failed)? {
            return Ok(None);
        }
        compaction.view().renewed = false;
        Ok(Some(Compacted { position: newest.last, before: count(&old), after: count(&new) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_apaches() {
        assert_eq!(file_sizes(100 << 20, 10 << 20), (104_857_460, 10_485_746));
        assert_eq!(file_sizes(1, 4600), (23_000, 4600));
        assert_eq!(file_sizes(46_000, 4600), (50_600, 4600));
        assert_eq!(file_sizes(48_000, 4650), (46_460, 4646));
        assert_eq!(file_sizes(49_000, 4600), (50_600, 4600));
    }

    #[test]
    fn keys_without_room_are_left_to_the_next_time() {
        let mut newest = Newest::new(0, 1000);
        for n in 0..KEYS_MIN as i64 {
            assert!(newest.put(format!("k{n}").as_bytes(), n));
        }
        assert!(newest.put(b"k5", 200));
        assert!(!newest.put(b"more", 201));
        assert_eq!(newest.last, 200);
    }
}
