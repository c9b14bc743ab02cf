//! Hugepages: DPDK's packet memory, and guests' memory.

use super::Found;
use crate::host::doctor::host::{Host, Unseen};

/// Pages of one size.
struct Pages {
    kib: u64,
    count: u64,
    free: u64,
}

impl Pages {
    fn mib(&self, count: u64) -> u64 {
        count * self.kib / 1024
    }
}

/// Pages below a folder, of all sizes that are reserved.
fn pages(host: &Host, folder: &str) -> Result<Vec<Pages>, Unseen> {
    let mut found = Vec::new();
    for name in host.names(folder)? {
        let Some(kib) = name.strip_prefix("hugepages-").and_then(|rest| rest.strip_suffix("kB")?.parse().ok()) else {
            continue;
        };
        let number = |file: &str| host.number(&format!("{folder}/{name}/{file}"));
        found.push(Pages { kib, count: number("nr_hugepages")?, free: number("free_hugepages")? });
    }
    found.retain(|pages| pages.count > 0);
    Ok(found)
}

const FOLDER: &str = "/sys/kernel/mm/hugepages";
/// What a lane takes when its configuration does not say.
const A_LANE_MIB: u64 = 256;

/// The size whose pages are reserved by remedies, in KiB: 2 MiB where there is that one, else the smallest. `vm.nr_hugepages` counts pages of
/// the default size, which can be 1 GiB.
fn size(host: &Host, folder: &str) -> u64 {
    let size = |name: &String| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok();
    let sizes: Vec<u64> = host.names(folder).unwrap_or_default().iter().filter_map(size).collect();
    if sizes.contains(&2048) { 2048 } else { sizes.into_iter().min().unwrap_or(2048) }
}

/// As much of this as leaves the host half of its available memory: a remedy must not end in the kernel's killing for memory.
fn bounded(host: &Host, mib: u64) -> u64 {
    let text = host.text("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.map_or(mib, |kib| mib.min(kib / 1024 / 2))
}

/// Reserves this much more than there is, now and at each boot.
fn reserve(host: &Host, all: &[Pages], more_mib: u64) -> Vec<String> {
    let kib = size(host, FOLDER);
    let more_mib = bounded(host, more_mib);
    let now = all.iter().find(|pages| pages.kib == kib).map_or(0, |pages| pages.count);
    let count = now + (more_mib * 1024).div_ceil(kib);
    let place = format!("{FOLDER}/hugepages-{kib}kB/nr_hugepages");
    vec![
        format!("echo {count} > {place}"),
        format!("echo 'w {place} - - - - {count}' > /etc/tmpfiles.d/ringspan-hugepages.conf"),
    ]
}

pub(super) fn reserved(host: &Host) -> Vec<Found> {
    let all = match pages(host, FOLDER) {
        Ok(pages) => pages,
        Err(why) => return vec![Found::unseen(FOLDER, &why)],
    };
    let evidence = |pages: &[Pages]| -> Vec<String> {
        let line = |one: &Pages| format!("{FOLDER}/hugepages-{}kB: {} reserved, {} free", one.kib, one.count, one.free);
        pages.iter().map(line).collect()
    };
    if all.is_empty() {
        let message =
            "no hugepage is reserved: lanes run on ordinary pages, slower, and not with VFs of a card without an IOMMU";
        let found = if host.wants_vfs() { Found::fail(message) } else { Found::warn(message) };
        return vec![found.evidence([format!("{FOLDER}: no pages of any size")]).remedy(reserve(host, &all, 2048))];
    }
    let total: u64 = all.iter().map(|one| one.mib(one.count)).sum();
    let free: u64 = all.iter().map(|one| one.mib(one.free)).sum();
    let first = if free >= A_LANE_MIB {
        Found::pass(format!("{total} MiB of hugepages, {free} MiB free"))
    } else {
        // Who runs already has its memory: only what is started next lacks it.
        Found::warn(format!("{free} of {total} MiB of hugepages are free: the next lane ({A_LANE_MIB} MiB) or guest does not start in them"))
            .remedy(reserve(host, &all, 1024))
    };
    let mut found = vec![first.evidence(evidence(&all))];
    found.extend(nodes(host));
    found
}

/// Nodes that have cards with VFs, and no pages.
fn nodes(host: &Host) -> Vec<Found> {
    let mut wanted: Vec<(u64, String)> = host
        .physical()
        .filter(|nic| nic.has_sriov() == Some(true))
        .filter_map(|nic| Some((nic.node?, nic.name())))
        .collect();
    wanted.sort();
    wanted.dedup_by_key(|(node, _)| *node);
    let lacks = |node: u64| {
        let folder = format!("/sys/devices/system/node/node{node}/hugepages");
        pages(host, &folder).is_ok_and(|pages| pages.is_empty()).then_some(folder)
    };
    let found = wanted.into_iter().filter_map(|(node, card)| {
        let folder = lacks(node)?;
        let kib = size(host, &folder);
        let count = (bounded(host, 2048) * 1024).div_ceil(kib);
        Some(
            Found::warn(format!(
                "NUMA node {node} has no hugepages, and {card} is there: its packets go over to another node"
            ))
            .about(format!("node {node}"))
            .evidence([format!("{folder}: no pages of any size")])
            .remedy([format!("echo {count} > {folder}/hugepages-{kib}kB/nr_hugepages")]),
        )
    });
    found.collect()
}

pub(super) fn mounted(host: &Host) -> Vec<Found> {
    let mounts = match host.text("/proc/mounts") {
        Ok(text) => text,
        Err(why) => return vec![Found::unseen("/proc/mounts", &why)],
    };
    let lines: Vec<&str> = mounts.lines().filter(|line| line.split_whitespace().nth(2) == Some("hugetlbfs")).collect();
    if lines.is_empty() {
        return vec![
            Found::warn("hugetlbfs is not mounted: guests' memory in hugepages (memory-backend-file) has no place")
                .evidence(["/proc/mounts: no hugetlbfs"])
                .remedy(["mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages"]),
        ];
    }
    let total: u64 = pages(host, FOLDER).unwrap_or_default().iter().map(|one| one.mib(one.count)).sum();
    let mut found = Vec::new();
    for line in &lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, place, _, options, ..] = &words[..] else { continue };
        let Some(bound) = options.split(',').find_map(|option| mib(option.strip_prefix("size=")?)) else { continue };
        if bound < total {
            found.push(
                Found::warn(format!("its mount is bounded to {bound} MiB, below the {total} MiB that are reserved"))
                    .about(*place)
                    .evidence([*line])
                    // A remount takes no other size (fs/hugetlbfs/inode.c: there is no reconfigure), and says nothing of it.
                    .remedy([
                        format!("umount {place} && mount -t hugetlbfs -o {} hugetlbfs {place}", with_size(options, total)),
                        "# where guests use it, once they have ended; and where it is mounted at boot (/etc/fstab, a mount unit), the same size".into(),
                    ]),
            );
        }
    }
    if found.is_empty() {
        found.push(Found::pass("hugetlbfs is mounted").evidence(lines));
    }
    found
}

/// Options of a mount with another size, in MiB.
fn with_size(options: &str, total: u64) -> String {
    let others = options.split(',').filter(|option| !option.starts_with("size=")).map(str::to_owned);
    others.chain([format!("size={total}M")]).collect::<Vec<_>>().join(",")
}

/// `size=` of a mount: bytes, or with a unit.
fn mib(text: &str) -> Option<u64> {
    let (digits, shift) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    Some(digits.parse::<u64>().ok()?.checked_mul(1 << shift)? >> 20)
}
