//! On which NUMA node a guest's memory is.

use std::ptr::null;

use super::GuestMap;

/// Pages that are asked for, spread over the guest's memory.
const ASKED: usize = 64;
const PAGE: u64 = 4096;

/// The node that has most of the pages which the guest has touched. None when it has touched none, or the kernel does not say.
pub fn of_memory(map: &GuestMap) -> Option<u16> {
    let each = (ASKED / map.regions().len().max(1)).max(1) as u64;
    let pages: Vec<*const u8> = map
        .regions()
        .iter()
        .flat_map(|region| {
            let step = (region.len / each).next_multiple_of(PAGE).max(PAGE);
            let inside = (0..each).map(move |number| number * step).take_while(|offset| *offset < region.len);
            inside.map(|offset| region.host.as_ptr().wrapping_add(offset as usize).cast_const())
        })
        .collect();
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
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    #[test]
    fn the_node_of_most_pages_counts_and_untouched_ones_do_not() {
        assert_eq!(most_frequent(&[1, 0, 1, -2, -2, -2]), Some(1));
        assert_eq!(most_frequent(&[-2, -14]), None);
    }

    #[test]
    fn memory_that_was_touched_is_on_a_node_of_this_machine() {
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 30), 1 << 20)]);
        let memory = memory.unwrap();
        memory.write_slice(&[1; 1 << 20], GuestAddress(1 << 30)).unwrap();
        let node = of_memory(&GuestMap::new(&Arc::new(memory)));
        // A kernel without NUMA does not say.
        let there = std::path::Path::new("/sys/devices/system/node/node0").exists();
        assert!(node.is_none_or(|node| std::path::Path::new(&format!("/sys/devices/system/node/node{node}")).exists()));
        assert!(!there || node.is_some());
    }
}
