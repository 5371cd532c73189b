//! From a record to the log and into its queues: staged into the chunk, written by one commit, visible at once or when flushed.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::shared::Unsettled;
use super::{lock, Commit, Entry, Position, QueueRef, Staged, Store};
use crate::batch_queue::{self, BatchEntry};
use crate::consume_queue::{Unit, UNIT_BYTES};
use crate::error::Error;
use crate::index::{each_hash, KeyHash};
use crate::light_queue;
use crate::property::{flag, java_hash, scan};
use crate::record::{self, has_index_entry, has_queue_entry, NewRecord, Place, BLANK_BYTES};

/// When so many bytes of entries wait in memory, the flusher is woken early.
const PENDING_BYTES_WAKE: usize = 4 << 20;
/// With so many the disk is behind, see [`Store::is_behind`].
const PENDING_BYTES_MAX: usize = 64 << 20;

pub(super) struct PendingUnit {
    queue: u32,
    unit: Unit,
}

pub(super) struct PendingBatch {
    queue: u32,
    entry: BatchEntry,
}

impl Store {
    /// Encodes into the chunk and assigns the offsets; no I/O. `record.topic` and `queue_id` are those of `queue`.
    ///
    /// # Errors
    /// [`Error::BadRecord`] when the format cannot hold it, it names impossible light queues or the topic was deleted;
    /// [`Error::TooManyLightQueues`]; what [`Store::health`] says while writes are refused. The chunk is as before then.
    #[inline]
    pub fn stage(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        match record.known {
            Some(known) if !known.any(flag::MULTI_DISPATCH) && !self.is_batch(queue) => self.stage_one(queue, record),
            _ if self.is_batch(queue) => self.stage_batch(queue, record),
            _ => self.stage_with_light_queues(queue, record),
        }
    }

    /// [`Store::stage`] in a batch queue: the record takes an offset for each of its messages.
    fn stage_batch(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let count = batch_queue::messages_in(record.sys_flag, record.properties)?;
        let base = self.slots[queue.0 as usize].next;
        let properties = match record.sys_flag & batch_queue::INNER_BATCH {
            0 => record.properties.to_vec(),
            _ => batch_queue::with_base(record.properties, base),
        };
        let known = scan(&properties);
        let staged = self.stage_one(queue, &NewRecord { properties: &properties, known: Some(known), ..*record })?;
        // Its entry is of another kind than the one that was just made for it.
        if has_queue_entry(record.sys_flag) {
            self.pending.pop();
            let (position, size, store_timestamp) = (staged.position, staged.size, staged.store_timestamp);
            let tags_code = record.tags_code.unwrap_or_else(|| i64::from(java_hash(known.tags.of(&properties))));
            let entry = BatchEntry { position, size, tags_code, store_timestamp, base, count };
            self.pending_batches.push(PendingBatch { queue: queue.0, entry });
            self.slots[queue.0 as usize].next = entry.end();
        }
        Ok(staged)
    }

    /// How many messages a record is that was staged there.
    pub fn messages_in(&self, queue: QueueRef, record: &NewRecord<'_>) -> u64 {
        match self.is_batch(queue) {
            true => batch_queue::messages_in(record.sys_flag, record.properties).map_or(1, u64::from),
            false => 1,
        }
    }

    /// [`Store::stage`] of a record that may name light queues: those get an entry too, and the record says at which offsets.
    fn stage_with_light_queues(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let known = record.known.unwrap_or_else(|| scan(record.properties));
        if !known.any(flag::MULTI_DISPATCH) {
            return self.stage_one(queue, &NewRecord { known: Some(known), ..*record });
        }
        let dispatched =
            self.light_queues && has_queue_entry(record.sys_flag) && light_queue::may_dispatch(record.topic);
        let names = if dispatched { light_queue::names(record.properties)? } else { Vec::new() };
        let next =
            |name: &&str| self.find_queue(name, light_queue::QUEUE_ID).map_or(0, |q| self.slots[q.0 as usize].next);
        let offsets: Vec<String> = names.iter().map(|name| next(name).to_string()).collect();
        let offsets = (!offsets.is_empty()).then(|| offsets.join(","));
        let properties = light_queue::with_offsets(record.properties, offsets.as_deref());
        let known = scan(&properties);
        let record = &NewRecord { properties: &properties, known: Some(known), ..*record };
        // Queues are for good: none is made for a record that is refused.
        self.size_of(queue, record)?;
        let queues = self.light_queues_of(&names)?;
        let staged = self.stage_one(queue, record)?;
        let tags_code = record.tags_code.unwrap_or_else(|| i64::from(java_hash(known.tags.of(&properties))));
        let unit = Entry { position: staged.position, size: staged.size, tags_code }.encode();
        for (number, light) in queues.iter().enumerate() {
            // Named twice it is there once; and it may be the very queue the record was sent to.
            if *light != queue && !queues[..number].contains(light) {
                self.pending.push(PendingUnit { queue: light.0, unit });
                self.slots[light.0 as usize].next += 1;
            }
        }
        Ok(staged)
    }

    /// The queues of these names, made when new.
    fn light_queues_of(&mut self, names: &[&str]) -> Result<Vec<QueueRef>, Error> {
        let is_new = |name: &&str| {
            let queue = self.find_queue(name, light_queue::QUEUE_ID);
            !queue.is_some_and(|queue| self.slots[queue.0 as usize].next > 0)
        };
        if self.light_queues_max < usize::MAX {
            let new: HashSet<&str> = names.iter().copied().filter(is_new).collect();
            if !new.is_empty() {
                let there = self.slots.iter().filter(|slot| slot.light && slot.next > 0 && !slot.deleted).count();
                if there + new.len() > self.light_queues_max {
                    let (new, may_be) = (new.len(), self.light_queues_max);
                    let text =
                        format!("there are {there} light queues, {may_be} may be, the message names {new} new ones");
                    return Err(Error::TooManyLightQueues(text));
                }
            }
        }
        Ok(names.iter().map(|name| self.queue(name, light_queue::QUEUE_ID)).collect())
    }

    /// True if any record of this topic fits a log file whose body and properties have so many bytes together.
    #[inline]
    pub fn can_hold(&self, topic: &str, bytes: usize) -> bool {
        let size = record::LARGEST_FRAME_BYTES + topic.len() + bytes;
        size as u64 + BLANK_BYTES <= self.shared.log.file_bytes
    }

    /// Bytes of the record, or why it cannot be staged.
    #[inline]
    fn size_of(&self, queue: QueueRef, record: &NewRecord<'_>) -> Result<usize, Error> {
        if self.closed || self.shared.refusing.load(Ordering::Relaxed) {
            return Err(self.refusal());
        }
        if self.slots.get(queue.0 as usize).map_or(true, |slot| slot.deleted) {
            return Err(Error::BadRecord(format!("the topic {} was deleted", record.topic)));
        }
        let size = record::size_of(record, &self.store_host)?;
        let file_bytes = self.shared.log.file_bytes;
        if size as u64 + BLANK_BYTES > file_bytes {
            return Err(Error::BadRecord(format!("a record of {size} bytes does not fit a log file of {file_bytes}")));
        }
        Ok(size)
    }

    #[inline]
    fn stage_one(&mut self, queue: QueueRef, record: &NewRecord<'_>) -> Result<Staged, Error> {
        let size = self.size_of(queue, record)?;
        let file_bytes = self.shared.log.file_bytes;
        if self.chunk.is_empty() {
            self.now_ms = self.shared.clock.now_ms();
            self.chunk.begin_run(self.staged_end);
        }
        let mut position = self.staged_end;
        let room = file_bytes - position % file_bytes;
        if size as u64 + BLANK_BYTES > room {
            self.chunk.put(|bytes| record::encode_blank(bytes, room));
            position += room;
            self.chunk.begin_run(position);
        }
        let slot = &mut self.slots[queue.0 as usize];
        let queued = has_queue_entry(record.sys_flag);
        let queue_offset = if queued { slot.next } else { 0 };
        let place = Place { queue_offset, position, store_timestamp: self.now_ms, store_host: self.store_host };
        self.chunk.put(|bytes| record::encode(bytes, record, size, &place));
        let indexed = self.index_enable && has_index_entry(record.sys_flag);
        if indexed || record.tags_code.is_none() {
            let known = match record.known {
                Some(known) => known,
                None => scan(record.properties),
            };
            let tags_code = match record.tags_code {
                Some(code) => code,
                None => i64::from(java_hash(known.tags.of(record.properties))),
            };
            if queued {
                let unit = Entry { position, size: size as u32, tags_code }.encode();
                self.pending.push(PendingUnit { queue: queue.0, unit });
            }
            if indexed {
                let (keys, store_timestamp) = (&mut self.keys, self.now_ms);
                each_hash(slot.prefix_hash, &known, record.properties, |hash| {
                    keys.push(KeyHash { hash, position, store_timestamp });
                });
            }
        } else if queued {
            let unit = Entry { position, size: size as u32, tags_code: record.tags_code.unwrap_or(0) }.encode();
            self.pending.push(PendingUnit { queue: queue.0, unit });
        }
        slot.next += i64::from(queued);
        self.staged_end = position + size as u64;
        self.staged_last = position;
        self.staged_records += 1;
        Ok(Staged { position, size: size as u32, queue, queue_offset, store_timestamp: self.now_ms })
    }

    #[cold]
    fn refusal(&self) -> Error {
        if self.closed {
            return Error::Closed;
        }
        self.shared.health().unwrap_or_else(|| Error::DiskFull("the disk was full a moment ago".into()))
    }

    /// Bytes of records that are staged and not written.
    pub fn staged_bytes(&self) -> usize {
        self.chunk.len()
    }

    /// Writes all that is staged with one positioned write. On an error nothing of it exists.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::DiskFailed`]; further writes are refused then, see [`Store::health`].
    pub fn commit(&mut self) -> Result<Commit, Error> {
        if self.chunk.is_empty() {
            return Ok(Commit { end: self.shared.log.written(), touched: Vec::new() });
        }
        if self.shared.refusing.load(Ordering::Relaxed) {
            let error = self.refusal();
            self.discard();
            return Err(error);
        }
        let started = Instant::now();
        if let Err(error) = self.writer.write(&self.shared.log, &self.chunk) {
            self.shared.report(&error);
            self.discard();
            return Err(error);
        }
        self.commit_number = self.commit_number.wrapping_add(1);
        let mut touched = Vec::with_capacity(8.min(self.pending.len()));
        let end = self.staged_end;
        let waiting = self.commit_push(end, &mut touched);
        let bytes = self.chunk.runs().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let records = self.staged_records;
        self.clear_chunk();
        let counters = &self.shared.counters;
        counters.records.store(counters.records.load(Ordering::Relaxed) + records, Ordering::Relaxed);
        counters.bytes.store(counters.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
        counters.commits.store(counters.commits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.sync {
            touched.clear();
        }
        self.waiting = waiting;
        let log = &self.shared.log;
        if self.sync || waiting > PENDING_BYTES_WAKE || log.wants_reserve() || log.wants_write_back() {
            self.shared.wake();
        }
        let took = started.elapsed().as_micros() as u64;
        if took > counters.commit_max_us.load(Ordering::Relaxed) {
            counters.commit_max_us.store(took, Ordering::Relaxed);
        }
        Ok(Commit { end, touched })
    }

    /// Pushes the written chunk's entries; returns the bytes that wait for the flusher.
    fn commit_push(&mut self, end: Position, touched: &mut Vec<QueueRef>) -> usize {
        let number = self.commit_number;
        let state = &mut *lock(&self.shared.state);
        if let Some(index) = &state.index {
            // The slots lie all over 20 MB: ask for the first ones now, so that they arrive while the queues are pushed.
            for key in self.keys.iter().take(16) {
                index.prefetch(key.hash);
            }
        }
        for pending in &self.pending {
            let queue = &mut state.queues[pending.queue as usize];
            if queue.push(pending.unit) {
                state.dirty.push(pending.queue);
            }
            if queue.touched_by != number {
                queue.touched_by = number;
                touched.push(QueueRef(pending.queue));
            }
        }
        for pending in &self.pending_batches {
            let queue = &mut state.queues[pending.queue as usize];
            if batch_queue::push(queue, &pending.entry) {
                state.dirty.push(pending.queue);
            }
            if queue.touched_by != number {
                queue.touched_by = number;
                touched.push(QueueRef(pending.queue));
            }
        }
        for queue in touched.iter() {
            let numbered = &mut state.queues[queue.0 as usize];
            if self.sync {
                state.unsettled.push_back(Unsettled { end, queue: queue.0, visible: numbered.next() });
            } else {
                numbered.visible = numbered.next();
            }
        }
        state.tail_units += self.pending.len() + self.pending_batches.len();
        state.last_position = Some(self.staged_last);
        state.last_timestamp = self.now_ms;
        state.last_end = end;
        let mut waiting = state.tail_units * UNIT_BYTES;
        if let Some(index) = state.index.as_mut() {
            for (at, key) in self.keys.iter().enumerate() {
                if let Some(ahead) = self.keys.get(at + 16) {
                    index.prefetch(ahead.hash);
                }
                index.put(key);
            }
            if let Some(reason) = index.broken.as_mut().filter(|r| !r.is_empty()) {
                let line = std::mem::take(reason);
                self.shared.notice(line);
            }
            waiting += index.pending_bytes();
        }
        waiting
    }

    /// Forgets what is staged.
    pub fn discard(&mut self) {
        for pending in &self.pending {
            self.slots[pending.queue as usize].next -= 1;
        }
        for pending in &self.pending_batches {
            self.slots[pending.queue as usize].next -= i64::from(pending.entry.count);
        }
        self.clear_chunk();
        self.staged_end = self.shared.log.written();
    }

    fn clear_chunk(&mut self) {
        self.chunk.clear();
        self.pending.clear();
        self.pending_batches.clear();
        self.keys.clear();
        self.staged_records = 0;
    }

    /// Acknowledged up to here.
    #[inline]
    pub fn durable(&self) -> Position {
        if self.sync {
            self.shared.log.flushed()
        } else {
            self.shared.log.written()
        }
    }

    /// The disk does not keep up: more is written that the device has not taken (synchronous flush: that is not flushed), or
    /// held in memory for it, than there should be. Who sends is to wait; [`Store::notify_fd`] tells when it is worth
    /// asking again. It ends soon below the limit of the log, so that nobody waits long at a time, at half of memory's, and when
    /// writes are refused: that is to be said, not waited for.
    #[inline]
    pub fn is_behind(&mut self) -> bool {
        let written = self.shared.log.written() + self.chunk.len() as u64;
        let log = &self.shared.log;
        let unflushed = written.saturating_sub(if self.sync { log.flushed() } else { log.written_back() });
        if !self.behind && unflushed <= self.shared.options.unflushed_bytes_max && self.waiting <= PENDING_BYTES_MAX {
            return false;
        }
        self.still_behind(unflushed)
    }

    #[cold]
    fn still_behind(&mut self, unflushed: u64) -> bool {
        let (tails, index) = self.shared.waiting_bytes();
        self.waiting = tails + index;
        let most = self.shared.options.unflushed_bytes_max;
        let room = (most / 16).min(self.shared.log.write_back_bytes());
        self.behind = (unflushed > most - room || self.waiting > PENDING_BYTES_MAX / 2)
            && self.health().is_none()
            && !self.closed;
        if self.behind {
            self.shared.held_back.store(true, Ordering::Release);
            self.shared.wake();
            self.shared.flusher.wake();
        }
        self.behind
    }

    /// Synchronous flush: makes flushed entries visible and returns the queues whose visible maximum moved.
    pub fn settle(&mut self) -> Vec<QueueRef> {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.shared.event, &mut count);
        let mut touched = Vec::new();
        if !self.sync {
            return touched;
        }
        let flushed = self.shared.log.flushed();
        self.commit_number = self.commit_number.wrapping_add(1);
        let state = &mut *lock(&self.shared.state);
        while state.unsettled.front().is_some_and(|u| u.end <= flushed) {
            let Some(settled) = state.unsettled.pop_front() else { break };
            let queue = &mut state.queues[settled.queue as usize];
            queue.visible = queue.visible.max(settled.visible);
            if queue.touched_by != self.commit_number && !queue.deleted {
                queue.touched_by = self.commit_number;
                touched.push(QueueRef(settled.queue));
            }
        }
        touched
    }
}
