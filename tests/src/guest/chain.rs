//! How a buffer is told in descriptors: whole, with its header apart, cut into pieces, directly or by a table.

use super::memory::Piece;
use super::ring::{Descriptor, INDIRECT, NEXT, SplitRing};

/// How a frame and its virtio-net header are laid out in descriptors. All of these are legal with `ANY_LAYOUT` or
/// `VERSION_1`; without them the header has a descriptor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// One descriptor, never indirect: what Linux does with a frame that is in one piece.
    #[default]
    Whole,
    /// The header in one, the frame in another.
    HeaderApart,
    /// Pieces of about the same length; the header may be cut too. `Cut(1)` is one descriptor, in a table where that is
    /// negotiated.
    Cut(u16),
    /// One piece, then two and so on up to this many, then one again.
    Mixed(u16),
}

impl Shape {
    fn most(self) -> u16 {
        match self {
            Self::Whole => 1,
            Self::HeaderApart => 2,
            Self::Cut(n) | Self::Mixed(n) => n.max(1),
        }
    }
}

/// The writer of a queue's chains. Buffers are numbered; each has its own descriptors.
#[derive(Debug)]
pub(super) struct Chains {
    shape: Shape,
    header: usize,
    /// Descriptors set apart for each buffer, as a power of two's logarithm.
    stride: u32,
    /// With indirect descriptors: one table for each buffer.
    tables: Vec<Piece>,
    turn: u16,
}

impl Chains {
    /// Chains for `ring`, each starting with a virtio-net header of `header` bytes.
    pub fn new(ring: &SplitRing, shape: Shape, indirect: bool, header: usize) -> anyhow::Result<Self> {
        let each = shape.most().next_power_of_two();
        let mut tables = Vec::new();
        let indirect = indirect && shape != Shape::Whole;
        if indirect {
            for _ in 0..ring.size() {
                tables.push(ring.memory().allocate(16 * usize::from(each), 64)?);
            }
        } else {
            anyhow::ensure!(each <= ring.size(), "chains of {each} descriptors in a ring of {}", ring.size());
        }
        let stride = if indirect { 0 } else { each.trailing_zeros() };
        Ok(Self { shape, header, stride, tables, turn: 0 })
    }

    /// Buffers that have room in a ring of this size.
    pub fn buffers(&self, ring_size: u16) -> u16 {
        ring_size >> self.stride
    }

    /// The first descriptor of a buffer's chain.
    #[inline]
    pub fn head(&self, buffer: u16) -> u16 {
        buffer << self.stride
    }

    /// The buffer whose chain starts with this descriptor, if one does.
    #[inline]
    pub fn buffer(&self, head: u32, ring_size: u16) -> Option<u16> {
        let buffer = head >> self.stride;
        (head < u32::from(ring_size) && buffer << self.stride == head).then_some(buffer as u16)
    }

    /// Writes the chain of a buffer of `total` bytes at `guest`, and gives its first descriptor. `flags` is 0 or
    /// [`super::ring::WRITE`].
    #[inline]
    pub fn describe(&mut self, ring: &mut SplitRing, buffer: u16, guest: u64, total: usize, flags: u16) -> u16 {
        let head = self.head(buffer);
        if self.shape == Shape::Whole && self.tables.is_empty() {
            ring.describe(head, Descriptor { address: guest, length: total as u32, flags, next: 0 });
        } else {
            self.describe_pieces(ring, buffer, guest, total, flags);
        }
        head
    }

    fn describe_pieces(&mut self, ring: &mut SplitRing, buffer: u16, guest: u64, total: usize, flags: u16) {
        let head = self.head(buffer);
        let wanted = match self.shape {
            Shape::Whole => 1,
            Shape::HeaderApart => 2,
            Shape::Cut(n) => usize::from(n),
            Shape::Mixed(n) => {
                self.turn = if self.turn >= n { 1 } else { self.turn + 1 };
                usize::from(self.turn)
            }
        };
        let pieces = wanted.clamp(1, total);
        let end = |piece: usize| match self.shape {
            Shape::HeaderApart if piece == 0 => self.header.min(total),
            _ => total * (piece + 1) / pieces,
        };
        let table = self.tables.get(usize::from(buffer));
        let first = if table.is_some() { 0 } else { head };
        let mut start = 0;
        for piece in 0..pieces {
            let last = piece + 1 == pieces;
            let at = first + piece as u16;
            let descriptor = Descriptor {
                address: guest + start as u64,
                length: (end(piece) - start) as u32,
                flags: if last { flags } else { flags | NEXT },
                next: if last { 0 } else { at + 1 },
            };
            start = end(piece);
            match table {
                // SAFETY: a table has room for as many descriptors as the shape has pieces at most.
                Some(table) => unsafe {
                    table.start.cast::<Descriptor>().add(usize::from(at)).write_volatile(descriptor)
                },
                None => ring.describe(at, descriptor),
            }
        }
        if let Some(table) = table {
            let length = 16 * pieces as u32;
            ring.describe(head, Descriptor { address: table.guest, length, flags: INDIRECT, next: 0 });
        }
    }
}
