//! Requests, attribute by attribute.

/// struct nlmsghdr.
pub(super) const HEADER: usize = 16;
/// NLA_F_NESTED.
const NESTED: u16 = 0x8000;

/// The part of a request behind the netlink header.
#[derive(Debug, Default, Clone)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Begins with a fixed structure, whose length is a multiple of four.
    pub(super) fn new(fixed: &[u8]) -> Self {
        Self(fixed.to_vec())
    }

    /// An attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // No value of ours comes near the 65531 bytes that fit.
        let length = (value.len() + 4) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text with its final zero.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        self.put(kind, &[text.as_bytes(), &[0]].concat())
    }

    /// A number in the machine's order.
    pub(super) fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Attributes within one.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let mut inner = Self::default();
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0)
    }

    /// The whole message.
    pub(super) fn message(&self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let mut message = Vec::with_capacity(HEADER + self.0.len());
        message.extend(((HEADER + self.0.len()) as u32).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(&self.0);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ovs::kernel::attribute::attributes;

    #[test]
    fn what_is_written_reads_back() {
        let mut request = Request::new(&[]);
        request.put_u32(1, 7).put_text(2, "ab").nest(3, |inner| {
            inner.put(4, &[9]);
        });
        let message = request.message(20, 5, 1);
        assert_eq!(message.len(), HEADER + 8 + 8 + 12);
        let found: Vec<_> = attributes(&message[HEADER..]).map(|a| a.map(|a| (a.kind, a.value.to_vec()))).collect();
        let inner = [5u16.to_ne_bytes(), 4u16.to_ne_bytes(), [9, 0], [0, 0]].concat();
        assert_eq!(found, [Ok((1, 7u32.to_ne_bytes().to_vec())), Ok((2, b"ab\0".to_vec())), Ok((3, inner))]);
    }
}
