//! Any bytes into an engine with open tables: answers, commands or an error, and a store that still reads.
#![no_main]
use std::sync::Arc;

use aerobee_engine::clock::ManualClock;
use aerobee_engine::disk::SimDisk;
use aerobee_engine::session::Engine;
use aerobee_engine::store::{Store, StoreOptions};
use aerobee_engine::tables::{Filter, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stream: &[u8]| {
    let clock = Arc::new(ManualClock::new(1_700_000_000_000));
    let mut options = StoreOptions::new("/store");
    options.log_file_bytes = 1 << 20;
    options.queue_file_units = 100;
    options.index_enable = false;
    options.background = false;
    let store = Store::open(options, Arc::new(SimDisk::new()), clock.clone(), &|_, _| {}).unwrap();
    let mut engine = Engine::new(store, clock, Settings::default());
    engine.allow_topic("T", 6, 4, 4, 0, true);
    engine.allow_group("G", true, 0, true);
    let session = engine.session("10.0.0.1:1".parse().unwrap());
    engine.feed(session, stream);
    engine.expire(i64::MAX);
    let mut out = Vec::new();
    engine.read("T", 0, 0, 1000, u64::MAX, &Filter::All, &mut out).unwrap();
});
