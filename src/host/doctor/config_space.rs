//! Capabilities in a function's config space (PCI Express Base Specification 7.6 and 7.8; SR-IOV 9.3.3).

/// What a function can do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Capabilities {
    /// Whether all of the space was there to look at: the kernel shows others than root 64 bytes of it, and conventional PCI has 256.
    pub complete: bool,
    pub sriov: Option<Sriov>,
    /// Alternative Routing-ID Interpretation.
    pub ari: bool,
    /// Access Control Services.
    pub acs: bool,
}

/// The SR-IOV capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sriov {
    /// VFs it can have.
    pub total: u16,
    /// VFs that it has.
    pub enabled: u16,
    /// Distance of the first VF's routing ID from its own.
    pub first_offset: u16,
    /// Distance of one VF from the next.
    pub stride: u16,
    /// Whether the kernel said that the bridge above passes ARI on.
    pub ari_hierarchy: bool,
}

/// Where extended capabilities begin.
const EXTENDED: usize = 0x100;
const SPACE: usize = 0x1000;

const ACS: u16 = 0x0d;
const ARI: u16 = 0x0e;
const SRIOV: u16 = 0x10;

impl Capabilities {
    /// Walks what there is of a config space, which may be broken or cut.
    pub(crate) fn read(space: &[u8]) -> Self {
        let mut found = Self { complete: space.len() >= EXTENDED, ..Self::default() };
        let mut at = EXTENDED;
        // Each is 4 bytes at least: a chain that is longer loops.
        for _ in 0..SPACE / 4 {
            let Some(header) = word(space, at) else { break };
            if header == 0 || header == u32::MAX {
                break;
            }
            match header as u16 {
                ACS => found.acs = true,
                ARI => found.ari = true,
                SRIOV => found.sriov = Sriov::read(space, at),
                _ => {}
            }
            at = (header >> 20) as usize;
            if at < EXTENDED {
                break;
            }
        }
        found
    }
}

impl Sriov {
    fn read(space: &[u8], at: usize) -> Option<Self> {
        let half = |offset: usize| Some(u16::from_le_bytes(space.get(at + offset..at + offset + 2)?.try_into().ok()?));
        let control = half(0x08)?;
        let enabled = if control & 1 != 0 { half(0x10)? } else { 0 };
        Some(Self {
            total: half(0x0e)?,
            enabled,
            first_offset: half(0x14)?,
            stride: half(0x16)?,
            ari_hierarchy: control & 0x10 != 0,
        })
    }
}

fn word(space: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(space.get(at..at + 4)?.try_into().ok()?))
}

/// A config space of 4096 bytes with these extended capabilities, for tests.
#[cfg(test)]
pub(super) fn made_up(ids: &[u16], sriov: Sriov) -> Vec<u8> {
    let mut space = vec![0; SPACE];
    for (place, id) in ids.iter().enumerate() {
        let at = EXTENDED + place * 0x40;
        let next = if place + 1 == ids.len() { 0 } else { at + 0x40 };
        space[at..at + 4].copy_from_slice(&(u32::from(*id) | 1 << 16 | (next as u32) << 20).to_le_bytes());
        if *id == SRIOV {
            let control = u16::from(sriov.enabled > 0) | u16::from(sriov.ari_hierarchy) << 4;
            for (offset, value) in [
                (0x08, control),
                (0x0e, sriov.total),
                (0x10, sriov.enabled),
                (0x14, sriov.first_offset),
                (0x16, sriov.stride),
            ] {
                space[at + offset..at + offset + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_found_along_the_chain() {
        let sriov = Sriov { total: 8, enabled: 2, first_offset: 128, stride: 2, ari_hierarchy: true };
        let found = Capabilities::read(&made_up(&[0x01, ARI, SRIOV, ACS], sriov));
        assert_eq!(found, Capabilities { complete: true, sriov: Some(sriov), ari: true, acs: true });
        let none = Capabilities::read(&made_up(&[0x01], sriov));
        assert_eq!(none, Capabilities { complete: true, ..Capabilities::default() });
    }

    #[test]
    fn a_space_that_is_cut_is_not_complete_and_one_that_loops_ends() {
        let whole = made_up(&[SRIOV], Sriov::default());
        assert!(!Capabilities::read(&whole[..64]).complete);
        assert_eq!(Capabilities::read(&whole[..0x105]).sriov, None);
        let mut loops = whole;
        loops[0x100..0x104].copy_from_slice(&(u32::from(ARI) | 0x100 << 20).to_le_bytes());
        assert!(Capabilities::read(&loops).ari);
        assert!(!Capabilities::read(&[0xff; SPACE]).ari);
    }
}
