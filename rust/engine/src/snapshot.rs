//! `queues.snapshot`: the bounds of all queues as a clean stop left them, so that a start need not look into every queue's files.
//!
//! Not part of Apache's store and never needed: it is believed only after a clean stop, if its own checksum is right, the checkpoint
//! is byte for byte the one it was written beside, the topics on disk are the ones it names and each queue's files are there and have
//! their size. Otherwise the files are read, as they always are in a store with few queues. It is removed when a store is opened.
//!
//! ```text
//! "AEROBEE1" | checkpoint 56 | queues 4 | queues × (topic length 2, topic, queue id 4, min 8, next 8, min position 8) | CRC-32 4
//! ```

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::commit_log::NAME_DIGITS;
use crate::consume_queue::UNIT_BYTES;
use crate::disk::{Disk, Mode};

const MAGIC: &[u8; 8] = b"AEROBEE1";
/// Stores with fewer queues do without: reading their files takes a moment and trusts nothing.
pub(crate) const QUEUES_MIN: usize = 1000;

/// A queue's bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueBounds<'a> {
    pub topic: &'a str,
    pub queue_id: u32,
    pub min: i64,
    pub next: i64,
    pub min_position: u64,
}

fn path(root: &Path) -> PathBuf {
    root.join("queues.snapshot")
}

/// Writes the snapshot beside a checkpoint.
pub(crate) fn save(disk: &dyn Disk, root: &Path, checkpoint: &[u8; 56], queues: &[QueueBounds<'_>]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(64 + queues.len() * 64);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(checkpoint);
    bytes.extend_from_slice(&(queues.len() as u32).to_be_bytes());
    for queue in queues {
        bytes.extend_from_slice(&(queue.topic.len() as u16).to_be_bytes());
        bytes.extend_from_slice(queue.topic.as_bytes());
        bytes.extend_from_slice(&queue.queue_id.to_be_bytes());
        bytes.extend_from_slice(&queue.min.to_be_bytes());
        bytes.extend_from_slice(&queue.next.to_be_bytes());
        bytes.extend_from_slice(&queue.min_position.to_be_bytes());
    }
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    let path = path(root);
    let file = disk.open(&path, Mode::Create)?;
    file.set_len(0)?;
    file.write_at(0, &bytes)?;
    file.sync_data()
}

/// The snapshot's bytes, whatever they are worth.
pub(crate) fn load(disk: &dyn Disk, root: &Path) -> Option<Vec<u8>> {
    let file = disk.open(&path(root), Mode::Read).ok()?;
    let mut bytes = vec![0; usize::try_from(file.len().ok()?).ok()?];
    file.read_at(0, &mut bytes).ok()?;
    Some(bytes)
}

/// What a snapshot says, and the checkpoint it belongs to; `None` unless it is whole.
pub(crate) fn parse(bytes: &[u8]) -> Option<([u8; 56], Vec<QueueBounds<'_>>)> {
    let (body, crc) = bytes.split_at(bytes.len().checked_sub(4)?);
    if crc32fast::hash(body).to_be_bytes() != crc {
        return None;
    }
    let rest = &mut body.strip_prefix(MAGIC)?;
    let checkpoint = take(rest)?;
    let count = u32::from_be_bytes(take(rest)?);
    let mut queues = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let len = usize::from(u16::from_be_bytes(take(rest)?));
        if len > rest.len() {
            return None;
        }
        let (topic, after) = rest.split_at(len);
        *rest = after;
        queues.push(QueueBounds {
            topic: std::str::from_utf8(topic).ok()?,
            queue_id: u32::from_be_bytes(take(rest)?),
            min: i64::from_be_bytes(take(rest)?),
            next: i64::from_be_bytes(take(rest)?),
            min_position: u64::from_be_bytes(take(rest)?),
        });
    }
    Some((checkpoint, queues))
}

/// The files of a snapshot's queues, being looked at by threads of its own: with 80,000 queues that is most of a start.
/// Whoever has something else to do before the store is opened begins with it.
pub struct Look {
    root: PathBuf,
    queue_file_units: u64,
    thread: JoinHandle<Option<Vec<u8>>>,
}

impl Look {
    /// Begins to look at the store below `root`; that there is none is no matter.
    pub fn begin(disk: Arc<dyn Disk>, root: &Path, queue_file_units: u64) -> Look {
        let (own_root, root) = (root.to_owned(), root.to_owned());
        let thread = thread::spawn(move || {
            let bytes = load(disk.as_ref(), &own_root)?;
            let whole = are_whole(disk.as_ref(), &own_root, queue_file_units, &parse(&bytes)?.1);
            whole.then_some(bytes)
        });
        Look { root, queue_file_units, thread }
    }

    pub(crate) fn is_for(&self, root: &Path, queue_file_units: u64) -> bool {
        self.root == root && self.queue_file_units == queue_file_units
    }

    /// Waits for the end; true if all files have their size and the snapshot is (still) this one.
    pub(crate) fn confirms(self, snapshot: &[u8]) -> bool {
        self.thread.join().is_ok_and(|bytes| bytes.is_some_and(|bytes| bytes == snapshot))
    }
}

/// All cores look: each file costs the system 3 µs and us nothing.
fn are_whole(disk: &dyn Disk, root: &Path, queue_file_units: u64, queues: &[QueueBounds<'_>]) -> bool {
    let queue_file_bytes = queue_file_units * UNIT_BYTES as u64;
    let queue_root = root.join("consumequeue");
    let Ok(file_len) = disk.file_lens_below(&queue_root) else { return false };
    let are_whole = |part: &[QueueBounds<'_>]| {
        let mut name = String::new();
        part.iter().all(|bounds| {
            let newest = (bounds.next - 1) as u64 / queue_file_units;
            // The one with the newest entry stays when all are too old.
            let oldest = newest.min(bounds.min as u64 / queue_file_units);
            (oldest..=newest).all(|file| {
                let first = file * queue_file_bytes;
                name.clear();
                let _ = write!(name, "{}/{}/{first:0width$}", bounds.topic, bounds.queue_id, width = NAME_DIGITS);
                file_len(&name).is_ok_and(|bytes| bytes == queue_file_bytes)
            })
        })
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let parts = queues.chunks(queues.len().div_ceil(threads).max(1));
        let looks: Vec<_> = parts.map(|part| scope.spawn(|| are_whole(part))).collect();
        looks.into_iter().all(|look| look.join().unwrap_or(false))
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    if bytes.len() < N {
        return None;
    }
    let (head, rest) = bytes.split_at(N);
    *bytes = rest;
    head.try_into().ok()
}

/// Removes the snapshot: the store is about to change.
pub(crate) fn remove(disk: &dyn Disk, root: &Path) -> io::Result<()> {
    match disk.remove_file(&path(root)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
