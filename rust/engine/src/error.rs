//! What can go wrong in the store, sorted by what a caller has to do about it.
//!
//! Every failure of the disk below ends up here with the path and the operation in its text, because the
//! text is what an operator reads in the broker's log, in `health()` and in the sender's error remark.

use std::fmt;
use std::io;
use std::path::Path;

/// A failure of the store. The text of each kind is one sentence, fit to be shown to an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No space (or too little by the configured ratio), or no file may be opened any more (a file of the log could not
    /// be made then, and nothing is lost). Writes are refused, reads go on, and the store recovers by itself once there
    /// is space, or a file may be opened, again.
    DiskFull(String),
    /// A write or a flush failed. What the device holds is unknown, so nothing is written until a restart has recovered.
    DiskFailed(String),
    /// Another process (an aerobee or an Apache broker) holds this store.
    Locked(String),
    /// The store cannot be opened as it is: wrong sizes configured, unreadable directory.
    Unusable(String),
    /// This record can never be stored: topic or properties longer than the format allows, larger than a file.
    BadRecord(String),
    /// The record names a light queue that is not there, and there are as many as there may be.
    TooManyLightQueues(String),
    /// The store was closed.
    Closed,
}

impl Error {
    /// Wraps an I/O error of a write or flush: out of space or open files is [`Error::DiskFull`], all else
    /// [`Error::DiskFailed`].
    pub fn write(what: &str, path: &Path, source: &io::Error) -> Error {
        let text = format!("{what} {} failed: {source}", path.display());
        if is_full(source) || too_many_files(source) {
            Error::DiskFull(text)
        } else {
            Error::DiskFailed(text)
        }
    }

    /// Wraps an I/O error met while opening.
    pub fn open(what: &str, path: &Path, source: &io::Error) -> Error {
        if is_full(source) {
            return Error::write(what, path, source);
        }
        Error::Unusable(format!("{what} {} failed: {source}", path.display()))
    }
}

/// True for "no space left" in its two spellings (device, quota).
pub fn is_full(source: &io::Error) -> bool {
    let code = source.raw_os_error();
    code == Some(rustix::io::Errno::NOSPC.raw_os_error()) || code == Some(rustix::io::Errno::DQUOT.raw_os_error())
}

/// True when no file may be opened any more, by the process or by anybody: nothing was done to the file.
pub fn too_many_files(source: &io::Error) -> bool {
    let code = source.raw_os_error();
    code == Some(rustix::io::Errno::MFILE.raw_os_error()) || code == Some(rustix::io::Errno::NFILE.raw_os_error())
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::DiskFull(text)
            | Error::DiskFailed(text)
            | Error::Locked(text)
            | Error::Unusable(text)
            | Error::BadRecord(text)
            | Error::TooManyLightQueues(text) => f.write_str(text),
            Error::Closed => f.write_str("the store is closed"),
        }
    }
}

impl std::error::Error for Error {}
