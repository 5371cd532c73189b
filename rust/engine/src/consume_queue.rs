//! Consume queues: for each message of a queue 20 bytes that say where its record is.
//!
//! ```text
//! position 8 | size 4 | tags code 8          300,000 units a file by default, files named by their byte offset
//! ```
//! New units live in a tail in memory until the flusher has written them, so appending touches no file and a busy
//! queue's consumers read memory. Units before a queue's first message (it began at a later offset) are holes: position 0, size
//! 0x7FFFFFFF, as Apache fills them; holes also stand for records that were lost to damage.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch_queue::BatchUnits;
use crate::commit_log::file_name;
use crate::disk::{Disk, DiskFile, Mode};
use crate::guard::Map;

/// Bytes of a unit.
pub const UNIT_BYTES: usize = 20;
/// Size field of a hole.
pub const HOLE_SIZE: u32 = 0x7FFF_FFFF;

/// A topic's name is a directory's.
const TOPIC_BYTES_MAX: usize = 255;

/// True if there can be such a queue: a directory of its name inside the store, and a number that Java can read. What a
/// message says about where it belongs is its sender's word.
pub(crate) fn can_be(topic: &str, queue_id: u32) -> bool {
    queue_id <= i32::MAX as u32
        && (1..=TOPIC_BYTES_MAX).contains(&topic.len())
        && !topic.starts_with('.')
        && !topic.contains(['/', '\0'])
}

/// A unit as it lies in the file.
pub(crate) type Unit = [u8; UNIT_BYTES];

/// A unit that stands for no message.
pub(crate) const HOLE: Unit = [0, 0, 0, 0, 0, 0, 0, 0, 0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0];

/// One consume queue unit, read. Holes have position 0 and size 0x7FFFFFFF; `copy_record` refuses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub position: u64,
    pub size: u32,
    pub tags_code: i64,
}

impl Entry {
    #[inline]
    pub(crate) fn decode(unit: &Unit) -> Entry {
        let [a, b, c, d, e, f, g, h, s0, s1, s2, s3, t @ ..] = *unit;
        Entry {
            position: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            size: u32::from_be_bytes([s0, s1, s2, s3]),
            tags_code: i64::from_be_bytes(t),
        }
    }

    #[inline]
    pub(crate) fn encode(&self) -> Unit {
        let mut unit = [0; UNIT_BYTES];
        unit[..8].copy_from_slice(&self.position.to_be_bytes());
        unit[8..12].copy_from_slice(&self.size.to_be_bytes());
        unit[12..].copy_from_slice(&self.tags_code.to_be_bytes());
        unit
    }

    /// True for a unit that stands for no message.
    #[inline]
    pub fn is_hole(&self) -> bool {
        self.size == HOLE_SIZE
    }

    /// True unless the unit was never written (zeros) or is nonsense.
    pub(crate) fn is_valid(&self) -> bool {
        self.size > 0 && self.size <= HOLE_SIZE && self.position <= i64::MAX as u64
    }
}

/// A unit of a queue's file.
pub(crate) trait FileUnit: Sized {
    const BYTES: usize;

    /// The unit, if it was ever written.
    fn read(bytes: &[u8]) -> Option<Self>;

    /// Where its record is; `None` for a hole.
    fn position(&self) -> Option<u64>;
}

impl FileUnit for Entry {
    const BYTES: usize = UNIT_BYTES;

    fn read(bytes: &[u8]) -> Option<Entry> {
        bytes.try_into().ok().map(Entry::decode).filter(Entry::is_valid)
    }

    fn position(&self) -> Option<u64> {
        (!self.is_hole()).then_some(self.position)
    }
}

/// A queue in memory. Small: there may be many thousands.
pub(crate) struct Queue {
    pub topic: Arc<str>,
    pub queue_id: u32,
    pub deleted: bool,
    /// In the list of queues with a tail.
    pub dirty: bool,
    /// Was in the list of queues touched by the commit of this number.
    pub touched_by: u32,
    /// First visible offset.
    pub min: i64,
    /// Next offset consumers may not see yet.
    pub visible: i64,
    /// Offset of the tail's first unit; all before are in files.
    pub tail_base: i64,
    pub tail: Vec<Unit>,
    /// A batch queue's units: it has none of the others.
    pub batches: Option<Box<BatchUnits>>,
    /// Position of the unit at `min`; below the log's minimum, `min` has to be corrected.
    pub min_position: u64,
}

impl Queue {
    pub fn new(topic: Arc<str>, queue_id: u32) -> Queue {
        Queue {
            topic,
            queue_id,
            deleted: false,
            dirty: false,
            touched_by: 0,
            min: 0,
            visible: 0,
            tail_base: 0,
            tail: Vec::new(),
            batches: None,
            min_position: 0,
        }
    }

    /// Offset of the next message.
    #[inline]
    pub fn next(&self) -> i64 {
        self.tail_base + self.tail.len() as i64
    }

    /// Where it goes on: topic, queue, number of the next unit, and whether that is a batch's.
    pub fn end(&self) -> (Arc<str>, u32, u64, bool) {
        let next = self.batches.as_ref().map_or(self.next() as u64, |batches| batches.next());
        (self.topic.clone(), self.queue_id, next, self.batches.is_some())
    }

    /// Appends; true if the queue had no tail before.
    #[inline]
    pub fn push(&mut self, unit: Unit) -> bool {
        if self.min == self.next() {
            self.min_position = Entry::decode(&unit).position;
        }
        self.tail.push(unit);
        !std::mem::replace(&mut self.dirty, true)
    }

    /// The units from `offset` on that are in the tail.
    #[inline]
    pub fn tail_from(&self, offset: i64) -> &[Unit] {
        let skip = (offset - self.tail_base).max(0) as usize;
        self.tail.get(skip..).unwrap_or(&[])
    }

    /// Forgets the first `count` units of the tail: they are in the file now.
    pub fn trim(&mut self, count: usize) {
        self.tail_base += count as i64;
        if count >= self.tail.len() {
            self.tail = Vec::new();
        } else {
            self.tail.drain(..count);
        }
    }
}

/// Files of consume queues (or of batch queues: then with units of another size), of which at most `open_max` are open. Each user
/// (owner, flusher) has its own.
pub(crate) struct QueueFiles {
    pub root: PathBuf,
    pub units: u64,
    unit_bytes: usize,
    disk: Arc<dyn Disk>,
    open: HashMap<(u32, u64), Open>,
    open_max: usize,
    maps: bool,
    clock: u64,
}

struct Open {
    file: Arc<dyn DiskFile>,
    map: Option<Map>,
    used: u64,
}

/// A queue's name and number, as the files need them.
#[derive(Clone, Copy)]
pub(crate) struct QueueKey<'a> {
    pub number: u32,
    pub topic: &'a str,
    pub queue_id: u32,
}

impl QueueFiles {
    pub fn new(root: PathBuf, units: u64, unit_bytes: usize, disk: Arc<dyn Disk>, open_max: usize) -> QueueFiles {
        QueueFiles { root, units, unit_bytes, disk, open: HashMap::new(), open_max, maps: false, clock: 0 }
    }

    /// For reading from open stores only: files of full size are mapped, which saves every pull a call of the system's.
    pub fn mapped(self) -> QueueFiles {
        QueueFiles { maps: true, ..self }
    }

    pub fn file_bytes(&self) -> u64 {
        self.units * self.unit_bytes as u64
    }

    pub fn queue_dir(&self, topic: &str, queue_id: u32) -> PathBuf {
        self.root.join(topic).join(queue_id.to_string())
    }

    /// Path of the file number `file` (its first unit is `file * units`).
    pub fn path(&self, topic: &str, queue_id: u32, file: u64) -> PathBuf {
        self.queue_dir(topic, queue_id).join(file_name(file * self.file_bytes()))
    }

    fn cached(&mut self, key: (u32, u64)) -> Option<&Open> {
        self.clock += 1;
        let clock = self.clock;
        self.open.get_mut(&key).map(|open| {
            open.used = clock;
            &*open
        })
    }

    fn keep(&mut self, key: (u32, u64), file: Arc<dyn DiskFile>, map: Option<Map>) {
        if self.open.len() >= self.open_max {
            if let Some(oldest) = self.open.iter().min_by_key(|(_, open)| open.used).map(|(k, _)| *k) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(key, Open { file, map, used: self.clock });
    }

    fn open_for_reading(&mut self, key: QueueKey<'_>, file: u64) -> io::Result<&Open> {
        let number = (key.number, file);
        if self.cached(number).is_none() {
            let open = self.disk.open(&self.path(key.topic, key.queue_id, file), Mode::Read)?;
            // A file that is too short must not be mapped beyond its end.
            let map = if self.maps && open.len()? >= self.file_bytes() { open.map() } else { None };
            self.keep(number, open, map);
        }
        self.open.get(&number).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The file for writing, at full size; with how many bytes it had, if those were not all (0: it is new).
    pub fn open_for_writing(&mut self, key: QueueKey<'_>, file: u64) -> io::Result<(Arc<dyn DiskFile>, Option<u64>)> {
        if let Some(open) = self.cached((key.number, file)) {
            return Ok((open.file.clone(), None));
        }
        let path = self.path(key.topic, key.queue_id, file);
        let open = match self.disk.open(&path, Mode::Create) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dirs(&self.queue_dir(key.topic, key.queue_id))?;
                self.disk.open(&path, Mode::Create)?
            }
            other => other?,
        };
        let had = Some(open.len()?).filter(|bytes| *bytes != self.file_bytes());
        if had.is_some() {
            open.set_len(self.file_bytes())?;
        }
        self.keep((key.number, file), open.clone(), None);
        Ok((open, had))
    }

    /// Reads the units `from..from + count`; stops early at the end of what is there.
    pub fn read(&mut self, key: QueueKey<'_>, from: u64, count: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        let unit = self.unit_bytes;
        let mut at = from;
        let end = at + count as u64;
        while at < end {
            let file = at / self.units;
            let n = (end - at).min((file + 1) * self.units - at);
            let (begin, len) = ((at % self.units) as usize * unit, n as usize * unit);
            at += n;
            let open = self.open_for_reading(key, file)?;
            if let Some(map) = &open.map {
                bytes.extend_from_slice(&map[begin..begin + len]);
                continue;
            }
            let filled = bytes.len();
            bytes.resize(filled + len, 0);
            let got = open.file.read_at(begin as u64, &mut bytes[filled..])?;
            if got < len {
                bytes.truncate(filled + got - got % unit);
                return Ok(());
            }
        }
        Ok(())
    }

    /// One unit's bytes; `None` when its file is missing.
    pub fn read_unit<const N: usize>(&mut self, key: QueueKey<'_>, number: u64) -> Option<[u8; N]> {
        let mut unit = [0; N];
        let begin = (number % self.units) * N as u64;
        let n = self.open_for_reading(key, number / self.units).ok()?.file.read_at(begin, &mut unit).ok()?;
        (n == N).then_some(unit)
    }

    /// One consume queue unit; `None` when its file is missing.
    pub fn read_one(&mut self, key: QueueKey<'_>, offset: i64) -> Option<Entry> {
        self.read_unit(key, offset as u64).map(|unit| Entry::decode(&unit))
    }

    /// Writes whole units from `from` on, making files and filling the holes before a consume queue's first unit. The file behind a
    /// full one is made with it: where it is missing, it was lost.
    /// `wrote` gets the number of each file written to.
    pub fn write(&mut self, key: QueueKey<'_>, from: u64, units: &[u8], mut wrote: impl FnMut(u64)) -> io::Result<()> {
        let unit = self.unit_bytes;
        let mut at = from;
        let mut rest = units;
        while !rest.is_empty() {
            let file = at / self.units;
            let first = at % self.units;
            let n = (rest.len() / unit).min((self.units - first) as usize);
            let (open, had) = self.open_for_writing(key, file)?;
            // A file that was cut keeps the units it has.
            let whole = had.map_or(first, |bytes| bytes / unit as u64);
            if whole < first && unit == UNIT_BYTES {
                open.write_at(whole * unit as u64, &HOLE.repeat((first - whole) as usize))?;
            }
            open.write_at(first * unit as u64, &rest[..n * unit])?;
            wrote(file);
            if first + n as u64 == self.units && self.open_for_writing(key, file + 1)?.1.is_some() {
                wrote(file + 1);
            }
            rest = &rest[n * unit..];
            at += n as u64;
        }
        Ok(())
    }

    /// Closes everything open of a queue.
    pub fn forget(&mut self, number: u32) {
        self.open.retain(|(queue, _), _| *queue != number);
    }

    /// Closes everything.
    pub fn close_all(&mut self) {
        self.open.clear();
    }

    /// Files held open.
    pub fn open_files(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{RealDisk, SimDisk};

    #[test]
    fn a_queue_that_begins_late_is_filled_with_holes_and_spans_files() {
        let disk = SimDisk::new();
        let mut files = QueueFiles::new("/cq".into(), 10, UNIT_BYTES, Arc::new(disk.clone()), 2);
        let key = QueueKey { number: 0, topic: "t", queue_id: 7 };
        let unit = |n: u64| Entry { position: n * 100, size: 100, tags_code: -(n as i64) }.encode();
        let units: Vec<Unit> = (13..45).map(unit).collect();
        files.write(key, 13, &units.concat(), |_| {}).unwrap();
        let bytes = disk.read_file(&files.path("t", 7, 1)).unwrap();
        assert_eq!(bytes.len(), 200);
        assert_eq!(bytes[..20], HOLE);
        assert_eq!(bytes[40..60], HOLE);
        assert_eq!(bytes[60..80], unit(13));
        assert!(disk.read_file("/cq/t/7/00000000000000000200".as_ref()).is_some());
        let mut bytes = Vec::new();
        files.read(key, 18, 20, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 400);
        assert_eq!(bytes[380..], unit(37));
        assert_eq!(files.read_one(key, 44), Some(Entry { position: 4400, size: 100, tags_code: -44 }));
        assert!(Entry::decode(&HOLE).is_hole() && Entry::decode(&HOLE).is_valid());
        assert!(files.open_files() <= 2);
    }

    #[test]
    fn a_mapped_file_is_read_while_it_is_written_and_one_that_is_too_short_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let files = || QueueFiles::new(dir.path().into(), 10, UNIT_BYTES, Arc::new(RealDisk), 2);
        let (mut writer, mut reader) = (files(), files().mapped());
        let key = QueueKey { number: 0, topic: "t", queue_id: 7 };
        let unit = |n: u64| Entry { position: n * 100, size: 100, tags_code: 0 }.encode();
        let all: Vec<Unit> = (0..25).map(unit).collect();
        let mut bytes = Vec::new();
        for (from, to) in [(0, 3), (3, 12), (12, 25)] {
            writer.write(key, from, &all[from as usize..to].concat(), |_| {}).unwrap();
            reader.read(key, 0, to, &mut bytes).unwrap();
            assert_eq!(bytes, all[..to].concat());
            assert_eq!(reader.read_one(key, to as i64 - 1), Some(Entry::decode(&all[to - 1])));
        }
        assert!(reader.open_files() <= 2 && reader.open.values().all(|open| open.map.is_some()));
        assert!(writer.open.values().all(|open| open.map.is_none()));
        // Somebody has cut the last file in the middle of a unit.
        let cut = std::fs::OpenOptions::new().write(true).open(writer.path("t", 7, 2)).unwrap();
        cut.set_len(3 * UNIT_BYTES as u64 + 5).unwrap();
        let mut reader = files().mapped();
        reader.read(key, 18, 7, &mut bytes).unwrap();
        assert_eq!(bytes, all[18..23].concat());
    }
}
