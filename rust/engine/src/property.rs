//! Message properties as they lie on the wire and in a record: `name 0x01 value 0x02`, repeated.
//!
//! Nothing here allocates: [`scan`] walks a property string once and remembers where the few properties are that the
//! engine cares about, and which of those are present that only policy can serve.

/// Between a property's name and its value.
pub const NAME_END: u8 = 1;
/// After each property (the last one may lack it).
pub const VALUE_END: u8 = 2;

/// Bits of [`Known::flags`]: properties whose presence matters, whatever their value (an empty one is none).
pub mod flag {
    /// `DELAY`: a delay level.
    pub const DELAY: u32 = 1;
    /// `TIMER_DELAY_SEC`, `TIMER_DELAY_MS` or `TIMER_DELIVER_MS`: delivery at a chosen time.
    pub const TIMER: u32 = 1 << 1;
    /// `TRAN_MSG`: half of a transaction.
    pub const TRANSACTION: u32 = 1 << 2;
    /// `INNER_MULTI_DISPATCH`: one record in several queues.
    pub const MULTI_DISPATCH: u32 = 1 << 3;
    /// `POP_CK`: a pop receipt that must not be stored again.
    pub const POP_CK: u32 = 1 << 4;
    /// `MSG_REGION`.
    pub const MSG_REGION: u32 = 1 << 5;
    /// `TRACE_ON`.
    pub const TRACE_ON: u32 = 1 << 6;
    /// `CLUSTER`.
    pub const CLUSTER: u32 = 1 << 7;
    /// `UNIQ_KEY`.
    pub const UNIQ_KEY: u32 = 1 << 8;
    /// `KEYS`.
    pub const KEYS: u32 = 1 << 9;
    /// `TAGS`.
    pub const TAGS: u32 = 1 << 10;
    /// `__CRC32#`: a checksum over the whole record.
    pub const CRC32: u32 = 1 << 11;
    /// `__STARTDELIVERTIME`: delivery at a chosen time, the gRPC proxy's spelling.
    pub const START_DELIVER: u32 = 1 << 12;
    /// `MSG_TYPE`, `REPLY_TO_CLIENT` or `CORRELATION_ID`: request and reply.
    pub const REQUEST_REPLY: u32 = 1 << 13;
    /// `_SYS_MSG_PRIORITY_`: the queue is chosen by priority, or the property is taken out.
    pub const PRIORITY: u32 = 1 << 14;
    /// `INNER_NUM` or `INNER_BASE`: several messages in one record.
    pub const INNER_BATCH: u32 = 1 << 15;
    /// `__SHARDINGKEY`: an ordered message.
    pub const SHARDING_KEY: u32 = 1 << 16;
    /// `__LITE_TOPIC`: a message of a lite topic.
    pub const LITE_TOPIC: u32 = 1 << 17;
    /// `INNER_MULTI_QUEUE_OFFSET`: the store's word on one record in several queues.
    pub const MULTI_OFFSETS: u32 = 1 << 18;
}

/// Where a value lies inside the property string.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// The value's bytes; empty when the property is absent.
    #[inline]
    pub fn of<'a>(&self, properties: &'a [u8]) -> &'a [u8] {
        &properties[self.start as usize..self.end as usize]
    }
}

/// What one walk over a property string found. When a name comes twice the last one counts, as in RocketMQ; an empty value is none,
/// as in [`find`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// See [`flag`].
    pub flags: u32,
    pub uniq_key: Span,
    pub keys: Span,
    pub tags: Span,
}

impl Known {
    /// True if any of these [`flag`] bits was found.
    #[inline]
    pub fn any(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }
}

/// Walks the whole property string once.
pub fn scan(properties: &[u8]) -> Known {
    let mut known = Known::default();
    let mut at = 0usize;
    while at < properties.len() {
        let rest = &properties[at..];
        let end = at + find_byte(rest, VALUE_END).unwrap_or(rest.len());
        let pair = &properties[at..end];
        if let Some(name_len) = find_byte(pair, NAME_END).filter(|at| at + 1 < pair.len()) {
            let span = Span { start: (at + name_len + 1) as u32, end: end as u32 };
            match &pair[..name_len] {
                b"UNIQ_KEY" => {
                    known.uniq_key = span;
                    known.flags |= flag::UNIQ_KEY;
                }
                b"KEYS" => {
                    known.keys = span;
                    known.flags |= flag::KEYS;
                }
                b"TAGS" => {
                    known.tags = span;
                    known.flags |= flag::TAGS;
                }
                b"DELAY" => known.flags |= flag::DELAY,
                b"TIMER_DELAY_SEC" | b"TIMER_DELAY_MS" | b"TIMER_DELIVER_MS" => known.flags |= flag::TIMER,
                b"__STARTDELIVERTIME" => known.flags |= flag::START_DELIVER,
                b"TRAN_MSG" => known.flags |= flag::TRANSACTION,
                b"INNER_MULTI_DISPATCH" => known.flags |= flag::MULTI_DISPATCH,
                b"INNER_MULTI_QUEUE_OFFSET" => known.flags |= flag::MULTI_OFFSETS,
                b"__LITE_TOPIC" => known.flags |= flag::LITE_TOPIC,
                b"POP_CK" => known.flags |= flag::POP_CK,
                b"MSG_REGION" => known.flags |= flag::MSG_REGION,
                b"TRACE_ON" => known.flags |= flag::TRACE_ON,
                b"CLUSTER" => known.flags |= flag::CLUSTER,
                b"__CRC32#" => known.flags |= flag::CRC32,
                b"_SYS_MSG_PRIORITY_" => known.flags |= flag::PRIORITY,
                b"INNER_NUM" | b"INNER_BASE" => known.flags |= flag::INNER_BATCH,
                b"__SHARDINGKEY" => known.flags |= flag::SHARDING_KEY,
                b"MSG_TYPE" | b"REPLY_TO_CLIENT" | b"CORRELATION_ID" => known.flags |= flag::REQUEST_REPLY,
                _ => {}
            }
        }
        at = end + 1;
    }
    known
}

/// Name and value of each property, in their order.
pub fn pairs(properties: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    properties.split(|&b| b == VALUE_END).filter_map(|pair| {
        let name_len = find_byte(pair, NAME_END)?;
        Some((&pair[..name_len], &pair[name_len + 1..]))
    })
}

/// The value of `name`; the last one when it comes twice. An empty value is none, as where RocketMQ reads properties.
pub fn find<'a>(properties: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    pairs(properties).filter(|(n, value)| *n == name && !value.is_empty()).last().map(|(_, value)| value)
}

/// First place of `byte`: eight bytes at a time, since property strings are a few dozen bytes long.
#[inline]
fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let pattern = ONES * byte as u64;
    let mut at = 0;
    while at + 8 <= bytes.len() {
        let mut word = [0u8; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        let x = u64::from_le_bytes(word) ^ pattern;
        let zero = x.wrapping_sub(ONES) & !x & HIGHS;
        if zero != 0 {
            return Some(at + (zero.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    bytes[at..].iter().position(|&b| b == byte).map(|p| at + p)
}

/// Java's `String.hashCode()` of UTF-8 text (bytes that are no UTF-8 count as U+FFFD, as Java decodes them).
#[inline]
pub fn java_hash(text: &[u8]) -> i32 {
    java_hash_on(0, text)
}

/// Continues a [`java_hash`]: the hash of `prefix + text` from the hash of `prefix`.
#[inline]
pub fn java_hash_on(prefix_hash: i32, text: &[u8]) -> i32 {
    const P1: u32 = 31;
    const P2: u32 = P1 * P1;
    const P3: u32 = P2 * P1;
    const P4: u32 = P3 * P1;
    if !text.is_ascii() {
        return java_hash_unicode(prefix_hash, text);
    }
    let mut hash = prefix_hash as u32;
    let mut fours = text.chunks_exact(4);
    for four in &mut fours {
        let now = (four[0] as u32) * P3 + (four[1] as u32) * P2 + (four[2] as u32) * P1 + four[3] as u32;
        hash = hash.wrapping_mul(P4).wrapping_add(now);
    }
    for &byte in fours.remainder() {
        hash = hash.wrapping_mul(P1).wrapping_add(byte as u32);
    }
    hash as i32
}

#[cold]
fn java_hash_unicode(prefix_hash: i32, text: &[u8]) -> i32 {
    let mut hash = prefix_hash;
    for unit in String::from_utf8_lossy(text).encode_utf16() {
        hash = hash.wrapping_mul(31).wrapping_add(unit as i32);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_javas() {
        assert_eq!(java_hash(b""), 0);
        assert_eq!(java_hash(b"TagA"), 2_598_919);
        assert_eq!(java_hash(b"hello world, this is a longer text"), {
            let mut h = 0i32;
            for b in b"hello world, this is a longer text" {
                h = h.wrapping_mul(31).wrapping_add(*b as i32);
            }
            h
        });
        // A character outside the basic plane is two UTF-16 units: 0xD83D 0xDE00.
        assert_eq!(java_hash("😀".as_bytes()), 0xD83Di32 * 31 + 0xDE00);
        assert_eq!(java_hash_on(java_hash(b"topic#"), b"key"), java_hash(b"topic#key"));
    }

    #[test]
    fn scan_finds_the_last_of_each_name() {
        let text = b"KEYS\x01a b\x02TAGS\x01x\x02DELAY\x013\x02TAGS\x01yy\x02UNIQ_KEY\x01U";
        let known = scan(text);
        assert_eq!(known.keys.of(text), b"a b");
        assert_eq!(known.tags.of(text), b"yy");
        assert_eq!(known.uniq_key.of(text), b"U");
        assert!(known.any(flag::DELAY) && !known.any(flag::TIMER));
        assert_eq!(find(text, b"TAGS"), Some(&b"yy"[..]));
        assert_eq!(find(text, b"NONE"), None);
        assert_eq!(scan(b""), Known::default());
        assert_eq!(scan(b"\x02\x02nothing\x02\x01"), Known::default());
        for text in [
            &b"TAGS\x01x\x02KEYS\x01k\x02TAGS\x01\x02KEYS\x01\x02DELAY\x01\x02UNIQ_KEY\x01"[..],
            b"KEYS\x01k\x02TAGS\x01x",
        ] {
            let known = scan(text);
            assert_eq!((known.tags.of(text), known.keys.of(text)), (&b"x"[..], &b"k"[..]), "an empty value is none");
            assert_eq!(known.flags, flag::TAGS | flag::KEYS);
        }
    }
}
