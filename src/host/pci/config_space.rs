//! The capabilities of a PCI function, from its configuration space (PCI Express Base Specification 7.5.1 and 7.6).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the extended capabilities begin.
const EXTENDED: usize = 0x100;
/// Without privileges the kernel shows this much and no more.
const SHORT: usize = 64;

const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 0x10;
const FIRST: usize = 0x34;
const MSIX: u8 = 0x11;
const EXPRESS: u8 = 0x10;
const ACS: u16 = 0x0d;
const ARI: u16 = 0x0e;
const SRIOV: u16 = 0x10;

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It could not be looked at.
    #[default]
    Unknown,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// What a function can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Capabilities {
    /// It can have virtual functions.
    pub sriov: Answer,
    /// Alternative routing-ID interpretation: more than 8 functions on a bus.
    pub ari: Answer,
    /// Access control services: what keeps functions apart.
    pub acs: Answer,
    /// Interrupts by message with a table.
    pub msix: Answer,
    /// How many of these interrupts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msix_vectors: Option<u16>,
}

impl Capabilities {
    /// Reads them. What was cut off is unknown, not absent.
    pub(super) fn read(config: &[u8]) -> Self {
        let mut found = Self::default();
        if config.len() <= SHORT {
            return found;
        }
        (found.msix, found.msix_vectors) = (Answer::No, None);
        let mut express = false;
        for (id, at) in ordinary(config) {
            express |= id == EXPRESS;
            if id == MSIX {
                let control = config.get(at + 2..at + 4).and_then(|bytes| bytes.first_chunk::<2>());
                found.msix = Answer::Yes;
                found.msix_vectors = control.map(|control| (u16::from_le_bytes(*control) & 0x7ff) + 1);
            }
        }
        // A function that is not of PCI Express has 256 bytes, and nothing extended.
        if config.len() > EXTENDED || !express {
            let all: Vec<u16> = extended(config).collect();
            let has = |id: u16| Answer::from(all.contains(&id));
            (found.sriov, found.ari, found.acs) = (has(SRIOV), has(ARI), has(ACS));
        }
        found
    }
}

/// The ordinary capabilities: number and place.
fn ordinary(config: &[u8]) -> impl Iterator<Item = (u8, usize)> {
    let listed = config.get(STATUS).is_some_and(|status| status & STATUS_CAPABILITIES != 0);
    let mut next = config.get(FIRST).map_or(0, |at| usize::from(at & 0xfc));
    // No more fit than this: a list that loops ends there.
    (0..48).map_while(move |_| {
        let at = next;
        let [id, link] = *config.get(at..at + 2)?.first_chunk::<2>()?;
        next = usize::from(link & 0xfc);
        (listed && at >= 0x40).then_some((id, at))
    })
}

/// The numbers of the extended capabilities.
fn extended(config: &[u8]) -> impl Iterator<Item = u16> {
    let mut next = EXTENDED;
    (0..480).map_while(move |_| {
        let header = u32::from_le_bytes(*config.get(next..next + 4)?.first_chunk::<4>()?);
        let here = next >= EXTENDED && header != 0 && header != u32::MAX;
        next = (header >> 20) as usize & 0xffc;
        here.then_some(header as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As an igb of QEMU's has it: MSI-X with 10 vectors, Express; AER, ARI, SR-IOV.
    fn config() -> Vec<u8> {
        let mut config = vec![0; 4096];
        (config[STATUS], config[FIRST]) = (STATUS_CAPABILITIES, 0x70);
        config[0x70..0x74].copy_from_slice(&[MSIX, 0xa0, 9, 0x80]);
        config[0xa0..0xa2].copy_from_slice(&[EXPRESS, 0]);
        for (at, id, next) in [(0x100, 1u32, 0x150u32), (0x150, 0x0e, 0x160), (0x160, 0x10, 0)] {
            config[at..at + 4].copy_from_slice(&(id | 1 << 16 | next << 20).to_le_bytes());
        }
        config
    }

    #[test]
    fn capabilities_are_found_and_what_was_cut_off_is_unknown() {
        let config = config();
        let all = Capabilities::read(&config);
        assert_eq!((all.sriov, all.ari, all.acs), (Answer::Yes, Answer::Yes, Answer::No));
        assert_eq!((all.msix, all.msix_vectors), (Answer::Yes, Some(10)));
        assert_eq!(Capabilities::read(&config[..64]), Capabilities::default());
        let ordinary = Capabilities::read(&config[..256]);
        assert_eq!((ordinary.sriov, ordinary.msix), (Answer::Unknown, Answer::Yes));
    }

    #[test]
    fn lists_that_loop_or_lead_outside_end() {
        let mut config = config();
        config[0x71] = 0x70;
        config[0x100..0x104].copy_from_slice(&(1u32 | 0x100 << 20).to_le_bytes());
        let found = Capabilities::read(&config);
        assert_eq!((found.sriov, found.msix), (Answer::No, Answer::Yes));
        config[0x100..0x104].copy_from_slice(&(0x10u32 | 0xffc << 20).to_le_bytes());
        assert_eq!(Capabilities::read(&config).sriov, Answer::Yes);
        for length in 0..300 {
            Capabilities::read(&config[..length]);
        }
    }
}
