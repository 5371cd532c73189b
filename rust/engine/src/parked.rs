//! Pulls that wait for a message: by queue for the append that wakes them, by time for those whose patience ends, by
//! session for those whose connection ends. Those of a stalled session, whose peer reads nothing, are on no queue's list:
//! no append finds them, and none costs more because of them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use crate::pull::Pull;
use crate::store::QueueRef;

/// A pull that waits.
#[derive(Debug)]
pub struct Waiting {
    pub session: u64,
    pub queue: QueueRef,
    pub pull: Pull,
    /// Entries before this offset were looked at and do not match.
    pub scanned: i64,
    pub deadline_ms: i64,
    /// Its filter counts no longer: no message ends its waiting, and it is told to ask again from where it did.
    pub outdated: bool,
}

/// All waiting pulls.
#[derive(Default)]
pub struct Parked {
    slots: Vec<Option<Waiting>>,
    /// How often a slot was used; tells an old deadline from a new tenant's.
    uses: Vec<u32>,
    free: Vec<u32>,
    by_queue: HashMap<QueueRef, Vec<u32>>,
    by_session: HashMap<u64, Vec<u32>>,
    deadlines: BinaryHeap<Reverse<(i64, u32, u32)>>,
    stalled: HashSet<u64>,
}

impl Parked {
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn of_session(&self, session: u64) -> usize {
        self.by_session.get(&session).map_or(0, Vec::len)
    }

    /// Somebody who can be woken waits on `queue`.
    pub fn waits_on(&self, queue: QueueRef) -> bool {
        self.by_queue.contains_key(&queue)
    }

    /// Somebody waits on `queue`, whether he reads or not.
    pub fn is_awaited(&self, queue: QueueRef) -> bool {
        let stalled = || self.stalled.iter().filter_map(|session| self.by_session.get(session)).flatten();
        self.waits_on(queue) || stalled().any(|slot| self.queue_of(*slot) == Some(queue))
    }

    fn queue_of(&self, slot: u32) -> Option<QueueRef> {
        Some(self.slots[slot as usize].as_ref()?.queue)
    }

    pub fn session_of(&self, slot: u32) -> Option<u64> {
        Some(self.slots.get(slot as usize)?.as_ref()?.session)
    }

    pub fn is_stalled(&self, session: u64) -> bool {
        !self.stalled.is_empty() && self.stalled.contains(&session)
    }

    /// The session's pulls are not to be woken, nor those it parks from now on.
    pub fn stall(&mut self, session: u64) {
        if self.stalled.insert(session) {
            let (slots, queues) = (&self.slots, self.queues_of(session));
            for queue in queues {
                if let Some(list) = self.by_queue.get_mut(&queue) {
                    list.retain(|slot| slots[*slot as usize].as_ref().is_some_and(|w| w.session != session));
                    if list.is_empty() {
                        self.by_queue.remove(&queue);
                    }
                }
            }
        }
    }

    /// The session's pulls may be woken again: the queues that they wait on.
    pub fn go_on(&mut self, session: u64) -> HashSet<QueueRef> {
        if !self.stalled.remove(&session) {
            return HashSet::new();
        }
        for slot in self.by_session.get(&session).into_iter().flatten() {
            if let Some(queue) = self.queue_of(*slot) {
                self.by_queue.entry(queue).or_default().push(*slot);
            }
        }
        self.queues_of(session)
    }

    fn queues_of(&self, session: u64) -> HashSet<QueueRef> {
        self.by_session.get(&session).into_iter().flatten().filter_map(|slot| self.queue_of(*slot)).collect()
    }

    pub fn park(&mut self, waiting: Waiting) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.uses.push(0);
            (self.slots.len() - 1) as u32
        });
        let uses = &mut self.uses[slot as usize];
        *uses = uses.wrapping_add(1);
        self.deadlines.push(Reverse((waiting.deadline_ms, slot, *uses)));
        if !self.is_stalled(waiting.session) {
            self.by_queue.entry(waiting.queue).or_default().push(slot);
        }
        self.by_session.entry(waiting.session).or_default().push(slot);
        self.slots[slot as usize] = Some(waiting);
        if self.deadlines.len() > 4 * self.len() + 1024 {
            self.forget_old_deadlines();
        }
    }

    /// Slots of the pulls that wait on `queue`, oldest first.
    pub fn on_queue(&self, queue: QueueRef, out: &mut Vec<u32>) {
        out.clear();
        if let Some(slots) = self.by_queue.get(&queue) {
            out.extend_from_slice(slots);
        }
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Waiting> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub fn take(&mut self, slot: u32) -> Option<Waiting> {
        let waiting = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        if !self.is_stalled(waiting.session) {
            remove(&mut self.by_queue, waiting.queue, slot);
        }
        remove(&mut self.by_session, waiting.session, slot);
        Some(waiting)
    }

    pub fn close_session(&mut self, session: u64) {
        for slot in self.by_session.get(&session).cloned().unwrap_or_default() {
            self.take(slot);
        }
        self.stalled.remove(&session);
    }

    /// The next pull whose time is over at `now_ms`. Those of stalled sessions go on until `stalled_until_ms`, if there is
    /// such a time.
    pub fn take_expired(&mut self, now_ms: i64, stalled_until_ms: Option<i64>) -> Option<Waiting> {
        while let Some(Reverse((deadline_ms, slot, uses))) = self.deadlines.peek().copied() {
            if deadline_ms > now_ms {
                return None;
            }
            self.deadlines.pop();
            if self.uses[slot as usize] != uses {
                continue;
            }
            if let (Some(until_ms), Some(session)) = (stalled_until_ms, self.session_of(slot)) {
                if self.is_stalled(session) {
                    self.deadlines.push(Reverse((until_ms, slot, uses)));
                    continue;
                }
            }
            if let Some(waiting) = self.take(slot) {
                return Some(waiting);
            }
        }
        None
    }

    /// When `take_expired` has the next pull.
    pub fn next_deadline_ms(&mut self) -> Option<i64> {
        while let Some(Reverse((deadline_ms, slot, uses))) = self.deadlines.peek().copied() {
            if self.uses[slot as usize] == uses && self.slots[slot as usize].is_some() {
                return Some(deadline_ms);
            }
            self.deadlines.pop();
        }
        None
    }

    /// Ends the patience of all pulls that `concerned` picks: the next `take_expired` has them.
    pub fn end(&mut self, concerned: impl Fn(&Pull) -> bool) {
        self.end_as(false, concerned);
    }

    /// As `end`, of pulls whose filter counts no longer.
    pub fn outdate(&mut self, concerned: impl Fn(&Pull) -> bool) {
        self.end_as(true, concerned);
    }

    fn end_as(&mut self, outdated: bool, concerned: impl Fn(&Pull) -> bool) {
        for (slot, waiting) in self.slots.iter_mut().enumerate() {
            if let Some(waiting) = waiting.as_mut().filter(|waiting| concerned(&waiting.pull)) {
                waiting.outdated |= outdated;
                waiting.deadline_ms = i64::MIN;
                self.deadlines.push(Reverse((i64::MIN, slot as u32, self.uses[slot])));
            }
        }
    }

    /// Woken pulls leave their deadlines behind; this sweeps them out before they outweigh the living.
    fn forget_old_deadlines(&mut self) {
        let old = std::mem::take(&mut self.deadlines);
        self.deadlines = old
            .into_iter()
            .filter(|Reverse((_, slot, uses))| {
                self.uses[*slot as usize] == *uses && self.slots[*slot as usize].is_some()
            })
            .collect();
    }
}

fn remove<K: std::hash::Hash + Eq>(lists: &mut HashMap<K, Vec<u32>>, key: K, slot: u32) {
    if let Some(list) = lists.get_mut(&key) {
        list.retain(|other| *other != slot);
        if list.is_empty() {
            lists.remove(&key);
        }
    }
}
