//! SQL92 message filters: compiled once per subscription, evaluated on the property text of a record.
//!
//! Promises: accepts and refuses the expressions Apache RocketMQ 5.5 accepts and refuses, with its three-valued logic
//! and its conversions (all properties are strings; numbers are Java's `int`, `long` and `double`), and names the
//! column of an error. Leaves to others: where a record's properties are, and who may filter at all.
//!
//! Grammar, loosest first:
//! ```text
//! or         = and { OR and }
//! and        = equality { AND equality }
//! equality   = comparison { ("=" | "<>") comparison | IS [NOT] NULL }
//! comparison = unary { (">" | ">=" | "<" | "<=") unary | [NOT] (CONTAINS | STARTSWITH | ENDSWITH) string
//!                    | [NOT] BETWEEN unary AND unary | [NOT] IN "(" string { "," string } ")" }
//! unary      = ("+" | "-" | NOT) unary | primary
//! primary    = string | decimal | float | TRUE | FALSE | NULL | property | "(" or ")"
//! ```
//! Apache's parser stops after the first complete expression and does not look at what follows; so does this one.
use std::cmp::Ordering;
use std::fmt;

use crate::property;

/// Deeper nesting than this is refused, so that an expression can't exhaust the stack. Apache's limit is its thread's
/// stack: somewhat more, depending on the Java that runs it. Chains of AND and OR have no limit.
const NESTING_MAX: usize = 1000;

/// So deep is parsed where the caller is: a level costs five frames of at most 2 KiB, so this fits into 1 MiB. What is
/// deeper, and is written by a program, gets a thread with a stack for it. Evaluation needs far less.
const SHALLOW: usize = 100;
const DEEP_STACK_BYTES: usize = 32 << 20;

/// Why an expression was refused. `column` counts characters from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    pub column: usize,
    pub message: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid SQL92 expression at column {}: {}", self.column, self.message)
    }
}

impl std::error::Error for SqlError {}

/// A compiled expression.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter(Node);

/// No constant is NaN. Being `Eq`, the two filters of a subscription that has not changed are told by their address.
impl Eq for Filter {}

impl Filter {
    /// Compiles `text`; the error says what is wrong and in which column.
    pub fn compile(text: &str) -> Result<Filter, SqlError> {
        let mut parser = Parser::new(text, SHALLOW);
        match parser.whole() {
            Err(error) if parser.too_deep => std::thread::scope(|scope| {
                let deep = std::thread::Builder::new().name("deep filter".into()).stack_size(DEEP_STACK_BYTES);
                match deep.spawn_scoped(scope, || Parser::new(text, NESTING_MAX).whole()) {
                    Ok(thread) => thread.join().expect("a parser does not panic"),
                    Err(_) => Err(error),
                }
            }),
            result => result,
        }
    }

    /// Whether a record with this property text (`name\x01value\x02…`) matches. Null, a value that is not boolean and a
    /// comparison that makes no sense (a number with a text that is none) all mean no.
    pub fn matches(&self, properties: &[u8]) -> bool {
        matches!(self.0.evaluate(properties), Ok(Some(Value::Boolean(true))))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value<'a> {
    Text(&'a [u8]),
    Int(i32),
    Long(i64),
    Double(f64),
    Boolean(bool),
}

/// Evaluation gave up: the whole filter does not match, whatever stands beside the failed part (unlike null in OR).
#[derive(Debug)]
struct Nonsense;

type Evaluated<'a> = Result<Option<Value<'a>>, Nonsense>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Comparison {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum TextTest {
    Contains,
    StartsWith,
    EndsWith,
}

#[derive(Debug, Clone, PartialEq)]
enum Constant {
    Text(Vec<u8>),
    Int(i32),
    Long(i64),
    Double(f64),
    Boolean(bool),
    Null,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Constant(Constant),
    Property(Vec<u8>),
    Negate(Box<Node>),
    Not(Box<Node>),
    /// A bare property where a boolean is due. Properties are texts, so it is false when set and null when not.
    BooleanCast(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Equal(Box<Node>, Box<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    Text {
        test: TextTest,
        negated: bool,
        value: Box<Node>,
        search: Vec<u8>,
    },
    In {
        negated: bool,
        property: Vec<u8>,
        /// In order.
        list: Vec<Vec<u8>>,
    },
}

impl Node {
    fn is_boolean(&self) -> bool {
        !matches!(
            self,
            Node::Property(_)
                | Node::Negate(_)
                | Node::Constant(Constant::Text(_) | Constant::Int(_) | Constant::Long(_) | Constant::Double(_))
        )
    }

    /// Only passes on to what does the work: this is the frame that a deep expression has a thousand of.
    fn evaluate<'a>(&'a self, properties: &'a [u8]) -> Evaluated<'a> {
        match self {
            Node::Constant(constant) => Ok(constant.value()),
            Node::Property(name) => Ok(property::find(properties, name).map(Value::Text)),
            Node::Negate(node) => node.evaluate(properties).map(negate),
            Node::Not(node) => node.truth(properties).map(not),
            Node::BooleanCast(node) => node.evaluate(properties).map(cast),
            Node::And(nodes) => combine(nodes, properties, false),
            Node::Or(nodes) => combine(nodes, properties, true),
            Node::Equal(left, right) => equal(left.evaluate(properties)?, right.evaluate(properties)?),
            Node::Compare(comparison, left, right) => match left.evaluate(properties)? {
                None => Ok(None), // Apache does not look at the right side then
                left => compare(*comparison, left, right.evaluate(properties)?),
            },
            Node::Text { test, negated, value, search } => {
                Ok(Some(Value::Boolean(test_text(*test, *negated, value.evaluate(properties)?, search))))
            }
            Node::In { negated, property, list } => Ok(is_in(property::find(properties, property), list, *negated)),
        }
    }

    /// The value of a boolean node; the parser lets nothing else stand under NOT, AND and OR.
    fn truth(&self, properties: &[u8]) -> Result<Option<bool>, Nonsense> {
        match self.evaluate(properties)? {
            None => Ok(None),
            Some(Value::Boolean(truth)) => Ok(Some(truth)),
            Some(_) => Err(Nonsense),
        }
    }
}

impl Constant {
    fn value(&self) -> Option<Value<'_>> {
        Some(match self {
            Constant::Text(text) => Value::Text(text),
            Constant::Int(n) => Value::Int(*n),
            Constant::Long(n) => Value::Long(*n),
            Constant::Double(n) => Value::Double(*n),
            Constant::Boolean(b) => Value::Boolean(*b),
            Constant::Null => return None,
        })
    }
}

fn negate(value: Option<Value<'_>>) -> Option<Value<'_>> {
    match value? {
        Value::Int(n) => Some(Value::Int(n.wrapping_neg())),
        Value::Long(n) => Some(Value::Long(n.wrapping_neg())),
        Value::Double(n) => Some(Value::Double(-n)),
        _ => None,
    }
}

fn not<'a>(truth: Option<bool>) -> Option<Value<'a>> {
    truth.map(|truth| Value::Boolean(!truth))
}

fn cast(value: Option<Value<'_>>) -> Option<Value<'_>> {
    value.map(|value| Value::Boolean(value == Value::Boolean(true)))
}

fn equal<'a>(left: Option<Value<'a>>, right: Option<Value<'a>>) -> Evaluated<'a> {
    Ok(match (left, right) {
        (None, None) => Some(Value::Boolean(true)),
        (None, Some(_)) => None,
        (Some(_), None) => Some(Value::Boolean(false)),
        (Some(left), Some(right)) => Some(Value::Boolean(order(left, right)? == Ordering::Equal)),
    })
}

fn compare<'a>(comparison: Comparison, left: Option<Value<'a>>, right: Option<Value<'a>>) -> Evaluated<'a> {
    let (Some(left), Some(right)) = (left, right) else { return Ok(None) };
    let order = match (left, right) {
        // Two texts are ordered only as the numbers they spell.
        (Value::Text(a), Value::Text(b)) => order_doubles(java_double(a)?, java_double(b)?),
        _ => order(left, right)?,
    };
    Ok(Some(Value::Boolean(match comparison {
        Comparison::Less => order.is_lt(),
        Comparison::LessEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterEqual => order.is_ge(),
    })))
}

/// An empty search text, a missing property and a value that is no text: false, for the negated form too.
fn test_text(test: TextTest, negated: bool, value: Option<Value<'_>>, search: &[u8]) -> bool {
    match value {
        Some(Value::Text(text)) if !search.is_empty() => {
            let found = match test {
                TextTest::Contains => text.windows(search.len()).any(|window| window == search),
                TextTest::StartsWith => text.starts_with(search),
                TextTest::EndsWith => text.ends_with(search),
            };
            found != negated
        }
        _ => false,
    }
}

fn is_in<'a>(text: Option<&'a [u8]>, list: &[Vec<u8>], negated: bool) -> Option<Value<'a>> {
    text.map(|text| Value::Boolean(list.binary_search_by(|item| item.as_slice().cmp(text)).is_ok() != negated))
}

/// AND and OR of three-valued logic: the first value equal to `decisive` decides, else null wins over the rest.
fn combine<'a>(nodes: &[Node], properties: &[u8], decisive: bool) -> Evaluated<'a> {
    let mut known = true;
    for node in nodes {
        match node.truth(properties)? {
            Some(truth) if truth == decisive => return Ok(Some(Value::Boolean(decisive))),
            Some(_) => {}
            None => known = false,
        }
    }
    Ok(known.then_some(Value::Boolean(!decisive)))
}

/// Java's order of two values after the left one's type decided what the other is converted to. Types that can't meet
/// compare as "less"; a text that spells no number of the other side's type is nonsense.
fn order(left: Value<'_>, right: Value<'_>) -> Result<Ordering, Nonsense> {
    use Value::{Boolean, Double, Int, Long, Text};
    Ok(match (left, right) {
        (Text(a), Text(b)) => a.cmp(b),
        (Text(a), Boolean(b)) => a.eq_ignore_ascii_case(b"true").cmp(&b),
        (Text(a), Int(b)) => java_integer::<i32>(a)?.cmp(&b),
        (Text(a), Long(b)) => java_integer::<i64>(a)?.cmp(&b),
        (Text(a), Double(b)) => order_doubles(java_double(a)?, b),
        (Int(a), Int(b)) => a.cmp(&b),
        (Int(a), Long(b)) => i64::from(a).cmp(&b),
        (Int(a), Double(b)) => order_doubles(f64::from(a), b),
        (Int(a), Text(b)) => a.cmp(&java_integer::<i32>(b)?),
        (Long(a), Int(b)) => a.cmp(&i64::from(b)),
        (Long(a), Long(b)) => a.cmp(&b),
        (Long(a), Double(b)) => order_doubles(a as f64, b),
        (Long(a), Text(b)) => a.cmp(&java_integer::<i64>(b)?),
        (Double(a), Double(b)) => order_doubles(a, b),
        (Double(a), Int(b)) => order_doubles(a, f64::from(b)),
        (Double(a), Long(b)) => order_doubles(a, b as f64),
        (Double(a), Text(b)) => order_doubles(a, java_double(b)?),
        (Boolean(a), Boolean(b)) => a.cmp(&b),
        // Apache converts the wrong side here and fails, so TRUE = 'true' matches nothing while 'true' = TRUE does.
        (Boolean(_), Text(_)) => return Err(Nonsense),
        (Boolean(_), _) | (_, Boolean(_)) => Ordering::Less,
    })
}

/// `Double.compareTo`: -0.0 before 0.0, NaN equal to itself and above all.
fn order_doubles(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => a.total_cmp(&b),
        (a, b) => a.cmp(&b),
    }
}

/// `Integer.valueOf` and `Long.valueOf`: an optional sign and digits of whatever script, no blanks.
fn java_integer<T: TryFrom<i128>>(text: &[u8]) -> Result<T, Nonsense> {
    let text = std::str::from_utf8(text).map_err(|_| Nonsense)?;
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.is_empty() {
        return Err(Nonsense);
    }
    let mut value = 0i128;
    for digit in digits.chars() {
        value = value.checked_mul(10).ok_or(Nonsense)? + i128::from(digit_value(digit)?);
    }
    T::try_from(if negative { -value } else { value }).map_err(|_| Nonsense)
}

/// `Character.digit(c, 10)`: Java reads UTF-16 units one by one, so digits outside the basic plane are none.
fn digit_value(digit: char) -> Result<u32, Nonsense> {
    if let Some(value) = digit.to_digit(10) {
        return Ok(value);
    }
    let code = u32::from(digit);
    ZEROS.iter().find(|&&zero| (zero..zero + 10).contains(&code)).map(|zero| code - zero).ok_or(Nonsense)
}

/// Where the ten decimal digits of each other script begin.
const ZEROS: [u32; 36] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6, 0x0E50,
    0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50,
    0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
];

/// `Double.valueOf`: blanks around, a suffix d or f, `NaN`, `Infinity` and hexadecimal floats are allowed.
fn java_double(text: &[u8]) -> Result<f64, Nonsense> {
    let text = std::str::from_utf8(text).map_err(|_| Nonsense)?;
    let text = text.trim_matches(|c: char| c <= ' ');
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let value = match rest {
        "NaN" => f64::NAN,
        "Infinity" => f64::INFINITY,
        _ if rest.starts_with("0x") || rest.starts_with("0X") => hexadecimal(&rest[2..]).ok_or(Nonsense)?,
        _ => {
            let digits = rest.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(rest);
            // Rust spells infinity and nan in more ways than Java, and would take a second sign.
            if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
                || !digits.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b))
            {
                return Err(Nonsense);
            }
            digits.parse().map_err(|_| Nonsense)?
        }
    };
    Ok(if negative { -value } else { value })
}

/// `1.8p3` behind the `0x`: hexadecimal digits with an optional point, then a binary exponent, which must be there.
fn hexadecimal(text: &str) -> Option<f64> {
    let text = text.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(text);
    let (digits, exponent) = text.split_once(['p', 'P'])?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // The number is bits × 2^power. Of digits that find no room in it, the last bit says whether one is not 0.
    let (mut bits, mut power) = (0u64, 0i64);
    for (at, digit) in whole.chars().chain(fraction.chars()).enumerate() {
        let digit = u64::from(digit.to_digit(16)?);
        let room = bits >> 58 == 0;
        bits = if room { bits << 4 | digit } else { bits | u64::from(digit != 0) };
        power += 4 * (i64::from(at < whole.len()) - i64::from(room));
    }
    let (negative, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => (true, exponent),
        None => (false, exponent.strip_prefix('+').unwrap_or(exponent)),
    };
    if exponent.is_empty() || !exponent.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // One that is no `int` is as good as infinite.
    let exponent = exponent.parse::<i32>().map_or(i64::MAX / 2, i64::from);
    Some(nearest(bits, power + if negative { -exponent } else { exponent }))
}

/// The double nearest to bits × 2^power, the even one of two. `bits` is below 2^62: without 64 bits or more nothing is left of it.
fn nearest(bits: u64, power: i64) -> f64 {
    let length = i64::from(u64::BITS - bits.leading_zeros());
    // A double has 53 bits, and none below 2^-1074.
    let cut = (length - 53).max(-1074 - power);
    let (kept, unit) = match cut {
        i64::MIN..=0 => (bits, power),
        1..=63 => {
            let (kept, rest, half) = (bits >> cut, bits & ((1 << cut) - 1), 1 << (cut - 1));
            (kept + u64::from(rest > half || rest == half && kept & 1 == 1), power + cut)
        }
        _ => (0, 0),
    };
    // Nothing of this rounds again; two steps, since 2^unit alone may be no double.
    let two_to = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    let unit = unit.min(1024);
    kept as f64 * two_to(unit / 2) * two_to(unit - unit / 2)
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(Keyword),
    Name(Vec<u8>),
    Text(Vec<u8>),
    Decimal(String),
    Float(String),
    Symbol(&'static str),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keyword {
    Not,
    And,
    Or,
    Between,
    In,
    True,
    False,
    Null,
    Is,
    Contains,
    StartsWith,
    EndsWith,
}

const KEYWORDS: [(&str, Keyword); 12] = [
    ("NOT", Keyword::Not),
    ("AND", Keyword::And),
    ("OR", Keyword::Or),
    ("BETWEEN", Keyword::Between),
    ("IN", Keyword::In),
    ("TRUE", Keyword::True),
    ("FALSE", Keyword::False),
    ("NULL", Keyword::Null),
    ("IS", Keyword::Is),
    ("CONTAINS", Keyword::Contains),
    ("STARTSWITH", Keyword::StartsWith),
    ("ENDSWITH", Keyword::EndsWith),
];

/// Longer symbols first, so that the first that fits is the longest.
const SYMBOLS: [&str; 11] = ["<>", ">=", "<=", "=", ">", "<", "(", ")", ",", "+", "-"];

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Where the last line begins. No `--` in it is a comment, and looking at all of it for each would take long.
    last_line: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Lexer { text, at: 0, last_line: text.rfind(['\n', '\r']).map_or(0, |at| at + 1) }
    }

    fn error(&self, at: usize, message: impl Into<String>) -> SqlError {
        SqlError { column: self.text[..at].chars().count() + 1, message: message.into() }
    }

    fn skip_blanks_and_comments(&mut self) {
        loop {
            let rest = &self.text[self.at..];
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r', '\x0c']).len();
            let rest = &rest[blanks..];
            self.at += blanks;
            // A comment that does not end is none: the tokenizer goes on with its first character.
            let comment = if rest.starts_with("--") && self.at < self.last_line {
                rest.find(['\n', '\r']).map(|end| end + 1)
            } else {
                rest.strip_prefix("/*").and_then(|inner| inner.find("*/")).map(|end| end + 4)
            };
            match comment {
                Some(length) => self.at += length,
                None => return,
            }
        }
    }

    fn next(&mut self) -> Result<(Token, usize), SqlError> {
        self.skip_blanks_and_comments();
        let start = self.at;
        let rest = &self.text[start..];
        let Some(first) = rest.chars().next() else { return Ok((Token::End, start)) };
        let token = if first == '\'' {
            self.text_literal(start)?
        } else if first.is_ascii_digit() || (first == '.' && rest[1..].starts_with(|c: char| c.is_ascii_digit())) {
            self.number()
        } else if first.is_ascii_alphabetic() || first == '_' || first == '$' {
            let length =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
            self.at += length;
            let word = &rest[..length];
            match KEYWORDS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name)) {
                Some((_, keyword)) => Token::Word(*keyword),
                None => Token::Name(word.as_bytes().to_vec()),
            }
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            self.at += symbol.len();
            Token::Symbol(symbol)
        } else {
            return Err(self.error(start, format!("unexpected character '{first}'")));
        };
        Ok((token, start))
    }

    /// A text in quotes, two quotes in it for one. One that does not end after such a pair ends with its first.
    fn text_literal(&mut self, start: usize) -> Result<Token, SqlError> {
        let mut text = Vec::new();
        let mut shorter = None;
        let mut rest = self.text[start + 1..].bytes().peekable();
        let mut length = 1;
        while let Some(byte) = rest.next() {
            length += 1;
            if byte != b'\'' {
                text.push(byte);
            } else if rest.peek() == Some(&b'\'') {
                shorter = Some((length, text.len()));
                rest.next();
                length += 1;
                text.push(b'\'');
            } else {
                self.at += length;
                return Ok(Token::Text(text));
            }
        }
        let Some((length, text_length)) = shorter else { return Err(self.error(start, "a text that does not end")) };
        self.at += length;
        text.truncate(text_length);
        Ok(Token::Text(text))
    }

    /// The longest of: a float (`5.5`, `5.`, `.5`, each with an exponent, or `5E3`), a decimal (`0`, or digits that
    /// don't begin with 0, with an optional `L`).
    fn number(&mut self) -> Token {
        let rest = &self.text.as_bytes()[self.at..];
        let digits = |from: usize| rest[from..].iter().take_while(|b| b.is_ascii_digit()).count();
        let exponent = |from: usize| -> usize {
            if !matches!(rest.get(from), Some(b'e' | b'E')) {
                return 0;
            }
            let sign = usize::from(matches!(rest.get(from + 1), Some(b'+' | b'-')));
            match digits((from + 1 + sign).min(rest.len())) {
                0 => 0,
                count => 1 + sign + count,
            }
        };
        let whole = digits(0);
        let float = if rest.get(whole) == Some(&b'.') {
            let end = whole + 1 + digits(whole + 1);
            Some(end + exponent(end))
        } else {
            match exponent(whole) {
                0 => None,
                length => Some(whole + length),
            }
        };
        let text = |length: usize| String::from_utf8_lossy(&rest[..length]).into_owned();
        if let Some(length) = float {
            self.at += length;
            return Token::Float(text(length));
        }
        let length = if rest[0] == b'0' { 1 } else { whole };
        let suffix = usize::from(rest[0] != b'0' && matches!(rest.get(length), Some(b'l' | b'L')));
        self.at += length + suffix;
        Token::Decimal(text(length))
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    ahead: Option<(Token, usize)>,
    depth: usize,
    depth_max: usize,
    /// The error is only that.
    too_deep: bool,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, depth_max: usize) -> Self {
        Parser { lexer: Lexer::new(text), ahead: None, depth: 0, depth_max, too_deep: false }
    }

    fn whole(&mut self) -> Result<Filter, SqlError> {
        let at = self.at();
        let node = self.or()?;
        self.boolean(node, at).map(Filter)
    }

    fn peek(&mut self) -> Result<&Token, SqlError> {
        if self.ahead.is_none() {
            self.ahead = Some(self.lexer.next()?);
        }
        Ok(&self.ahead.as_ref().expect("just filled").0)
    }

    fn take(&mut self) -> Result<(Token, usize), SqlError> {
        self.peek()?;
        Ok(self.ahead.take().expect("just filled"))
    }

    /// Where the next token begins, or what can't be one.
    fn at(&mut self) -> usize {
        let _ = self.peek();
        self.ahead.as_ref().map_or(self.lexer.at, |(_, at)| *at)
    }

    fn error(&self, at: usize, message: impl Into<String>) -> SqlError {
        self.lexer.error(at, message)
    }

    fn accept(&mut self, token: &Token) -> Result<bool, SqlError> {
        let same = self.peek()? == token;
        if same {
            self.ahead = None;
        }
        Ok(same)
    }

    fn expect(&mut self, token: &Token, name: &str) -> Result<(), SqlError> {
        let (found, at) = self.take()?;
        if found == *token {
            Ok(())
        } else {
            Err(self.error(at, format!("expected {name}, found {}", describe(&found))))
        }
    }

    fn text(&mut self) -> Result<Vec<u8>, SqlError> {
        match self.take()? {
            (Token::Text(text), _) => Ok(text),
            (found, at) => Err(self.error(at, format!("expected a text in quotes, found {}", describe(&found)))),
        }
    }

    fn boolean(&self, node: Node, at: usize) -> Result<Node, SqlError> {
        match node {
            Node::Property(_) => Ok(Node::BooleanCast(Box::new(node))),
            node if node.is_boolean() => Ok(node),
            _ => Err(self.error(at, "this is not a condition")),
        }
    }

    /// Counts the links of `a = b = c …`, each of which nests the ones before it.
    fn one_more(&mut self, links: &mut usize) -> Result<(), SqlError> {
        *links += 1;
        if *links > self.depth_max {
            self.too_deep = true;
            let at = self.at();
            return Err(self.error(at, format!("more than {} comparisons in a row", self.depth_max)));
        }
        Ok(())
    }

    fn or(&mut self) -> Result<Node, SqlError> {
        self.chain(Keyword::Or, Self::and, Node::Or)
    }

    fn and(&mut self) -> Result<Node, SqlError> {
        self.chain(Keyword::And, Self::equality, Node::And)
    }

    fn chain(
        &mut self,
        joint: Keyword,
        link: fn(&mut Self) -> Result<Node, SqlError>,
        whole: fn(Vec<Node>) -> Node,
    ) -> Result<Node, SqlError> {
        let at = self.at();
        let first = link(self)?;
        if *self.peek()? != Token::Word(joint) {
            return Ok(first);
        }
        let mut nodes = vec![self.boolean(first, at)?];
        while self.accept(&Token::Word(joint))? {
            let at = self.at();
            let node = link(self)?;
            nodes.push(self.boolean(node, at)?);
        }
        Ok(whole(nodes))
    }

    fn equality(&mut self) -> Result<Node, SqlError> {
        let mut left = self.comparison()?;
        let mut links = 0;
        loop {
            let token = self.peek()?.clone();
            let at = self.at();
            self.one_more(&mut links)?;
            match token {
                Token::Symbol("=" | "<>") => {
                    self.take()?;
                    let right = self.comparison()?;
                    for side in [&left, &right] {
                        if *side == Node::Constant(Constant::Null) {
                            return Err(self.error(at, "NULL can't be compared: use IS NULL"));
                        }
                    }
                    if let (Node::Constant(Constant::Boolean(_)), Node::Constant(constant)) = (&left, &right) {
                        if !matches!(constant, Constant::Boolean(_)) {
                            return Err(self.error(at, "a boolean can't be compared with this"));
                        }
                    }
                    let equal = Node::Equal(left.into(), right.into());
                    left = if token == Token::Symbol("=") { equal } else { Node::Not(equal.into()) };
                }
                Token::Word(Keyword::Is) => {
                    self.take()?;
                    let negated = self.accept(&Token::Word(Keyword::Not))?;
                    self.expect(&Token::Word(Keyword::Null), "NULL")?;
                    let is_null = Node::Equal(left.into(), Node::Constant(Constant::Null).into());
                    left = if negated { Node::Not(is_null.into()) } else { is_null };
                }
                _ => return Ok(left),
            }
        }
    }

    fn comparison(&mut self) -> Result<Node, SqlError> {
        let mut left = self.unary()?;
        let mut links = 0;
        loop {
            self.one_more(&mut links)?;
            let at = self.at();
            let negated = self.accept(&Token::Word(Keyword::Not))?;
            let token = self.peek()?.clone();
            left = match token {
                Token::Symbol(symbol @ (">" | ">=" | "<" | "<=")) if !negated => {
                    self.take()?;
                    let comparison = match symbol {
                        ">" => Comparison::Greater,
                        ">=" => Comparison::GreaterEqual,
                        "<" => Comparison::Less,
                        _ => Comparison::LessEqual,
                    };
                    let right = self.unary()?;
                    self.compare(comparison, left, right, at)?
                }
                Token::Word(word @ (Keyword::Contains | Keyword::StartsWith | Keyword::EndsWith)) => {
                    self.take()?;
                    let test = match word {
                        Keyword::Contains => TextTest::Contains,
                        Keyword::StartsWith => TextTest::StartsWith,
                        _ => TextTest::EndsWith,
                    };
                    Node::Text { test, negated, value: left.into(), search: self.text()? }
                }
                Token::Word(Keyword::Between) => {
                    self.take()?;
                    let low = self.unary()?;
                    self.expect(&Token::Word(Keyword::And), "AND")?;
                    let high = self.unary()?;
                    self.between(left, low, high, negated, at)?
                }
                Token::Word(Keyword::In) => {
                    self.take()?;
                    self.expect(&Token::Symbol("("), "(")?;
                    let mut list = vec![self.text()?];
                    while self.accept(&Token::Symbol(","))? {
                        list.push(self.text()?);
                    }
                    self.expect(&Token::Symbol(")"), ")")?;
                    list.sort_unstable();
                    match left {
                        Node::Property(property) => Node::In { negated, property, list },
                        _ => return Err(self.error(at, "only a property can be IN a list")),
                    }
                }
                _ if negated => {
                    let at = self.at();
                    return Err(self.error(
                        at,
                        format!(
                            "expected BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH after NOT, found {}",
                            describe(&token)
                        ),
                    ));
                }
                _ => return Ok(left),
            };
        }
    }

    fn compare(&self, comparison: Comparison, left: Node, right: Node, at: usize) -> Result<Node, SqlError> {
        for side in [&left, &right] {
            let ordered = match side {
                Node::Constant(Constant::Int(_) | Constant::Long(_) | Constant::Double(_)) => true,
                Node::Constant(_) => false,
                node => !node.is_boolean(),
            };
            if !ordered {
                return Err(self.error(at, "only numbers and properties can be ordered"));
            }
        }
        Ok(Node::Compare(comparison, left.into(), right.into()))
    }

    fn between(&self, value: Node, low: Node, high: Node, negated: bool, at: usize) -> Result<Node, SqlError> {
        if negated {
            let below = self.compare(Comparison::Less, value.clone(), low, at)?;
            let above = self.compare(Comparison::Greater, value, high, at)?;
            return Ok(Node::Or(vec![below, above]));
        }
        if let (Ok(Some(low)), Ok(Some(high))) = (constant(&low), constant(&high)) {
            if order(high, low).is_ok_and(Ordering::is_lt) {
                return Err(self.error(at, "the lower bound of BETWEEN is above the upper one"));
            }
        }
        let from = self.compare(Comparison::GreaterEqual, value.clone(), low, at)?;
        let to = self.compare(Comparison::LessEqual, value, high, at)?;
        Ok(Node::And(vec![from, to]))
    }

    fn unary(&mut self) -> Result<Node, SqlError> {
        self.depth += 1;
        if self.depth > self.depth_max {
            self.too_deep = true;
            let at = self.at();
            return Err(self.error(at, format!("more than {} levels deep", self.depth_max)));
        }
        let (token, at) = self.take()?;
        let node = match token {
            Token::Symbol("+") => self.unary()?,
            Token::Symbol("-") => Node::Negate(self.unary()?.into()),
            Token::Word(Keyword::Not) => {
                let operand_at = self.at();
                let operand = self.unary()?;
                Node::Not(self.boolean(operand, operand_at)?.into())
            }
            Token::Symbol("(") => {
                let node = self.or()?;
                self.expect(&Token::Symbol(")"), ")")?;
                node
            }
            Token::Name(name) => Node::Property(name),
            Token::Text(text) => Node::Constant(Constant::Text(text)),
            Token::Word(Keyword::True) => Node::Constant(Constant::Boolean(true)),
            Token::Word(Keyword::False) => Node::Constant(Constant::Boolean(false)),
            Token::Word(Keyword::Null) => Node::Constant(Constant::Null),
            Token::Decimal(text) => match text.parse::<i64>() {
                Ok(n) => Node::Constant(i32::try_from(n).map_or(Constant::Long(n), Constant::Int)),
                Err(_) => return Err(self.error(at, format!("{text} does not fit into 64 bits"))),
            },
            Token::Float(text) => match text.parse::<f64>() {
                // Java's Double.MIN_VALUE is the smallest positive one: 0.0 is refused as Apache refuses it.
                Ok(n) if n.is_finite() && n > 0.0 => Node::Constant(Constant::Double(n)),
                _ => return Err(self.error(at, format!("{text} is out of range"))),
            },
            token => return Err(self.error(at, format!("expected a value, found {}", describe(&token)))),
        };
        self.depth -= 1;
        Ok(node)
    }
}

/// The value of a node that is a constant.
fn constant(node: &Node) -> Evaluated<'_> {
    match node {
        Node::Constant(constant) => Ok(constant.value()),
        _ => Ok(None),
    }
}

fn describe(token: &Token) -> String {
    match token {
        Token::Word(word) => {
            let (name, _) = KEYWORDS.iter().find(|(_, k)| k == word).expect("every keyword has its row");
            (*name).to_string()
        }
        Token::Name(name) => format!("'{}'", String::from_utf8_lossy(name)),
        Token::Text(_) => "a text".to_string(),
        Token::Decimal(text) | Token::Float(text) => text.clone(),
        Token::Symbol(symbol) => format!("'{symbol}'"),
        Token::End => "the end".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROPERTIES: &[u8] =
        b"a\x015\x02b\x01it's\x02price\x015.5\x02flag\x01TRUE\x02empty\x01\x02big\x019223372036854775807\x02text\x01hello\x02";

    fn matches(text: &str) -> bool {
        Filter::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")).matches(PROPERTIES)
    }

    #[test]
    fn what_matches() {
        for text in [
            "a = 5",
            "a = '5'",
            "a <> 6",
            "a > 4",
            "a >= 5 AND a <= 5",
            "a BETWEEN 5 AND 6",
            "a NOT BETWEEN 6 AND 7",
            "a in ('4', '5')",
            "text NOT IN ('x')",
            "b = 'it''s'",
            "TRUE 'hello'' and so on",
            "price = 5.5",
            "price > 5.4",
            "flag = TRUE",
            "missing IS NULL",
            "empty IS NULL",
            "a IS NOT NULL",
            "text CONTAINS 'ell'",
            "text STARTSWITH 'he'",
            "text endswith 'lo'",
            "text NOT CONTAINS 'x'",
            "a = 6 OR a = 5",
            "NOT (a = 6)",
            "NOT a",
            "a > -1",
            "a = +5",
            "missing = 1 OR a = 5",
            "big = 9223372036854775807",
            "a = 5 /* x */ AND -- y\n a = 5",
            "TRUE",
            "missing = other",
            "a < price",
            "a = 5 what follows is not read",
            "a = 5L",
            "a = 007 OR TRUE",
            "a > .5",
            "a > 1e0",
            "price < 1.e1",
        ] {
            if text == "a = 007 OR TRUE" {
                // "0" is a whole token of its own, so the expression ends there: a = 0.
                assert!(!matches(text), "{text}");
            } else {
                assert!(matches(text), "{text}");
            }
        }
    }

    #[test]
    fn what_does_not_match() {
        for text in [
            "a = 6",
            "a = 5.5",
            "missing = 1",
            "missing <> 1",
            "NOT (missing = 1)",
            "text > 1 OR TRUE",
            "a",
            "FALSE",
            "NULL",
            "TRUE = flag",
            "price = 5",
            "empty CONTAINS ''",
            "empty NOT CONTAINS 'x'",
            "empty NOT IN ('x')",
            "text NOT CONTAINS ''",
            "missing NOT CONTAINS 'x'",
            "missing IN ('x')",
            "missing NOT IN ('x')",
            "a > text",
            "5 = 'x' OR TRUE",
            "-a = 5",
            "1 = TRUE",
            "a > 1 AND missing = 1",
            "a > 9223372036854775807",
        ] {
            assert!(!matches(text), "{text}");
        }
    }

    #[test]
    fn what_is_refused_and_where() {
        for (text, column) in [
            ("", 1),
            ("a =", 4),
            ("a > 'x'", 3),
            ("a = NULL", 3),
            ("5", 1),
            ("'x'", 1),
            ("-a", 1),
            ("a IN (1)", 7),
            ("a IN ()", 7),
            ("5 IN ('5')", 3),
            ("a BETWEEN 3 AND 2", 3),
            ("a NOT 5", 7),
            ("a IS 5", 6),
            ("(a = 5", 7),
            ("a = 'x", 5),
            ("a = 5 # 1", 7),
            ("a = 9223372036854775808", 5),
            ("a > 0.0", 5),
            ("a > TRUE", 3),
            ("a LIKE", 0),
            ("a AND", 6),
            ("TRUE = 1", 6),
            ("not 'x'", 5),
            (" 5", 2),
            ("TRUE or  5", 10),
            ("a and /* b */ 'x'", 15),
            ("( 5) or TRUE", 1),
            (" ( 5 or TRUE)", 4),
            ("a = 5 and not  -a", 16),
            ("a > 1 > 2", 7),
            ("a CONTAINS b", 12),
        ] {
            match Filter::compile(text) {
                // Without an operator the property ends the expression, as with Apache.
                Ok(_) => assert_eq!(text, "a LIKE"),
                Err(error) => assert_eq!(error.column, column, "{text}: {error}"),
            }
        }
        let deep = format!("{}a = 1{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(Filter::compile(&deep).is_err());
        assert!(Filter::compile(&format!("a = 1{}", " IS NULL".repeat(100_000))).is_err());
        assert!(matches(&format!("a = 5{}", " AND a = 5".repeat(100_000))));
        for (number, is_a) in [("--5", true), ("--6", false), ("---5", false)] {
            let negated = format!(" OR a = {number}").repeat(100_000); // each looks for the end of its line in vain
            assert_eq!(matches(&format!("a = 6{negated}")), is_a, "{number}");
            assert_eq!(matches(&format!("-- a\ra = 6 -- b\n{negated}")), is_a, "{number}");
        }
        for (open, close) in [("(", ")"), ("NOT ", ""), ("(b = 'x' OR NOT ", ")")] {
            let nested = |depth: usize| format!("{}(a = 5){}", open.repeat(depth), close.repeat(depth));
            let most = if open.len() > 4 { NESTING_MAX / 2 } else { NESTING_MAX };
            assert!(matches(&nested(most - 2)), "{open}");
            assert!(Filter::compile(&nested(most)).is_err(), "{open}");
        }
    }

    #[test]
    fn a_list_is_in_no_order_and_may_be_long() {
        for list in ["'9', '5', '1'", "'5', '', '55', '5', '4'", "'６', '5'"] {
            assert!(matches(&format!("a IN ({list})")), "{list}");
            assert!(!matches(&format!("a NOT IN ({list})")), "{list}");
        }
        let even: Vec<String> = (0..10_000).rev().map(|n| format!("'{}'", 2 * n)).collect();
        let filter = Filter::compile(&format!("a IN ({})", even.join(","))).unwrap();
        for n in 0..20_002 {
            assert_eq!(filter.matches(format!("a\x01{n}\x02").as_bytes()), n % 2 == 0 && n < 20_000, "{n}");
        }
        for text in ["", "00", "x", "-1"] {
            assert!(!filter.matches(format!("a\x01{text}\x02").as_bytes()), "{text}");
        }
    }

    #[test]
    fn integers_are_spelt_as_in_java() {
        for (text, value) in [("+5", 5), ("-0", 0), ("007", 7), ("１２", 12), ("-٣", -3), ("-2147483648", i32::MIN)]
        {
            assert_eq!(java_integer::<i32>(text.as_bytes()).unwrap(), value, "{text}");
        }
        let many = "9".repeat(60);
        for text in ["", "+", "-", "--1", " 1", "1 ", "1L", "2147483648", "²", "𝟏", &many] {
            assert!(java_integer::<i32>(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// As Java's `Double.parseDouble` has them, bit by bit.
    #[test]
    fn hexadecimal_doubles_are_the_nearest_ones() {
        for (text, bits) in [
            ("0x1p-1074", 0x0000_0000_0000_0001),
            ("-0x1.3befb6065d7c0p-998", 0x8193_befb_6065_d7c0),
            ("0x1p-1075", 0x0000_0000_0000_0000),
            ("0x1.8p-1075", 0x0000_0000_0000_0001),
            ("0x1.00000000000000000001p-1075", 0x0000_0000_0000_0001),
            ("0x3p-1075", 0x0000_0000_0000_0002),
            ("0x.1p-1070", 0x0000_0000_0000_0001),
            ("0x1p-1022", 0x0010_0000_0000_0000),
            ("0x0.fffffffffffff8p-1022", 0x0010_0000_0000_0000),
            ("0x0.fffffffffffff7ffp-1022", 0x000f_ffff_ffff_ffff),
            ("0x1.00000000000008p0", 0x3ff0_0000_0000_0000),
            ("0x1.000000000000080000001p0", 0x3ff0_0000_0000_0001),
            ("0x1.00000000000018p0", 0x3ff0_0000_0000_0002),
            ("0x1.0000000000000800000000000000000000p0", 0x3ff0_0000_0000_0000),
            ("0x123456789abcdef01p0", 0x43f2_3456_789a_bcdf),
            ("0x1.fffffffffffffp1023", 0x7fef_ffff_ffff_ffff),
            ("0x1.fffffffffffff8p1023", 0x7ff0_0000_0000_0000),
            ("0x1.fffffffffffff7ffp1023", 0x7fef_ffff_ffff_ffff),
            ("0x1p1024", 0x7ff0_0000_0000_0000),
            ("0x0.0000000000001p1075", 0x7fe0_0000_0000_0000),
            ("0x1000000000000000000000000000000000p-2000", 0x0000_0000_0000_0000),
            ("0x1p2147483647", 0x7ff0_0000_0000_0000),
            ("0x1p2147483648", 0x7ff0_0000_0000_0000),
            ("0x1p-2147483648", 0x0000_0000_0000_0000),
            ("-0x1p-99999999999", 0x8000_0000_0000_0000),
            ("-0x1p99999999999", 0xfff0_0000_0000_0000),
            ("0x0p99999999999", 0x0000_0000_0000_0000),
            ("-0x0.0p5", 0x8000_0000_0000_0000),
            ("0XaBc.DeFP+004f", 0x40e5_79bd_e000_0000),
            ("0x1.8p3d", 0x4028_0000_0000_0000),
            ("0x.8p0", 0x3fe0_0000_0000_0000),
            ("0x8.p0", 0x4020_0000_0000_0000),
        ] {
            let value = java_double(text.as_bytes()).unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(value.to_bits(), bits, "{text}: {value:e}, not {:e}", f64::from_bits(bits));
        }
        for text in
            ["0x", "0x.", "0x.p0", "0xp0", "0x1", "0x1p", "0x1p+", "0x1p+-5", "0x1p5x", "0x1pf", "0xg.p0", "0x1.p１"]
        {
            assert!(java_double(text.as_bytes()).is_err(), "{text}");
        }
        let long = "0".repeat(10_000);
        assert_eq!(java_double(format!("0x{long}1.{long}1p0").as_bytes()).unwrap(), 1.0);
        assert_eq!(java_double(format!("0x1{long}.p-40000").as_bytes()).unwrap(), 1.0);
        assert_eq!(java_double(format!("0x.{long}1p40004").as_bytes()).unwrap(), 1.0);
    }

    #[test]
    fn doubles_are_spelt_as_in_java() {
        for (text, value) in
            [(" 5 ", 5.0), ("5d", 5.0), ("0x1.8p3", 12.0), ("-Infinity", f64::NEG_INFINITY), ("1.", 1.0)]
        {
            assert_eq!(java_double(text.as_bytes()).unwrap(), value, "{text}");
        }
        for text in ["inf", "nan", "", "1_0", "--1", "0x1", "1 2"] {
            assert!(java_double(text.as_bytes()).is_err(), "{text}");
        }
    }
}
