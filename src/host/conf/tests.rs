//! From files and a host to a plan.

use std::collections::BTreeMap;
use std::path::Path;

use super::apply::{AppliedOutcome, apply};
use super::inventory::{Card, Interface, Inventory, Lag};
use super::plan::{Item, Kind, Level, Plan, Standing, plan};
use super::settings::{Files, Settings};
use crate::error::{Error, ErrorKind};

/// Reads made-up files.
fn settings(files: &[(&str, &str)], common: Option<&str>) -> Result<Settings, Error> {
    let files: BTreeMap<String, String> =
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    let read = |path: &Path| {
        files.get(path.to_str().unwrap()).cloned().ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENOENT))
    };
    Settings::read(&Files { host: "/host.conf".into(), common: common.map(Into::into) }, &read)
}

const CX5: u16 = 0x1017;
const CX6DX: u16 = 0x101d;

fn card(address: &str, device: u16) -> Interface {
    let card = Card {
        address: address.into(),
        vendor: 0x15b3,
        device,
        driver: "mlx5_core".into(),
        total_vfs: Some(8),
        ..Card::default()
    };
    Interface { card: Some(card), ..Interface::default() }
}

/// eth0 without SR-IOV, two ports of a ConnectX-6 Dx in a bond, one ConnectX-5, one InfiniBand card.
fn host() -> Inventory {
    let mut host = Inventory::default();
    let mut plain = card("0000:01:00.0", 0x1533);
    plain.card.as_mut().unwrap().total_vfs = None;
    let mut infiniband = card("0000:82:00.0", CX6DX);
    infiniband.infiniband = true;
    let bond = Interface { members: Some(vec!["eth2".into(), "eth3".into()]), ..Interface::default() };
    for (name, interface) in [
        ("eth0", plain),
        ("eth1", card("0000:81:00.0", CX5)),
        ("eth2", card("0000:03:00.0", CX6DX)),
        ("eth3", card("0000:03:00.1", CX6DX)),
        ("bond0", bond.clone()),
        ("bond1", bond),
        ("ib0", infiniband),
    ] {
        host.interfaces.insert(name.into(), interface);
    }
    host.addresses = Some(BTreeMap::from([("br0".to_owned(), vec!["10.0.0.1".parse().unwrap()])]));
    host
}

const NETWORKS: &str = "networks:\n- eth0/br0/10.0.0.1\n- bond0/br1/wire1\n";

fn planned(text: &str, host: &Inventory) -> Plan {
    plan(&settings(&[("/host.conf", &format!("{NETWORKS}{text}"))], None).unwrap(), host)
}

#[track_caller]
fn refused(item: &Item, words: &str) {
    assert_eq!(item.standing, Standing::Refused, "{item:#?}");
    let problem = item.refused.as_ref().unwrap();
    assert!(problem.message.contains(words), "{item:#?}");
    assert!(!problem.remedy.is_empty());
}

#[test]
fn a_bond_is_its_members_with_the_bonds_bridge_and_wire() {
    let plan = planned("ovs_offload_nics:\n- bond0\n", &host());
    let words: Vec<_> =
        plan.items.iter().map(|item| (item.interface.as_str(), item.bridge.as_str(), item.wire.as_str())).collect();
    assert_eq!(words, [("eth2", "br1", "wire1"), ("eth3", "br1", "wire1"), ("bond0", "br1", "wire1")]);
    let lag = &plan.items[2];
    assert_eq!((lag.kind, lag.standing, lag.members.len()), (Kind::VfLag, Standing::ToDo, 2));
    assert!(lag.steps[0].starts_with("have eth2 and eth3 leave and join bond0 again"), "{lag:#?}");
    let first = &plan.items[0];
    assert_eq!((first.bond.as_deref(), first.kind, first.standing), (Some("bond0"), Kind::OvsOffload, Standing::ToDo));
    assert_eq!(first.from, "/host.conf:5");
    assert_eq!(
        first.steps,
        [
            "write udev's rules for names of eth2's VFs and representors that stay",
            "set hw-tc-offload of eth2 on",
            "set the steering mode of eth2 to smfs, where it has a choice",
            "set VFs of eth2 to 8, and wait for each",
            "unbind VFs of eth2, set its eswitch to switchdev, and wait for 8 representors"
        ]
    );
    assert!(plan.problems.is_empty(), "{:#?}", plan.problems);
    assert_eq!(plan.give_up[0].key, "ovs_offload_nics");
    assert_eq!(plan.give_up[0].from, "/host.conf:5");
}

#[test]
fn what_is_so_already_has_no_steps() {
    let mut host = host();
    for name in ["eth2", "eth3"] {
        let card = host.interfaces.get_mut(name).unwrap().card.as_mut().unwrap();
        card.switchdev = true;
        card.vfs = 8;
    }
    host.interfaces.get_mut("bond0").unwrap().lag = Lag::Active;
    let plan = planned("ovs_offload_nics:\n- bond0\n", &host);
    assert!(plan.items.iter().all(|item| item.standing == Standing::AsWanted && item.steps.is_empty()), "{plan:#?}");
    // A count that differs is changed by way of legacy and none.
    host.interfaces.get_mut("eth2").unwrap().card.as_mut().unwrap().vfs = 2;
    let plan = planned("ovs_offload_nics:\n- bond0\n", &host);
    let steps = &plan.items[0].steps;
    assert_eq!(steps[1], "unbind VFs of eth2, and set its eswitch to legacy");
    assert_eq!(steps[4], "set VFs of eth2 from 2 to 0");
    // An ice makes them in switchdev mode.
    let card = host.interfaces.get_mut("eth2").unwrap().card.as_mut().unwrap();
    (card.driver, card.switchdev) = ("ice".into(), false);
    let steps = &planned("ovs_offload_nics:\n- bond0\n", &host).items[0].steps;
    let words =
        ["write udev's rules", "set VFs of eth2 from 2 to 0", "set hw-tc", "set the eswitch", "set VFs of eth2 to 8"];
    assert!(steps.iter().zip(words).all(|(step, words)| step.starts_with(words)) && steps.len() == 5, "{steps:#?}");
}

#[test]
fn an_unlisted_interface_goes_to_the_first_network_with_a_warning() {
    let plan = planned("sriov_nics:\n- ib0\n", &host());
    assert_eq!((plan.items[0].bridge.as_str(), plan.items[0].wire.as_str()), ("br0", "10.0.0.1"));
    let warning = &plan.problems[0];
    assert_eq!((warning.level, warning.line), (Level::Warning, Some(5)));
    assert!(warning.message.contains("ib0 is not in networks"), "{warning:?}");
}

#[test]
fn an_unlisted_bond_is_told_and_not_dropped_in_silence() {
    let plan = planned("sriov_nics:\n- bond1\n", &host());
    refused(&plan.items[0], "the bond bond1 is not in networks");
    assert_eq!(plan.items[0].refused.as_ref().unwrap().line, Some(5));
}

#[test]
fn what_a_card_cannot_be_is_refused_with_the_reason_and_the_others_go_on() {
    let plan = planned("sriov_nics:\n- eth0\n- nosuch\n- eth1\novs_offload_nics: [ib0]\n", &host());
    refused(&plan.items[0], "eth0 (0000:01:00.0) has no SR-IOV");
    refused(&plan.items[1], "no interface nosuch");
    assert_eq!(plan.items[2].standing, Standing::ToDo);
    refused(&plan.items[3], "InfiniBand");
}

#[test]
fn offload_on_an_old_card_needs_security_groups_off() {
    let plan = planned("ovs_offload_nics: [eth1]\n", &host());
    refused(&plan.items[0], "security groups are on");
    assert!(plan.items[0].refused.as_ref().unwrap().remedy.contains("disable_security_group: true"));
    let plan = planned("ovs_offload_nics: [eth1]\ndisable_security_group: true\n", &host());
    assert_eq!(plan.items[0].standing, Standing::ToDo);
}

#[test]
fn a_card_in_both_lists_is_refused_in_both_and_twice_in_one_is_one() {
    let plan = planned("sriov_nics: [eth2]\novs_offload_nics: [bond0, eth3]\n", &host());
    let of = |name: &str| plan.items.iter().filter(|item| item.interface == name).collect::<Vec<_>>();
    assert_eq!(of("eth2").len(), 2);
    for item in of("eth2") {
        refused(item, "eth2 is in sriov_nics and in ovs_offload_nics");
    }
    assert_eq!(of("eth3").len(), 1);
}

#[test]
fn addresses_must_be_where_the_entry_says() {
    let text = "networks:\n- eth0/br0/10.0.0.2\n- eth1/br0/wire1\n- eth1/br2/w\n- nosuch/br3/w\n- x\n";
    let plan = plan(&settings(&[("/host.conf", text)], None).unwrap(), &host());
    let found: Vec<_> = plan.problems.iter().map(|one| (one.line.unwrap(), one.message.as_str())).collect();
    assert_eq!(
        found,
        [
            (2, "neither eth0 nor br0 has 10.0.0.2"),
            (3, "eth1 or br0 has 10.0.0.1, and the entry names a wire"),
            (4, "eth1 is in networks twice"),
            (5, "there is no interface nosuch"),
            (6, "\"x\" has 1 fields"),
        ]
    );
}

#[test]
fn the_common_configuration_replaces_and_the_local_one_comes_last() {
    let host_conf = format!("{NETWORKS}disable_security_group: true\ncommon_config_file: /common.conf\n");
    let one = settings(&[("/host.conf", &host_conf), ("/common.conf", "region: r\n")], None).unwrap();
    assert!(!one.disable_security_group, "what host.conf says is forgotten");
    assert!(one.problems[0].message.contains("has no effect"), "{:?}", one.problems);
    assert_eq!(one.problems[0].line, Some(4));
    let common = ("/common.conf", "disable_security_group: true\nsriov_nics: [eth9]\n");
    let two = settings(&[("/host.conf", &host_conf), common], None).unwrap();
    assert!(two.disable_security_group);
    assert!(two.sriov_nics.is_empty() && two.problems[0].message.starts_with("sriov_nics has no effect"));
    let local = ("/etc/yunion/host_local.conf", "disable_security_group: false\nsriov_nics: [eth1]\n");
    let three = settings(&[("/host.conf", &host_conf), common, local], None).unwrap();
    assert!(!three.disable_security_group);
    assert_eq!(three.sriov_nics[0].at.to_string(), "/etc/yunion/host_local.conf:2");
    assert_eq!(three.read.len(), 3);
    // Named on the agent's command line only.
    let four = settings(&[("/host.conf", NETWORKS), common], Some("/common.conf")).unwrap();
    assert!(four.disable_security_group);
    let five = settings(&[("/host.conf", NETWORKS)], Some("/gone.conf")).unwrap();
    assert!(five.problems[0].message.contains("/gone.conf is not there"));
}

#[test]
fn files_that_say_nothing_or_are_not_there() {
    let error = settings(&[("/host.conf", "rack: r1\n")], None).unwrap_err();
    assert!(error.message.starts_with("/host.conf: networks is missing or empty"), "{error}");
    assert_eq!(settings(&[], None).unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn what_the_agent_took_already_is_told() {
    let mut host = host();
    let card = host.interfaces.get_mut("eth1").unwrap().card.as_mut().unwrap();
    (card.vfs, card.taken_by_agent, card.hidden_from_agent) = (8, 8, true);
    let plan = planned("sriov_nics: [eth1]\n", &host);
    assert!(plan.problems.iter().any(|one| one.message.contains("bound 8 VFs of eth1 to vfio-pci")), "{plan:#?}");
    assert!(plan.problems.iter().any(|one| one.message.contains("PCI domain")), "{plan:#?}");
}

#[test]
fn the_plan_is_carried_out_card_by_card_and_a_dry_run_changes_nothing() {
    let text = "sriov_nics: [eth1, eth0, ib0]\novs_offload_nics: [bond0]\n";
    let dry = apply(planned(text, &host()), true, |_, _| panic!("a dry run changes nothing"));
    let outcomes: Vec<_> = dry.items.iter().map(|item| item.outcome).collect();
    use AppliedOutcome::{Changed, Refused, Unchanged, WouldChange};
    assert_eq!(outcomes, [WouldChange, Refused, WouldChange, WouldChange, WouldChange, WouldChange]);
    let mut asked = Vec::new();
    let done = apply(planned(text, &host()), false, |item, done| {
        asked.push((item.interface.clone(), item.vfs));
        done.push("its first step".into());
        match item.interface.as_str() {
            "eth1" => Err(Error::new(ErrorKind::Busy, "eth1: a guest has VF 3")),
            _ => Ok(()),
        }
    });
    let name = |text: &str| (text.to_owned(), 8);
    assert_eq!(asked, [name("eth1"), name("ib0"), name("eth2"), name("eth3"), ("bond0".into(), 0)]);
    let outcomes: Vec<_> = done.items.iter().map(|item| item.outcome).collect();
    assert_eq!(outcomes, [Refused, Refused, Changed, Changed, Changed, Changed]);
    // What was done before it failed is said, too.
    let first = &done.items[0];
    assert_eq!((first.steps.len(), first.error.as_ref().unwrap().item.as_deref()), (1, Some("eth1")));
    // Again, when all is so.
    let mut host = host();
    host.interfaces.get_mut("eth1").unwrap().card.as_mut().unwrap().vfs = 8;
    let again = apply(planned("sriov_nics: [eth1]\n", &host), false, |_, _| panic!("nothing is to do"));
    assert_eq!(again.items[0].outcome, Unchanged);
}

#[test]
fn vf_lag_is_begun_where_it_can_be_after_its_members_and_said_where_it_cannot() {
    let text = "ovs_offload_nics: [bond0]\n";
    // A member that failed keeps the bond from it.
    let done = apply(planned(text, &host()), false, |item, _| match item.interface.as_str() {
        "eth3" => Err(Error::new(ErrorKind::Busy, "eth3: a guest has VF 3")),
        "bond0" => panic!("its member is not ready"),
        _ => Ok(()),
    });
    let lag = done.items.last().unwrap();
    assert_eq!((lag.interface.as_str(), lag.outcome), ("bond0", AppliedOutcome::Refused));
    assert!(lag.error.as_ref().unwrap().message.contains("its member eth3"), "{lag:#?}");
    let with = |change: fn(&mut Inventory)| {
        let mut host = host();
        change(&mut host);
        planned(text, &host)
    };
    let mode = with(|host| host.interfaces.get_mut("bond0").unwrap().mode = "balance-rr".into());
    refused(mode.items.last().unwrap(), "in mode balance-rr");
    let hidden = with(|host| host.interfaces.get_mut("bond0").unwrap().lag = Lag::Hidden);
    assert!(hidden.problems[0].message.contains("cannot be seen") && hidden.items.len() == 2, "{hidden:#?}");
    let two =
        with(|host| host.interfaces.get_mut("eth3").unwrap().card.as_mut().unwrap().address = "0000:04:00.0".into());
    assert!(two.problems[0].message.contains("no VF LAG") && two.items.len() == 2, "{two:#?}");
    assert_eq!(two.problems[0].level, Level::Warning);
}

/// MLNX_OFED's own file says which mode a card is in (written from the agent's use of it; not seen on hardware): where it is, the switch id of the
/// interface, which older drivers have in both modes, says nothing.
#[test]
fn ofeds_own_word_for_the_mode_counts_before_the_switchs_id() {
    let folder = tempfile::tempdir().unwrap();
    let set = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    const FUNCTION: &str = "sys/bus/pci/devices/0000:81:00.0";
    const NET: &str = "sys/class/net/eth1";
    for (file, text) in
        [("class", "0x020000\n"), ("vendor", "0x15b3\n"), ("device", "0x101d\n"), ("net/eth1/ifindex", "2\n")]
    {
        set(&format!("{FUNCTION}/{file}"), text);
    }
    for (file, text) in [("sriov_totalvfs", "8\n"), ("sriov_numvfs", "8\n")] {
        set(&format!("{FUNCTION}/{file}"), text);
    }
    set(&format!("{NET}/phys_port_name"), "p0\n");
    let asks = |key: &str| {
        let host = crate::host::doctor::Host::new(folder.path(), None, Box::new(crate::host::doctor::FilesOnly));
        let host = Inventory::read(&host, None);
        let text = format!("networks:\n- eth1/br0/wire1\n{key}: [eth1]\n");
        plan(&settings(&[("/host.conf", &text)], None).unwrap(), &host).items.remove(0)
    };
    for (told, id, switchdev) in
        [("legacy\n", "0c42a1\n", false), ("switchdev\n", "", true), ("", "0c42a1\n", true), ("", "", false)]
    {
        let file = folder.path().join(NET).join("compat/devlink/mode");
        match told {
            // The kernel's own driver.
            "" => std::fs::remove_file(file).unwrap_or_default(),
            told => set(&format!("{NET}/compat/devlink/mode"), told),
        }
        set(&format!("{NET}/phys_switch_id"), id);
        let item = asks("ovs_offload_nics");
        assert_eq!((item.switchdev, item.steps.is_empty()), (switchdev, switchdev), "{told:?} {id:?}: {item:#?}");
        let item = asks("sriov_nics");
        let leaves = item.steps.iter().any(|step| step.contains("set its eswitch to legacy"));
        assert_eq!(leaves, switchdev, "{told:?} {id:?}: {item:#?}");
    }
}
