//! The `checkpoint` file: how far log, queues and index are known to be on the device. 4096 bytes, Apache's layout.
//!
//! It never claims more than was synced before it was written. A missing or short file reads as zeros, which only makes recovery
//! look at more of the log.

use std::io;
use std::path::Path;

use crate::disk::{Disk, Mode};

/// Size of the file.
pub const CHECKPOINT_BYTES: usize = 4096;

/// The seven numbers, big-endian, at the start of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Store time of the newest record synced in the log.
    pub log_timestamp: i64,
    /// Store time of the newest record whose queue entry is synced.
    pub queue_timestamp: i64,
    /// Store time of the newest record in an index file that is full and synced. After an unclean stop Apache's broker
    /// throws away index files that end later and indexes the log again from this time on, so it must not claim any
    /// part of the file that is still being filled.
    pub index_timestamp: i64,
    /// Replication's (kept as found).
    pub master_flushed_offset: i64,
    /// Replication's (kept as found).
    pub confirm_offset: i64,
    /// Position of the newest record whose queue entry is synced.
    pub queue_position: i64,
    /// Store time of the newest record whose index entries are synced (ours alone; Apache leaves it as it is).
    pub indexed_timestamp: i64,
}

impl Checkpoint {
    fn decode(bytes: &[u8; 56]) -> Checkpoint {
        let long = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            i64::from_be_bytes(word)
        };
        Checkpoint {
            log_timestamp: long(0),
            queue_timestamp: long(8),
            index_timestamp: long(16),
            master_flushed_offset: long(24),
            confirm_offset: long(32),
            queue_position: long(40),
            indexed_timestamp: long(48),
        }
    }

    pub(crate) fn encode(&self) -> [u8; 56] {
        let mut bytes = [0; 56];
        let longs = [
            self.log_timestamp,
            self.queue_timestamp,
            self.index_timestamp,
            self.master_flushed_offset,
            self.confirm_offset,
            self.queue_position,
            self.indexed_timestamp,
        ];
        for (at, long) in longs.iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&long.to_be_bytes());
        }
        bytes
    }

    /// Reads the file; zeros for what is not there.
    pub fn load(disk: &dyn Disk, path: &Path) -> io::Result<Checkpoint> {
        let mut bytes = [0; 56];
        match disk.open(path, Mode::Read) {
            Ok(file) => {
                file.read_at(0, &mut bytes)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(Checkpoint::decode(&bytes))
    }

    /// Writes and syncs the file. The numbers share one sector, so they are replaced together.
    pub fn save(&self, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        let file = disk.open(path, Mode::Create)?;
        if file.len()? < CHECKPOINT_BYTES as u64 {
            file.set_len(CHECKPOINT_BYTES as u64)?;
        }
        file.write_at(0, &self.encode())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn numbers_survive_and_a_short_file_reads_as_zeros() {
        let disk = SimDisk::new();
        let path = Path::new("/checkpoint");
        assert_eq!(Checkpoint::load(&disk, path).unwrap(), Checkpoint::default());
        let checkpoint = Checkpoint { log_timestamp: 1, queue_timestamp: 2, queue_position: -3, ..Default::default() };
        checkpoint.save(&disk, path).unwrap();
        assert_eq!(Checkpoint::load(&disk, path).unwrap(), checkpoint);
        let bytes = disk.read_file(path).unwrap();
        assert_eq!(bytes.len(), CHECKPOINT_BYTES);
        assert_eq!(bytes[8..16], 2i64.to_be_bytes());
    }
}
