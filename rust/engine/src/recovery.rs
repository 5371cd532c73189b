//! Opening a store as it was left: after a clean stop, after a kill, after a power cut, with files missing or damaged.
//!
//! The log is the truth. The rules, in the order they are applied:
//!
//! 1. Files that are not ours (name, place) are moved to `set-aside/` in the store; half-made ones (empty, too short) get their
//!    full size back, and those that are too long are cut to it. One line each.
//! 2. The scan of the log starts at the newest record known to be in queues and index: what the queues reached, after an unclean stop
//!    (`abort` is there) not beyond what the checkpoint vouches for. A queue that lacks files begins there anew: the scan starts at
//!    its newest entry before them, also when it is seen only during a scan that a queue lags. A start is only believed if a whole
//!    record lies there; otherwise the scan starts at the beginning of a file, by Apache's rules.
//! 3. From there each record is checked (lengths, own position, CRC). Behind a damaged one the scan goes on at the next
//!    bytes that are a whole record in their own place and not older than what was read before: one damaged record costs that record.
//! 4. Where nothing valid follows, the log ends. What lies behind is cut off, and the cut is synced before anything new is written.
//! 5. Queue entries from the scan's start on are replaced by what the log says; entries beyond the log's end are cut. An entry
//!    whose record is damaged stays, so that its offset is not given to another message. After a clean stop a topic without queues
//!    has been deleted: what the checkpoint vouches for does not come back.
//! 6. The index keeps the entries that make sense; after an unclean stop, or if a header does not fit its file, header and slots
//!    are rebuilt from them. Records from the first that makes none on are added again.
//!
//! A full disk does not stop the start: what has no room (queue and index entries, the checkpoint) waits in memory, writes are
//! refused, and the flusher goes on when there is room.
//!
//! A start may be interrupted as well. Before it changes anything it says in the checkpoint from where on queues and index are made
//! again, and makes `abort`: the next start does not take half of it for what a clean stop left.
//!
//! After a clean stop rule 3 does not look beyond what queues or checkpoint know: a stale tail of an earlier life is not revived.

mod batches;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::batch_queue::{self, BatchEntry};
use crate::checkpoint::Checkpoint;
use crate::commit_log::{failed_sync, file_name, parse_file_name, CommitLog, LogFile};
use crate::consume_queue::{can_be, Entry, FileUnit, Queue, QueueKey, HOLE, UNIT_BYTES};
use crate::disk::{DirEntry, Disk, DiskFile, Mode};
use crate::error::{is_full, Error};
use crate::index::{each_hash, is_index_name, prefix_hash, KeyHash};
use crate::light_queue;
use crate::property::{find, flag, java_hash, scan, Known};
use crate::record::{
    has_index_entry, has_queue_entry, read_u32, read_u64, RecordView, BLANK_BYTES, MAGIC_BLANK, MAGIC_V1, MAGIC_V2,
    PHYSICAL_OFFSET_AT, RECORD_BYTES_MIN,
};
use crate::snapshot::{self, Look, QueueBounds};
use crate::store::{lock, Level, Position, Shared, Store, StoreOptions};

/// How much of the log is read at a time.
const WINDOW_BYTES: usize = 1 << 20;
/// When so many rebuilt units wait in memory they are written.
const REBUILT_UNITS_MAX: usize = 1 << 20;
/// Apache's margin: the checkpoint's times may be this much ahead of what a crash left.
const CHECKPOINT_MARGIN_MS: i64 = 3_000;
/// A record whose queue offset is further ahead than this is damaged, unless so much of the log is lost.
const GAP_MAX: u64 = 1024;
/// An entry so far behind the log's end is no entry: its file holds something else.
const BEYOND_MAX: u64 = 1 << 40;
/// Topic whose queue entries carry the delivery time.
const SCHEDULE_TOPIC: &[u8] = b"SCHEDULE_TOPIC_XXXX";

/// An existing store keeps the file sizes it was made with.
pub(crate) fn adopt_sizes(
    options: &mut StoreOptions,
    disk: &dyn Disk,
    progress: &dyn Fn(Level, &str),
) -> Result<(), Error> {
    let dir = options.root.join("commitlog");
    let mut sizes = BTreeSet::new();
    let entries = disk.list(&dir).map_err(|e| Error::open("reading", &dir, &e))?;
    for entry in entries.iter().filter(|e| !e.is_dir && parse_file_name(&e.name).is_some()) {
        let path = dir.join(&entry.name);
        let bytes =
            disk.open(&path, Mode::Read).and_then(|f| f.len()).map_err(|e| Error::open("reading", &path, &e))?;
        let aligned = parse_file_name(&entry.name).is_some_and(|base| bytes > 0 && base % bytes == 0);
        if aligned {
            sizes.insert(bytes);
        }
    }
    if let (Some(bytes), 1) = (sizes.first(), sizes.len()) {
        // A single short first file is a half-made one, not another size.
        let credible = entries.len() > 1 || *bytes >= options.log_file_bytes || *bytes % 4096 == 0;
        if *bytes != options.log_file_bytes && credible {
            let line = format!(
                "commit log files of this store have {bytes} bytes, not {} as configured: keeping {bytes}",
                options.log_file_bytes
            );
            progress(Level::Info, &line);
            options.log_file_bytes = *bytes;
        }
    }
    let kinds = [
        ("consumequeue", "consume", UNIT_BYTES as u64, &mut options.queue_file_units),
        ("batchconsumequeue", "batch", batch_queue::UNIT_BYTES as u64, &mut options.batch_file_units),
    ];
    for (dir, kind, unit_bytes, configured) in kinds {
        let root = options.root.join(dir);
        let found =
            queue_file_units(disk, &root, unit_bytes, *configured).map_err(|e| Error::open("reading", &root, &e))?;
        if let Some(units) = found.filter(|units| units != configured) {
            let line = format!(
                "{kind} queue files of this store hold {units} units, not {configured} as configured: keeping {units}"
            );
            progress(Level::Info, &line);
            *configured = units;
        }
    }
    Ok(())
}

/// Units that a store's queue files hold, by the first that has the configured size, or else the first of two that agree: one
/// alone may have been cut.
fn queue_file_units(disk: &dyn Disk, root: &Path, unit_bytes: u64, configured: u64) -> io::Result<Option<u64>> {
    let mut found = None;
    for topic in disk.list(root)?.iter().filter(|e| e.is_dir) {
        let topic_dir = root.join(&topic.name);
        for queue in disk.list(&topic_dir)?.iter().filter(|e| e.is_dir) {
            let dir = topic_dir.join(&queue.name);
            for file in disk.list(&dir)?.iter().filter(|e| !e.is_dir && parse_file_name(&e.name).is_some()) {
                let bytes = disk.open(&dir.join(&file.name), Mode::Read)?.len()?;
                let fits = bytes > 0 && bytes % unit_bytes == 0;
                if fits && parse_file_name(&file.name).is_some_and(|first| first % bytes == 0) {
                    let units = Some(bytes / unit_bytes);
                    if units == Some(configured) || units == found {
                        return Ok(units);
                    }
                    found = found.or(units);
                }
            }
        }
    }
    Ok(found)
}

/// Recovers; afterwards the store can be written to. `look`: somebody has begun to look at the snapshot's queues.
pub(crate) fn recover(store: &mut Store, look: Option<Look>, progress: &dyn Fn(Level, &str)) -> Result<(), Error> {
    let shared = store.shared.clone();
    let root = shared.options.root.clone();
    for dir in ["commitlog", "index"] {
        let dir = root.join(dir);
        shared.disk.create_dirs(&dir).map_err(|e| Error::open("making", &dir, &e))?;
    }
    let abort = root.join("abort");
    let checkpoint_path = root.join("checkpoint");
    let checkpoint = Checkpoint::load(shared.disk.as_ref(), &checkpoint_path)
        .map_err(|e| Error::open("reading", &checkpoint_path, &e))?;
    let mut recovery = Recovery {
        clean: !shared.disk.exists(&abort),
        checkpoint,
        queues: HashMap::new(),
        batches: HashMap::new(),
        prefixes: HashMap::new(),
        lost_bytes: 0,
        lags: None,
        to_begin: Vec::new(),
        topics_moved: false,
        newest_known: checkpoint.queue_position,
        again_from: None,
        vouched: None,
        index_from: 0,
        index_only: false,
        look,
        progress: Progress { say: progress, started: Instant::now(), last: Instant::now() },
        changed: false,
        full: false,
        store,
    };
    recovery.run()?;
    snapshot::remove(shared.disk.as_ref(), &root).map_err(|e| Error::write("removing the snapshot in", &root, &e))?;
    make_abort(&shared)
}

/// Makes the file that says until a clean stop that there was none.
fn make_abort(shared: &Shared) -> Result<(), Error> {
    let root = &shared.options.root;
    let abort = root.join("abort");
    let made = shared.disk.open(&abort, Mode::Create).and_then(|f| {
        f.set_len(0)?;
        match f.write_at(0, std::process::id().to_string().as_bytes()) {
            Err(e) if is_full(&e) => {} // that it is there says enough
            other => other?,
        }
        f.sync_data()?;
        shared.disk.sync_dir(root)
    });
    made.map_err(|e| Error::write("writing", &abort, &e))
}

/// Leaves the queues' bounds for the next start, after everything is flushed.
pub(crate) fn save_snapshot(store: &Store) -> Result<(), Error> {
    let shared = &store.shared;
    let checkpoint = lock(&shared.worker).checkpoint.encode();
    let mut queues = Vec::new();
    let state = shared.state();
    for queue in state.queues.iter().filter(|q| !q.deleted && q.next() > 0 && q.batches.is_none()) {
        queues.push(QueueBounds {
            topic: &queue.topic,
            queue_id: queue.queue_id,
            min: queue.min,
            next: queue.next(),
            min_position: queue.min_position,
        });
    }
    if queues.len() < snapshot::QUEUES_MIN {
        return Ok(());
    }
    let root = &shared.options.root;
    snapshot::save(shared.disk.as_ref(), root, &checkpoint, &queues)
        .map_err(|e| Error::write("writing the snapshot in", root, &e))
}

struct Progress<'a> {
    say: &'a dyn Fn(Level, &str),
    started: Instant,
    last: Instant,
}

impl Progress<'_> {
    /// A line for something repaired.
    fn line(&self, text: &str) {
        (self.say)(Level::Warning, text);
    }

    /// A line a second, from the first second on.
    fn tick(&mut self, text: impl FnOnce() -> String) {
        if self.last.elapsed() >= Duration::from_secs(1) {
            self.last = Instant::now();
            (self.say)(Level::Info, &format!("{} ({} s)", text(), self.started.elapsed().as_secs()));
        }
    }
}

/// What the scan knows of a queue.
#[derive(Default)]
struct Rebuilt {
    /// Next offset before the scan touched the queue.
    before: i64,
    /// The newest unit was accepted although the one before it is missing: the queue as it was without it.
    unconfirmed: Option<i64>,
}

struct Recovery<'a> {
    store: &'a mut Store,
    clean: bool,
    checkpoint: Checkpoint,
    queues: HashMap<u32, Rebuilt>,
    batches: HashMap<u32, batches::Rebuilt>,
    prefixes: HashMap<Vec<u8>, i32>,
    lost_bytes: u64,
    /// A queue was found to end before the scan's start: the scan has to begin here.
    lags: Option<Position>,
    /// Queues whose next file has to be there in the end.
    to_begin: Vec<u32>,
    /// A topic's queues were set aside: they are not those of a deleted topic.
    topics_moved: bool,
    /// What the checkpoint said before anything was repaired: position of the newest record in the queues.
    newest_known: i64,
    /// The next start begins here if this one does not come to its end.
    again_from: Option<Position>,
    /// Records up to here were in queues at a clean stop, whose queues are as it left them.
    vouched: Option<Position>,
    /// Records at this position and later are not in the index.
    index_from: Position,
    /// The log is read once more, for the index alone.
    index_only: bool,
    look: Option<Look>,
    progress: Progress<'a>,
    /// Something was repaired, so that a checkpoint is worth writing.
    changed: bool,
    /// Something found no room on the disk and waits in memory.
    full: bool,
}

impl Recovery<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let bases = self.load_log_files()?;
        let log_min = bases.first().copied().unwrap_or(0);
        let log_limit = bases.last().map_or(0, |b| b + self.log().file_bytes);
        self.log().start_at(log_min, log_limit);
        let synced_ms = match self.clean {
            true => i64::MAX,
            false => self.checkpoint.log_timestamp.min(self.checkpoint.queue_timestamp) - CHECKPOINT_MARGIN_MS,
        };
        let mut of_batches = Reached::default();
        self.load_batch_queues(&mut of_batches)?;
        let reached = self.load_queues()?.with(of_batches);
        if self.clean && reached.newest.is_some() && !self.topics_moved {
            self.vouched = u64::try_from(self.newest_known).ok();
        }
        let mut start = self.scan_start(&bases, &reached);
        if !self.clean || reached.rebuild_from.is_some() || reached.newest != Some(start) {
            self.begin_from(start)?;
        }
        let queue_root = self.store.shared.options.root.join("consumequeue");
        self.disk().create_dirs(&queue_root).map_err(|e| Error::open("making", &queue_root, &e))?;
        let strange = self.load_index(start)?;
        if self.index_from < start {
            start = self.believe(&bases, self.index_from, i64::MAX).max(log_min);
            self.begin_from(start)?;
        }
        for (path, bytes) in &strange {
            self.set_aside(path, &format!("is no index file of the configured size ({bytes} bytes)"))?;
        }
        let mut end = self.scan(&bases, start, reached.newest)?;
        while let Some(from) = self.lags.take() {
            start = self.believe(&bases, from, i64::MAX).max(log_min);
            self.begin_from(start)?;
            end = self.scan(&bases, start, reached.newest)?;
        }
        self.cut_log(&bases, end)?;
        // The newest record any queue knows was found: no entry can lie beyond the end.
        let complete = self.clean && reached.newest == Some(start);
        self.finish_queues(end, complete)?;
        self.finish_index(&bases, end)?;
        let say = self.progress.say;
        self.store.open_compactions(synced_ms, &|line| say(Level::Warning, line))?;
        self.finish(start, end)
    }

    fn log(&self) -> &CommitLog {
        &self.store.shared.log
    }

    fn disk(&self) -> &dyn Disk {
        self.store.shared.disk.as_ref()
    }

    /// Says on disk that queues and index are complete only up to `position`, before they are changed: a start that is interrupted
    /// must not leave them to the next one as if they were what a clean stop or a checkpoint vouches for.
    fn begin_from(&mut self, position: Position) -> Result<(), Error> {
        if self.again_from.is_some_and(|from| from <= position) {
            return Ok(());
        }
        self.again_from = Some(position);
        let stored_ms = self.record_at(position).unwrap_or(0);
        self.checkpoint.queue_position = self.checkpoint.queue_position.min(position as i64);
        self.checkpoint.queue_timestamp = self.checkpoint.queue_timestamp.min(stored_ms);
        self.changed = true;
        let shared = self.store.shared.clone();
        let path = shared.options.root.join("checkpoint");
        // Also when it says so already: the killed process may not have synced it.
        let saved = self.checkpoint.save(shared.disk.as_ref(), &path).map_err(|e| Error::write("writing", &path, &e));
        self.put_off(saved.and_then(|()| make_abort(&shared)))
    }

    /// What a full disk has no room for is written later, by the flusher; until then nothing new is taken.
    fn put_off(&mut self, written: Result<(), Error>) -> Result<(), Error> {
        match written {
            Err(error @ Error::DiskFull(_)) => {
                self.full = true;
                self.store.shared.report(&error);
                Ok(())
            }
            other => other,
        }
    }

    /// Moves something that does not belong where it is to `set-aside/`.
    fn set_aside(&self, path: &Path, why: &str) -> Result<(), Error> {
        let root = &self.store.shared.options.root;
        let dir = root.join("set-aside");
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('/', "-");
        let target = (0..).map(|n| dir.join(if n == 0 { name.clone() } else { format!("{name}.{n}") }));
        let Some(target) = target.into_iter().find(|t| !self.disk().exists(t)) else { return Ok(()) };
        self.progress.line(&format!("{} {why}: moved to {}", path.display(), target.display()));
        self.disk()
            .create_dirs(&dir)
            .and_then(|()| self.disk().rename(path, &target))
            .map_err(|e| Error::write("moving", path, &e))
    }

    /// What a file has behind its full size is no part of the store; it is kept where it is no zeros.
    fn cut_to_size(&self, path: &Path, file: &dyn DiskFile, bytes: u64, file_bytes: u64) -> Result<(), Error> {
        let failed = |e: io::Error| Error::write("cutting", path, &e);
        let more = bytes - file_bytes;
        self.progress.line(&format!(
            "{} has {bytes} bytes where {file_bytes} belong: the last {more} are cut off",
            path.display()
        ));
        if !is_zero(file, file_bytes, bytes).map_err(failed)? {
            let rest = path.with_extension("rest");
            let kept = self.disk().open(&rest, Mode::Create).map_err(failed)?;
            kept.set_len(0).map_err(failed)?;
            let mut piece = vec![0; WINDOW_BYTES];
            let mut at = 0;
            while at < more {
                let want = piece.len().min((more - at) as usize);
                let n = file.read_at(file_bytes + at, &mut piece[..want]).map_err(failed)?;
                if n == 0 {
                    break;
                }
                kept.write_at(at, &piece[..n]).map_err(failed)?;
                at += n as u64;
            }
            drop(kept);
            self.set_aside(&rest, "is what was cut off")?;
        }
        file.set_len(file_bytes).map_err(failed)
    }

    // ------------------------------------------------------------------------------------------------- what is there

    /// First positions of the log's files, ascending; the files have their full size.
    fn load_log_files(&mut self) -> Result<Vec<Position>, Error> {
        let dir = self.log().dir.clone();
        let file_bytes = self.log().file_bytes;
        let mut bases = Vec::new();
        for entry in self.disk().list(&dir).map_err(|e| Error::open("reading", &dir, &e))? {
            let path = dir.join(&entry.name);
            let base = parse_file_name(&entry.name).filter(|_| !entry.is_dir);
            let Some(base) = base.filter(|b| b % file_bytes == 0) else {
                self.set_aside(&path, "is no commit log file")?;
                continue;
            };
            let file = self.disk().open(&path, Mode::Write).map_err(|e| Error::open("opening", &path, &e))?;
            let bytes = file.len().map_err(|e| Error::open("reading", &path, &e))?;
            if bytes > file_bytes {
                self.cut_to_size(&path, file.as_ref(), bytes, file_bytes)?;
            }
            if bytes < file_bytes {
                self.progress.line(&format!("{} has {bytes} of {file_bytes} bytes: size restored", path.display()));
                file.set_len(file_bytes).map_err(|e| Error::write("restoring", &path, &e))?;
            }
            bases.push(base);
        }
        bases.sort_unstable();
        for pair in bases.windows(2).filter(|p| p[0] + file_bytes != p[1]) {
            self.progress.line(&format!(
                "commit log files between {} and {} are missing",
                file_name(pair[0]),
                file_name(pair[1])
            ));
        }
        Ok(bases)
    }

    /// Takes the queues from a clean stop's snapshot, if it names the topics that are on disk.
    fn load_snapshot(&mut self, topics: &[DirEntry]) -> Option<Reached> {
        let root = self.store.shared.options.root.clone();
        let bytes = snapshot::load(self.disk(), &root).filter(|_| self.clean)?;
        let (_, queues) = snapshot::parse(&bytes).filter(|(checkpoint, _)| *checkpoint == self.checkpoint.encode())?;
        let units = self.store.shared.options.queue_file_units;
        let look = match self.look.take() {
            Some(look) if look.is_for(&root, units) => look,
            _ => Look::begin(self.store.shared.disk.clone(), &root, units),
        };
        let mut named: Vec<&str> = queues.iter().map(|q| q.topic).collect();
        named.dedup(); // a topic's queues often follow one another
        let named: BTreeSet<&str> = named.into_iter().collect();
        let there: BTreeSet<&str> = topics.iter().map(|e| e.name.as_str()).collect();
        if named != there || topics.iter().any(|e| !e.is_dir) {
            return None;
        }
        self.set_bounds(&queues, true);
        if !look.confirms(&bytes) {
            self.set_bounds(&queues, false);
            return None;
        }
        // A clean stop's checkpoint names the newest record of all.
        Some(Reached { newest: Some(self.checkpoint.queue_position as u64), rebuild_from: None })
    }

    /// Makes queues known with the snapshot's bounds; not `believed`, they are as if nobody had heard of them.
    fn set_bounds(&mut self, queues: &[QueueBounds<'_>], believed: bool) {
        self.store.reserve_queues(queues.len());
        for bounds in queues {
            let number = self.store.queue(bounds.topic, bounds.queue_id).0;
            let queue = &mut self.store.shared.state().queues[number as usize];
            let (min, next, min_position) = match believed {
                true => (bounds.min, bounds.next, bounds.min_position),
                false => (0, 0, 0),
            };
            (queue.min, queue.tail_base, queue.visible, queue.min_position) = (min, next, next, min_position);
        }
    }

    /// Makes the queues known that have files.
    fn load_queues(&mut self) -> Result<Reached, Error> {
        let root = self.store.shared.options.root.join("consumequeue");
        let topics = self.disk().list(&root).map_err(|e| Error::open("reading", &root, &e))?;
        if let Some(reached) = self.load_snapshot(&topics) {
            return Ok(reached);
        }
        let mut reached = Reached::default();
        if !self.disk().exists(&root) {
            // All of it is gone: no topic was deleted, and what batch queues reached says nothing of the others.
            self.topics_moved = true;
            reached.rebuild_from = Some(0);
        }
        let total = topics.len();
        for (done, topic) in topics.into_iter().enumerate() {
            let topic_dir = root.join(&topic.name);
            if !topic.is_dir {
                self.set_aside(&topic_dir, "is no directory of a topic")?;
                continue;
            }
            for queue in self.disk().list(&topic_dir).map_err(|e| Error::open("reading", &topic_dir, &e))? {
                let dir = topic_dir.join(&queue.name);
                match queue.name.parse::<u32>().ok().filter(|id| queue.is_dir && id.to_string() == queue.name) {
                    Some(queue_id) => self.load_queue(&topic.name, queue_id, &dir, &mut reached)?,
                    None => self.set_aside(&dir, "is no directory of a queue")?,
                }
            }
            self.progress.tick(|| format!("consume queues of {} of {total} topics read", done + 1));
        }
        Ok(reached)
    }

    /// A queue's files, ascending, with whether they have their size. The newest counts as if it had; whether it is half-made is
    /// said beside.
    fn queue_files(&self, dir: &Path, file_bytes: u64) -> Result<(Vec<QueueFile>, bool), Error> {
        let mut files: Vec<QueueFile> = Vec::new();
        for entry in self.disk().list(dir).map_err(|e| Error::open("reading", dir, &e))? {
            let first = parse_file_name(&entry.name).filter(|f| !entry.is_dir && f % file_bytes == 0);
            match first {
                Some(first) => files.push(QueueFile { number: first / file_bytes, is_whole: true }),
                None => self.set_aside(&dir.join(&entry.name), "is no consume queue file")?,
            }
        }
        files.sort_unstable_by_key(|file| file.number);
        let last = files.len().saturating_sub(1);
        let mut half_made = false;
        for (at, file) in files.iter_mut().enumerate() {
            let path = dir.join(file_name(file.number * file_bytes));
            let bytes = self.disk().file_len(&path).map_err(|e| Error::open("reading", &path, &e))?;
            if bytes == file_bytes {
                continue;
            }
            if bytes > file_bytes {
                let open = self.disk().open(&path, Mode::Write).map_err(|e| Error::open("opening", &path, &e))?;
                self.cut_to_size(&path, open.as_ref(), bytes, file_bytes)?;
            } else if at == last {
                self.progress.line(&format!("{} has {bytes} of {file_bytes} bytes: size restored", path.display()));
                half_made = true;
            } else {
                // It gets its size with the entries: until then it can be seen that they are not there.
                file.is_whole = false;
            }
        }
        Ok((files, half_made))
    }

    /// Looks at a queue's files: how far they reach, and if some are missing, how far those before them do. From there on the log
    /// has to say what they lack.
    fn look_at_queue<U: FileUnit>(
        &mut self,
        dir: &Path,
        number: u32,
        units: u64,
        reached: &mut Reached,
    ) -> Result<(Reach<U>, Option<Reach<U>>), Error> {
        let file_bytes = units * U::BYTES as u64;
        let (files, half_made) = self.queue_files(dir, file_bytes)?;
        let mut files = &files[..];
        let log_min = self.log().min();
        let mut hole = first_hole(files);
        while let Some(at) = hole.filter(|at| *at > 0 && files[*at].is_whole) {
            // Old files go one by one: what lies before the gap may be what is left of them.
            let first = self.first_unit::<U>(dir, files[at].number * units, units)?;
            if !first.and_then(|unit| unit.position()).is_some_and(|position| position <= log_min) {
                break;
            }
            files = &files[at..];
            hole = first_hole(files);
        }
        let reach = self.reach::<U>(dir, files, units)?;
        let lacks_oldest = log_min == 0 && reach.first > 0 && {
            // A queue that began late has holes there.
            !self.first_unit::<U>(dir, reach.first, units)?.is_some_and(|unit| unit.position().is_none())
        };
        reached.newest = reached.newest.max(reach.newest);
        let what = match hole {
            Some(at) => format!("{} is missing, or too short", file_name(first_missing(files, at) * file_bytes)),
            None if reach.is_garbage => "its newest file holds something else than entries".to_owned(),
            None if files.is_empty() => "it has no files".to_owned(),
            None if lacks_oldest => "its oldest files are missing".to_owned(),
            // The file behind a full one is made with it.
            None if reach.is_full => {
                format!("no file follows the full {}", file_name(reach.next * U::BYTES as u64 - file_bytes))
            }
            None if half_made => String::new(),
            None => return Ok((reach, None)),
        };
        if !what.is_empty() {
            self.progress.line(&format!("{}: {what}: its entries are made again from the log", dir.display()));
        }
        self.to_begin.push(number);
        let before = match hole {
            Some(at) => Some(self.reach::<U>(dir, &files[..at], units)?),
            None if lacks_oldest => Some(self.reach::<U>(dir, &[], units)?),
            None => None,
        };
        let from = before.as_ref().unwrap_or(&reach).newest.unwrap_or(0);
        reached.rebuild_from = Some(reached.rebuild_from.map_or(from, |r| r.min(from)));
        Ok((reach, before))
    }

    /// The first unit of a queue's file, if it was ever written; `unit` is its number.
    fn first_unit<U: FileUnit>(&self, dir: &Path, unit: u64, units: u64) -> Result<Option<U>, Error> {
        let path = dir.join(file_name(unit * U::BYTES as u64));
        let open = self.disk().open(&path, Mode::Read).map_err(|e| Error::open("opening", &path, &e))?;
        Ok(QueueFileScan::<U>::new(open.as_ref(), units).unit(0))
    }

    /// How far these files of a queue reach, by the newest that has entries.
    fn reach<U: FileUnit>(&self, dir: &Path, files: &[QueueFile], units: u64) -> Result<Reach<U>, Error> {
        let first = files.first().map_or(0, |file| file.number * units);
        let mut reach =
            Reach { first, next: first, unit: None, newest: None, oldest: None, is_full: false, is_garbage: false };
        for file in files.iter().rev() {
            let path = dir.join(file_name(file.number * units * U::BYTES as u64));
            let open = self.disk().open(&path, Mode::Read).map_err(|e| Error::open("opening", &path, &e))?;
            let mut scan = QueueFileScan::<U>::new(open.as_ref(), units);
            let count = scan.count();
            if count == 0 {
                reach.is_garbage |= scan.bytes.iter().any(|byte| *byte != 0);
                continue;
            }
            // The newest unit that stands for a message says how far the queue came.
            let newest = (0..count).rev().map_while(|n| scan.unit(n)).find_map(|unit| unit.position());
            let oldest = scan.unit(0).and_then(|unit| unit.position());
            if newest.is_some_and(|newest| newest > self.log().written() + BEYOND_MAX || oldest > Some(newest)) {
                reach.is_garbage = true;
                continue;
            }
            (reach.newest, reach.unit) = (newest, scan.unit(count - 1));
            reach.next = file.number * units + count;
            reach.is_full = count == units && files.last().is_some_and(|last| last.number == file.number);
            if file.number * units == first {
                reach.oldest = oldest;
            }
            break;
        }
        Ok(reach)
    }

    fn load_queue(&mut self, topic: &str, queue_id: u32, dir: &Path, reached: &mut Reached) -> Result<(), Error> {
        let number = self.store.queue(topic, queue_id).0;
        let units = self.store.shared.options.queue_file_units;
        let (reach, _) = self.look_at_queue::<Entry>(dir, number, units, reached)?;
        let state = &mut *self.store.shared.state();
        let queue = &mut state.queues[number as usize];
        queue.min = reach.first as i64;
        queue.tail_base = reach.next as i64;
        queue.visible = reach.next as i64;
        // Not known yet: it is looked for when the log's minimum is known.
        queue.min_position = reach.oldest.unwrap_or(0);
        Ok(())
    }

    /// Loads the index; `below`: the scan of the log begins here anyway. Returns the files whose size is wrong: they say that
    /// something is lost until the scan's start is settled.
    fn load_index(&mut self, below: Position) -> Result<Vec<(PathBuf, u64)>, Error> {
        let shared = self.store.shared.clone();
        let mut state = shared.state();
        let Some(index) = state.index.as_mut() else { return Ok(Vec::new()) };
        let dir = index.dir.clone();
        let failed = |e: io::Error| Error::open("reading", &dir, &e);
        let strange = index.load(self.clean).map_err(failed)?;
        let had_index = self.checkpoint.index_timestamp.max(self.checkpoint.indexed_timestamp) > 0;
        let is_new = index.is_empty() && strange.is_empty() && !had_index;
        let first_strange = strange.iter().map(|(name, _)| name.as_str()).find(|name| is_index_name(name));
        let mut lines = Vec::new();
        let intact = self.clean && first_strange.is_none() && index.is_sound();
        let lost = if intact {
            index.resume().map_err(failed)?;
            index.is_empty()
        } else {
            index.repair(below, first_strange, &mut |p| self.record_at(p), &mut lines).map_err(failed)?
        };
        let end = index.end_position();
        drop(state);
        self.index_from = match end {
            _ if is_new => below,
            // The newest entry may be only the first of its record's keys: that record is indexed again.
            Some(end) if lost || (self.clean && !intact) => end,
            // What the index does not have of the scanned part it gets; a complete one has it already.
            Some(end) if self.clean => end + 1,
            Some(_) => below,
            None if lost || had_index => 0,
            None => below,
        };
        for line in lines {
            self.progress.line(&line);
        }
        Ok(strange.into_iter().map(|(name, bytes)| (dir.join(name), bytes)).collect())
    }

    // ------------------------------------------------------------------------------------------------ where to begin

    fn scan_start(&mut self, bases: &[Position], reached: &Reached) -> Position {
        let Some(log_min) = bases.first().copied() else { return 0 };
        let start = match reached.newest {
            None => log_min,
            Some(newest) => {
                let newest = reached.rebuild_from.map_or(newest, |r| r.min(newest));
                let vouched = self.checkpoint.queue_position;
                if self.clean {
                    self.believe(bases, newest, i64::MAX)
                } else if vouched > 0 {
                    self.believe(bases, newest.min(vouched as u64), i64::MAX)
                } else {
                    let until =
                        self.checkpoint.log_timestamp.min(self.checkpoint.queue_timestamp) - CHECKPOINT_MARGIN_MS;
                    self.file_start(bases, newest, until)
                }
            }
        };
        start.max(log_min)
    }

    /// `position` if a whole record lies there, else the start of a file before it.
    fn believe(&mut self, bases: &[Position], position: Position, until_ms: i64) -> Position {
        match self.record_at(position) {
            Some(_) => position,
            None => self.file_start(bases, position, until_ms),
        }
    }

    /// The newest file whose first record is whole, not behind `position` and not newer than `until_ms`; else the first file.
    fn file_start(&mut self, bases: &[Position], position: Position, until_ms: i64) -> Position {
        for base in bases.iter().rev().filter(|b| **b <= position) {
            if self.record_at(*base).is_some_and(|time| time <= until_ms) {
                return *base;
            }
        }
        bases.first().copied().unwrap_or(0)
    }

    /// Store time of the record at `position`, if there is a whole one.
    fn record_at(&mut self, position: Position) -> Option<i64> {
        let store = &mut *self.store;
        let size = store.reader.size_at(&store.shared.log, position)?;
        let bytes = store.reader.record(&store.shared.log, position, size)?;
        let view = RecordView::parse(bytes)?;
        view.is_intact().then_some(view.store_timestamp)
    }

    // -------------------------------------------------------------------------------------------------------- the scan

    /// Reads the log from `start` and puts each record's entries where they belong; returns the log's end. If it turns out that a
    /// queue `lags`, this ends at once and is to be begun again.
    fn scan(&mut self, bases: &[Position], start: Position, reached: Option<Position>) -> Result<Position, Error> {
        // Maps would see files that are about to be cut.
        drop(self.store.reader.take_below(Position::MAX));
        let file_bytes = self.log().file_bytes;
        self.lost_bytes = 0;
        let Some(mut at_file) = bases.iter().rposition(|b| *b <= start) else { return Ok(start) };
        let total = bases.last().map_or(0, |b| b + file_bytes);
        let mut window = self.window(bases[at_file])?;
        let mut offset = start - bases[at_file];
        let mut newest_ms = i64::MIN;
        loop {
            let base = bases[at_file];
            self.progress
                .tick(|| format!("commit log read to {} of at most {} MiB", (base + offset) >> 20, total >> 20));
            match window.item(offset) {
                Item::Record(size) => {
                    let Some(view) = window.view(offset, size) else { continue };
                    newest_ms = newest_ms.max(view.store_timestamp);
                    self.dispatch(&view, start)?;
                    if self.lags.is_some() {
                        // What is in the index by now is not put there again.
                        self.index_from = self.index_from.max(base + offset + 1);
                        return Ok(base + offset);
                    }
                    offset += size as u64;
                }
                Item::Blank => {
                    if at_file + 1 == bases.len() {
                        return Ok(base + file_bytes);
                    }
                    if bases[at_file + 1] != base + file_bytes {
                        self.lost_bytes += bases[at_file + 1] - base - file_bytes;
                    }
                    at_file += 1;
                    offset = 0;
                    window = self.window(bases[at_file])?;
                }
                Item::Damaged => {
                    let damaged = base + offset;
                    // After a clean stop nothing valid can lie behind what queues or checkpoint know, if they know anything.
                    let known = reached.max(u64::try_from(self.newest_known).ok().filter(|known| *known > 0));
                    let limit = known.filter(|_| self.clean).map_or(Position::MAX, |known| known + 1);
                    let Some((file, resume)) = self.resync(bases, at_file, offset, newest_ms, limit)? else {
                        return Ok(damaged);
                    };
                    let found = bases[file] + resume;
                    self.progress.line(&format!(
                        "the commit log is damaged from {damaged} to {found} ({} bytes): skipped",
                        found - damaged
                    ));
                    self.changed = true;
                    self.lost_bytes += found - damaged;
                    if file != at_file {
                        at_file = file;
                        window = self.window(bases[at_file])?;
                    }
                    offset = resume;
                }
            }
        }
    }

    fn window(&self, base: Position) -> Result<Window, Error> {
        let file = self.log().open(base, Mode::Read).map_err(|e| Error::open("opening", &self.log().path(base), &e))?;
        Ok(Window { base, file: file.file, file_bytes: self.log().file_bytes, bytes: Vec::new(), first: 0 })
    }

    /// The next whole record (or a file's blank) behind the damage at `offset`: its file and offset there.
    fn resync(
        &mut self,
        bases: &[Position],
        at_file: usize,
        offset: u64,
        newest_ms: i64,
        limit: Position,
    ) -> Result<Option<(usize, u64)>, Error> {
        for (file, base) in bases.iter().enumerate().skip(at_file) {
            if *base >= limit {
                break;
            }
            let mut window = self.window(*base)?;
            let mut from = if file == at_file { offset + 1 } else { 0 };
            while let Some(candidate) = window.next_candidate(from, limit - base) {
                if base + candidate >= limit {
                    break;
                }
                let good = match window.item(candidate) {
                    Item::Record(size) => window.view(candidate, size).is_some_and(|v| v.store_timestamp >= newest_ms),
                    Item::Blank => file + 1 < bases.len(),
                    Item::Damaged => false,
                };
                if good {
                    return Ok(Some((file, candidate)));
                }
                from = candidate + 1;
                self.progress.tick(|| format!("looking for records behind damage at {}", base + candidate));
            }
        }
        Ok(None)
    }

    /// Puts one record's queue and index entries where they belong.
    fn dispatch(&mut self, view: &RecordView<'_>, start: Position) -> Result<(), Error> {
        let Ok(topic) = std::str::from_utf8(view.topic) else { return Ok(()) };
        let known = scan(view.properties);
        if !self.index_only && has_queue_entry(view.sys_flag) && can_be(topic, view.queue_id) {
            self.place_entries(topic, view, &known, start);
        }
        {
            let state = &mut *self.store.shared.state();
            state.last_position = Some(view.position);
            state.last_timestamp = view.store_timestamp;
            if let Some(index) = state.index.as_mut() {
                let wanted = view.position >= self.index_from;
                if wanted && has_index_entry(view.sys_flag) {
                    let prefix = match self.prefixes.get(view.topic) {
                        Some(prefix) => *prefix,
                        None => *self.prefixes.entry(view.topic.to_vec()).or_insert_with(|| prefix_hash(topic)),
                    };
                    let (position, store_timestamp) = (view.position, view.store_timestamp);
                    each_hash(prefix, &known, view.properties, |hash| {
                        index.put(&KeyHash { hash, position, store_timestamp });
                    });
                }
            }
        }
        let (units, index_bytes) = {
            let state = self.store.shared.state();
            (state.tail_units, state.index.as_ref().map_or(0, |i| i.pending_bytes()))
        };
        if (units > REBUILT_UNITS_MAX || index_bytes > REBUILT_UNITS_MAX * UNIT_BYTES) && !self.full {
            let shared = self.store.shared.clone();
            let mut worker = lock(&shared.worker);
            let mut entries = lock(&shared.entries);
            let written = entries
                .write_queues(&shared, 1, &mut || Ok(()))
                .and_then(|()| entries.write_index(&shared, &mut || Ok(())))
                .and_then(|()| worker.retire_index(&shared));
            drop((worker, entries));
            self.put_off(written)?;
        }
        Ok(())
    }

    /// Puts a record's entries into its queue and the light queues it names.
    fn place_entries(&mut self, topic: &str, view: &RecordView<'_>, known: &Known, start: Position) {
        let tags_code = self.tags_code(view, known.tags.of(view.properties), known.any(flag::DELAY));
        let (position, size) = (view.position, view.raw.len() as u32);
        if self.store.is_batch_topic(topic) {
            if let Some((base, count)) = batch_queue::span_of(view.sys_flag, view.queue_offset, view.properties) {
                let store_timestamp = view.store_timestamp;
                let entry = BatchEntry { position, size, tags_code, store_timestamp, base, count };
                self.place_batch(topic, view.queue_id, entry, start);
            }
            return;
        }
        let entry = Entry { position, size, tags_code };
        self.place(topic, view.queue_id, view.queue_offset, entry, start);
        if known.any(flag::MULTI_DISPATCH) && self.store.has_light_queues() {
            for (name, offset) in light_queue::entries(topic, view.properties) {
                self.place(name, light_queue::QUEUE_ID, offset, entry, start);
            }
        }
    }

    /// What the queue entry carries: the tag's hash, or for a delayed message its delivery time.
    fn tags_code(&self, view: &RecordView<'_>, tags: &[u8], delayed: bool) -> i64 {
        let levels = &self.store.shared.options.delay_levels_ms;
        if delayed && view.topic == SCHEDULE_TOPIC {
            let level = find(view.properties, b"DELAY").and_then(|v| std::str::from_utf8(v).ok()?.parse::<i64>().ok());
            if let Some(level) = level.filter(|l| *l > 0) {
                let level = (level as usize).min(levels.len().max(1));
                return view.store_timestamp + levels.get(level - 1).copied().unwrap_or(1000);
            }
        }
        i64::from(java_hash(tags))
    }

    /// True for a record of a deleted topic: a clean stop has left the queues of all others.
    fn is_deleted(&self, topic: &str, position: Position) -> bool {
        self.vouched.is_some_and(|vouched| position <= vouched) && !self.store.has_topic(topic)
    }

    /// Puts a queue entry at the offset its record names. A record whose offset cannot be right (its header is damaged where
    /// no CRC looks, or it is of an older life) is left out.
    fn place(&mut self, topic: &str, queue_id: u32, offset: i64, entry: Entry, start: Position) {
        if self.is_deleted(topic, entry.position) {
            return;
        }
        let queue_ref = self.store.queue(topic, queue_id);
        let number = queue_ref.0;
        let shared = self.store.shared.clone();
        let state = &mut *shared.state();
        let queue = &mut state.queues[number as usize];
        let first_seen = !self.queues.contains_key(&number);
        let before = queue.next();
        if first_seen && offset > before && before > queue.min && start > shared.log.min() {
            let newest = self.store.unit_at(number, queue, before - 1).filter(|e| e.is_valid() && !e.is_hole());
            if let Some(newest) = newest.filter(|newest| newest.position < start) {
                self.progress.line(&format!(
                    "consume queue {topic}/{queue_id} ends at {before}, the log goes on at {offset}: it is made again from there"
                ));
                self.lags = Some(newest.position);
                self.changed = true;
                return;
            }
        }
        let rebuilt = self.queues.entry(number).or_insert_with(|| Rebuilt { before, unconfirmed: None });
        let units = queue.tail.len();
        if first_seen && offset < queue.next() && offset >= 0 {
            // Entries of an earlier scan or flush: replaced from here on, if this record is the one they speak of.
            let existing = self.store.unit_at(number, queue, offset);
            let same = existing.is_some_and(|e| e.position == entry.position);
            let stale = !existing.is_some_and(|e| !e.is_hole() && e.is_valid() && e.position < start);
            if !(same || stale || offset == 0) {
                return;
            }
            truncate(queue, offset);
        } else if offset != queue.next() {
            if let Some(back) = rebuilt.unconfirmed.take() {
                truncate(queue, back);
            }
        }
        let next = queue.next();
        if offset == next {
            rebuilt.unconfirmed = None;
        } else if offset > next && next == queue.min {
            // A queue without messages may begin anywhere.
            queue.min = offset;
            queue.tail_base = offset;
            rebuilt.unconfirmed = Some(offset);
        } else if offset > next && (offset - next) as u64 <= GAP_MAX + self.lost_bytes / RECORD_BYTES_MIN as u64 {
            // What lies between was lost to damage. Unless it was this record's header that is damaged: then the next one
            // does not continue here, and this one is taken out again.
            rebuilt.unconfirmed = Some(next);
            queue.tail.resize(queue.tail.len() + (offset - next) as usize, HOLE);
        } else if offset == 0 {
            // The topic was deleted and made again.
            truncate(queue, 0);
            queue.min = 0;
        } else {
            state.tail_units = state.tail_units + queue.tail.len() - units;
            return;
        }
        if queue.push(entry.encode()) {
            state.dirty.push(number);
        }
        state.tail_units = state.tail_units + queue.tail.len() - units;
    }

    // ------------------------------------------------------------------------------------------------------ the end

    /// Cuts the log off at `end`, durably, and opens the file that is written next.
    fn cut_log(&mut self, bases: &[Position], end: Position) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        let log = &shared.log;
        let mut kept = Vec::new();
        for base in bases {
            let path = log.path(*base);
            let failed = |e: io::Error| Error::write("cutting", &path, &e);
            if *base >= end && !(*base == end && bases.len() == 1) {
                let file = log.open(*base, Mode::Read).map_err(failed)?.file;
                if file.next_data(0).map_err(failed)?.is_some()
                    && !is_zero(file.as_ref(), 0, log.file_bytes).map_err(failed)?
                {
                    drop(file);
                    self.set_aside(&path, "has no valid record")?;
                } else {
                    self.disk().remove_file(&path).map_err(failed)?;
                }
                self.changed = true;
                continue;
            }
            kept.push(*base);
            if *base + log.file_bytes > end {
                let file = log.open(*base, Mode::Write).map_err(failed)?.file;
                let keep = end - base;
                if !is_zero(file.as_ref(), keep, log.file_bytes).map_err(failed)? {
                    self.progress.line(&format!("the commit log is cut at {end}: what follows is no whole record"));
                    self.changed = true;
                    file.set_len(keep).and_then(|()| file.set_len(log.file_bytes)).map_err(failed)?;
                }
            }
        }
        // What is served from now on must not be lost to a power cut: the killed process may not have synced it.
        let current = kept.last().copied().filter(|b| b + log.file_bytes > end);
        if !self.clean || self.changed {
            for base in &kept {
                let path = log.path(*base);
                let file = log.open(*base, Mode::Write).map_err(|e| Error::write("opening", &path, &e))?;
                if base + log.file_bytes > self.checkpoint.queue_position.max(0) as u64 || Some(*base) == current {
                    file.file.sync_data().map_err(|e| failed_sync(&path, &e))?;
                }
            }
            self.disk().sync_dir(&log.dir).map_err(|e| failed_sync(&log.dir, &e))?;
        }
        let min = kept.first().copied().unwrap_or(end);
        let current: Option<LogFile> = match current {
            Some(base) => Some(log.open(base, Mode::Write).map_err(|e| Error::write("opening", &log.path(base), &e))?),
            None => None,
        };
        let mut files = log.files();
        files.bases = kept.into();
        files.unsynced.extend(current.clone());
        drop(files);
        log.start_at(min, end);
        self.store.writer.start_in(current);
        Ok(())
    }

    /// Cuts queue entries that the log does not know, in memory and in the files.
    fn finish_queues(&mut self, end: Position, complete: bool) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        let count = shared.state().queues.len() as u32;
        let mut cut = Vec::new();
        for number in 0..count {
            if self.finish_batches(number, end, complete) {
                cut.push(number);
            }
            let state = &mut *shared.state();
            let queue = &mut state.queues[number as usize];
            let units = queue.tail.len();
            let rebuilt = self.queues.get(&number);
            if let Some(before) = rebuilt.map(|r| r.before) {
                // Units behind the rebuilt ones whose records are damaged keep their offsets.
                let mut newest = queue.tail.last().map_or(0, |u| Entry::decode(u).position);
                let mut at = queue.next();
                while at < before {
                    let key = QueueKey { number, topic: &queue.topic, queue_id: queue.queue_id };
                    let entry = lock(&self.store.queue_reader).read_one(key, at);
                    let Some(entry) = entry.filter(|e| e.is_valid() && e.position > newest && e.position < end) else {
                        break;
                    };
                    newest = entry.position;
                    if queue.push(entry.encode()) {
                        state.dirty.push(number);
                    }
                    at += 1;
                }
                state.tail_units = state.tail_units + queue.tail.len() - units;
                if queue.next() < before {
                    self.progress.line(&cut_line(queue, before));
                }
                cut.push(number);
            } else if !complete && queue.batches.is_none() {
                let before = queue.next();
                while queue.next() > queue.min {
                    let entry = self.store.unit_at(number, queue, queue.next() - 1);
                    if entry.is_some_and(|e| e.is_hole() || e.position < end) {
                        break;
                    }
                    let next = queue.next() - 1;
                    truncate(queue, next);
                }
                if queue.next() < before {
                    self.progress.line(&cut_line(queue, before));
                    cut.push(number);
                }
            }
            queue.visible = queue.next();
            if queue.min_position < shared.log.min() || queue.min_position == 0 {
                self.store.correct_min(number, queue);
            }
        }
        if !cut.is_empty() {
            let written = lock(&shared.entries).write_queues(&shared, 1, &mut || Ok(()));
            self.put_off(written)?;
            for number in cut {
                self.cut_queue_files(number)?;
            }
        }
        for number in std::mem::take(&mut self.to_begin) {
            let begun = self.begin_next_file(number);
            self.put_off(begun)?;
        }
        lock(&self.store.queue_reader).close_all();
        lock(&self.store.batch_reader).close_all();
        Ok(())
    }

    /// Makes the file where a queue goes on, if it is not there.
    fn begin_next_file(&mut self, number: u32) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        let (topic, queue_id, next, is_batch) = shared.state().queues[number as usize].end();
        let mut files = lock(if is_batch { &shared.batch_files } else { &shared.queue_files });
        let file = next / files.units;
        let key = QueueKey { number, topic: &topic, queue_id };
        let made = files.open_for_writing(key, file);
        if made.map_err(|e| Error::write("making a file in", &files.queue_dir(&topic, queue_id), &e))?.1.is_some() {
            lock(&shared.entries).unsynced.insert((number, file));
        }
        Ok(())
    }

    /// Makes the files of a queue end where the queue ends.
    fn cut_queue_files(&mut self, number: u32) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        let (topic, queue_id, next, is_batch) = shared.state().queues[number as usize].end();
        let mut files = lock(if is_batch { &shared.batch_files } else { &shared.queue_files });
        let units = files.units;
        let unit_bytes = files.file_bytes() / units;
        let dir = files.queue_dir(&topic, queue_id);
        let failed = |e: io::Error| Error::write("cutting a file in", &dir, &e);
        for entry in self.disk().list(&dir).map_err(failed)? {
            let Some(first) = parse_file_name(&entry.name) else { continue };
            let file = first / files.file_bytes();
            let path = dir.join(&entry.name);
            if file * units > next && file > 0 {
                files.forget(number);
                self.disk().remove_file(&path).map_err(failed)?;
                self.changed = true;
            } else if (file + 1) * units > next {
                let open = self.disk().open(&path, Mode::Write).map_err(failed)?;
                let keep = (next - file * units) * unit_bytes;
                if !is_zero(open.as_ref(), keep, files.file_bytes()).map_err(failed)? {
                    open.set_len(keep).and_then(|()| open.set_len(files.file_bytes())).map_err(failed)?;
                    self.changed = true;
                    lock(&shared.entries).unsynced.insert((number, file));
                }
            }
        }
        Ok(())
    }

    fn finish_index(&mut self, bases: &[Position], end: Position) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        let beyond = shared.state().index.as_ref().and_then(|i| i.end_position()).is_some_and(|p| p >= end);
        if !beyond {
            return Ok(());
        }
        // The log lost records that the index knows: write what there is and keep only what the log has.
        lock(&shared.entries).write_index(&shared, &mut || Ok(()))?;
        lock(&shared.worker).retire_index(&shared)?;
        let mut state = shared.state();
        let Some(index) = state.index.as_mut() else { return Ok(()) };
        let failed = |e: io::Error| Error::open("repairing the index in", &shared.options.root, &e);
        index.forget_files();
        index.load(false).map_err(failed)?;
        let mut said = Vec::new();
        let lost = index.repair(end, None, &mut |p| self.record_at(p), &mut said).map_err(failed)?;
        let from = index.end_position().unwrap_or(0);
        self.changed = true;
        drop(state);
        for line in said {
            self.progress.line(&line);
        }
        if lost {
            (self.index_from, self.index_only) = (from, true);
            let bases: Vec<Position> = bases.iter().copied().filter(|b| *b < end).collect();
            let log_min = bases.first().copied().unwrap_or(0);
            let start = self.believe(&bases, from, i64::MAX).max(log_min);
            self.begin_from(start)?;
            self.scan(&bases, start, Some(end))?;
        }
        Ok(())
    }

    fn finish(&mut self, start: Position, end: Position) -> Result<(), Error> {
        let shared = self.store.shared.clone();
        shared.state().last_end = end;
        // What lies before the scan's start was vouched for; what it has rebuilt waits for a checkpoint.
        let rebuilt = self.changed || self.full || !lock(&shared.entries).unsynced.is_empty();
        let dispatched = if self.clean && !rebuilt { end } else { start };
        shared.counters.dispatched.store(dispatched, Ordering::Release);
        let mut worker = lock(&shared.worker);
        worker.checkpoint = self.checkpoint;
        let mut written = Ok(());
        if !self.clean || self.changed {
            written = worker.write_checkpoint(&shared, false);
        }
        if written.is_ok() && !self.full {
            worker.start_at(end);
        }
        drop(worker);
        self.put_off(written)
    }
}

/// Reads one queue file in blocks, to find how many units it has with few reads.
struct QueueFileScan<'a, U> {
    file: &'a dyn DiskFile,
    units: u64,
    block: u64,
    bytes: Vec<u8>,
    kind: PhantomData<U>,
}

impl<'a, U: FileUnit> QueueFileScan<'a, U> {
    /// Units a block.
    const BLOCK: u64 = 128;

    fn new(file: &'a dyn DiskFile, units: u64) -> QueueFileScan<'a, U> {
        QueueFileScan { file, units, block: u64::MAX, bytes: Vec::new(), kind: PhantomData }
    }

    /// The unit, if it was ever written.
    fn unit(&mut self, number: u64) -> Option<U> {
        let block = number / Self::BLOCK;
        if block != self.block {
            self.bytes.resize(Self::BLOCK as usize * U::BYTES, 0);
            let n = self.file.read_at(block * Self::BLOCK * U::BYTES as u64, &mut self.bytes).ok()?;
            self.bytes.truncate(n);
            self.block = block;
        }
        let at = (number % Self::BLOCK) as usize * U::BYTES;
        self.bytes.get(at..at + U::BYTES).and_then(U::read)
    }

    /// How many units from the file's start on were written.
    fn count(&mut self) -> u64 {
        let last_block = (self.units - 1) / Self::BLOCK;
        let (mut low, mut high) = (0, last_block);
        // Most queues are short: one read of the first block says it all.
        while low < high && (low != 0 || self.unit(Self::BLOCK - 1).is_some()) {
            let middle = low + (high - low).div_ceil(2);
            if self.unit(middle * Self::BLOCK).is_some() {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        let first = low * Self::BLOCK;
        let end = (first + Self::BLOCK).min(self.units);
        (first..end).find(|n| self.unit(*n).is_none()).unwrap_or(end)
    }
}

/// A file of a queue.
struct QueueFile {
    number: u64,
    /// It has its size.
    is_whole: bool,
}

/// Which file is the first that does not follow the one before it, or is too short.
fn first_hole(files: &[QueueFile]) -> Option<usize> {
    (0..files.len()).find(|at| !files[*at].is_whole || *at > 0 && files[at - 1].number + 1 != files[*at].number)
}

/// Number of the file that the hole before (or at) a file begins with.
fn first_missing(files: &[QueueFile], hole: usize) -> u64 {
    hole.checked_sub(1).map_or(files[hole].number, |before| files[before].number + 1)
}

/// How far a queue's files reach.
struct Reach<U> {
    first: u64,
    next: u64,
    /// The last unit.
    unit: Option<U>,
    /// Positions that the newest unit with a message has, and the very first unit.
    newest: Option<Position>,
    oldest: Option<Position>,
    /// The newest file has no room for another unit.
    is_full: bool,
    /// A file behind these units has bytes that are no units.
    is_garbage: bool,
}

/// How far the queues came.
#[derive(Default)]
struct Reached {
    /// Position of the newest record any queue knows.
    newest: Option<Position>,
    /// Some queue is damaged and has to be rebuilt from here.
    rebuild_from: Option<Position>,
}

impl Reached {
    fn with(self, other: Reached) -> Reached {
        let rebuild_from = [self.rebuild_from, other.rebuild_from].into_iter().flatten().min();
        Reached { newest: self.newest.max(other.newest), rebuild_from }
    }
}

fn cut_line(queue: &Queue, before: i64) -> String {
    let gone = before - queue.next();
    format!("consume queue {}/{}: {gone} entries beyond the log's end cut", queue.topic, queue.queue_id)
}

/// Forgets the units from `offset` on.
fn truncate(queue: &mut Queue, offset: i64) {
    if offset >= queue.tail_base {
        queue.tail.truncate((offset - queue.tail_base) as usize);
    } else {
        queue.tail.clear();
        queue.tail_base = offset;
    }
    if queue.min > offset {
        queue.min = offset;
    }
}

/// True if the file has only zeros in `from..to`.
fn is_zero(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    let mut bytes = vec![0; 64 << 10];
    while at < to {
        match file.next_data(at)? {
            Some(next) => at = next,
            None => return Ok(true),
        }
        let want = bytes.len().min((to - at.min(to)) as usize);
        let n = file.read_at(at, &mut bytes[..want])?;
        // Not `any`: without a way out in the middle it is done 32 bytes at a time.
        if bytes[..n].iter().fold(0, |all, b| all | b) != 0 {
            return Ok(false);
        }
        if n == 0 {
            break;
        }
        at += n as u64;
    }
    Ok(true)
}

/// What lies at a place of the log.
enum Item {
    /// A whole record of this size.
    Record(usize),
    /// The blank that ends the file.
    Blank,
    /// Anything else.
    Damaged,
}

/// A piece of a log file in memory, moved along as it is read.
struct Window {
    base: Position,
    file: std::sync::Arc<dyn DiskFile>,
    file_bytes: u64,
    bytes: Vec<u8>,
    first: u64,
}

impl Window {
    /// `size` bytes at `offset`; `None` beyond the file's end. Bytes that cannot be read count as zeros: they are damage.
    fn at(&mut self, offset: u64, size: usize) -> Option<&[u8]> {
        if offset + size as u64 > self.file_bytes {
            return None;
        }
        let inside = offset >= self.first && offset + size as u64 <= self.first + self.bytes.len() as u64;
        if !inside {
            let want = size.max(WINDOW_BYTES).min((self.file_bytes - offset) as usize);
            self.first = offset;
            self.bytes.clear();
            self.bytes.resize(want, 0);
            if self.file.read_at(offset, &mut self.bytes).is_err() {
                self.read_in_pages(offset);
            }
        }
        let from = (offset - self.first) as usize;
        self.bytes.get(from..from + size)
    }

    /// One unreadable sector must not cost a megabyte.
    fn read_in_pages(&mut self, offset: u64) {
        for (number, page) in self.bytes.chunks_mut(4096).enumerate() {
            if self.file.read_at(offset + number as u64 * 4096, page).is_err() {
                page.fill(0);
            }
        }
    }

    fn item(&mut self, offset: u64) -> Item {
        let room = self.file_bytes - offset.min(self.file_bytes);
        let position = self.base + offset;
        let Some(head) = self.at(offset, BLANK_BYTES as usize) else { return Item::Damaged };
        let (size, magic) = (read_u32(head, 0).unwrap_or(0), read_u32(head, 4).unwrap_or(0));
        match magic {
            MAGIC_BLANK if u64::from(size) == room => Item::Blank,
            MAGIC_V1 | MAGIC_V2 if size as usize >= RECORD_BYTES_MIN && u64::from(size) <= room => {
                match self.view(offset, size as usize) {
                    Some(view) if view.position == position && view.is_intact() => Item::Record(size as usize),
                    _ => Item::Damaged,
                }
            }
            _ => Item::Damaged,
        }
    }

    fn view(&mut self, offset: u64, size: usize) -> Option<RecordView<'_>> {
        self.at(offset, size).and_then(RecordView::parse)
    }

    /// The next offset from `from` on where bytes claim to be a record in its own place, or the file's blank; not looked for
    /// from `limit` on.
    fn next_candidate(&mut self, from: u64, limit: u64) -> Option<u64> {
        let mut offset = from;
        while offset < limit && offset + BLANK_BYTES <= self.file_bytes {
            // Over holes without reading them; a record may begin a little before the data that is found.
            if let Ok(next) = self.file.next_data(offset) {
                offset = offset.max(next?.saturating_sub(PHYSICAL_OFFSET_AT as u64 + 8));
            }
            let (base, file_bytes) = (self.base, self.file_bytes);
            let want = WINDOW_BYTES.min((file_bytes - offset) as usize);
            let bytes = self.at(offset, want)?;
            let claims = |at: usize| {
                let magic = read_u32(bytes, at + 4)?;
                let place = offset + at as u64;
                Some(match magic {
                    MAGIC_V1 | MAGIC_V2 => read_u64(bytes, at + PHYSICAL_OFFSET_AT)? == base + place,
                    MAGIC_BLANK => u64::from(read_u32(bytes, at)?) == file_bytes - place,
                    _ => false,
                })
            };
            if let Some(at) = (0..want).find(|at| claims(*at) == Some(true)) {
                return Some(offset + at as u64);
            }
            if offset + want as u64 >= file_bytes {
                return None;
            }
            // Again with what may have begun at the window's end.
            offset += (want - PHYSICAL_OFFSET_AT - 8) as u64;
        }
        None
    }
}
