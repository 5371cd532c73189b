//! What readers ask: a queue's bounds and entries, records of the log, offsets by time, positions by key.

use std::io;

use super::{lock, Entry, IndexHits, Position, QueueRef, Store};
use crate::batch_queue::{BatchEntry, BatchUnits, Units};
use crate::consume_queue::{Queue, QueueKey, HOLE_SIZE, UNIT_BYTES};
use crate::error::Error;
use crate::index::{positive_hash, prefix_hash};
use crate::property::java_hash_on;
use crate::record::{self, RecordView};

/// That readers pass over something is said once in this time.
const UNREAD_SAID_MS: i64 = 60_000;

impl Store {
    /// Visible (minimum, maximum) of a queue; maximum is the next offset to come. (0, 0) for a deleted one.
    pub fn bounds(&self, queue: QueueRef) -> (i64, i64) {
        let state = &mut *lock(&self.shared.state);
        let Some(queue_state) = state.queues.get_mut(queue.0 as usize) else { return (0, 0) };
        if queue_state.min_position < self.shared.log.min() {
            self.correct_min(queue.0, queue_state);
        }
        (queue_state.min.min(queue_state.visible), queue_state.visible)
    }

    /// One unit, from the tail or its file.
    pub(crate) fn unit_at(&self, number: u32, queue: &Queue, offset: i64) -> Option<Entry> {
        if offset >= queue.tail_base {
            return queue.tail_from(offset).first().map(Entry::decode);
        }
        if offset < 0 {
            return None;
        }
        let key = QueueKey { number, topic: &queue.topic, queue_id: queue.queue_id };
        lock(&self.queue_reader).read_one(key, offset)
    }

    /// A batch queue's units.
    pub(crate) fn units<'a>(&'a self, number: u32, queue: &'a Queue, units: &'a BatchUnits) -> Units<'a> {
        let key = QueueKey { number, topic: &queue.topic, queue_id: queue.queue_id };
        Units { units, files: &self.batch_reader, key }
    }

    /// Moves `min` to the first unit whose record is still in the log.
    #[cold]
    pub(crate) fn correct_min(&self, number: u32, queue: &mut Queue) {
        let log_min = self.shared.log.min();
        if let Some(batches) = &queue.batches {
            let units = self.units(number, queue, batches);
            let first = units.get(units.first_that(|entry| entry.position < log_min));
            (queue.min, queue.min_position) = first.map_or((queue.next(), u64::MAX), |e| (e.base, e.position));
            return;
        }
        let (mut low, mut high) = (queue.min, queue.next());
        while low < high {
            let middle = low + (high - low) / 2;
            // A hole says nothing about where it is: look at the next unit that does.
            let mut at = middle;
            let mut entry = self.unit_at(number, queue, at);
            while at + 1 < high && !entry.is_some_and(|e| !e.is_hole()) {
                at += 1;
                entry = self.unit_at(number, queue, at);
            }
            match entry {
                // Holes only, up to what is known to be there or to the end: the first record may still lie before them.
                Some(entry) if entry.is_hole() || entry.position >= log_min => high = middle,
                _ => low = at + 1,
            }
        }
        while let Some(entry) = self.unit_at(number, queue, low).filter(|_| low < queue.next()) {
            if !entry.is_hole() {
                break;
            }
            low += 1;
        }
        queue.min = low;
        queue.min_position = match self.unit_at(number, queue, low).filter(|_| low < queue.next()) {
            Some(entry) => entry.position,
            None => u64::MAX,
        };
    }

    /// Appends up to `count` visible units of a batch queue to `out`, from the one that has `offset` on; nothing when `offset` is
    /// outside the bounds.
    pub fn batches(&self, queue: QueueRef, offset: i64, count: usize, out: &mut Vec<BatchEntry>) {
        let state = lock(&self.shared.state);
        let Some(queue_state) = state.queues.get(queue.0 as usize) else { return };
        let Some(batches) = queue_state.batches.as_ref().filter(|_| (0..queue_state.visible).contains(&offset)) else {
            return;
        };
        let units = self.units(queue.0, queue_state, batches);
        let first = units.holding(offset);
        let found = (first..batches.next()).take(count).map_while(|number| units.get(number));
        out.extend(found.take_while(|entry| entry.base < queue_state.visible));
    }

    /// Appends up to `count` visible entries from `offset` on to `out`; nothing when `offset` is outside the bounds. Of a batch queue:
    /// one for each unit.
    ///
    /// # Errors
    /// [`Error::Unusable`] when the queue's file cannot be read. One that is missing or too short ends the entries; what is no
    /// entry is given as a hole. Both are said.
    pub fn entries(&mut self, queue: QueueRef, offset: i64, count: usize, out: &mut Vec<Entry>) -> Result<(), Error> {
        if self.is_batch(queue) {
            let mut batches = Vec::new();
            self.batches(queue, offset, count, &mut batches);
            let plain = |e: BatchEntry| Entry { position: e.position, size: e.size, tags_code: e.tags_code };
            out.extend(batches.into_iter().map(plain));
            return Ok(());
        }
        let state = lock(&self.shared.state);
        let Some(queue_state) = state.queues.get(queue.0 as usize) else { return Ok(()) };
        let wanted = queue_state.visible.saturating_sub(offset).clamp(0, count as i64) as usize;
        if wanted == 0 || offset < 0 {
            return Ok(());
        }
        let from_file = (queue_state.tail_base - offset).clamp(0, wanted as i64) as usize;
        let tail = queue_state.tail_from(offset);
        let tail = &tail[..tail.len().min(wanted - from_file)];
        if from_file == 0 {
            out.extend(tail.iter().map(Entry::decode));
            return Ok(());
        }
        // What is not in the tail now is in the file for good, so the file is read without the lock.
        let tail: Vec<Entry> = tail.iter().map(Entry::decode).collect();
        let (topic, queue_id) = (queue_state.topic.clone(), queue_state.queue_id);
        drop(state);
        let key = QueueKey { number: queue.0, topic: &topic, queue_id };
        let mut files = lock(&self.queue_reader);
        let read = files.read(key, offset as u64, from_file, &mut self.scratch);
        let got = self.scratch.len() / UNIT_BYTES;
        let path = || files.path(&topic, queue_id, (offset as u64 + got as u64) / files.units);
        let lacking = match read {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Unusable(format!("reading {} failed: {e}", path().display())));
            }
            _ => (got == 0).then(|| format!("{} is missing or too short", path().display())),
        };
        drop(files);
        let mut no_entry = None;
        for (at, unit) in (offset..).zip(self.scratch.chunks_exact(UNIT_BYTES)) {
            let Ok(unit) = unit.try_into() else { continue };
            let entry = Entry::decode(unit);
            if entry.is_valid() {
                out.push(entry);
            } else {
                no_entry.get_or_insert(at);
                out.push(Entry { position: 0, size: HOLE_SIZE, tags_code: 0 });
            }
        }
        // What lies behind a lack has other offsets.
        if got == from_file {
            out.extend(tail);
        }
        if let Some(lacking) = lacking {
            self.say_unread(queue, &lacking);
        }
        if let Some(at) = no_entry {
            self.say_unread(queue, &format!("what is at offset {at} is no entry"));
        }
        Ok(())
    }

    /// Says, not more than once a minute, that readers of a queue pass over something.
    #[cold]
    pub(crate) fn say_unread(&mut self, queue: QueueRef, what: &str) {
        let now_ms = self.shared.clock.now_ms();
        let (said_ms, more) = self.unread;
        if said_ms.is_some_and(|said| (0..UNREAD_SAID_MS).contains(&(now_ms - said))) {
            self.unread.1 += 1;
            return;
        }
        self.unread = (Some(now_ms), 0);
        let (topic, queue_id) = {
            let state = self.shared.state();
            let queue = &state.queues[queue.0 as usize];
            (queue.topic.clone(), queue.queue_id)
        };
        let more = if more > 0 { format!(" ({more} more such reads since it was last said)") } else { String::new() };
        self.shared.notice(format!("readers of consume queue {topic}/{queue_id} pass over messages: {what}{more}"));
    }

    /// Says that an entry leads to no record, unless that record is too old.
    #[cold]
    pub(crate) fn say_no_record(&mut self, queue: QueueRef, position: Position) {
        if position >= self.shared.log.min() {
            self.say_unread(queue, &format!("no whole record is at {position}, where an entry leads"));
        }
    }

    /// Appends the record's bytes to `out`; false (and nothing appended) when it is damaged, deleted or a hole.
    #[inline]
    pub fn copy_record(&mut self, position: Position, size: u32, out: &mut Vec<u8>) -> bool {
        let Some(bytes) = self.reader.record(&self.shared.log, position, size) else { return false };
        out.extend_from_slice(bytes);
        if self.reader.is_damaged(&self.shared.log, position, size) {
            out.truncate(out.len() - size as usize);
            return false;
        }
        true
    }

    /// The record at `position` will be copied soon.
    #[inline]
    pub fn prefetch_record(&self, position: Position, size: u32) {
        self.reader.prefetch(&self.shared.log, position, size as usize);
    }

    /// Shows the record's bytes to `look` without copying; `None` as `copy_record` says false.
    #[inline]
    pub fn with_record<R>(&mut self, position: Position, size: u32, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let seen = self.reader.record(&self.shared.log, position, size).map(look)?;
        (!self.reader.is_damaged(&self.shared.log, position, size)).then_some(seen)
    }

    /// The record at `position`, its size read from the log; checked by its CRC. `None` when there is none or it is not acknowledged.
    pub fn record(&mut self, position: Position) -> Option<Vec<u8>> {
        if position >= self.durable() {
            return None;
        }
        let size = self.reader.size_at(&self.shared.log, position)?;
        let bytes = self.reader.record(&self.shared.log, position, size)?;
        RecordView::parse(bytes).filter(RecordView::is_intact)?;
        let copy = bytes.to_vec();
        (!self.reader.is_damaged(&self.shared.log, position, size)).then_some(copy)
    }

    /// Store time of the first record at or behind `offset` that can be read, with its offset.
    fn time_from(&mut self, queue: QueueRef, offset: i64, end: i64) -> Option<(i64, i64)> {
        let mut entries = Vec::new();
        let mut at = offset;
        while at < end {
            entries.clear();
            self.entries(queue, at, 1, &mut entries).ok()?;
            let entry = *entries.first()?;
            let time = self.with_record(entry.position, entry.size, record::store_timestamp_of).flatten();
            if let Some(time) = time {
                return Some((at, time));
            }
            at += 1;
        }
        None
    }

    /// First offset stored at or after `timestamp_ms`, the maximum if all are older; `upper`: last offset stored at or before
    /// it, 0 if all are newer. 0 for an empty queue.
    pub fn offset_by_time(&mut self, queue: QueueRef, timestamp_ms: i64, upper: bool) -> i64 {
        let (min, max) = self.bounds(queue);
        if self.is_batch(queue) {
            let state = lock(&self.shared.state);
            let queue_state = &state.queues[queue.0 as usize];
            let Some(batches) = &queue_state.batches else { return 0 };
            return self.units(queue.0, queue_state, batches).offset_by_time(timestamp_ms, upper).clamp(min, max);
        }
        if min >= max {
            return if upper { 0 } else { max };
        }
        let is_before = |time: i64| if upper { time <= timestamp_ms } else { time < timestamp_ms };
        let (mut low, mut high) = (min, max);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.time_from(queue, middle, high) {
                Some((at, time)) if is_before(time) => low = at + 1,
                _ => high = middle,
            }
        }
        match (upper, low > min) {
            (false, _) => low,
            (true, true) => low - 1,
            (true, false) => 0,
        }
    }

    /// Store time of the message at `offset`; -1 when there is none.
    pub fn store_time(&mut self, queue: QueueRef, offset: i64) -> i64 {
        self.time_from(queue, offset, offset.saturating_add(1)).map_or(-1, |(_, time)| time)
    }

    /// Looks `key` up (`kind` "T": as a tag). At most `limit` positions with a store time in `begin_ms..=end_ms`.
    pub fn search_index(
        &mut self,
        topic: &str,
        key: &str,
        kind: &str,
        limit: usize,
        begin_ms: i64,
        end_ms: i64,
    ) -> IndexHits {
        let mut hash = prefix_hash(topic);
        if kind == "T" {
            hash = java_hash_on(hash, b"T#");
        }
        let hash = positive_hash(java_hash_on(hash, key.as_bytes()));
        match self.shared.state().index.as_mut() {
            Some(index) => index.search(hash, limit, begin_ms, end_ms),
            None => IndexHits::default(),
        }
    }
}
