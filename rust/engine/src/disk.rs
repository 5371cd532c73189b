//! The disk behind the store.
/// A disk.
pub trait Disk: Send + Sync {}
/// The machine's own file system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;
impl Disk for RealDisk {}
