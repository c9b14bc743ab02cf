//! An answer that is one long text, line by line while it comes: a dump of 100,000 flows is 50 MB that need not be held, or be looked at twice.
//!
//! OVS prints JSON without white space, and the members of an object in any order. `"result":"` cannot stand inside a string, where each quote
//! has a backslash before it.

/// What stands before the text.
const BEGIN: &[u8] = br#""result":""#;
/// What may stand around it: an id, and that there is no error.
const MOST_AROUND: usize = 64 << 10;

/// Who takes the lines.
pub(crate) trait Lines {
    /// The next line, without its end. It should be UTF-8, and is what came.
    fn line(&mut self, line: &[u8]);

    /// There may be a while until more come.
    fn pause(&mut self);
}

/// How far the answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum At {
    /// More is to come.
    Inside,
    /// The text has ended. What stands around it, with an empty text, and how many of the given bytes belong to it.
    End(Vec<u8>, usize),
    /// It is no answer with a text: this came so far.
    Other(Vec<u8>),
}

/// An answer that comes.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// What stands around the text.
    around: Vec<u8>,
    state: State,
    /// The begin of a line whose rest is to come, unescaped.
    carried: Vec<u8>,
    /// Of an escape that is cut: what came, from its backslash.
    escape: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Text,
    Behind,
}

impl Stream {
    /// Takes what came.
    pub(super) fn push(&mut self, bytes: &[u8], lines: &mut impl Lines) -> At {
        let mut at = 0;
        if self.state == State::Before {
            let before = self.around.len();
            self.around.extend_from_slice(bytes);
            let Some(found) = memchr::memmem::find(&self.around, BEGIN) else {
                // Without a result it is an error, and ends with a brace.
                let is_other = self.around.len() > MOST_AROUND || self.around.trim_ascii_end().ends_with(b"}");
                return if is_other { At::Other(std::mem::take(&mut self.around)) } else { At::Inside };
            };
            let end = found + BEGIN.len();
            self.around.truncate(end);
            at = end - before;
            self.state = State::Text;
        }
        if self.state == State::Text {
            match self.text(&bytes[at..], lines) {
                None => return At::Inside,
                Some(used) => at += used,
            }
            self.state = State::Behind;
            // The quote that ends it.
            self.around.push(b'"');
        }
        // Behind the text there are numbers and null, and the brace that ends it all.
        let rest = &bytes[at..];
        match memchr::memchr(b'}', rest) {
            Some(end) => {
                self.around.extend_from_slice(&rest[..=end]);
                At::End(std::mem::take(&mut self.around), at + end + 1)
            }
            None if self.around.len() + rest.len() > MOST_AROUND => At::Other(std::mem::take(&mut self.around)),
            None => {
                self.around.extend_from_slice(rest);
                At::Inside
            }
        }
    }

    /// Bytes of the text; how many there were if it ends in them, with the quote.
    fn text(&mut self, bytes: &[u8], lines: &mut impl Lines) -> Option<usize> {
        let mut begin = 0;
        let mut at = 0;
        // An escape that was cut is short: it is put together byte by byte.
        while !self.escape.is_empty() {
            self.escape.push(*bytes.get(at)?);
            at += 1;
            begin = at;
            if is_whole(&self.escape) {
                let escape = std::mem::take(&mut self.escape);
                self.escaped(&escape, &[], lines);
            }
        }
        loop {
            let Some(found) = memchr::memchr2(b'"', b'\\', &bytes[at..]) else {
                self.carried.extend_from_slice(&bytes[begin..]);
                return None;
            };
            at += found;
            if bytes[at] == b'"' {
                self.carried.extend_from_slice(&bytes[begin..at]);
                if !self.carried.is_empty() {
                    self.end_of_line(&[], lines);
                }
                return Some(at + 1);
            }
            let length = if bytes.get(at + 1) == Some(&b'u') { 6 } else { 2 };
            let Some(escape) = bytes.get(at..at + length) else {
                self.carried.extend_from_slice(&bytes[begin..at]);
                self.escape.extend_from_slice(&bytes[at..]);
                return None;
            };
            let before = &bytes[begin..at];
            self.escaped(escape, before, lines);
            at += length;
            begin = at;
        }
    }

    /// An escape, and what stands before it.
    fn escaped(&mut self, escape: &[u8], before: &[u8], lines: &mut impl Lines) {
        if escape == br"\n" {
            return self.end_of_line(before, lines);
        }
        self.carried.extend_from_slice(before);
        let quoted = [b"\"", escape, b"\""].concat();
        // Half of a pair that stands for one character is none of a flow's.
        let text: String = serde_json::from_slice(&quoted).unwrap_or_else(|_| char::REPLACEMENT_CHARACTER.into());
        self.carried.extend_from_slice(text.as_bytes());
    }

    fn end_of_line(&mut self, rest: &[u8], lines: &mut impl Lines) {
        if self.carried.is_empty() {
            return lines.line(rest);
        }
        self.carried.extend_from_slice(rest);
        lines.line(&self.carried);
        self.carried.clear();
    }

    /// How much of a line is held.
    pub(super) fn held(&self) -> usize {
        self.carried.len()
    }
}

fn is_whole(escape: &[u8]) -> bool {
    escape.len() == if escape.get(1) == Some(&b'u') { 6 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Taken(Vec<String>);

    impl Lines for Taken {
        fn line(&mut self, line: &[u8]) {
            self.0.push(str::from_utf8(line).unwrap().into());
        }
        fn pause(&mut self) {}
    }

    /// In pieces of these sizes: the lines, and what stands around them.
    fn read(answer: &[u8], cut: usize) -> (Vec<String>, At) {
        let (mut stream, mut taken) = (Stream::default(), Taken(Vec::new()));
        let (first, rest) = answer.split_at(cut);
        match stream.push(first, &mut taken) {
            At::Inside => {}
            end => return (taken.0, end),
        }
        let end = stream.push(rest, &mut taken);
        (taken.0, end)
    }

    #[test]
    fn lines_are_the_same_wherever_the_answer_is_cut_and_whatever_its_order() {
        let text = "one\ntwo \"quoted\" \\ \u{e9}\u{1}\t\n\nlast without an end";
        let lines: Vec<&str> = text.split('\n').collect();
        for (before, behind) in [(r#"{"error":null,"id":7,"#, "}"), ("{", r#","id":7,"error":null}"#)] {
            let answer = format!(
                "{before}\"result\":{}{behind}",
                serde_json::Value::from(text).to_string().replace('\u{e9}', "\\u00e9")
            );
            for cut in 0..=answer.len() {
                let (found, end) = read(answer.as_bytes(), cut);
                assert_eq!(found, lines, "cut at {cut}");
                let At::End(around, _) = end else { panic!("cut at {cut}: {end:?}") };
                let around: serde_json::Value = serde_json::from_slice(&around).unwrap();
                assert_eq!((&around["id"], &around["result"]), (&7.into(), &"".into()));
            }
        }
    }

    #[test]
    fn an_answer_without_a_text_is_given_back_as_it_came() {
        let answer = br#"{"error":"no such \"result\":\" datapath","id":1,"result":null}"#;
        assert_eq!(read(answer, 0), (vec![], At::Other(answer.to_vec())));
        let endless = vec![b'x'; MOST_AROUND + 1];
        assert!(matches!(read(&endless, 0), (_, At::Other(_))));
    }

    #[test]
    fn what_comes_behind_the_answer_is_not_of_it() {
        let (mut stream, mut taken) = (Stream::default(), Taken(Vec::new()));
        let end = stream.push(br#"{"id":1,"result":"a\n"}{"id":2"#, &mut taken);
        assert_eq!((taken.0, end), (vec!["a".to_owned()], At::End(br#"{"id":1,"result":""}"#.to_vec(), 23)));
    }
}
