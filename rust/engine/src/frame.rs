//! Frames: where one command ends and the next begins.
//!
//! ```text
//! int32 length          bytes after this field
//! uint8 encoding        0 = JSON, 1 = ROCKETMQ
//! uint24 header length
//! header, then body
//! ```
//! Promises: the limits are checked on the first bytes that show them, so a peer that claims much and sends little
//! costs what it sent; what cannot be this protocol is told apart (HTTP, TLS) so that the log line can help.
//! Left to others: what the header says (`header`), what to do about it (`session`).

use crate::header::Encoding;

/// Largest frame unless the options say otherwise, Apache's `com.rocketmq.remoting.frameMaxLength`.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes in front of the header: the length and the marked header length.
pub const PREFIX_BYTES: usize = 8;

/// What a peer sent that ends its connection. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    FrameTooLarge,
    HeaderTooLong,
    UnknownEncoding,
    BadHeader,
    Http,
    Tls,
}

impl Fault {
    pub const ALL: [Fault; 6] =
        [Fault::FrameTooLarge, Fault::HeaderTooLong, Fault::UnknownEncoding, Fault::BadHeader, Fault::Http, Fault::Tls];

    /// Short name, the key of the counter.
    pub fn name(self) -> &'static str {
        match self {
            Fault::FrameTooLarge => "frame_too_large",
            Fault::HeaderTooLong => "header_too_long",
            Fault::UnknownEncoding => "unknown_encoding",
            Fault::BadHeader => "bad_header",
            Fault::Http => "http",
            Fault::Tls => "tls",
        }
    }
}

/// The peer broke the protocol: the kind and a sentence with the figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtocolError {
    pub fault: Fault,
    pub reason: String,
}

impl ProtocolError {
    pub fn new(fault: Fault, detail: impl std::fmt::Display) -> Self {
        ProtocolError { fault, reason: format!("{}: {detail}", fault.name()) }
    }
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ProtocolError {}

/// One whole frame inside a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub encoding: Encoding,
    pub header: &'a [u8],
    pub body: &'a [u8],
}

/// What the front of `data` is.
#[derive(Debug)]
pub enum Front<'a> {
    /// A whole frame and how many bytes it took.
    Whole(Frame<'a>, usize),
    /// Not whole yet; the frame will be this many bytes as far as can be seen (8 while even that is unknown).
    Partial(usize),
}

/// Looks at the front of `data`.
pub fn front(data: &[u8], frame_bytes_max: usize) -> Result<Front<'_>, ProtocolError> {
    if data.len() < 4 {
        return Ok(Front::Partial(PREFIX_BYTES));
    }
    let length = u32::from_be_bytes([data[0], data[1], data[2], data[3]]) as usize;
    if length + 4 > frame_bytes_max || length < 4 {
        return Err(outlandish(data, length, frame_bytes_max));
    }
    if data.len() < PREFIX_BYTES {
        return Ok(Front::Partial(length + 4));
    }
    let header_bytes = u32::from_be_bytes([0, data[5], data[6], data[7]]) as usize;
    let encoding = Encoding::from_number(data[4]).ok_or_else(|| {
        ProtocolError::new(
            Fault::UnknownEncoding,
            format_args!("header encoding {} is not 0 (JSON) or 1 (ROCKETMQ)", data[4]),
        )
    })?;
    if header_bytes > length - 4 {
        return Err(ProtocolError::new(
            Fault::HeaderTooLong,
            format_args!("a header of {header_bytes} bytes in a frame with room for {}", length - 4),
        ));
    }
    let end = length + 4;
    if data.len() < end {
        return Ok(Front::Partial(end));
    }
    let body = PREFIX_BYTES + header_bytes;
    Ok(Front::Whole(Frame { encoding, header: &data[PREFIX_BYTES..body], body: &data[body..end] }, end))
}

/// A length nobody would send: say what it looks like.
#[cold]
fn outlandish(data: &[u8], length: usize, frame_bytes_max: usize) -> ProtocolError {
    const HTTP: [&[u8; 4]; 9] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"PRI "];
    let first: [u8; 4] = [data[0], data[1], data[2], data[3]];
    if HTTP.iter().any(|method| **method == first) {
        return ProtocolError::new(Fault::Http, "an HTTP request on a RocketMQ port");
    }
    if first[0] == 0x16 && first[1] == 3 {
        return ProtocolError::new(Fault::Tls, "a TLS hello on a port without TLS");
    }
    if length < 4 {
        return ProtocolError::new(
            Fault::HeaderTooLong,
            format_args!("a frame of {length} bytes has no room for a header"),
        );
    }
    ProtocolError::new(Fault::FrameTooLarge, format_args!("a frame of {length} bytes, the limit is {frame_bytes_max}"))
}

/// Cuts a stream into frames. Whole frames are read where they lie in the chunk; only an unfinished tail is kept.
#[derive(Default)]
pub struct Cutter {
    tail: Vec<u8>,
}

impl Cutter {
    /// Bytes kept for the next chunk.
    pub fn kept(&self) -> usize {
        self.tail.len()
    }

    /// Hands every frame that `data` completes to `take`, in order; keeps what is left over. When `take` answers
    /// [`Flow::Stop`] the frames behind are kept as well, for a later call (with no data, if there is none); with
    /// [`Flow::Wait`] that frame too.
    /// After an error the stream is lost: nothing is kept.
    pub fn feed(
        &mut self,
        mut data: &[u8],
        frame_bytes_max: usize,
        mut take: impl FnMut(Frame<'_>) -> Result<Flow, ProtocolError>,
    ) -> Result<Flow, ProtocolError> {
        let mut at = 0;
        while at < self.tail.len() {
            match front(&self.tail[at..], frame_bytes_max) {
                Ok(Front::Whole(frame, used)) => match take(frame) {
                    Ok(Flow::Go) => at += used,
                    Ok(flow) => {
                        let done = if flow == Flow::Stop { at + used } else { at };
                        self.tail.drain(..done);
                        self.tail.extend_from_slice(data);
                        return Ok(flow);
                    }
                    Err(error) => {
                        self.tail = Vec::new();
                        return Err(error);
                    }
                },
                Ok(Front::Partial(want)) => {
                    let have = self.tail.len() - at;
                    // Until the first 8 bytes are there only they are fetched; then the frame's own end is known.
                    let want = if have < PREFIX_BYTES { PREFIX_BYTES } else { want };
                    let n = data.len().min(want - have);
                    if n == 0 {
                        self.tail.drain(..at);
                        return Ok(Flow::Go);
                    }
                    self.tail.extend_from_slice(&data[..n]);
                    data = &data[n..];
                }
                Err(error) => {
                    self.tail = Vec::new();
                    return Err(error);
                }
            }
        }
        self.tail.clear();
        if self.tail.capacity() > TAIL_BYTES_KEPT {
            self.tail = Vec::new();
        }
        while !data.is_empty() {
            match front(data, frame_bytes_max)? {
                Front::Whole(frame, used) => {
                    let flow = take(frame)?;
                    if flow != Flow::Wait {
                        data = &data[used..];
                    }
                    if flow != Flow::Go {
                        self.tail.extend_from_slice(data);
                        return Ok(flow);
                    }
                }
                Front::Partial(_) => {
                    self.tail.extend_from_slice(data);
                    break;
                }
            }
        }
        Ok(Flow::Go)
    }
}

/// Whether the next frame may be taken now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Go,
    Stop,
    /// Not this one either: it was not taken.
    Wait,
}

/// A tail that grew for one large frame is given back; up to this size it is kept for the next one.
const TAIL_BYTES_KEPT: usize = 64 * 1024;
