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
}
