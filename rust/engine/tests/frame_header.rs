//! Frames and headers: the bytes Apache writes, everything Fastjson may write, and whatever else may come.
//! Every stream is fed whole, byte by byte, and with bytes left over.

use aerobee_engine::frame::{Cutter, Fault, Flow, ProtocolError, FRAME_BYTES_MAX};
use aerobee_engine::header::{Encoding, Fixed, Header, Writer, LANGUAGES};
use proptest::prelude::*;

#[derive(Debug, Clone, PartialEq)]
struct Command {
    encoding: Encoding,
    code: i32,
    language: u8,
    version: i32,
    opaque: i32,
    flag: i32,
    remark: Option<String>,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Command {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let fixed = Fixed {
            code: self.code,
            language: self.language,
            version: self.version,
            opaque: self.opaque,
            flag: self.flag,
            remark: self.remark.as_deref(),
        };
        let mut writer = Writer::begin(&mut out, self.encoding, fixed);
        for (key, value) in &self.fields {
            writer.field(key, value);
        }
        writer.end_header();
        writer.out.extend_from_slice(&self.body);
        writer.finish();
        out
    }
}

/// Feeds `chunks` to one cutter and collects the commands.
fn decode<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Command>, ProtocolError> {
    let mut cutter = Cutter::default();
    let mut header = Header::default();
    let mut out = Vec::new();
    for chunk in chunks {
        cutter.feed(chunk, FRAME_BYTES_MAX, |frame| {
            header.read(frame.encoding, frame.header)?;
            out.push(Command {
                encoding: frame.encoding,
                code: header.code,
                language: header.language,
                version: header.version,
                opaque: header.opaque,
                flag: header.flag,
                remark: header.remark(frame.header).map(str::to_owned),
                fields: header.fields(frame.header).map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
                body: frame.body.to_vec(),
            });
            Ok(Flow::Go)
        })?;
    }
    Ok(out)
}

/// Whole, byte by byte, and cut so that each chunk leaves bytes over: all the same.
fn decode_all_ways(stream: &[u8]) -> Result<Vec<Command>, ProtocolError> {
    let whole = decode([stream]);
    assert_eq!(whole, decode(stream.chunks(1)));
    for size in [3, 7, 11, 64] {
        assert_eq!(whole, decode(stream.chunks(size)), "chunks of {size}");
    }
    whole
}

fn json(text: &str) -> Vec<u8> {
    let mut frame = ((text.len() + 4) as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&(text.len() as u32).to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn read_one(text: &str) -> Command {
    let mut commands = decode_all_ways(&json(text)).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(commands.len(), 1);
    commands.remove(0)
}

#[test]
fn frames_of_apaches_classes_are_read_and_written_byte_for_byte() {
    let golden = include_str!("golden/header_frames.txt");
    let mut stream = Vec::new();
    let mut frames = Vec::new();
    for line in golden.lines() {
        let hex = line.rsplit(' ').next().unwrap();
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
        stream.extend_from_slice(&bytes);
        frames.push(bytes);
    }
    assert_eq!(frames.len(), 8);
    let commands = decode_all_ways(&stream).unwrap();
    for (command, frame) in commands.iter().zip(&frames) {
        assert_eq!(&command.encode(), frame, "{command:?}");
    }
    assert_eq!(commands[2].remark.as_deref(), Some("rémark \"q\" \\ \n\t\u{8}\u{c}\r\u{1} 😀 / <>'&"));
    assert_eq!(commands[7].language, 13);
    assert_eq!(commands[7].opaque, -5);
}

#[test]
fn json_is_read_the_way_fastjson_writes_it() {
    let command = read_one(
        r#" { code : 310, 'language':'GO',"extFields":{a:1,"b":"x\u0001\u00fc\ud83d\ude00",c:null,"d":true,'e':-5,"f":"",},
           "opaque":4294967295,"flag":"2", "unknown":{"x":[1,{"y":"}"}]}, "remark":null,version:317,
           "serializeTypeCurrentRPC":"JSON",} "#,
    );
    assert_eq!((command.code, command.language, command.version), (310, 9, 317));
    assert_eq!((command.opaque, command.flag, command.remark), (-1, 2, None));
    let fields: Vec<_> = command.fields.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(fields, [("a", "1"), ("b", "x\u{1}ü😀"), ("d", "true"), ("e", "-5"), ("f", "")]);
}

#[test]
fn languages_come_by_name_or_number() {
    for (number, name) in LANGUAGES.iter().enumerate() {
        assert_eq!(read_one(&format!(r#"{{"language":"{name}"}}"#)).language, number as u8);
        assert_eq!(read_one(&format!(r#"{{"language":{number}}}"#)).language, number as u8);
    }
    assert_eq!(read_one(r#"{"language":"KLINGON"}"#).language, 7);
    assert_eq!(read_one(r#"{"language":null}"#).language, 0);
}

#[test]
fn escapes_are_undone() {
    assert_eq!(
        read_one(r#"{"remark":"\"\\\/\b\f\n\r\t\x41\u0041\ud83d\ude00"}"#).remark.unwrap(),
        "\"\\/\u{8}\u{c}\n\r\tAA😀"
    );
    // half a pair is what Java makes of it when it writes it out
    assert_eq!(read_one(r#"{"remark":"\ud83dx\ude00"}"#).remark.unwrap(), "?x?");
}

#[test]
fn the_last_of_two_equal_keys_counts() {
    let mut header = Header::default();
    let text = br#"{"extFields":{"k":"1","k":"2"}}"#;
    header.read(Encoding::Json, text).unwrap();
    assert_eq!(header.field(text, "k"), Some("2"));
}

#[test]
fn text_that_is_not_utf8_is_repaired_not_refused() {
    let mut frame = json(r#"{"remark":"_","extFields":{"k":"_"}}"#);
    for byte in &mut frame {
        if *byte == b'_' {
            *byte = 0xff;
        }
    }
    let commands = decode_all_ways(&frame).unwrap();
    assert_eq!(commands[0].remark.as_deref(), Some("\u{fffd}"));
    assert_eq!(commands[0].fields, [("k".to_owned(), "\u{fffd}".to_owned())]);
}

fn fault(stream: &[u8]) -> Fault {
    decode_all_ways(stream).expect_err("garbage was taken").fault
}

#[test]
fn garbage_is_told_apart() {
    assert_eq!(fault(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Fault::Http);
    assert_eq!(fault(b"POST /x HTTP/1.1\r\n"), Fault::Http);
    assert_eq!(fault(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]), Fault::Tls);
    assert_eq!(fault(&[1, 0, 0, 1, 0, 0, 0, 0]), Fault::FrameTooLarge);
    assert_eq!(fault(&[0xff; 16]), Fault::FrameTooLarge);
    assert_eq!(fault(&[0, 0, 0, 3, 0, 0, 0, 0]), Fault::HeaderTooLong);
    assert_eq!(fault(&[0, 0, 0, 6, 0, 0, 0, 3, b'{', b'}']), Fault::HeaderTooLong);
    assert_eq!(fault(&[0, 0, 0, 6, 2, 0, 0, 2, b'{', b'}']), Fault::UnknownEncoding);
    for text in [
        "",
        "{",
        "[]",
        "{}x",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1 2}",
        "{\"code\":\"x\"}",
        "{\"code\":99999999999}",
        "{\"a\":\"\\",
        "{\"a\":\"\\u00",
        "{\"extFields\":7}",
    ] {
        assert_eq!(fault(&json(text)), Fault::BadHeader, "{text}");
    }
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert_eq!(fault(&json(&deep)), Fault::BadHeader);
    for binary in
        [&[0u8; 12][..], &[0; 16], &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]]
    {
        let mut frame = ((binary.len() + 4) as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&((1 << 24) + binary.len() as u32).to_be_bytes());
        frame.extend_from_slice(binary);
        assert_eq!(fault(&frame), Fault::BadHeader, "{binary:?}");
    }
}

#[test]
fn a_claimed_length_costs_what_was_sent() {
    let mut cutter = Cutter::default();
    let mut chunk = (16u32 * 1024 * 1024 - 4).to_be_bytes().to_vec();
    chunk.extend_from_slice(&[0, 0, 0, 2, b'{', b'}']);
    cutter.feed(&chunk, FRAME_BYTES_MAX, |_| Ok(Flow::Go)).unwrap();
    assert_eq!(cutter.kept(), 10);
}

#[test]
fn what_is_stopped_at_is_kept_and_goes_on_later() {
    let one = json(r#"{"code":1}"#);
    let two = json(r#"{"code":2}"#);
    let stream: Vec<u8> = [one.clone(), two.clone(), two.clone(), one[..5].to_vec()].concat();
    let mut cutter = Cutter::default();
    let mut seen = 0;
    assert_eq!(
        cutter
            .feed(&stream, FRAME_BYTES_MAX, |_| {
                seen += 1;
                Ok(Flow::Stop)
            })
            .unwrap(),
        Flow::Stop
    );
    assert_eq!((seen, cutter.kept()), (1, stream.len() - one.len()));
    assert_eq!(
        cutter
            .feed(&one[5..], FRAME_BYTES_MAX, |_| {
                seen += 1;
                Ok(Flow::Stop)
            })
            .unwrap(),
        Flow::Stop
    );
    assert_eq!(
        cutter
            .feed(b"", FRAME_BYTES_MAX, |_| {
                seen += 1;
                Ok(Flow::Go)
            })
            .unwrap(),
        Flow::Go
    );
    assert_eq!((seen, cutter.kept()), (4, 0));
}

fn command() -> impl Strategy<Value = Command> {
    let fields = proptest::collection::vec((".{1,12}", ".{1,40}"), 0..8);
    let numbers = (any::<i16>(), 0u8..14, any::<i16>(), any::<i32>(), any::<i32>());
    (any::<bool>(), numbers, proptest::option::of(".{1,30}"), fields, proptest::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(binary, (code, language, version, opaque, flag), remark, fields, body)| Command {
            encoding: if binary { Encoding::RocketMq } else { Encoding::Json },
            code: code.into(),
            language,
            version: version.into(),
            opaque,
            flag,
            remark,
            fields,
            body,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(commands in proptest::collection::vec(command(), 1..5)) {
        let stream: Vec<u8> = commands.iter().flat_map(Command::encode).collect();
        prop_assert_eq!(decode_all_ways(&stream).unwrap(), commands);
    }

    #[test]
    fn any_bytes_end_in_commands_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_all_ways(&bytes);
        let mut header = Header::default();
        for encoding in [Encoding::Json, Encoding::RocketMq] {
            let _ = header.read(encoding, &bytes);
        }
    }

    #[test]
    fn a_damaged_header_never_panics(command in command(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut stream = command.encode();
        let at = at.index(stream.len());
        stream[at] = byte;
        let _ = decode_all_ways(&stream);
        if at >= 8 {
            let mut header = Header::default();
            let source = &stream[8..];
            if header.read(command.encoding, source).is_ok() {
                header.fields(source).count();
            }
        }
    }

    #[test]
    fn json_like_text_never_panics(text in "[{}\\[\\]\"':,a-c0-9\\\\ux .\u{e9}-]{0,60}") {
        let _ = decode_all_ways(&json(&text));
    }
}
