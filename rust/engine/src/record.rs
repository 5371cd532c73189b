//! One record of the commit log: what goes in, how its bytes lie, how they are read back and checked.
use crate::property::Known;
use std::net::SocketAddr;

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
