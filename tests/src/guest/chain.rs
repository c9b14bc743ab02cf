//! How a buffer is told in descriptors: whole, with its header apart, cut into pieces, directly or by a table.

use anyhow::ensure;

use super::memory::{Memory, Piece};
use super::ring::{Format, INDIRECT, MOST_SPANS, Span};

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

/// The writer of a queue's chains. Buffers are numbered.
#[derive(Debug)]
pub(super) struct Chains {
    shape: Shape,
    header: usize,
    /// Buffers that have room in the ring.
    buffers: u16,
    /// With indirect descriptors: one table for each buffer.
    tables: Vec<Piece>,
    turn: u16,
}

impl Chains {
    /// Chains for `ring`, which has `size` descriptors, each starting with a virtio-net header of `header` bytes.
    pub fn new(
        ring: &mut impl Format,
        size: u16,
        memory: &Memory,
        shape: Shape,
        indirect: bool,
        header: usize,
    ) -> anyhow::Result<Self> {
        let most = shape.most();
        ensure!(usize::from(most) <= MOST_SPANS, "chains of {most} descriptors, more than {MOST_SPANS}");
        let indirect = indirect && shape != Shape::Whole;
        ensure!(indirect || most <= size, "chains of {most} descriptors in a ring of {size}");
        let buffers = ring.reserve(if indirect { 1 } else { most });
        let tables = if indirect { buffers } else { 0 };
        let table = |_| memory.allocate(16 * usize::from(most), 64);
        let tables = (0..tables).map(table).collect::<anyhow::Result<_>>()?;
        Ok(Self { shape, header, buffers, tables, turn: 0 })
    }

    /// Buffers that have room in the ring.
    pub fn buffers(&self) -> u16 {
        self.buffers
    }

    /// Offers a buffer of `total` bytes at `guest`. `flags` is 0 or [`super::ring::WRITE`].
    #[inline]
    pub fn offer(&mut self, ring: &mut impl Format, buffer: u16, guest: u64, total: usize, flags: u16) {
        if self.shape == Shape::Whole {
            ring.offer(buffer, &[Span { address: guest, length: total as u32 }], flags);
        } else {
            self.offer_pieces(ring, buffer, guest, total, flags);
        }
    }

    fn offer_pieces<R: Format>(&mut self, ring: &mut R, buffer: u16, guest: u64, total: usize, flags: u16) {
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
        let (mut spans, mut start) = ([Span::default(); MOST_SPANS], 0);
        for (piece, span) in spans[..pieces].iter_mut().enumerate() {
            *span = Span { address: guest + start as u64, length: (end(piece) - start) as u32 };
            start = end(piece);
        }
        match self.tables.get(usize::from(buffer)) {
            None => ring.offer(buffer, &spans[..pieces], flags),
            Some(table) => {
                R::write_table(table, &spans[..pieces], flags);
                ring.offer(buffer, &[Span { address: table.guest, length: 16 * pieces as u32 }], INDIRECT);
            }
        }
    }
}
