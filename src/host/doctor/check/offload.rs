//! Open vSwitch's offload, and the representors that it works through.

use super::Found;
use crate::error::ErrorKind;
use crate::host::doctor::host::{Host, Unseen};
use crate::host::doctor::nic::Nic;
use crate::ovs::verify::{Check, Checked, State};

pub(super) fn ovs(host: &Host) -> Vec<Found> {
    match host.verify_ovs() {
        Ok(verified) => verified.checks.iter().map(finding).collect(),
        Err(error) if error.kind == ErrorKind::OvsDown => {
            let installed = host.exists("/etc/openvswitch") || host.exists("/run/openvswitch");
            if matches!(error.errno, Some(libc::EACCES | libc::EPERM)) {
                // Its sockets are its own user's: who may not look at them does not know whether somebody serves them.
                return vec![Found::unseen("Open vSwitch", &Unseen::Denied).evidence([error.message.clone()])];
            }
            vec![match installed {
                true => Found::warn("Open vSwitch is installed, and does not run")
                    .evidence([error.message.clone()])
                    .remedy([host.start_ovs()]),
                false => Found::pass("there is no Open vSwitch on this host").evidence([error.message.clone()]),
            }]
        }
        Err(error) => vec![Found::unknown(error.message.clone())],
    }
}

fn finding(check: &Check) -> Found {
    let message = check.message.clone();
    let found = match check.state {
        State::Ok => Found::pass(message),
        State::Unknown => Found::unknown(message),
        State::Warning => Found::warn(message),
        State::Failed => Found::fail(message),
    };
    let name = serde_json::to_value(check.check).ok().and_then(|word| word.as_str().map(str::to_owned));
    // What was looked at, as it can be looked at again.
    let seen = match check.check {
        Checked::HwOffload => "ovs-vsctl get Open_vSwitch . other_config external_ids",
        Checked::Offloaded | Checked::Conntrack => "ovs-appctl dpctl/dump-flows -m",
        Checked::OwnRules => "ringspan flow stats",
        Checked::MaxIdle => "ovs-vsctl get Open_vSwitch . other_config:max-idle",
        Checked::Owners => "ringspan nic list",
        Checked::Representors => "ovs-vsctl show",
        Checked::Interfaces => "ovs-vsctl --columns=name,error list Interface",
        Checked::Qdiscs => "tc qdisc show",
        Checked::Upcalls => "ovs-appctl dpctl/show",
    };
    Found { item: name, ..found }
        .evidence([format!("{seen}: {}", check.message)])
        .remedy(check.remedy.iter().flat_map(|remedy| pasted(remedy)))
}

/// A remedy as lines to paste: advice that is no command must not be run, and neither must a command in which a name is still to be filled in.
fn pasted(remedy: &str) -> Vec<String> {
    let is_command = |text: &str| {
        let to_fill_in = |word: &str| word.len() > 2 && word.bytes().all(|byte| byte.is_ascii_uppercase());
        ["ringspan ", "ovs-", "tc ", "ip "].iter().any(|word| text.starts_with(word))
            && !text.contains(", for ")
            && !text.split_whitespace().any(to_fill_in)
    };
    match remedy.rsplit_once(": ") {
        _ if is_command(remedy) => vec![remedy.to_owned()],
        Some((advice, command)) if is_command(command) => vec![format!("# {advice}"), command.to_owned()],
        _ => vec![format!("# {remedy}")],
    }
}

/// An interface that a switchdev NIC shows.
struct Port {
    interface: String,
    switch: String,
    name: String,
}

fn ports(host: &Host) -> Vec<Port> {
    let interfaces = host.names("/sys/class/net").unwrap_or_default();
    let all = interfaces.into_iter().filter_map(|interface| {
        let text =
            |name: &str| host.text(&format!("/sys/class/net/{interface}/{name}")).ok().filter(|text| !text.is_empty());
        Some(Port { switch: text("phys_switch_id")?, name: text("phys_port_name")?, interface })
    });
    all.collect()
}

/// The VF's number, of this PF: `pf0vf3`, `c1pf0vf3`, or a plain number on old kernels.
fn vf_of(port: &str, pf: u64) -> Option<u64> {
    match port.rsplit_once("vf") {
        Some((function, vf)) => {
            let number: u64 = function.rsplit_once("pf")?.1.parse().ok()?;
            (number == pf).then(|| vf.parse().ok())?
        }
        None => port.parse().ok(),
    }
}

pub(super) fn representors(host: &Host) -> Vec<Found> {
    if let Err(why) = host.names("/sys/class/net") {
        return vec![Found::unseen("/sys/class/net", &why)];
    }
    let ports = ports(host);
    let mut found = Vec::new();
    for nic in host.physical() {
        // The uplink is the function's own interface, with a port name such as p0.
        let uplink = ports.iter().find(|port| {
            nic.interfaces.contains(&port.interface) && port.name.starts_with('p') && !port.name.starts_with("pf")
        });
        let Some(uplink) = uplink else { continue };
        found.push(complete(nic, uplink, &ports));
        found.push(hardware(host, uplink));
    }
    if found.is_empty() {
        found.push(Found::pass("no card is in switchdev mode: there is nothing to represent"));
    }
    found
}

fn complete(nic: &Nic, uplink: &Port, ports: &[Port]) -> Found {
    let pf = uplink.name.trim_start_matches('p').parse().unwrap_or(0);
    let there: Vec<u64> =
        ports.iter().filter(|port| port.switch == uplink.switch).filter_map(|port| vf_of(&port.name, pf)).collect();
    let missing: Vec<String> = (0..nic.vfs).filter(|vf| !there.contains(vf)).map(|vf| vf.to_string()).collect();
    let found = match missing.is_empty() {
        true => Found::pass(format!("each of {} VFs has a representor", nic.vfs)),
        false => {
            Found::fail(format!("VFs without a representor, whose traffic no switch sees: {}", missing.join(", ")))
                .remedy([format!("ringspan eswitch show {}", uplink.interface), "udevadm settle".into()])
        }
    };
    found.about(nic.name()).evidence([format!(
        "/sys/class/net/*/phys_port_name: {} representors of switch {}, sriov_numvfs {}",
        there.len(),
        uplink.switch,
        nic.vfs
    )])
}

fn hardware(host: &Host, uplink: &Port) -> Found {
    let name = &uplink.interface;
    let found = match host.run("ethtool", &["-k", name]) {
        Ok(ran) if ran.good => match ran.stdout.lines().find(|line| line.trim_start().starts_with("hw-tc-offload:")) {
            Some(line) if line.contains(": on") => Found::pass("hw-tc-offload is on").evidence([line.trim()]),
            Some(line) => Found::fail("hw-tc-offload is off: TC puts no rule into the card")
                .evidence([format!("ethtool -k {name}: {}", line.trim())])
                .remedy([format!("ethtool -K {name} hw-tc-offload on")]),
            None => Found::unknown("ethtool does not say whether hw-tc-offload is on"),
        },
        Ok(ran) => Found::unknown(format!("ethtool -k {name}: {}", ran.stderr.trim())),
        Err(why) => Found::unseen("hw-tc-offload (by ethtool)", &why),
    };
    found.about(format!("{name} hw-tc-offload"))
}
