//! Batch queues at recovery: the same rules as for consume queues, where units are not offsets.
//!
//! A queue has no holes: what is lost to damage is an offset that no unit has. Units of a topic that has consume queues by its
//! configuration are set aside, and the other way round; the right ones are rebuilt from the log.

use std::path::Path;

use super::{Reached, Recovery, GAP_MAX};
use crate::batch_queue::{self, BatchEntry};
use crate::consume_queue::Queue;
use crate::error::Error;
use crate::store::{Position, Store};

/// Bytes of the smallest message in a batch: its frame and one byte.
const MESSAGE_BYTES_MIN: u64 = 23;

/// What the scan knows of a batch queue.
#[derive(Default)]
pub(super) struct Rebuilt {
    /// The units it had from the first rebuilt one on.
    before: Vec<BatchEntry>,
    /// The newest unit was accepted although the one before it is missing.
    unconfirmed: bool,
}

impl Recovery<'_> {
    /// Makes the batch queues known that have files, and sets aside consume queues that should be batch queues.
    pub(super) fn load_batch_queues(&mut self, reached: &mut Reached) -> Result<(), Error> {
        let (queue_root, root) = {
            let root = &self.store.shared.options.root;
            (root.join("consumequeue"), root.join("batchconsumequeue"))
        };
        for topic in self.store.shared.options.batch_topics.clone() {
            let dir = queue_root.join(&topic);
            if self.disk().exists(&dir) {
                self.begin_from(0)?;
                self.set_aside(&dir, "belongs to a topic with batch queues")?;
                self.topics_moved = true;
                reached.rebuild_from = Some(0);
            }
        }
        for topic in self.disk().list(&root).map_err(|e| Error::open("reading", &root, &e))? {
            let topic_dir = root.join(&topic.name);
            if !topic.is_dir {
                self.set_aside(&topic_dir, "is no directory of a topic")?;
                continue;
            }
            if !self.store.is_batch_topic(&topic.name) && self.disk().exists(&queue_root.join(&topic.name)) {
                self.set_aside(&topic_dir, "belongs to a topic with consume queues")?;
                continue;
            }
            self.store.set_batch_topic(&topic.name, true);
            for queue in self.disk().list(&topic_dir).map_err(|e| Error::open("reading", &topic_dir, &e))? {
                let dir = topic_dir.join(&queue.name);
                match queue.name.parse::<u32>().ok().filter(|id| queue.is_dir && id.to_string() == queue.name) {
                    Some(queue_id) => self.load_batch_queue(&topic.name, queue_id, &dir, reached)?,
                    None => self.set_aside(&dir, "is no directory of a queue")?,
                }
            }
        }
        Ok(())
    }

    fn load_batch_queue(&mut self, topic: &str, queue_id: u32, dir: &Path, reached: &mut Reached) -> Result<(), Error> {
        let file_units = self.store.shared.options.batch_file_units;
        let number = self.store.queue(topic, queue_id).0;
        let (reach, before_hole) = self.look_at_queue::<BatchEntry>(dir, number, file_units, reached)?;
        // Units are searched by their offsets, which needs all of them: what lies behind missing files is made again with those.
        let reach = before_hole.unwrap_or(reach);
        let shared = self.store.shared.clone();
        let state = &mut *shared.state();
        let queue = &mut state.queues[number as usize];
        let Some(batches) = queue.batches.as_mut() else { return Ok(()) };
        batches.first = reach.first;
        batches.tail_base = reach.next;
        queue.tail_base = reach.unit.map_or(0, |newest| newest.end());
        queue.visible = queue.tail_base;
        // Not known yet: it is looked for when the log's minimum is known.
        (queue.min, queue.min_position) = (0, 0);
        Ok(())
    }

    /// Puts a unit where its record says. One whose offset cannot be right is left out.
    pub(super) fn place_batch(&mut self, topic: &str, queue_id: u32, entry: BatchEntry, start: Position) {
        if self.is_deleted(topic, entry.position) {
            return;
        }
        let number = self.store.queue(topic, queue_id).0;
        let shared = self.store.shared.clone();
        let state = &mut *shared.state();
        let queue = &mut state.queues[number as usize];
        let Some(batches) = queue.batches.as_ref() else { return };
        let tail = batches.tail.len();
        if !self.batches.contains_key(&number) {
            // Units of an earlier scan or flush: replaced from here on, if this record is the one they speak of.
            let units = self.store.units(number, queue, batches);
            let is_before = |unit: &BatchEntry| unit.position < entry.position && unit.end() <= entry.base;
            let mut from = units.first_that(is_before);
            // Units that were never written, as a power cut leaves them in the middle, count as before it too.
            while from > batches.first && !units.get(from - 1).is_some_and(|unit| is_before(&unit)) {
                from -= 1;
            }
            if units.get(from).is_some_and(|unit| unit.position < start) && entry.base != 0 {
                return;
            }
            let before = (from..batches.next()).filter_map(|unit| units.get(unit)).collect();
            cut(self.store, number, queue, from);
            self.batches.insert(number, Rebuilt { before, unconfirmed: false });
        }
        let Some(rebuilt) = self.batches.get_mut(&number) else { return };
        let is_empty = |queue: &Queue| queue.batches.as_ref().map_or(true, |batches| batches.next() == batches.first);
        if entry.base != queue.next() && std::mem::take(&mut rebuilt.unconfirmed) && !is_empty(queue) {
            let last = queue.batches.as_ref().map_or(0, |batches| batches.next() - 1);
            cut(self.store, number, queue, last);
        }
        let next = queue.next();
        let lost = GAP_MAX + self.lost_bytes / MESSAGE_BYTES_MIN;
        if is_empty(queue) || entry.base == next {
            rebuilt.unconfirmed = is_empty(queue) && entry.base > 0;
        } else if entry.base > next && (entry.base - next) as u64 <= lost {
            // What lies between was lost to damage. Unless this record's own offset is damaged: then the next one does not continue
            // here, and this one is taken out again.
            rebuilt.unconfirmed = true;
        } else if entry.base == 0 {
            // The topic was deleted and made again.
            cut(self.store, number, queue, 0);
            rebuilt.before.clear();
        } else {
            let now = queue.batches.as_ref().map_or(0, |batches| batches.tail.len());
            state.tail_units = state.tail_units + now - tail;
            return;
        }
        if batch_queue::push(queue, &entry) {
            state.dirty.push(number);
        }
        let now = queue.batches.as_ref().map_or(0, |batches| batches.tail.len());
        state.tail_units = state.tail_units + now - tail;
    }

    /// Ends a batch queue where the log does; true if its files have to be cut.
    pub(super) fn finish_batches(&mut self, number: u32, end: Position, complete: bool) -> bool {
        let shared = self.store.shared.clone();
        let state = &mut *shared.state();
        let queue = &mut state.queues[number as usize];
        let Some(batches) = queue.batches.as_ref() else { return false };
        if let Some(rebuilt) = self.batches.remove(&number) {
            // Units behind the rebuilt ones whose records are damaged keep their offsets.
            let units = self.store.units(number, queue, batches);
            let mut newest = batches.next().checked_sub(1).and_then(|last| units.get(last)).map_or(0, |e| e.position);
            for entry in rebuilt.before {
                if entry.position > newest && entry.position < end && entry.base >= queue.next() {
                    newest = entry.position;
                    state.tail_units += 1;
                    if batch_queue::push(queue, &entry) {
                        state.dirty.push(number);
                    }
                }
            }
            return true;
        }
        if complete {
            return false;
        }
        let units = self.store.units(number, queue, batches);
        let kept = units.first_that(|entry| entry.position < end);
        let gone = batches.next() - kept;
        if gone == 0 {
            return false;
        }
        cut(self.store, number, queue, kept);
        self.progress
            .line(&format!("batch queue {}/{}: {gone} entries beyond the log's end cut", queue.topic, queue.queue_id));
        true
    }
}

/// Forgets the units from `number` on; the queue ends behind the one before.
fn cut(store: &Store, queue_number: u32, queue: &mut Queue, number: u64) {
    let Some(batches) = queue.batches.as_ref() else { return };
    let last = number.checked_sub(1).filter(|last| *last >= batches.first);
    let end = last.and_then(|last| store.units(queue_number, queue, batches).get(last)).map_or(0, |entry| entry.end());
    if let Some(batches) = queue.batches.as_mut() {
        batches.truncate(number);
    }
    queue.tail_base = end;
    queue.min = queue.min.min(end);
}
