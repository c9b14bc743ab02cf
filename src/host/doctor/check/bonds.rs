//! Bonds whose members are cards with VFs.

use super::Found;
use crate::host::doctor::host::Host;
use crate::host::doctor::nic::{MELLANOX, Nic};

/// Modes that VF LAG takes: active-backup, balance-xor, 802.3ad (drivers/net/ethernet/mellanox/mlx5/core/lag/lag.c).
const MODES: [&str; 3] = ["active-backup", "balance-xor", "802.3ad"];

pub(super) fn bonds(host: &Host) -> Vec<Found> {
    let interfaces = match host.names("/sys/class/net") {
        Ok(names) => names,
        Err(why) => return vec![Found::unseen("/sys/class/net", &why)],
    };
    let bonds = interfaces.into_iter().filter(|name| host.exists(&format!("/sys/class/net/{name}/bonding")));
    let found: Vec<Found> = bonds.flat_map(|bond| look(host, &bond)).collect();
    if found.is_empty() { vec![Found::pass("there is no bond on this host")] } else { found }
}

fn look(host: &Host, bond: &str) -> Vec<Found> {
    let folder = format!("/sys/class/net/{bond}/bonding");
    let word = |name: &str| {
        let text = host.text(&format!("{folder}/{name}")).unwrap_or_default();
        text.split_whitespace().next().unwrap_or_default().to_owned()
    };
    let (mode, miimon, partner) = (word("mode"), word("miimon"), word("ad_partner_mac"));
    let members: Vec<String> =
        host.text(&format!("{folder}/slaves")).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let cards: Vec<&Nic> =
        host.physical().filter(|nic| nic.interfaces.iter().any(|name| members.contains(name))).collect();
    let mut found = Vec::new();
    let mut add = |one: Found| found.push(one.about(bond));
    if members.is_empty() {
        add(Found::warn("it has no member")
            .evidence([format!("{folder}/slaves is empty")])
            .remedy([format!("# give it its interfaces: ip link set NAME down && ip link set NAME master {bond}")]));
    }
    let with_vfs = cards.iter().any(|nic| nic.has_sriov() == Some(true));
    if with_vfs && !MODES.contains(&mode.as_str()) {
        add(Found::fail(format!("mode {mode}: VF LAG and bonds of VFs need active-backup, balance-xor or 802.3ad"))
            .evidence([format!("{folder}/mode: {mode}")])
            .remedy([format!("# in the network's configuration (ifupdown, netplan, NetworkManager) make {bond} active-backup or 802.3ad, then boot anew: a bond's mode cannot change while it has members")]));
    }
    if miimon == "0" && host.text(&format!("{folder}/arp_interval")).is_ok_and(|text| text == "0") {
        add(Found::warn("its members' links are not watched: a dead link goes on being used")
            .evidence([format!("{folder}/miimon: 0, arp_interval: 0")])
            .remedy([format!("echo 100 > {folder}/miimon")]));
    }
    for member in &members {
        let status = host.text(&format!("/sys/class/net/{member}/bonding_slave/mii_status")).unwrap_or_default();
        if status == "down" {
            add(Found::warn(format!("its member {member} is down"))
                .evidence([format!("/sys/class/net/{member}/bonding_slave/mii_status: down")])
                .remedy([
                    format!("ip link set {member} up"),
                    format!("# if it stays down, look at the cable and the switch: ethtool {member}"),
                ]));
        }
    }
    if mode == "802.3ad" && !members.is_empty() && (partner == "00:00:00:00:00:00") {
        add(Found::fail("nobody answers LACP: the switch's ports are not in a channel")
            .evidence([format!("{folder}/ad_partner_mac: {partner}")])
            .remedy(["# configure LACP (a port channel) on the switch's two ports"]));
    }
    if let Some(one) = vf_lag(host, &cards) {
        add(one);
    }
    if found.is_empty() {
        found.push(Found::pass(format!("mode {mode}, {} members up", members.len())).about(bond));
    }
    found
}

/// VF LAG: two Mellanox functions of one card, in switchdev mode.
fn vf_lag(host: &Host, cards: &[&Nic]) -> Option<Found> {
    let mellanox: Vec<&&Nic> = cards.iter().filter(|nic| nic.vendor == MELLANOX && nic.vfs > 0).collect();
    let (first, second) = (mellanox.first()?, mellanox.get(1)?);
    let board = |nic: &Nic| nic.address.rsplit_once('.').map(|(board, _)| board.to_owned());
    if board(first) != board(second) {
        let message =
            format!("{} and {} are of two cards: VF LAG needs the two ports of one", first.name(), second.name());
        return Some(
            Found::warn(message).remedy(["# bond the two functions of one card, or two VFs in the guest's port"]),
        );
    }
    let place = format!("/sys/kernel/debug/mlx5/{}/lag/state", first.address);
    Some(match host.text(&place) {
        Ok(state) if state.starts_with("active") => Found::pass("VF LAG is active").evidence([format!("{place}: {state}")]),
        Ok(state) => Found::fail("VF LAG is not active: VFs of one port lose their network when its link goes down")
            .evidence([format!("{place}: {state}")])
            .remedy(["# unbind all VFs of both functions, set both to switchdev mode (ringspan eswitch set PF --mode switchdev), then make the bond anew in the network's configuration"]),
        Err(why) => Found::unseen(&place, &why),
    })
}
