//! The entries of queues and index, from memory into their files. Nothing here waits for the device, so with asynchronous
//! flush a thread of its own keeps memory free while the flusher waits for a sync.

use std::collections::HashSet;

use crate::commit_log::LogReader;
use crate::consume_queue::{QueueKey, UNIT_BYTES};
use crate::error::Error;
use crate::flush::due;
use crate::store::{lock, Shared};

/// Queues with less than this many new units (two pages) wait for a checkpoint, unless memory fills up.
const QUEUE_UNITS_MIN: usize = 2 * 4096 / UNIT_BYTES;
/// When all tails together hold this much, small ones are written too.
const TAIL_BYTES_MAX: usize = 8 << 20;
/// At most so many units are copied under the lock at a time.
const UNITS_PER_COPY: usize = 4096;

/// What is done between two files, in the middle of something long.
pub(crate) type Between<'a> = &'a mut dyn FnMut() -> Result<(), Error>;

/// Writes entries; who holds it is the only one that does.
pub(crate) struct Entries {
    written_at: i64,
    /// Queue files written since they were last synced.
    pub unsynced: HashSet<(u32, u64)>,
    /// Queues of compaction topics that could not be read, which was said.
    unread: HashSet<u32>,
    copy: Vec<u8>,
}

impl Entries {
    pub fn new(now_ms: i64) -> Entries {
        Entries { written_at: now_ms, unsynced: HashSet::new(), unread: HashSet::new(), copy: Vec::new() }
    }

    /// Writes what is due: by the clock, or because memory fills up. False if nothing was.
    pub fn round(&mut self, shared: &Shared, between: Between<'_>) -> Result<bool, Error> {
        let now = shared.clock.now_ms();
        let (tail_bytes, index_bytes) = shared.waiting_bytes();
        let crowded = tail_bytes > TAIL_BYTES_MAX / 2 || index_bytes > TAIL_BYTES_MAX / 4;
        if !crowded && !due(now, self.written_at, shared.options.queue_flush_interval_ms) {
            return Ok(false);
        }
        self.written_at = now;
        self.write(shared, if tail_bytes > TAIL_BYTES_MAX { 1 } else { QUEUE_UNITS_MIN }, between)?;
        Ok(true)
    }

    /// Writes the tails that have at least `units_min` units, and all of the index.
    pub fn write(&mut self, shared: &Shared, units_min: usize, between: Between<'_>) -> Result<(), Error> {
        self.write_queues(shared, units_min, between)?;
        let followed = self.follow_compactions(shared, between);
        self.write_index(shared, between)?;
        followed
    }

    /// Writes the tails that have at least `units_min` units.
    pub fn write_queues(&mut self, shared: &Shared, units_min: usize, between: Between<'_>) -> Result<(), Error> {
        let dirty = std::mem::take(&mut shared.state().dirty);
        let mut rest = dirty.into_iter();
        let mut keep = Vec::new();
        let mut result = Ok(());
        for number in rest.by_ref() {
            match self.write_queue(shared, number, units_min) {
                Ok(true) => {}
                Ok(false) => keep.push(number),
                Err(error) => {
                    keep.push(number);
                    result = Err(error);
                    break;
                }
            }
            result = between();
            if result.is_err() {
                break;
            }
        }
        keep.extend(rest);
        shared.state().dirty.extend(keep);
        result
    }

    /// Writes one queue's tail; false if it stays dirty.
    fn write_queue(&mut self, shared: &Shared, number: u32, units_min: usize) -> Result<bool, Error> {
        let is_batch = shared.state().queues[number as usize].batches.is_some();
        let mut files = lock(if is_batch { &shared.batch_files } else { &shared.queue_files });
        let mut first = true;
        loop {
            let (topic, queue_id, from, count) = {
                let state = &mut *shared.state();
                let queue = &mut state.queues[number as usize];
                let waiting = queue.batches.as_ref().map_or(queue.tail.len(), |batches| batches.tail.len());
                if queue.deleted || waiting == 0 {
                    queue.dirty = false;
                    return Ok(true);
                }
                if first && waiting < units_min {
                    return Ok(false);
                }
                let count = waiting.min(UNITS_PER_COPY);
                self.copy.clear();
                let from = match &queue.batches {
                    Some(batches) => {
                        batches.tail[..count].iter().for_each(|unit| self.copy.extend_from_slice(unit));
                        batches.tail_base
                    }
                    None => {
                        queue.tail[..count].iter().for_each(|unit| self.copy.extend_from_slice(unit));
                        queue.tail_base as u64
                    }
                };
                (queue.topic.clone(), queue.queue_id, from, count)
            };
            first = false;
            let key = QueueKey { number, topic: &topic, queue_id };
            let unsynced = &mut self.unsynced;
            let written = files.write(key, from, &self.copy, |file| {
                unsynced.insert((number, file));
            });
            if let Err(e) = written {
                return Err(Error::write("writing", &files.queue_dir(&topic, queue_id), &e));
            }
            let state = &mut *shared.state();
            let queue = &mut state.queues[number as usize];
            if !queue.deleted {
                match queue.batches.as_mut() {
                    Some(batches) => batches.trim(count),
                    None => queue.trim(count),
                }
                state.tail_units -= count;
            }
        }
    }

    /// Copies what the queues of compaction topics have in their files to their compaction logs. One that cannot be read is
    /// said and left to the next time; its messages keep their log files until then.
    fn follow_compactions(&mut self, shared: &Shared, between: Between<'_>) -> Result<(), Error> {
        let all: Vec<_> = lock(&shared.compactions).iter().map(|(number, c)| (*number, c.clone())).collect();
        let mut reader = LogReader::default();
        for (number, compaction) in all {
            match compaction.follow(shared, number, &mut reader, between) {
                Ok(()) => {
                    self.unread.remove(&number);
                }
                Err(Error::Unusable(why)) => {
                    if self.unread.insert(number) {
                        let (topic, queue_id) = (&compaction.topic, compaction.queue_id);
                        shared.notice(format!(
                            "messages of {topic}/{queue_id} cannot be copied to its compaction log: {why}"
                        ));
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Writes the index's new entries.
    pub fn write_index(&mut self, shared: &Shared, between: Between<'_>) -> Result<(), Error> {
        loop {
            let (batch, geometry, dir) = {
                let mut state = shared.state();
                let Some(index) = state.index.as_mut() else { return Ok(()) };
                let Some(batch) = index.take_batch() else { break };
                (batch, index.geometry, index.dir.clone())
            };
            let result = batch.write(&geometry);
            if let Some(index) = shared.state().index.as_mut() {
                index.written(batch, result.is_ok());
            }
            result.map_err(|e| Error::write("writing a file in", &dir, &e))?;
            between()?;
        }
        Ok(())
    }
}
