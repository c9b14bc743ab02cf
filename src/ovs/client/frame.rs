//! OVS sends JSON objects one after the other, with nothing between them that could be relied on. This finds where each ends.
//!
//! Every byte is looked at once, also when an answer of 40 MB comes in pieces; what is inside is parsed when it is whole.

/// Deepest nesting that is taken; OVS needs less than ten, and serde_json itself takes 128.
const DEPTH: u32 = 64;

/// Why the bytes are no sequence of objects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoFrame {
    /// Between objects there may be white space only.
    #[error("byte {0:#04x} where an object should begin")]
    Start(u8),
    /// Brackets within brackets.
    #[error("nested more than {DEPTH} deep")]
    Depth,
}

/// Bytes that came and are not taken yet.
#[derive(Debug, Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    /// Where the object begins that is not whole yet.
    begin: usize,
    /// How far was looked.
    seen: usize,
    depth: u32,
    in_string: bool,
    /// Whether the next byte is one behind a backslash.
    escaped: bool,
}

impl Frames {
    /// Adds what came.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        // What was taken is let go, unless it is little: moving the rest costs less than keeping it.
        if self.begin > 0 {
            self.buffer.drain(..self.begin);
            self.seen -= self.begin;
            self.begin = 0;
            self.buffer.shrink_to(1 << 20);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes of an unfinished object there are.
    pub(super) fn pending(&self) -> usize {
        self.buffer.len() - self.begin
    }

    /// The next whole object; nothing while there is none.
    pub(super) fn next(&mut self) -> Result<Option<&[u8]>, NoFrame> {
        while self.seen < self.buffer.len() {
            if self.in_string {
                self.skip_string();
                continue;
            }
            let byte = self.buffer[self.seen];
            match (byte, self.depth) {
                (b' ' | b'\t' | b'\r' | b'\n', 0) => self.begin = self.seen + 1,
                (b'{', 0) => {
                    self.begin = self.seen;
                    self.depth = 1;
                }
                (other, 0) => return Err(NoFrame::Start(other)),
                (b'{' | b'[', DEPTH) => return Err(NoFrame::Depth),
                (b'{' | b'[', _) => self.depth += 1,
                (b'}' | b']', _) => self.depth -= 1,
                (b'"', _) => self.in_string = true,
                _ => {}
            }
            self.seen += 1;
            if self.depth == 0 && matches!(byte, b'}' | b']') {
                let begin = std::mem::replace(&mut self.begin, self.seen);
                return Ok(Some(&self.buffer[begin..self.seen]));
            }
        }
        Ok(None)
    }

    /// From inside a string to behind its end, or to the end of what is there.
    fn skip_string(&mut self) {
        if std::mem::take(&mut self.escaped) {
            self.seen += 1;
            return;
        }
        let rest = &self.buffer[self.seen..];
        match memchr::memchr2(b'"', b'\\', rest) {
            None => self.seen = self.buffer.len(),
            Some(at) => {
                self.in_string = rest[at] == b'\\';
                self.escaped = self.in_string;
                self.seen += at + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(frames: &mut Frames) -> Vec<String> {
        std::iter::from_fn(|| frames.next().unwrap().map(|frame| String::from_utf8(frame.to_vec()).unwrap())).collect()
    }

    #[test]
    fn objects_are_found_wherever_the_stream_is_cut() {
        let objects = [r#"{"a":"}{\\\"]","b":[{},{"c":"\n"}]}"#, "{}", r#"{"z":"\\"}"#];
        let stream = format!("{}{} \n{}", objects[0], objects[1], objects[2]);
        for cut in 0..=stream.len() {
            let mut frames = Frames::default();
            frames.push(&stream.as_bytes()[..cut]);
            let mut found = all(&mut frames);
            frames.push(&stream.as_bytes()[cut..]);
            found.extend(all(&mut frames));
            assert_eq!(found, objects, "cut at {cut}");
            assert_eq!(frames.pending(), 0);
        }
        let mut frames = Frames::default();
        let found: Vec<String> = stream
            .bytes()
            .flat_map(|byte| {
                frames.push(&[byte]);
                all(&mut frames)
            })
            .collect();
        assert_eq!(found, objects);
    }

    #[test]
    fn what_is_no_object_is_refused_at_its_first_byte() {
        let refusal = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.push(bytes);
            frames.next().unwrap_err()
        };
        assert_eq!(refusal(b"HTTP/1.1"), NoFrame::Start(b'H'));
        assert_eq!(refusal(b" [1]"), NoFrame::Start(b'['));
        assert_eq!(refusal("{\"a\":".repeat(100).as_bytes()), NoFrame::Depth);
    }
}
