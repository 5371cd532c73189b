//! SEND_MESSAGE, SEND_MESSAGE_V2 and SEND_BATCH_MESSAGE, where the tables allow it.
//!
//! A send is staged and its reply written at once; both count only when the chunk's commit succeeds (`session`).
//! Anything the tables do not clearly allow, and every refusal, is left to policy: [`Served::No`], nothing staged.

use std::net::{IpAddr, SocketAddr};

use crate::clock::Clock;
use crate::error::Error;
use crate::frame::Frame;
use crate::header::{parse_i64, Encoding, Fixed, Header, Writer, FLAG_RESPONSE};
use crate::property::{self, flag, Known};
use crate::record::NewRecord;
use crate::store::{QueueRef, Staged, Store, DENSE_QUEUES};
use crate::tables::{Tables, Topic, PERM_WRITE};

pub const SEND_MESSAGE: i32 = 10;
pub const SEND_MESSAGE_V2: i32 = 310;
pub const SEND_BATCH_MESSAGE: i32 = 320;

/// Properties text longer than this does not fit its length field.
const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;
/// More messages are too many for a batch: its reply names each in 57 bytes at most (IPv6), and a header's length has 24 bits. These take
/// 14.9 of the 16.7 MB; the unique key, which is said again, is at most as long as properties can be, in JSON 6 times that: 0.2 MB.
pub const BATCH_MESSAGES_MAX: usize = 1 << 18;
/// Longer topic names need policy (they are retry or dead letter topics).
const TOPIC_BYTES_MAX: usize = 127;
/// Properties that only policy can serve. A single message that names light queues is the store's business, if it has any.
const POLICY_FLAGS: u32 = flag::DELAY
    | flag::TIMER
    | flag::START_DELIVER
    | flag::TRANSACTION
    | flag::MULTI_DISPATCH
    | flag::LITE_TOPIC
    | flag::PRIORITY
    | flag::INNER_BATCH
    | flag::CRC32;
/// The same inside a batch, where properties are stored as they come: nobody would take these out.
const BATCH_POLICY_FLAGS: u32 = POLICY_FLAGS | flag::MULTI_OFFSETS;
/// Properties the broker writes itself; the sender's are taken out.
const REPLACED_FLAGS: u32 = flag::POP_CK | flag::MSG_REGION | flag::TRACE_ON | flag::CLUSTER;
/// sysFlag bits the engine leaves to policy: transaction state, inner batches.
const POLICY_SYS_FLAGS: i32 = 0x4 | 0x8 | 0x40 | 0x80;

/// What became of a command.
#[derive(Debug)]
pub enum Served {
    Yes,
    /// For policy.
    No,
    /// The store refuses: an error reply with this reason.
    Refused(Error),
}

/// The header fields a send needs.
#[derive(Default)]
struct Fields<'a> {
    topic: &'a [u8],
    queue_id: Option<i64>,
    sys_flag: i64,
    born_timestamp: i64,
    flag: i64,
    properties: &'a [u8],
    reconsume_times: i64,
    batch: bool,
    /// The request says itself whether its numbers are logical ones of a static topic.
    says_logical: bool,
}

impl<'a> Fields<'a> {
    /// One-letter names (310, 320). None when a number is none.
    #[inline]
    fn short(header: &'a Header, source: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::default();
        for (key, value) in header.raw_fields(source) {
            let &[key] = key else {
                fields.says_logical |= key == b"lo";
                continue;
            };
            match key {
                b'b' => fields.topic = value,
                b'e' => fields.queue_id = Some(parse_i64(value)?),
                b'f' => fields.sys_flag = parse_i64(value)?,
                b'g' => fields.born_timestamp = parse_i64(value)?,
                b'h' => fields.flag = parse_i64(value)?,
                b'i' => fields.properties = value,
                b'j' => fields.reconsume_times = parse_i64(value)?,
                b'm' => fields.batch = value.eq_ignore_ascii_case(b"true"),
                _ => {}
            }
        }
        Some(fields)
    }

    /// Long names (10). None when a number is none.
    fn long(header: &'a Header, source: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::default();
        for (key, value) in header.raw_fields(source) {
            match key {
                b"topic" => fields.topic = value,
                b"queueId" => fields.queue_id = Some(parse_i64(value)?),
                b"sysFlag" => fields.sys_flag = parse_i64(value)?,
                b"bornTimestamp" => fields.born_timestamp = parse_i64(value)?,
                b"flag" => fields.flag = parse_i64(value)?,
                b"properties" => fields.properties = value,
                b"reconsumeTimes" => fields.reconsume_times = parse_i64(value)?,
                b"batch" => fields.batch = value.eq_ignore_ascii_case(b"true"),
                b"lo" => fields.says_logical = true,
                _ => {}
            }
        }
        Some(fields)
    }
}

/// Reused buffers and what replies repeat.
pub struct Sender {
    properties: Vec<u8>,
    /// `MSG_REGION`, `TRACE_ON` and `CLUSTER` as property text.
    suffix: Vec<u8>,
    /// The store host as the front of a message id, in hex.
    host_hex: Vec<u8>,
    message_ids: Vec<u8>,
    inner: Vec<Inner>,
    ids: UniqueIds,
    random: u64,
}

/// One message inside a batch's body.
#[derive(Clone, Copy)]
struct Inner {
    flag: i32,
    body: (usize, usize),
    properties: (usize, usize),
    known: Known,
}

impl Sender {
    pub fn new(tables: &Tables, now_ms: i64) -> Self {
        let mut sender = Sender {
            properties: Vec::new(),
            suffix: Vec::new(),
            host_hex: Vec::new(),
            message_ids: Vec::new(),
            inner: Vec::new(),
            ids: UniqueIds::new(tables.settings.store_host.ip(), now_ms),
            random: now_ms as u64 | 1,
        };
        sender.settings_changed(tables);
        sender
    }

    /// Builds again what replies and records repeat.
    pub fn settings_changed(&mut self, tables: &Tables) {
        let settings = &tables.settings;
        let trace = if settings.trace_on { "true" } else { "false" };
        self.suffix.clear();
        for (name, value) in
            [("MSG_REGION", settings.region.as_str()), ("TRACE_ON", trace), ("CLUSTER", settings.cluster.as_str())]
        {
            push_property(&mut self.suffix, name.as_bytes(), value.as_bytes());
        }
        self.host_hex = message_id_front(settings.store_host);
        self.ids.set_ip(settings.store_host.ip());
    }

    /// Serves one send: stages its records and appends its reply to `replies` (nothing for a oneway).
    #[allow(clippy::too_many_arguments)]
    pub fn serve(
        &mut self,
        store: &mut Store,
        tables: &mut Tables,
        clock: &dyn Clock,
        peer: SocketAddr,
        header: &Header,
        frame: &Frame<'_>,
        replies: &mut Vec<u8>,
    ) -> Served {
        let fields = match header.code {
            SEND_MESSAGE => Fields::long(header, frame.header),
            _ => Fields::short(header, frame.header),
        };
        let Some(fields) = fields else { return Served::No };
        let settings = &tables.settings;
        let Ok(topic_name) = std::str::from_utf8(fields.topic) else { return Served::No };
        let Some(topic) = tables.topics.get_mut(topic_name) else { return Served::No };
        let Some(asked_queue) = fields.queue_id else { return Served::No };
        let led = match topic.fast {
            true => None,
            false if fields.says_logical => return Served::No,
            false => match topic.led.iter().find(|led| led.logical_queue as i64 == asked_queue) {
                Some(led) => Some(*led),
                None => return Served::No,
            },
        };
        let wanted_queue = led.map_or(asked_queue, |led| led.queue as i64);
        if topic.perm & PERM_WRITE == 0
            || settings.broker_perm & PERM_WRITE == 0
            || fields.topic.len() > TOPIC_BYTES_MAX
            || topic.write_queues == 0
            || wanted_queue >= topic.write_queues as i64
            || frame.body.is_empty()
            || frame.body.len() > settings.body_bytes_max
            || fields.sys_flag & POLICY_SYS_FLAGS as i64 != 0
            || i32::try_from(fields.sys_flag).is_err()
            || i32::try_from(fields.flag).is_err()
            || i32::try_from(fields.reconsume_times).is_err()
        {
            return Served::No;
        }
        let queue_id = if wanted_queue < 0 { self.random_queue(topic.write_queues) } else { wanted_queue as u32 };
        let batch = fields.batch || header.code == SEND_BATCH_MESSAGE;
        let staged = if batch {
            self.stage_batch(store, topic, peer, &fields, queue_id, frame.body)
        } else {
            self.stage_one(store, topic, clock, peer, &fields, queue_id, frame.body)
        };
        let (first, transaction_id) = match staged {
            Ok(Some(done)) => done,
            Ok(None) => return Served::No,
            Err(error) => return Served::Refused(error),
        };
        if header.is_oneway() {
            return Served::Yes;
        }
        let mut writer = Writer::begin(
            replies,
            frame.encoding,
            Fixed {
                code: 0,
                language: 0,
                version: settings.version,
                opaque: header.opaque,
                flag: FLAG_RESPONSE,
                remark: None,
            },
        );
        writer.field("msgId", std::str::from_utf8(&self.message_ids).unwrap_or(""));
        let (told_queue, told_offset) = match led {
            Some(led) => (asked_queue, led.logical_start + (first.queue_offset - led.start).max(0)),
            None => (queue_id as i64, first.queue_offset),
        };
        writer.number("queueId", told_queue);
        writer.number("queueOffset", told_offset);
        let transaction_id = transaction_id.of(&self.properties, fields.properties);
        if !transaction_id.is_empty() {
            writer.field("transactionId", std::str::from_utf8(transaction_id).unwrap_or(""));
        }
        writer.field("MSG_REGION", &settings.region);
        writer.field("TRACE_ON", if settings.trace_on { "true" } else { "false" });
        writer.end_header();
        writer.finish();
        Served::Yes
    }

    /// Stages a single message. None: for policy.
    #[allow(clippy::too_many_arguments)]
    fn stage_one(
        &mut self,
        store: &mut Store,
        topic: &mut Topic,
        clock: &dyn Clock,
        peer: SocketAddr,
        fields: &Fields<'_>,
        queue_id: u32,
        body: &[u8],
    ) -> Result<Option<(Staged, UniqueKey)>, Error> {
        let mut known = property::scan(fields.properties);
        let asks =
            known.any(POLICY_FLAGS) && (known.any(POLICY_FLAGS & !flag::MULTI_DISPATCH) || !store.has_light_queues());
        if asks || !topic.admits(&known) {
            return Ok(None);
        }
        let out = &mut self.properties;
        out.clear();
        if known.any(REPLACED_FLAGS) {
            for (name, value) in property::pairs(fields.properties) {
                if !matches!(name, b"POP_CK" | b"MSG_REGION" | b"TRACE_ON" | b"CLUSTER") {
                    push_property(out, name, value);
                }
            }
            known = property::scan(out);
        } else {
            out.extend_from_slice(fields.properties);
            if !matches!(out.last(), None | Some(&property::VALUE_END)) {
                out.push(property::VALUE_END);
            }
        }
        if known.uniq_key.of(out).is_empty() {
            let start = out.len() + b"UNIQ_KEY\x01".len();
            push_property(out, b"UNIQ_KEY", self.ids.next(clock.now_ms()).as_bytes());
            known.flags |= flag::UNIQ_KEY;
            known.uniq_key = property::Span { start: start as u32, end: out.len() as u32 - 1 };
        }
        out.extend_from_slice(&self.suffix);
        if out.len() > PROPERTIES_BYTES_MAX {
            return Ok(None);
        }
        known.flags = known.flags & !flag::POP_CK | flag::MSG_REGION | flag::TRACE_ON | flag::CLUSTER;
        let record = NewRecord {
            topic: &topic.name,
            queue_id,
            flag: fields.flag as i32,
            sys_flag: fields.sys_flag as i32,
            born_timestamp: fields.born_timestamp,
            born_host: peer,
            reconsume_times: fields.reconsume_times as i32,
            prepared_offset: 0,
            body,
            properties: out,
            tags_code: None,
            known: Some(known),
        };
        let queue = queue_of(store, &topic.name, &mut topic.queues, queue_id)?;
        let staged = store.stage(queue, &record)?;
        topic.puts.add(1, staged.size as u64);
        self.message_ids.clear();
        push_message_id(&mut self.message_ids, &self.host_hex, staged.position);
        Ok(Some((staged, UniqueKey::Ours(known.uniq_key))))
    }

    /// Stages every message of a batch; the inner properties are stored as they came. None: for policy.
    fn stage_batch(
        &mut self,
        store: &mut Store,
        topic: &mut Topic,
        peer: SocketAddr,
        fields: &Fields<'_>,
        queue_id: u32,
        body: &[u8],
    ) -> Result<Option<(Staged, UniqueKey)>, Error> {
        if topic.name.starts_with("%RETRY%")
            || fields.properties.len() > PROPERTIES_BYTES_MAX
            || !split_batch(body, &mut self.inner)
            || self.inner.len() > BATCH_MESSAGES_MAX
        {
            return Ok(None);
        }
        // All or nothing: what only policy can serve is found before anything is staged. So is a message that no log file can hold,
        // or the batch is as long as one: policy stores all of it in one go, or nothing.
        if !store.can_hold(&topic.name, body.len()) {
            return Ok(None);
        }
        for inner in &mut self.inner {
            inner.known = property::scan(&body[inner.properties.0..inner.properties.1]);
            if inner.known.any(BATCH_POLICY_FLAGS) || !topic.admits(&inner.known) {
                return Ok(None);
            }
        }
        if let Some(error) = store.health() {
            return Err(error);
        }
        let queue = queue_of(store, &topic.name, &mut topic.queues, queue_id)?;
        let mut first = None;
        self.message_ids.clear();
        for inner in &self.inner {
            let record = NewRecord {
                topic: &topic.name,
                queue_id,
                flag: inner.flag,
                sys_flag: fields.sys_flag as i32,
                born_timestamp: fields.born_timestamp,
                born_host: peer,
                reconsume_times: fields.reconsume_times as i32,
                prepared_offset: 0,
                body: &body[inner.body.0..inner.body.1],
                properties: &body[inner.properties.0..inner.properties.1],
                tags_code: None,
                known: Some(inner.known),
            };
            let staged = store.stage(queue, &record)?;
            topic.puts.add(1, staged.size as u64);
            if first.is_none() {
                first = Some(staged);
            } else {
                self.message_ids.push(b',');
            }
            push_message_id(&mut self.message_ids, &self.host_hex, staged.position);
        }
        let key = property::scan(fields.properties).uniq_key;
        Ok(first.map(|first| (first, UniqueKey::Sent(key))))
    }

    fn random_queue(&mut self, write_queues: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 32) as u32 % write_queues
    }
}

/// Where the reply's transaction id (the unique key) lies.
enum UniqueKey {
    /// In the properties that were stored.
    Ours(property::Span),
    /// In the properties that came.
    Sent(property::Span),
}

impl UniqueKey {
    fn of<'a>(&self, ours: &'a [u8], sent: &'a [u8]) -> &'a [u8] {
        match self {
            UniqueKey::Ours(span) => span.of(ours),
            UniqueKey::Sent(span) => span.of(sent),
        }
    }
}

/// The queue's handle, remembered in the topic's row.
///
/// # Errors
/// As [`Store::queue_named`].
#[inline]
pub fn queue_of(
    store: &mut Store,
    topic: &str,
    queues: &mut Vec<Option<QueueRef>>,
    queue_id: u32,
) -> Result<QueueRef, Error> {
    let at = queue_id as usize;
    if let Some(Some(queue)) = queues.get(at) {
        return Ok(*queue);
    }
    let queue = store.queue_named(topic, queue_id)?;
    if queue_id < DENSE_QUEUES {
        if queues.len() <= at {
            queues.resize(at + 1, None);
        }
        queues[at] = Some(queue);
    }
    Ok(queue)
}

fn push_property(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.push(property::NAME_END);
    out.extend_from_slice(value);
    out.push(property::VALUE_END);
}

/// Cuts a batch's body: per message total size, magic, CRC, flag (4 each), body with a 4 byte length, properties with a
/// 2 byte length. False when it does not come out even, is empty, or has a message without a body.
fn split_batch(body: &[u8], out: &mut Vec<Inner>) -> bool {
    out.clear();
    let mut at = 0;
    while at < body.len() {
        let Some(front) = body.get(at..at + 20) else { return false };
        let flag = i32::from_be_bytes([front[12], front[13], front[14], front[15]]);
        let length = i32::from_be_bytes([front[16], front[17], front[18], front[19]]);
        let start = at + 20;
        let Some(end) = usize::try_from(length).ok().map(|n| start + n) else { return false };
        let Some(length) = body.get(end..end + 2) else { return false };
        let length = i16::from_be_bytes([length[0], length[1]]);
        let from = end + 2;
        let Some(to) = usize::try_from(length).ok().map(|n| from + n) else { return false };
        if to > body.len() || end == start {
            return false;
        }
        out.push(Inner { flag, body: (start, end), properties: (from, to), known: Known::default() });
        at = to;
    }
    !out.is_empty()
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.push(HEX[(byte >> 4) as usize]);
        out.push(HEX[(byte & 15) as usize]);
    }
}

/// Address and port as the front of an offset message id.
pub fn message_id_front(host: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(40);
    match host.ip() {
        IpAddr::V4(ip) => push_hex(&mut out, &ip.octets()),
        IpAddr::V6(ip) => push_hex(&mut out, &ip.octets()),
    }
    push_hex(&mut out, &(host.port() as u32).to_be_bytes());
    out
}

/// Appends the offset message id of the record at `position`.
#[inline]
pub fn push_message_id(out: &mut Vec<u8>, front: &[u8], position: u64) {
    out.extend_from_slice(front);
    out.extend_from_slice(&hex_digits((position >> 32) as u32));
    out.extend_from_slice(&hex_digits(position as u32));
}

/// The eight digits at once: each message of a batch is told its id.
#[inline]
fn hex_digits(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let halves = u64::from(number);
    let pairs = (halves & 0xFFFF_0000) << 16 | (halves & 0xFFFF);
    let bytes = (pairs & 0x0000_FF00_0000_FF00) << 8 | (pairs & 0x0000_00FF_0000_00FF);
    let digits = (bytes & 0x00F0_00F0_00F0_00F0) << 4 | (bytes & 0x000F_000F_000F_000F);
    let letters = (digits + ONES * 6) >> 4 & ONES;
    (digits + ONES * u64::from(b'0') + letters * u64::from(b'A' - b'9' - 1)).to_be_bytes()
}

/// Unique keys for messages that come without, in the form clients make them: address, process, a number of this
/// start, milliseconds since the month began, counter; in hex.
struct UniqueIds {
    front: Vec<u8>,
    salt: u32,
    month_start_ms: i64,
    next_month_ms: i64,
    counter: u16,
}

impl UniqueIds {
    fn new(ip: IpAddr, now_ms: i64) -> Self {
        let salt = (now_ms as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let mut ids =
            UniqueIds { front: Vec::new(), salt: salt as u32, month_start_ms: 0, next_month_ms: 0, counter: 0 };
        ids.set_ip(ip);
        ids
    }

    fn set_ip(&mut self, ip: IpAddr) {
        self.front.clear();
        match ip {
            IpAddr::V4(ip) => push_hex(&mut self.front, &ip.octets()),
            IpAddr::V6(ip) => push_hex(&mut self.front, &ip.octets()),
        }
        push_hex(&mut self.front, &(std::process::id() as u16).to_be_bytes());
        push_hex(&mut self.front, &self.salt.to_be_bytes());
    }

    fn next(&mut self, now_ms: i64) -> String {
        if now_ms >= self.next_month_ms || now_ms < self.month_start_ms {
            (self.month_start_ms, self.next_month_ms) = month_of(now_ms);
        }
        let mut out = self.front.clone();
        push_hex(&mut out, &((now_ms - self.month_start_ms) as u32).to_be_bytes());
        push_hex(&mut out, &self.counter.to_be_bytes());
        self.counter = self.counter.wrapping_add(1);
        String::from_utf8(out).unwrap_or_default()
    }
}

/// Start of the month `now_ms` lies in and of the next one, in UTC. Days to date after Howard Hinnant's
/// `civil_from_days`: years begin in March, so that the leap day is a year's last.
fn month_of(now_ms: i64) -> (i64, i64) {
    const DAY_MS: i64 = 86_400_000;
    let days = now_ms.div_euclid(DAY_MS);
    let shifted = days + 719_468;
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5;
    let start = days - day_of_month;
    // March based: 31 30 31 30 31 31 30 31 30 31 31 and February
    let year = year_of_era + if month >= 10 { 1 } else { 0 };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        11 => 28 + leap as i64,
        1 | 3 | 6 | 8 => 30,
        _ => 31,
    };
    (start * DAY_MS, (start + length) * DAY_MS)
}

/// An error reply to a request, in its encoding.
pub fn error_reply(out: &mut Vec<u8>, encoding: Encoding, opaque: i32, code: i32, remark: &str, tables: &Tables) {
    let fixed = Fixed {
        code,
        language: 0,
        version: tables.settings.version,
        opaque,
        flag: FLAG_RESPONSE,
        remark: Some(remark),
    };
    let mut writer = Writer::begin(out, encoding, fixed);
    writer.field("MSG_REGION", &tables.settings.region);
    writer.field("TRACE_ON", if tables.settings.trace_on { "true" } else { "false" });
    writer.end_header();
    writer.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_begin_where_calendars_say() {
        const DAY_MS: i64 = 86_400_000;
        for (now, start, next) in [
            (0, 0, 31),               // 1 January 1970
            (58, 31, 59),             // 28 February 1970
            (59, 59, 90),             // 1 March 1970
            (11_016, 10_988, 11_017), // 29 February 2000
            (19_782, 19_754, 19_783), // 29 February 2024
            (20_453, 20_423, 20_454), // 31 December 2025
        ] {
            assert_eq!(month_of(now * DAY_MS + 5), (start * DAY_MS, next * DAY_MS), "day {now}");
        }
    }

    #[test]
    fn offset_ids_are_apaches() {
        for position in
            (0..64).map(|bits| 0xFEDC_BA98_7654_3210u64.rotate_left(bits) >> (bits % 7)).chain([0, u64::MAX])
        {
            let mut id = Vec::new();
            push_message_id(&mut id, &message_id_front("127.0.0.1:10911".parse().unwrap()), position);
            assert_eq!(String::from_utf8(id).unwrap(), format!("7F00000100002A9F{position:016X}"));
        }
    }
}
