//! Which files are too old, and how they go: commit log files by the policy's word, queue and index files below them.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::{lock, Position, QueueRef, Shared, Store};
use crate::commit_log::Mapped;
use crate::error::Error;
use crate::record;

/// Which expired files may go. Nothing is ever deleted without this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletePolicy {
    /// Only files whose newest record was stored before this time; `i64::MAX`: any age.
    pub before_ms: i64,
    /// Only files that end at or before this position (what all groups have consumed); `Position::MAX`: do not care.
    pub consumed_position: Position,
    /// At most so many commit log files in this call.
    pub files_max: usize,
}

/// What [`Expired::remove`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    pub log_files: usize,
    pub queue_files: usize,
    pub index_files: usize,
    /// First position still there.
    pub min_position: Position,
}

/// What [`Store::take_expired`] has taken out. Dropped instead of removed it is removed with the next; after a restart
/// the files are the store's again.
#[must_use]
pub struct Expired {
    shared: Arc<Shared>,
    maps: Vec<Mapped>,
    queue_files: Result<usize, Error>,
    min_position: Position,
}

impl Expired {
    /// Removes the files, and those that could not be removed earlier: the log's oldest first.
    ///
    /// # Errors
    /// [`Error::DiskFailed`] when a file cannot be removed. Newer ones of its kind stay too, the others are gone.
    pub fn remove(self) -> Result<Deleted, Error> {
        // Taking a map of 1 GiB down is slow as well.
        drop(self.maps);
        let log_files = self.shared.log.remove_expired();
        let index_files = remove_index_files(&self.shared);
        Ok(Deleted {
            log_files: log_files?,
            queue_files: self.queue_files?,
            index_files: index_files?,
            min_position: self.min_position,
        })
    }
}

fn remove_index_files(shared: &Shared) -> Result<usize, Error> {
    let mut removed = 0;
    loop {
        let path = shared.state().index.as_ref().and_then(|index| index.expired.front().cloned());
        let Some(path) = path else { return Ok(removed) };
        match shared.disk.remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::write("removing", &path, &e)),
            _ => {}
        }
        let mut state = shared.state();
        let Some(index) = state.index.as_mut().filter(|index| index.expired.front() == Some(&path)) else { continue };
        index.expired.pop_front();
        removed += 1;
    }
}

impl Store {
    /// Position of the oldest message whose copy in a compaction log is not on the device yet.
    fn not_followed(&mut self) -> Position {
        let mut oldest = Position::MAX;
        for number in 0..self.slots.len() {
            let Some(compaction) = self.slots[number].compaction.clone() else { continue };
            let queue = QueueRef(number as u32);
            let (min, max) = self.bounds(queue);
            oldest = oldest.min(self.first_position(queue, compaction.synced().max(min), max));
        }
        oldest
    }

    /// Position of the first message at or behind `offset`; 0, which is before all, where the queue cannot be read.
    fn first_position(&mut self, queue: QueueRef, offset: i64, end: i64) -> Position {
        let mut entries = Vec::new();
        let mut at = offset;
        while at < end {
            entries.clear();
            let read = self.entries(queue, at, 64, &mut entries);
            if read.is_err() || entries.is_empty() {
                return 0;
            }
            if let Some(entry) = entries.iter().find(|entry| !entry.is_hole()) {
                return entry.position;
            }
            at += entries.len() as i64;
        }
        Position::MAX
    }

    /// Takes the oldest commit log files the policy allows out of the store, with queue and index files below them. Never the
    /// last file, and none from which a start would have to rebuild something: queue entries or copies that are not on the
    /// device. What takes long is left to [`Expired::remove`], which needs no store.
    pub fn take_expired(&mut self, policy: DeletePolicy) -> Expired {
        let bases: Vec<Position> = self.shared.log.files().bases.iter().copied().collect();
        let dispatched = self.shared.counters.dispatched.load(Ordering::Acquire);
        let needed = policy.consumed_position.min(self.not_followed()).min(dispatched);
        let mut allowed = 0;
        for (number, next) in bases.iter().copied().enumerate().skip(1).take(policy.files_max) {
            // The next file's first record is newer than all in this one; where it is damaged, that of the one behind it.
            let later = bases[number..].iter().find_map(|base| self.first_time(*base));
            let newest = later.unwrap_or_else(|| self.shared.state().last_timestamp);
            if next > needed || (policy.before_ms != i64::MAX && newest >= policy.before_ms) {
                break;
            }
            allowed += 1;
        }
        self.shared.log.expire_oldest(allowed);
        let min_position = self.shared.log.min();
        // Queues may come back under the same names, so theirs go here.
        let queue_files = self.delete_queue_files(min_position);
        if let Some(index) = self.shared.state().index.as_mut() {
            index.expire_below(min_position);
        }
        let maps = self.reader.take_below(min_position);
        Expired { shared: self.shared.clone(), maps, queue_files, min_position }
    }

    /// Store time of a log file's first record, if it is one.
    fn first_time(&mut self, base: Position) -> Option<i64> {
        self.reader.size_at(&self.shared.log, base)?;
        self.reader.bytes(&self.shared.log, base, record::RECORD_BYTES_MIN).and_then(record::store_timestamp_of)
    }

    /// [`Store::take_expired`] and [`Expired::remove`].
    ///
    /// # Errors
    /// As [`Expired::remove`].
    pub fn delete_files(&mut self, policy: DeletePolicy) -> Result<Deleted, Error> {
        self.take_expired(policy).remove()
    }

    fn delete_queue_files(&mut self, min_position: Position) -> Result<usize, Error> {
        let mut removed = 0;
        let numbers = 0..self.slots.len() as u32;
        for number in numbers {
            if self.is_batch(QueueRef(number)) {
                removed += self.delete_batch_files(number, min_position)?;
                continue;
            }
            let (topic, queue_id, files) = {
                let state = &mut *lock(&self.shared.state);
                let queue = &mut state.queues[number as usize];
                if queue.deleted || queue.min_position >= min_position {
                    continue;
                }
                let units = self.shared.options.queue_file_units as i64;
                let first = queue.min / units;
                self.correct_min(number, queue);
                // The file with the newest unit stays, so that the queue's maximum is not forgotten.
                let last = queue.min.min(queue.tail_base - 1).max(0) / units;
                (queue.topic.clone(), queue.queue_id, first..last)
            };
            if files.is_empty() {
                continue;
            }
            let mut writer = lock(&self.shared.queue_files);
            writer.forget(number);
            lock(&self.queue_reader).forget(number);
            for file in files {
                let path = writer.path(&topic, queue_id, file as u64);
                match self.shared.disk.remove_file(&path) {
                    Ok(()) => removed += 1,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(Error::DiskFailed(format!("removing {} failed: {e}", path.display()))),
                }
            }
        }
        Ok(removed)
    }

    fn delete_batch_files(&self, number: u32, min_position: Position) -> Result<usize, Error> {
        let mut state = lock(&self.shared.state);
        let queue = &mut state.queues[number as usize];
        if queue.deleted || queue.min_position >= min_position {
            return Ok(0);
        }
        self.correct_min(number, queue);
        let (topic, queue_id) = (queue.topic.clone(), queue.queue_id);
        let Some(batches) = &queue.batches else { return Ok(0) };
        let units = self.units(number, queue, batches);
        let first_kept = units.first_that(|entry| entry.position < min_position);
        // The file with the newest unit stays, so that the queue's maximum is not forgotten.
        let last = first_kept.min(batches.tail_base.saturating_sub(1)) / self.shared.options.batch_file_units;
        let files = batches.first / self.shared.options.batch_file_units..last;
        if let Some(batches) = queue.batches.as_mut() {
            batches.first = batches.first.max(last * self.shared.options.batch_file_units);
        }
        drop(state);
        let mut removed = 0;
        let mut writer = lock(&self.shared.batch_files);
        writer.forget(number);
        lock(&self.batch_reader).forget(number);
        for file in files {
            let path = writer.path(&topic, queue_id, file);
            match self.shared.disk.remove_file(&path) {
                Ok(()) => removed += 1,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::DiskFailed(format!("removing {} failed: {e}", path.display()))),
            }
        }
        Ok(removed)
    }
}
