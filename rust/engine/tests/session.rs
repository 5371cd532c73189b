//! Sends and pulls through `feed`: what the tables allow is answered as Apache answers, everything else comes out, and
//! the way a stream is cut changes nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aerobee_engine::clock::ManualClock;
use aerobee_engine::disk::SimDisk;
use aerobee_engine::error::Error;
use aerobee_engine::frame::{Cutter, Flow, FRAME_BYTES_MAX};
use aerobee_engine::header::{Encoding, Fixed, Header, Writer};
use aerobee_engine::property;
use aerobee_engine::record::{NewRecord, RecordView};
use aerobee_engine::send::BATCH_MESSAGES_MAX;
use aerobee_engine::session::{Engine, Turn};
use aerobee_engine::store::{FlushMode, Store, StoreOptions};
use aerobee_engine::tables::{Filter, Led, Settings};
use proptest::prelude::*;

const NOW_MS: i64 = 1_700_000_000_000;
const UNITS: u64 = 1000;

struct Bench {
    engine: Engine,
    clock: Arc<ManualClock>,
    disk: SimDisk,
    session: u64,
    opaque: i32,
    encoding: Encoding,
}

/// A reply, decoded.
#[derive(Debug, Clone, PartialEq)]
struct Reply {
    session: u64,
    opaque: i32,
    code: i32,
    flag: i32,
    remark: Option<String>,
    fields: BTreeMap<String, String>,
    body: Vec<u8>,
    encoding: Encoding,
}

impl Reply {
    fn field(&self, key: &str) -> &str {
        self.fields.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> i64 {
        self.field(key).parse().unwrap_or_else(|_| panic!("{key} in {self:?}"))
    }

    /// The bodies of the records it carries.
    fn bodies(&self) -> Vec<String> {
        records(&self.body).iter().map(|view| String::from_utf8_lossy(view.body).into_owned()).collect()
    }
}

fn records(mut bytes: &[u8]) -> Vec<RecordView<'_>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let view = RecordView::parse(bytes).expect("a record");
        bytes = &bytes[view.raw.len()..];
        out.push(view);
    }
    out
}

fn replies(turn: &Turn) -> Vec<Reply> {
    let mut out = Vec::new();
    let mut header = Header::default();
    for (session, bytes) in &turn.replies {
        let mut cutter = Cutter::default();
        cutter
            .feed(bytes, FRAME_BYTES_MAX, |frame| {
                header.read(frame.encoding, frame.header)?;
                assert_eq!(header.version, 513);
                out.push(Reply {
                    session: *session,
                    opaque: header.opaque,
                    code: header.code,
                    flag: header.flag,
                    remark: header.remark(frame.header).map(str::to_owned),
                    fields: header.fields(frame.header).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                    body: frame.body.to_vec(),
                    encoding: frame.encoding,
                });
                Ok(Flow::Go)
            })
            .unwrap();
        assert_eq!(cutter.kept(), 0);
    }
    out
}

fn one(turn: &Turn) -> Reply {
    assert!(turn.commands.is_empty() && turn.error.is_none(), "{turn:?}");
    let mut all = replies(turn);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn frame(encoding: Encoding, code: i32, opaque: i32, flag: i32, fields: &[(&str, String)], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let fixed = Fixed { code, language: 0, version: 513, opaque, flag, remark: None };
    let mut writer = Writer::begin(&mut out, encoding, fixed);
    for (key, value) in fields {
        writer.field(key, value);
    }
    writer.end_header();
    writer.out.extend_from_slice(body);
    writer.finish();
    out
}

fn property_text(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect()
}

/// Long name and letter of the fields of a send.
const SEND_FIELDS: [(&str, &str); 14] = [
    ("producerGroup", "a"),
    ("topic", "b"),
    ("defaultTopic", "c"),
    ("defaultTopicQueueNums", "d"),
    ("queueId", "e"),
    ("sysFlag", "f"),
    ("bornTimestamp", "g"),
    ("flag", "h"),
    ("properties", "i"),
    ("reconsumeTimes", "j"),
    ("unitMode", "k"),
    ("maxReconsumeTimes", "l"),
    ("batch", "m"),
    ("lo", "lo"),
];

fn send_fields(code: i32, changes: &[(&str, &str)]) -> Vec<(&'static str, String)> {
    let mut fields: BTreeMap<&str, String> = [
        ("producerGroup", "P"),
        ("topic", "T"),
        ("defaultTopic", "TBW102"),
        ("defaultTopicQueueNums", "4"),
        ("queueId", "0"),
        ("sysFlag", "0"),
        ("bornTimestamp", "1234"),
        ("flag", "0"),
        ("properties", "UNIQ_KEY\u{1}U\u{2}"),
        ("reconsumeTimes", "0"),
        ("unitMode", "false"),
        ("batch", "false"),
    ]
    .into_iter()
    .map(|(key, value)| (key, value.to_owned()))
    .collect();
    for (key, value) in changes {
        fields.insert(SEND_FIELDS.iter().find(|(long, _)| long == key).unwrap().0, (*value).to_owned());
    }
    let name =
        |long: &str| SEND_FIELDS.iter().find(|(name, _)| *name == long).map(|(l, s)| if code == 10 { *l } else { *s });
    fields.into_iter().map(|(key, value)| (name(key).unwrap(), value)).collect()
}

impl Bench {
    fn new() -> Bench {
        Bench::with(FlushMode::Async)
    }

    fn with(flush_mode: FlushMode) -> Bench {
        Bench::with_options(flush_mode, |_| {})
    }

    fn with_options(flush_mode: FlushMode, change: impl FnOnce(&mut StoreOptions)) -> Bench {
        let disk = SimDisk::new();
        let clock = Arc::new(ManualClock::new(NOW_MS));
        let mut options = StoreOptions::new("/store");
        options.flush_mode = flush_mode;
        options.log_file_bytes = 8 << 20;
        options.queue_file_units = UNITS;
        options.index_slots = 1000;
        options.index_entries = 4000;
        options.background = false;
        change(&mut options);
        let settings = Settings { store_host: options.store_host, ..Settings::default() };
        let store = Store::open(options, Arc::new(disk.clone()), clock.clone(), &|_, _| {}).unwrap();
        let mut engine = Engine::new(store, clock.clone(), settings);
        engine.allow_topic("T", 6, 4, 4, 0, true);
        engine.allow_group("G", true, 0, true);
        let session = engine.session("10.1.2.3:4567".parse().unwrap());
        Bench { engine, clock, disk, session, opaque: 0, encoding: Encoding::Json }
    }

    fn feed(&mut self, bytes: &[u8]) -> Turn {
        self.engine.feed(self.session, bytes)
    }

    fn request(&mut self, code: i32, flag: i32, fields: &[(&str, String)], body: &[u8]) -> Vec<u8> {
        self.opaque += 1;
        frame(self.encoding, code, self.opaque, flag, fields, body)
    }

    fn send_frame(&mut self, body: &str, changes: &[(&str, &str)]) -> Vec<u8> {
        let fields = send_fields(310, changes);
        self.request(310, 0, &fields, body.as_bytes())
    }

    fn send(&mut self, body: &str, changes: &[(&str, &str)]) -> Turn {
        let bytes = self.send_frame(body, changes);
        self.feed(&bytes)
    }

    fn pull_fields(changes: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let mut fields: BTreeMap<&str, &str> = [
            ("consumerGroup", "G"),
            ("topic", "T"),
            ("queueId", "0"),
            ("queueOffset", "0"),
            ("maxMsgNums", "32"),
            ("sysFlag", "4"),
            ("commitOffset", "0"),
            ("suspendTimeoutMillis", "15000"),
            ("subscription", "*"),
            ("subVersion", "0"),
            ("expressionType", "TAG"),
        ]
        .into();
        let names = [
            "consumerGroup",
            "topic",
            "queueId",
            "queueOffset",
            "maxMsgNums",
            "sysFlag",
            "commitOffset",
            "suspendTimeoutMillis",
            "subscription",
            "subVersion",
            "expressionType",
            "maxMsgBytes",
            "liteTopic",
            "requestSource",
        ];
        for (key, value) in changes {
            fields.insert(names.iter().find(|name| *name == key).unwrap(), value);
        }
        let static_name = |key: &str| *names.iter().find(|name| **name == key).unwrap();
        fields.iter().map(|(key, value)| (static_name(key), (*value).to_owned())).collect()
    }

    fn pull(&mut self, changes: &[(&str, &str)]) -> Turn {
        let bytes = self.request(11, 0, &Bench::pull_fields(changes), b"");
        self.feed(&bytes)
    }

    fn stored(&mut self, position: u64) -> Vec<u8> {
        self.engine.store.record(position).expect("stored")
    }

    fn position_of(reply: &Reply) -> u64 {
        u64::from_str_radix(&reply.field("msgId")[16..], 16).unwrap()
    }
}

fn record<'a>(topic: &'a str, queue_id: u32, body: &'a [u8], properties: &'a [u8]) -> NewRecord<'a> {
    NewRecord {
        topic,
        queue_id,
        flag: 0,
        sys_flag: 0,
        born_timestamp: 1234,
        born_host: "10.1.2.3:4567".parse().unwrap(),
        reconsume_times: 0,
        prepared_offset: 0,
        body,
        properties,
        tags_code: None,
        known: None,
    }
}

// ---- sends ----------------------------------------------------------------------------------------------------------

#[test]
fn a_send_is_stored_and_answered_as_apache_does() {
    for encoding in [Encoding::Json, Encoding::RocketMq] {
        for code in [10, 310] {
            let mut bench = Bench::new();
            bench.encoding = encoding;
            let properties = property_text(&[("KEYS", "k1 k2"), ("TAGS", "blue"), ("UNIQ_KEY", "0A")]);
            let fields = send_fields(
                code,
                &[
                    ("properties", &properties),
                    ("queueId", "3"),
                    ("flag", "9"),
                    ("sysFlag", "257"),
                    ("reconsumeTimes", "2"),
                ],
            );
            let bytes = bench.request(code, 0, &fields, b"hello");
            let turn = bench.feed(&bytes);
            let reply = one(&turn);
            assert_eq!((reply.code, reply.flag, reply.opaque, reply.remark.as_deref()), (0, 1, 1, None));
            assert_eq!(reply.encoding, encoding);
            let fields: Vec<_> = reply.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(
                fields,
                [
                    ("MSG_REGION", "DefaultRegion"),
                    ("TRACE_ON", "true"),
                    ("msgId", "7F00000100002A9F0000000000000000"),
                    ("queueId", "3"),
                    ("queueOffset", "0"),
                    ("transactionId", "0A"),
                ]
            );
            let bytes = bench.stored(0);
            let view = RecordView::parse(&bytes).unwrap();
            assert_eq!(view.topic, b"T");
            assert_eq!(
                (view.queue_id, view.queue_offset, view.flag, view.sys_flag, view.reconsume_times),
                (3, 0, 9, 257, 2)
            );
            assert_eq!((view.born_timestamp, view.store_timestamp, view.prepared_offset), (1234, NOW_MS, 0));
            assert_eq!(view.born_host, "10.1.2.3:4567".parse::<SocketAddr>().unwrap());
            assert_eq!(view.body, b"hello");
            let expected = properties
                + &property_text(&[
                    ("MSG_REGION", "DefaultRegion"),
                    ("TRACE_ON", "true"),
                    ("CLUSTER", "DefaultCluster"),
                ]);
            assert_eq!(view.properties, expected.as_bytes());
        }
    }
}

#[test]
fn the_fast_way_stores_the_bytes_the_slow_way_stores() {
    let mut fast = Bench::new();
    let mut slow = Bench::new();
    for (at, (properties, body)) in
        [("UNIQ_KEY\u{1}a\u{2}TAGS\u{1}x\u{2}", "one"), ("KEYS\u{1}ü\u{2}UNIQ_KEY\u{1}b\u{2}", "two")]
            .iter()
            .enumerate()
    {
        let reply = one(&fast.send(body, &[("properties", properties)]));
        let stored = format!(
            "{properties}MSG_REGION\u{1}DefaultRegion\u{2}TRACE_ON\u{1}true\u{2}CLUSTER\u{1}DefaultCluster\u{2}"
        );
        let (receipts, turn) = slow.engine.append(&[record("T", 0, body.as_bytes(), stored.as_bytes())]).unwrap();
        assert!(turn.replies.is_empty());
        assert_eq!(receipts[0].position, Bench::position_of(&reply));
        assert_eq!(receipts[0].queue_offset, at as i64);
        assert_eq!(slow.engine.message_id(receipts[0].position), reply.field("msgId"));
        assert_eq!(fast.stored(receipts[0].position), slow.stored(receipts[0].position));
    }
    let mut entries = [Vec::new(), Vec::new()];
    for (bench, out) in [&mut fast, &mut slow].into_iter().zip(&mut entries) {
        let queue = bench.engine.store.find_queue("T", 0).unwrap();
        bench.engine.store.entries(queue, 0, 10, out).unwrap();
    }
    assert_eq!(entries[0].len(), 2);
    assert_eq!(entries[0], entries[1]);
    // and a pull that policy grants is answered with the bytes of one the engine serves
    let request = frame(Encoding::Json, 11, 99, 0, &Bench::pull_fields(&[]), b"");
    let served = fast.feed(&request);
    fast.engine.change(|settings| settings.fast = false);
    let left = fast.feed(&request);
    assert!(left.replies.is_empty());
    let command = &left.commands[0];
    let granted =
        fast.engine.pull(fast.session, &command.header, &command.source, command.encoding, Filter::All, true).unwrap();
    assert_eq!(served.replies, granted.replies);
}

#[test]
fn properties_of_the_broker_replace_the_senders() {
    let mut bench = Bench::new();
    let sent = property_text(&[
        ("POP_CK", "1 2 3"),
        ("a", "b"),
        ("CLUSTER", "evil"),
        ("TRACE_ON", "false"),
        ("MSG_REGION", "x"),
    ]);
    let reply = one(&bench.send("x", &[("properties", sent.trim_end_matches('\u{2}'))]));
    let bytes = bench.stored(0);
    let properties: Vec<_> = property::pairs(RecordView::parse(&bytes).unwrap().properties)
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()))
        .collect();
    let names: Vec<_> = properties.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "UNIQ_KEY", "MSG_REGION", "TRACE_ON", "CLUSTER"]);
    // a made-up unique key has the form of a client's: address, process, number, time in the month, counter
    let key = &properties[1].1;
    assert_eq!(key.len(), 32);
    assert!(key.starts_with("7F000001") && key.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_eq!(reply.field("transactionId"), key);
    let again = one(&bench.send("x", &[("properties", "")]));
    assert_ne!(again.field("transactionId"), key);
    let bytes = bench.stored(Bench::position_of(&again));
    assert!(RecordView::parse(&bytes).unwrap().properties.starts_with(b"UNIQ_KEY\x01"));
}

#[test]
fn a_message_wakes_who_waits_on_the_light_queues_it_names() {
    let mut bench = Bench::with_options(FlushMode::Async, |options| options.light_queues = true);
    let other = bench.engine.session("10.1.2.3:4568".parse().unwrap());
    let light = [("topic", "%LMQ%a"), ("consumerGroup", "%LMQ%g")];
    let waiting = bench.request(11, 0, &Bench::pull_fields(&[&light[..], &[("sysFlag", "6")]].concat()), b"");
    assert!(replies(&bench.engine.feed(other, &waiting)).is_empty());
    let properties = "INNER_MULTI_DISPATCH\u{1}%LMQ%a,%LMQ%b\u{2}UNIQ_KEY\u{1}U\u{2}";
    let turn = bench.send("hello", &[("properties", properties), ("queueId", "2")]);
    let all = replies(&turn);
    assert_eq!((all[0].session, all[0].code, all[0].number("queueOffset")), (bench.session, 0, 0));
    assert_eq!((all[1].session, all[1].code, all[1].bodies()), (other, 0, vec!["hello".to_string()]));
    let view = RecordView::parse(&all[1].body).unwrap();
    assert_eq!((view.topic, view.queue_id), (&b"T"[..], 2));
    assert_eq!(property::find(view.properties, b"INNER_MULTI_QUEUE_OFFSET"), Some(&b"0,0"[..]));
    assert_eq!(property::find(view.properties, b"UNIQ_KEY"), Some(&b"U"[..]));
    // Any group may read any light queue; the one queue is all there is.
    let reply = one(&bench.pull(&[("topic", "%LMQ%b")]));
    assert_eq!((reply.code, reply.number("nextBeginOffset"), reply.number("maxOffset")), (0, 1, 1));
    assert_eq!(bench.pull(&[("topic", "%LMQ%b"), ("queueId", "1")]).commands.len(), 1);
    let refused = one(&bench.send("x", &[("properties", "INNER_MULTI_DISPATCH\u{1}%LMQ%a,b\u{2}")]));
    assert_eq!(refused.code, 13);
    bench.engine.change(|settings| settings.light_queues_max = 2);
    let refused = one(&bench.send("x", &[("properties", "INNER_MULTI_DISPATCH\u{1}%LMQ%c\u{2}")]));
    assert_eq!(refused.code, 2017);
}

#[test]
fn what_only_policy_may_decide_comes_out() {
    let long_topic = "x".repeat(128);
    let long_properties = property_text(&[("k", &"v".repeat(32_760))]);
    let cases: Vec<(&str, &str)> = vec![
        ("properties", "DELAY\u{1}3\u{2}"),
        ("properties", "TIMER_DELAY_SEC\u{1}3\u{2}"),
        ("properties", "TIMER_DELAY_MS\u{1}3\u{2}"),
        ("properties", "TIMER_DELIVER_MS\u{1}3\u{2}"),
        ("properties", "TRAN_MSG\u{1}true\u{2}"),
        ("properties", "INNER_MULTI_DISPATCH\u{1}%LMQ%a\u{2}"),
        ("properties", "__LITE_TOPIC\u{1}a\u{2}"),
        ("properties", "_SYS_MSG_PRIORITY_\u{1}1\u{2}"),
        ("properties", "INNER_NUM\u{1}1\u{2}"),
        ("properties", &long_properties),
        ("topic", "unknown"),
        ("topic", "slow"),
        ("topic", "readonly"),
        ("topic", &long_topic),
        ("queueId", "4"),
        ("queueId", "x"),
        ("sysFlag", "4"),
        ("sysFlag", "8"),
        ("sysFlag", "128"),
        ("flag", "99999999999"),
        ("bornTimestamp", "tomorrow"),
    ];
    for code in [10, 310] {
        let mut bench = Bench::new();
        bench.engine.allow_topic("slow", 6, 4, 4, 0, false);
        bench.engine.allow_topic("readonly", 4, 4, 4, 0, true);
        bench.engine.allow_topic(&long_topic, 6, 4, 4, 0, true);
        for (key, value) in &cases {
            let fields = send_fields(code, &[(key, value)]);
            let bytes = bench.request(code, 0, &fields, b"x");
            let turn = bench.feed(&bytes);
            assert_eq!((turn.commands.len(), turn.replies.len()), (1, 0), "{key} {value}");
            assert_eq!(turn.commands[0].body, b"x");
        }
        let fields = send_fields(code, &[]);
        for body in [&b""[..], &vec![0; 4 * 1024 * 1024 + 1]] {
            let bytes = bench.request(code, 0, &fields, body);
            assert_eq!(bench.feed(&bytes).commands.len(), 1);
        }
        bench.engine.change(|settings| settings.broker_perm = 4);
        let bytes = bench.request(code, 0, &fields, b"x");
        assert_eq!(bench.feed(&bytes).commands.len(), 1);
        assert_eq!(bench.engine.store.stats().max_position, 0, "nothing was stored");
        assert_eq!(bench.engine.counters.sends, 0);
    }
}

#[test]
fn a_topic_that_takes_only_messages_with_or_without_a_sharding_key_leaves_the_others_to_policy() {
    let mut bench = Bench::new();
    let keyed = [("properties", "__SHARDINGKEY\u{1}a\u{2}")];
    for (plain, key, served) in
        [(true, false, [1, 0]), (false, true, [0, 1]), (false, false, [0, 0]), (true, true, [1, 1])]
    {
        bench.engine.allow_sends("T", plain, key);
        let turns = [bench.send("x", &[]), bench.send("x", &keyed)];
        assert_eq!(turns.each_ref().map(|turn| turn.replies.len()), served, "{plain} {key}");
        assert_eq!(turns.each_ref().map(|turn| 1 - turn.commands.len()), served, "{plain} {key}");
    }
}

#[test]
fn sends_to_the_queues_of_a_static_topic_that_are_led_here_speak_of_logical_queues_and_offsets() {
    let mut bench = Bench::new();
    bench.engine.allow_topic("T", 6, 4, 4, 0, false);
    let led = |logical_queue, queue, logical_start, start| Led { logical_queue, queue, logical_start, start };
    bench.engine.lead("T", vec![led(7, 1, 1000, 0), led(8, 2, 500, 1), led(9, 4, 0, 0)]);
    let told = |turn: Turn| (one(&turn).number("queueId"), one(&turn).number("queueOffset"));
    assert_eq!(told(bench.send("a", &[("queueId", "7")])), (7, 1000));
    assert_eq!(told(bench.send("b", &[("queueId", "7")])), (7, 1001));
    assert_eq!(told(bench.send("c", &[("queueId", "8")])), (8, 500), "never before its stretch");
    assert_eq!(told(bench.send("d", &[("queueId", "8")])), (8, 500));
    // Led elsewhere, any queue, a queue that is not there, physical numbers, a pull: policy knows.
    for changes in
        [&[("queueId", "1")][..], &[("queueId", "-1")], &[("queueId", "9")], &[("queueId", "7"), ("lo", "false")]]
    {
        assert_eq!(bench.send("x", changes).commands.len(), 1, "{changes:?}");
    }
    let bytes = bench.request(11, 0, &Bench::pull_fields(&[("queueId", "1")]), b"");
    assert_eq!(bench.feed(&bytes).commands.len(), 1);
    bench.engine.lead("T", Vec::new());
    assert_eq!(bench.send("x", &[("queueId", "7")]).commands.len(), 1);
    bench.engine.allow_topic("T", 6, 4, 4, 0, true);
    assert_eq!(told(bench.send("e", &[("queueId", "1")])), (1, 2), "what was sent before lies in queue 1");
}

#[test]
fn a_negative_queue_id_means_any_write_queue() {
    let mut bench = Bench::new();
    let mut seen = [0; 4];
    for _ in 0..200 {
        seen[one(&bench.send("x", &[("queueId", "-1")])).number("queueId") as usize] += 1;
    }
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

/// A flood of sends without a look at the replies, 100 bytes of body each.
fn flood(bench: &mut Bench, count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| bench.send_frame(&format!("{number:0100}"), &[])).collect()
}

#[test]
fn a_sender_in_front_of_a_slow_disk_waits_and_loses_nothing() {
    const MAX: u64 = 20_000;
    for mode in [FlushMode::Async, FlushMode::Sync] {
        let mut bench = Bench::with_options(mode, |options| options.unflushed_bytes_max = MAX);
        let other = bench.engine.session("10.9.9.9:1".parse().unwrap());
        let bytes = flood(&mut bench, 1000);
        let chunk = 5000;
        let mut turns: Vec<Turn> = Vec::new();
        for part in bytes.chunks(chunk) {
            turns.push(bench.feed(part));
            let mut rounds = 0;
            while turns.last().unwrap().behind {
                rounds += 1;
                assert!(rounds < 100, "{mode:?}: the disk never catches up");
                let stats = bench.engine.store.stats();
                assert!(stats.max_position - stats.flushed_position <= MAX + 2 * chunk as u64, "{mode:?}: no bound");
                // Another connection's pull is served meanwhile, its send waits like all others.
                let pull = bench.request(11, 0, &Bench::pull_fields(&[("maxMsgNums", "1")]), b"");
                let pulled = bench.engine.feed(other, &pull);
                assert!(!pulled.behind && pulled.replies.len() == 1, "{mode:?}: a reader waits for the disk");
                assert!(bench.engine.is_behind());
                bench.engine.store.tick().unwrap();
                turns.push(bench.engine.settle());
                assert!(!bench.engine.is_behind());
                turns.push(bench.feed(b""));
            }
        }
        bench.engine.store.tick().unwrap();
        turns.push(bench.engine.settle());
        assert!(turns.iter().filter(|turn| turn.behind).count() > 5, "{mode:?}: the sender was never slowed down");
        let offsets: Vec<i64> = turns.iter().flat_map(replies).map(|reply| reply.number("queueOffset")).collect();
        assert_eq!(offsets, (0..1000).collect::<Vec<i64>>(), "{mode:?}");
    }
}

/// Asks until it is so; a store's threads need a moment.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_sender_in_front_of_a_small_limit_waits_for_one_sync_at_a_time_and_not_for_the_clock() {
    let mut bench = Bench::with_options(FlushMode::Async, |options| {
        options.unflushed_bytes_max = 20_000;
        options.background = true;
    });
    let bytes = flood(&mut bench, 1000);
    let started = Instant::now();
    let (mut answers, mut held) = (0, 0);
    for part in bytes.chunks(5000) {
        let mut turn = bench.feed(part);
        answers += replies(&turn).len();
        while turn.behind {
            held += 1;
            eventually("the disk never catches up", || !bench.engine.is_behind());
            turn = bench.feed(b"");
            answers += replies(&turn).len();
        }
    }
    assert_eq!(answers, 1000);
    // The flusher looks by the clock twice a second only.
    assert!(held > 5 && started.elapsed() < Duration::from_millis(300) * held, "{held} in {:?}", started.elapsed());
}

/// Lets syncs go when a test ends, however: a store's threads are waited for.
struct LetGo(SimDisk);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.hold_syncs(false);
    }
}

#[test]
fn a_sync_that_takes_long_holds_up_neither_senders_nor_entries() {
    const MAX: u64 = 48 << 20;
    let mut bench = Bench::with_options(FlushMode::Async, |options| {
        options.unflushed_bytes_max = MAX;
        options.background = true;
    });
    bench.disk.hold_syncs(true);
    let held_syncs = LetGo(bench.disk.clone());
    let small = flood(&mut bench, 4000);
    let mut answers = replies(&bench.feed(&small)).len();
    bench.clock.advance(2_000);
    eventually("the entries wait for the sync", || bench.engine.store.stats().queue_tail_bytes == 0);

    let large = "x".repeat(1 << 20);
    let mut held = 0;
    for _ in 0..160 {
        let bytes = bench.send_frame(&large, &[]);
        let mut turn = bench.feed(&bytes);
        answers += replies(&turn).len();
        while turn.behind {
            held += 1;
            eventually("the sender waits for the sync", || !bench.engine.is_behind());
            turn = bench.feed(b"");
            answers += replies(&turn).len();
        }
    }
    let stats = bench.engine.store.stats();
    assert!(stats.max_position > 3 * MAX && stats.flushed_position == 0, "{stats:?}");
    assert_eq!(answers, 4160, "held back {held} times");
    drop(held_syncs);
    eventually("nothing was synced", || {
        bench.clock.advance(1_000);
        bench.engine.store.stats().flushed_position == stats.max_position
    });
}

#[test]
fn a_disk_that_fails_is_no_reason_to_wait() {
    let mut bench = Bench::with_options(FlushMode::Sync, |options| options.unflushed_bytes_max = 20_000);
    let bytes = flood(&mut bench, 300);
    assert!(bench.feed(&bytes).behind);
    bench.disk.fail_syncs(true);
    assert!(bench.engine.store.tick().is_err());
    let mut refused: Vec<Reply> = replies(&bench.engine.settle());
    assert!(!bench.engine.is_behind());
    let turn = bench.feed(b"");
    assert!(!turn.behind);
    refused.extend(replies(&turn));
    assert_eq!(refused.len(), 300, "all are answered, those that were held and those that waited");
    assert!(refused.iter().all(|reply| reply.code != 0));
}

/// Feeds a send of each of three sessions, to queues 0, 1 and 0 again, and leaves all of them staged.
fn three_together(bench: &mut Bench) -> [u64; 3] {
    let sessions = [1, 2, 3].map(|port| bench.engine.session(format!("10.9.9.9:{port}").parse().unwrap()));
    for (session, (body, queue)) in sessions.into_iter().zip([("a", "0"), ("b", "1"), ("c", "0")]) {
        let bytes = bench.send_frame(body, &[("queueId", queue)]);
        assert!(bench.engine.feed_together(session, &bytes).is_none());
    }
    sessions
}

#[test]
fn messages_of_several_connections_share_one_write() {
    let mut bench = Bench::new();
    assert!(bench.pull(&WAIT).replies.is_empty());
    let sessions = three_together(&mut bench);
    assert_eq!(bench.engine.store.stats().commits, 0);
    let turn = bench.engine.commit();
    assert_eq!(bench.engine.store.stats().commits, 1);
    let to: Vec<u64> = turn.replies.iter().map(|(session, _)| *session).collect();
    assert_eq!(to, [sessions[0], sessions[1], sessions[2], bench.session], "each its own, and who waited");
    let all = replies(&turn);
    let told: Vec<(i64, i64)> = all[..3].iter().map(|one| (one.number("queueId"), one.number("queueOffset"))).collect();
    assert_eq!(told, [(0, 0), (1, 0), (0, 1)]);
    assert_eq!(all[3].bodies(), ["a", "c"]);
    assert!(bench.engine.commit().replies.is_empty());
}

#[test]
fn whoever_has_more_to_say_or_adds_to_the_store_has_everything_before_it_written() {
    let mut bench = Bench::new();
    three_together(&mut bench);
    let bytes = [bench.send_frame("d", &[]), bench.request(999, 0, &[], b"")].concat();
    let session = bench.session;
    let turn = bench.engine.feed_together(session, &bytes).expect("a command must see what was sent before it");
    assert_eq!((turn.commands.len(), replies(&turn).len()), (1, 4));

    three_together(&mut bench);
    let record = record("T", 0, b"e", b"");
    let (receipts, turn) = bench.engine.append(&[record]).unwrap();
    assert_eq!(receipts[0].queue_offset, 5);
    assert_eq!(replies(&turn).len(), 3);
    assert_eq!(one(&bench.pull(&[])).bodies(), ["a", "c", "d", "a", "c", "e"]);
}

#[test]
fn a_shared_write_that_fails_is_an_error_to_each_of_them() {
    let mut bench = Bench::new();
    let [gone, ..] = three_together(&mut bench);
    bench.engine.close_session(gone);
    bench.disk.fail_writes(true);
    let all = replies(&bench.engine.commit());
    assert_eq!(all.iter().map(|reply| reply.code).collect::<Vec<_>>(), [14, 14]);
    assert_eq!(bench.engine.store.stats().max_position, 0);
}

#[test]
fn a_shared_write_waits_for_the_flush_as_any_other() {
    let mut bench = Bench::with(FlushMode::Sync);
    let sessions = three_together(&mut bench);
    assert!(bench.engine.commit().replies.is_empty());
    assert_eq!(bench.engine.held(), 3);
    bench.engine.store.tick().unwrap();
    let turn = bench.engine.settle();
    assert_eq!(turn.replies.iter().map(|(session, _)| *session).collect::<Vec<_>>(), sessions);
}

/// What a socket would give, a buffer at a time: the first chunk, and `read` for what comes behind it.
struct Socket {
    bytes: Vec<u8>,
    given: usize,
}

impl Socket {
    fn new(bytes: Vec<u8>) -> Socket {
        Socket { bytes, given: 0 }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let n = buffer.len().min(self.bytes.len() - self.given);
        buffer[..n].copy_from_slice(&self.bytes[self.given..][..n]);
        self.given += n;
        n
    }

    /// A turn of a connection whose buffer got full.
    fn feed_on(&mut self, bench: &mut Bench, buffer_bytes: usize) -> Option<Turn> {
        let mut buffer = vec![0; buffer_bytes];
        assert_eq!(self.fill(&mut buffer), buffer_bytes);
        bench.engine.feed_on(bench.session, &mut buffer, &mut |room| self.fill(room))
    }
}

#[test]
fn who_sends_much_is_read_on_and_all_of_it_shares_one_write() {
    for buffer_bytes in [512, 1000, 4096] {
        let mut bench = Bench::new();
        let mut socket = Socket::new(flood(&mut bench, 1000));
        assert!(socket.bytes.len() > 300_000);
        let turn = socket.feed_on(&mut bench, buffer_bytes).unwrap_or_else(|| bench.engine.commit());
        assert_eq!((socket.given, bench.engine.store.stats().commits), (socket.bytes.len(), 1));
        assert!(!turn.unread);
        let offsets: Vec<i64> = replies(&turn).iter().map(|reply| reply.number("queueOffset")).collect();
        assert_eq!(offsets, (0..1000).collect::<Vec<i64>>());
    }
}

#[test]
fn a_chunk_that_is_all_there_is_is_as_any_other() {
    let mut bench = Bench::new();
    let frame = bench.send_frame("a", &[]);
    let length = frame.len();
    assert!(Socket::new(frame).feed_on(&mut bench, length).is_none());
    assert_eq!(one(&bench.engine.commit()).number("queueOffset"), 0);
}

#[test]
fn reading_on_ends_when_others_have_to_do_something_first_and_after_half_a_mebibyte() {
    let mut bench = Bench::new();
    let command = bench.request(999, 0, &[], b"");
    let mut socket = Socket::new([flood(&mut bench, 30), command, flood(&mut bench, 30)].concat());
    let turn = socket.feed_on(&mut bench, 512).expect("a command must see what was sent before it");
    assert_eq!(turn.commands.len(), 1);
    assert!(socket.given < socket.bytes.len(), "more requests are taken than policy has looked at");
    let before = replies(&turn).len();
    assert!((30..60).contains(&before), "{before} answered");

    let mut bench = Bench::with_options(FlushMode::Async, |options| options.unflushed_bytes_max = 20_000);
    let mut socket = Socket::new(flood(&mut bench, 1000));
    let turn = socket.feed_on(&mut bench, 512).unwrap();
    assert!(turn.behind && socket.given < 30_000, "{} bytes taken for a disk that is behind", socket.given);

    let mut bench = Bench::new();
    bench.engine.change(|settings| settings.turn_bytes_max = 10_000);
    bench.send(&"x".repeat(1000), &[]);
    let pull = bench.request(11, 0, &Bench::pull_fields(&[("queueOffset", "0")]), b"");
    let mut socket = Socket::new(pull.repeat(1000));
    let turn = socket.feed_on(&mut bench, 512).unwrap();
    let told: usize = turn.replies.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(turn.more && (10_000..13_000).contains(&told), "{told} bytes for a peer that may not read them");

    let mut bench = Bench::new();
    let mut socket = Socket::new(flood(&mut bench, 2000));
    assert!(socket.bytes.len() > 600_000);
    let turn = socket.feed_on(&mut bench, 4096).expect("who may be silent is answered");
    assert!(turn.unread && socket.given == 512 * 1024, "others have to wait longer");
}

#[test]
fn a_oneway_send_is_stored_and_answered_by_nothing() {
    let mut bench = Bench::new();
    let fields = send_fields(310, &[]);
    let bytes = bench.request(310, 2, &fields, b"x");
    let turn = bench.feed(&bytes);
    assert!(turn.replies.is_empty() && turn.commands.is_empty());
    assert_eq!(one(&bench.pull(&[])).bodies(), ["x"]);
}

fn batch_body(messages: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (body, properties) in messages {
        out.extend_from_slice(&((22 + body.len() + properties.len()) as u32).to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&7i32.to_be_bytes());
        out.extend_from_slice(&(body.len() as u32).to_be_bytes());
        out.extend_from_slice(body.as_bytes());
        out.extend_from_slice(&(properties.len() as u16).to_be_bytes());
        out.extend_from_slice(properties.as_bytes());
    }
    out
}

#[test]
fn a_batch_is_stored_message_by_message() {
    let mut bench = Bench::new();
    bench.send("first", &[("queueId", "1")]);
    let body =
        batch_body(&[("one", "UNIQ_KEY\u{1}a\u{2}TAGS\u{1}t\u{2}"), ("two", "UNIQ_KEY\u{1}b\u{2}"), ("three", "")]);
    for (code, batch) in [(320, "true"), (320, "false"), (310, "true")] {
        let fields = send_fields(
            code,
            &[("batch", batch), ("queueId", "1"), ("properties", "UNIQ_KEY\u{1}a,b\u{2}WAIT\u{1}true")],
        );
        let bytes = bench.request(code, 0, &fields, &body);
        let turn = bench.feed(&bytes);
        let reply = one(&turn);
        let ids: Vec<_> = reply.field("msgId").split(',').collect();
        assert_eq!(ids.len(), 3);
        assert_eq!(reply.field("transactionId"), "a,b");
        let offset = reply.number("queueOffset");
        let bytes: Vec<_> = ids.iter().map(|id| bench.stored(u64::from_str_radix(&id[16..], 16).unwrap())).collect();
        for (at, bytes) in bytes.iter().enumerate() {
            let view = RecordView::parse(bytes).unwrap();
            assert_eq!((view.queue_id, view.queue_offset, view.flag), (1, offset + at as i64, 7));
            assert_eq!(view.body, ["one", "two", "three"][at].as_bytes());
        }
        // inner properties are stored as they came
        assert_eq!(RecordView::parse(&bytes[0]).unwrap().properties, "UNIQ_KEY\u{1}a\u{2}TAGS\u{1}t\u{2}".as_bytes());
        assert_eq!(RecordView::parse(&bytes[2]).unwrap().properties, b"");
    }
    assert_eq!(bench.engine.tables().topics["T"].puts.count, 10);
    for broken in
        [&body[..body.len() - 1], &body[..10], &batch_body(&[("a", "DELAY\u{1}1\u{2}")]), &batch_body(&[("", "")])]
    {
        let fields = send_fields(320, &[("batch", "true")]);
        let bytes = bench.request(320, 0, &fields, broken);
        assert_eq!(bench.feed(&bytes).commands.len(), 1);
    }
}

// Claim: the sender of a batch that is refused has nothing of it stored.
#[test]
fn a_batch_with_a_message_that_fits_no_log_file_is_left_to_policy_before_any_is_staged() {
    let mut bench = Bench::with_options(FlushMode::Async, |options| options.log_file_bytes = 64 << 10);
    let large = "x".repeat(64 << 10);
    for messages in [[("one", ""), (&large, "")], [("one", ""), (&large[1000..], "")]] {
        let bytes = bench.request(320, 0, &send_fields(320, &[]), &batch_body(&messages));
        let turn = bench.feed(&bytes);
        let fits = messages[1].0.len() < large.len();
        assert_eq!((turn.commands.len(), turn.replies.len()), (usize::from(!fits), usize::from(fits)));
        assert_eq!(bench.engine.store.stats().records_appended, if fits { 2 } else { 0 });
    }
}

// Claim: every batch that is stored is answered by a frame that clients can read.
#[test]
fn the_reply_to_the_largest_batch_is_a_frame_and_larger_ones_are_for_policy() {
    let one_of_them = batch_body(&[("x", "")]);
    let largest = one_of_them.repeat(BATCH_MESSAGES_MAX);
    // Each of its characters takes six in a reply.
    let key = "\u{3}".repeat(32_000);
    for encoding in [Encoding::Json, Encoding::RocketMq] {
        let mut bench = Bench::new();
        bench.encoding = encoding;
        bench.engine.change(|settings| {
            settings.store_host = "[fe80::1]:10911".parse().unwrap();
            settings.body_bytes_max = FRAME_BYTES_MAX;
        });
        let fields = send_fields(320, &[("properties", &property_text(&[("UNIQ_KEY", &key)]))]);
        let bytes = bench.request(320, 0, &fields, &[&largest[..], &one_of_them].concat());
        assert_eq!(bench.feed(&bytes).commands.len(), 1, "one more");
        let longer = send_fields(320, &[("properties", &property_text(&[("UNIQ_KEY", &key), ("k", &key[..1000])]))]);
        let bytes = bench.request(320, 0, &longer, &one_of_them);
        assert_eq!(bench.feed(&bytes).commands.len(), 1, "longer properties");
        assert_eq!(bench.engine.store.stats().max_position, 0);
        let bytes = bench.request(320, 0, &fields, &largest);
        let turn = bench.feed(&bytes);
        let reply = one(&turn);
        assert_eq!(reply.field("msgId").split(',').count(), BATCH_MESSAGES_MAX);
        assert_eq!(reply.field("transactionId"), key);
        assert!(turn.replies[0].1.len() < FRAME_BYTES_MAX);
    }
}

#[test]
fn a_chunk_of_sends_is_one_write() {
    let mut bench = Bench::new();
    let stream: Vec<u8> = (0..50).flat_map(|at| bench.send_frame(&at.to_string(), &[])).collect();
    let before = bench.engine.store.stats().commits;
    let turn = bench.feed(&stream);
    assert_eq!(turn.replies.len(), 1);
    let all = replies(&turn);
    assert_eq!(all.iter().map(|reply| reply.opaque).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert_eq!(all.iter().map(|reply| reply.number("queueOffset")).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert_eq!(bench.engine.store.stats().commits - before, 1);
}

#[test]
fn a_failed_write_is_an_error_to_every_sender_and_nothing_is_stored() {
    let mut bench = Bench::new();
    bench.send("kept", &[]);
    bench.disk.fail_writes(true);
    let mut stream = bench.send_frame("lost", &[]);
    let fields = send_fields(310, &[]);
    stream.extend(bench.request(310, 2, &fields, b"oneway"));
    stream.extend(bench.request(11, 0, &Bench::pull_fields(&[]), b""));
    stream.extend(bench.send_frame("lost too", &[]));
    let turn = bench.feed(&stream);
    let mut all = replies(&turn);
    all.sort_by_key(|reply| reply.opaque);
    assert_eq!(all.iter().map(|reply| reply.code).collect::<Vec<_>>(), [14, 0, 14]);
    assert!(all[0].remark.as_deref().unwrap().starts_with("service not available now: "), "{all:?}");
    assert_eq!(all[1].bodies(), ["kept"]);
    // the store has said no for good: later sends are refused at once, reads go on
    let turn = bench.send("later", &[]);
    assert_eq!(one(&turn).code, 14);
    assert_eq!(one(&bench.pull(&[])).bodies(), ["kept"]);
    assert!(bench.engine.append(&[record("T", 0, b"x", b"")]).is_err());
    assert_eq!(bench.engine.counters.sends_refused, 3);
}

// ---- pulls ----------------------------------------------------------------------------------------------------------

#[test]
fn messages_that_waited_go_home_up_to_the_first_that_is_not_simple() {
    let mut bench = Bench::new();
    let waiting: Vec<&[u8]> = vec![
        b"TAGS\x01TagA\x02REAL_TOPIC\x01T\x02REAL_QID\x011\x02",
        b"REAL_TOPIC\x01T\x02REAL_QID\x010",
        b"TIMER_ENQUEUE_MS\x015\x02REAL_TOPIC\x01T\x02REAL_QID\x010\x02",
        b"REAL_QID\x010\x02",
        b"REAL_TOPIC\x01T\x02REAL_QID\x01x\x02",
    ];
    let records: Vec<NewRecord> = waiting.iter().map(|properties| record("WAIT", 0, b"w", properties)).collect();
    let positions: Vec<u64> = bench.engine.append(&records).unwrap().0.iter().map(|one| one.position).collect();
    assert!(bench.pull(&WAIT).replies.is_empty());

    let moves: Vec<(u64, &[u8])> = positions.iter().map(|position| (*position, &b"K\x01v\x02"[..])).collect();
    let (count, end, turn) = bench.engine.bring_home(&moves).unwrap();
    assert_eq!((count, end), (2, bench.engine.store.stats().max_position), "the third was on its way before");
    let woken = one(&turn);
    assert_eq!((woken.bodies(), woken.code), (vec!["w".to_owned()], 0));
    assert!(woken.body.ends_with(b"REAL_QID\x010\x02K\x01v\x02"));
    let first = one(&bench.pull(&[("queueId", "1")]));
    assert!(first.body.ends_with(b"REAL_TOPIC\x01T\x02REAL_QID\x011\x02K\x01v\x02"));

    let plain: Vec<(u64, &[u8])> = positions.iter().map(|position| (*position, &b""[..])).collect();
    assert_eq!(bench.engine.bring_home(&plain[2..]).unwrap().0, 1, "nothing to add: nothing to read either");
    for at in [3, 4] {
        assert_eq!(bench.engine.bring_home(&plain[at..]).unwrap().0, 0);
    }
    assert_eq!(bench.engine.bring_home(&[(1 << 40, &b""[..])]).unwrap().0, 0, "there is nothing there");
    let long = vec![b'x'; 32_767];
    assert_eq!(bench.engine.bring_home(&[(positions[0], &long)]).unwrap().0, 0, "no store can hold it");
    bench.disk.fail_writes(true);
    assert!(bench.engine.bring_home(&plain[..1]).is_err());
}

// Claim: where a message belongs is its sender's word; a place that cannot be costs that message, not the store.
#[test]
fn a_record_for_a_queue_that_cannot_be_is_refused_whoever_stores_it() {
    let mut bench = Bench::new();
    let long = "x".repeat(256);
    for topic in ["", ".", "..", "../../evil", "a/b", "a\0b", &long, "%LMQ%/../evil"] {
        let refused = bench.engine.append(&[record("T", 0, b"with it", b""), record(topic, 0, b"x", b"")]);
        assert!(matches!(refused, Err(Error::BadRecord(_))), "{topic:?}: {refused:?}");
        bench.pull(&[("topic", topic), ("sysFlag", "2"), ("suspendTimeoutMillis", "1000")]);
        assert!(bench.engine.append(&[record(topic, 0, b"x", b"")]).is_err(), "{topic:?}");
    }
    for queue_id in [1 << 31, u32::MAX] {
        for topic in ["T", "unknown"] {
            let refused = bench.engine.append(&[record(topic, queue_id, b"x", b"")]);
            assert!(matches!(refused, Err(Error::BadRecord(_))), "{topic} {queue_id}: {refused:?}");
        }
    }
    let large = i32::MAX as u32;
    for offset in [0, 1] {
        let (receipts, _) = bench.engine.append(&[record("T", large, b"large", b"")]).unwrap();
        assert_eq!(receipts[0].queue_offset, offset);
    }
    let kept = bench.engine.tables().topics["T"].queues.len();
    assert!(kept <= 1024, "a number is no size: {kept}");
    assert_eq!(bench.engine.store.topics(), [("T".to_owned(), vec![0, large])]);
    assert_eq!(one(&bench.send("after", &[])).code, 0);
}

#[test]
fn a_pull_is_answered_as_apache_does() {
    for encoding in [Encoding::Json, Encoding::RocketMq] {
        for code in [11, 361] {
            let mut bench = Bench::new();
            bench.encoding = encoding;
            bench.engine.allow_topic("T", 6, 4, 4, 3, true);
            bench.engine.allow_group("G", true, 1, true);
            for body in ["a", "b", "c"] {
                bench.send(body, &[]);
            }
            let bytes = bench.request(code, 0, &Bench::pull_fields(&[("queueOffset", "1")]), b"");
            let reply = one(&bench.feed(&bytes));
            assert_eq!(
                (reply.code, reply.remark.as_deref(), reply.flag, reply.encoding),
                (0, Some("FOUND"), 1, encoding)
            );
            assert_eq!(reply.bodies(), ["b", "c"]);
            let fields: Vec<_> = reply.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(
                fields,
                [
                    ("groupSysFlag", "1"),
                    ("maxOffset", "3"),
                    ("minOffset", "0"),
                    ("nextBeginOffset", "3"),
                    ("suggestWhichBrokerId", "0"),
                    ("topicSysFlag", "3"),
                ]
            );
            let gets = bench.engine.tables().groups["G"].topics["T"].gets;
            assert_eq!((gets.count, gets.bytes), (2, reply.body.len() as u64));
        }
    }
}

#[test]
fn the_code_says_why_nothing_was_found() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.send("x", &[]);
    }
    for (queue, offset, code, remark, next) in [
        ("0", "3", 19, "OFFSET_OVERFLOW_ONE", 3),
        ("0", "9", 21, "OFFSET_OVERFLOW_BADLY", 3),
        ("0", "-1", 21, "OFFSET_TOO_SMALL", 0),
        ("1", "0", 19, "NO_MESSAGE_IN_QUEUE", 0),
        ("1", "5", 21, "NO_MESSAGE_IN_QUEUE", 0),
    ] {
        let reply = one(&bench.pull(&[("queueId", queue), ("queueOffset", offset)]));
        assert_eq!((reply.code, reply.remark.as_deref(), reply.number("nextBeginOffset")), (code, Some(remark), next));
        assert!(reply.body.is_empty());
    }
    let reply = one(&bench.pull(&[("subscription", "other")]));
    assert_eq!(
        (reply.code, reply.remark.as_deref(), reply.number("nextBeginOffset")),
        (20, Some("NO_MATCHED_MESSAGE"), 3)
    );
}

#[test]
fn a_batch_ends_at_its_limits() {
    let mut bench = Bench::new();
    for at in 0..100 {
        bench.send(&at.to_string(), &[]);
    }
    let count = |bench: &mut Bench, max: &str| one(&bench.pull(&[("maxMsgNums", max)])).bodies().len();
    assert_eq!(count(&mut bench, "5"), 5);
    assert_eq!(count(&mut bench, "32"), 32);
    assert_eq!(count(&mut bench, "1000"), 32);
    assert_eq!(count(&mut bench, "0"), 1);
    let big = "x".repeat(100 * 1024);
    for _ in 0..3 {
        bench.send(&big, &[("queueId", "1")]);
    }
    let reply = one(&bench.pull(&[("queueId", "1")]));
    assert_eq!((reply.bodies().len(), reply.number("nextBeginOffset")), (2, 2), "256 KiB hold two of them");
    let huge = "x".repeat(1024 * 1024);
    bench.send(&huge, &[("queueId", "2")]);
    assert_eq!(one(&bench.pull(&[("queueId", "2")])).bodies().len(), 1, "one record always goes");
    // old records go in smaller batches
    bench.engine.change(|settings| settings.recent_bytes = 1000);
    let reply = one(&bench.pull(&[]));
    assert_eq!((reply.bodies().len(), reply.number("nextBeginOffset")), (8, 8));
}

#[test]
fn tags_are_matched_by_their_hash_in_the_queue() {
    let mut bench = Bench::new();
    for at in 0..60 {
        let tag = ["red", "green", "blue"][at % 3];
        bench.send(&at.to_string(), &[("properties", &property_text(&[("UNIQ_KEY", "u"), ("TAGS", tag)]))]);
    }
    let reply = one(&bench.pull(&[("subscription", "red || blue"), ("maxMsgNums", "3")]));
    assert_eq!((reply.bodies(), reply.number("nextBeginOffset")), (vec!["0".into(), "2".into(), "3".into()], 5));
    let reply = one(&bench.pull(&[("subscription", "green")]));
    assert_eq!((reply.bodies().len(), reply.number("nextBeginOffset")), (20, 60));
    // without a subscription in the request the heartbeat's counts, if it is as new
    let none = [("sysFlag", "0"), ("subVersion", "7")];
    assert_eq!(bench.pull(&none).commands.len(), 1);
    bench.engine.subscribe("G", "T", 6, Filter::tags("red"));
    assert_eq!(bench.pull(&none).commands.len(), 1);
    bench.engine.subscribe("G", "T", 7, Filter::tags("red"));
    assert_eq!(one(&bench.pull(&none)).bodies().len(), 20);
    bench.engine.unsubscribe("G", Some("T"));
    assert_eq!(bench.pull(&none).commands.len(), 1);
}

#[test]
fn a_pull_looks_at_so_many_entries_and_no_more() {
    let mut bench = Bench::new();
    let records: Vec<_> = (0..1000).map(|_| record("T", 0, b"x", b"TAGS\x01a\x02")).collect();
    bench.engine.append(&records).unwrap();
    bench.engine.append(&[record("T", 0, b"found", b"TAGS\x01b\x02")]).unwrap();
    let reply = one(&bench.pull(&[("subscription", "b")]));
    assert_eq!((reply.code, reply.number("nextBeginOffset")), (20, 800));
    let reply = one(&bench.pull(&[("subscription", "b"), ("queueOffset", "800")]));
    assert_eq!((reply.bodies(), reply.number("nextBeginOffset")), (vec!["found".to_owned()], 1001));
    // As many as it asks for, as Apache's broker does, but not the whole queue in one go.
    let records: Vec<_> = (0..9000).map(|_| record("T", 1, b"x", b"TAGS\x01a\x02")).collect();
    bench.engine.append(&records).unwrap();
    let wants = |asked| [("queueId", "1"), ("subscription", "b"), ("maxMsgNums", asked)];
    for (asked, next) in [("900", 900), ("1024", 1024), ("2147483647", 1024), ("9223372036854775807", 1024)] {
        let reply = one(&bench.pull(&wants(asked)));
        assert_eq!((reply.code, reply.number("nextBeginOffset")), (20, next), "{asked}");
    }
    let found = bench.engine.read("T", 1, 1024, u32::MAX, 1 << 20, &Filter::tags("b"), &mut Vec::new()).unwrap();
    assert_eq!((found.count, found.next_offset), (0, 2048));
    bench.engine.change(|settings| settings.pull_count_max = 4096);
    assert_eq!(one(&bench.pull(&wants("2147483647"))).number("nextBeginOffset"), 4096, "a reply may have as many");
}

#[test]
fn sql_filters_look_at_properties() {
    let mut bench = Bench::new();
    for at in 0..10 {
        let properties = property_text(&[("UNIQ_KEY", "u"), ("n", &at.to_string())]);
        bench.send(&at.to_string(), &[("properties", &properties)]);
    }
    let filter = bench.engine.program("n between 3 and 5").unwrap();
    bench.engine.subscribe("G", "T", 1, filter);
    let reply = one(&bench.pull(&[("sysFlag", "0"), ("subVersion", "1")]));
    assert_eq!((reply.bodies(), reply.number("nextBeginOffset")), (vec!["3".into(), "4".into(), "5".into()], 10));
    let filter = bench.engine.program("n > 100").unwrap();
    bench.engine.subscribe("G", "T", 1, filter);
    let reply = one(&bench.pull(&[("sysFlag", "0"), ("subVersion", "1")]));
    assert_eq!((reply.code, reply.number("nextBeginOffset")), (20, 10));
    assert!(bench.engine.program("n >").is_err());
    // an SQL expression in the request itself is for policy
    assert_eq!(bench.pull(&[("expressionType", "SQL92"), ("subscription", "n > 1")]).commands.len(), 1);
}

#[test]
fn compiled_filters_are_kept_by_the_size_of_their_texts() {
    let mut bench = Bench::new();
    let mut program = |text: &str| match bench.engine.program(text).unwrap() {
        Filter::Sql(program) => program,
        other => panic!("{other:?}"),
    };
    let small = Arc::downgrade(&program("a = 1"));
    assert!(small.upgrade().is_some_and(|kept| Arc::ptr_eq(&kept, &program("a = 1"))), "compiled once");
    let text = |first: usize, bytes: usize| {
        let mut text = format!("a = {first}");
        while text.len() < bytes {
            text.push_str(" OR b = 1");
        }
        text
    };
    let large = Arc::downgrade(&program(&text(0, 3 << 20)));
    assert!(large.upgrade().is_none(), "too large to be kept");
    assert!(small.upgrade().is_some(), "and no reason to forget the others");
    let kept: Vec<_> = (0..40).map(|first| Arc::downgrade(&program(&text(first, 100_000)))).collect();
    let bytes = kept.iter().filter(|one| one.upgrade().is_some()).count() * 100_000;
    assert!((100_000..=1 << 20).contains(&bytes), "{bytes} bytes of texts are kept");
    assert!(kept[39].upgrade().is_some() && small.upgrade().is_none());
}

#[test]
fn a_pull_only_policy_may_grant_comes_out() {
    let mut bench = Bench::new();
    bench.engine.allow_group("slow", true, 0, false);
    bench.engine.allow_group("forbidden", false, 0, true);
    bench.engine.allow_topic("slow", 6, 4, 4, 0, false);
    bench.engine.allow_topic("writeonly", 2, 4, 4, 0, true);
    for (key, value) in [
        ("consumerGroup", "unknown"),
        ("consumerGroup", "slow"),
        ("consumerGroup", "forbidden"),
        ("topic", "unknown"),
        ("topic", "slow"),
        ("topic", "writeonly"),
        ("queueId", "4"),
        ("queueId", "-1"),
        ("queueOffset", "x"),
        ("sysFlag", "12"),
        ("subscription", "||"),
        ("liteTopic", "a"),
        ("requestSource", "0"),
    ] {
        let turn = bench.pull(&[(key, value)]);
        assert_eq!((turn.commands.len(), turn.replies.len()), (1, 0), "{key} {value}");
    }
    bench.engine.change(|settings| settings.lite_pull = false);
    let bytes = bench.request(361, 0, &Bench::pull_fields(&[]), b"");
    assert_eq!(bench.feed(&bytes).commands.len(), 1);
    bench.engine.change(|settings| settings.broker_perm = 2);
    assert_eq!(bench.pull(&[]).commands.len(), 1);
}

#[test]
fn offsets_that_come_with_pulls_come_out_once() {
    let mut bench = Bench::new();
    let turn = bench.pull(&[("sysFlag", "7"), ("commitOffset", "42"), ("queueId", "2")]);
    assert!(turn.replies.is_empty(), "it waits");
    assert_eq!(turn.commits.len(), 1);
    let commit = &turn.commits[0];
    assert_eq!((&*commit.group, &*commit.topic, commit.queue_id, commit.offset), ("G", "T", 2, 42));
    assert!(bench.engine.expire(NOW_MS + 20_000).commits.is_empty());
    assert!(bench.pull(&[("commitOffset", "42")]).commits.is_empty(), "without the flag it is no commit");
}

// ---- waiting --------------------------------------------------------------------------------------------------------

const WAIT: [(&str, &str); 1] = [("sysFlag", "6")];

#[test]
fn a_waiting_pull_is_woken_by_the_append_in_the_same_turn() {
    let mut bench = Bench::new();
    let consumer = bench.engine.session("10.0.0.9:1".parse().unwrap());
    let request = frame(Encoding::RocketMq, 11, 77, 0, &Bench::pull_fields(&WAIT), b"");
    assert!(bench.engine.feed(consumer, &request).replies.is_empty());
    assert_eq!(bench.engine.parked(), 1);
    bench.send("elsewhere", &[("queueId", "1")]);
    assert_eq!(bench.engine.parked(), 1);
    let turn = bench.send("news", &[]);
    let all = replies(&turn);
    assert_eq!(
        all.iter().map(|reply| (reply.session, reply.opaque)).collect::<Vec<_>>(),
        [(bench.session, 2), (consumer, 77)]
    );
    assert_eq!((all[1].bodies(), all[1].encoding), (vec!["news".to_owned()], Encoding::RocketMq));
    assert_eq!(bench.engine.parked(), 0);
    assert!(bench.engine.expire(NOW_MS + 60_000).replies.is_empty(), "it is answered once");
    // what policy appends wakes as well
    let request = frame(Encoding::Json, 11, 78, 0, &Bench::pull_fields(&[("sysFlag", "6"), ("queueOffset", "1")]), b"");
    assert!(bench.engine.feed(consumer, &request).replies.is_empty());
    let (_, turn) = bench.engine.append(&[record("T", 0, b"policy", b"")]).unwrap();
    assert_eq!(one(&turn).bodies(), ["policy"]);
    // and a send in the chunk that brought the pull
    let mut chunk = bench.request(11, 0, &Bench::pull_fields(&[("sysFlag", "6"), ("queueOffset", "2")]), b"");
    chunk.extend(bench.send_frame("same chunk", &[]));
    let turn = bench.feed(&chunk);
    assert_eq!(replies(&turn).iter().filter(|reply| !reply.body.is_empty()).count(), 1);
}

#[test]
fn a_waiting_pull_sleeps_through_what_it_did_not_ask_for() {
    let mut bench = Bench::new();
    let wanted = [("sysFlag", "6"), ("subscription", "blue")];
    assert!(bench.pull(&wanted).replies.is_empty());
    let red = property_text(&[("UNIQ_KEY", "u"), ("TAGS", "red")]);
    let blue = property_text(&[("UNIQ_KEY", "u"), ("TAGS", "blue")]);
    for _ in 0..3 {
        assert_eq!(one(&bench.send("no", &[("properties", &red)])).code, 0);
    }
    let turn = bench.send("yes", &[("properties", &blue)]);
    let woken = replies(&turn).pop().unwrap();
    assert_eq!((woken.bodies(), woken.number("nextBeginOffset")), (vec!["yes".to_owned()], 4));
    // its time over, it is told how far it need not look again
    let wanted = [("sysFlag", "6"), ("subscription", "blue"), ("queueOffset", "4")];
    assert!(bench.pull(&wanted).replies.is_empty());
    bench.send("no", &[("properties", &red)]);
    let reply = one(&bench.engine.expire(NOW_MS + 15_000));
    assert_eq!(
        (reply.code, reply.remark.as_deref(), reply.number("nextBeginOffset")),
        (20, Some("NO_MATCHED_MESSAGE"), 5)
    );
}

#[test]
fn a_waiting_pull_ends_at_its_time() {
    let mut bench = Bench::new();
    bench.pull(&[("sysFlag", "6"), ("suspendTimeoutMillis", "2000")]);
    bench.clock.advance(500);
    bench.pull(&[("sysFlag", "6"), ("suspendTimeoutMillis", "1000"), ("queueId", "1")]);
    assert_eq!(bench.engine.next_expiry_ms(), Some(NOW_MS + 1500));
    assert!(bench.engine.expire(NOW_MS + 1499).replies.is_empty());
    let reply = one(&bench.engine.expire(NOW_MS + 1500));
    assert_eq!((reply.opaque, reply.code, reply.remark.as_deref()), (2, 19, Some("NO_MESSAGE_IN_QUEUE")));
    assert_eq!(one(&bench.engine.expire(NOW_MS + 2000)).opaque, 1);
    assert_eq!((bench.engine.parked(), bench.engine.next_expiry_ms()), (0, None));
    // without long polling every wait is short
    bench.engine.change(|settings| settings.long_polling = false);
    bench.pull(&[("sysFlag", "6"), ("suspendTimeoutMillis", "20000")]);
    assert_eq!(bench.engine.next_expiry_ms(), Some(NOW_MS + 500 + 1000));
}

#[test]
fn the_end_of_a_session_ends_its_waiting() {
    let mut bench = Bench::new();
    bench.pull(&WAIT);
    bench.pull(&[("sysFlag", "6"), ("queueId", "1")]);
    let (other, mine) = (bench.engine.session("10.0.0.9:1".parse().unwrap()), bench.session);
    bench.session = other;
    bench.pull(&WAIT);
    bench.session = mine;
    assert_eq!(bench.engine.parked(), 3);
    bench.engine.close_session(mine);
    assert_eq!(bench.engine.parked(), 1);
    assert!(bench.send("x", &[]).replies.is_empty(), "a closed session is fed in vain");
    let turn = bench.engine.append(&[record("T", 0, b"x", b"")]).unwrap().1;
    assert_eq!(one(&turn).session, other);
    // nor does policy park anything for it any more
    let fields = Bench::pull_fields(&WAIT);
    let header = Header::assemble(11, 1, 0, fields.iter().map(|(key, value)| (*key, value.as_str())));
    assert!(bench.engine.pull(mine, &header, &[], Encoding::Json, Filter::All, true).unwrap().replies.is_empty());
    assert_eq!(bench.engine.parked(), 0);
}

#[test]
fn pulls_of_a_peer_that_does_not_read_wait_until_it_does() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        assert!(bench.pull(&[("sysFlag", "6"), ("suspendTimeoutMillis", "2000")]).replies.is_empty());
    }
    let (other, mine) = (bench.engine.session("10.0.0.9:1".parse().unwrap()), bench.session);
    bench.session = other;
    bench.pull(&WAIT);
    assert!(bench.engine.stall(mine, true).replies.is_empty());
    let (_, turn) = bench.engine.append(&[record("T", 0, b"x", b"")]).unwrap();
    assert_eq!(one(&turn).session, other, "others hear of it");
    // nor does their time end meanwhile, nor is a queue without messages taken from under them
    bench.session = mine;
    bench.clock.advance(2000);
    assert!(bench.engine.expire(NOW_MS + 2000).replies.is_empty());
    assert_eq!((bench.engine.parked(), bench.engine.next_expiry_ms()), (50, Some(NOW_MS + 3000)));
    let turn = bench.engine.stall(mine, false);
    let woken = replies(&turn);
    assert_eq!((woken.len(), bench.engine.parked()), (50, 0));
    assert!(woken.iter().all(|reply| reply.session == mine && reply.bodies() == ["x"]));

    // nothing came meanwhile: they wait on, and end at a time of their own
    let later = [("sysFlag", "6"), ("suspendTimeoutMillis", "500"), ("queueOffset", "1")];
    assert!(bench.pull(&later).replies.is_empty());
    bench.engine.stall(mine, true);
    bench.clock.advance(500);
    assert!(bench.engine.expire(NOW_MS + 2500).replies.is_empty());
    assert!(bench.engine.stall(mine, false).replies.is_empty());
    assert_eq!(one(&bench.engine.expire(NOW_MS + 3500)).code, 19);
    assert!(bench.pull(&later).replies.is_empty());
    bench.engine.stall(mine, true);
    assert_eq!(one(&bench.engine.expire(i64::MAX / 2)).code, 19, "the broker stops: everybody is told");
    // gone, and nothing of it is left
    assert!(bench.pull(&later).replies.is_empty());
    bench.engine.close_session(mine);
    assert_eq!((bench.engine.parked(), bench.engine.next_expiry_ms()), (0, None));
    assert!(bench.engine.stall(mine, false).replies.is_empty());
}

#[test]
fn a_topic_is_not_empty_of_waiting_because_those_who_wait_do_not_read() {
    let mut bench = Bench::new();
    assert!(bench.pull(&WAIT).replies.is_empty());
    bench.engine.stall(bench.session, true);
    assert!(!bench.engine.delete_empty_topic("T").unwrap());
    bench.engine.close_session(bench.session);
    assert!(bench.engine.delete_empty_topic("T").unwrap());
}

#[test]
fn one_message_for_many_waiting_pulls_of_a_session_comes_in_turns() {
    let mut bench = Bench::new();
    bench.engine.change(|settings| settings.turn_bytes_max = 10_000);
    for _ in 0..20 {
        assert!(bench.pull(&WAIT).replies.is_empty());
    }
    let (other, mine) = (bench.engine.session("10.0.0.9:1".parse().unwrap()), bench.session);
    bench.session = other;
    bench.pull(&WAIT);
    let (_, mut turn) = bench.engine.append(&[record("T", 0, &[b'x'; 4000], b"")]).unwrap();
    let mut of_mine = 0;
    for round in 0..20 {
        let all = replies(&turn);
        assert!(all.len() <= 4, "{}", all.len());
        assert_eq!(all.iter().filter(|reply| reply.session == other).count(), usize::from(round == 0));
        of_mine += all.iter().filter(|reply| reply.session == mine).count();
        if bench.engine.parked() == 0 {
            break;
        }
        assert_eq!(bench.engine.next_expiry_ms(), Some(i64::MIN));
        turn = bench.engine.expire(NOW_MS);
    }
    assert_eq!(of_mine, 20);
}

#[test]
fn narrower_tables_end_the_waiting() {
    let mut bench = Bench::new();
    for end in 0..4 {
        bench.engine.allow_topic("T", 6, 4, 4, 0, true);
        bench.engine.allow_group("G", true, 0, true);
        assert!(bench.pull(&WAIT).replies.is_empty());
        match end {
            0 => bench.engine.allow_topic("T", 2, 4, 4, 0, true),
            1 => bench.engine.allow_group("G", false, 0, true),
            2 => bench.engine.forget_group("G"),
            _ => bench.engine.delete_topic("T").unwrap(),
        }
        let reply = one(&bench.engine.expire(NOW_MS));
        assert_eq!(reply.code, if end == 3 { 17 } else { 19 });
    }
}

/// Asks again from where the pull was, whatever it had skipped.
fn asks_again(reply: &Reply, code: i32) {
    assert_eq!((reply.code, reply.number("nextBeginOffset"), reply.bodies().len()), (code, 0, 0), "{reply:?}");
}

#[test]
fn a_changed_subscription_ends_the_waiting_where_it_began() {
    let mut bench = Bench::new();
    let properties = |tag, n| property_text(&[("UNIQ_KEY", "u"), ("TAGS", tag), ("n", n)]);
    let (wanted_later, wanted_first) = (properties("blue", "1"), properties("red", "9"));
    let above = bench.engine.program("n > 5").unwrap();
    let below = bench.engine.program("n < 5").unwrap();
    let cases = [
        ("0", Filter::tags("red"), Some(Filter::tags("blue"))),
        ("1", above.clone(), Some(below)),
        ("2", Filter::tags("red"), None),
        ("3", above, None),
    ];
    for (queue, old, new) in cases {
        let waits = [("sysFlag", "2"), ("subVersion", "1"), ("queueId", queue)];
        bench.engine.subscribe("G", "T", 1, old);
        assert!(bench.pull(&waits).replies.is_empty());
        assert_eq!(one(&bench.send("skipped", &[("queueId", queue), ("properties", &wanted_later)])).code, 0);
        match new.clone() {
            Some(new) => bench.engine.subscribe("G", "T", 2, new),
            None => bench.engine.unsubscribe("G", Some("T")),
        }
        // What comes before it is told does not come to it by the old filter either.
        assert_eq!(one(&bench.send("late", &[("queueId", queue), ("properties", &wanted_first)])).code, 0);
        asks_again(&one(&bench.engine.expire(NOW_MS)), 20);
        if new.is_some() {
            assert_eq!(one(&bench.pull(&waits)).bodies(), ["skipped"]);
        }
    }
    // When nothing was skipped, there is nothing new.
    bench.engine.allow_topic("empty", 6, 4, 4, 0, true);
    bench.engine.subscribe("G", "empty", 1, Filter::tags("red"));
    assert!(bench.pull(&[("sysFlag", "2"), ("topic", "empty")]).replies.is_empty());
    bench.engine.subscribe("G", "empty", 2, Filter::tags("blue"));
    asks_again(&one(&bench.engine.expire(NOW_MS)), 19);
}

#[test]
fn who_is_not_concerned_waits_on_when_a_subscription_changes() {
    let mut bench = Bench::new();
    bench.engine.allow_group("H", true, 0, true);
    let filter = bench.engine.program("n > 5").unwrap();
    for (group, topic) in [("G", "T"), ("G", "U"), ("H", "T")] {
        bench.engine.allow_topic(topic, 6, 4, 4, 0, true);
        bench.engine.subscribe(group, topic, 1, filter.clone());
        let waits = [("sysFlag", "2"), ("consumerGroup", group), ("topic", topic)];
        assert!(bench.pull(&waits).replies.is_empty());
    }
    let own = [("sysFlag", "6"), ("subscription", "red")];
    assert!(bench.pull(&own).replies.is_empty());
    // Heartbeats say the same again, with a newer version, or in a text that was compiled anew.
    bench.engine.subscribe("G", "T", 1, filter.clone());
    bench.engine.subscribe("G", "T", 2, filter);
    for number in 0..2000 {
        bench.engine.program(&format!("other = {number}")).unwrap();
    }
    let again = bench.engine.program("n > 5").unwrap();
    bench.engine.subscribe("G", "T", 3, again);
    assert_eq!((bench.engine.expire(NOW_MS).replies.len(), bench.engine.parked()), (0, 4));
    bench.engine.subscribe("G", "T", 4, Filter::All);
    assert_eq!((one(&bench.engine.expire(NOW_MS)).opaque, bench.engine.parked()), (1, 3));
    bench.engine.unsubscribe("H", None);
    assert_eq!((one(&bench.engine.expire(NOW_MS)).opaque, bench.engine.parked()), (3, 2));
    bench.engine.unsubscribe("G", None);
    assert_eq!((one(&bench.engine.expire(NOW_MS)).opaque, bench.engine.parked()), (2, 1));
}

#[test]
fn thousands_wait_and_are_woken_without_leaving_anything_behind() {
    let mut bench = Bench::new();
    bench.engine.allow_topic("T", 6, 100, 100, 0, true);
    for round in 0..20 {
        for queue in 0..100 {
            bench.pull(&[("sysFlag", "6"), ("queueId", &queue.to_string()), ("queueOffset", &round.to_string())]);
        }
        assert_eq!(bench.engine.parked(), 100);
        let records: Vec<_> = (0..100).map(|queue| record("T", queue, b"x", b"")).collect();
        let (_, turn) = bench.engine.append(&records).unwrap();
        assert_eq!(replies(&turn).len(), 100);
        assert_eq!(turn.replies.len(), 1, "one session's replies go together");
    }
    assert_eq!((bench.engine.parked(), bench.engine.next_expiry_ms()), (0, None));
}

// ---- synchronous flush ----------------------------------------------------------------------------------------------

#[test]
fn with_synchronous_flush_replies_and_readers_wait_for_it() {
    let mut bench = Bench::with(FlushMode::Sync);
    assert!(bench.pull(&WAIT).replies.is_empty());
    assert!(bench.send("a", &[]).replies.is_empty());
    assert_eq!(bench.engine.held(), 1);
    assert_eq!(one(&bench.pull(&[])).code, 19, "not visible before it is flushed");
    assert!(bench.engine.settle().replies.is_empty());
    bench.engine.store.tick().unwrap();
    let turn = bench.engine.settle();
    let all = replies(&turn);
    assert_eq!(all.iter().map(|reply| (reply.opaque, reply.code)).collect::<Vec<_>>(), [(2, 0), (1, 0)]);
    assert_eq!(all[1].bodies(), ["a"]);
    assert_eq!(bench.engine.held(), 0);
}

#[test]
fn a_flush_that_takes_too_long_is_said_so() {
    let mut bench = Bench::with(FlushMode::Sync);
    bench.send("a", &[]);
    assert_eq!(bench.engine.next_expiry_ms(), Some(NOW_MS + 5000));
    assert!(bench.engine.expire(i64::MAX).replies.is_empty(), "the end of all waiting is not the disk's");
    bench.clock.advance(4999);
    assert!(bench.engine.expire(NOW_MS + 4999).replies.is_empty());
    bench.clock.advance(1);
    let reply = one(&bench.engine.expire(NOW_MS + 5000));
    assert_eq!((reply.code, reply.number("queueOffset"), reply.field("transactionId")), (10, 0, "U"));
    bench.engine.store.tick().unwrap();
    assert!(bench.engine.settle().replies.is_empty(), "it is answered once");
}

#[test]
fn a_failed_flush_is_an_error_to_all_who_wait_for_it() {
    let mut bench = Bench::with(FlushMode::Sync);
    bench.send("a", &[]);
    bench.send("b", &[]);
    bench.disk.fail_syncs(true);
    let _ = bench.engine.store.tick();
    let turn = bench.engine.settle();
    let all = replies(&turn);
    assert_eq!(all.iter().map(|reply| (reply.opaque, reply.code)).collect::<Vec<_>>(), [(1, 14), (2, 14)]);
    assert!(all[0].remark.is_some());
    assert_eq!(bench.engine.held(), 0);
    assert_eq!(one(&bench.send("c", &[])).code, 14);
}

// ---- streams --------------------------------------------------------------------------------------------------------

#[test]
fn replies_that_grow_long_stop_the_turn_and_lose_nothing() {
    let mut bench = Bench::new();
    let big = "x".repeat(200 * 1024);
    bench.send(&big, &[]);
    bench.engine.change(|settings| settings.turn_bytes_max = 500_000);
    let stream: Vec<u8> = (0..10).flat_map(|_| bench.request(11, 0, &Bench::pull_fields(&[]), b"")).collect();
    let mut turn = bench.feed(&stream);
    let mut opaques = Vec::new();
    let mut turns = 0;
    loop {
        let all = replies(&turn);
        assert!(all.len() <= 3);
        opaques.extend(all.iter().map(|reply| reply.opaque));
        turns += 1;
        if !turn.more {
            break;
        }
        turn = bench.feed(b"");
    }
    assert_eq!((opaques, turns), ((2..=11).collect::<Vec<_>>(), 4));
}

#[test]
fn garbage_ends_the_stream_but_not_what_came_before_it() {
    let mut bench = Bench::new();
    let mut stream = bench.send_frame("x", &[]);
    stream.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    let turn = bench.feed(&stream);
    assert_eq!(replies(&turn).len(), 1);
    assert!(turn.error.unwrap().reason.starts_with("http: "));
    assert_eq!(bench.engine.counters.faults.iter().sum::<u64>(), 1);
    assert_eq!(one(&bench.pull(&[])).bodies(), ["x"]);
}

#[test]
fn responses_and_other_codes_come_out_in_their_order() {
    let mut bench = Bench::new();
    let mut stream = bench.request(34, 0, &[], b"heartbeat");
    stream.extend(bench.send_frame("x", &[]));
    stream.extend(bench.request(310, 1, &send_fields(310, &[]), b"a reply that has a send's number"));
    let turn = bench.feed(&stream);
    assert_eq!(turn.commands.iter().map(|command| command.header.code).collect::<Vec<_>>(), [34, 310]);
    assert_eq!((turn.commands[0].body.as_slice(), turn.replies.len()), (&b"heartbeat"[..], 1));
}

#[derive(Debug, Clone)]
enum Step {
    Send { queue: i32, tag: usize, bytes: usize, oneway: bool },
    Batch { count: usize },
    Pull { queue: u32, offset: i64, tag: usize, wait: bool },
    Other,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5i32, 0..3usize, 1..300usize, any::<bool>())
            .prop_map(|(queue, tag, bytes, oneway)| Step::Send { queue, tag, bytes, oneway }),
        1 => (1..5usize).prop_map(|count| Step::Batch { count }),
        4 => (0..4u32, 0..8i64, 0..3usize, any::<bool>())
            .prop_map(|(queue, offset, tag, wait)| Step::Pull { queue, offset, tag, wait }),
        1 => Just(Step::Other),
    ]
}

fn stream(steps: &[Step], encoding: Encoding) -> Vec<Vec<u8>> {
    const TAGS: [&str; 3] = ["red", "blue", "*"];
    let mut frames = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let opaque = at as i32 + 1;
        frames.push(match step {
            Step::Send { queue, tag, bytes, oneway } => {
                let properties = property_text(&[("UNIQ_KEY", &format!("u{at}")), ("TAGS", TAGS[*tag])]);
                let fields = send_fields(310, &[("queueId", &queue.to_string()), ("properties", &properties)]);
                frame(encoding, 310, opaque, if *oneway { 2 } else { 0 }, &fields, &vec![b'x'; *bytes])
            }
            Step::Batch { count } => {
                let body = batch_body(&vec![("b", "TAGS\u{1}red\u{2}"); *count]);
                frame(encoding, 320, opaque, 0, &send_fields(320, &[("batch", "true")]), &body)
            }
            Step::Pull { queue, offset, tag, wait } => {
                let (queue, offset) = (queue.to_string(), offset.to_string());
                let changes = [
                    ("queueId", queue.as_str()),
                    ("queueOffset", &offset),
                    ("subscription", TAGS[*tag]),
                    ("sysFlag", if *wait { "6" } else { "4" }),
                ];
                frame(encoding, 11, opaque, 0, &Bench::pull_fields(&changes), b"")
            }
            Step::Other => frame(encoding, 34, opaque, 0, &[], b"heartbeat"),
        });
    }
    frames
}

/// Feeds the chunks, then lets all waiting end; what came out, by opaque.
fn outcome<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, fast: bool) -> (BTreeMap<i32, Reply>, Vec<i32>, Vec<u8>) {
    let mut bench = Bench::new();
    bench.engine.change(|settings| settings.fast = fast);
    let mut all = Vec::new();
    let mut commands = Vec::new();
    for chunk in chunks {
        let turn = bench.feed(chunk);
        assert!(turn.error.is_none() && !turn.more);
        all.extend(replies(&turn));
        commands.extend(turn.commands.iter().map(|command| command.header.opaque));
    }
    all.extend(replies(&bench.engine.expire(NOW_MS + 3_600_000)));
    let count = all.len();
    let by_opaque: BTreeMap<i32, Reply> = all.into_iter().map(|reply| (reply.opaque, reply)).collect();
    assert_eq!(by_opaque.len(), count, "nothing is answered twice");
    let log = bench.engine.store.stats().max_position;
    let mut stored = log.to_be_bytes().to_vec();
    for queue in 0..4 {
        let found = bench.engine.read("T", queue, 0, 10_000, u64::MAX, &Filter::All, &mut stored).unwrap();
        stored.extend_from_slice(&found.next_offset.to_be_bytes());
    }
    (by_opaque, commands, stored)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Frame by frame, byte by byte, in odd chunks: the same replies and the same bytes in the store. (In larger chunks
    /// a pull may see less: what is behind it in the chunk is written after it.)
    #[test]
    fn how_a_stream_is_cut_changes_nothing(steps in proptest::collection::vec(step(), 1..25), binary in any::<bool>(), size in 1..40usize) {
        let encoding = if binary { Encoding::RocketMq } else { Encoding::Json };
        let frames = stream(&steps, encoding);
        let whole: Vec<u8> = frames.concat();
        let by_frame = outcome(frames.iter().map(Vec::as_slice), true);
        let by_byte = outcome(whole.chunks(1), true);
        prop_assert_eq!(&by_frame, &by_byte);
        let odd = outcome(whole.chunks(size), true);
        prop_assert_eq!(&by_frame, &odd);
        let at_once = outcome([&whole[..]], true);
        prop_assert_eq!(&by_frame.1, &at_once.1);
        prop_assert_eq!(&by_frame.2, &at_once.2);
        prop_assert_eq!(by_frame.0.keys().collect::<Vec<_>>(), at_once.0.keys().collect::<Vec<_>>());
        // with nothing allowed, everything comes out
        let slow = outcome([&whole[..]], false);
        prop_assert_eq!(slow.1.len(), steps.len());
        prop_assert!(slow.0.is_empty());
    }

    /// Whatever bytes come: an answer, a command or an error, never a panic.
    #[test]
    fn any_bytes_behind_a_good_frame(steps in proptest::collection::vec(step(), 1..3), at in any::<prop::sample::Index>(), byte in any::<u8>(), junk in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut whole: Vec<u8> = stream(&steps, Encoding::Json).concat();
        let at = at.index(whole.len());
        whole[at] = byte;
        whole.extend_from_slice(&junk);
        let mut bench = Bench::new();
        bench.feed(&whole);
        bench.engine.expire(NOW_MS + 3_600_000);
    }
}
