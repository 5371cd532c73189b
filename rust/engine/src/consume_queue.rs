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

/// Bytes of a unit.
pub const UNIT_BYTES: usize = 20;
/// Size field of a hole.
pub const HOLE_SIZE: u32 = 0x7FFF_FFFF;

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
}

impl FileUnit for Entry {
    const BYTES: usize = UNIT_BYTES;

    fn read(bytes: &[u8]) -> Option<Entry> {
        bytes.try_into().ok().map(Entry::decode).filter(Entry::is_valid)
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
    open: HashMap<(u32, u64), (Arc<dyn DiskFile>, u64)>,
    open_max: usize,
    clock: u64,
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
        QueueFiles { root, units, unit_bytes, disk, open: HashMap::new(), open_max, clock: 0 }
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

    fn cached(&mut self, key: (u32, u64)) -> Option<Arc<dyn DiskFile>> {
        self.clock += 1;
        let clock = self.clock;
        self.open.get_mut(&key).map(|(file, used)| {
            *used = clock;
            file.clone()
        })
    }

    fn keep(&mut self, key: (u32, u64), file: &Arc<dyn DiskFile>) {
        if self.open.len() >= self.open_max {
            if let Some(oldest) = self.open.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| *k) {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(key, (file.clone(), self.clock));
    }

    fn open_for_reading(&mut self, key: QueueKey<'_>, file: u64) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(open) = self.cached((key.number, file)) {
            return Ok(open);
        }
        let open = self.disk.open(&self.path(key.topic, key.queue_id, file), Mode::Read)?;
        self.keep((key.number, file), &open);
        Ok(open)
    }

    /// The file for writing, made at full size when missing; the flag says that it was made.
    pub fn open_for_writing(&mut self, key: QueueKey<'_>, file: u64) -> io::Result<(Arc<dyn DiskFile>, bool)> {
        if let Some(open) = self.cached((key.number, file)) {
            return Ok((open, false));
        }
        let path = self.path(key.topic, key.queue_id, file);
        let open = match self.disk.open(&path, Mode::Create) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dirs(&self.queue_dir(key.topic, key.queue_id))?;
                self.disk.open(&path, Mode::Create)?
            }
            other => other?,
        };
        let made = open.len()? != self.file_bytes();
        if made {
            open.set_len(self.file_bytes())?;
        }
        self.keep((key.number, file), &open);
        Ok((open, made))
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
            let open = self.open_for_reading(key, file)?;
            let filled = bytes.len();
            bytes.resize(filled + n as usize * unit, 0);
            let got = open.read_at((at % self.units) * unit as u64, &mut bytes[filled..])?;
            if got < n as usize * unit {
                bytes.truncate(filled + got - got % unit);
                return Ok(());
            }
            at += n;
        }
        Ok(())
    }

    /// One unit's bytes; `None` when its file is missing.
    pub fn read_unit<const N: usize>(&mut self, key: QueueKey<'_>, number: u64) -> Option<[u8; N]> {
        let mut unit = [0; N];
        let open = self.open_for_reading(key, number / self.units).ok()?;
        let n = open.read_at((number % self.units) * N as u64, &mut unit).ok()?;
        (n == N).then_some(unit)
    }

    /// One consume queue unit; `None` when its file is missing.
    pub fn read_one(&mut self, key: QueueKey<'_>, offset: i64) -> Option<Entry> {
        self.read_unit(key, offset as u64).map(|unit| Entry::decode(&unit))
    }

    /// Writes whole units from `from` on, making files and filling the holes before a consume queue's first unit.
    /// `wrote` gets the number of each file written to.
    pub fn write(&mut self, key: QueueKey<'_>, from: u64, units: &[u8], mut wrote: impl FnMut(u64)) -> io::Result<()> {
        let unit = self.unit_bytes;
        let mut at = from;
        let mut rest = units;
        while !rest.is_empty() {
            let file = at / self.units;
            let first = at % self.units;
            let n = (rest.len() / unit).min((self.units - first) as usize);
            let (open, made) = self.open_for_writing(key, file)?;
            if made && first > 0 && unit == UNIT_BYTES {
                open.write_at(0, &HOLE.repeat(first as usize))?;
            }
            open.write_at(first * unit as u64, &rest[..n * unit])?;
            wrote(file);
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
    use crate::disk::SimDisk;

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
}
