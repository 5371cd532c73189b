//! Light queues (Apache's LMQ, light multi-queue dispatch): one record with an entry in each of several queues.
//!
//! ```text
//! INNER_MULTI_DISPATCH        %LMQ%a,%LMQ%b     which queues: the sender's word
//! INNER_MULTI_QUEUE_OFFSET    17,0              the record's offset in each: the store's word, as queues are rebuilt from it
//! ```
//! A light queue is queue 0 of a topic of its name that nobody has to make. Its entries are those of any consume queue, so it is
//! read, cleaned and rebuilt like one. Here is how the two properties are read and written; the store gives the offsets.

use crate::consume_queue::can_be;
use crate::error::Error;
use crate::property::{find, pairs, NAME_END, VALUE_END};

/// What the names of light queues begin with.
pub const PREFIX: &str = "%LMQ%";
/// The only queue of a light queue's topic.
pub const QUEUE_ID: u32 = 0;

const NAMES: &[u8] = b"INNER_MULTI_DISPATCH";
const OFFSETS: &[u8] = b"INNER_MULTI_QUEUE_OFFSET";

/// True for the name of a light queue.
#[inline]
pub fn is_light(topic: &str) -> bool {
    topic.starts_with(PREFIX)
}

/// True if records of this topic go to light queues. Retries and dead letters were there already, what waits (delayed, timed, half)
/// goes there when it is due.
pub(crate) fn may_dispatch(topic: &str) -> bool {
    !["%RETRY%", "%DLQ%", "rmq_sys_", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_"].iter().any(|front| topic.starts_with(front))
}

/// The queues a record names, in their order; none when it names no light queue at all. Empty names at the end do not count.
///
/// # Errors
/// [`Error::BadRecord`] for a name that can be no light queue's beside one that is: Apache's broker, reading such a record, dispatches
/// nothing any more.
pub(crate) fn names(properties: &[u8]) -> Result<Vec<&str>, Error> {
    let value = find(properties, NAMES).unwrap_or_default();
    let Ok(value) = std::str::from_utf8(value) else { return Err(bad_name(&String::from_utf8_lossy(value))) };
    let names: Vec<&str> = value.trim_end_matches(',').split(',').collect();
    if !names.iter().any(|name| is_light(name)) {
        return Ok(Vec::new());
    }
    let wrong = names.iter().find(|name| !is_light(name) || !can_be(name, QUEUE_ID));
    match wrong {
        Some(name) => Err(bad_name(name)),
        None => Ok(names),
    }
}

fn bad_name(name: &str) -> Error {
    Error::BadRecord(format!("INNER_MULTI_DISPATCH names {name:?}, which can be no light queue"))
}

/// The properties with the store's word on offsets instead of whatever they said about them; `None`: without one.
pub(crate) fn with_offsets(properties: &[u8], offsets: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(properties.len() + OFFSETS.len() + 2 + offsets.map_or(0, str::len));
    let kept = pairs(properties).filter(|(name, _)| *name != OFFSETS);
    for (name, value) in kept.chain(offsets.map(|offsets| (OFFSETS, offsets.as_bytes()))) {
        out.extend_from_slice(name);
        out.push(NAME_END);
        out.extend_from_slice(value);
        out.push(VALUE_END);
    }
    out
}

/// The entries a stored record has in light queues, by the rules of Apache's broker: name and offset.
pub(crate) fn entries<'a>(topic: &str, properties: &'a [u8]) -> Vec<(&'a str, i64)> {
    let part = |name| find(properties, name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
    let (names, offsets) = (part(NAMES).trim_end_matches(','), part(OFFSETS).trim_end_matches(','));
    let waits = ["%RETRY%", "rmq_sys_", "SCHEDULE_TOPIC_XXXX"].iter().any(|front| topic.starts_with(front));
    let mut found: Vec<(&str, i64)> = Vec::new();
    if waits || names.split(',').count() != offsets.split(',').count() {
        return found;
    }
    for (name, offset) in names.split(',').zip(offsets.split(',')) {
        let Some(offset) = offset.parse().ok().filter(|offset| *offset >= 0) else { continue };
        let usable = is_light(name) && can_be(name, QUEUE_ID);
        if usable && !found.iter().any(|(other, _)| *other == name) {
            found.push((name, offset));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[(&str, &str)]) -> Vec<u8> {
        parts.iter().flat_map(|(name, value)| format!("{name}\u{1}{value}\u{2}").into_bytes()).collect()
    }

    #[test]
    fn names_are_taken_as_java_splits_them() {
        let of = |value: &str| names(&text(&[("INNER_MULTI_DISPATCH", value)])).map(|names| names.join("|"));
        assert_eq!(of("%LMQ%a,%LMQ%b").unwrap(), "%LMQ%a|%LMQ%b");
        assert_eq!(of("%LMQ%a,,").unwrap(), "%LMQ%a");
        assert_eq!(of("").unwrap(), "");
        assert_eq!(of("a,b").unwrap(), "", "no light queue: nothing to dispatch");
        for wrong in ["%LMQ%a,b", ",%LMQ%a", "%LMQ%a,,%LMQ%b", "%LMQ%a/b", &format!("%LMQ%{}", "x".repeat(251))] {
            assert!(matches!(of(wrong), Err(Error::BadRecord(_))), "{wrong}");
        }
    }

    #[test]
    fn offsets_are_the_stores_word() {
        let sent = text(&[("INNER_MULTI_QUEUE_OFFSET", "9"), ("A", "b"), ("INNER_MULTI_DISPATCH", "%LMQ%a,%LMQ%b")]);
        let stored = with_offsets(&sent, Some("17,0"));
        assert_eq!(find(&stored, OFFSETS), Some(&b"17,0"[..]));
        assert_eq!(pairs(&stored).count(), 3);
        assert_eq!(entries("t", &stored), [("%LMQ%a", 17), ("%LMQ%b", 0)]);
        assert_eq!(entries("%RETRY%g", &stored), []);
        assert_eq!(find(&with_offsets(&sent, None), OFFSETS), None);
        for odd in ["17", "17,x", "17,-1", ""] {
            let stored = with_offsets(&sent, Some(odd));
            let found = entries("t", &stored);
            assert!(found.iter().all(|(name, offset)| (*name, *offset) == ("%LMQ%a", 17)), "{odd}");
        }
    }
}
