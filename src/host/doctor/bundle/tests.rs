//! Whatever a host's files have: of what is not on the list, and of what looks like a token, nothing is shown.

use proptest::prelude::*;

use super::allowed::{ALLOWED, Allowed};
use super::shown::{LEFT_OUT, Shown};

fn shown(name: &str, content: &str) -> String {
    let rule = Allowed::of(name).unwrap_or_else(|| panic!("{name} is not on the list"));
    String::from_utf8(rule.shown.of(content.as_bytes())).unwrap()
}

#[test]
fn of_configuration_files_the_known_values_are_shown() {
    let agent = "rack: r1\nadmin_password: hunter2\nnetworks:\n- eth0/br0/10.0.0.1\nsriov-nics: [eth1]\nurl: mysql://u:pw@h/x\n";
    assert_eq!(
        shown("files/etc/yunion/host.conf", agent),
        "(left out)\n(left out)\nnetworks:\n- eth0/br0/10.0.0.1\nsriov-nics: [eth1]\n(left out)\n"
    );
    let own = "[control]\nsocket = \"/run/ringspan/control.sock\"\n[ovs]\nrestart_command = [\"x\", \"--key=abc\"]\n[dataplane]\ncores = [2, 3]\n";
    assert_eq!(
        shown("files/etc/ringspan.toml", own),
        own.replace("restart_command = [\"x\", \"--key=abc\"]", LEFT_OUT)
    );
    let ovs = "0a\n    Bridge br0\n        Port p1\n            tag: 5\n            Interface vx\n                type: vxlan\n                options: {key=\"1\", psk=\"abc\"}\n";
    let text = shown("programs/ovs-vsctl show", ovs);
    assert!(text.contains("Bridge br0") && text.contains("type: vxlan") && !text.contains("psk"), "{text}");
}

#[test]
fn of_the_command_line_known_words_are_shown_wherever_it_stands() {
    let words = "root=/dev/sda1 intel_iommu=on rd.iscsi.password=x igb.max_vfs=7 quiet single";
    let expected = "(left out) intel_iommu=on (left out) igb.max_vfs=7 quiet (left out)";
    assert_eq!(shown("files/proc/cmdline", words), expected);
    assert_eq!(
        shown("files/etc/default/grub", &format!("GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"{words}\"\n")),
        format!("GRUB_CMDLINE_LINUX=\"{expected}\"\n")
    );
    let log = format!("[0.0] Command line: {words}\n[0.1] audit: x y z\n[1.0] igb 0000:01:00.0: 7 VFs allocated\n");
    assert_eq!(
        shown("kernel.log", &log),
        format!("[0.0] Command line: {expected}\n[1.0] igb 0000:01:00.0: 7 VFs allocated\n")
    );
}

#[test]
fn of_a_guest_its_memory_and_nics_are_shown() {
    let line = "qemu\0-object\0secret,id=s,data=abc\0-object\0memory-backend-memfd,id=m,share=on\0-drive\0file=rbd:p/i:key=AQB==\0-pw=x\0";
    assert_eq!(
        shown("files/proc/4711/cmdline", line),
        "qemu\0-object\0(left out)\0-object\0memory-backend-memfd,id=m,share=on\0(left out)\0(left out)\0(left out)\0"
    );
}

#[test]
fn of_modules_and_mounts_what_the_checks_read_is_shown() {
    let modprobe = "# x\noptions igb max_vfs=7 foo=bar\ninstall x /bin/sh -c secret\nblacklist nouveau\n";
    assert_eq!(shown("files/etc/modprobe.d/a.conf", modprobe), "options igb max_vfs=7 (left out)\nblacklist nouveau\n");
    let mounts = "//h/s /m cifs rw,username=u 0 0\nhugetlbfs /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n";
    assert_eq!(shown("files/proc/mounts", mounts), "hugetlbfs /dev/hugepages hugetlbfs rw,pagesize=2M 0 0\n");
}

#[test]
fn what_is_not_on_the_list_is_nobodys() {
    for name in ["files/etc/shadow", "files/etc/ssl/private/key.pem", "programs/env", "files/sys/../etc/shadow", "x"] {
        assert!(Allowed::of(name).is_none(), "{name}");
    }
    for rule in ALLOWED {
        assert!(!rule.why.is_empty() && !rule.names.is_empty());
    }
}

/// Names of all files that people write, and of what has their words in it.
const WRITTEN: [&str; 10] = [
    "files/etc/ringspan.toml",
    "files/etc/yunion/host.conf",
    "files/etc/default/grub",
    "files/etc/modprobe.d/x.conf",
    "files/proc/cmdline",
    "files/proc/77/cmdline",
    "files/proc/mounts",
    "programs/ovs-vsctl show",
    "kernel.log",
    "daemon/port.list.json",
];

fn token() -> impl Strategy<Value = String> {
    // With a digit and a letter, as what was drawn at random has.
    "[A-Za-z0-9+]{14,60}".prop_map(|text| format!("k7{text}"))
}

proptest! {
    #[test]
    fn nothing_that_looks_like_a_token_comes_through(
        token in token(),
        key in prop_oneof![Just("device".to_owned()), Just("networks".into()), Just("GRUB_CMDLINE_LINUX".into()), Just("intel_iommu".into()), "[a-z_]{1,20}"],
        form in 0..9,
    ) {
        let text = match form {
            0 => format!("{key} = \"{token}\"\n"),
            1 => format!("{key}: {token}\n"),
            2 => format!("{key}:\n- {token}\n- a/b/{token}\n"),
            3 => format!("{key}={token}"),
            4 => format!("{key} = [\n  \"{token}\",\n]\n"),
            5 => format!("options igb max_vfs={token} {key}={token}\nblacklist {token}\n"),
            6 => format!("qemu\0-device\0vfio-pci,host={token}\0-{token}\0{key}={token}\0"),
            7 => format!("[1.0] pci {token} Command line: {key}={token} pci={token}\n{token}\n"),
            _ => format!("x /m hugetlbfs {key}={token} 0 0\n{token} {token}\n"),
        };
        let quoted = serde_json::json!({ &key: [&token, { &token: text }] }).to_string();
        for name in WRITTEN {
            for content in [&text, &quoted] {
                let shown = shown(name, content);
                prop_assert!(!shown.contains(&token), "{name}: {content:?} is shown as {shown:?}");
            }
        }
    }

    #[test]
    fn nothing_under_an_unknown_key_comes_through(secret in "[a-z]{6,12}", key in "zz[a-z_]{1,10}") {
        for text in [format!("{key}: zz{secret}"), format!("{key}=zz{secret}"), format!("{key} = \"zz{secret}\"\nzz{secret}"), format!("{key}:\n  - zz{secret}")] {
            for name in &WRITTEN[..7] {
                prop_assert!(!shown(name, &text).contains(&secret), "{name}: {text:?}");
            }
        }
    }

    #[test]
    fn any_bytes_are_taken_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for rule in ALLOWED {
            let shown = rule.shown.of(&bytes);
            prop_assert!(rule.shown != Shown::Whole || shown == bytes);
        }
    }
}
