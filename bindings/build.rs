//! Finds DPDK by pkg-config, generates the bindings from its headers and compiles the shim.
//!
//! Both must see the same compiler flags: DPDK's structures depend on its configuration header, which pkg-config asks for
//! with `-include rte_config.h`.

use std::env;
use std::path::PathBuf;
use std::process::exit;

/// Oldest release that is supported: Debian 12's.
const OLDEST: &str = "22.11";

/// Functions that are exported by DPDK's libraries and used as they are.
const FUNCTIONS: &[&str] = &[
    "rte_(eal_init|eal_get_runtime_dir|strerror|thread_register|thread_unregister)",
    "rte_log_(set_global_level|set_level_pattern)",
    "rte_dev_(probe|remove|name|is_probed|event_monitor_start|event_callback_(register|unregister|process))",
    "rte_eth_dev_(info_get|configure|start|stop|close|count_total|set_mtu|get_mtu|default_mac_addr_set|is_removed)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|callback_register|callback_unregister|socket_id|get_name_by_port|is_valid_port)",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_(macaddr_get|promiscuous_(enable|disable|get)|allmulticast_(enable|disable|get))",
    "rte_eth_(stats_get|xstats_get|xstats_get_names|find_next|dev_set_link_up)",
    "rte_(pktmbuf_pool_create|mempool_free|mempool_avail_count|mempool_in_use_count|malloc_get_socket_stats)",
    "rte_eth_dev_(rx_intr_(enable|disable|ctl_q_get_fd)|rss_hash_conf_get)",
    "rte_(extmem_register|extmem_unregister|dev_dma_map|dev_dma_unmap|eal_iova_mode)",
    "rte_(ring_create|ring_free|eth_from_rings)",
    "rte_eth_bond_(create|free|mac_address_set|primary_get|xmit_policy_set|link_monitoring_set)",
    "shim_.*",
];

/// Types that the functions above do not pull in by themselves.
const TYPES: &[&str] = &["rte_eth_.*mq_mode", "rte_eth_event_type", "rte_dev_event_type", "rte_iova_mode", "shim_.*"];

const CONSTANTS: &[&str] = &["RTE_ETH_NAME_MAX_LEN", "SHIM_.*", "RTE_LOG_.*"];

fn main() {
    println!("cargo:rerun-if-changed=shim.h");
    println!("cargo:rerun-if-changed=shim.c");
    println!("cargo:rerun-if-changed=flow.h");
    println!("cargo:rerun-if-changed=flow.c");
    println!("cargo:rerun-if-changed=reference.h");
    println!("cargo:rerun-if-changed=reference.c");

    let dpdk = match pkg_config::Config::new().atleast_version(OLDEST).probe("libdpdk") {
        Ok(dpdk) => dpdk,
        Err(error) => {
            eprintln!("{error}\n");
            eprintln!("DPDK {OLDEST} or newer is not installed, or not for developers.");
            eprintln!(
                "Install the Debian packages dpdk-dev and pkg-config, or set PKG_CONFIG_PATH to the folder of libdpdk.pc."
            );
            exit(1)
        }
    };
    // Another release of DPDK needs other bindings.
    for header in dpdk.include_paths.iter().map(|path| path.join("rte_build_config.h")).filter(|path| path.exists()) {
        println!("cargo:rerun-if-changed={}", header.display());
    }
    let flags = compiler_flags();

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut bindings = bindgen::Builder::default()
        .header("shim.h")
        .clang_args(&flags)
        .clang_args(dpdk.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(true)
        // Reached through the shim's offsets alone: its unions and markers do not translate well.
        .opaque_type("rte_mbuf")
        .opaque_type("rte_mempool")
        .opaque_type("rte_ring")
        .opaque_type("rte_device")
        .opaque_type("rte_devargs")
        .opaque_type("rte_dev_iterator")
        .opaque_type("rte_flow")
        .generate_comments(false);
    for name in FUNCTIONS {
        bindings = bindings.allowlist_function(name);
    }
    for name in TYPES {
        bindings = bindings.allowlist_type(name);
    }
    for name in CONSTANTS {
        bindings = bindings.allowlist_var(name);
    }
    // bindgen panics when there is no libclang.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bindings.generate())) {
        Ok(Ok(bindings)) => bindings.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable"),
        failed => {
            if let Ok(Err(error)) = failed {
                eprintln!("{error}\n");
            }
            eprintln!("No bindings could be made from DPDK's headers. bindgen needs libclang and its headers:");
            eprintln!("install the Debian package libclang-dev.");
            exit(1)
        }
    }

    // Drivers are plug-ins, which pkg-config does not name; these have functions of their own.
    println!("cargo:rustc-link-lib=rte_net_ring");
    println!("cargo:rustc-link-lib=rte_net_bond");

    let mut shim = cc::Build::new();
    shim.file("shim.c")
        .file("flow.c")
        .file("reference.c")
        .includes(&dpdk.include_paths)
        .opt_level(3)
        .warnings(true)
        .extra_warnings(false);
    for flag in &flags {
        shim.flag(flag);
    }
    shim.compile("ringspan_dpdk_shim");
}

/// The flags of `pkg-config --cflags` that the pkg-config crate does not hand on: `-include` and `-march`.
fn compiler_flags() -> Vec<String> {
    let program = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = std::process::Command::new(program).args(["--cflags-only-other", "libdpdk"]).output();
    let text = match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => {
            eprintln!("pkg-config --cflags-only-other libdpdk failed: {}", String::from_utf8_lossy(&output.stderr));
            exit(1)
        }
        Err(error) => {
            eprintln!("pkg-config cannot be run ({error}): install the Debian package pkg-config");
            exit(1)
        }
    };
    text.split_whitespace().map(String::from).collect()
}
