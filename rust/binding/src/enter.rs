//! The one door between Python and the engine: it frees the GIL, turns the engine's errors into the classes of
//! `aerobee.errors`, and a panic into a clear RuntimeError instead of an abort.
use std::panic::{catch_unwind, AssertUnwindSafe};

use aerobee_engine::error::Error;
use aerobee_engine::frame::ProtocolError;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::prelude::*;

/// An error of class `name` in `aerobee.errors`, made from one sentence.
pub fn python_error(py: Python<'_>, name: &str, reason: &str) -> PyErr {
    let made =
        py.import("aerobee.errors").and_then(|errors| errors.getattr(name)).and_then(|class| class.call1((reason,)));
    match made {
        Ok(value) => PyErr::from_value(value),
        Err(error) => error,
    }
}

pub fn protocol_error(py: Python<'_>, error: &ProtocolError) -> PyErr {
    python_error(py, "ProtocolError", &error.reason)
}

/// The class of `aerobee.errors` for a failure of the store.
pub fn store_error(py: Python<'_>, error: &Error) -> PyErr {
    let name = match error {
        Error::DiskFull(_) => "DiskFull",
        Error::DiskFailed(_) => "DiskFailed",
        Error::Locked(_) => "StoreLocked",
        Error::BadRecord(_) => "MessageIllegal",
        Error::TooManyLightQueues(_) => "LmqQuotaExceeded",
        Error::Unusable(_) | Error::Closed => "StoreError",
    };
    python_error(py, name, &error.to_string())
}

/// Lines of the engine for the Python logger that governs both languages.
pub fn log_lines(py: Python<'_>, level: &str, lines: &[String]) -> PyResult<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let logger = py.import("logging")?.call_method1("getLogger", ("aerobee.broker.store",))?;
    for line in lines {
        logger.call_method1(level, ("%s", line))?;
    }
    Ok(())
}

/// Runs `work` without the GIL. A panic inside becomes a RuntimeError that says so.
pub fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> PyResult<T> {
    match py.allow_threads(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(value) => Ok(value),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(PyRuntimeError::new_err(format!("the engine panicked, this is a bug: {what}")))
        }
    }
}

/// The bytes behind any contiguous buffer, for as long as the returned guard lives.
pub struct Bytes {
    buffer: PyBuffer<u8>,
}

impl Bytes {
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Bytes> {
        let buffer = PyBuffer::get(object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        }
        Ok(Bytes { buffer })
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.buffer.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the buffer is exported as long as `self` lives, so its memory stays where it is. Its owner does not
        // write to it during the call: receive buffers are filled by the thread that is in this call.
        unsafe { std::slice::from_raw_parts(self.buffer.buf_ptr() as *const u8, self.buffer.len_bytes()) }
    }
}

/// As `Bytes`, to be written to.
pub struct BytesMut {
    buffer: PyBuffer<u8>,
}

impl BytesMut {
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<BytesMut> {
        let Bytes { buffer } = Bytes::of(object)?;
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        Ok(BytesMut { buffer })
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.buffer.len_bytes() == 0 {
            return &mut [];
        }
        // SAFETY: the buffer is exported as long as `self` lives, so its memory stays where it is, and is not read-only.
        // Nobody else reads or writes it during the call: receive buffers belong to the thread that is in this call.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.buf_ptr() as *mut u8, self.buffer.len_bytes()) }
    }
}
