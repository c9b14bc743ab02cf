//! The receive filters of a device, and what becomes of a policy.

use ringspan_protocol::{Policy, PolicyStatus};

use dpdk_sys as sys;

use super::error::describe;

/// A receive filter that can be opened and closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Every unicast frame.
    Promiscuous,
    /// Every multicast frame.
    AllMulticast,
}

impl Filter {
    /// As it is called in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Promiscuous => "promiscuous",
            Self::AllMulticast => "allmulti",
        }
    }

    /// Opens or closes the filter of a port that is configured; 0 or a negative errno.
    fn set(self, port: u16, open: bool) -> i32 {
        // SAFETY: EAL is started; a port id that is not valid is refused by the functions.
        unsafe {
            match (self, open) {
                (Self::Promiscuous, true) => sys::rte_eth_promiscuous_enable(port),
                (Self::Promiscuous, false) => sys::rte_eth_promiscuous_disable(port),
                (Self::AllMulticast, true) => sys::rte_eth_allmulticast_enable(port),
                (Self::AllMulticast, false) => sys::rte_eth_allmulticast_disable(port),
            }
        }
    }

    /// Applies a policy. An error is the errno of a refusal that the policy does not accept.
    pub fn apply(self, port: u16, policy: Policy) -> Result<PolicyStatus, i32> {
        outcome(policy, self.set(port, policy != Policy::Off))
    }
}

fn outcome(policy: Policy, status: i32) -> Result<PolicyStatus, i32> {
    match (policy, status) {
        (Policy::Off, 0) => Ok(PolicyStatus::Off),
        (_, 0) => Ok(PolicyStatus::On),
        (Policy::On, status) => Err(status.abs()),
        (Policy::Auto | Policy::Off, status) => Ok(PolicyStatus::Refused(describe(status))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_fails_the_port_only_when_the_filter_must_be_open() {
        assert_eq!(outcome(Policy::Auto, 0), Ok(PolicyStatus::On));
        assert_eq!(outcome(Policy::Off, 0), Ok(PolicyStatus::Off));
        assert_eq!(outcome(Policy::On, -libc::EPERM), Err(libc::EPERM));
        assert_eq!(outcome(Policy::Auto, -libc::EPERM), Ok(PolicyStatus::Refused("Operation not permitted".into())));
    }
}
