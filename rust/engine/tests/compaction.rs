//! Compaction topics: what a reader makes of a queue stays the same, through compactions, restarts, kills and power cuts.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use aerobee_engine::batch_queue::UNIT_BYTES;
use aerobee_engine::disk::{Disk, Random};
use aerobee_engine::property::find;
use aerobee_engine::pull::{Limits, Reader, Status};
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::store::{DeletePolicy, FlushMode, Store};
use aerobee_engine::tables::{Filter, Settings};
use common::{append, bounds, entry, Bench};

/// Nine messages a file.
const QUEUE_BYTES: u64 = 10 * UNIT_BYTES as u64;
const LOG_BYTES: u64 = 11 * QUEUE_BYTES;

/// Offset, key and body.
type Message = (i64, String, String);

struct Room {
    bench: Bench,
    position: i64,
    /// Everything sent that is acknowledged, by offset.
    sent: Vec<Message>,
}

impl Room {
    fn new(flush_mode: FlushMode) -> Room {
        let mut bench = Bench::new(flush_mode);
        bench.options.compaction_topics = vec!["c".into()];
        bench.options.compaction_queue_file_bytes = QUEUE_BYTES;
        bench.options.compaction_log_file_bytes = 10 * QUEUE_BYTES;
        Room { bench, position: -1, sent: Vec::new() }
    }

    fn send(&mut self, store: &mut Store, key: &str, body: &str) -> i64 {
        self.bench.clock.advance(1000);
        let queue = store.queue("c", 0);
        let properties = if key.is_empty() { String::new() } else { format!("KEYS\u{1}{key}\u{2}TAGS\u{1}{key}\u{2}") };
        let record = NewRecord {
            topic: "c",
            queue_id: 0,
            flag: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: "10.1.2.3:4567".parse().unwrap(),
            reconsume_times: 0,
            prepared_offset: 0,
            body: body.as_bytes(),
            properties: properties.as_bytes(),
            tags_code: None,
            known: None,
        };
        let offset = store.stage(queue, &record).unwrap().queue_offset;
        store.commit().unwrap();
        self.sent.push((offset, key.into(), body.into()));
        offset
    }

    /// `count` messages of few keys.
    fn fill(&mut self, store: &mut Store, count: usize, keys: usize) {
        for n in 0..count {
            let body = format!("body-{}", self.sent.len());
            self.send(store, &format!("k{}", n % keys), &body);
        }
        store.flush().unwrap();
    }

    fn compact(&mut self, store: &Store) -> Option<(u64, u64)> {
        let done = store.compactor().compact("c", 0, self.position).unwrap()?;
        self.position = done.position;
        Some((done.before, done.after))
    }

    /// What is read from the queue's beginning is a part of what was sent, in order, and means the same.
    fn check(&self, store: &mut Store) -> Vec<Message> {
        let read = read(store, 0, &Filter::All);
        for message in &read {
            assert_eq!(Some(message), self.sent.get(message.0 as usize), "{:?}", self.bench.lines);
        }
        assert!(read.windows(2).all(|pair| pair[0].0 < pair[1].0), "{read:?}");
        assert_eq!(meaning(&read), meaning(&self.sent), "{read:?} {:?}", self.bench.lines);
        read
    }

    fn files(&self, kind: &str) -> Vec<u64> {
        let dir = Path::new("/store/compaction").join(kind).join("c/0");
        let entries = self.bench.disk.list(&dir).unwrap();
        let mut names: Vec<u64> = entries.iter().filter_map(|entry| entry.name.parse().ok()).collect();
        names.sort_unstable();
        names
    }

    fn file(kind: &str, number: u64) -> PathBuf {
        Path::new("/store/compaction").join(kind).join(format!("c/0/{:020}", number * LOG_BYTES))
    }
}

/// The newest body of each key; a key without one is gone.
fn meaning(messages: &[Message]) -> BTreeMap<&str, &str> {
    let mut newest: BTreeMap<&str, &str> = messages.iter().map(|(_, key, body)| (&**key, &**body)).collect();
    newest.retain(|_, body| !body.is_empty());
    newest
}

fn read(store: &mut Store, from: i64, filter: &Filter) -> Vec<Message> {
    let limits = Limits::of(&Settings::default(), 5, u64::MAX);
    let mut reader = Reader::new(50);
    let mut messages = Vec::new();
    let mut offset = from;
    loop {
        let queue = store.find_queue("c", 0);
        let mut records = Vec::new();
        let found = reader.read(store, queue, offset, &limits, filter, 0, &mut records).unwrap();
        let mut rest = &records[..];
        while let Some(view) = RecordView::parse(rest) {
            assert!(view.is_intact() && view.queue_offset >= offset, "{offset} {view:?}");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let key = find(view.properties, b"KEYS").map_or(String::new(), text);
            messages.push((view.queue_offset, key, text(view.body)));
            if view.queue_offset >= bounds(store, "c", 0).0 {
                let mut record = Vec::new();
                assert!(store.copy_record(view.position, view.raw.len() as u32, &mut record), "{view:?}");
                assert_eq!(record, view.raw, "as it is in the log");
            }
            rest = &rest[view.raw.len()..];
        }
        assert!(rest.is_empty());
        match found.status {
            Status::Found | Status::NoMatchedMessage => assert!(found.next_offset > offset),
            _ => return messages,
        }
        offset = found.next_offset;
    }
}

/// The message the log has at an offset.
fn in_log(store: &mut Store, offset: i64) -> Option<Message> {
    let entry = entry(store, "c", 0, offset)?;
    let mut record = Vec::new();
    store.copy_record(entry.position, entry.size, &mut record).then_some(())?;
    let view = RecordView::parse(&record).filter(RecordView::is_intact)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((offset, text(find(view.properties, b"KEYS")?), text(view.body)))
}

#[test]
fn only_the_newest_of_each_key_stays_and_offsets_stay_what_they_are() {
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    room.fill(&mut store, 50, 5);
    assert_eq!(room.files("compactionLog"), [0, 1, 2, 3, 4, 5].map(|n| n * LOG_BYTES));
    assert_eq!(room.files("compactionCq"), room.files("compactionLog"));
    assert_eq!(read(&mut store, 0, &Filter::All), room.sent);
    assert_eq!(room.compact(&store), Some((45, 5)));
    assert_eq!(room.position, 44);
    let kept: Vec<i64> = room.check(&mut store).iter().map(|message| message.0).collect();
    assert_eq!(kept, (40..50).collect::<Vec<_>>());
    assert_eq!(room.files("compactionLog"), [0, 5 * LOG_BYTES], "the file being written keeps its name");
    assert_eq!(room.files("compactionCq"), room.files("compactionLog"));
    assert_eq!(room.compact(&store), None, "nothing new");
    assert_eq!(read(&mut store, 43, &Filter::tags("k3")).len(), 2, "43 and 48");
    assert_eq!(read(&mut store, 44, &Filter::tags("k3")), [room.sent[48].clone()]);
    room.fill(&mut store, 40, 2);
    assert_eq!(room.compact(&store), Some((5 + 36, 5)));
    room.check(&mut store);
    store.close().unwrap();
    let mut store = room.bench.open();
    assert!(room.bench.silent(), "{:?}", room.bench.lines);
    room.check(&mut store);
    assert_eq!(bounds(&store, "c", 0), (0, 90));
}

#[test]
fn a_message_without_body_deletes_its_key() {
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    room.fill(&mut store, 9, 3);
    for key in ["k0", "k1", "k2"] {
        room.send(&mut store, key, "");
    }
    room.fill(&mut store, 0, 1);
    assert_eq!(room.compact(&store), Some((9, 3)), "the end is still being written");
    for n in 0..7 {
        room.send(&mut store, "other", &n.to_string());
    }
    store.flush().unwrap();
    assert_eq!(room.compact(&store), Some((12, 1)));
    assert_eq!(room.check(&mut store).len(), 2);
    room.send(&mut store, "other", "");
    for _ in 0..8 {
        room.send(&mut store, "gone", "");
    }
    store.flush().unwrap();
    assert_eq!(room.compact(&store), Some((10, 0)));
    assert_eq!(room.files("compactionLog").len(), 1);
    room.check(&mut store);
    store.close().unwrap();
    let mut store = room.bench.open();
    assert!(room.bench.silent(), "{:?}", room.bench.lines);
    room.check(&mut store);
}

#[test]
fn messages_outlive_their_log_files() {
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    room.send(&mut store, "old", "still here");
    for n in 0..100 {
        room.send(&mut store, "k", &format!("{n}{}", "x".repeat(500)));
    }
    let policy = DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 100 };
    store.flush().unwrap();
    assert!(store.delete_files(policy).unwrap().log_files > 2);
    assert!(bounds(&store, "c", 0).0 > 30);
    room.check(&mut store);
    room.compact(&store).unwrap();
    assert_eq!(room.check(&mut store)[0], (0, "old".into(), "still here".into()));
    store.close().unwrap();
    let mut store = room.bench.open();
    assert!(room.bench.silent(), "{:?}", room.bench.lines);
    room.check(&mut store);
    // What is not copied yet is not deleted.
    for _ in 0..200 {
        room.send(&mut store, "k", &"y".repeat(500));
    }
    store.delete_files(policy).unwrap();
    room.check(&mut store);
}

/// Many messages, copied by the flusher; the copies are synced with the next checkpoint, which is long to come.
fn copied_and_not_synced() -> (Room, Store) {
    let mut room = Room::new(FlushMode::Sync);
    room.bench.options.queue_flush_forced_ms = 3_600_000;
    let mut store = room.bench.open();
    room.send(&mut store, "old", "still here");
    for n in 0..450 {
        room.send(&mut store, "k", &format!("{n}{}", "x".repeat(50)));
    }
    store.tick().unwrap();
    store.settle();
    (room, store)
}

#[test]
fn copies_that_a_power_cut_has_torn_are_made_again() {
    for seed in 0..20 {
        let (room, store) = copied_and_not_synced();
        drop(store);
        room.bench.disk.power_cut(seed);
        room.check(&mut room.bench.open());
    }
}

#[test]
fn log_files_stay_until_the_copies_of_their_messages_are_on_the_device() {
    let policy = DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 100 };
    for seed in 0..10 {
        let (room, mut store) = copied_and_not_synced();
        store.delete_files(policy).unwrap();
        drop(store);
        room.bench.disk.power_cut(seed);
        let mut store = room.bench.open();
        room.check(&mut store);
        assert!(store.delete_files(policy).unwrap().log_files > 2);
        room.check(&mut store);
    }
}

#[test]
fn a_queue_file_that_cannot_be_read_stops_nobody_else_and_is_said_once() {
    let mut room = Room::new(FlushMode::Async);
    room.bench.options.compaction_topics.push("d".into());
    room.bench.options.index_entries = 50;
    let mut store = room.bench.open();
    room.send(&mut store, "k", "copied");
    store.flush().unwrap();
    room.bench.disk.fail_reads(Some("consumequeue/c/"));
    room.send(&mut store, "k", "not copied");
    append(&mut store, "d", 0, b"of another compaction topic", "d");
    for n in 0..300 {
        append(&mut store, "other", 0, &[0; 500], &format!("o{n}"));
        room.bench.clock.advance(1000);
        store.tick().unwrap();
    }
    let notices = store.notices();
    let said: Vec<&String> = notices.iter().filter(|n| n.contains("cannot be copied")).collect();
    let path = room.bench.queue_file("c", 0, 0);
    assert!(said.len() == 1 && said[0].contains(path.to_str().unwrap()), "{notices:?}");
    assert_eq!(store.health(), None);
    // Checkpoints are written and the index goes on; what is not copied keeps its log file.
    assert!(store.stats().dispatched_position > 5 * room.bench.options.log_file_bytes);
    assert!(room.bench.disk.list("/store/index".as_ref()).unwrap().len() > 5);
    let copy = room.bench.disk.read_file("/store/compaction/compactionLog/d/0/00000000000000000000".as_ref()).unwrap();
    assert!(copy.windows(10).any(|bytes| bytes == b"of another"));
    let policy = DeletePolicy { before_ms: i64::MAX, consumed_position: u64::MAX, files_max: 100 };
    assert_eq!(store.delete_files(policy).unwrap().log_files, 0);
    // It can be read again.
    room.bench.disk.fail_reads(None);
    store.flush().unwrap();
    assert!(store.delete_files(policy).unwrap().log_files > 5);
    room.check(&mut store);
}

#[test]
fn messages_whose_log_file_cannot_be_opened_for_a_while_are_copied_later() {
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    for n in 0..12 {
        room.send(&mut store, &format!("k{n}"), &"x".repeat(3000));
    }
    let path = room.bench.log_file(1);
    room.bench.disk.fail_opens(path.to_str());
    store.flush().unwrap();
    let notices = store.notices();
    let said = |text: &str| notices.len() == 1 && notices[0].contains(text);
    assert!(said("cannot be copied") && said(path.to_str().unwrap()), "{notices:?}");
    room.bench.disk.fail_opens(None);
    room.send(&mut store, "last", "last");
    store.flush().unwrap();
    assert!(store.notices().is_empty());
    room.check(&mut store);
}

#[test]
fn keys_beyond_the_memory_are_compared_the_next_time() {
    let mut room = Room::new(FlushMode::Async);
    room.bench.options.compaction_map_bytes = 0; // a hundred keys
    let mut store = room.bench.open();
    room.fill(&mut store, 180, 150);
    room.fill(&mut store, 180, 150);
    let mut rounds = 0;
    while room.compact(&store).is_some() {
        room.check(&mut store);
        rounds += 1;
    }
    assert!((3..6).contains(&rounds), "{rounds}");
    assert!(room.check(&mut store).len() < 180);
}

#[test]
fn a_deleted_topic_begins_anew() {
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    room.fill(&mut store, 50, 5);
    room.compact(&store).unwrap();
    store.delete_topic("c").unwrap();
    assert!(!room.bench.disk.exists("/store/compaction/compactionLog/c".as_ref()));
    assert!(!room.bench.disk.exists("/store/compaction/compactionCq/c".as_ref()));
    room.sent.clear();
    room.fill(&mut store, 30, 5);
    room.check(&mut store);
    // Apache's broker leaves the files of a deleted topic where they are.
    let files: Vec<(PathBuf, Vec<u8>)> = ["compactionLog", "compactionCq"]
        .into_iter()
        .flat_map(|kind| (0..4).map(move |n| Room::file(kind, n)))
        .map(|path| (path.clone(), room.bench.disk.read_file(&path).unwrap()))
        .collect();
    store.delete_topic("c").unwrap();
    append(&mut store, "t", 0, b"recovery begins here", "t");
    store.close().unwrap();
    for (path, bytes) in files {
        room.bench.disk.create_dirs(path.parent().unwrap()).unwrap();
        room.bench.write(&path, 0, &bytes);
    }
    room.sent.clear();
    let mut store = room.bench.open();
    room.fill(&mut store, 20, 3);
    room.check(&mut store);
    drop(store);
    room.bench.disk.kill();
    let mut store = room.bench.open();
    room.check(&mut store);
    assert_eq!(room.compact(&store), Some((18, 3)), "the position of the earlier life does not count");
}

#[test]
fn a_topic_that_becomes_one_has_all_its_messages() {
    let mut room = Room::new(FlushMode::Async);
    room.bench.options.compaction_topics.clear();
    let mut store = room.bench.open();
    room.fill(&mut store, 40, 5);
    room.send(&mut store, "", "no key");
    store.set_compaction_topic("c", true);
    store.flush().unwrap();
    assert_eq!(room.compact(&store), Some((36, 5)));
    room.sent.retain(|message| !message.1.is_empty());
    room.check(&mut store);
    store.set_compaction_topic("c", false);
    assert_eq!(read(&mut store, 0, &Filter::All).len(), 41, "as any other topic");
    store.set_compaction_topic("c", true);
    store.flush().unwrap();
    room.check(&mut store);
}

#[test]
fn units_that_do_not_fit_are_made_again() {
    for damage in 0..4 {
        let mut room = Room::new(FlushMode::Async);
        let mut store = room.bench.open();
        room.fill(&mut store, 40, 5);
        store.close().unwrap();
        let disk = &room.bench.disk;
        match damage {
            0 => disk.remove_file(&Room::file("compactionCq", 1)).unwrap(),
            1 => {
                let bytes = disk.read_file(&Room::file("compactionCq", 0)).unwrap();
                room.bench.write(&Room::file("compactionCq", 2), 0, &bytes);
            }
            // As Apache's broker leaves it when it is killed while it replaces files.
            2 => {
                for (kind, number) in [("compactionLog", 0), ("compactionLog", 1), ("compactionCq", 1)] {
                    let path = Room::file(kind, number);
                    disk.rename(&path, &path.with_extension("delete")).unwrap();
                }
            }
            _ => {
                let path = Room::file("compactionCq", 1);
                room.bench.write(&path, 0, &[0; QUEUE_BYTES as usize]);
            }
        }
        let mut store = room.bench.open();
        assert_eq!(room.check(&mut store).len(), 40, "{damage}: {:?}", room.bench.lines);
        room.compact(&store).unwrap();
        room.check(&mut store);
    }
}

#[test]
fn a_crash_at_every_step_of_a_compaction_loses_nothing() {
    let mut finished = false;
    for step in (0u64..).step_by(2) {
        for how in 0..4 {
            let mut room = Room::new(FlushMode::Async);
            let mut store = room.bench.open();
            room.fill(&mut store, 60, 25);
            room.bench.disk.stop_after(step);
            let done = store.compactor().compact("c", 0, -1);
            finished = done.is_ok();
            drop(store);
            match how {
                0 => room.bench.disk.kill(),
                seed => room.bench.disk.power_cut(step * 7 + seed),
            }
            let mut store = room.bench.open();
            room.check(&mut store);
            room.fill(&mut store, 30, 7);
            while room.compact(&store).is_some() {}
            room.check(&mut store);
            store.close().unwrap();
            let mut store = room.bench.open();
            assert!(room.bench.silent(), "{step} {how} {:?}", room.bench.lines);
            room.check(&mut store);
        }
        if finished {
            assert!(step > 20, "{step}");
            return;
        }
    }
}

#[test]
fn killed_between_any_two_names_everything_is_there() {
    // Claim: after any number of the renames and removals that end a compaction, in their order, the store opens whole.
    let mut room = Room::new(FlushMode::Async);
    let mut store = room.bench.open();
    room.fill(&mut store, 100, 40);
    let before: Vec<(PathBuf, Vec<u8>)> = contents(&room);
    room.compact(&store).unwrap();
    let after = contents(&room);
    store.close().unwrap();
    let names: Vec<&PathBuf> = {
        let mut names: Vec<&PathBuf> = before.iter().map(|(path, _)| path).collect();
        // Log and units of one file after the other, as they are replaced.
        names.sort_by_key(|path| {
            (path.file_name().unwrap().to_owned(), !path.starts_with("/store/compaction/compactionLog"))
        });
        names
    };
    for replaced in 0..=names.len() {
        let disk = &room.bench.disk;
        for (number, path) in names.iter().enumerate() {
            let from = if number < replaced { &after } else { &before };
            let _ = disk.remove_file(path);
            if let Some((_, bytes)) = from.iter().find(|(p, _)| p == *path) {
                room.bench.write(path, 0, bytes);
            }
        }
        room.bench.write("/store/abort".as_ref(), 0, b"1");
        let mut store = room.bench.open();
        room.check(&mut store);
        room.position = -1;
        room.compact(&store);
        room.check(&mut store);
        assert_eq!(contents(&room).len(), after.len(), "{replaced}");
        store.close().unwrap();
    }
}

fn contents(room: &Room) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for kind in ["compactionLog", "compactionCq"] {
        for base in room.files(kind) {
            let path = Room::file(kind, base / LOG_BYTES);
            found.push((path.clone(), room.bench.disk.read_file(&path).unwrap()));
        }
    }
    found
}

#[test]
fn by_seed_a_reader_makes_the_same_of_it() {
    for seed in 0..60 {
        let flush_mode = if seed % 2 == 0 { FlushMode::Async } else { FlushMode::Sync };
        let mut room = Room::new(flush_mode);
        room.bench.options.compaction_log_file_bytes = 1; // the smallest: often full before the file of units is
        let mut random = Random(seed);
        let mut durable = 0;
        for _life in 0..5 {
            let mut store = room.bench.open();
            let next = bounds(&store, "c", 0).1 as usize;
            assert!(next >= durable, "seed {seed}: {next} of {durable} are there");
            // Of what was not acknowledged anything may be gone.
            room.sent.truncate(next);
            for at in durable..next {
                // Half a record may be there: nothing proves that its properties are whole.
                if in_log(&mut store, at as i64).as_ref() != room.sent.get(at) {
                    room.sent[at] = (at as i64, "lost".into(), String::new());
                }
            }
            room.check(&mut store);
            for _ in 0..random.below(60) {
                let key = format!("k{}", random.below(12));
                let text = match random.below(8) {
                    0 => String::new(),
                    _ => format!("{}{}", room.sent.len(), "z".repeat(random.below(150) as usize)),
                };
                room.send(&mut store, &key, &text);
                let end = store.stats().max_position;
                if random.below(4) == 0 {
                    store.tick().unwrap();
                    store.settle();
                }
                if store.durable() >= end {
                    durable = room.sent.len();
                }
                if random.below(10) == 0 {
                    room.compact(&store);
                }
                if random.below(20) == 0 {
                    store.flush().unwrap();
                    store.settle();
                    durable = room.sent.len();
                    room.check(&mut store);
                }
            }
            if random.below(4) == 0 {
                store.close().unwrap();
                durable = room.sent.len();
            }
            drop(store);
            match flush_mode {
                FlushMode::Sync => room.bench.disk.power_cut(seed),
                FlushMode::Async => room.bench.disk.kill(),
            }
        }
    }
}

#[test]
fn everybody_at_once() {
    // Claim: while the flusher copies and another thread compacts, a reader sees each key's newest message at every moment.
    let mut room = Room::new(FlushMode::Async);
    room.bench.options.background = true;
    room.bench.options.log_flush_interval_ms = 1;
    let mut store = room.bench.open();
    let compactor = store.compactor();
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let compacting = std::thread::spawn(move || {
        let (mut position, mut rounds) = (-1, 0);
        while !stop.load(Ordering::Relaxed) {
            if let Some(done) = compactor.compact("c", 0, position).unwrap() {
                position = done.position;
                rounds += 1;
            }
            std::thread::yield_now();
        }
        rounds
    });
    for n in 0..2000 {
        room.send(&mut store, &format!("k{}", n % 37), &n.to_string());
        if n % 100 == 0 {
            room.check(&mut store);
            store.flush().unwrap();
            room.check(&mut store);
        }
    }
    store.delete_topic("c").unwrap();
    done.store(true, Ordering::Relaxed);
    let rounds = compacting.join().unwrap();
    assert!(rounds > 3, "{rounds} rounds");
    store.close().unwrap();
    assert!(room.bench.silent(), "{:?}", room.bench.lines);
}
