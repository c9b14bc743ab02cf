//! Each check fails on a tree that is broken, with its cause, and passes when the remedy was taken.

mod breaks;
pub(super) mod texts;
mod tree;

use tree::Tree;

use super::{CHECKS, State, examine};

#[test]
fn a_healthy_host_passes_all_checks() {
    let report = examine(&Tree::healthy().host());
    let troubles: Vec<_> = report.findings.iter().filter(|finding| finding.state != State::Pass).collect();
    assert!(troubles.is_empty(), "{troubles:#?}");
    assert_eq!(report.state, State::Pass);
    assert_eq!(report.host.distribution, "Debian GNU/Linux 12");
}

#[test]
fn a_host_of_which_nothing_is_visible_is_unknown_and_not_broken() {
    let report = examine(&Tree::empty().host());
    for finding in &report.findings {
        let about_folders = ["dpdk-drivers", "device-nodes", "sriov-capability"].contains(&finding.check.as_str());
        assert!(about_folders || finding.state <= State::Unknown, "{finding:#?}");
    }
}

#[test]
fn each_check_finds_something_on_each_host() {
    for tree in [Tree::healthy(), Tree::empty()] {
        let report = examine(&tree.host());
        for check in CHECKS {
            assert!(report.findings.iter().any(|finding| finding.check == check.name), "{} is silent", check.name);
        }
    }
}

#[test]
fn this_machine_is_examined_without_a_panic_and_whoever_asks() {
    let machine = super::Machine::new(crate::ovs::client::Place::new(None), crate::ovs::verify::Own::default());
    let report = examine(&super::Host::new(std::path::Path::new("/"), None, Box::new(machine)));
    assert!(report.findings.len() >= CHECKS.len());
    let troubled = report.findings.iter().filter(|finding| finding.state == State::Fail);
    for finding in troubled {
        assert!(!finding.remedy.is_empty(), "a failed check has a remedy: {finding:#?}");
    }
}

#[test]
fn the_bundle_has_what_was_read_and_no_secret() {
    let mut tree = Tree::healthy();
    tree.file("/etc/yunion/host.conf", "rack: r1\nadmin_password: hunter2\n");
    let host = tree.host();
    let report = examine(&host);
    let path = tree.path("/bundle.tar.gz");
    super::bundle::write(&path, &host, &report, &[("daemon/version.json".into(), b"{}".to_vec())]).unwrap();
    let packed = std::fs::read(&path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&packed[..]));
    let mut files = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        files.insert(name, String::from_utf8_lossy(&content).into_owned());
    }
    assert!(files["ringspan-doctor/report.json"].contains("iommu"));
    assert!(files["ringspan-doctor/files/proc/cmdline"].contains("intel_iommu=on"));
    assert!(files["ringspan-doctor/programs/ip link show"].contains("LOOPBACK"));
    assert!(files["ringspan-doctor/kernel.log"].contains("firmware version"));
    assert_eq!(files["ringspan-doctor/files/etc/yunion/host.conf"], "(left out)\n(left out)\n");
    assert!(files.contains_key("ringspan-doctor/daemon/version.json"));
    assert!(!files.values().any(|text| text.contains("hunter2")));
    let again = super::bundle::write(&path, &host, &report, &[]).unwrap_err();
    assert_eq!(again.kind(), std::io::ErrorKind::AlreadyExists);
}
