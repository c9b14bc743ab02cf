//! What the frames are: their sizes, their bytes, and the number that each carries.

use serde::{Deserialize, Serialize};

use super::{HEADER, LINE};

/// Where the number stands in a buffer: the last 8 bytes of its first cache line, behind all headers of a UDP frame.
pub const STAMP: usize = 56;

/// Sizes of frames, without the check sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Frames {
    /// All alike.
    Fixed(u16),
    /// The usual mix: 64, 570 and 1518 bytes as 7 : 4 : 1.
    Imix,
}

impl Frames {
    /// One round of the mix, so that sizes change from frame to frame.
    const IMIX: [u16; 12] = [64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 64, 570];

    /// The size of the frame in a slot. By slot, so that descriptors need not be written anew.
    pub fn length(self, slot: u16) -> u16 {
        match self {
            Self::Fixed(length) => length,
            Self::Imix => Self::IMIX[usize::from(slot) % 12],
        }
    }

    /// The largest.
    pub fn most(self) -> u16 {
        match self {
            Self::Fixed(length) => length,
            Self::Imix => 1518,
        }
    }

    /// Bytes of a frame on average, in a ring of this size.
    pub fn average(self, ring_size: u16) -> f64 {
        let sum: u64 = (0..ring_size).map(|slot| u64::from(self.length(slot))).sum();
        sum as f64 / f64::from(ring_size)
    }

    /// The same of the mix itself.
    pub fn usual(self) -> usize {
        match self {
            Self::Fixed(length) => length.into(),
            Self::Imix => Self::IMIX.iter().map(|length| usize::from(*length)).sum::<usize>() / Self::IMIX.len(),
        }
    }

    /// The different sizes.
    pub fn sizes(self) -> Vec<u16> {
        match self {
            Self::Fixed(length) => vec![length],
            Self::Imix => vec![64, 570, 1518],
        }
    }
}

impl std::fmt::Display for Frames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(length) => write!(f, "{length}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl std::str::FromStr for Frames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "imix" => Ok(Self::Imix),
            text => match text.parse() {
                Ok(length @ 64..=9216) => Ok(Self::Fixed(length)),
                _ => Err(format!("{text}: not imix, and no size from 64 to 9216")),
            },
        }
    }
}

/// What a buffer with a frame of `length` bytes looks like: the virtio-net header, and IPv4 with UDP. Rounded up to whole lines.
pub fn image(length: u16, queue: u16) -> Box<[u8]> {
    let total = HEADER + usize::from(length);
    let mut bytes = vec![0xa5; total.next_multiple_of(LINE)];
    bytes[..HEADER].fill(0);
    let frame = &mut bytes[HEADER..total];
    frame[..14].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x52, 0x54, 0, 0x65, 0x43, 0x21, 8, 0]);
    let ip_length = length - 14;
    let [high, low] = ip_length.to_be_bytes();
    frame[14..34].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    // The discard port; each queue is a flow of its own. UDP without a checksum.
    frame[34..36].copy_from_slice(&(49152 + queue).to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&(ip_length - 20).to_be_bytes());
    frame[40..42].fill(0);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_seven_to_four_to_one() {
        let count = |size| (0..12).filter(|&slot| Frames::Imix.length(slot) == size).count();
        assert_eq!([count(64), count(570), count(1518)], [7, 4, 1]);
    }

    #[test]
    fn a_frame_is_udp_with_a_good_header_checksum() {
        let bytes = image(64, 3);
        let ip = &bytes[HEADER + 14..HEADER + 34];
        let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(u16::from_be_bytes([ip[2], ip[3]]), 50);
        const { assert!(HEADER + 14 + 20 + 8 <= STAMP) };
    }
}
