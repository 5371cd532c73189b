//! The message index: which records carry a key. Apache's hash files, several of them one after the other.
//!
//! ```text
//! header 40: begin time 8 | end time 8 | begin position 8 | end position 8 | slots in use 4 | count 4 (starts at 1)
//! slots × 4: number of the newest entry with that hash | entries × 20: hash 4 | position 8 | seconds 4 | previous 4
//! ```
//! Indexed are `topic#UNIQ_KEY`, `topic#KEY` for each word of `KEYS` and `topic#T#TAGS`, for all but rollback records.
//!
//! The file being filled lives in memory: its slot table (only pages in use count) and the entries the flusher has not
//! written yet. The flusher writes entries and header every second and the slots rarely, because slots can be rebuilt from the
//! entries, and are after an unclean stop. Nothing here is needed to keep messages: a lost index is rebuilt from the log.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, Mode};
use crate::memory::prefetch;
use crate::property::java_hash_on;

const HEADER_BYTES: u64 = 40;
const SLOT_BYTES: u64 = 4;
const ENTRY_BYTES: u64 = 20;
/// Slots are loaded, marked and written in pages of so many.
const PAGE_SLOTS: usize = 1024;
/// So many entries are read at a time when a file is repaired.
const BLOCK_ENTRIES: usize = 4096;
/// A search follows at most so many links in one file: a tag's chain can be millions long.
const STEPS_MAX: usize = 1 << 20;

type RawEntry = [u8; ENTRY_BYTES as usize];

/// Index hash of text: |Java's hash|, 0 for the one hash without a positive twin.
#[inline]
pub(crate) fn positive_hash(hash: i32) -> u32 {
    if hash == i32::MIN {
        0
    } else {
        hash.unsigned_abs()
    }
}

/// Java's hash of `topic#`, from which the hashes of a topic's keys continue.
pub(crate) fn prefix_hash(topic: &str) -> i32 {
    java_hash_on(java_hash_on(0, topic.as_bytes()), b"#")
}

/// One key of a record, ready to be put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyHash {
    pub hash: u32,
    pub position: u64,
    pub store_timestamp: i64,
}

/// Calls `each` with the hash of every key a record is found by.
#[inline]
pub(crate) fn each_hash(prefix: i32, known: &crate::property::Known, properties: &[u8], mut each: impl FnMut(u32)) {
    use crate::property::flag;
    if known.flags & (flag::UNIQ_KEY | flag::KEYS | flag::TAGS) == 0 {
        return;
    }
    if known.any(flag::UNIQ_KEY) {
        each(positive_hash(java_hash_on(prefix, known.uniq_key.of(properties))));
    }
    if known.any(flag::KEYS) {
        for key in known.keys.of(properties).split(|&b| b == b' ').filter(|k| !k.is_empty()) {
            each(positive_hash(java_hash_on(prefix, key)));
        }
    }
    let tags = known.tags.of(properties);
    if !tags.is_empty() {
        each(positive_hash(java_hash_on(java_hash_on(prefix, b"T#"), tags)));
    }
}

/// A file's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub begin_timestamp: i64,
    pub end_timestamp: i64,
    pub begin_position: u64,
    pub end_position: u64,
    pub slots_used: u32,
    /// Number of the next entry; entries count from 1.
    pub count: u32,
}

impl Header {
    fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Header {
        let long = |at: usize| crate::record::read_u64(bytes, at).unwrap_or(0);
        let int = |at: usize| crate::record::read_u32(bytes, at).unwrap_or(0);
        Header {
            begin_timestamp: long(0) as i64,
            end_timestamp: long(8) as i64,
            begin_position: long(16),
            end_position: long(24),
            slots_used: int(32),
            count: int(36).max(1),
        }
    }

    fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(&self.begin_timestamp.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.end_timestamp.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.begin_position.to_be_bytes());
        bytes[24..32].copy_from_slice(&self.end_position.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.slots_used.to_be_bytes());
        bytes[36..40].copy_from_slice(&self.count.to_be_bytes());
        bytes
    }

    /// True if a file can have this header. Nothing written yet is possible too.
    fn can_be(&self, geometry: &Geometry) -> bool {
        self.count <= 1
            || (self.count <= geometry.entries
                && self.slots_used < self.count
                && self.begin_position <= self.end_position
                && self.begin_timestamp > 0)
    }

    /// Whether a file may hold records of the time span (Apache's test, so that both find the same).
    fn covers(&self, begin_ms: i64, end_ms: i64) -> bool {
        let inside = |t: i64| t >= self.begin_timestamp && t <= self.end_timestamp;
        (begin_ms < self.begin_timestamp && end_ms > self.end_timestamp) || inside(begin_ms) || inside(end_ms)
    }
}

#[derive(Clone, Copy)]
struct Link {
    hash: u32,
    position: u64,
    seconds: i32,
    previous: u32,
}

impl Link {
    fn decode(entry: &RawEntry) -> Link {
        Link {
            hash: crate::record::read_u32(entry, 0).unwrap_or(0),
            position: crate::record::read_u64(entry, 4).unwrap_or(0),
            seconds: crate::record::read_u32(entry, 12).unwrap_or(0) as i32,
            previous: crate::record::read_u32(entry, 16).unwrap_or(0),
        }
    }
}

/// A slot table in anonymous memory, of which only touched pages exist; pages of an older file are read when first needed.
struct Slots {
    table: memmap2::MmapMut,
    /// One bit a page: it still has to be read from the file.
    unread: Vec<u64>,
    /// One bit a page: it differs from the file.
    dirty: Vec<u64>,
}

#[inline]
fn bit(bits: &[u64], at: usize) -> bool {
    bits[at / 64] & (1 << (at % 64)) != 0
}

impl Slots {
    fn new(slots: u32, in_file: bool) -> io::Result<Slots> {
        let pages = (slots as usize).div_ceil(PAGE_SLOTS);
        let words = pages.div_ceil(64);
        Ok(Slots {
            table: memmap2::MmapMut::map_anon(pages * PAGE_SLOTS * SLOT_BYTES as usize)?,
            unread: vec![if in_file { u64::MAX } else { 0 }; words],
            dirty: vec![0; words],
        })
    }

    #[inline]
    fn get(&self, slot: u32) -> u32 {
        let at = slot as usize * SLOT_BYTES as usize;
        let bytes = &self.table[at..at + 4];
        u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline]
    fn set(&mut self, slot: u32, value: u32) {
        let at = slot as usize * SLOT_BYTES as usize;
        self.table[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        let page = slot as usize / PAGE_SLOTS;
        self.dirty[page / 64] |= 1 << (page % 64);
    }

    #[inline]
    fn prefetch(&self, slot: u32) {
        let at = slot as usize * SLOT_BYTES as usize;
        prefetch(self.table.get(at..at + 1).unwrap_or(&[]));
    }

    #[inline]
    fn ensure_read(&mut self, slot: u32, file: &dyn DiskFile) {
        let page = slot as usize / PAGE_SLOTS;
        if bit(&self.unread, page) {
            self.read_page(page, file);
        }
    }

    #[cold]
    fn read_page(&mut self, page: usize, file: &dyn DiskFile) {
        let mut bytes = [0u8; PAGE_SLOTS * SLOT_BYTES as usize];
        let at = page * bytes.len();
        // A page that cannot be read costs the chains in it, no message.
        let _ = file.read_at(HEADER_BYTES + at as u64, &mut bytes);
        for (place, value) in self.table[at..at + bytes.len()].chunks_exact_mut(4).zip(bytes.chunks_exact(4)) {
            place.copy_from_slice(&[value[3], value[2], value[1], value[0]]);
            if cfg!(target_endian = "big") {
                place.reverse();
            }
        }
        self.unread[page / 64] &= !(1 << (page % 64));
    }

    fn clean(&self) -> bool {
        self.dirty.iter().all(|w| *w == 0)
    }
}

/// The file that is being filled.
pub(crate) struct Current {
    pub name: String,
    pub header: Header,
    file: Arc<dyn DiskFile>,
    slots: Slots,
    /// Entries up to this number are in the file.
    written: u32,
    /// Entries the flusher is writing just now, from `written` on. Bytes as they go to the file: putting them together there
    /// would cost a copy of all.
    writing: Arc<Vec<u8>>,
    /// Entries after those.
    pending: Vec<u8>,
    header_dirty: bool,
}

impl Current {
    fn entry(&self, geometry: &Geometry, number: u32, block: &mut Block) -> Option<RawEntry> {
        if number < self.written {
            return block.entry(geometry, self.file.as_ref(), number);
        }
        let at = (number - self.written) as usize * ENTRY_BYTES as usize;
        let rest = self.writing.get(at..).filter(|rest| !rest.is_empty());
        let rest = rest.or_else(|| self.pending.get(at - self.writing.len()..))?;
        rest.get(..ENTRY_BYTES as usize)?.try_into().ok()
    }

    fn has_work(&self) -> bool {
        !self.pending.is_empty() || self.header_dirty
    }
}

/// A block of entries read from a file, since chains of one key lie near each other.
#[derive(Default)]
struct Block {
    first: u32,
    bytes: Vec<u8>,
}

impl Block {
    const ENTRIES: u32 = 204;

    fn entry(&mut self, geometry: &Geometry, file: &dyn DiskFile, number: u32) -> Option<RawEntry> {
        let have = (self.bytes.len() / ENTRY_BYTES as usize) as u32;
        if number < self.first || number >= self.first + have {
            // Chains run backwards, so the block ends with the wanted entry.
            self.first = number.saturating_sub(Self::ENTRIES - 1);
            self.bytes.resize(Self::ENTRIES as usize * ENTRY_BYTES as usize, 0);
            let n = file.read_at(geometry.entry_at(self.first), &mut self.bytes).ok()?;
            self.bytes.truncate(n - n % ENTRY_BYTES as usize);
        }
        let at = (number - self.first) as usize * ENTRY_BYTES as usize;
        self.bytes.get(at..at + ENTRY_BYTES as usize)?.try_into().ok()
    }
}

/// Sizes of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub slots: u32,
    pub entries: u32,
}

impl Geometry {
    pub fn file_bytes(&self) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(self.entries) * ENTRY_BYTES
    }

    fn entry_at(&self, number: u32) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(number) * ENTRY_BYTES
    }
}

struct Older {
    name: String,
    header: Header,
    /// The header fits the file.
    sound: bool,
    file: Option<Arc<dyn DiskFile>>,
}

struct Usable {
    header: Header,
    slots: Slots,
    /// There was more, which makes no sense.
    damaged: bool,
}

/// Store time of the record at a position, if the log has it.
pub(crate) type TimeOf<'a> = &'a mut dyn FnMut(u64) -> Option<i64>;

/// What a search found; see [`Index::search`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IndexHits {
    /// Newest first; hash collisions are possible, so the caller compares the keys of the records.
    pub positions: Vec<u64>,
    pub last_update_timestamp: i64,
    pub last_update_position: u64,
}

/// Slot pages to write: file, offset, bytes, and the page to go on with.
type SlotPages = (Arc<dyn DiskFile>, u64, Vec<u8>, usize);

/// Work the flusher takes away and does without the lock.
pub(crate) struct Batch {
    pub file: Arc<dyn DiskFile>,
    first: u32,
    entries: Arc<Vec<u8>>,
    header: Header,
}

impl Batch {
    /// Writes entries, then header.
    pub fn write(&self, geometry: &Geometry) -> io::Result<()> {
        if !self.entries.is_empty() {
            self.file.write_at(geometry.entry_at(self.first), &self.entries)?;
        }
        self.file.write_at(0, &self.header.encode())
    }
}

/// The index: at most one file being filled, full ones waiting to be written out, older ones on disk.
pub(crate) struct Index {
    pub dir: PathBuf,
    pub geometry: Geometry,
    disk: Arc<dyn Disk>,
    older: VecDeque<Older>,
    /// Those that are none of the index's any more and still to be removed. New files have later names than all before.
    pub expired: VecDeque<PathBuf>,
    /// Full, not written out yet.
    full: VecDeque<Current>,
    current: Option<Current>,
    /// Buffer handed back by the flusher, so that a busy index does not allocate.
    spare: Vec<u8>,
    utc_offset_ms: i64,
    /// Set when a file could not be made; the reason is said once.
    pub broken: Option<String>,
}

impl Index {
    pub fn new(dir: PathBuf, geometry: Geometry, disk: Arc<dyn Disk>, utc_offset_ms: i64) -> Index {
        Index {
            dir,
            geometry,
            disk,
            older: VecDeque::new(),
            expired: VecDeque::new(),
            full: VecDeque::new(),
            current: None,
            spare: Vec::new(),
            utc_offset_ms,
            broken: None,
        }
    }

    /// Names and headers of the files on disk, and those whose size is wrong (to be set aside). After a clean stop (`clean`)
    /// every header has to fit its file, otherwise that of the file being filled may lag behind.
    pub fn load(&mut self, clean: bool) -> io::Result<Vec<(String, u64)>> {
        let mut names: Vec<String> =
            self.disk.list(&self.dir)?.into_iter().filter(|e| !e.is_dir).map(|e| e.name).collect();
        names.sort();
        let mut strange = Vec::new();
        for name in names {
            let file = self.disk.open(&self.dir.join(&name), Mode::Read)?;
            let bytes = file.len()?;
            if !is_index_name(&name) || bytes != self.geometry.file_bytes() {
                strange.push((name, bytes));
                continue;
            }
            let mut head = [0; HEADER_BYTES as usize];
            file.read_at(0, &mut head)?;
            let header = Header::decode(&head);
            let settled = clean || header.count == self.geometry.entries;
            let sound = header.can_be(&self.geometry) && (!settled || self.fits(&header, file.as_ref()));
            self.older.push_back(Older { name, header, sound, file: None });
        }
        Ok(strange)
    }

    /// True if the header speaks of this file: its last entry is the one that was put last. Two entries are read, so that it
    /// costs nothing however large the file is.
    fn fits(&self, header: &Header, file: &dyn DiskFile) -> bool {
        let entry = |number: u32| {
            let mut raw: RawEntry = [0; ENTRY_BYTES as usize];
            file.read_at(self.geometry.entry_at(number), &mut raw).is_ok().then_some(raw)
        };
        let ends = header.count == self.geometry.entries || entry(header.count) == Some([0; ENTRY_BYTES as usize]);
        let Some(last) = entry(header.count - 1).filter(|_| header.count > 1 && ends) else { return false };
        let last = Link::decode(&last);
        // The seconds of the first entry are counted from the file before.
        let seconds = (header.end_timestamp.wrapping_sub(header.begin_timestamp) / 1000).clamp(0, i64::from(i32::MAX));
        let in_time = header.count == 2 || i64::from(last.seconds) == seconds;
        last.position == header.end_position && in_time
    }

    /// After [`Index::load`]: true if all headers fit their files.
    pub fn is_sound(&self) -> bool {
        self.older.iter().all(|o| o.sound)
    }

    /// After [`Index::load`]: goes on filling the newest file, if it has room.
    pub fn resume(&mut self) -> io::Result<()> {
        let Some(last) = self.older.back() else { return Ok(()) };
        if last.header.count >= self.geometry.entries {
            return Ok(());
        }
        let file = self.disk.open(&self.dir.join(&last.name), Mode::Write)?;
        file.will_need(HEADER_BYTES, u64::from(self.geometry.slots) * SLOT_BYTES);
        let slots = Slots::new(self.geometry.slots, true)?;
        if let Some(last) = self.older.pop_back() {
            self.current = Some(Current {
                written: last.header.count,
                name: last.name,
                header: last.header,
                file,
                slots,
                writing: Arc::default(),
                pending: Vec::new(),
                header_dirty: false,
            });
        }
        Ok(())
    }

    /// After an unclean stop, or if a header does not fit: keeps the entries of records before `below`, which the scan of the
    /// log will not see again, as far as they make sense one after the other, and rebuilds header and slots from them. Full
    /// files that end before `below` are not looked at. True if entries before `below` were lost; what happened is in `lines`.
    pub fn repair(
        &mut self,
        below: u64,
        first_strange: Option<&str>,
        time_of: TimeOf<'_>,
        lines: &mut Vec<String>,
    ) -> io::Result<bool> {
        let entries = self.geometry.entries;
        let is_strange = |name: &str| first_strange.is_some_and(|first| name > first);
        let good =
            |o: &Older| o.sound && o.header.count >= entries && o.header.end_position < below && !is_strange(&o.name);
        let complete = self.older.iter().take_while(|o| good(o)).count();
        let suspicious: Vec<Older> = self.older.drain(complete..).collect();
        let mut broken_off = false;
        let mut lost = first_strange.is_some();
        let mut useless = Vec::new();
        for older in suspicious {
            let path = self.dir.join(&older.name);
            if broken_off || is_strange(&older.name) {
                useless.push(path);
                continue;
            }
            let file = self.disk.open(&path, Mode::Write)?;
            let Usable { header, slots, damaged } = self.usable_part(file.as_ref(), &older.header, below, time_of)?;
            let kept = header.count - 1;
            let other_begin = older.header.count > 1 && header.begin_timestamp != older.header.begin_timestamp;
            if damaged || (kept == 0 && !older.sound) {
                lost = true;
                // How many there were is not said: the header that knew it may be what is damaged.
                let part = match kept {
                    0 => "it is".to_string(),
                    _ => format!("what follows its entry {kept} is"),
                };
                lines.push(format!("index file {} is damaged: {part} made again from the log", older.name));
            } else if kept > 0 && (!older.sound || other_begin) {
                lines
                    .push(format!("index file {} has a damaged header: it is made again from its entries", older.name));
            }
            if header.count <= 1 {
                useless.push(path);
                broken_off = true;
                continue;
            }
            // Entries behind the kept ones must not come back when the count grows over them.
            file.set_len(self.geometry.entry_at(header.count))?;
            file.set_len(self.geometry.file_bytes())?;
            let current = Current {
                written: header.count,
                name: older.name,
                header,
                file,
                slots,
                writing: Arc::default(),
                pending: Vec::new(),
                header_dirty: true,
            };
            if header.count < entries {
                self.current = Some(current);
                broken_off = true;
                continue;
            }
            // Written at once, so that only one slot table is in memory at a time.
            self.full.push_back(current);
            while let Some(batch) = self.take_batch() {
                batch.write(&self.geometry)?;
                self.written(batch, true);
            }
            let mut page = 0;
            while let Some((file, at, bytes, next)) = self.take_slots(true, page) {
                file.write_at(at, &bytes)?;
                page = next;
            }
            if let Some(file) = self.retire_full() {
                file.sync_data()?;
            }
        }
        // The damaged one last: if this is interrupted, the next start sees that something is lost.
        for path in useless.into_iter().rev() {
            self.disk.remove_file(&path)?;
        }
        Ok(lost)
    }

    /// The entries of a file before `below`, up to the first that makes no sense.
    fn usable_part(&self, file: &dyn DiskFile, before: &Header, below: u64, time_of: TimeOf<'_>) -> io::Result<Usable> {
        let mut slots = Slots::new(self.geometry.slots, false)?;
        let mut header = Header { count: 1, slots_used: 0, end_position: 0, ..*before };
        let mut block = vec![0u8; BLOCK_ENTRIES * ENTRY_BYTES as usize];
        // The newest entry taken, and the header as it was without it.
        let mut newest: Option<(Header, Link)> = None;
        let mut damaged = false;
        'blocks: while header.count < self.geometry.entries {
            let Ok(n) = file.read_at(self.geometry.entry_at(header.count), &mut block) else {
                damaged = true;
                break;
            };
            if n < ENTRY_BYTES as usize {
                break;
            }
            for bytes in block[..n].chunks_exact(ENTRY_BYTES as usize) {
                if header.count >= self.geometry.entries {
                    break 'blocks;
                }
                let Ok(raw) = <&RawEntry>::try_from(bytes) else { break 'blocks };
                let link = Link::decode(raw);
                let zeros = bytes.iter().all(|b| *b == 0);
                if header.count == 1 && !zeros {
                    // Times are counted from the header's, which is that of the first record.
                    header.begin_timestamp = time_of(link.position).unwrap_or(before.begin_timestamp);
                }
                let slot = link.hash % self.geometry.slots;
                let sane = link.seconds >= 0
                    && link.previous == slots.get(slot)
                    && link.hash <= i32::MAX as u32
                    && header.begin_timestamp > 0;
                let late = link.position >= below;
                let early = newest.as_ref().is_some_and(|(_, newest)| link.position < newest.position);
                if zeros || !sane || late || early {
                    // One of the two positions is wrong. If it is that of the entry before, all up to it would be taken
                    // for indexed.
                    let doubtful = newest.filter(|_| early && !zeros);
                    let end = doubtful.map_or(header.end_position, |(without, _)| without.end_position);
                    let promised = header.count < before.count && !late;
                    damaged = promised || self.knows_more(file, header.count, end..below);
                    if let Some((without, newest)) = doubtful.filter(|_| damaged) {
                        slots.set(newest.hash % self.geometry.slots, newest.previous);
                        header = without;
                    }
                    break 'blocks;
                }
                newest = Some((header, link));
                if header.count == 1 {
                    header.begin_position = link.position;
                }
                if link.previous == 0 {
                    header.slots_used += 1;
                }
                slots.set(slot, header.count);
                header.end_position = link.position;
                header.end_timestamp = header.begin_timestamp + i64::from(link.seconds) * 1000;
                header.count += 1;
            }
        }
        // Seconds are rounded down; a header that ends in the same second knows better.
        if header.count >= before.count && (0..1000).contains(&before.end_timestamp.wrapping_sub(header.end_timestamp))
        {
            header.end_timestamp = before.end_timestamp;
        }
        Ok(Usable { header, slots, damaged })
    }

    /// True if an entry from `number` on speaks of a record in `span`, or cannot be read: what came before it is not the end.
    fn knows_more(&self, file: &dyn DiskFile, mut number: u32, span: std::ops::Range<u64>) -> bool {
        let mut block = vec![0u8; BLOCK_ENTRIES * ENTRY_BYTES as usize];
        while number < self.geometry.entries {
            let Ok(n) = file.read_at(self.geometry.entry_at(number), &mut block) else { return true };
            let entries = block[..n].chunks_exact(ENTRY_BYTES as usize).flat_map(<&RawEntry>::try_from);
            let mut put = entries.filter(|raw| raw.iter().any(|b| *b != 0)).peekable();
            if put.peek().is_none() {
                break;
            }
            if put.any(|raw| span.contains(&Link::decode(raw).position)) {
                return true;
            }
            number += BLOCK_ENTRIES as u32;
        }
        false
    }

    /// Forgets all files, written or not, so that they can be loaded again.
    pub fn forget_files(&mut self) {
        self.older.clear();
        self.full.clear();
        self.current = None;
    }

    /// Position of the newest record that is indexed; records after it are not.
    pub fn end_position(&self) -> Option<u64> {
        let newest = self.current.as_ref().or(self.full.back()).map(|c| c.header);
        newest.or(self.older.back().map(|o| o.header)).filter(|h| h.count > 1).map(|h| h.end_position)
    }

    /// True if there are no files at all.
    pub fn is_empty(&self) -> bool {
        self.older.is_empty() && self.full.is_empty() && self.current.is_none()
    }

    /// Asks the processor for the memory that putting this hash will touch.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        if let Some(current) = &self.current {
            current.slots.prefetch(hash % self.geometry.slots);
        }
    }

    /// Adds a key. Touches memory only, except when a new file begins (every 20 million keys).
    #[inline]
    pub fn put(&mut self, key: &KeyHash) {
        let full = match &self.current {
            Some(current) => current.header.count >= self.geometry.entries,
            None => true,
        };
        if full && !self.begin_file(key.store_timestamp) {
            return;
        }
        let Some(current) = self.current.as_mut() else { return };
        let slot = key.hash % self.geometry.slots;
        current.slots.ensure_read(slot, current.file.as_ref());
        let header = &mut current.header;
        let mut previous = current.slots.get(slot);
        if previous > header.count {
            previous = 0;
        }
        let seconds = if header.begin_timestamp <= 0 {
            0
        } else {
            ((key.store_timestamp - header.begin_timestamp) / 1000).clamp(0, i64::from(i32::MAX)) as u32
        };
        let mut entry: RawEntry = [0; ENTRY_BYTES as usize];
        entry[..4].copy_from_slice(&key.hash.to_be_bytes());
        entry[4..12].copy_from_slice(&key.position.to_be_bytes());
        entry[12..16].copy_from_slice(&seconds.to_be_bytes());
        entry[16..].copy_from_slice(&previous.to_be_bytes());
        current.pending.extend_from_slice(&entry);
        current.slots.set(slot, header.count);
        if header.count <= 1 {
            header.begin_position = key.position;
            header.begin_timestamp = key.store_timestamp;
        }
        if previous == 0 {
            header.slots_used += 1;
        }
        header.count += 1;
        header.end_position = key.position;
        header.end_timestamp = key.store_timestamp;
        current.header_dirty = true;
    }

    #[cold]
    fn begin_file(&mut self, now_ms: i64) -> bool {
        if self.broken.is_some() {
            return false;
        }
        let mut header = Header { count: 1, ..Header::default() };
        let last_name = self.current.as_ref().map(|c| c.name.clone());
        if let Some(current) = self.current.take() {
            header.begin_position = current.header.end_position;
            header.end_position = current.header.end_position;
            header.begin_timestamp = current.header.end_timestamp;
            header.end_timestamp = current.header.end_timestamp;
            self.full.push_back(current);
        }
        let last_name = last_name
            .or_else(|| self.full.back().map(|c| c.name.clone()))
            .or_else(|| self.older.back().map(|o| o.name.clone()));
        let mut name = time_name(now_ms + self.utc_offset_ms);
        if let Some(last) = last_name.filter(|last| *last >= name) {
            // Files are ordered by name: after a clock that went back, the name only has to be the next one.
            name = last.parse::<u64>().map_or(name, |n| format!("{:017}", n + 1));
        }
        match self.make(&name) {
            Ok((file, slots)) => {
                self.current = Some(Current {
                    name,
                    header,
                    file,
                    slots,
                    written: 1,
                    writing: Arc::default(),
                    pending: std::mem::take(&mut self.spare),
                    header_dirty: true,
                });
                true
            }
            Err(e) => {
                self.broken = Some(format!(
                    "index file {} cannot be made ({e}); new messages are not found by key until a restart",
                    self.dir.join(name).display()
                ));
                false
            }
        }
    }

    fn make(&self, name: &str) -> io::Result<(Arc<dyn DiskFile>, Slots)> {
        self.disk.create_dirs(&self.dir)?;
        let file = self.disk.open(&self.dir.join(name), Mode::Create)?;
        file.set_len(self.geometry.file_bytes())?;
        // Entry 0 exists in the layout and is never used.
        Ok((file, Slots::new(self.geometry.slots, false)?))
    }

    /// Positions of records under this hash, newest first, at most `limit`.
    pub fn search(&mut self, hash: u32, limit: usize, begin_ms: i64, end_ms: i64) -> IndexHits {
        let geometry = self.geometry;
        let mut hits = IndexHits::default();
        let newest =
            self.current.as_ref().or(self.full.back()).map(|c| c.header).or(self.older.back().map(|o| o.header));
        if let Some(header) = newest {
            hits.last_update_timestamp = header.end_timestamp;
            hits.last_update_position = header.end_position;
        }
        let slot = hash % geometry.slots;
        let found = &mut hits.positions;
        let search = Search { hash, limit, begin_ms, end_ms };
        for current in self.current.iter_mut().chain(self.full.iter_mut().rev()) {
            if current.header.covers(begin_ms, end_ms) {
                current.slots.ensure_read(slot, current.file.as_ref());
                let (first, header) = (current.slots.get(slot), current.header);
                let mut block = Block::default();
                search.walk(&header, first, found, |number| current.entry(&geometry, number, &mut block));
            }
            if current.header.begin_timestamp < begin_ms || found.len() >= limit {
                return hits;
            }
        }
        for older in self.older.iter_mut().rev() {
            if older.header.covers(begin_ms, end_ms) {
                if older.file.is_none() {
                    older.file = self.disk.open(&self.dir.join(&older.name), Mode::Read).ok();
                }
                if let Some(file) = older.file.take() {
                    let mut first = [0; 4];
                    if file.read_at(HEADER_BYTES + u64::from(slot) * SLOT_BYTES, &mut first).is_ok() {
                        let mut block = Block::default();
                        search.walk(&older.header, u32::from_be_bytes(first), found, |number| {
                            block.entry(&geometry, file.as_ref(), number)
                        });
                    }
                }
            }
            if older.header.begin_timestamp < begin_ms || found.len() >= limit {
                break;
            }
        }
        hits
    }

    /// Bytes of entries waiting to be written.
    pub fn pending_bytes(&self) -> usize {
        self.full.iter().chain(&self.current).map(|file| file.pending.len()).sum()
    }

    /// Takes away the entries to write now, oldest file first. After writing call [`Index::written`].
    pub fn take_batch(&mut self) -> Option<Batch> {
        // A full file with all its entries written only waits for its slots: go on with the one being filled.
        let full = self.full.iter_mut().find(|c| c.has_work());
        let current = full.or(self.current.as_mut()).filter(|c| c.has_work())?;
        current.writing = Arc::new(std::mem::replace(&mut current.pending, std::mem::take(&mut self.spare)));
        current.header_dirty = false;
        Some(Batch {
            file: current.file.clone(),
            first: current.written,
            entries: current.writing.clone(),
            header: current.header,
        })
    }

    /// The batch is in the file (or not: then it will be taken again).
    pub fn written(&mut self, batch: Batch, done: bool) {
        let owners = self.full.iter_mut().chain(self.current.as_mut());
        let Some(current) = owners.into_iter().find(|c| Arc::ptr_eq(&c.file, &batch.file)) else { return };
        let writing = std::mem::take(&mut current.writing);
        drop(batch);
        let mut entries = Arc::try_unwrap(writing).unwrap_or_else(|shared| shared.to_vec());
        if done {
            current.written += entries.len() as u32 / ENTRY_BYTES as u32;
            entries.clear();
            if entries.capacity() <= (ENTRY_BYTES as usize) << 19 {
                self.spare = entries;
            }
        } else {
            entries.append(&mut current.pending);
            current.pending = entries;
            current.header_dirty = true;
        }
    }

    /// Bytes of slot pages to write from `page` on, at most 64 pages: file, offset, bytes, next page. `None`: no more.
    /// `full` asks for the oldest full file, otherwise the one being filled.
    pub fn take_slots(&mut self, full: bool, page: usize) -> Option<SlotPages> {
        let slots_total = self.geometry.slots as usize;
        let current = if full { self.full.front_mut() } else { self.current.as_mut() }?;
        let pages = slots_total.div_ceil(PAGE_SLOTS);
        let dirty = &mut current.slots.dirty;
        let first = (page..pages).find(|p| bit(dirty, *p))?;
        let mut last = first;
        while last < pages && last < first + 64 && bit(dirty, last) {
            dirty[last / 64] &= !(1 << (last % 64));
            last += 1;
        }
        let (from, to) = (first * PAGE_SLOTS, (last * PAGE_SLOTS).min(slots_total));
        let table = &current.slots.table[from * 4..to * 4];
        let mut bytes = table.to_vec();
        if cfg!(target_endian = "little") {
            bytes.chunks_exact_mut(4).for_each(|four| four.reverse());
        }
        Some((current.file.clone(), HEADER_BYTES + from as u64 * SLOT_BYTES, bytes, last))
    }

    /// Slots taken from `page` on could not be written: they are dirty again.
    pub fn slots_not_written(&mut self, full: bool, offset: u64, bytes: usize) {
        let current = if full { self.full.front_mut() } else { self.current.as_mut() };
        if let Some(current) = current {
            let first = ((offset - HEADER_BYTES) / SLOT_BYTES) as usize / PAGE_SLOTS;
            for page in first..first + bytes.div_ceil(PAGE_SLOTS * 4) {
                current.slots.dirty[page / 64] |= 1 << (page % 64);
            }
        }
    }

    /// True if a full file waits to be written out.
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// The oldest full file is completely written: from now on it is read from disk. `None` if it is not yet.
    pub fn retire_full(&mut self) -> Option<Arc<dyn DiskFile>> {
        let done = self.full.front().is_some_and(|f| !f.has_work() && f.slots.clean());
        let full = if done { self.full.pop_front() } else { None }?;
        self.older.push_back(Older { name: full.name, header: full.header, sound: true, file: None });
        Some(full.file)
    }

    /// Handles of all files that may have entries no sync has covered.
    pub fn unsynced_files(&self) -> Vec<Arc<dyn DiskFile>> {
        self.current.iter().map(|c| c.file.clone()).collect()
    }

    /// Store time of the newest indexed record.
    pub fn end_timestamp(&self) -> i64 {
        let newest = self.current.as_ref().or(self.full.back()).map(|c| c.header);
        newest.or(self.older.back().map(|o| o.header)).map_or(0, |h| h.end_timestamp)
    }

    /// Store time of the newest record in a file that is full and completely written; 0 if there is none.
    pub fn full_end_timestamp(&self) -> i64 {
        let full = self.older.iter().rev().find(|o| o.header.count >= self.geometry.entries);
        full.map_or(0, |o| o.header.end_timestamp)
    }

    /// Gives the slot table's memory back once everything is written; it is read again when needed.
    pub fn unload(&mut self) {
        if let Some(current) = self.current.as_mut() {
            if !current.has_work() && current.slots.clean() && current.writing.is_empty() {
                if let Ok(slots) = Slots::new(self.geometry.slots, true) {
                    current.slots = slots;
                    current.pending = Vec::new();
                }
            }
        }
        self.spare = Vec::new();
    }

    /// Forgets the files whose records are all below `min`, never the newest; [`Index::expired`] has them then.
    pub fn expire_below(&mut self, min: u64) {
        let has_newer = self.current.is_some() || !self.full.is_empty();
        while self.older.len() > usize::from(!has_newer) {
            match self.older.front() {
                Some(oldest) if oldest.header.end_position < min => {
                    self.expired.push_back(self.dir.join(&oldest.name));
                    self.older.pop_front();
                }
                _ => break,
            }
        }
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.older.len() + self.full.len() + usize::from(self.current.is_some())
    }
}

struct Search {
    hash: u32,
    limit: usize,
    begin_ms: i64,
    end_ms: i64,
}

impl Search {
    fn walk(&self, header: &Header, first: u32, found: &mut Vec<u64>, mut entry: impl FnMut(u32) -> Option<RawEntry>) {
        if header.count <= 1 {
            return;
        }
        let mut number = first;
        for _ in 0..STEPS_MAX {
            if number == 0 || number > header.count || found.len() >= self.limit {
                return;
            }
            let Some(raw) = entry(number) else { return };
            let link = Link::decode(&raw);
            if link.seconds < 0 {
                return;
            }
            let time = header.begin_timestamp + i64::from(link.seconds) * 1000;
            // Seconds are rounded down, so the last one of the span may lie up to a second before it.
            let matches = link.hash == self.hash && time <= self.end_ms && time + 999 >= self.begin_ms;
            // A record re-indexed by a recovery may have its key twice.
            if matches && found.last() != Some(&link.position) {
                found.push(link.position);
            }
            if time + 999 < self.begin_ms || link.previous >= number {
                return;
            }
            number = link.previous;
        }
    }
}

/// True for the name of an index file: a time in 17 digits.
pub(crate) fn is_index_name(name: &str) -> bool {
    name.len() == 17 && name.bytes().all(|b| b.is_ascii_digit())
}

/// `yyyyMMddHHmmssSSS` of a time that already has its zone's offset added.
pub(crate) fn time_name(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to a date of the Gregorian calendar, counting years from March so that the leap day comes last.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{milli:03}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn index(disk: &SimDisk) -> Index {
        Index::new("/index".into(), Geometry { slots: 5000, entries: 50 }, Arc::new(disk.clone()), 0)
    }

    fn write_all(index: &mut Index) {
        while let Some(batch) = index.take_batch() {
            batch.write(&index.geometry).unwrap();
            index.written(batch, true);
        }
        for full in [true, false] {
            let mut page = 0;
            while let Some((file, at, bytes, next)) = index.take_slots(full, page) {
                file.write_at(at, &bytes).unwrap();
                page = next;
            }
        }
        if index.retire_full().is_some() {
            write_all(index);
        }
    }

    #[test]
    fn names_are_times() {
        assert_eq!(time_name(0), "19700101000000000");
        assert_eq!(time_name(1_700_000_000_123), "20231114221320123");
        assert_eq!(time_name(1_709_164_800_000), "20240229000000000");
        assert_eq!(positive_hash(i32::MIN), 0);
        assert_eq!(positive_hash(-5), 5);
    }

    #[test]
    fn what_waits_in_full_files_counts_too() {
        let mut index = index(&SimDisk::new());
        for position in 0..120 {
            index.put(&KeyHash { hash: 1, position, store_timestamp: 1000 });
        }
        assert_eq!(index.pending_bytes(), 120 * ENTRY_BYTES as usize);
        write_all(&mut index);
        assert_eq!(index.pending_bytes(), 0);
    }

    #[test]
    fn keys_are_found_in_memory_in_files_and_after_a_restart() {
        let disk = SimDisk::new();
        let mut first = index(&disk);
        for n in 0..120u64 {
            let key = KeyHash { hash: (n % 40 + 1) as u32, position: n * 100, store_timestamp: 1000 + n as i64 * 1000 };
            first.put(&key);
            if n == 60 || n == 100 {
                write_all(&mut first);
            }
        }
        let want: Vec<u64> = vec![8300, 4300, 300];
        assert_eq!(first.search(4, 64, 0, i64::MAX).positions, want);
        assert_eq!(first.search(4, 2, 0, i64::MAX).positions, want[..2]);
        assert_eq!(first.search(4, 64, 40_000, 50_000).positions, [4300]);
        assert_eq!(first.search(999, 64, 0, i64::MAX).last_update_position, 11_900);
        write_all(&mut first);
        assert_eq!(first.search(4, 64, 0, i64::MAX).positions, want);
        assert_eq!(first.files(), 3);
        first.unload();
        assert_eq!(first.search(4, 64, 0, i64::MAX).positions, want);
        for unclean in [false, true] {
            let mut second = index(&disk);
            assert!(second.load(!unclean).unwrap().is_empty());
            if unclean {
                assert!(!second.repair(u64::MAX, None, &mut |_| None, &mut Vec::new()).unwrap());
            } else {
                second.resume().unwrap();
            }
            assert_eq!(second.end_position(), Some(11_900));
            assert_eq!(second.search(4, 64, 0, i64::MAX).positions, want);
        }
    }

    #[test]
    fn repair_keeps_the_entries_before_the_damage_and_before_the_logs_end() {
        let disk = SimDisk::new();
        let mut first = index(&disk);
        for n in 0..30u64 {
            first.put(&KeyHash { hash: 7, position: n * 100, store_timestamp: 1000 });
        }
        write_all(&mut first);
        let name = disk.list("/index".as_ref()).unwrap().remove(0).name;
        let path = std::path::Path::new("/index").join(name);
        disk.flip_bit(&path, first.geometry.entry_at(20) + 16, 6);
        let mut second = index(&disk);
        second.load(false).unwrap();
        let mut lines = Vec::new();
        assert!(second.repair(u64::MAX, None, &mut |_| None, &mut lines).unwrap());
        assert!(lines[0].contains("is damaged: what follows its entry 19 is made again from the log"));
        assert_eq!(second.end_position(), Some(1800));
        write_all(&mut second);
        let mut third = index(&disk);
        third.load(false).unwrap();
        assert!(!third.repair(1000, None, &mut |_| None, &mut Vec::new()).unwrap());
        assert_eq!(third.end_position(), Some(900));
        assert_eq!(third.search(7, 64, 0, i64::MAX).positions.len(), 10);
    }

    #[test]
    fn repair_trusts_no_entry_that_the_next_one_contradicts_behind_what_the_header_knew_too() {
        let disk = SimDisk::new();
        let mut first = index(&disk);
        let mut put = |from: u64, to: u64| {
            for n in from..to {
                first.put(&KeyHash { hash: n as u32 + 1, position: n * 100, store_timestamp: 1000 });
            }
            write_all(&mut first);
        };
        put(0, 10);
        let name = disk.list("/index".as_ref()).unwrap().remove(0).name;
        let path = std::path::Path::new("/index").join(name);
        let older_header = disk.read_file(&path).unwrap()[..HEADER_BYTES as usize].to_vec();
        put(10, 20);
        let mut second = index(&disk);
        disk.open(&path, Mode::Write).unwrap().write_at(0, &older_header).unwrap();
        disk.flip_bit(&path, second.geometry.entry_at(15) + 9, 1);
        second.load(false).unwrap();
        assert!(second.repair(u64::MAX, None, &mut |_| None, &mut Vec::new()).unwrap());
        assert_eq!(second.end_position(), Some(1300));
        assert_eq!(second.search(15, 64, 0, i64::MAX).positions, []);
    }
}
