//! One record of the commit log: what goes in, how its bytes lie, how they are read back and checked.
//!
//! ```text
//! total 4 | magic 4 | body CRC 4 | queue id 4 | flag 4 | queue offset 8 | physical offset 8 | sysFlag 4 | born time 8
//! born host 4+4 or 16+4 | store time 8 | store host 4+4 or 16+4 | reconsume times 4 | prepared offset 8
//! body length 4, body | topic length 1 (version 2: 2), topic | properties length 2, properties
//! ```
//! All big-endian. Version 2 only for topics longer than 127 bytes. A record carries its own physical offset, which is what
//! makes a damaged log readable behind the damage: bytes that claim to be a record say where they belong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::error::Error;
use crate::property::Known;

/// Magic of version 1 (topic length in one byte): -626843481.
pub const MAGIC_V1: u32 = 0xDAA3_20A7;
/// Magic of version 2 (topic length in two bytes): -626843477.
pub const MAGIC_V2: u32 = 0xDAA3_20AB;
/// Magic of the blank that ends a file: -875286124.
pub const MAGIC_BLANK: u32 = 0xCBD4_3194;
/// Each record leaves room for a blank behind it.
pub const BLANK_BYTES: u64 = 8;
/// Bytes of the smallest possible record.
pub const RECORD_BYTES_MIN: usize = 91;
/// Bytes of the largest record besides its topic, body and properties: both hosts are IPv6, the topic's length has two bytes.
pub(crate) const LARGEST_FRAME_BYTES: usize = RECORD_BYTES_MIN + 2 * 12 + 1;
/// Where in a record its queue offset lies.
pub const QUEUE_OFFSET_AT: usize = 20;
/// Where in a record its physical offset lies.
pub const PHYSICAL_OFFSET_AT: usize = 28;

/// sysFlag: the born host is IPv6.
pub const BORN_HOST_V6: i32 = 1 << 4;
/// sysFlag: the store host is IPv6.
pub const STORE_HOST_V6: i32 = 1 << 5;
/// sysFlag: which of the transaction's kinds a record is.
pub const TRANSACTION_MASK: i32 = 3 << 2;
/// sysFlag: half message.
pub const TRANSACTION_PREPARED: i32 = 1 << 2;
/// sysFlag: committed message.
pub const TRANSACTION_COMMIT: i32 = 2 << 2;
/// sysFlag: rolled back message.
pub const TRANSACTION_ROLLBACK: i32 = 3 << 2;

/// Topics longer than this need version 2.
const TOPIC_BYTES_V1: usize = 127;
/// Longest properties: the length is a signed 16-bit number to every reader.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;

/// What is to be stored. The store adds queue offset, physical offset, store time, store host and the body's CRC.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    pub topic: &'a str,
    pub queue_id: u32,
    pub flag: i32,
    /// The IPv6 bits are set by the store from the hosts' kinds.
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_offset: i64,
    pub body: &'a [u8],
    pub properties: &'a [u8],
    /// `None`: Java's hash of the `TAGS` property, 0 without one. `Some` is what the queue entry carries instead
    /// (the delivery time of delayed messages).
    pub tags_code: Option<i64>,
    /// What [`crate::property::scan`] found in `properties`, when the caller has scanned them anyway; `None`: the store does.
    pub known: Option<Known>,
}

/// What the store decides about a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub queue_offset: i64,
    pub position: u64,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
}

/// True if a record of this kind has an entry in its consume queue.
#[inline]
pub fn has_queue_entry(sys_flag: i32) -> bool {
    matches!(sys_flag & TRANSACTION_MASK, 0 | TRANSACTION_COMMIT)
}

/// True if a record of this kind is found by its keys.
#[inline]
pub fn has_index_entry(sys_flag: i32) -> bool {
    sys_flag & TRANSACTION_MASK != TRANSACTION_ROLLBACK
}

/// CRC-32 of a body as records carry it: without the sign bit.
#[inline]
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7FFF_FFFF
}

/// Size of the record, or why there can be none.
#[inline]
pub(crate) fn size_of(record: &NewRecord<'_>, store_host: &SocketAddr) -> Result<usize, Error> {
    let topic = record.topic.len();
    if record.properties.len() > PROPERTIES_BYTES_MAX {
        let text =
            format!("the properties are {} bytes long, {PROPERTIES_BYTES_MAX} are possible", record.properties.len());
        return Err(Error::BadRecord(text));
    }
    if topic == 0 || topic > i16::MAX as usize {
        return Err(Error::BadRecord(format!("a topic's name of {topic} bytes cannot be stored")));
    }
    let hosts = if record.born_host.is_ipv6() { 12 } else { 0 } + if store_host.is_ipv6() { 12 } else { 0 };
    let version = usize::from(topic > TOPIC_BYTES_V1);
    Ok(RECORD_BYTES_MIN + hosts + version + record.body.len() + topic + record.properties.len())
}

/// The fixed part, filled in front to back. The longest (two IPv6 hosts, body length) has 112 bytes.
struct Fixed {
    bytes: [u8; 112],
    len: usize,
}

impl Fixed {
    #[inline(always)]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
    }

    #[inline(always)]
    fn host(&mut self, host: &SocketAddr) {
        match host.ip() {
            IpAddr::V4(ip) => self.put(ip.octets()),
            IpAddr::V6(ip) => self.put(ip.octets()),
        }
        self.put(u32::from(host.port()).to_be_bytes());
    }
}

/// Appends the record's bytes. `size` is what [`size_of`] said.
#[inline]
pub(crate) fn encode(out: &mut Vec<u8>, record: &NewRecord<'_>, size: usize, place: &Place) {
    let long_topic = record.topic.len() > TOPIC_BYTES_V1;
    let mut sys_flag = record.sys_flag & !(BORN_HOST_V6 | STORE_HOST_V6);
    if record.born_host.is_ipv6() {
        sys_flag |= BORN_HOST_V6;
    }
    if place.store_host.is_ipv6() {
        sys_flag |= STORE_HOST_V6;
    }
    out.reserve(size);
    let mut fixed = Fixed { bytes: [0; 112], len: 0 };
    fixed.put((size as u32).to_be_bytes());
    fixed.put(if long_topic { MAGIC_V2 } else { MAGIC_V1 }.to_be_bytes());
    fixed.put(body_crc(record.body).to_be_bytes());
    fixed.put(record.queue_id.to_be_bytes());
    fixed.put(record.flag.to_be_bytes());
    fixed.put(place.queue_offset.to_be_bytes());
    fixed.put(place.position.to_be_bytes());
    fixed.put(sys_flag.to_be_bytes());
    fixed.put(record.born_timestamp.to_be_bytes());
    fixed.host(&record.born_host);
    fixed.put(place.store_timestamp.to_be_bytes());
    fixed.host(&place.store_host);
    fixed.put(record.reconsume_times.to_be_bytes());
    fixed.put(record.prepared_offset.to_be_bytes());
    fixed.put((record.body.len() as u32).to_be_bytes());
    out.extend_from_slice(&fixed.bytes[..fixed.len]);
    out.extend_from_slice(record.body);
    if long_topic {
        out.extend_from_slice(&(record.topic.len() as u16).to_be_bytes());
    } else {
        out.push(record.topic.len() as u8);
    }
    out.extend_from_slice(record.topic.as_bytes());
    out.extend_from_slice(&(record.properties.len() as u16).to_be_bytes());
    out.extend_from_slice(record.properties);
}

/// Appends the blank that fills a file to its end.
pub(crate) fn encode_blank(out: &mut Vec<u8>, room: u64) {
    out.extend_from_slice(&(room as u32).to_be_bytes());
    out.extend_from_slice(&MAGIC_BLANK.to_be_bytes());
}

/// A record read from bytes; nothing is copied.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    pub raw: &'a [u8],
    pub body_crc: u32,
    pub queue_id: u32,
    pub flag: i32,
    pub queue_offset: i64,
    pub position: u64,
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a [u8],
    pub properties: &'a [u8],
}

/// Big-endian numbers out of a slice; `None` at its end.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        if n > self.rest.len() {
            return None;
        }
        let (head, rest) = self.rest.split_at(n);
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn host(&mut self, v6: bool) -> Option<SocketAddr> {
        let ip = if v6 {
            IpAddr::V6(Ipv6Addr::from(self.array::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))
        };
        Some(SocketAddr::new(ip, self.u32()? as u16))
    }
}

impl<'a> RecordView<'a> {
    /// Reads the record at the start of `bytes`, which may be longer. `None` unless every length fits exactly.
    pub fn parse(bytes: &'a [u8]) -> Option<RecordView<'a>> {
        let size = read_u32(bytes, 0)? as usize;
        if size < RECORD_BYTES_MIN || size > bytes.len() {
            return None;
        }
        let raw = &bytes[..size];
        let mut reader = Reader { rest: &raw[4..] };
        let magic = reader.u32()?;
        if magic != MAGIC_V1 && magic != MAGIC_V2 {
            return None;
        }
        let body_crc = reader.u32()?;
        let queue_id = reader.u32()?;
        let flag = reader.i32()?;
        let queue_offset = reader.i64()?;
        let position = reader.i64()? as u64;
        let sys_flag = reader.i32()?;
        let born_timestamp = reader.i64()?;
        let born_host = reader.host(sys_flag & BORN_HOST_V6 != 0)?;
        let store_timestamp = reader.i64()?;
        let store_host = reader.host(sys_flag & STORE_HOST_V6 != 0)?;
        let reconsume_times = reader.i32()?;
        let prepared_offset = reader.i64()?;
        let body_len = reader.u32()? as usize;
        let body = reader.bytes(body_len)?;
        let topic_len = match magic {
            MAGIC_V1 => usize::from(reader.array::<1>()?[0]),
            _ => usize::from(u16::from_be_bytes(reader.array()?)),
        };
        let topic = reader.bytes(topic_len)?;
        let properties_len = usize::from(u16::from_be_bytes(reader.array()?));
        let properties = reader.bytes(properties_len)?;
        if !reader.rest.is_empty() || topic.is_empty() {
            return None;
        }
        Some(RecordView {
            raw,
            body_crc,
            queue_id,
            flag,
            queue_offset,
            position,
            sys_flag,
            born_timestamp,
            born_host,
            store_timestamp,
            store_host,
            reconsume_times,
            prepared_offset,
            body,
            topic,
            properties,
        })
    }

    /// True if the body is what was stored.
    pub fn is_intact(&self) -> bool {
        self.body.is_empty() || body_crc(self.body) == self.body_crc
    }
}

/// What kind of record begins here, as far as its first 36 bytes say: the cheap check on the way of every read.
#[inline]
pub(crate) fn looks_like_record_at(bytes: &[u8], position: u64) -> bool {
    bytes.len() >= RECORD_BYTES_MIN
        && matches!(read_u32(bytes, 4), Some(MAGIC_V1 | MAGIC_V2))
        && read_u64(bytes, PHYSICAL_OFFSET_AT) == Some(position)
}

/// The store time of a record whose bytes are at hand.
pub(crate) fn store_timestamp_of(bytes: &[u8]) -> Option<i64> {
    let sys_flag = read_u32(bytes, 36)? as i32;
    let at = 48 + if sys_flag & BORN_HOST_V6 != 0 { 20 } else { 8 };
    read_u64(bytes, at).map(|v| v as i64)
}

#[inline]
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[inline]
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(topic: &'a str, born_host: &str, body: &'a [u8]) -> NewRecord<'a> {
        NewRecord {
            topic,
            queue_id: 3,
            flag: -7,
            sys_flag: 1,
            born_timestamp: 1_700_000_000_123,
            born_host: born_host.parse().unwrap(),
            reconsume_times: 2,
            prepared_offset: 99,
            body,
            properties: "KEYS\u{1}schlüssel\u{2}".as_bytes(),
            tags_code: None,
            known: None,
        }
    }

    #[test]
    fn what_is_encoded_is_read_back_in_both_versions_and_with_both_kinds_of_host() {
        let long = "t".repeat(200);
        for topic in ["t", &"t".repeat(127), &"t".repeat(128), &long] {
            for (born, store) in [("1.2.3.4:5", "[::1]:10911"), ("[fe80::1]:65535", "10.0.0.1:10911")] {
                let new = record(topic, born, b"hello");
                let place = Place {
                    queue_offset: 42,
                    position: 4711,
                    store_timestamp: 1_700_000_000_456,
                    store_host: store.parse().unwrap(),
                };
                let size = size_of(&new, &place.store_host).unwrap();
                assert!(size <= LARGEST_FRAME_BYTES + topic.len() + new.body.len() + new.properties.len());
                let mut bytes = Vec::new();
                encode(&mut bytes, &new, size, &place);
                assert_eq!(bytes.len(), size);
                assert!(looks_like_record_at(&bytes, 4711));
                assert_eq!(store_timestamp_of(&bytes), Some(place.store_timestamp));
                bytes.extend_from_slice(b"something behind");
                let view = RecordView::parse(&bytes).unwrap();
                assert_eq!(view.raw.len(), size);
                assert_eq!(view.topic, topic.as_bytes());
                assert_eq!((view.queue_id, view.flag, view.queue_offset, view.position), (3, -7, 42, 4711));
                assert_eq!(view.born_host, new.born_host);
                assert_eq!(view.store_host, place.store_host);
                assert_eq!((view.reconsume_times, view.prepared_offset), (2, 99));
                assert_eq!((view.body, view.properties), (new.body, new.properties));
                assert!(view.is_intact());
                assert_eq!(view.raw[7] == 0xAB, topic.len() > 127);
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_the_body_or_a_wrong_length_is_noticed() {
        let new = record("t", "1.2.3.4:5", b"hello");
        let host: SocketAddr = "1.1.1.1:1".parse().unwrap();
        let place = Place { queue_offset: 0, position: 0, store_timestamp: 1, store_host: host };
        let size = size_of(&new, &host).unwrap();
        let mut bytes = Vec::new();
        encode(&mut bytes, &new, size, &place);
        let mut flipped = bytes.clone();
        flipped[89] ^= 1;
        assert!(!RecordView::parse(&flipped).unwrap().is_intact());
        for at in [0, 1, 2, 3, 4, 7, 84, 87, size - new.properties.len() - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x11;
            assert!(RecordView::parse(&wrong).is_none(), "byte {at}");
        }
        assert!(RecordView::parse(&bytes[..size - 1]).is_none());
    }

    #[test]
    fn what_the_format_cannot_hold_is_refused() {
        let host: SocketAddr = "1.1.1.1:1".parse().unwrap();
        let properties = vec![b'a'; PROPERTIES_BYTES_MAX + 1];
        let mut new = record("t", "1.2.3.4:5", b"");
        new.properties = &properties;
        assert!(matches!(size_of(&new, &host), Err(Error::BadRecord(_))));
        let empty = record("", "1.2.3.4:5", b"");
        assert!(matches!(size_of(&empty, &host), Err(Error::BadRecord(_))));
    }
}
