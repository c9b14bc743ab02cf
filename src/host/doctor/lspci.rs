//! What `lspci -D -v` prints of a function's capabilities.

/// One function.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Listed {
    pub address: String,
    /// Class and name, as printed.
    pub title: String,
    /// Whether this user was shown the capabilities.
    pub complete: bool,
    pub sriov: bool,
    pub ari: bool,
    pub acs: bool,
}

/// All functions in the text.
pub(crate) fn parse(text: &str) -> Vec<Listed> {
    let mut found: Vec<Listed> = Vec::new();
    for line in text.lines() {
        if !line.starts_with(char::is_whitespace) {
            if let Some((address, title)) = line.split_once(' ').filter(|(address, _)| is_address(address)) {
                let domain = if address.matches(':').count() == 1 { "0000:" } else { "" };
                let address = format!("{domain}{address}");
                found.push(Listed { address, title: title.trim().into(), complete: true, ..Listed::default() });
            }
            continue;
        }
        let (Some(one), Some((_, capability))) = (found.last_mut(), line.split_once("Capabilities: ")) else {
            continue;
        };
        one.complete &= !capability.contains("<access denied>");
        one.sriov |= capability.contains("(SR-IOV)");
        one.ari |= capability.contains("(ARI)");
        one.acs |= capability.contains("Access Control Services");
    }
    found
}

fn is_address(word: &str) -> bool {
    word.contains(':')
        && word.contains('.')
        && word.bytes().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_by_lspcis_words() {
        let found = parse(super::super::tests::texts::LSPCI_CONNECTX5);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].address, "0000:03:00.0");
        assert!(found[0].complete && found[0].sriov && found[0].ari && !found[0].acs, "{found:?}");
        let denied =
            parse("0000:03:00.0 Ethernet controller: x\n\tFlags: fast devsel\n\tCapabilities: <access denied>\n");
        assert!(!denied[0].complete && !denied[0].sriov);
    }
}
