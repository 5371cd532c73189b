//! The commit log: files of equal size, named by the position of their first byte, written at one end.
//!
//! Writes are positioned (`pwrite`), so a full or failing disk is an error and never a signal; reads go through maps
//! ([`crate::guard`]: what becomes of unreadable places), of which the least used are dropped. [`CommitLog`] is shared by the
//! store's owner and the flusher; [`LogWriter`] and [`LogReader`] belong to the owner alone. Which bytes are valid is the business
//! of recovery and of the two marks `written` and `flushed`.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::chunk::Chunk;
use crate::disk::{Disk, DiskFile, Mode};
use crate::error::{too_many_files, Error};
use crate::guard::{was_hit, Map};
use crate::memory::prefetch;
use crate::record::{looks_like_record_at, read_u32};

/// Blocks are reserved so far ahead of the end, or as far as was written since the start, whichever is less: allocating them one
/// by one inside the write is a sixth of its cost (700 MiB in writes of 37 kB on ext4, busy machine: 0.65 to 0.72 µs CPU for
/// 1.1 kB, 0.55 with blocks reserved), and a store that is hardly used takes no space for it. At 800 MB/s the flusher has 160 ms to reserve again.
const RESERVE_BYTES_MAX: u64 = 256 << 20;
/// Less is not worth a call.
const RESERVE_BYTES_MIN: u64 = 8 << 20;

/// The first write into a block of this size fills it up with zeros: the system then keeps it in memory as one piece, where it
/// would make sixteen, of 4 KiB each, as the writes come by. Writes to a file of 256 MiB on ext4 (Linux 6.18), µs each without and
/// with it: 2.3 and 2.0 for 300 bytes, 2.9 and 2.4 for 1.1 kB, 5.5 and 2.9 for 4.5 kB, 22 and 14 for 36 kB, 47 and 38 for
/// 140 kB. Blocks of 16 KiB gain less; of 128 KiB more for 36 kB (11 µs), less for 4.5 and 140 kB (3.7 and 46).
const BLOCK_BYTES: u64 = 64 * 1024;

/// So much of the log is given to the device at a time, see [`CommitLog::write_back`]: a tenth of a second for a disk of 300 MB/s.
const WRITE_BACK_BYTES: u64 = 32 << 20;
/// A slower one gets less at a time, but not less than this: senders wait for a part ([`crate::store::Store::is_behind`]).
const WRITE_BACK_BYTES_MIN: u64 = 1 << 20;
/// Half as much the next time when a part took longer, twice as much when it took a quarter of that.
const WRITE_BACK_TAKES: Duration = Duration::from_millis(200);

/// At most so many log files are mapped at a time.
const MAPS_MAX: usize = 64;

/// Of a longer record the processor itself knows what comes next.
const PREFETCH_BYTES_MAX: usize = 4096;

/// Digits of a file's name.
pub(crate) const NAME_DIGITS: usize = 20;

/// A file's name from the offset of its first byte.
pub(crate) fn file_name(offset: u64) -> String {
    format!("{offset:0width$}", width = NAME_DIGITS)
}

/// The offset in a file's name; `None` for a name that is none of ours.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    (name.len() == NAME_DIGITS && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

/// One open file of the log.
#[derive(Clone)]
pub(crate) struct LogFile {
    pub base: u64,
    pub file: Arc<dyn DiskFile>,
}

/// Which files there are.
#[derive(Default)]
pub(crate) struct LogFiles {
    /// First positions, ascending; without the spare.
    pub bases: VecDeque<u64>,
    /// Files that may hold bytes no sync has covered, ascending; the last is the one written to.
    pub unsynced: Vec<LogFile>,
    /// First positions of those that are none of the log's any more and still to be removed, ascending.
    pub expired: VecDeque<u64>,
    /// The next file, made ahead of time.
    pub spare: Option<LogFile>,
    /// A name was made since the directory's last sync.
    pub dir_dirty: bool,
}

/// The part of the log that owner and flusher share.
pub(crate) struct CommitLog {
    pub dir: PathBuf,
    pub file_bytes: u64,
    disk: Arc<dyn Disk>,
    files: Mutex<LogFiles>,
    written: AtomicU64,
    flushed: AtomicU64,
    written_back: AtomicU64,
    write_back_bytes: AtomicU64,
    min: AtomicU64,
    /// Where the log ended when it was opened.
    opened_at: AtomicU64,
    /// End of what blocks are reserved for.
    reserved: AtomicU64,
}

impl CommitLog {
    pub fn new(dir: PathBuf, file_bytes: u64, disk: Arc<dyn Disk>) -> CommitLog {
        CommitLog {
            dir,
            file_bytes,
            disk,
            files: Mutex::default(),
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            written_back: AtomicU64::new(0),
            write_back_bytes: AtomicU64::new(WRITE_BACK_BYTES),
            min: AtomicU64::new(0),
            opened_at: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
        }
    }

    pub fn files(&self) -> MutexGuard<'_, LogFiles> {
        self.files.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// End of what was written.
    #[inline]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// End of what is known to be on the device.
    #[inline]
    pub fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    /// End of what the device has taken: it holds no memory of the system's any more, but a power cut may still lose it.
    #[inline]
    pub fn written_back(&self) -> u64 {
        self.written_back.load(Ordering::Acquire)
    }

    /// First position still there.
    pub fn min(&self) -> u64 {
        self.min.load(Ordering::Acquire)
    }

    /// Sets the marks after recovery.
    pub fn start_at(&self, min: u64, end: u64) {
        self.min.store(min, Ordering::Release);
        self.written.store(end, Ordering::Release);
        self.flushed.store(end, Ordering::Release);
        self.written_back.store(end, Ordering::Release);
        self.opened_at.store(end, Ordering::Release);
        self.reserved.store(end, Ordering::Release);
    }

    /// How far ahead of `written` blocks should be reserved.
    fn reserve_bytes(&self, written: u64) -> u64 {
        written.saturating_sub(self.opened_at.load(Ordering::Relaxed)).min(RESERVE_BYTES_MAX)
    }

    /// True if the flusher should call [`CommitLog::reserve`]: less than half of what it would reserve is left.
    #[inline]
    pub fn wants_reserve(&self) -> bool {
        let written = self.written();
        let wanted = self.reserve_bytes(written);
        wanted >= RESERVE_BYTES_MIN && self.reserved.load(Ordering::Relaxed) < written + wanted / 2
    }

    /// Reserves blocks for what will be written next, in the file being written and the prepared one; at most a sixteenth
    /// of the `free` bytes. A file system that can't do it writes as before, so errors are no errors.
    pub fn reserve(&self, free: u64) {
        let written = self.written();
        let wanted = self.reserve_bytes(written);
        let end = written + wanted.min(free / 16);
        let from = self.reserved.load(Ordering::Relaxed).max(written);
        let files: Vec<LogFile> = {
            let files = self.files();
            files.unsynced.iter().chain(files.spare.as_ref()).cloned().collect()
        };
        for file in files {
            let (start, stop) = (from.max(file.base), end.min(file.base + self.file_bytes));
            if start < stop {
                let _ = file.file.reserve(start - file.base, stop - start);
            }
        }
        // What could not be reserved isn't asked for again at every write.
        self.reserved.fetch_max(written + wanted, Ordering::Relaxed);
    }

    pub fn set_min(&self, min: u64) {
        self.min.store(min, Ordering::Release);
    }

    /// First position of the file that holds `position`.
    #[inline]
    pub fn base_of(&self, position: u64) -> u64 {
        position - position % self.file_bytes
    }

    pub fn path(&self, base: u64) -> PathBuf {
        self.dir.join(file_name(base))
    }

    /// Opens an existing file.
    pub fn open(&self, base: u64, mode: Mode) -> io::Result<LogFile> {
        Ok(LogFile { base, file: self.disk.open(&self.path(base), mode)? })
    }

    /// Makes a file of full size, without using space.
    fn create(&self, base: u64) -> io::Result<LogFile> {
        let file = self.disk.open(&self.path(base), Mode::Create)?;
        file.set_len(self.file_bytes)?;
        Ok(LogFile { base, file })
    }

    /// Has the next file ready. Called by the flusher; creating may take its time, so no lock is held meanwhile.
    pub fn prepare_next(&self) -> io::Result<()> {
        let base = {
            let files = self.files();
            match (files.spare.is_some(), files.bases.back()) {
                (false, Some(last)) => last + self.file_bytes,
                _ => return Ok(()),
            }
        };
        let spare = self.create(base)?;
        spare.file.sync_data()?;
        self.disk.sync_dir(&self.dir)?;
        let mut files = self.files();
        // The owner may have needed this very file in the meantime and made it itself: then ours is the same file.
        if files.bases.back().is_some_and(|last| *last < base) {
            files.spare = Some(spare);
        }
        Ok(())
    }

    /// True if the flusher should call [`CommitLog::prepare_next`].
    pub fn wants_next(&self) -> bool {
        self.files().spare.is_none()
    }

    /// The file that starts at `base`: the prepared one, or made now.
    fn take_next(&self, base: u64) -> io::Result<LogFile> {
        let mut files = self.files();
        let next = match files.spare.take() {
            Some(spare) if spare.base == base => spare,
            _ => {
                files.dir_dirty = true;
                self.create(base)?
            }
        };
        if files.bases.back() != Some(&base) {
            files.bases.push_back(base);
        }
        files.unsynced.push(next.clone());
        Ok(next)
    }

    /// Gives a file back that a failed write had taken.
    fn give_back(&self, file: LogFile) {
        let mut files = self.files();
        files.bases.retain(|b| *b != file.base);
        files.unsynced.retain(|f| f.base != file.base);
        files.spare = Some(file);
    }

    /// Syncs everything below `target` and moves the flushed mark there.
    pub fn sync_to(&self, target: u64) -> Result<(), Error> {
        let (unsynced, dir_dirty) = {
            let mut files = self.files();
            (files.unsynced.clone(), std::mem::take(&mut files.dir_dirty))
        };
        let synced = || {
            for file in unsynced.iter().filter(|f| f.base < target) {
                file.file.sync_data().map_err(|e| failed_sync(&self.path(file.base), &e))?;
            }
            if dir_dirty {
                self.disk.sync_dir(&self.dir).map_err(|e| failed_sync(&self.dir, &e))?;
            }
            Ok(())
        };
        if let Err(error) = synced() {
            self.files().dir_dirty |= dir_dirty;
            return Err(error);
        }
        self.written_back.fetch_max(target, Ordering::AcqRel);
        self.files().unsynced.retain(|f| f.base + self.file_bytes > target);
        self.flushed.fetch_max(target, Ordering::AcqRel);
        Ok(())
    }

    /// True if [`CommitLog::write_back`] has something to do.
    #[inline]
    pub fn wants_write_back(&self) -> bool {
        self.written() >= self.written_back() + WRITE_BACK_BYTES
    }

    /// How much the device takes in a moment, as far as that has been seen.
    #[inline]
    pub fn write_back_bytes(&self) -> u64 {
        self.write_back_bytes.load(Ordering::Relaxed)
    }

    /// Has the device take one part of what was written, and waits for that; false if a sync has done it meanwhile, or the
    /// next one will have to.
    ///
    /// It opens the file for itself: the system tells an error of the device once to each open file, and one told here must
    /// not be missing where the flusher syncs, or a checkpoint would claim what is lost.
    pub fn write_back(&self) -> Result<bool, Error> {
        let from = self.written_back();
        let file = self.files().unsynced.iter().find(|f| (f.base..f.base + self.file_bytes).contains(&from)).cloned();
        let Some(file) = file else { return Ok(false) };
        let part = self.write_back_bytes();
        let end = (from + part).min(self.written()).min(file.base + self.file_bytes);
        let Ok(own) = self.open(file.base, Mode::Write) else { return Ok(false) };
        let began = Instant::now();
        own.file.write_back(from - file.base, end - from).map_err(|e| failed_sync(&self.path(file.base), &e))?;
        self.write_back_bytes.store(next_part(part, began.elapsed()), Ordering::Relaxed);
        self.written_back.fetch_max(end, Ordering::AcqRel);
        Ok(true)
    }

    /// Takes so many of the oldest files out of the log; never the last. They are there until [`CommitLog::remove_expired`], and no
    /// others are taken out before that: what a start finds has no gaps.
    pub fn expire_oldest(&self, count: usize) {
        let mut files = self.files();
        if !files.expired.is_empty() {
            return;
        }
        for _ in 0..count {
            // What is not flushed yet is not deleted either: its sync would have to find the file.
            let next = files.bases.get(1).copied().filter(|next| *next <= self.flushed());
            let Some(next) = next else { break };
            let base = files.bases.pop_front();
            files.expired.extend(base);
            self.set_min(next);
        }
    }

    /// Removes the files that were taken out, oldest first. Slow: a file of 1 GiB takes a quarter of a second. Returns how many.
    pub fn remove_expired(&self) -> Result<usize, Error> {
        let mut removed = 0;
        loop {
            let Some(base) = self.files().expired.front().copied() else { return Ok(removed) };
            let path = self.path(base);
            match self.disk.remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::write("removing", &path, &e)),
                _ => {}
            }
            let mut files = self.files();
            if files.expired.front() == Some(&base) {
                files.expired.pop_front();
                removed += 1;
            }
        }
    }

    /// Removes the spare, so that a closed store has no file without records.
    pub fn drop_spare(&self) {
        if let Some(spare) = self.files().spare.take() {
            let _ = self.disk.remove_file(&self.path(spare.base));
        }
    }
}

/// Bytes of the next part, when one of `part` bytes took the device so long.
fn next_part(part: u64, took: Duration) -> u64 {
    let next = match took {
        _ if took > WRITE_BACK_TAKES => part / 2,
        _ if took < WRITE_BACK_TAKES / 4 => part * 2,
        _ => part,
    };
    next.clamp(WRITE_BACK_BYTES_MIN, WRITE_BACK_BYTES)
}

/// Any failed sync means that what the device holds is unknown, so out of space is no exception here. A file or directory
/// that could not be opened for it was not synced: whoever asked for it does so again.
pub(crate) fn failed_sync(path: &Path, source: &io::Error) -> Error {
    if too_many_files(source) {
        return Error::write("opening", path, source);
    }
    Error::DiskFailed(format!("flushing {} failed: {source}; restart to recover", path.display()))
}

/// The writing end.
#[derive(Default)]
pub(crate) struct LogWriter {
    current: Option<LogFile>,
    /// End of the block that was last filled up with zeros.
    filled: u64,
}

impl LogWriter {
    /// Continues in `current`.
    pub fn start_in(&mut self, current: Option<LogFile>) {
        self.current = current;
    }

    /// Writes the chunk, which continues the log at `written()`. On an error the log's bytes are as they were before:
    /// what had been written of it is cut off again, so that no later recovery takes it for records.
    pub fn write(&mut self, log: &CommitLog, chunk: &Chunk) -> Result<(), Error> {
        let before = log.written();
        let mut taken: Vec<LogFile> = Vec::new();
        let mut end = before;
        for (position, bytes) in chunk.runs() {
            let base = log.base_of(position);
            let last = taken.last().or(self.current.as_ref());
            let file = match last {
                Some(file) if file.base == base => file.clone(),
                _ => match log.take_next(base) {
                    Ok(file) => {
                        taken.push(file.clone());
                        file
                    }
                    Err(e) => return Err(self.undo(log, before, taken, Error::write("making", &log.path(base), &e))),
                },
            };
            end = position + bytes.len() as u64;
            let written = if end > self.filled {
                self.filled = base + (end - base).next_multiple_of(BLOCK_BYTES).min(log.file_bytes);
                file.file.write_padded_at(position - base, bytes, (self.filled - end) as usize)
            } else {
                file.file.write_at(position - base, bytes)
            };
            if let Err(e) = written {
                return Err(self.undo(log, before, taken, Error::write("writing", &log.path(base), &e)));
            }
        }
        if let Some(last) = taken.pop() {
            self.current = Some(last);
        }
        log.written.store(end, Ordering::Release);
        Ok(())
    }

    fn undo(&self, log: &CommitLog, before: u64, taken: Vec<LogFile>, error: Error) -> Error {
        let mut failed = None;
        let mut cut = |file: &LogFile, keep: u64| {
            if let Err(e) = file.file.set_len(keep).and_then(|()| file.file.set_len(log.file_bytes)) {
                failed = Some(Error::DiskFailed(format!(
                    "{error}; and cutting off the failed write failed too: {e}; restart to recover"
                )));
            }
        };
        if let Some(current) = &self.current {
            // At the exact end of a file nothing of the chunk can be in it.
            if before < current.base + log.file_bytes {
                cut(current, before - current.base);
            }
        }
        for file in taken {
            cut(&file, 0);
            log.give_back(file);
        }
        failed.unwrap_or(error)
    }
}

/// A file that is read.
pub(crate) struct Mapped {
    base: u64,
    map: Option<Map>,
    file: Arc<dyn DiskFile>,
    used: u64,
}

/// The reading end: maps of the files that were read last.
#[derive(Default)]
pub(crate) struct LogReader {
    maps: Vec<Mapped>,
    last: usize,
    clock: u64,
    scratch: Vec<u8>,
}

impl LogReader {
    /// The bytes at `position`, all in one file and written; `None` when deleted, beyond the end or unreadable.
    #[inline]
    pub fn bytes(&mut self, log: &CommitLog, position: u64, size: usize) -> Option<&[u8]> {
        let base = log.base_of(position);
        let within = position - base;
        let end = position.checked_add(size as u64)?;
        if end > log.written() || within + size as u64 > log.file_bytes || position < log.min() {
            return None;
        }
        let slot = self.find(log, base).ok()?;
        let mapped = &self.maps[slot];
        match &mapped.map {
            Some(map) => map.get(within as usize..within as usize + size),
            None => {
                self.scratch.resize(size, 0);
                let n = mapped.file.read_at(within, &mut self.scratch).ok()?;
                (n == size).then_some(&self.scratch[..])
            }
        }
    }

    /// Asks the processor for the record at `position`, which will be read soon; only in the file that was read last.
    #[inline]
    pub fn prefetch(&self, log: &CommitLog, position: u64, size: usize) {
        let within = (position % log.file_bytes) as usize;
        let last = self.maps.get(self.last).filter(|mapped| mapped.base == log.base_of(position));
        if let Some(map) = last.and_then(|mapped| mapped.map.as_ref()) {
            prefetch(map.get(within..within + size.min(PREFETCH_BYTES_MAX)).unwrap_or(&[]));
        }
    }

    #[inline]
    fn find(&mut self, log: &CommitLog, base: u64) -> io::Result<usize> {
        if self.maps.get(self.last).is_some_and(|m| m.base == base) {
            return Ok(self.last);
        }
        self.clock += 1;
        if let Some(slot) = self.maps.iter().position(|m| m.base == base) {
            self.maps[slot].used = self.clock;
            self.last = slot;
            return Ok(slot);
        }
        if self.maps.len() >= MAPS_MAX {
            if let Some(oldest) = (0..self.maps.len()).min_by_key(|i| self.maps[*i].used) {
                self.maps.swap_remove(oldest);
            }
        }
        let file = log.open(base, Mode::Read)?.file;
        // A file that is too short must not be mapped beyond its end.
        let map = if file.len()? >= log.file_bytes { file.map() } else { None };
        self.maps.push(Mapped { base, map, file, used: self.clock });
        self.last = self.maps.len() - 1;
        Ok(self.last)
    }

    /// The record at `position`, if one of that size is there.
    #[inline]
    pub fn record(&mut self, log: &CommitLog, position: u64, size: u32) -> Option<&[u8]> {
        let bytes = self.bytes(log, position, size as usize)?;
        (read_u32(bytes, 0) == Some(size) && looks_like_record_at(bytes, position)).then_some(bytes)
    }

    /// True if what was read there, just before, lies in part where the file turned out to be unreadable: it began well.
    #[inline]
    pub fn is_damaged(&self, log: &CommitLog, position: u64, size: u32) -> bool {
        was_hit() && self.was_read_damaged(log, position, size)
    }

    #[cold]
    fn was_read_damaged(&self, log: &CommitLog, position: u64, size: u32) -> bool {
        let base = log.base_of(position);
        let map = self.maps.iter().find(|m| m.base == base).and_then(|m| m.map.as_ref());
        map.is_some_and(|map| map.is_damaged((position - base) as usize, size as usize))
    }

    /// [`LogReader::record`] for who will not ask again: that the record's file cannot be opened now does not mean that it is not there.
    pub fn record_for_good(&mut self, log: &CommitLog, position: u64, size: u32) -> io::Result<Option<&[u8]>> {
        if (log.min()..log.written()).contains(&position) {
            match self.find(log, log.base_of(position)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(self.record(log, position, size))
    }

    /// The size the record at `position` says it has.
    pub fn size_at(&mut self, log: &CommitLog, position: u64) -> Option<u32> {
        let head = self.bytes(log, position, crate::record::RECORD_BYTES_MIN)?;
        looks_like_record_at(head, position).then(|| read_u32(head, 0)).flatten()
    }

    /// Takes out what was opened of files below `min`.
    pub fn take_below(&mut self, min: u64) -> Vec<Mapped> {
        let (below, rest) = std::mem::take(&mut self.maps).into_iter().partition(|m| m.base < min);
        self.maps = rest;
        below
    }

    /// Maps held.
    pub fn open_maps(&self) -> usize {
        self.maps.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_device_gets_as_much_at_a_time_as_it_takes_in_a_moment() {
        let parts = |bytes_a_second: f64| {
            let (mut part, mut longest) = (WRITE_BACK_BYTES, Duration::ZERO);
            for round in 0..20 {
                let took = Duration::from_secs_f64(part as f64 / bytes_a_second);
                if round >= 10 {
                    longest = longest.max(took);
                }
                part = next_part(part, took);
            }
            (part, longest)
        };
        assert_eq!(parts(1e9).0, WRITE_BACK_BYTES);
        for bytes_a_second in [10e6, 30e6, 100e6] {
            let (part, longest) = parts(bytes_a_second);
            assert!(
                part >= WRITE_BACK_BYTES_MIN && longest <= WRITE_BACK_TAKES,
                "{bytes_a_second}: {part}, {longest:?}"
            );
        }
        assert_eq!(parts(1e6).0, WRITE_BACK_BYTES_MIN);
    }
}
