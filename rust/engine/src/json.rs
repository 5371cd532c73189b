//! JSON as Fastjson spells it, turned into JSON that every reader takes.
//!
//! Fastjson writes numbers as keys (`{0:"10.0.0.1:10911"}`) and objects as keys (`{{"brokerName":"a","queueId":0}:1}`); it
//! reads bare and single-quoted names, trailing commas, `Set[…]`, `NaN`, `undefined`, numbers that carry Java's type (`12L`)
//! and a few more escapes. `strict` rewrites all of it in one pass without recursion; whoever decodes the result sees
//! ordinary JSON. Promises: time and memory in proportion to the text, nesting of at most `DEPTH_MAX` levels.
//!
//! An object that is a key becomes a text: `QUEUE_KEY` followed by the object as strict JSON. Its values are plain (the
//! only such key there is, is a message queue), so that escaping it once is enough.

/// Deeper nesting is refused: no real body has more than ten levels.
pub const DEPTH_MAX: usize = 128;

/// What a key begins with that was an object.
pub const QUEUE_KEY: char = '\0';

/// Where a text stops being JSON, in bytes, and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotJson {
    pub at: usize,
    pub expected: &'static str,
}

/// The rewritten text, and whether objects were keys in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strict {
    pub text: String,
    pub queue_keys: bool,
}

/// What may follow.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    /// A value: at the start, after a colon.
    Value,
    /// A value or the end of the list: after `[` and after a comma in one.
    Item,
    /// A key or the end of the object.
    Key,
    /// A comma or the end of what is open; the end of the text when nothing is.
    After,
}

/// Rewrites `text`; see the head of this file.
pub fn strict(text: &str) -> Result<Strict, NotJson> {
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0, out: Strict::default() };
    reader.out.text.reserve(text.len() + text.len() / 4);
    let mut open: Vec<u8> = Vec::new();
    let mut next = Next::Value;
    loop {
        let first = reader.blanks();
        next = match (next, first) {
            (Next::After, None) if open.is_empty() => return Ok(reader.out),
            (Next::After, _) if open.is_empty() => return Err(reader.wrong("the end")),
            (Next::After, Some(b',')) => {
                reader.at += 1;
                if open.last() == Some(&b'{') {
                    Next::Key
                } else {
                    Next::Item
                }
            }
            (Next::Item | Next::After, Some(b']')) if open.last() == Some(&b'[') => {
                open.pop();
                reader.end(']')
            }
            (Next::Key | Next::After, Some(b'}')) if open.last() == Some(&b'{') => {
                open.pop();
                reader.end('}')
            }
            (Next::After, _) if open.last() == Some(&b'{') => return Err(reader.wrong("',' or '}'")),
            (Next::After, _) => return Err(reader.wrong("',' or ']'")),
            (Next::Key, _) => {
                reader.comma();
                reader.key()?;
                Next::Value
            }
            (Next::Value | Next::Item, _) => {
                if next == Next::Item {
                    reader.comma();
                }
                match reader.value()? {
                    None => Next::After,
                    Some(_) if open.len() >= DEPTH_MAX => return Err(reader.wrong("less depth")),
                    Some(bracket) => {
                        open.push(bracket);
                        if bracket == b'{' {
                            Next::Key
                        } else {
                            Next::Item
                        }
                    }
                }
            }
        };
    }
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    out: Strict,
}

impl Reader<'_> {
    fn wrong(&self, expected: &'static str) -> NotJson {
        NotJson { at: self.at, expected }
    }

    fn blanks(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n' | 0x0c | 0x08) = self.bytes.get(self.at) {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    fn end(&mut self, bracket: char) -> Next {
        self.at += 1;
        self.out.text.push(bracket);
        Next::After
    }

    /// The comma before an item; commas are written late because the last one may be too many.
    fn comma(&mut self) {
        if !matches!(self.out.text.as_bytes().last(), Some(b'[' | b'{')) {
            self.out.text.push(',');
        }
    }

    /// A plain value is rewritten (None); of a list or an object the opening bracket.
    fn value(&mut self) -> Result<Option<u8>, NotJson> {
        let first = self.blanks();
        match first {
            Some(bracket @ (b'{' | b'[')) => {
                self.at += 1;
                self.out.text.push(bracket as char);
                Ok(Some(bracket))
            }
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(|()| None),
            Some(b'+' | b'-' | b'.' | b'0'..=b'9') => self.number().map(|()| None),
            _ => {
                let written = match self.word() {
                    "true" => "true",
                    "false" => "false",
                    "null" | "undefined" | "NaN" => "null",
                    word @ ("Set" | "TreeSet") => {
                        let length = word.len();
                        let before = self.at;
                        self.at += length;
                        if self.blanks() == Some(b'[') {
                            self.at += 1;
                            self.out.text.push('[');
                            return Ok(Some(b'['));
                        }
                        self.at = before;
                        return Err(self.wrong("a value"));
                    }
                    _ => return Err(self.wrong("a value")),
                };
                self.at += self.word().len();
                self.out.text.push_str(written);
                Ok(None)
            }
        }
    }

    /// A name without quotes that begins here, maybe empty.
    fn word(&self) -> &str {
        let rest = &self.text[self.at..];
        let begins = |c: char| c.is_ascii_alphabetic() || c == '_' || c == '$';
        let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '.' | '-');
        if !rest.starts_with(begins) {
            return "";
        }
        &rest[..rest.find(|c| !goes_on(c)).unwrap_or(rest.len())]
    }

    fn key(&mut self) -> Result<(), NotJson> {
        match self.blanks() {
            Some(quote @ (b'"' | b'\'')) => self.string(quote)?,
            Some(b'{') => self.queue_key()?,
            _ => {
                let length = match self.word().len() {
                    0 => self.number_length(),
                    length => length,
                };
                if length == 0 {
                    return Err(self.wrong("a name"));
                }
                self.out.text.push('"');
                self.out.text.push_str(&self.text[self.at..self.at + length]);
                self.out.text.push('"');
                self.at += length;
            }
        }
        if self.blanks() != Some(b':') {
            return Err(self.wrong("':'"));
        }
        self.at += 1;
        self.out.text.push(':');
        Ok(())
    }

    /// An object of plain values that is a key.
    fn queue_key(&mut self) -> Result<(), NotJson> {
        let outer = std::mem::take(&mut self.out.text);
        self.at += 1;
        self.out.text.push('{');
        loop {
            match self.blanks() {
                Some(b'}') => break,
                Some(b'{') => return Err(self.wrong("a name in a message queue")),
                _ => {}
            }
            self.comma();
            self.key()?;
            if self.value()?.is_some() {
                return Err(self.wrong("a plain value in a message queue"));
            }
            match self.blanks() {
                Some(b',') => self.at += 1,
                Some(b'}') => {}
                _ => return Err(self.wrong("',' or '}'")),
            }
        }
        self.at += 1;
        self.out.text.push('}');
        let inner = std::mem::replace(&mut self.out.text, outer);
        self.out.queue_keys = true;
        self.out.text.push('"');
        self.put(QUEUE_KEY);
        inner.chars().for_each(|c| self.put(c));
        self.out.text.push('"');
        Ok(())
    }

    /// How long the number is that begins here; 0: none does.
    fn number_length(&self) -> usize {
        let rest = &self.bytes[self.at..];
        let digits = |from: usize| rest[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let sign = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
        let whole = digits(sign);
        let mut end = sign + whole;
        if rest.get(end) == Some(&b'.') {
            let part = digits(end + 1);
            if whole + part == 0 {
                return 0;
            }
            end += 1 + part;
        } else if whole == 0 {
            return 0;
        }
        if let Some(b'e' | b'E') = rest.get(end) {
            let sign = usize::from(matches!(rest.get(end + 1), Some(b'+' | b'-')));
            match digits(end + 1 + sign) {
                0 => {}
                power => end += 1 + sign + power,
            }
        }
        end
    }

    /// `+1`, `007`, `.5`, `1.` and `12L` become `1`, `7`, `0.5`, `1.0` and `12`.
    fn number(&mut self) -> Result<(), NotJson> {
        let length = self.number_length();
        if length == 0 {
            return Err(self.wrong("a value"));
        }
        let text = &self.text[self.at..self.at + length];
        let (mantissa, power) = match text.find(['e', 'E']) {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        if mantissa.starts_with('-') {
            self.out.text.push('-');
        }
        let mantissa = mantissa.trim_start_matches(['+', '-']);
        let (whole, part) = match mantissa.split_once('.') {
            Some((whole, part)) => (whole, Some(part)),
            None => (mantissa, None),
        };
        let whole = whole.trim_start_matches('0');
        self.out.text.push_str(if whole.is_empty() { "0" } else { whole });
        if let Some(part) = part {
            self.out.text.push('.');
            self.out.text.push_str(if part.is_empty() { "0" } else { part });
        }
        self.out.text.push_str(power);
        self.at += length;
        if let Some(b'L' | b'D' | b'F' | b'B' | b'S') = self.bytes.get(self.at) {
            self.at += 1;
        }
        Ok(())
    }

    fn string(&mut self, quote: u8) -> Result<(), NotJson> {
        self.at += 1;
        self.out.text.push('"');
        loop {
            let rest = &self.text[self.at..];
            let plain = rest
                .bytes()
                .position(|byte| byte == quote || matches!(byte, b'\\' | b'"') || byte < 0x20)
                .unwrap_or(rest.len());
            self.out.text.push_str(&rest[..plain]);
            self.at += plain;
            match self.bytes.get(self.at) {
                None => return Err(self.wrong("the end of a text")),
                Some(&mark) if mark == quote => {
                    self.at += 1;
                    self.out.text.push('"');
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(&other) => {
                    self.at += 1;
                    self.put(other as char);
                }
            }
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        let meant = match self.bytes.get(self.at + 1) {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'v') => '\u{b}',
            Some(b'0') => '\0',
            Some(&itself @ (b'"' | b'\'' | b'\\' | b'/')) => itself as char,
            Some(b'x') => {
                let code = self.hex(self.at + 2, 2)?;
                self.at += 4;
                self.put(char::from_u32(code).unwrap_or('\u{fffd}'));
                return Ok(());
            }
            Some(b'u') => {
                let mut code = self.hex(self.at + 2, 4)?;
                self.at += 6;
                // Two escapes stand for one character beyond the first 65536; half of such a pair is no character.
                if (0xd800..0xdc00).contains(&code) && self.bytes[self.at..].starts_with(b"\\u") {
                    let low = self.hex(self.at + 2, 4)?;
                    if (0xdc00..0xe000).contains(&low) {
                        self.at += 6;
                        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    }
                }
                self.put(char::from_u32(code).unwrap_or('\u{fffd}'));
                return Ok(());
            }
            _ => return Err(self.wrong("an escape")),
        };
        self.at += 2;
        self.put(meant);
        Ok(())
    }

    fn hex(&self, from: usize, digits: usize) -> Result<u32, NotJson> {
        self.bytes
            .get(from..from + digits)
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.wrong("a character in hex"))
    }

    /// One character of a text, escaped where JSON asks for it.
    fn put(&mut self, character: char) {
        match character {
            '"' | '\\' => {
                self.out.text.push('\\');
                self.out.text.push(character);
            }
            control if control < ' ' => {
                self.out.text.push_str("\\u00");
                for digit in [control as u32 >> 4, control as u32 & 15] {
                    self.out.text.push(char::from_digit(digit, 16).unwrap_or('0'));
                }
            }
            other => self.out.text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rewritten(text: &str) -> String {
        strict(text).expect(text).text
    }

    #[test]
    fn what_fastjson_writes_becomes_json() {
        assert_eq!(rewritten(r#"{0:"10.0.0.1:10911",1:"b"}"#), r#"{"0":"10.0.0.1:10911","1":"b"}"#);
        assert_eq!(rewritten("{a:1,b_c:'x\"',}"), r#"{"a":1,"b_c":"x\""}"#);
        assert_eq!(rewritten(" [1, +2, 007, .5, 1., 12L, -0, NaN, undefined , ] "), "[1,2,7,0.5,1.0,12,-0,null,null]");
        assert_eq!(rewritten(r#"{"a":Set["x"]}"#), r#"{"a":["x"]}"#);
        assert_eq!(rewritten("\"\\ud83d\\ude00\\x41\\/\\ud83d\n\""), "\"😀A/\u{fffd}\\u000a\"");
        let queue = strict(r#"{{"brokerName":"a","queueId":0}:{"x":1}}"#).unwrap();
        assert!(queue.queue_keys);
        assert_eq!(queue.text, r#"{"\u0000{\"brokerName\":\"a\",\"queueId\":0}":{"x":1}}"#);
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        let deep = "[".repeat(100_000);
        let keys = "{".repeat(100_000);
        for text in [
            "",
            "{",
            "{\"a\"",
            "{\"a\":1",
            "[1",
            "\"abc",
            "{a}",
            "nul",
            "1 2",
            "{\"a\":1}x",
            "\"\\u12\"",
            "[,1]",
            "{1:2:3}",
            "-",
            ".",
            "Set",
            &deep,
            &keys,
        ] {
            assert!(strict(text).is_err(), "{text:.30}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_rewritten_or_refused_and_what_is_rewritten_stays(text in "[\\[\\]{}:,\"'a1.e+\\\\u0d8 -]{0,40}|\\PC{0,30}") {
            if let Ok(once) = strict(&text) {
                let twice = strict(&once.text).expect("what is strict is read");
                prop_assert_eq!(&once.text, &twice.text);
            }
        }
    }
}
