//! What NVIDIA's tools print (MFT documentation, mlxconfig and mst; mstflint, mlxconfig/mlxcfg_ui.cpp). mstconfig and mlxconfig have the same
//! grammar. Texts were written from these, and not seen on hardware.

/// A line of `query`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub name: String,
    /// Absent: the tool printed only what comes next.
    pub default: Option<String>,
    pub current: Option<String>,
    pub next: String,
}

/// Reads the table: `Default`, `Current` and `Next Boot` with `-e`, else `Next Boot` alone; a star marks what differs.
pub(crate) fn settings(text: &str) -> Vec<Line> {
    let mut columns = 0;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("Configurations:") {
            columns = ["Default", "Current", "Next Boot"].iter().filter(|name| line.contains(*name)).count();
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "*" && *word != "RO").collect();
        let [name, values @ ..] = &words[..] else { continue };
        if columns == 0 || values.len() != columns {
            continue;
        }
        let value = |number: usize| (columns == 3).then(|| values[number].to_owned());
        lines.push(Line {
            name: (*name).to_owned(),
            default: value(0),
            current: value(1),
            next: values[columns - 1].to_owned(),
        });
    }
    lines
}

/// What stands in brackets: `True(1)` is 1, and a plain number is itself.
pub(crate) fn number(value: &str) -> Option<u64> {
    value.split_once('(').map_or(value, |(_, rest)| rest.trim_end_matches(')')).parse().ok()
}

/// A line of `mst status -v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MstDevice {
    /// `/dev/mst/mt4119_pciconf0`.
    pub path: String,
    /// `0a:00.0`, or with a domain.
    pub pci: String,
    /// The interface, where it has one.
    pub interface: Option<String>,
}

/// Reads the devices of `mst status -v`: type, device, PCI address, RDMA device, `net-` and interface, NUMA node.
pub(crate) fn devices(text: &str) -> Vec<MstDevice> {
    let lines = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let path = words.iter().find(|word| word.starts_with("/dev/mst/"))?;
        let is_pci =
            |word: &&&str| word.contains(':') && word.contains('.') && !word.contains('/') && !word.contains('(');
        let pci = words.iter().find(is_pci)?;
        let interface = words.iter().find_map(|word| word.strip_prefix("net-"));
        Some(MstDevice { path: (*path).to_owned(), pci: (*pci).to_owned(), interface: interface.map(str::to_owned) })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the MFT documentation shows it (mst, "mst status -v").
    const MST: &str = "MST modules:\n------------\n    MST PCI module is not loaded\n    MST PCI configuration module loaded\nPCI devices:\n------------\nDEVICE_TYPE             MST                           PCI       RDMA            NET                                     NUMA  \nConnectX5(rev:0)        /dev/mst/mt4119_pciconf0.1    0a:00.1   mlx5_1          net-eth3                                0     \n\nConnectX5(rev:0)        /dev/mst/mt4119_pciconf0      0a:00.0   mlx5_0                                                  0     \n\n";

    #[test]
    fn devices_are_read_with_and_without_an_interface() {
        let read = devices(MST);
        let words: Vec<_> =
            read.iter().map(|one| (one.path.as_str(), one.pci.as_str(), one.interface.as_deref())).collect();
        let wanted =
            [("/dev/mst/mt4119_pciconf0.1", "0a:00.1", Some("eth3")), ("/dev/mst/mt4119_pciconf0", "0a:00.0", None)];
        assert_eq!(words, wanted);
    }

    #[test]
    fn one_column_or_three_and_read_only_lines() {
        let three = "Configurations:          Default    Current    Next Boot\n*   NUM_OF_VFS    0    4    8\n RO  SRIOV_EN    False(0)    True(1)    True(1)\nThe '*' shows parameters with next value different from default/current value.\n";
        let read = settings(three);
        assert_eq!((read.len(), read[0].current.as_deref(), read[0].next.as_str()), (2, Some("4"), "8"));
        assert_eq!((number(&read[1].next), number(&read[0].next), number("ETH(2)")), (Some(1), Some(8), Some(2)));
        let one = settings("Configurations:          Next Boot\n    NUM_OF_VFS    8\n");
        assert_eq!((one[0].current.clone(), one[0].next.as_str()), (None, "8"));
    }
}
