//! The engine of aerobee: bytes in, log records out, and back. It knows no policy.
pub mod checkpoint;
pub mod clock;
pub mod commit_log;
pub mod consume_queue;
pub mod disk;
pub mod error;
pub mod flush;
pub mod frame;
pub mod header;
pub mod index;
pub mod property;
pub mod record;
pub mod recovery;
pub mod session;
pub mod sql;
pub mod store;
pub mod tables;
