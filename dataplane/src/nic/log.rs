//! DPDK's log: every message becomes a `tracing` event of the target `dpdk`, in the thread that logged it.
//!
//! Messages of the level error are kept while a call runs under [`listen`], so that a refusal can say what DPDK gave as its
//! reason: most of its functions return a bare errno. They are logged as warnings then, because whether something failed is
//! for the caller to say: net_tap for instance calls it an error that the kernel has no multiq scheduler, and works without.

use std::cell::RefCell;
use std::ffi::c_char;

use super::error::{EalError, describe};

/// Most bytes kept of what is said during one call.
const KEPT: usize = 600;
/// What DPDK says of every device that it could not plug in, whatever the reason.
const SAYS_NOTHING: [&str; 2] =
    ["EAL: Driver cannot attach the device", "EAL: Failed to attach device on primary process"];

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
            if keep(line) {
                tracing::warn!(target: "dpdk", "{line}");
            } else {
                tracing::error!(target: "dpdk", "{line}");
            }
        }
        dpdk_sys::RTE_LOG_WARNING => tracing::warn!(target: "dpdk", "{line}"),
        dpdk_sys::RTE_LOG_NOTICE => tracing::info!(target: "dpdk", "{line}"),
        dpdk_sys::RTE_LOG_INFO => tracing::debug!(target: "dpdk", "{line}"),
        _ => tracing::trace!(target: "dpdk", "{line}"),
    }
}

/// Keeps a line when somebody listens. Returns whether somebody does.
fn keep(line: &str) -> bool {
    HEARD.with_borrow_mut(|heard| {
        let Some(heard) = heard else { return false };
        let says_nothing = SAYS_NOTHING.iter().any(|start| line.starts_with(start));
        if !says_nothing && heard.len() + line.len() < KEPT {
            if !heard.is_empty() {
                heard.push_str("; ");
            }
            heard.push_str(line.trim());
        }
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_kept_while_somebody_listens() {
        let say = |level, text: &str| write(level, text.as_ptr().cast(), text.len());
        say(dpdk_sys::RTE_LOG_ERR, "EAL: before\n");
        let ((), said) = listen(|| {
            say(dpdk_sys::RTE_LOG_ERR, "EAL: first\nEAL: second\n");
            say(dpdk_sys::RTE_LOG_INFO, "EAL: by the way\n");
            say(dpdk_sys::RTE_LOG_ERR, "EAL: Failed to attach device on primary process\n");
            say(dpdk_sys::RTE_LOG_ERR, &"x".repeat(KEPT));
        });
        assert_eq!(said, "EAL: first; EAL: second");
        assert_eq!(listen(|| ()).1, "");
    }
}
