//! DPDK's C API as far as ringspan uses it, for DPDK 22.11 to 24.11.
//!
//! Generated at build time by bindgen from the headers that pkg-config finds, from a list of names; nothing else of DPDK
//! is visible here. What is `static inline` or a macro in C comes from one shim, `shim.c`, and is called `shim_*` or
//! `SHIM_*`: it works on bursts, and it gives the field offsets of `rte_mbuf`, which moved between the releases.
//!
//! What the functions do is said in DPDK's own documentation: the
//! [programmer's guide](https://doc.dpdk.org/guides-22.11/prog_guide/index.html) (chapters *Environment Abstraction Layer*,
//! *Mempool Library*, *Mbuf Library*, *Poll Mode Driver*), the
//! [EAL parameters](https://doc.dpdk.org/guides-22.11/linux_gsg/linux_eal_parameters.html) and the
//! [API reference](https://doc.dpdk.org/api-22.11/).
//!
//! # Linking
//! DPDK is linked dynamically, only the libraries that are needed. Drivers are not linked: EAL loads them from the
//! plug-in folder that the distribution built into it.
//!
//! # Safety
//! Every function is as unsafe as in C. `ringspan-dataplane`'s module `nic` is the safe side.
#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, missing_docs)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mbuf_layout_is_what_the_c_compiler_sees() {
        let bindgen = [
            SHIM_MBUF_SIZE,
            SHIM_MBUF_BUF_ADDR,
            SHIM_MBUF_DATA_OFF,
            SHIM_MBUF_REFCNT,
            SHIM_MBUF_NB_SEGS,
            SHIM_MBUF_PORT,
            SHIM_MBUF_OL_FLAGS,
            SHIM_MBUF_PACKET_TYPE,
            SHIM_MBUF_PKT_LEN,
            SHIM_MBUF_DATA_LEN,
            SHIM_MBUF_VLAN_TCI,
            SHIM_MBUF_BUF_LEN,
            SHIM_MBUF_POOL,
            SHIM_MBUF_NEXT,
            SHIM_MBUF_TX_OFFLOAD,
        ]
        .map(|offset| offset as usize);
        let mut c = [0; 15];
        // SAFETY: the function writes at most as many values as it is told there is room for.
        let count = unsafe { shim_mbuf_layout(c.as_mut_ptr(), c.len()) };
        assert_eq!(count, c.len());
        assert_eq!(bindgen, c);
    }

    #[test]
    fn linked_version_is_the_one_of_the_headers() {
        // SAFETY: returns a pointer to a static, terminated string.
        let version = unsafe { std::ffi::CStr::from_ptr(shim_version()) }.to_str().unwrap();
        let (year, month) = (SHIM_DPDK_VERSION >> 24, SHIM_DPDK_VERSION >> 16 & 0xff);
        assert!(version.starts_with(&format!("DPDK {year:02}.{month:02}")), "{version}");
    }

    /// Bytes in the heap of node 0.
    fn heap() -> usize {
        let mut stats = rte_malloc_socket_stats::default();
        // SAFETY: the function fills the structure.
        assert_eq!(unsafe { rte_malloc_get_socket_stats(0, &mut stats) }, 0);
        stats.heap_totalsz_bytes
    }

    /// Makes a pool of some MiB, and frees it. Returns how large the heap was meanwhile; none where somebody else took the hugepages.
    fn make_and_free_a_pool(name: &std::ffi::CStr) -> Option<usize> {
        // SAFETY: EAL is started; the name is terminated.
        let pool = unsafe { rte_pktmbuf_pool_create(name.as_ptr(), 4095, 0, 0, 4096, SHIM_SOCKET_ID_ANY) };
        if pool.is_null() {
            eprintln!("skipped: hugepages that were free are not");
            return None;
        }
        let with = heap();
        // SAFETY: nothing was taken from it.
        unsafe { rte_mempool_free(pool) };
        Some(with)
    }

    /// The only one here that starts EAL.
    #[test]
    fn a_heap_that_is_kept_grows_once_and_shrinks_no_more() {
        use std::os::unix::fs::MetadataExt;
        let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        if !is_root || free.ok().and_then(|free| free.trim().parse().ok()).unwrap_or(0) < 64 {
            eprintln!("skipped: not root, or fewer than 64 hugepages of 2 MiB are free");
            return;
        }
        let arguments =
            [c"test", c"-m16", c"--in-memory", c"--no-telemetry", c"--no-pci", c"--socket-limit=96", c"--iova-mode=va"];
        let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        // SAFETY: terminated strings that stay, and EAL writes to none of them. The last thread that uses DPDK is this one.
        let status = unsafe { rte_eal_init(pointers.len() as i32, pointers.as_mut_ptr()) };
        assert!(status >= 0);
        let start = heap();
        let Some(with) = make_and_free_a_pool(c"before") else { return };
        assert!(with > start);
        assert_eq!(heap(), start, "it shrinks unless it is kept");
        // SAFETY: EAL is started.
        assert_eq!(unsafe { shim_keep_memory() }, 0);
        let Some(with) = make_and_free_a_pool(c"first") else { return };
        assert!(with > start);
        assert_eq!(heap(), with);
        assert_eq!(make_and_free_a_pool(c"second"), Some(with), "there is room for it");
        assert_eq!(heap(), with);
    }
}
