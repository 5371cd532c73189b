//! The header of a command, in both encodings, read and written.
//!
//! Reading allocates nothing once warm: a `Header` is reused, its fields are ranges into the bytes it was read from, or
//! into its own arena where text had to be changed (escapes). JSON is read the way Fastjson writes and reads it: keys
//! bare or quoted, any order, numbers and booleans where text is meant, unknown fields skipped, null ext values dropped.
//! Writing gives the bytes Apache's Java gives for JSON (compact, fields in its order) and for the ROCKETMQ form.

use crate::frame::{Fault, ProtocolError};

/// How a header is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json = 0,
    RocketMq = 1,
}

impl Encoding {
    pub fn from_number(number: u8) -> Option<Encoding> {
        match number {
            0 => Some(Encoding::Json),
            1 => Some(Encoding::RocketMq),
            _ => None,
        }
    }
}

/// Bit 0 of the flag: this is a response.
pub const FLAG_RESPONSE: i32 = 1;
/// Bit 1 of the flag: nobody waits for an answer.
pub const FLAG_ONEWAY: i32 = 2;

/// Names by number, as Apache's `LanguageCode`.
pub const LANGUAGES: [&str; 14] = [
    "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO", "PHP", "OMS", "RUST",
    "NODE_JS",
];
/// What an unknown language counts as.
pub const LANGUAGE_OTHER: u8 = 7;

fn language_number(name: &[u8]) -> u8 {
    LANGUAGES.iter().position(|known| known.as_bytes() == name).map_or(LANGUAGE_OTHER, |n| n as u8)
}

/// Where a text is: in the header's source, or (`arena`) in the header's own buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Span {
    start: u32,
    len: u32,
    arena: bool,
}

/// Room a reused header keeps.
const FIELDS_KEPT: usize = 256;
const ARENA_BYTES_KEPT: usize = 64 * 1024;

/// A header that was read. Texts are resolved with the source bytes it was read from.
///
/// Invariant: every span lies on UTF-8 boundaries of valid UTF-8 (checked when it is made).
#[derive(Debug, Default)]
pub struct Header {
    pub code: i32,
    pub language: u8,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    remark: Option<Span>,
    fields: Vec<(Span, Span)>,
    arena: Vec<u8>,
}

impl Header {
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    #[inline]
    fn bytes<'a>(&'a self, source: &'a [u8], span: Span) -> &'a [u8] {
        let base = if span.arena { &self.arena[..] } else { source };
        &base[span.start as usize..(span.start + span.len) as usize]
    }

    #[inline]
    fn text<'a>(&'a self, source: &'a [u8], span: Span) -> &'a str {
        let bytes = self.bytes(source, span);
        debug_assert!(std::str::from_utf8(bytes).is_ok());
        // A caller with the wrong source would break the invariant, so the check stays; it is a few ns a field.
        std::str::from_utf8(bytes).unwrap_or("")
    }

    /// The remark, if there is one.
    pub fn remark<'a>(&'a self, source: &'a [u8]) -> Option<&'a str> {
        self.remark.map(|span| self.text(source, span))
    }

    /// Ext fields in the order they came; of a key given twice the last one counts.
    pub fn fields<'a>(&'a self, source: &'a [u8]) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        self.fields.iter().map(move |(key, value)| (self.text(source, *key), self.text(source, *value)))
    }

    /// Ext fields as bytes (valid UTF-8), in the order they came. For the fast paths.
    #[inline]
    pub fn raw_fields<'a>(&'a self, source: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + 'a {
        self.fields.iter().map(move |(key, value)| (self.bytes(source, *key), self.bytes(source, *value)))
    }

    /// The value of one ext field.
    pub fn field<'a>(&'a self, source: &'a [u8], key: &str) -> Option<&'a str> {
        self.fields
            .iter()
            .rev()
            .find(|(k, _)| self.bytes(source, *k) == key.as_bytes())
            .map(|(_, v)| self.text(source, *v))
    }

    /// A header from its parts; its source is empty.
    pub fn assemble<'a>(code: i32, opaque: i32, flag: i32, fields: impl Iterator<Item = (&'a str, &'a str)>) -> Header {
        let mut header = Header { code, opaque, flag, ..Header::default() };
        for (key, value) in fields {
            let field = (header.keep(key.as_bytes()), header.keep(value.as_bytes()));
            header.fields.push(field);
        }
        header
    }

    /// Reads a header. `source` has to be given again to resolve texts.
    pub fn read(&mut self, encoding: Encoding, source: &[u8]) -> Result<(), ProtocolError> {
        self.code = 0;
        self.language = 0;
        self.version = 0;
        self.opaque = 0;
        self.flag = 0;
        self.remark = None;
        self.fields.clear();
        self.arena.clear();
        // What one monstrous header needed is not kept for the small ones behind it.
        self.fields.shrink_to(FIELDS_KEPT);
        self.arena.shrink_to(ARENA_BYTES_KEPT);
        match encoding {
            Encoding::RocketMq => self.read_binary(source),
            Encoding::Json => {
                if std::str::from_utf8(source).is_ok() {
                    self.read_json(source, false)
                } else {
                    let repaired = String::from_utf8_lossy(source).into_owned();
                    self.read_json(repaired.as_bytes(), true)
                }
            }
        }
    }

    // ---- ROCKETMQ -------------------------------------------------------------------------------------------------

    fn read_binary(&mut self, source: &[u8]) -> Result<(), ProtocolError> {
        let mut at = 0usize;
        let fixed = source.get(..13).ok_or_else(|| bad("a ROCKETMQ header shorter than its fixed fields"))?;
        self.code = i16::from_be_bytes([fixed[0], fixed[1]]) as i32;
        self.language = fixed[2];
        self.version = i16::from_be_bytes([fixed[3], fixed[4]]) as i32;
        self.opaque = i32::from_be_bytes([fixed[5], fixed[6], fixed[7], fixed[8]]);
        self.flag = i32::from_be_bytes([fixed[9], fixed[10], fixed[11], fixed[12]]);
        at += 13;
        self.remark = self.binary_text(source, &mut at, 4)?;
        // A header may end here: Apache writes the length of an empty map, some clients leave it out.
        if at == source.len() {
            return Ok(());
        }
        let length = binary_length(source, &mut at, 4)?;
        if length > source.len() - at {
            return Err(bad("ext fields longer than the header"));
        }
        let end = at + length;
        let source = &source[..end];
        while at < end {
            let key = self.binary_text(source, &mut at, 2)?;
            let value = self.binary_text(source, &mut at, 4)?;
            if let (Some(key), Some(value)) = (key, value) {
                self.fields.push((key, value));
            }
        }
        Ok(())
    }

    /// A length and so many bytes of text; an empty text is Java's null.
    fn binary_text(
        &mut self,
        source: &[u8],
        at: &mut usize,
        length_bytes: usize,
    ) -> Result<Option<Span>, ProtocolError> {
        let length = binary_length(source, at, length_bytes)?;
        let start = *at;
        let bytes = source.get(start..start + length).ok_or_else(|| bad("a text longer than the header"))?;
        *at = start + length;
        if length == 0 {
            return Ok(None);
        }
        if std::str::from_utf8(bytes).is_ok() {
            return Ok(Some(Span { start: start as u32, len: length as u32, arena: false }));
        }
        let repaired = String::from_utf8_lossy(bytes);
        Ok(Some(self.keep(repaired.as_bytes())))
    }

    fn keep(&mut self, text: &[u8]) -> Span {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(text);
        Span { start, len: text.len() as u32, arena: true }
    }

    // ---- JSON -----------------------------------------------------------------------------------------------------

    /// `copy`: texts must go to the arena, because `text` does not outlive this call.
    fn read_json(&mut self, text: &[u8], copy: bool) -> Result<(), ProtocolError> {
        let mut json = Json { text, at: 0, copy, arena: std::mem::take(&mut self.arena) };
        let result = self.read_top(&mut json);
        self.arena = json.arena;
        result
    }

    fn read_top(&mut self, json: &mut Json<'_>) -> Result<(), ProtocolError> {
        json.expect(b'{')?;
        while let Some(key) = json.key()? {
            let kind = match json.bytes(key) {
                b"code" => 1,
                b"language" => 2,
                b"version" => 3,
                b"opaque" => 4,
                b"flag" => 5,
                b"remark" => 6,
                b"extFields" => 7,
                _ => 0,
            };
            match kind {
                1 => self.code = json.int32("code")?,
                2 => {
                    if let Some(value) = json.value()? {
                        let value = json.bytes(value);
                        self.language = match parse_i64(value) {
                            Some(number) => u8::try_from(number).unwrap_or(LANGUAGE_OTHER),
                            None => language_number(value),
                        };
                    }
                }
                3 => self.version = json.int32("version")?,
                4 => self.opaque = json.int32("opaque")?,
                5 => self.flag = json.int32("flag")?,
                6 => self.remark = json.value()?,
                7 => {
                    self.fields.clear();
                    if json.peek() != Some(b'{') {
                        if json.value()?.is_some() {
                            return Err(bad("extFields is not an object"));
                        }
                        json.separator()?;
                        continue;
                    }
                    json.expect(b'{')?;
                    loop {
                        if let Some(pair) = json.plain_pair() {
                            self.fields.push(pair);
                            continue;
                        }
                        let Some(key) = json.key()? else { break };
                        if let Some(value) = json.value()? {
                            self.fields.push((key, value));
                        }
                        json.separator()?;
                    }
                }
                _ => {
                    json.value()?;
                }
            }
            json.separator()?;
        }
        json.blank();
        if json.at != json.text.len() {
            return Err(bad("something follows the JSON header"));
        }
        Ok(())
    }
}

#[cold]
fn bad(what: impl std::fmt::Display) -> ProtocolError {
    ProtocolError::new(Fault::BadHeader, what)
}

#[inline]
fn binary_length(source: &[u8], at: &mut usize, length_bytes: usize) -> Result<usize, ProtocolError> {
    let bytes = source.get(*at..*at + length_bytes).ok_or_else(|| bad("the header ends inside a length"))?;
    *at += length_bytes;
    let length = if length_bytes == 2 {
        i16::from_be_bytes([bytes[0], bytes[1]]) as i64
    } else {
        i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i64
    };
    usize::try_from(length).map_err(|_| bad("a negative length"))
}

/// A decimal number with an optional sign; None for anything else, and for what does not fit.
#[inline]
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut value: u64 = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = value * 10 + digit as u64;
    }
    if negative {
        if value > 1 << 63 {
            None
        } else {
            Some((value as i64).wrapping_neg())
        }
    } else {
        i64::try_from(value).ok()
    }
}

/// A scanner over valid UTF-8.
struct Json<'a> {
    text: &'a [u8],
    at: usize,
    copy: bool,
    arena: Vec<u8>,
}

/// Nesting that is skipped without complaint; official clients nest one deep.
const DEPTH_MAX: usize = 64;

impl Json<'_> {
    #[inline]
    fn blank(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn peek(&mut self) -> Option<u8> {
        self.blank();
        self.text.get(self.at).copied()
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<(), ProtocolError> {
        if self.peek() != Some(byte) {
            return Err(self.odd(format_args!("no `{}`", byte as char)));
        }
        self.at += 1;
        Ok(())
    }

    #[cold]
    fn odd(&self, what: impl std::fmt::Display) -> ProtocolError {
        bad(format_args!("not a JSON header: {what} at byte {}", self.at))
    }

    fn bytes(&self, span: Span) -> &[u8] {
        let base = if span.arena { &self.arena[..] } else { self.text };
        &base[span.start as usize..(span.start + span.len) as usize]
    }

    #[inline]
    fn span(&mut self, start: usize, end: usize) -> Span {
        if self.copy {
            let kept = self.arena.len() as u32;
            self.arena.extend_from_slice(&self.text[start..end]);
            return Span { start: kept, len: (end - start) as u32, arena: true };
        }
        Span { start: start as u32, len: (end - start) as u32, arena: false }
    }

    /// The next key with its colon; None at the object's end, which is taken. A trailing comma is forgiven.
    #[inline]
    fn key(&mut self) -> Result<Option<Span>, ProtocolError> {
        let key = match self.peek() {
            Some(b'}') => {
                self.at += 1;
                return Ok(None);
            }
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote)?,
            Some(_) => self.bare()?,
            None => return Err(self.odd("the object does not end")),
        };
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// `"key":"value",` written without blanks, the way most fields come: one look at each byte. None, and nothing
    /// taken, for anything else.
    #[inline]
    fn plain_pair(&mut self) -> Option<(Span, Span)> {
        let text = self.text;
        if self.copy || text.get(self.at) != Some(&b'"') {
            return None;
        }
        let from = self.at;
        let key = from + 1;
        let key_end = self.find(key, b'"');
        if text.get(key_end..key_end + 3)? != b"\":\"" {
            return None;
        }
        let value = key_end + 3;
        let end = self.find(value, b'"');
        let key = Span { start: key as u32, len: (key_end - key) as u32, arena: false };
        let value = match text.get(end)? {
            b'"' => {
                self.at = end + 1;
                Span { start: value as u32, len: (end - value) as u32, arena: false }
            }
            _ => match self.escaped(value, end, b'"') {
                Ok(span) => span,
                // The long way finds it again, and reports it.
                Err(_) => {
                    self.at = from;
                    return None;
                }
            },
        };
        // A closing brace is left for `key`.
        if text.get(self.at) == Some(&b',') {
            self.at += 1;
        } else if text.get(self.at) != Some(&b'}') {
            self.at = from;
            return None;
        }
        Some((key, value))
    }

    /// After a value: a comma is taken, an end of the object is left for `key`.
    #[inline]
    fn separator(&mut self) -> Result<(), ProtocolError> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(())
            }
            Some(b'}') => Ok(()),
            _ => Err(self.odd("neither `,` nor `}`")),
        }
    }

    /// A number, true, false, null or a key without quotes.
    #[inline]
    fn bare(&mut self) -> Result<Span, ProtocolError> {
        let start = self.at;
        while let Some(byte) = self.text.get(self.at) {
            if !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'-' | b'+' | b'.') || *byte >= 0x80) {
                break;
            }
            self.at += 1;
        }
        if self.at == start {
            return Err(self.odd("no key or value"));
        }
        Ok(self.span(start, self.at))
    }

    /// Any value as text: what is quoted without its quotes, objects and arrays as they are written; None for null.
    #[inline]
    fn value(&mut self) -> Result<Option<Span>, ProtocolError> {
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => Ok(Some(self.quoted(quote)?)),
            Some(b'{' | b'[') => Ok(Some(self.nested()?)),
            Some(_) => {
                let span = self.bare()?;
                Ok(if self.bytes(span) == b"null" { None } else { Some(span) })
            }
            None => Err(self.odd("no value")),
        }
    }

    fn int32(&mut self, name: &str) -> Result<i32, ProtocolError> {
        match self.value()? {
            None => Ok(0),
            Some(span) => match parse_i64(self.bytes(span)) {
                // opaque is a Java int that wraps; some clients count it unsigned
                Some(number) if (i32::MIN as i64..=u32::MAX as i64).contains(&number) => Ok(number as i32),
                _ => Err(self.odd(format_args!("{name} is no 32-bit number"))),
            },
        }
    }

    /// A text in quotes. Without escapes it stays where it is.
    #[inline]
    fn quoted(&mut self, quote: u8) -> Result<Span, ProtocolError> {
        let start = self.at + 1;
        let stop = self.find(start, quote);
        match self.text.get(stop) {
            Some(byte) if *byte == quote => {
                self.at = stop + 1;
                Ok(self.span(start, stop))
            }
            Some(_) => self.escaped(start, stop, quote),
            None => Err(self.odd("a text does not end")),
        }
    }

    /// Where the next quote or backslash is, from `at`.
    #[inline]
    fn find(&self, mut at: usize, quote: u8) -> usize {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const TOPS: u64 = 0x8080_8080_8080_8080;
        let quotes = ONES * quote as u64;
        let slashes = ONES * b'\\' as u64;
        while let Some(eight) = self.text.get(at..at + 8) {
            let word =
                u64::from_le_bytes([eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7]]);
            let a = word ^ quotes;
            let b = word ^ slashes;
            let hit = ((a.wrapping_sub(ONES) & !a) | (b.wrapping_sub(ONES) & !b)) & TOPS;
            if hit != 0 {
                return at + (hit.trailing_zeros() / 8) as usize;
            }
            at += 8;
        }
        while let Some(byte) = self.text.get(at) {
            if *byte == quote || *byte == b'\\' {
                break;
            }
            at += 1;
        }
        at
    }

    /// A text with escapes, from its `start`; the first backslash is at `slash`.
    fn escaped(&mut self, mut start: usize, mut slash: usize, quote: u8) -> Result<Span, ProtocolError> {
        let kept = self.arena.len();
        loop {
            self.arena.extend_from_slice(&self.text[start..slash]);
            match self.text.get(slash) {
                None => {
                    self.at = slash;
                    return Err(self.odd("a text does not end"));
                }
                Some(byte) if *byte == quote => {
                    self.at = slash + 1;
                    return Ok(Span { start: kept as u32, len: (self.arena.len() - kept) as u32, arena: true });
                }
                Some(_) => {}
            }
            self.at = slash;
            start = slash + 2;
            let plain = match self.text.get(slash + 1) {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(b'b') => 8,
                Some(b'f') => 12,
                Some(b'v') => 11,
                Some(b'0') => 0,
                Some(b'u') => {
                    start = self.unicode(slash)?;
                    slash = self.find(start, quote);
                    continue;
                }
                Some(b'x') => {
                    let byte = self.hex(slash + 2, 2)?;
                    self.push(char::from(byte as u8));
                    start = slash + 4;
                    slash = self.find(start, quote);
                    continue;
                }
                Some(byte) if byte.is_ascii() => *byte,
                _ => return Err(self.odd("an unfinished escape")),
            };
            self.arena.push(plain);
            slash = self.find(start, quote);
        }
    }

    fn push(&mut self, character: char) {
        let mut room = [0; 4];
        self.arena.extend_from_slice(character.encode_utf8(&mut room).as_bytes());
    }

    #[inline]
    fn hex(&self, at: usize, digits: usize) -> Result<u32, ProtocolError> {
        let text = self.text.get(at..at + digits).ok_or_else(|| self.odd("an unfinished escape"))?;
        let mut number = 0;
        for byte in text {
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                b'A'..=b'F' => byte - b'A' + 10,
                _ => return Err(self.odd("a bad escape")),
            };
            number = number << 4 | digit as u32;
        }
        Ok(number)
    }

    /// `\uXXXX` at `slash`, with its other half if it is a surrogate; where the text goes on.
    /// Half a pair becomes `?`, as when Java writes such a text out again.
    #[inline]
    fn unicode(&mut self, slash: usize) -> Result<usize, ProtocolError> {
        let unit = self.hex(slash + 2, 4)?;
        if unit < 0x80 {
            self.arena.push(unit as u8);
            return Ok(slash + 6);
        }
        if (0xd800..0xdc00).contains(&unit) && self.text.get(slash + 6..slash + 8) == Some(b"\\u") {
            let low = self.hex(slash + 8, 4)?;
            if (0xdc00..0xe000).contains(&low) {
                let character = char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
                self.push(character.unwrap_or('?'));
                return Ok(slash + 12);
            }
        }
        self.push(char::from_u32(unit).unwrap_or('?'));
        Ok(slash + 6)
    }

    /// An object or array as it is written, skipped by its brackets.
    fn nested(&mut self) -> Result<Span, ProtocolError> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(byte) = self.text.get(self.at).copied() {
            match byte {
                b'{' | b'[' => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return Err(self.odd("nested too deeply"));
                    }
                }
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return Ok(self.span(start, self.at));
                    }
                }
                b'"' | b'\'' => {
                    let mut at = self.find(self.at + 1, byte);
                    while self.text.get(at) == Some(&b'\\') {
                        at = self.find((at + 2).min(self.text.len()), byte);
                    }
                    if at >= self.text.len() {
                        return Err(self.odd("a text does not end"));
                    }
                    self.at = at;
                }
                _ => {}
            }
            self.at += 1;
        }
        Err(self.odd("an object does not end"))
    }
}

// ---- writing --------------------------------------------------------------------------------------------------------

/// The fixed fields of a header to write.
#[derive(Clone, Copy, Debug)]
pub struct Fixed<'a> {
    pub code: i32,
    pub language: u8,
    pub version: i32,
    pub opaque: i32,
    pub flag: i32,
    pub remark: Option<&'a str>,
}

/// Writes one frame at the end of `out`: `begin`, any number of `field`/`number`, `end_header`, the body straight into
/// `out`, `finish`.
pub struct Writer<'o, 'f> {
    pub out: &'o mut Vec<u8>,
    fixed: Fixed<'f>,
    encoding: Encoding,
    frame: usize,
    map: usize,
    header_end: usize,
}

impl<'o, 'f> Writer<'o, 'f> {
    pub fn begin(out: &'o mut Vec<u8>, encoding: Encoding, fixed: Fixed<'f>) -> Self {
        let frame = out.len();
        out.extend_from_slice(&[0; 8]);
        let mut map = 0;
        match encoding {
            Encoding::Json => {
                out.extend_from_slice(b"{\"code\":");
                push_number(out, fixed.code as i64);
            }
            Encoding::RocketMq => {
                out.extend_from_slice(&(fixed.code as i16).to_be_bytes());
                out.push(fixed.language);
                out.extend_from_slice(&(fixed.version as i16).to_be_bytes());
                out.extend_from_slice(&fixed.opaque.to_be_bytes());
                out.extend_from_slice(&fixed.flag.to_be_bytes());
                let remark = fixed.remark.unwrap_or("");
                out.extend_from_slice(&(remark.len() as u32).to_be_bytes());
                out.extend_from_slice(remark.as_bytes());
                map = out.len();
                out.extend_from_slice(&[0; 4]);
            }
        }
        Writer { out, fixed, encoding, frame, map, header_end: 0 }
    }

    #[inline]
    fn key(&mut self, key: &str) {
        match self.encoding {
            Encoding::Json => {
                if self.map == 0 {
                    self.out.extend_from_slice(b",\"extFields\":{\"");
                    self.map = 1;
                } else {
                    self.out.extend_from_slice(b",\"");
                }
                push_escaped(self.out, key);
                self.out.extend_from_slice(b"\":\"");
            }
            Encoding::RocketMq => {
                self.out.extend_from_slice(&(key.len() as u16).to_be_bytes());
                self.out.extend_from_slice(key.as_bytes());
            }
        }
    }

    /// One ext field.
    #[inline]
    pub fn field(&mut self, key: &str, value: &str) {
        self.key(key);
        match self.encoding {
            Encoding::Json => {
                push_escaped(self.out, value);
                self.out.push(b'"');
            }
            Encoding::RocketMq => {
                self.out.extend_from_slice(&(value.len() as u32).to_be_bytes());
                self.out.extend_from_slice(value.as_bytes());
            }
        }
    }

    /// One ext field with a number (as text, like all of them).
    #[inline]
    pub fn number(&mut self, key: &str, value: i64) {
        self.key(key);
        match self.encoding {
            Encoding::Json => {
                push_number(self.out, value);
                self.out.push(b'"');
            }
            Encoding::RocketMq => {
                let at = self.out.len();
                self.out.extend_from_slice(&[0; 4]);
                push_number(self.out, value);
                let length = (self.out.len() - at - 4) as u32;
                self.out[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
    }

    /// Ends the header; what is pushed to `out` from here is the body.
    pub fn end_header(&mut self) {
        let fixed = self.fixed;
        let out = &mut *self.out;
        match self.encoding {
            Encoding::Json => {
                if self.map != 0 {
                    out.push(b'}');
                }
                out.extend_from_slice(b",\"flag\":");
                push_number(out, fixed.flag as i64);
                out.extend_from_slice(b",\"language\":\"");
                let language = LANGUAGES.get(fixed.language as usize).unwrap_or(&LANGUAGES[LANGUAGE_OTHER as usize]);
                out.extend_from_slice(language.as_bytes());
                out.extend_from_slice(b"\",\"opaque\":");
                push_number(out, fixed.opaque as i64);
                if let Some(remark) = fixed.remark {
                    out.extend_from_slice(b",\"remark\":\"");
                    push_escaped(out, remark);
                    out.push(b'"');
                }
                out.extend_from_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
                push_number(out, fixed.version as i64);
                out.push(b'}');
            }
            Encoding::RocketMq => {
                let length = (out.len() - self.map - 4) as u32;
                out[self.map..self.map + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
        self.header_end = out.len();
    }

    /// Puts the lengths in. The frame is done.
    pub fn finish(self) {
        assert!(self.header_end != 0, "end_header comes before finish");
        let header = (self.header_end - self.frame - 8) as u32;
        let length = (self.out.len() - self.frame - 4) as u32;
        let marked = (self.encoding as u32) << 24 | (header & 0x00ff_ffff);
        self.out[self.frame..self.frame + 4].copy_from_slice(&length.to_be_bytes());
        self.out[self.frame + 4..self.frame + 8].copy_from_slice(&marked.to_be_bytes());
    }
}

/// A number in decimal.
#[inline]
pub fn push_number(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    out.extend_from_slice(&digits[at..]);
}

/// Text inside a JSON string: quotes, backslashes and control characters escaped.
#[inline]
fn push_escaped(out: &mut Vec<u8>, text: &str) {
    // Nearly all texts need nothing; this test is a few vector instructions.
    if !text.bytes().fold(false, |odd, byte| odd | (byte < 0x20) | (byte == b'"') | (byte == b'\\')) {
        out.extend_from_slice(text.as_bytes());
    } else {
        push_escaped_bytes(out, text.as_bytes());
    }
}

#[cold]
fn push_escaped_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte >= 0x20 && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..at]);
        from = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[(byte >> 4) as usize]);
                out.push(HEX[(byte & 15) as usize]);
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
}
