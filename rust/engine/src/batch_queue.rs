//! Batch consume queues: 46 bytes a record that may hold several messages, and one offset for each of them.
//!
//! ```text
//! position 8 | size 4 | tags code 8 | store time 8 | first offset 8 | messages 2 | compacted offset 4 (-1) | reserved 4 (0)
//! ```
//! A sender's batch stays one record (sysFlag says so): property `INNER_NUM` has the number of its messages, `INNER_BASE` the
//! first one's offset, which the store writes. Any other message of such a topic is a batch of one. So a queue has fewer units than
//! offsets: units are counted on their own, files are named by the byte offset of their first unit as ever, and an offset is searched
//! for. Like consume queues they have a tail in memory that the flusher writes, and are rebuilt from the log.

use std::sync::Mutex;

use crate::consume_queue::{FileUnit, Queue, QueueFiles, QueueKey};
use crate::error::Error;
use crate::property::{find, pairs, NAME_END, VALUE_END};

/// Bytes of a unit.
pub const UNIT_BYTES: usize = 46;
/// sysFlag: the body is a batch that the reader takes apart.
pub const NEED_UNWRAP: i32 = 1 << 6;
/// sysFlag: one record with several messages.
pub const INNER_BATCH: i32 = 1 << 7;

const NUMBER: &[u8] = b"INNER_NUM";
const BASE: &[u8] = b"INNER_BASE";
/// No compacted copy is known.
const NOT_COMPACTED: i32 = -1;

/// A unit as it lies in the file.
pub(crate) type Unit = [u8; UNIT_BYTES];

/// One unit, read: a record and the offsets of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchEntry {
    pub position: u64,
    pub size: u32,
    pub tags_code: i64,
    pub store_timestamp: i64,
    /// Offset of the first message.
    pub base: i64,
    pub count: u16,
}

impl BatchEntry {
    /// The unit that ends a file which has room for more: position and compacted offset -1, all else 0.
    pub(crate) const END: Unit = {
        let mut unit = [0; UNIT_BYTES];
        let mut at = 0;
        while at < 8 {
            unit[at] = 0xFF;
            unit[38 + at / 2] = 0xFF;
            at += 1;
        }
        unit
    };

    /// The offset behind its last message.
    pub fn end(&self) -> i64 {
        self.base.saturating_add(i64::from(self.count))
    }

    pub(crate) fn encode(&self) -> Unit {
        let mut unit = [0; UNIT_BYTES];
        unit[..8].copy_from_slice(&self.position.to_be_bytes());
        unit[8..12].copy_from_slice(&self.size.to_be_bytes());
        unit[12..20].copy_from_slice(&self.tags_code.to_be_bytes());
        unit[20..28].copy_from_slice(&self.store_timestamp.to_be_bytes());
        unit[28..36].copy_from_slice(&self.base.to_be_bytes());
        unit[36..38].copy_from_slice(&self.count.to_be_bytes());
        unit[38..42].copy_from_slice(&NOT_COMPACTED.to_be_bytes());
        unit
    }

    pub(crate) fn decode(unit: &Unit) -> BatchEntry {
        let long = |at: usize| unit[at..at + 8].try_into().map_or(0, i64::from_be_bytes);
        BatchEntry {
            position: long(0) as u64,
            size: unit[8..12].try_into().map_or(0, u32::from_be_bytes),
            tags_code: long(12),
            store_timestamp: long(20),
            base: long(28),
            count: unit[36..38].try_into().map_or(0, u16::from_be_bytes),
        }
    }

    /// True unless the unit was never written (zeros), ends a file or is nonsense.
    pub(crate) fn is_valid(&self) -> bool {
        self.size > 0
            && self.size <= i32::MAX as u32
            && self.position <= i64::MAX as u64
            && self.base >= 0
            && (1..=i16::MAX as u16).contains(&self.count)
    }
}

impl FileUnit for BatchEntry {
    const BYTES: usize = UNIT_BYTES;

    fn read(bytes: &[u8]) -> Option<BatchEntry> {
        bytes.try_into().ok().map(BatchEntry::decode).filter(BatchEntry::is_valid)
    }

    fn position(&self) -> Option<u64> {
        Some(self.position)
    }
}

/// What only a batch queue has. Its [`Queue`]'s own tail stays empty, `tail_base` is the next offset.
#[derive(Debug, Default)]
pub(crate) struct BatchUnits {
    /// Number of the first unit there is a file of.
    pub first: u64,
    /// Number of the tail's first unit; all before are in files.
    pub tail_base: u64,
    pub tail: Vec<Unit>,
}

impl BatchUnits {
    /// Number of the next unit.
    pub fn next(&self) -> u64 {
        self.tail_base + self.tail.len() as u64
    }

    /// Forgets the first `count` units of the tail: they are in the file now.
    pub fn trim(&mut self, count: usize) {
        self.tail_base += count as u64;
        self.tail.drain(..count.min(self.tail.len()));
    }

    /// Forgets the units from `number` on.
    pub fn truncate(&mut self, number: u64) {
        self.tail.truncate(number.saturating_sub(self.tail_base) as usize);
        self.tail_base = self.tail_base.min(number);
        self.first = self.first.min(number);
    }
}

/// Appends; true if the queue had no tail before.
pub(crate) fn push(queue: &mut Queue, entry: &BatchEntry) -> bool {
    if queue.min >= queue.next() {
        queue.min = entry.base;
        queue.min_position = entry.position;
    }
    queue.tail_base = entry.end();
    if let Some(units) = queue.batches.as_mut() {
        units.tail.push(entry.encode());
    }
    !std::mem::replace(&mut queue.dirty, true)
}

/// Units of one queue, wherever they are.
pub(crate) struct Units<'a> {
    pub units: &'a BatchUnits,
    pub files: &'a Mutex<QueueFiles>,
    pub key: QueueKey<'a>,
}

impl Units<'_> {
    pub fn get(&self, number: u64) -> Option<BatchEntry> {
        let entry = if number >= self.units.tail_base {
            self.units.tail.get((number - self.units.tail_base) as usize).map(BatchEntry::decode)
        } else {
            let mut files = crate::store::lock(self.files);
            files.read_unit(self.key, number).map(|unit| BatchEntry::decode(&unit))
        };
        entry.filter(BatchEntry::is_valid)
    }

    /// Number of the first unit for which `is_before` is false; those for which it is true come first. What cannot be read counts as
    /// being before: its file is gone.
    pub fn first_that(&self, is_before: impl Fn(&BatchEntry) -> bool) -> u64 {
        let (mut low, mut high) = (self.units.first, self.units.next());
        // Whoever follows the queue finds its offset in the tail.
        if self.get(self.units.tail_base).is_some_and(|entry| is_before(&entry)) {
            low = self.units.tail_base;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle) {
                Some(entry) if !is_before(&entry) => high = middle,
                _ => low = middle + 1,
            }
        }
        low
    }

    /// Number of the unit that has `offset`, or of the next one.
    pub fn holding(&self, offset: i64) -> u64 {
        self.first_that(|entry| entry.end() <= offset)
    }

    /// Offset to begin with for `time_ms`, as Apache's broker finds it: of the first unit that is not older (`upper`: of the last one that
    /// is not newer), of the last unit when all are older; 0 when there is none.
    pub fn offset_by_time(&self, time_ms: i64, upper: bool) -> i64 {
        let next = self.units.next();
        let older = self.first_that(|entry| entry.store_timestamp < time_ms);
        let Some(last) = next.checked_sub(1).and_then(|last| self.get(last)) else { return 0 };
        if last.store_timestamp <= time_ms {
            return last.base;
        }
        let number = if upper {
            let newer = self.first_that(|entry| entry.store_timestamp <= time_ms);
            newer.saturating_sub(1).max(self.units.first)
        } else {
            older
        };
        self.get(number).map_or(0, |entry| entry.base)
    }
}

/// How many messages a record of a batch queue has.
///
/// # Errors
/// [`Error::BadRecord`] when the record is a batch and does not say how many, or more than the format can hold.
pub(crate) fn messages_in(sys_flag: i32, properties: &[u8]) -> Result<u16, Error> {
    if sys_flag & INNER_BATCH == 0 {
        return Ok(1);
    }
    let count = find(properties, NUMBER).and_then(|text| std::str::from_utf8(text).ok()?.parse::<i64>().ok());
    match count {
        Some(count @ 1..=0x7FFF) => Ok(count as u16),
        _ => Err(Error::BadRecord(format!("a batch has 1 to {} messages, INNER_NUM says {count:?}", i16::MAX))),
    }
}

/// The properties of a batch with its first offset.
pub(crate) fn with_base(properties: &[u8], base: i64) -> Vec<u8> {
    let text = base.to_string();
    let mut out = Vec::with_capacity(properties.len() + BASE.len() + text.len() + 2);
    let kept = pairs(properties).filter(|(name, _)| *name != BASE);
    for (name, value) in kept.chain([(BASE, text.as_bytes())]) {
        out.extend_from_slice(name);
        out.push(NAME_END);
        out.extend_from_slice(value);
        out.push(VALUE_END);
    }
    out
}

/// First offset and number of messages of a stored record, by the rules of Apache's broker; `None`: they cannot be right. What is no
/// batch by its sysFlag has one, as when it was stored, whatever its sender wrote into its properties.
pub(crate) fn span_of(sys_flag: i32, queue_offset: i64, properties: &[u8]) -> Option<(i64, u16)> {
    if sys_flag & INNER_BATCH == 0 {
        return (queue_offset >= 0).then_some((queue_offset, 1));
    }
    let number = |name| find(properties, name).map(|text| std::str::from_utf8(text).ok()?.parse::<i64>().ok());
    let (base, count) = match (number(BASE), number(NUMBER)) {
        (Some(base), Some(count)) => (base?, u16::try_from(count?).ok()?),
        _ => (queue_offset, 1),
    };
    (base >= 0 && (1..=i16::MAX as u16).contains(&count)).then_some((base, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_apaches_layout() {
        let entry = BatchEntry { position: 1, size: 2, tags_code: -3, store_timestamp: 4, base: 5, count: 6 };
        let unit = entry.encode();
        let expected =
            "0000000000000001 00000002 fffffffffffffffd 0000000000000004 0000000000000005 0006 ffffffff 00000000";
        let text: String = unit.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, expected.replace(' ', ""));
        assert_eq!(BatchEntry::decode(&unit), entry);
        assert!(entry.is_valid() && !BatchEntry::decode(&[0; UNIT_BYTES]).is_valid());
        assert!(!BatchEntry { position: u64::MAX, ..entry }.is_valid(), "the unit that ends a file");
    }

    #[test]
    fn offsets_are_found_by_number_and_by_time() {
        let files = Mutex::new(QueueFiles::new(
            "/q".into(),
            10,
            UNIT_BYTES,
            std::sync::Arc::new(crate::disk::SimDisk::new()),
            2,
        ));
        let mut units = BatchUnits::default();
        let mut base = 100;
        for (number, count) in [(0i64, 3u16), (1, 1), (2, 5), (3, 2)] {
            let entry =
                BatchEntry { position: 0, size: 1, tags_code: 0, store_timestamp: 10 * (number / 2), base, count };
            base = entry.end();
            units.tail.push(entry.encode());
        }
        let all = Units { units: &units, files: &files, key: QueueKey { number: 0, topic: "t", queue_id: 0 } };
        let holding: Vec<u64> = (99..112).map(|offset| all.holding(offset)).collect();
        assert_eq!(holding, [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 4]);
        // Bases 100 and 103 at 0, 104 and 109 at 10.
        for (time, lower, upper) in [(-1, 100, 100), (0, 100, 103), (5, 104, 103), (10, 109, 109), (11, 109, 109)] {
            assert_eq!((all.offset_by_time(time, false), all.offset_by_time(time, true)), (lower, upper), "{time}");
        }
    }

    #[test]
    fn a_batch_says_how_many_and_the_store_where() {
        let sent = b"INNER_NUM\x0112\x02INNER_BASE\x019\x02A\x01b\x02";
        assert_eq!(messages_in(INNER_BATCH, sent).unwrap(), 12);
        assert_eq!(messages_in(0, sent).unwrap(), 1);
        for wrong in [&b"INNER_NUM\x010\x02"[..], b"INNER_NUM\x0132768\x02", b"INNER_NUM\x01x\x02", b""] {
            assert!(matches!(messages_in(INNER_BATCH, wrong), Err(Error::BadRecord(_))));
        }
        let stored = with_base(sent, 77);
        assert_eq!(span_of(INNER_BATCH, 5, &stored), Some((77, 12)));
        assert_eq!(span_of(NEED_UNWRAP, 5, &stored), Some((5, 1)), "whatever it says, it is no batch");
        assert_eq!(span_of(INNER_BATCH, 5, b"A\x01b\x02"), Some((5, 1)));
        assert_eq!(span_of(INNER_BATCH, 5, b"INNER_NUM\x0112\x02"), Some((5, 1)), "as Apache's broker takes it");
        assert_eq!(span_of(INNER_BATCH, 5, b"INNER_NUM\x0199999\x02INNER_BASE\x011\x02"), None);
    }
}
