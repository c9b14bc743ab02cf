//! Checksums that stay right when a part of what they are over changes: the Internet checksum by the difference (RFC 1624), SCTP's anew
//! (RFC 9260 appendix A).

/// By how much a sum of 16-bit words changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change(u32);

impl Change {
    /// From these bytes to those, of the same even length, at an even place.
    pub fn from(old: &[u8], new: &[u8]) -> Self {
        debug_assert!(old.len() == new.len() && old.len().is_multiple_of(2));
        let words = |bytes: &[u8]| {
            bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>()
        };
        let gone: u32 = old.as_chunks::<2>().0.iter().map(|word| u32::from(!u16::from_be_bytes(*word))).sum();
        Self(fold(words(new) + gone).into())
    }

    /// Makes a checksum right.
    pub fn apply(self, checksum: &mut [u8; 2]) {
        let sum = u32::from(!u16::from_be_bytes(*checksum)) + self.0;
        *checksum = (!fold(sum)).to_be_bytes();
    }
}

fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The checksum of an SCTP packet, as it lies there: over all of `packet` but its place, bytes 8 to 11, which count as 0.
pub fn sctp(packet: &[u8]) -> [u8; 4] {
    let zeroed = |at: usize, byte: u8| if (8..12).contains(&at) { 0 } else { byte };
    let sum = packet
        .iter()
        .enumerate()
        .fold(u32::MAX, |sum, (at, byte)| CRC32C[usize::from(sum as u8 ^ zeroed(at, *byte))] ^ sum >> 8);
    (!sum).to_le_bytes()
}

/// By Castagnoli's polynomial, the low bit first.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut sum, mut bit) = (byte as u32, 0);
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::Sum;

    #[test]
    fn a_changed_sum_is_the_sum_of_what_was_changed() {
        let mut bytes: Vec<u8> = (0..40u8).map(|byte| byte.wrapping_mul(37)).collect();
        for (place, new) in [(0, [0, 0]), (6, [0xff, 0xff]), (12, [1, 2]), (38, [0xab, 0xcd]), (12, [0, 0])] {
            let mut checksum = Sum::new().over(&bytes).checksum();
            Change::from(&bytes[place..place + 2], &new).apply(&mut checksum);
            bytes[place..place + 2].copy_from_slice(&new);
            assert_eq!(checksum, Sum::new().over(&bytes).checksum());
        }
    }

    #[test]
    fn sctp_has_castagnolis_checksum() {
        // The check value of CRC-32C is that of these nine digits; the four bytes of the checksum itself count as zero.
        let crc =
            |bytes: &[u8]| bytes.iter().fold(u32::MAX, |sum, byte| CRC32C[usize::from(sum as u8 ^ byte)] ^ sum >> 8);
        assert_eq!(!crc(b"123456789"), 0xe306_9283);
        let mut packet = *b"12345678\xff\xff\xff\xffchunk";
        let sum = sctp(&packet);
        packet[8..12].fill(0);
        assert_eq!(sum, (!crc(&packet)).to_le_bytes());
    }
}
