//! The matrix: what is measured, each cell with a name that can be asked for.

use serde::{Deserialize, Serialize};

use crate::driver::stamp::Frames;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest sends, the device swallows.
    Tx,
    /// The guest fills its ring and shows all of it at once; what counts is how long the back-end takes to empty it: the back-end
    /// alone, where a stream is limited by what it costs the guest to write frames.
    Drain,
    /// The device makes frames, the guest receives.
    Rx,
    /// Both at once.
    Both,
    /// The device gives back what it gets.
    Loop,
    /// From one guest to another through the back-end.
    Guests,
}

impl Direction {
    /// As in a cell's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Drain => "drain",
            Self::Rx => "rx",
            Self::Both => "both",
            Self::Loop => "loop",
            Self::Guests => "guests",
        }
    }

    /// For a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tx => "guest to NIC",
            Self::Drain => "full ring to NIC",
            Self::Rx => "NIC to guest",
            Self::Both => "both directions at once",
            Self::Loop => "loop through the device",
            Self::Guests => "guest to guest",
        }
    }
}

/// What is measured at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// Which way.
    pub direction: Direction,
    /// Packed rings.
    pub packed: bool,
    /// Sizes.
    pub frames: Frames,
    /// Mergeable receive buffers.
    pub mergeable: bool,
    /// Frames are sent by indirect tables.
    pub indirect: bool,
    /// Queue pairs.
    pub pairs: u16,
    /// Descriptors in each ring.
    pub ring_size: u16,
    /// The device reads every byte that it is sent.
    pub read: bool,
    /// `VIRTIO_F_IN_ORDER` is negotiated: the back-end may show a batch of sent frames by its last.
    pub in_order: bool,
    /// Checksum and segmentation offloads are negotiated, as every QEMU guest has them; the frames are plain.
    pub offload: bool,
}

/// What the back-end is set up with: cells that agree on it are measured on the same processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Setup {
    /// What is behind the port.
    pub device: Device,
    /// Queue pairs.
    pub pairs: u16,
    /// Whether offloads are offered by those that have them off by default.
    pub offload: bool,
}

/// What is behind the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Device {
    /// Swallows.
    Swallow,
    /// DPDK's own vhost with another guest behind it: it copies every byte of what it is sent.
    Read,
    /// Swallows, and makes frames of this size without end.
    Make(u16),
    /// Swallows, and makes the mix of sizes without end.
    MakeMix,
    /// Gives back what it gets.
    Loop,
    /// Another guest.
    Guest,
    /// The TAP `tap0` in the back-end's network namespace.
    Tap,
}

impl Cell {
    const fn new(direction: Direction, packed: bool, frames: Frames) -> Self {
        Self {
            direction,
            packed,
            frames,
            mergeable: true,
            indirect: false,
            pairs: 1,
            ring_size: 1024,
            read: false,
            in_order: false,
            offload: false,
        }
    }

    /// Its name: `tx/split/64`, and what is special about it behind that.
    pub fn name(&self) -> String {
        let mut name = format!("{}/{}/{}", self.direction.name(), self.format(), self.frames);
        let pairs = format!("{}q", self.pairs);
        let ring = format!("ring{}", self.ring_size);
        for (special, word) in [
            (!self.mergeable, "nomrg"),
            (self.indirect, "indirect"),
            (self.pairs != 1, &pairs),
            (self.ring_size != 1024, &ring),
            (self.read, "read"),
            (self.in_order, "inorder"),
            (self.offload, "offload"),
        ] {
            if special {
                name = format!("{name}/{word}");
            }
        }
        name
    }

    /// `split` or `packed`.
    pub fn format(&self) -> &'static str {
        if self.packed { "packed" } else { "split" }
    }

    /// Whether every frame that is sent should arrive at a guest, so that loss can be told.
    pub fn arrives(&self) -> bool {
        self.read || matches!(self.direction, Direction::Loop | Direction::Guests)
    }

    /// What the back-end has to be set up with.
    pub fn setup(&self) -> Setup {
        let most = self.frames.most();
        let device = match self.direction {
            Direction::Tx if self.read => Device::Read,
            Direction::Tx | Direction::Drain => Device::Swallow,
            Direction::Rx | Direction::Both if self.frames == Frames::Imix => Device::MakeMix,
            Direction::Rx | Direction::Both => Device::Make(most),
            Direction::Loop => Device::Loop,
            Direction::Guests => Device::Guest,
        };
        Setup { device, pairs: self.pairs, offload: self.offload }
    }

    /// Whether it has nothing special, so that it belongs on the plots over size.
    pub fn is_plain(&self) -> bool {
        *self == Self::new(self.direction, self.packed, self.frames)
    }

    /// Every cell, those with a common setup behind each other.
    pub fn all() -> Vec<Self> {
        const FORMATS: [bool; 2] = [false, true];
        let sizes = [64, 256, 1518, 9000].map(Frames::Fixed);
        let mut cells = vec![];
        let mut add = |cell: Self| {
            for packed in FORMATS {
                cells.push(Self { packed, ..cell });
            }
        };
        let plain = |direction, frames| Self::new(direction, false, frames);
        let small = Frames::Fixed(64);
        use Direction::{Both, Drain, Guests, Loop, Rx, Tx};
        let (large, jumbo) = (Frames::Fixed(1518), Frames::Fixed(9000));
        for direction in [Tx, Rx, Both, Loop, Guests] {
            sizes.into_iter().chain([Frames::Imix]).for_each(|frames| add(plain(direction, frames)));
        }
        for frames in [small, Frames::Fixed(256), large] {
            add(plain(Drain, frames));
        }
        for (direction, frames) in
            [(Tx, small), (Tx, large), (Tx, jumbo), (Tx, Frames::Imix), (Loop, small), (Guests, small)]
        {
            add(Self { indirect: true, ..plain(direction, frames) });
        }
        for (direction, frames) in [
            (Tx, small),
            (Rx, small),
            (Rx, large),
            (Rx, jumbo),
            (Rx, Frames::Imix),
            (Both, small),
            (Loop, large),
            (Guests, large),
        ] {
            add(Self { mergeable: false, ..plain(direction, frames) });
        }
        for (direction, frames) in [
            (Tx, small),
            (Rx, small),
            (Both, small),
            (Loop, small),
            (Guests, small),
            (Tx, large),
            (Rx, large),
            (Tx, Frames::Imix),
        ] {
            add(Self { ring_size: 256, ..plain(direction, frames) });
        }
        // Not the loop: OVS sends everything of a polling thread on one queue, and one ring of net_ring has no room for four.
        for (direction, frames) in [(Tx, small), (Rx, small), (Both, small), (Guests, small), (Tx, large), (Rx, large)]
        {
            add(Self { pairs: 4, ..plain(direction, frames) });
        }
        for frames in [large, jumbo, Frames::Imix] {
            add(Self { read: true, ..plain(Tx, frames) });
        }
        for direction in [Tx, Rx] {
            add(Self { in_order: true, ..plain(direction, small) });
            add(Self { offload: true, ..plain(direction, small) });
        }
        // Stable: within a setup the order stays.
        let setups: Vec<Setup> = cells.iter().fold(vec![], |mut setups, cell| {
            if !setups.contains(&cell.setup()) {
                setups.push(cell.setup());
            }
            setups
        });
        cells.sort_by_key(|cell| setups.iter().position(|setup| *setup == cell.setup()));
        cells
    }

    /// The few cells of the quick benchmark.
    pub const QUICK: &[&str] = &["tx/*/64", "drain/*/64", "tx/*/imix", "tx/split/1518", "rx/*/64", "both/*/64"];

    /// All cells whose names one of these patterns matches; see [`Self::matches`]. An error names a pattern that
    /// matches none.
    pub fn select<S: AsRef<str>>(patterns: &[S]) -> anyhow::Result<Vec<Self>> {
        let all = Self::all();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let found = all.iter().any(|cell| Self::matches(pattern, &cell.name()));
            anyhow::ensure!(found, "no cell is called {pattern}: see `cells` for their names");
        }
        Ok(all
            .into_iter()
            .filter(|cell| patterns.iter().any(|pattern| Self::matches(pattern.as_ref(), &cell.name())))
            .collect())
    }

    /// Whether a name has the pattern's form, part by part: `*` stands for any part, `**` for all that are left.
    pub fn matches(pattern: &str, name: &str) -> bool {
        let (mut patterns, mut parts) = (pattern.split('/'), name.split('/'));
        loop {
            match (patterns.next(), parts.next()) {
                (None, None) | (Some("**"), _) => return true,
                (Some("*"), Some(_)) => {}
                (Some(pattern), Some(part)) if pattern == part => {}
                _ => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_names_of_their_own_and_setups_follow_each_other() {
        let cells = Cell::all();
        let mut names: Vec<String> = cells.iter().map(Cell::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), cells.len());
        let mut setups: Vec<Setup> = vec![];
        for cell in &cells {
            if setups.last() != Some(&cell.setup()) {
                assert!(!setups.contains(&cell.setup()), "{cell:?}");
                setups.push(cell.setup());
            }
        }
    }

    #[test]
    fn patterns_select_by_the_parts_of_names() {
        let names = |pattern: &str| Cell::select(&[pattern]).unwrap().iter().map(Cell::name).collect::<Vec<_>>();
        assert_eq!(names("tx/*/64"), ["tx/split/64", "tx/packed/64"]);
        assert_eq!(names("rx/split/64/nomrg"), ["rx/split/64/nomrg"]);
        assert!(names("tx/split/**").len() > 8);
        assert!(Cell::select(&["tx/foo"]).is_err());
        assert!(!Cell::select(Cell::QUICK).unwrap().is_empty());
    }
}
