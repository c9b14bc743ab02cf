//! Lines of the kernel log that have a known cause.

use super::{Found, State};
use crate::host::doctor::host::Host;

/// A line, its cause, and what to do.
struct Matcher {
    /// All of these are in the line.
    words: &'static [&'static str],
    state: State,
    cause: &'static str,
    remedy: Remedy,
}

enum Remedy {
    /// These on the kernel's command line.
    Arguments(&'static [&'static str]),
    /// These commands.
    Commands(&'static [&'static str]),
}

use Remedy::{Arguments, Commands};

/// The texts are the kernel's: drivers/pci/iov.c, drivers/net/ethernet/mellanox/mlx5/core/{cmd,lag/lag,sriov}.c, drivers/iommu/intel/iommu.c,
/// drivers/vfio/vfio_iommu_type1.c.
const MATCHERS: &[Matcher] = &[
    Matcher {
        words: &["not enough MMIO resources for SR-IOV"],
        state: State::Fail,
        cause: "the firmware gave the VFs no address space (MMIO), and sriov_numvfs answers ENOMEM",
        remedy: Arguments(&["pci=realloc"]),
    },
    Matcher {
        words: &["can't enable", "VFs (bus", "out of range"],
        state: State::Fail,
        cause: "the bridge above the card has too few bus numbers for its VFs",
        remedy: Commands(&[
            "# in the firmware's set-up, enable SR-IOV and ARI, which spares bus numbers; else add pci=assign-busses to the kernel's command line",
        ]),
    },
    Matcher {
        words: &["SR-IOV: bus number out of range"],
        state: State::Fail,
        cause: "the bridge above the card has too few bus numbers for its VFs",
        remedy: Commands(&[
            "# in the firmware's set-up, enable SR-IOV and ARI, which spares bus numbers; else add pci=assign-busses to the kernel's command line",
        ]),
    },
    Matcher {
        words: &["ENABLE_HCA(0x104)", "timeout"],
        state: State::Fail,
        cause: "the card does not answer a new VF: requests do not get through the bridges, so VFs come up without a driver",
        remedy: Commands(&[
            "# in the firmware's set-up, enable ACS, PCIe ARI support and IOMMU (VT-d, AMD-Vi), then boot anew",
        ]),
    },
    Matcher {
        words: &["Failed to activate VF LAG"],
        state: State::Fail,
        cause: "VF LAG was not activated: a VF was bound to a driver, or the two functions were in different modes",
        remedy: Commands(&["# unbind all VFs of both functions, then bring the bond down and up"]),
    },
    Matcher {
        words: &["Device is ineligible for IOMMU domain attach due to platform RMRR"],
        state: State::Fail,
        cause: "the firmware reserves memory of this device for itself (RMRR), so it cannot be given to DPDK or to a guest",
        remedy: Commands(&[
            "# in the firmware's set-up, disable the vendor's shared memory for this slot (HPE: conrep)",
        ]),
    },
    Matcher {
        words: &["No interrupt remapping"],
        state: State::Fail,
        cause: "VFIO refuses devices while interrupts are not remapped",
        remedy: Commands(&[
            "# in the firmware's set-up, enable interrupt remapping (x2APIC); nointremap must not be on the command line",
        ]),
    },
    Matcher {
        words: &["Enabling SR-IOV VFs using the", "max_vfs"],
        state: State::Warn,
        cause: "VFs are made by the driver's max_vfs parameter, which is deprecated, and not by who wants them",
        remedy: Commands(&["# take max_vfs from the command line and from /etc/modprobe.d: see module-parameters"]),
    },
];

pub(super) fn log(host: &Host) -> Vec<Found> {
    let log = match host.kernel_log() {
        Ok(log) => log,
        Err(why) => return vec![Found::unseen("the kernel log", why)],
    };
    let mut found = Vec::new();
    for matcher in MATCHERS {
        let lines: Vec<&String> =
            log.lines.iter().filter(|line| matcher.words.iter().all(|word| line.contains(word))).collect();
        let Some(first) = lines.first() else { continue };
        let one = Found::new(matcher.state, matcher.cause).evidence(lines.iter().take(5).map(|line| line.as_str()));
        let one =
            if lines.len() > 5 { one.evidence([format!("and {} more such lines", lines.len() - 5)]) } else { one };
        let one = match address(first) {
            Some(address) => {
                one.about(host.nics().iter().find(|nic| nic.address == address).map_or(address, |nic| nic.name()))
            }
            None => one,
        };
        found.push(match matcher.remedy {
            // What is on the command line already did not help: then the firmware must.
            Arguments(words) if words.iter().all(|word| has(host, word)) => one.remedy([format!(
                "# {} is on the command line already: in the firmware's set-up, enable SR-IOV, Above 4G Decoding and a larger MMIO space",
                words.join(" ")
            )]),
            Arguments(words) => one.remedy(host.kernel_arguments(words, &[])),
            Commands(lines) => one.remedy(lines.iter().copied()),
        });
    }
    match (found.is_empty(), log.wrapped) {
        (false, _) => found,
        (true, true) => vec![
            Found::unknown("the kernel log has nothing that is known, but it has lost its beginning")
                .remedy(["journalctl -k -b > /tmp/kernel.log && ringspan doctor --kernel-log /tmp/kernel.log"]),
        ],
        (true, false) => vec![Found::pass(format!("nothing that is known in {} lines", log.lines.len()))],
    }
}

/// Whether the command line has `key=value`, among other values of that key, too.
fn has(host: &Host, word: &str) -> bool {
    let Some((key, value)) = word.split_once('=') else { return false };
    let words = host.command_line().unwrap_or_default();
    words
        .iter()
        .any(|one| one.split_once('=').is_some_and(|(k, values)| k == key && values.split(',').any(|v| v == value)))
}

/// The first PCI address in a line.
fn address(line: &str) -> Option<String> {
    line.split([' ', '[', ']', '(', ')', ',']).map(|word| word.trim_end_matches(':')).find_map(|word| {
        let (domain, rest) = word.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (slot, function) = rest.split_once('.')?;
        let hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (hex(domain, 4) && hex(bus, 2) && hex(slot, 2) && hex(function, 1)).then(|| word.to_owned())
    })
}
