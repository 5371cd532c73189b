//! Maps of files that may fail to be read.
//!
//! Where a device cannot read a page of a mapped file, or somebody has cut the file, looking there raises SIGBUS, which would
//! end the process: one bad sector would cost the store. So a handler puts a page of zeros in the place of such a page, if it is
//! one of our maps, and the look goes on: zeros are no record and no queue entry. Who copies asks [`Map::is_damaged`]
//! afterwards, because something may begin in a whole page and end in a lost one. The page is zeros until the map goes.
//!
//! # Safety argument
//! - The handler does nothing but atomic loads and stores in tables of fixed place, `mmap`, `sigaction` and `raise`: no lock, no
//!   memory from the allocator, `errno` left as it was. On Linux these are plain system calls.
//! - It replaces pages only inside ranges of the table. A range is in it while its [`Map`] lives, and everybody who looks
//!   through a map borrows it, so a range cannot go while a fault in it is handled. Entries that change meanwhile are
//!   other maps'; the start is read again behind the rest, so no half-changed entry is believed.
//! - A replaced page stays inside the map, so the map's own `munmap` takes it down with the others. Maps are read-only:
//!   nothing is written to the page that the file would miss.
//! - Any other SIGBUS (somebody else's memory, or sent by `kill`) gets what it would have got without us: the action that
//!   was there before, or the default, which ends the process.
//!
//! The handler is set with the first map. Whoever sets another one later (Python's `faulthandler` when it is enabled late) takes the
//! guard away and nothing else: a fault ends the process then, as it would have without it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, OnceLock};

/// Maps there can be in a process; more are not made, and their files are read instead.
const MAPS_MAX: usize = 1024;
/// Names kept of maps that are gone and were not asked for.
const GONE_MAX: usize = 100;
const FREE: usize = 0;
const TAKEN: usize = 1;
const WORD_BITS: usize = usize::BITS as usize;

/// One map, as the handler sees it.
struct Slot {
    /// Address of its first byte; [`FREE`], or [`TAKEN`] while it is filled in.
    start: AtomicUsize,
    end: AtomicUsize,
    /// A bit a page: zeros are in its place.
    lost: AtomicPtr<AtomicUsize>,
    hit: AtomicBool,
}

#[allow(clippy::declare_interior_mutable_const)] // each use is to be a new one
const NO_MAP: Slot = Slot {
    start: AtomicUsize::new(FREE),
    end: AtomicUsize::new(0),
    lost: AtomicPtr::new(ptr::null_mut()),
    hit: AtomicBool::new(false),
};
static SLOTS: [Slot; MAPS_MAX] = [NO_MAP; MAPS_MAX];
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
/// Some page was lost since the process began.
static HIT: AtomicBool = AtomicBool::new(false);
/// Some map has lost pages and that was not fetched by [`take_lines`].
static UNSAID: AtomicBool = AtomicBool::new(false);
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static NAMES: Mutex<Names> = Mutex::new(Names { live: BTreeMap::new(), gone: Vec::new() });

/// Which files the maps are of, for those who read the log.
struct Names {
    /// By slot; the flag says that it was said.
    live: BTreeMap<usize, (PathBuf, bool)>,
    gone: Vec<PathBuf>,
}

fn names() -> MutexGuard<'static, Names> {
    NAMES.lock().unwrap_or_else(|e| e.into_inner())
}

/// True if a page of any map was lost since the process began; if not, nobody needs to look closer.
#[inline]
pub(crate) fn was_hit() -> bool {
    HIT.load(Ordering::Relaxed)
}

/// A line for the log for each map of a file below `root` that has lost pages, once.
pub(crate) fn take_lines(root: &Path) -> Vec<String> {
    if !UNSAID.swap(false, Ordering::AcqRel) {
        return Vec::new();
    }
    let root = fs::canonicalize(root).unwrap_or_else(|_| root.into());
    let mut names = names();
    let (mut paths, others) =
        std::mem::take(&mut names.gone).into_iter().partition::<Vec<_>, _>(|p| p.starts_with(&root));
    let mut rest = !others.is_empty();
    names.gone = others;
    for (number, (path, said)) in &mut names.live {
        if *said || !SLOTS[*number].hit.load(Ordering::Acquire) {
            continue;
        }
        if path.starts_with(&root) {
            *said = true;
            paths.push(path.clone());
        } else {
            rest = true;
        }
    }
    if rest {
        UNSAID.store(true, Ordering::Release); // another store's, which will ask
    }
    paths.iter().map(|path| format!("{} cannot be read in places: what lies there is lost", path.display())).collect()
}

/// A read-only map of a whole file.
pub struct Map {
    // In this order: the slot first, so that no fault is taken for ours when the range is somebody else's.
    slot: Held,
    map: memmap2::Mmap,
}

struct Held {
    number: usize,
    lost: Box<[AtomicUsize]>,
}

impl Map {
    /// Maps the file; `None` when that is not possible.
    pub(crate) fn of(file: &File) -> Option<Map> {
        install();
        // SAFETY: the store's files are cut only while recovering, before anything is mapped; the lock file keeps
        // other brokers out. Bytes change under the map only beyond the end that readers are given, and where pages are
        // lost: then whoever looks gets some bytes, and refuses them.
        let map = unsafe { memmap2::Mmap::map(file) }.ok().filter(|map| !map.is_empty())?;
        let start = map.as_ptr() as usize;
        let pages = map.len().div_ceil(PAGE_BYTES.load(Ordering::Relaxed));
        let lost: Box<[AtomicUsize]> = (0..pages.div_ceil(WORD_BITS)).map(|_| AtomicUsize::new(0)).collect();
        let number = (0..MAPS_MAX).find(|number| {
            let start = &SLOTS[*number].start;
            start.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_else(|_| "a file".into());
        names().live.insert(number, (path, false));
        let slot = &SLOTS[number];
        slot.hit.store(false, Ordering::Relaxed);
        slot.lost.store(lost.as_ptr().cast_mut(), Ordering::Relaxed);
        slot.end.store(start + map.len(), Ordering::Release);
        slot.start.store(start, Ordering::Release);
        Some(Map { slot: Held { number, lost }, map })
    }

    /// True if some of these bytes lie in a page that was lost when somebody looked at it.
    pub fn is_damaged(&self, from: usize, bytes: usize) -> bool {
        if bytes == 0 || !SLOTS[self.slot.number].hit.load(Ordering::Acquire) {
            return false;
        }
        let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
        let lost = |page: usize| {
            let word = self.slot.lost.get(page / WORD_BITS);
            word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % WORD_BITS)) != 0)
        };
        (from / page_bytes..=(from + bytes - 1) / page_bytes).any(lost)
    }
}

impl Deref for Map {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let slot = &SLOTS[self.number];
        let mut names = names();
        if let Some((path, false)) = names.live.remove(&self.number) {
            if slot.hit.load(Ordering::Acquire) && names.gone.len() < GONE_MAX {
                names.gone.push(path);
            }
        }
        drop(names);
        slot.end.store(0, Ordering::Release);
        slot.start.store(FREE, Ordering::Release);
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: `sysconf` and `sigaction` are called with valid arguments; a `sigaction` of zeros is one. The handler has the
        // signature that SA_SIGINFO asks for. SA_ONSTACK: it uses the alternate stack of threads that have one.
        unsafe {
            if let Some(bytes) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).ok().filter(|bytes| *bytes > 0) {
                PAGE_BYTES.store(bytes, Ordering::Relaxed);
            }
            let mut before: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), &mut before) != 0 || BEFORE.set(before).is_err() {
                return;
            }
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = handler as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut());
        }
    });
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system calls this with a valid `info`; `errno` is this thread's. All else is said at the head of this file.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        // Codes above zero are the system's own; others come with `kill` and have no address.
        let is_fault = (*info).si_code > 0;
        if !is_fault || !replace((*info).si_addr() as usize) {
            match BEFORE.get() {
                Some(before) => libc::sigaction(signal, before, ptr::null_mut()),
                None => libc::signal(signal, libc::SIG_DFL) as libc::c_int,
            };
            // A fault comes again by itself when its instruction does.
            if !is_fault {
                libc::raise(signal);
            }
        }
        *errno = saved;
    }
}

/// Puts a page of zeros where `address` is; false if that is in none of our maps.
fn replace(address: usize) -> bool {
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    for slot in &SLOTS {
        let start = slot.start.load(Ordering::Acquire);
        if start <= TAKEN || address < start || address >= slot.end.load(Ordering::Acquire) {
            continue;
        }
        let lost = slot.lost.load(Ordering::Acquire);
        if slot.start.load(Ordering::Acquire) != start {
            continue;
        }
        let page = (address - start) / page_bytes;
        let at = start + page * page_bytes;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the page lies inside a map of ours that is borrowed by who faulted, see the head of this file. `lost` has a bit
        // for each of its pages and lives as long as it.
        unsafe {
            if libc::mmap(at as *mut libc::c_void, page_bytes, libc::PROT_READ, flags, -1, 0) == libc::MAP_FAILED {
                return false;
            }
            (*lost.add(page / WORD_BITS)).fetch_or(1 << (page % WORD_BITS), Ordering::AcqRel);
        }
        slot.hit.store(true, Ordering::Release);
        HIT.store(true, Ordering::Release);
        UNSAID.store(true, Ordering::Release);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const PAGE: usize = 4096;

    /// A file of eight pages of ones, of which two are left once it is mapped.
    fn cut_file(dir: &tempfile::TempDir) -> (PathBuf, File) {
        let path = dir.path().join("cut");
        fs::write(&path, vec![1; 8 * PAGE]).unwrap();
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        (path, file)
    }

    #[test]
    fn a_lost_page_reads_as_zeros_and_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = cut_file(&dir);
        let map = Map::of(&file).unwrap();
        assert_eq!(map[5 * PAGE], 1);
        file.set_len(2 * PAGE as u64).unwrap();
        assert!(!map.is_damaged(0, 8 * PAGE), "nobody has looked");
        assert_eq!(map[PAGE..3 * PAGE], [vec![1; PAGE], vec![0; PAGE]].concat());
        assert!(map.is_damaged(2 * PAGE, 1) && map.is_damaged(0, 8 * PAGE) && was_hit());
        assert!(!map.is_damaged(0, 2 * PAGE) && !map.is_damaged(3 * PAGE, 5 * PAGE) && !map.is_damaged(2 * PAGE, 0));
        let readers: Vec<_> = std::thread::scope(|scope| {
            let sums = (0..4).map(|_| scope.spawn(|| map.iter().map(|byte| *byte as usize).sum::<usize>()));
            sums.collect::<Vec<_>>().into_iter().map(|sum| sum.join().unwrap()).collect()
        });
        assert_eq!(readers, [2 * PAGE; 4]);
        assert!(take_lines("/elsewhere".as_ref()).is_empty());
        let lines = take_lines(dir.path());
        assert!(lines.len() == 1 && lines[0].contains(path.to_str().unwrap()), "{lines:?}");
        drop(map);
        assert!(take_lines(dir.path()).is_empty());
        // Its slot is another's now, whose pages are all there.
        file.set_len(8 * PAGE as u64).unwrap();
        let map = Map::of(&file).unwrap();
        assert!(!map.is_damaged(0, 8 * PAGE) && map[2 * PAGE] == 0);
    }

    #[test]
    fn maps_without_a_slot_are_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = cut_file(&dir);
        let maps: Vec<Map> = (0..MAPS_MAX + 8).map_while(|_| Map::of(&file)).collect();
        assert!(maps.len() <= MAPS_MAX);
        drop(maps);
        assert!(Map::of(&file).is_some());
    }

    /// Runs one test of this file that is to be killed, in a process of its own.
    fn killed_in(test: &str) -> Option<i32> {
        let name = format!("guard::tests::{test}");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"])
            .output()
            .unwrap();
        child.status.signal()
    }

    #[test]
    fn other_faults_and_signals_end_the_process_as_ever() {
        assert_eq!(killed_in("a_fault_in_memory_that_is_not_ours"), Some(libc::SIGBUS));
        assert_eq!(killed_in("a_signal_that_somebody_sends"), Some(libc::SIGBUS));
    }

    #[test]
    #[ignore = "kills its process; other tests run it"]
    fn a_fault_in_memory_that_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = cut_file(&dir);
        let _ours = Map::of(&file).unwrap();
        // SAFETY: it is cut on purpose; the process ends where it is looked at.
        let others = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        file.set_len(0).unwrap();
        println!("{}", others[PAGE]);
    }

    #[test]
    #[ignore = "kills its process; other tests run it"]
    fn a_signal_that_somebody_sends() {
        let dir = tempfile::tempdir().unwrap();
        let (_, file) = cut_file(&dir);
        let _ours = Map::of(&file).unwrap();
        // The action before ours is Rust's own here, which takes the first one for itself and leaves the default behind.
        for _ in 0..2 {
            // SAFETY: a signal to this thread; the process ends.
            unsafe { libc::raise(libc::SIGBUS) };
        }
    }
}
