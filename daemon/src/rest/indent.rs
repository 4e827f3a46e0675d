//! JSON laid out for people to read, as Go does it.

use memchr::memchr2;

/// JSON that would be longer if it were indented stays as it is: what is nested deep grows out of all proportion.
const MAX_INDENTED_BYTES: usize = 64 << 20;

/// Indents one value, whole or in parts. A text is whole in one of them.
#[derive(Clone, Default)]
pub struct Indenter {
    depth: usize,
    /// Nothing has followed yet on what was opened last.
    opened: bool,
}

impl Indenter {
    /// The next part, indented; `None` if that would be too long.
    pub fn indent(&mut self, json: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(json.len() * 2);
        let mut rest = json;
        while let Some(&byte) = rest.first() {
            let mut taken = 1;
            match byte {
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if !std::mem::take(&mut self.opened) {
                        self.new_line(&mut out);
                    }
                    out.push(byte);
                }
                b',' => {
                    out.push(byte);
                    self.new_line(&mut out);
                }
                b':' => out.extend_from_slice(b": "),
                byte if byte.is_ascii_whitespace() => {}
                byte => {
                    if std::mem::take(&mut self.opened) {
                        self.new_line(&mut out);
                    }
                    if byte == b'"' {
                        taken = text_length(rest);
                    }
                    out.extend_from_slice(&rest[..taken]);
                    self.opened = matches!(byte, b'{' | b'[');
                    self.depth += usize::from(self.opened);
                }
            }
            rest = &rest[taken..];
            if out.len() > MAX_INDENTED_BYTES {
                return None;
            }
        }
        Some(out)
    }

    fn new_line(&self, out: &mut Vec<u8>) {
        out.push(b'\n');
        out.resize(out.len() + 2 * self.depth, b' ');
    }
}

/// Of the text that JSON begins with, in bytes with its quotes; all of it if it does not end.
fn text_length(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if json[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_are_indented_as_the_whole_is() {
        let value = json!({"a": {"b": [1, "x\\{,:"], "c": {}, "d": []}, "e": null, "f": [[], {"g": [{}]}, 12]});
        let (json, pretty) = (value.to_string(), serde_json::to_string_pretty(&value).unwrap());
        let is_between_texts = |at: &usize| json[..*at].matches('"').count() % 2 == 0;
        for at in (0..=json.len()).filter(is_between_texts) {
            let mut indenter = Indenter::default();
            let parts = [&json[..at], &json[at..]].map(|part| indenter.indent(part.as_bytes()).unwrap());
            assert_eq!(String::from_utf8(parts.concat()).unwrap(), pretty, "{at}");
        }
    }

    #[test]
    fn what_would_be_too_long_stays_as_it_is() {
        let deep = [vec![b'['; 100], b"1,".repeat(1 << 20), b"1".to_vec(), vec![b']'; 100]].concat();
        assert_eq!(Indenter::default().indent(&deep), None);
    }

    #[test]
    fn a_text_without_an_end_is_indented_as_far_as_it_goes() {
        for open in [r#"""#, r#""\"#, r#""\""#, r#""a"#] {
            assert_eq!(Indenter::default().indent(open.as_bytes()).as_deref(), Some(open.as_bytes()), "{open}");
        }
    }
}
