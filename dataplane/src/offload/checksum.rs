//! The Internet checksum (RFC 1071).

/// A sum of 16-bit words in ones' complement, over pieces of any length.
///
/// Words are added as the machine reads them, which gives the sum with its bytes as they lie in memory (RFC 1071, section 2 B):
/// nothing is swapped but a piece that begins at an odd place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum {
    words: u64,
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const fn new() -> Self {
        Self { words: 0, odd: false }
    }

    /// With these bytes behind those so far.
    #[inline]
    pub fn over(mut self, bytes: &[u8]) -> Self {
        let words = words(bytes);
        // What was folded to 16 bits can be added 2^47 times.
        self.words += u64::from(if self.odd { fold(words).swap_bytes() } else { fold(words) });
        self.odd ^= bytes.len() % 2 == 1;
        self
    }

    /// With a number of 16 bits more, as if it was in the packet.
    #[inline]
    pub fn add_number(mut self, number: u16) -> Self {
        self.words += u64::from(number.to_be());
        self
    }

    /// The sum as it lies in a packet.
    #[inline]
    pub fn bytes(self) -> [u8; 2] {
        fold(self.words).to_ne_bytes()
    }

    /// The checksum as it lies in a packet.
    #[inline]
    pub fn checksum(self) -> [u8; 2] {
        (!fold(self.words)).to_ne_bytes()
    }
}

/// Adds up the words of some bytes, the last one filled up with a zero. Bytes may be 4 GiB at most.
#[inline]
fn words(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<32>();
    // Eight sums of 32-bit halves that do not depend on each other: the compiler makes vectors of them.
    let mut sums = [0u64; 8];
    for block in blocks {
        for (sum, part) in sums.iter_mut().zip(block.as_chunks::<4>().0) {
            *sum += u64::from(u32::from_ne_bytes(*part));
        }
    }
    let (pairs, last) = rest.as_chunks::<2>();
    let mut sum: u64 = sums.iter().sum();
    for pair in pairs {
        sum += u64::from(u16::from_ne_bytes(*pair));
    }
    if let [byte] = last {
        sum += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    sum
}

#[inline]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
