//! The way home of a message that waited, for its time or its level: the place its sender named.
//!
//! The simple ones only; what else can be said in a message's properties is policy's to read (`broker/forward.py`).

use crate::property;
use crate::record::{NewRecord, RecordView};

/// A message that waited, for the place its sender named.
pub struct Home<'a> {
    view: RecordView<'a>,
    topic: &'a str,
    queue_id: u32,
    properties: Vec<u8>,
}

impl<'a> Home<'a> {
    /// None for a record that does not say where it belongs, is none, or, with something to be `added`, was brought
    /// somewhere before: its properties say so, and that is policy's to read.
    pub fn of(data: &'a [u8], added: &[u8]) -> Option<Home<'a>> {
        let view = RecordView::parse(data)?;
        let (mut topic, mut queue_id) = (None, None);
        for (name, value) in property::pairs(view.properties) {
            match name {
                b"REAL_TOPIC" if topic.is_none() => topic = Some(value),
                b"REAL_QID" if queue_id.is_none() => queue_id = Some(value),
                b"TIMER_ENQUEUE_MS" if !added.is_empty() => return None,
                _ => {}
            }
        }
        let topic = std::str::from_utf8(topic?).ok().filter(|topic| !topic.is_empty())?;
        let queue_id = std::str::from_utf8(queue_id?).ok()?.parse().ok()?;
        let mut properties = view.properties.to_vec();
        if !added.is_empty() {
            if !matches!(properties.last(), None | Some(&property::VALUE_END)) {
                properties.push(property::VALUE_END);
            }
            properties.extend_from_slice(added);
        }
        Some(Home { view, topic, queue_id, properties })
    }

    pub fn record(&self) -> NewRecord<'_> {
        NewRecord {
            topic: self.topic,
            queue_id: self.queue_id,
            flag: self.view.flag,
            sys_flag: self.view.sys_flag,
            born_timestamp: self.view.born_timestamp,
            born_host: self.view.born_host,
            reconsume_times: self.view.reconsume_times,
            prepared_offset: 0,
            body: self.view.body,
            properties: &self.properties,
            tags_code: None,
            known: None,
        }
    }
}
