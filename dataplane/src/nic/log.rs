//! DPDK's log: every message becomes a `tracing` event of the target `dpdk`, in the thread that logged it.
//!
//! Messages of the level error are also kept while a call runs under [`listen`], so that a refusal can say what DPDK gave as
//! its reason: most of its functions return a bare errno.

use std::cell::RefCell;
use std::ffi::c_char;

use super::error::{EalError, describe};

/// Most bytes kept of what is said during one call.
const KEPT: usize = 600;

thread_local! {
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Sends DPDK's log here, from now on.
pub(super) fn install() -> Result<(), EalError> {
    // SAFETY: `write` has the type the shim calls, and lives as long as the process.
    match unsafe { dpdk_sys::shim_log_to(Some(write)) } {
        0 => Ok(()),
        status => Err(EalError::Log(describe(status))),
    }
}

/// Runs a call and says what DPDK logged as errors meanwhile in this thread, in one line.
pub(super) fn listen<T>(call: impl FnOnce() -> T) -> (T, String) {
    HEARD.with_borrow_mut(|heard| *heard = Some(String::new()));
    let result = call();
    let said = HEARD.with_borrow_mut(Option::take).unwrap_or_default();
    (result, said)
}

extern "C" fn write(level: u32, text: *const c_char, length: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: the stream's write function is given `length` bytes that are valid until it returns.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length) };
    for line in String::from_utf8_lossy(bytes).lines().filter(|line| !line.trim().is_empty()) {
        event(level, line.trim_end());
    }
}

fn event(level: u32, line: &str) {
    match level {
        0..=dpdk_sys::RTE_LOG_ERR => {
            keep(line);
            tracing::error!(target: "dpdk", "{line}");
        }
        dpdk_sys::RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
        dpdk_sys::RTE_LOG_NOTICE => tracing::info!(target: "dpdk", "{line}"),
        dpdk_sys::RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{line}"),
        _ => tracing::trace!(target: "dpdk", "{line}"),
    }
}

fn keep(line: &str) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(heard) = heard.as_mut().filter(|heard| heard.len() + line.len() < KEPT) {
            if !heard.is_empty() {
                heard.push_str("; ");
            }
            heard.push_str(line.trim());
        }
    });
}
