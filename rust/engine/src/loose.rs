//! Compact JSON as Java spells it: the way back from `json`.

/// Respells `json`, which is whole and without blanks between its parts. `bare_keys`: keys that are whole numbers lose
/// their quotes, as Java writes a `Map<Integer, …>`. `pretty`: the form of Java's configuration files, a line an entry, a
/// tab a level, no blank after the colon.
pub fn loose(json: &[u8], pretty: bool, bare_keys: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() + json.len() / 2);
    let mut depth = 0;
    let mut at = 0;
    let new_line = |out: &mut Vec<u8>, depth: usize| {
        if pretty {
            out.push(b'\n');
            out.resize(out.len() + depth, b'\t');
        }
    };
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = text_end(json, at);
                let text = &json[at..end];
                let is_key = json.get(end) == Some(&b':');
                let number =
                    text[1..].strip_suffix(b"\"").filter(|inner| bare_keys && is_key && is_whole_number(inner));
                out.extend_from_slice(number.unwrap_or(text));
                at = end;
                continue;
            }
            b'{' | b'[' if matches!(json.get(at + 1), Some(b'}' | b']')) => {
                out.extend_from_slice(&json[at..at + 2]);
                at += 2;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                out.push(byte);
                new_line(&mut out, depth);
            }
            b'}' | b']' => {
                depth = usize::saturating_sub(depth, 1);
                new_line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(&mut out, depth);
            }
            other => out.push(other),
        }
        at += 1;
    }
    out
}

/// Where the text ends that begins with the quote at `start`, behind its last quote.
fn text_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    json.len()
}

fn is_whole_number(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretty(json: &str, bare_keys: bool) -> String {
        String::from_utf8(loose(json.as_bytes(), true, bare_keys)).expect("text stays text")
    }

    #[test]
    fn a_line_an_entry_and_a_tab_a_level() {
        let json = r#"{"a":{"0":1,"-1":"2:{"},"b":[],"c":{},"d":[1,{"e\"\\":null}]}"#;
        let bare = "{\n\t\"a\":{\n\t\t0:1,\n\t\t-1:\"2:{\"\n\t},\n\t\"b\":[],\n\t\"c\":{},\n\t\"d\":[\n\t\t1,\n\t\t{\n\t\t\t\"e\\\"\\\\\":null\n\t\t}\n\t]\n}";
        assert_eq!(pretty(json, true), bare);
        assert_eq!(pretty(json, false), bare.replace("0:1", "\"0\":1").replace("-1:", "\"-1\":"));
        assert_eq!(pretty(r#"{"12":"34","":{"1x":5}}"#, true), "{\n\t12:\"34\",\n\t\"\":{\n\t\t\"1x\":5\n\t}\n}");
    }

    #[test]
    fn keys_lose_their_quotes_without_lines_too() {
        let json = br#"{"a":{"0":"1","b":2}}"#;
        assert_eq!(loose(json, false, true), br#"{"a":{0:"1","b":2}}"#);
        assert_eq!(loose(json, false, false), json);
    }

    #[test]
    fn what_is_no_json_does_no_harm() {
        for text in ["", "\"", "\"\\", "{", "}}", "{]", ",:", "[\"a"] {
            loose(text.as_bytes(), true, true);
        }
    }
}
