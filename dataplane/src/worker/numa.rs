//! Which NUMA node a core is on, and which worker is best for a guest whose memory is on one.

use std::collections::BTreeMap;
use std::path::Path;

/// Where the kernel describes the machine's nodes.
const SYSFS: &str = "/sys/devices/system/node";

/// The nodes of a machine's cores.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nodes(BTreeMap<u16, u16>);

impl Nodes {
    /// Those of the machine that this runs on.
    pub fn of_this_machine() -> Self {
        Self::read(Path::new(SYSFS))
    }

    /// What the kernel says under this folder. A machine with one node, or with none to be seen, has none here: then
    /// every worker is as good as another.
    pub fn read(sysfs: &Path) -> Self {
        let mut cores = BTreeMap::new();
        let mut nodes = 0;
        for entry in std::fs::read_dir(sysfs).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let node = name.to_str().and_then(|name| name.strip_prefix("node")).and_then(|number| number.parse().ok());
            let (Some(node), Ok(list)) = (node, std::fs::read_to_string(entry.path().join("cpulist"))) else {
                continue;
            };
            let before = cores.len();
            cores.extend(in_list(list.trim()).map(|core| (core, node)));
            // One with memory alone does not make a choice.
            nodes += usize::from(cores.len() > before);
        }
        if nodes > 1 { Self(cores) } else { Self::default() }
    }

    /// The node of a core, where there are several.
    pub fn of(&self, core: u16) -> Option<u16> {
        self.0.get(&core).copied()
    }
}

/// The numbers of the kernel's list form, `0-3,8`.
fn in_list(text: &str) -> impl Iterator<Item = u16> {
    text.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u16>().ok()?..=last.parse().ok()?)
        })
        .flatten()
}

/// What is known of a worker that could have a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The node of its core, where there are several.
    pub node: Option<u16>,
    /// How many shares it has.
    pub shares: usize,
}

/// The worker with the fewest shares of those on the wanted node; of all, where there is none on it or none is wanted.
pub fn place(workers: &[Candidate], wanted: Option<u16>) -> usize {
    let away = |worker: &Candidate| wanted.is_some() && worker.node != wanted;
    let best = workers.iter().enumerate().min_by_key(|(_, worker)| (away(worker), worker.shares));
    best.map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(nodes: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (node, list) in nodes {
            std::fs::create_dir(folder.path().join(node)).unwrap();
            std::fs::write(folder.path().join(node).join("cpulist"), format!("{list}\n")).unwrap();
        }
        std::fs::write(folder.path().join("online"), "0-1\n").unwrap();
        folder
    }

    #[test]
    fn cores_are_on_the_nodes_that_the_kernel_says() {
        let two = machine(&[("node0", "0-3,8"), ("node1", "4-7"), ("node2", "")]);
        let nodes = Nodes::read(two.path());
        assert_eq!([0, 3, 4, 8, 9].map(|core| nodes.of(core)), [Some(0), Some(0), Some(1), Some(0), None]);
    }

    #[test]
    fn on_one_node_there_is_nothing_to_choose() {
        for one in [machine(&[("node0", "0-7")]), machine(&[("node0", "0-7"), ("node1", "")]), machine(&[])] {
            assert_eq!(Nodes::read(one.path()), Nodes::default());
        }
        assert_eq!(Nodes::read(Path::new("/no/such/folder")), Nodes::default());
        let workers = [2, 1, 1].map(|shares| Candidate { node: None, shares });
        assert_eq!((place(&workers, None), place(&workers, Some(0))), (1, 1));
    }

    #[test]
    fn a_guest_gets_a_worker_of_its_own_node_even_if_another_has_less_to_do() {
        let workers = [(0, 0), (1, 5), (1, 4)].map(|(node, shares)| Candidate { node: Some(node), shares });
        assert_eq!(place(&workers, Some(1)), 2);
        assert_eq!(place(&workers, Some(0)), 0);
        assert_eq!(place(&workers, Some(7)), 0, "no worker is there: the one with least to do");
        assert_eq!(place(&workers, None), 0);
    }
}
