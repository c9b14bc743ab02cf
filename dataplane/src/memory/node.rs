//! On which NUMA node a guest's memory is.

use std::ptr::null;

use super::{GuestMap, RegionCache};

/// Pages that are asked for, spread over the guest's memory.
const ASKED: usize = 64;
const PAGE: u64 = 4096;

/// The node that has most of the pages which the guest has touched, as far as this process has them in its page tables. `touched` are guest addresses
/// that a driver has surely written to, those of a ring: they are read here, because a page that this process never touched is on no node for it, and to
/// touch others would make pages that the guest never had. None when it has touched none, or the kernel does not say.
pub fn of_memory(map: &GuestMap, touched: &[u64]) -> Option<u16> {
    let mut cache = RegionCache::default();
    let touched: Vec<*const u8> = touched
        .iter()
        .filter_map(|addr| map.translate(&mut cache, *addr, 1))
        .map(|span| span.start.as_ptr().cast_const())
        .collect();
    for byte in &touched {
        // SAFETY: one byte inside of a region of the map; what it holds is of no interest.
        unsafe { byte.read_volatile() };
    }
    let each = (ASKED / map.regions().len().max(1)).max(1) as u64;
    let spread = map.regions().iter().flat_map(|region| {
        let step = (region.len / each).next_multiple_of(PAGE).max(PAGE);
        let inside = (0..each).map(move |number| number * step).take_while(|offset| *offset < region.len);
        inside.map(|offset| region.host.as_ptr().wrapping_add(offset as usize).cast_const())
    });
    let pages: Vec<*const u8> = spread.chain(touched).collect();
    let mut nodes = vec![-1i32; pages.len()];
    // SAFETY: without target nodes move_pages(2) moves nothing: it reads as many addresses, which it only looks up, and writes as many
    // results as it is told there are.
    let status = unsafe {
        libc::syscall(libc::SYS_move_pages, 0, pages.len(), pages.as_ptr(), null::<i32>(), nodes.as_mut_ptr(), 0)
    };
    if status != 0 { None } else { most_frequent(&nodes) }
}

/// The node that comes most often; what is negative is an error for that page.
fn most_frequent(nodes: &[i32]) -> Option<u16> {
    let mut known: Vec<u16> = nodes.iter().filter_map(|node| u16::try_from(*node).ok()).collect();
    known.sort_unstable();
    known.chunk_by(|a, b| a == b).max_by_key(|equal| equal.len()).map(|equal| equal[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

    #[test]
    fn the_node_of_most_pages_counts_and_untouched_ones_do_not() {
        assert_eq!(most_frequent(&[1, 0, 1, -2, -2, -2]), Some(1));
        assert_eq!(most_frequent(&[-2, -14]), None);
    }

    #[test]
    fn memory_that_a_guest_touched_is_on_a_node_of_this_machine_once_one_of_its_pages_is_named() {
        let fd = nix::sys::memfd::memfd_create(c"node", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = std::fs::File::from(fd);
        file.set_len(1 << 20).unwrap();
        let mapped = || {
            let ranges = [(GuestAddress(1 << 30), 1 << 20, Some(FileOffset::new(file.try_clone().unwrap(), 0)))];
            Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap())
        };
        // The guest has a mapping of its own.
        mapped().write_slice(&[1; 1 << 20], GuestAddress(1 << 30)).unwrap();
        let map = GuestMap::new(&mapped());
        assert_eq!(of_memory(&map, &[]), None, "nothing is in our page tables yet");
        let node = of_memory(&map, &[0, 1 << 30]);
        // A kernel without NUMA does not say.
        let there = std::path::Path::new("/sys/devices/system/node/node0").exists();
        assert!(node.is_none_or(|node| std::path::Path::new(&format!("/sys/devices/system/node/node{node}")).exists()));
        assert!(!there || node.is_some());
    }
}
