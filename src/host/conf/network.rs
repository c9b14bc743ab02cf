//! An entry of `networks`: interface / bridge / address or wire, with an address of the other family as a fourth.

use std::fmt;
use std::net::IpAddr;

/// Where a network's interface and bridge belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub interface: String,
    pub bridge: String,
    pub uplink: Uplink,
}

/// By what the agent knows the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Uplink {
    /// By addresses, which the interface or the bridge has: one, or one of each family.
    Addresses(Vec<IpAddr>),
    /// By the name of a wire; then neither has an address.
    Wire(String),
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wire(name) => f.write_str(name),
            Self::Addresses(all) => {
                let words: Vec<String> = all.iter().map(IpAddr::to_string).collect();
                f.write_str(&words.join(", "))
            }
        }
    }
}

/// Longest name of an interface (IFNAMSIZ without the end).
const LONGEST: usize = 15;
const REMEDY: &str =
    "write interface/bridge/address or interface/bridge/wire, such as eth1/br1/10.168.222.8 or eth1/br1/bcast1";

impl Network {
    /// Reads an entry; the error says what is wrong, and what to write.
    pub(crate) fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        let refuse = |what: String| Err((what, REMEDY));
        let fields: Vec<&str> = text.split('/').map(str::trim).collect();
        let (interface, bridge, third, fourth) = match fields[..] {
            [interface, bridge, third] => (interface, bridge, third, None),
            [interface, bridge, third, fourth] => (interface, bridge, third, Some(fourth)),
            _ => return refuse(format!("{text:?} has {} fields", fields.len())),
        };
        for (what, name) in [("interface", interface), ("bridge", bridge)] {
            if name.is_empty() || name.len() > LONGEST || name.contains(char::is_whitespace) {
                return refuse(format!("{name:?} cannot be the name of the {what} (1 to {LONGEST} characters)"));
            }
        }
        if interface == bridge {
            return refuse(format!("{interface} is both interface and bridge"));
        }
        if third.is_empty() {
            return refuse("the third field is empty".into());
        }
        let uplink = match (third.parse::<IpAddr>(), fourth.map(|text| (text, text.parse::<IpAddr>()))) {
            (Err(_), None) => Uplink::Wire(third.into()),
            (Ok(address), None) => Uplink::Addresses(vec![address]),
            (Ok(first), Some((_, Ok(second)))) if first.is_ipv4() != second.is_ipv4() => {
                Uplink::Addresses(vec![first, second])
            }
            (Ok(first), Some((_, Ok(second)))) => return refuse(format!("{first} and {second} are of one family")),
            (Ok(_), Some((text, Err(_)))) if text.parse::<u8>().is_ok() => {
                return refuse(format!("{third}/{text} has a length of prefix, which does not belong there"));
            }
            (Ok(_), Some((text, Err(_)))) => return refuse(format!("the fourth field, {text:?}, is no address")),
            (Err(_), Some(_)) => {
                return refuse(format!("a wire ({third}) has no address, and there is a fourth field"));
            }
        };
        Ok(Self { interface: interface.into(), bridge: bridge.into(), uplink })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_and_both_families() {
        let parse = |text: &str| Network::parse(text).unwrap().uplink;
        assert_eq!(parse("eth1/br1/bcast1"), Uplink::Wire("bcast1".into()));
        assert_eq!(parse("eth1/br1/10.1.2.3"), Uplink::Addresses(vec!["10.1.2.3".parse().unwrap()]));
        let dual = Uplink::Addresses(vec!["fd00::1".parse().unwrap(), "10.1.2.3".parse().unwrap()]);
        assert_eq!(parse("eth1/br1/fd00::1/10.1.2.3"), dual);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("eth1/br1", "has 2 fields"),
            ("eth1/br1/w/x/y", "has 5 fields"),
            ("/br1/w", "\"\" cannot be the name of the interface"),
            ("eth1/a_bridge_with_a_long_name/w", "cannot be the name of the bridge"),
            ("eth1/eth1/w", "both interface and bridge"),
            ("eth1/br1/", "third field is empty"),
            ("eth1/br1/10.0.0.1/24", "length of prefix"),
            ("eth1/br1/10.0.0.1/10.0.0.2", "one family"),
            ("eth1/br1/10.0.0.1/x", "no address"),
            ("eth1/br1/wire/10.0.0.1", "a wire (wire) has no address"),
        ] {
            let (what, remedy) = Network::parse(text).unwrap_err();
            assert!(what.contains(words), "{text}: {what}");
            assert!(remedy.contains("eth1/br1/10.168.222.8"), "{remedy}");
        }
    }
}
