//! The disk behind the store: a small trait, the machine's own file system, and a simulated disk that fails by seed.
//!
//! Promises of every implementation: `write_at` writes all or returns an error (a prefix may then be there); bytes written
//! are read back at once by everybody; only after `sync_data` do they survive a power cut; names survive one only after
//! `sync_dir` of their directory. The fault model of [`SimDisk`] is written above it.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rustix::fs::{AtFlags, FlockOperation, OFlags, SeekFrom};

use crate::guard::Map;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Must exist; for reading.
    Read,
    /// Must exist; for reading and writing.
    Write,
    /// Made when missing; for reading and writing.
    Create,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    pub name: String,
    pub is_dir: bool,
}

/// Space of the file system below a path, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub total: u64,
    pub free: u64,
}

/// Tells the size of a file; see [`Disk::file_lens_below`].
pub type FileLens<'a> = Box<dyn Fn(&str) -> io::Result<u64> + Send + Sync + 'a>;

/// An open file. Positions are explicit, so it may be shared between threads.
pub trait DiskFile: Send + Sync {
    /// Reads until `buffer` is full or the file ends; returns how much.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes everything or fails (then a prefix may have been written).
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The same where `zeros` zeros follow that will be overwritten soon; whether they are written too does not matter.
    fn write_padded_at(&self, offset: u64, bytes: &[u8], _zeros: usize) -> io::Result<()> {
        self.write_at(offset, bytes)
    }
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True for a file without bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros, unallocated where the file system can).
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Makes bytes and size survive a power cut.
    fn sync_data(&self) -> io::Result<()>;
    /// Waits until the device has taken a range, which may still be lost in a power cut. An error is one of the device's, and
    /// no later call on this open file tells it again.
    fn write_back(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
    /// First offset at or after `offset` that may hold something else than zeros; `None`: only zeros up to the end.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// Takes blocks for a range that will be written soon; its bytes stay zeros and the size stays. Maybe not supported.
    fn reserve(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
    /// Tells the system that this range will be read soon.
    fn will_need(&self, _offset: u64, _bytes: u64) {}
    /// A read-only map of the whole file, where the disk can; otherwise callers use `read_at`.
    fn map(&self) -> Option<Map> {
        None
    }
}

/// A file system.
pub trait Disk: Send + Sync {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;
    /// Entries of a directory in no order; an absent directory is empty.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    fn exists(&self, path: &Path) -> bool;
    /// Size of a file, without opening it.
    fn file_len(&self, path: &Path) -> io::Result<u64>;
    /// Sizes of many files below `dir`, by their paths from there: shorter ones, so that each costs less.
    fn file_lens_below<'a>(&'a self, dir: &'a Path) -> io::Result<FileLens<'a>> {
        Ok(Box::new(move |path| self.file_len(&dir.join(path))))
    }
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory with everything in it; an absent one is fine.
    fn remove_tree(&self, dir: &Path) -> io::Result<()>;
    /// Atomic, replaces what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in `dir` survive a power cut.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes everything on the file system of `root` survive a power cut.
    fn sync_all(&self, root: &Path) -> io::Result<()>;
    fn space(&self, path: &Path) -> io::Result<Space>;
    /// Locks the file against other processes, Apache's brokers included; `WouldBlock` when somebody has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>>;
}

// ---------------------------------------------------------------------------------------------------------------- real

/// The machine's own file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

struct RealFile(File);

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.0.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn write_padded_at(&self, offset: u64, bytes: &[u8], zeros: usize) -> io::Result<()> {
        let padding = &ZEROS[..zeros.min(ZEROS.len())];
        // A disk that is too full for the zeros may have room for the bytes.
        match rustix::io::pwritev(&self.0, &[IoSlice::new(bytes), IoSlice::new(padding)], offset) {
            Ok(done) if done >= bytes.len() => Ok(()),
            Ok(done) => self.write_at(offset + done as u64, &bytes[done..]),
            Err(_) => self.write_at(offset, bytes),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write_back(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let whole = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        // SAFETY: the descriptor is open as long as `self.0`; nothing in memory is handed over.
        let result = unsafe { libc::sync_file_range(self.0.as_raw_fd(), offset as i64, bytes as i64, whole) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A system or file system that has no such thing.
            Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE) => self.sync_data(),
            _ => Err(error),
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A file system without holes: everything may be data.
            Err(rustix::io::Errno::INVAL) => Ok((offset < self.len()?).then_some(offset)),
            Err(e) => Err(e.into()),
        }
    }

    fn reserve(&self, offset: u64, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::KEEP_SIZE, offset, bytes)?)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        let _ = rustix::fs::fadvise(&self.0, offset, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::WillNeed);
    }

    fn map(&self) -> Option<Map> {
        Map::of(&self.0)
    }
}

/// POSIX locks do not exclude the own process, so paths locked here are remembered beside them.
fn own_locks() -> MutexGuard<'static, HashSet<(u64, u64)>> {
    static LOCKS: OnceLock<Mutex<HashSet<(u64, u64)>>> = OnceLock::new();
    LOCKS.get_or_init(Default::default).lock().unwrap_or_else(|e| e.into_inner())
}

struct RealLock {
    id: (u64, u64),
    _file: File,
}

impl Drop for RealLock {
    fn drop(&mut self) {
        own_locks().remove(&self.id);
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(mode != Mode::Read).create(mode == Mode::Create);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut out = Vec::new();
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            let is_dir = if kind.is_symlink() { entry.path().is_dir() } else { kind.is_dir() };
            out.push(DirEntry { name: entry.file_name().to_string_lossy().into_owned(), is_dir });
        }
        Ok(out)
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn file_lens_below<'a>(&'a self, dir: &'a Path) -> io::Result<FileLens<'a>> {
        let dir = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
        Ok(Box::new(move |path| Ok(rustix::fs::statat(&dir, path, AtFlags::empty())?.st_size as u64)))
    }

    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn sync_all(&self, root: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(root)?)?)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(path)?;
        // As `df` counts: blocks kept for root are neither used nor free.
        let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
        let total = stat.f_blocks.saturating_sub(reserved) * stat.f_frsize;
        Ok(Space { total, free: stat.f_bavail * stat.f_frsize })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>> {
        let fd = rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC,
            rustix::fs::Mode::from_raw_mode(0o644),
        )?;
        let file = File::from(fd);
        let meta = file.metadata()?;
        let id = (meta.dev(), meta.ino());
        let mut own = own_locks();
        if own.contains(&id) {
            // Closing any descriptor of the file would drop the lock this process holds: leave this one open.
            std::mem::forget(file);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match rustix::fs::fcntl_lock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(e) => return Err(e.into()),
        }
        file.write_all_at(b"lock", 0)?;
        own.insert(id);
        Ok(Box::new(RealLock { id, _file: file }))
    }
}

// ----------------------------------------------------------------------------------------------------------- simulated

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

/// A disk in memory that loses, tears and refuses, by seed.
///
/// # Fault model
/// - **Process killed**: drop the store, open it again: every write is still there (the system's page cache survives).
/// - **Power cut** ([`SimDisk::power_cut`]): of each 4 KiB page written since its file's last successful sync, by the
///   seed: all of it reached the device, none of it, or some of its 512 B sectors (torn). Pages are independent, so a later
///   page may be there and an earlier one not. Sizes set since the sync are kept or not. Names made, moved or removed since the
///   directory's sync: of each directory's changes a prefix happened.
/// - **Bit flips** ([`SimDisk::flip_bit`]): one bit of what is stored changes, silently.
/// - **ENOSPC** ([`SimDisk::set_capacity`]): a page that needs new space beyond the capacity is not written; the pages
///   before it in the same write are.
/// - **EIO** ([`SimDisk::fail_writes`], [`SimDisk::fail_syncs`]): that write changes nothing. A failed sync drops the dirty marks as
///   Linux does: those pages are still read back, but no later sync writes them.
/// - **Paths that fail** ([`SimDisk::fail_reads`], [`SimDisk::fail_opens`], [`SimDisk::fail_removes`]): bad sectors, no
///   descriptors left, files that must not be removed.
/// - **Too many open files** ([`SimDisk::open_nothing`]): no file, and no directory to sync or to list, can be opened.
/// - **A slow device** ([`SimDisk::hold_syncs`]): syncs of files take until they are let go.
/// - Not modelled: wrong reads that heal themselves, writes that land at another offset.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Sim>>);

#[derive(Default)]
struct Sim {
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, Node>,
    names_durable: BTreeMap<PathBuf, Node>,
    changes: Vec<Change>,
    locks: HashSet<PathBuf>,
    capacity: Option<u64>,
    fail_writes: bool,
    fail_syncs: bool,
    fail_reads: Option<String>,
    fail_opens: Option<String>,
    fail_removes: Option<String>,
    opens_nothing: bool,
    hold_syncs: bool,
    writes: u64,
    syncs: u64,
    /// After so many more writes, syncs, removals or renames nothing happens any more: the moment of a crash.
    stop_after: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Debug, Clone)]
enum Change {
    Make(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
}

type Page = Box<[u8; PAGE as usize]>;

#[derive(Default)]
struct Inode {
    len: u64,
    pages: BTreeMap<u64, Page>,
    durable_len: u64,
    durable: BTreeMap<u64, Page>,
    dirty: BTreeSet<u64>,
}

struct SimFile {
    sim: Arc<Mutex<Sim>>,
    inode: u64,
    path: PathBuf,
    writable: bool,
}

/// Small generator for tests and the simulated disk (splitmix64): the seed is the whole story.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end` (0 for an `end` of 0).
    pub fn below(&mut self, end: u64) -> u64 {
        if end == 0 {
            0
        } else {
            self.next_u64() % end
        }
    }
}

impl SimDisk {
    /// An empty disk without faults.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    fn sim(&self) -> MutexGuard<'_, Sim> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Cuts the power and turns it on again; see the fault model. Locks are gone, faults are off.
    pub fn power_cut(&self, seed: u64) {
        let mut random = Random(seed);
        let sim = &mut *self.sim();
        let mut ids: Vec<u64> = sim.inodes.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(inode) = sim.inodes.get_mut(&id) {
                inode.power_cut(&mut random);
            }
        }
        let mut names = std::mem::take(&mut sim.names_durable);
        let mut cut_off: HashSet<PathBuf> = HashSet::new();
        for change in std::mem::take(&mut sim.changes) {
            let dirs = change.dirs();
            if dirs.iter().any(|d| cut_off.contains(d)) || random.below(3) == 0 {
                cut_off.extend(dirs);
            } else {
                apply(&mut names, &change);
            }
        }
        // A file whose directory did not survive is gone too.
        let known: Vec<PathBuf> = names.keys().cloned().collect();
        for path in known {
            let orphan = path.ancestors().skip(1).any(|a| a.parent().is_some() && !names.contains_key(a));
            if orphan {
                names.remove(&path);
            }
        }
        sim.names = names.clone();
        sim.names_durable = names;
        sim.restart();
    }

    /// Kills the process: everything written stays, locks go, faults are off.
    pub fn kill(&self) {
        self.sim().restart();
    }

    /// Inverts one bit of what is stored at `offset`.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) {
        let sim = &mut *self.sim();
        if let Some(Node::File(id)) = sim.names.get(path) {
            if let Some(inode) = sim.inodes.get_mut(id) {
                for pages in [&mut inode.pages, &mut inode.durable] {
                    if let Some(page) = pages.get_mut(&(offset / PAGE)) {
                        page[(offset % PAGE) as usize] ^= 1 << (bit % 8);
                    }
                }
            }
        }
    }

    /// Space for file contents in bytes (pages of 4 KiB); `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.sim().capacity = bytes;
    }

    /// Space in use in bytes.
    pub fn used(&self) -> u64 {
        self.sim().used()
    }

    /// From now on writes fail with EIO, or no longer.
    pub fn fail_writes(&self, fail: bool) {
        self.sim().fail_writes = fail;
    }

    /// From now on syncs fail with EIO, or no longer.
    pub fn fail_syncs(&self, fail: bool) {
        self.sim().fail_syncs = fail;
    }

    /// From now on reading files whose path contains this fails with EIO; `None`: no longer.
    pub fn fail_reads(&self, part: Option<&str>) {
        self.sim().fail_reads = part.map(str::to_owned);
    }

    /// From now on opening them for reading fails with EMFILE.
    pub fn fail_opens(&self, part: Option<&str>) {
        self.sim().fail_opens = part.map(str::to_owned);
    }

    /// From now on removing them fails with EPERM.
    pub fn fail_removes(&self, part: Option<&str>) {
        self.sim().fail_removes = part.map(str::to_owned);
    }

    /// From now on opening anything, also a directory to sync or list it, fails with EMFILE, or no longer.
    pub fn open_nothing(&self, nothing: bool) {
        self.sim().opens_nothing = nothing;
    }

    /// From now on a file's sync does not end, or no longer: a device that is very busy.
    pub fn hold_syncs(&self, hold: bool) {
        self.sim().hold_syncs = hold;
    }

    /// After `operations` more writes, syncs, removals and renames each further one fails with EIO and changes nothing: the crash
    /// comes there.
    pub fn stop_after(&self, operations: u64) {
        self.sim().stop_after = Some(operations);
    }

    /// Writes and syncs so far.
    pub fn operations(&self) -> u64 {
        let sim = self.sim();
        sim.writes + sim.syncs
    }

    /// All of a file's bytes, for tests that look at them.
    pub fn read_file(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.open(path, Mode::Read).ok()?;
        let mut bytes = vec![0; file.len().ok()? as usize];
        file.read_at(0, &mut bytes).ok()?;
        Some(bytes)
    }
}

impl Change {
    /// The directories it changes.
    fn dirs(&self) -> Vec<PathBuf> {
        let parent = |path: &PathBuf| path.parent().unwrap_or(Path::new("/")).to_path_buf();
        match self {
            Change::Make(path, _) | Change::Remove(path) => vec![parent(path)],
            Change::Rename(from, to) => vec![parent(from), parent(to)],
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &Change) {
    match change {
        Change::Make(path, node) => {
            names.insert(path.clone(), *node);
        }
        Change::Remove(path) => {
            names.remove(path);
        }
        Change::Rename(from, to) => {
            let moved: Vec<PathBuf> = names.keys().filter(|p| p.starts_with(from)).cloned().collect();
            for path in moved {
                if let (Some(node), Ok(rest)) = (names.remove(&path), path.strip_prefix(from)) {
                    let target = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    names.insert(target, node);
                }
            }
        }
    }
}

impl Sim {
    fn restart(&mut self) {
        self.locks.clear();
        self.fail_writes = false;
        self.fail_syncs = false;
        self.opens_nothing = false;
        self.stop_after = None;
    }

    fn used(&self) -> u64 {
        let named: HashSet<u64> =
            self.names.values().filter_map(|n| if let Node::File(id) = n { Some(*id) } else { None }).collect();
        self.inodes.iter().filter(|(id, _)| named.contains(id)).map(|(_, i)| i.pages.len() as u64 * PAGE).sum()
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    fn may_open(&self) -> io::Result<()> {
        if self.opens_nothing {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        if let Some(left) = self.stop_after.as_mut() {
            if *left == 0 {
                return Err(eio());
            }
            *left -= 1;
        }
        Ok(())
    }
}

fn eio() -> io::Error {
    rustix::io::Errno::IO.into()
}

fn blank() -> Page {
    Box::new([0u8; PAGE as usize])
}

impl Inode {
    fn power_cut(&mut self, random: &mut Random) {
        if self.len != self.durable_len && random.below(2) == 0 {
            self.durable_len = self.len;
        }
        for number in std::mem::take(&mut self.dirty) {
            let fresh = self.pages.get(&number).cloned();
            match random.below(3) {
                0 => {}
                1 => match fresh {
                    Some(page) => {
                        self.durable.insert(number, page);
                    }
                    None => {
                        self.durable.remove(&number);
                    }
                },
                _ => {
                    let fresh = fresh.unwrap_or_else(blank);
                    let old = self.durable.entry(number).or_insert_with(blank);
                    for sector in 0..PAGE as usize / SECTOR {
                        if random.below(2) == 0 {
                            let range = sector * SECTOR..(sector + 1) * SECTOR;
                            old[range.clone()].copy_from_slice(&fresh[range]);
                        }
                    }
                }
            }
        }
        self.len = self.durable_len;
        let len = self.len;
        cut_pages(&mut self.durable, len);
        self.pages = self.durable.clone();
    }
}

fn cut_pages(pages: &mut BTreeMap<u64, Page>, len: u64) {
    pages.split_off(&len.div_ceil(PAGE));
    if len % PAGE > 0 {
        if let Some(page) = pages.get_mut(&(len / PAGE)) {
            page[(len % PAGE) as usize..].fill(0);
        }
    }
}

fn named(part: &Option<String>, path: &Path) -> bool {
    part.as_ref().is_some_and(|part| path.to_string_lossy().contains(part.as_str()))
}

impl SimFile {
    fn with<R>(&self, act: impl FnOnce(&mut Sim) -> R) -> R {
        act(&mut self.sim.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|sim| {
            if named(&sim.fail_reads, &self.path) {
                return Err(eio());
            }
            let inode = &sim.inodes[&self.inode];
            let wanted = inode.len.saturating_sub(offset).min(buffer.len() as u64) as usize;
            let mut done = 0;
            while done < wanted {
                let at = offset + done as u64;
                let within = (at % PAGE) as usize;
                let n = (PAGE as usize - within).min(wanted - done);
                match inode.pages.get(&(at / PAGE)) {
                    Some(page) => buffer[done..done + n].copy_from_slice(&page[within..within + n]),
                    None => buffer[done..done + n].fill(0),
                }
                done += n;
            }
            Ok(wanted)
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|sim| {
            if !self.writable {
                return Err(rustix::io::Errno::BADF.into());
            }
            sim.writes += 1;
            sim.step()?;
            if sim.fail_writes {
                return Err(eio());
            }
            let mut room = sim.capacity.map(|c| c.saturating_sub(sim.used()) / PAGE);
            let Some(inode) = sim.inodes.get_mut(&self.inode) else { return Err(eio()) };
            let mut done = 0;
            while done < bytes.len() {
                let at = offset + done as u64;
                let within = (at % PAGE) as usize;
                let n = (PAGE as usize - within).min(bytes.len() - done);
                let number = at / PAGE;
                if !inode.pages.contains_key(&number) {
                    match room.as_mut() {
                        Some(0) => return Err(rustix::io::Errno::NOSPC.into()),
                        Some(pages) => *pages -= 1,
                        None => {}
                    }
                }
                let page = inode.pages.entry(number).or_insert_with(blank);
                page[within..within + n].copy_from_slice(&bytes[done..done + n]);
                inode.dirty.insert(number);
                done += n;
                inode.len = inode.len.max(at + n as u64);
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|sim| Ok(sim.inodes[&self.inode].len))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.with(|sim| {
            sim.writes += 1;
            sim.step()?;
            if sim.fail_writes {
                return Err(eio());
            }
            let Some(inode) = sim.inodes.get_mut(&self.inode) else { return Err(eio()) };
            if bytes < inode.len {
                let first = bytes / PAGE;
                let gone: Vec<u64> = inode.pages.range(first..).map(|(n, _)| *n).collect();
                inode.dirty.extend(gone);
                cut_pages(&mut inode.pages, bytes);
            }
            inode.len = bytes;
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.with(|sim| sim.hold_syncs) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.with(|sim| {
            sim.syncs += 1;
            sim.step()?;
            let fail = sim.fail_syncs;
            let Some(inode) = sim.inodes.get_mut(&self.inode) else { return Err(eio()) };
            sync_inode(inode, fail)
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.with(|sim| {
            let inode = &sim.inodes[&self.inode];
            let next = inode.pages.range(offset / PAGE..).next().map(|(n, _)| (n * PAGE).max(offset));
            Ok(next.filter(|at| *at < inode.len))
        })
    }
}

fn sync_inode(inode: &mut Inode, fail: bool) -> io::Result<()> {
    let dirty = std::mem::take(&mut inode.dirty);
    if fail {
        return Err(eio());
    }
    for number in dirty {
        match inode.pages.get(&number) {
            Some(page) => {
                inode.durable.insert(number, page.clone());
            }
            None => {
                inode.durable.remove(&number);
            }
        }
    }
    inode.durable_len = inode.len;
    Ok(())
}

struct SimLock {
    sim: Arc<Mutex<Sim>>,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.sim.lock().unwrap_or_else(|e| e.into_inner()).locks.remove(&self.path);
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut sim = self.sim();
        sim.may_open()?;
        if mode == Mode::Read && named(&sim.fail_opens, path) {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let inode = match sim.names.get(path) {
            Some(Node::File(id)) => *id,
            Some(Node::Dir) => return Err(rustix::io::Errno::ISDIR.into()),
            None if mode == Mode::Create => {
                if path.parent().is_some_and(|p| p.parent().is_some() && !sim.names.contains_key(p)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                sim.next_inode += 1;
                let id = sim.next_inode;
                sim.inodes.insert(id, Inode::default());
                sim.change(Change::Make(path.to_path_buf(), Node::File(id)));
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile { sim: self.0.clone(), inode, path: path.into(), writable: mode != Mode::Read }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let sim = self.sim();
        sim.may_open()?;
        let entry = |(path, node): (&PathBuf, &Node)| {
            (path.parent() == Some(dir)).then(|| DirEntry {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                is_dir: *node == Node::Dir,
            })
        };
        Ok(sim.names.iter().filter_map(entry).collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.sim().names.contains_key(path)
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        self.open(path, Mode::Read)?.len()
    }

    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        let mut missing: Vec<&Path> = dir.ancestors().take_while(|d| !sim.names.contains_key(*d)).collect();
        missing.retain(|d| d.parent().is_some());
        for path in missing.into_iter().rev() {
            sim.change(Change::Make(path.to_path_buf(), Node::Dir));
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        if named(&sim.fail_removes, path) {
            return Err(rustix::io::Errno::PERM.into());
        }
        if !matches!(sim.names.get(path), Some(Node::File(_))) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sim.step()?;
        sim.change(Change::Remove(path.to_path_buf()));
        Ok(())
    }

    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        let inside: Vec<PathBuf> = sim.names.keys().filter(|p| p.starts_with(dir)).cloned().collect();
        for path in inside.into_iter().rev() {
            sim.step()?;
            sim.change(Change::Remove(path));
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut sim = self.sim();
        if !sim.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sim.step()?;
        sim.change(Change::Rename(from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let sim = &mut *self.sim();
        sim.may_open()?;
        sim.syncs += 1;
        sim.step()?;
        if sim.fail_syncs {
            return Err(eio());
        }
        // As a journal does: everything that happened before the directory's last change goes with it.
        let last = sim.changes.iter().rposition(|c| c.dirs().iter().any(|d| dir.starts_with(d)));
        for change in sim.changes.drain(..last.map_or(0, |l| l + 1)) {
            apply(&mut sim.names_durable, &change);
        }
        Ok(())
    }

    fn sync_all(&self, _root: &Path) -> io::Result<()> {
        let sim = &mut *self.sim();
        sim.may_open()?;
        sim.syncs += 1;
        sim.step()?;
        let fail = sim.fail_syncs;
        let mut result = Ok(());
        for inode in sim.inodes.values_mut() {
            result = result.and(sync_inode(inode, fail));
        }
        if !fail {
            sim.changes.clear();
            sim.names_durable = sim.names.clone();
        }
        result
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let sim = self.sim();
        let total = sim.capacity.unwrap_or(1 << 50);
        Ok(Space { total, free: total.saturating_sub(sim.used()) })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send>> {
        self.open(path, Mode::Create)?;
        if !self.sim().locks.insert(path.to_path_buf()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { sim: self.0.clone(), path: path.to_path_buf() }))
    }
}
