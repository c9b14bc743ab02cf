//! From what a lane has to what it should have, in the fewest steps: a port that is as wanted is not touched.

use std::collections::{BTreeMap, BTreeSet};

use ringspan_protocol::{DeviceSpec, NicName, NicSpec, PortChange, PortName, PortSpec, Reply, Request, VfSettings};

use super::client::{CallError, LaneClient, QUICK, SLOW};
use super::lane::{Lane, lock};
use crate::control::{Daemon, EventKind};
use crate::error::Error;

/// What is wanted on a lane.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Ports that should be there.
    pub ports: BTreeMap<PortName, PortSpec>,
    /// Ports that somebody is adding at this moment: neither missing nor unknown.
    pub pending: BTreeSet<PortName>,
    /// Software NICs that should be there.
    pub nics: BTreeMap<NicName, NicSpec>,
    /// Ports of other lanes: one that has moved there keeps its counters.
    pub elsewhere: BTreeSet<PortName>,
}

/// Removals come first, so that sockets and devices are free; then changes, then what is missing. A NIC goes after the ports on its VFs,
/// and comes before them.
fn plan(wanted: &Wanted, present: &BTreeMap<PortName, PortSpec>, nics: &BTreeMap<NicName, NicSpec>) -> Vec<Request> {
    let (mut removals, mut changes, mut additions) = (Vec::new(), Vec::new(), Vec::new());
    let goes = |name: &NicName, has: &NicSpec| wanted.nics.get(name).is_none_or(|spec| !same_but_vfs(spec, has));
    let going: BTreeSet<&str> =
        nics.iter().filter(|(name, has)| goes(name, has)).map(|(name, _)| name.as_str()).collect();
    let stands_on =
        |spec: &PortSpec| matches!(&spec.device, DeviceSpec::Soft { nic, .. } if going.contains(nic.as_str()));
    let mut nic_steps: Vec<_> = nics
        .keys()
        .filter(|name| going.contains(name.as_str()))
        .map(|name| Request::NicRemove { name: name.clone(), representors: false })
        .collect();
    for (name, spec) in &wanted.nics {
        match nics.get(name).filter(|has| same_but_vfs(spec, has)) {
            None => nic_steps.push(Request::NicAdd(Box::new(spec.clone()))),
            Some(has) => nic_steps.extend(vf_changes(spec, has)),
        }
    }
    for (name, has) in present {
        match wanted.ports.get(name) {
            _ if wanted.pending.contains(name) => {}
            Some(spec) if stands_on(has) => {
                removals.push(Request::PortRemove { name: name.clone(), forget: false });
                additions.push(Request::PortAdd(Box::new(spec.clone())));
            }
            Some(spec) if spec == has => {}
            Some(spec) => match change_between(has, spec) {
                Some(change) => changes.push(Request::PortSet { name: name.clone(), change }),
                None => {
                    removals.push(Request::PortRemove { name: name.clone(), forget: false });
                    additions.push(Request::PortAdd(Box::new(spec.clone())));
                }
            },
            None => {
                let forget = !wanted.elsewhere.contains(name);
                removals.push(Request::PortRemove { name: name.clone(), forget });
            }
        }
    }
    for (name, spec) in &wanted.ports {
        if !present.contains_key(name) && !wanted.pending.contains(name) {
            additions.push(Request::PortAdd(Box::new(spec.clone())));
        }
    }
    removals.into_iter().chain(nic_steps).chain(changes).chain(additions).collect()
}

/// Whether a NIC need not be made anew: the settings of VFs change while it runs.
fn same_but_vfs(spec: &NicSpec, has: &NicSpec) -> bool {
    NicSpec { vf: has.vf.clone(), ..spec.clone() } == *has
}

/// VFs whose settings differ. Those that lose an address or a VLAN come first, so that no two have the same one meanwhile.
fn vf_changes(spec: &NicSpec, has: &NicSpec) -> Vec<Request> {
    let differing: Vec<_> = (0..spec.vfs)
        .map(|vf| spec.vf_settings(vf))
        .filter(|settings| *settings != has.vf_settings(settings.vf))
        .collect();
    let request = |settings: VfSettings| Request::NicSetVf { name: spec.name.clone(), settings };
    let bare = |settings: &VfSettings| VfSettings { mac: None, ..*settings };
    let moves = |settings: &&VfSettings| {
        let old = has.vf_settings(settings.vf);
        settings.mac.is_some() && old.mac.is_some() && (old.mac, old.vlan) != (settings.mac, settings.vlan)
    };
    let first: Vec<_> = differing.iter().filter(moves).map(|settings| request(bare(settings))).collect();
    let (without, with): (Vec<_>, Vec<_>) = differing.into_iter().partition(|settings| settings.mac.is_none());
    first.into_iter().chain(without.into_iter().chain(with).map(request)).collect()
}

/// The change of a running port that leads there, when there is one.
fn change_between(has: &PortSpec, wants: &PortSpec) -> Option<PortChange> {
    let differs = |same: bool| !same;
    let change = PortChange {
        mtu: differs(has.mtu == wants.mtu).then_some(wants.mtu),
        mac: wants.mac.filter(|mac| has.mac != Some(*mac)),
        promiscuous: differs(has.promiscuous == wants.promiscuous).then_some(wants.promiscuous),
        allmulti: differs(has.allmulti == wants.allmulti).then_some(wants.allmulti),
        compat: differs(has.compat == wants.compat).then_some(wants.compat),
        max_rate: differs(has.max_rate == wants.max_rate).then_some(wants.max_rate),
        mode: differs(has.mode == wants.mode).then_some(wants.mode),
    };
    (change.apply(has) == *wants).then_some(change)
}

/// Makes the lane's ports what is wanted. What it refuses is kept with the reason, and told once.
pub(super) fn reconcile(lane: &Lane, client: &mut LaneClient, daemon: &Daemon) -> Result<(), CallError> {
    let mut wanted = daemon.wanted_on(&lane.name);
    let Reply::Ports(present) = client.call(Request::PortList, QUICK)? else {
        return Err(CallError::Lost("the lane answered PortList with something else".into()));
    };
    let present: BTreeMap<_, _> = present.into_iter().map(|port| (port.spec.name.clone(), port.spec)).collect();
    let Reply::Nics(nics) = client.call(Request::NicList, QUICK)? else {
        return Err(CallError::Lost("the lane answered NicList with something else".into()));
    };
    let nics: BTreeMap<_, _> = nics.into_iter().map(|nic| (nic.spec.name.clone(), nic.spec)).collect();
    {
        let mut state = lock(&lane.state);
        state.refused.retain(|name, _| wanted.ports.contains_key(name));
        state.refused_nics.retain(|name, _| wanted.nics.contains_key(name));
    }
    // What a lane cannot be given yet is refused, and stays as it is there. No other port waits until a vDPA device is made.
    let mut without = vec![];
    for (name, spec) in std::mem::take(&mut wanted.ports) {
        let known = daemon.known_for_lane(&spec);
        if !matches!(known, Some(Ok(_))) {
            without.push(name.clone());
        }
        match known {
            Some(Ok(spec)) => {
                // What it was refused for before is over, without anything to tell the lane.
                if present.get(&name) == Some(&spec) && lock(&lane.state).refused.remove(&name).is_some() {
                    daemon.events.tell(Some(&lane.name), Some(&name), EventKind::PortApplied);
                }
                wanted.ports.insert(name, spec);
            }
            Some(Err(error)) => {
                refuse(lane, daemon, &name, error.about(&name));
                wanted.pending.insert(name);
            }
            None => drop(wanted.pending.insert(name)),
        }
    }
    for request in plan(&wanted, &present, &nics) {
        let name = match &request {
            Request::NicAdd(spec) => {
                let name = spec.name.clone();
                apply_nic(lane, client, &name, request)?;
                continue;
            }
            Request::NicRemove { name, .. } | Request::NicSetVf { name, .. } => {
                let name = name.clone();
                apply_nic(lane, client, &name, request)?;
                continue;
            }
            Request::PortAdd(spec) => spec.name.clone(),
            Request::PortSet { name, .. } | Request::PortRemove { name, .. } => name.clone(),
            _ => continue,
        };
        tracing::info!(lane = %lane.name, port = %name, "{}", verb(&request));
        match client.call(request, SLOW) {
            Ok(_) => {
                if lock(&lane.state).refused.remove(&name).is_some() {
                    daemon.events.tell(Some(&lane.name), Some(&name), EventKind::PortApplied);
                }
            }
            Err(CallError::Refused(failure)) => {
                refuse(lane, daemon, &name, Error::from(failure).about(&name));
            }
            Err(lost) => return Err(lost),
        }
    }
    daemon.forget_journals();
    // After the removals: a device that a port has given back can be another's.
    daemon.ask_for_vdpa(&lane.name, without);
    Ok(())
}

/// A port is not as it is wanted: the reason is kept, and told once.
fn refuse(lane: &Lane, daemon: &Daemon, name: &PortName, error: Error) {
    tracing::warn!(lane = %lane.name, port = %name, "refused: {error}");
    let before = lock(&lane.state).refused.insert(name.clone(), error.clone());
    if before.as_ref() != Some(&error) {
        let kind = EventKind::PortRefused { kind: error.kind, message: error.message };
        daemon.events.tell(Some(&lane.name), Some(name), kind);
    }
}

/// One step with a NIC. A refusal is kept with its reason, and tried again.
fn apply_nic(lane: &Lane, client: &mut LaneClient, name: &NicName, request: Request) -> Result<(), CallError> {
    let what = match request {
        Request::NicAdd(_) => "adding a NIC",
        Request::NicSetVf { .. } => "changing a VF of a NIC",
        _ => "removing a NIC",
    };
    tracing::info!(lane = %lane.name, nic = %name, "{what}");
    match client.call(request, SLOW) {
        Ok(_) => drop(lock(&lane.state).refused_nics.remove(name)),
        Err(CallError::Refused(failure)) => {
            let error = Error::from(failure).about(name);
            tracing::warn!(lane = %lane.name, nic = %name, "refused: {error}");
            lock(&lane.state).refused_nics.insert(name.clone(), error);
        }
        Err(lost) => return Err(lost),
    }
    Ok(())
}

fn verb(request: &Request) -> &'static str {
    match request {
        Request::PortAdd(_) => "adding a port",
        Request::PortSet { .. } => "changing a port",
        _ => "removing a port",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, more: &str) -> PortSpec {
        let text =
            format!(r#"{{"name":"{name}","socket":"/run/{name}.sock","device":"vdev:net_null0","compat":"1"{more}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn by_name(specs: &[PortSpec]) -> BTreeMap<PortName, PortSpec> {
        specs.iter().map(|spec| (spec.name.clone(), spec.clone())).collect()
    }

    fn words(wanted: &[PortSpec], pending: &[&str], present: &[PortSpec]) -> Vec<String> {
        let pending = pending.iter().map(|name| name.parse().unwrap()).collect();
        let wanted = Wanted { ports: by_name(wanted), pending, ..Wanted::default() };
        let word = |request: &Request| match request {
            Request::PortAdd(spec) => format!("add {}", spec.name),
            Request::PortRemove { name, forget } => format!("remove {name} {forget}"),
            Request::PortSet { name, change } => format!("set {name} {}", serde_json::to_string(change).unwrap()),
            other => format!("{other:?}"),
        };
        plan(&wanted, &by_name(present), &BTreeMap::new()).iter().map(word).collect()
    }

    #[test]
    fn a_port_that_is_as_wanted_is_not_touched() {
        assert!(words(&[spec("a", "")], &[], &[spec("a", "")]).is_empty());
    }

    #[test]
    fn missing_unknown_and_differing_ports_are_put_right_removals_first() {
        let wanted = [spec("a", r#","mtu":9000"#), spec("b", r#","queues":2"#), spec("new", "")];
        let present = [spec("a", ""), spec("b", ""), spec("z", "")];
        assert_eq!(
            words(&wanted, &[], &present),
            ["remove b false", "remove z true", r#"set a {"mtu":9000}"#, "add b", "add new"]
        );
    }

    #[test]
    fn a_mac_that_is_taken_back_needs_a_new_port() {
        let has = spec("a", r#","mac":"52:54:00:00:00:01""#);
        assert_eq!(words(&[spec("a", "")], &[], &[has]), ["remove a false", "add a"]);
    }

    #[test]
    fn a_port_that_moved_to_another_lane_keeps_its_counters() {
        let wanted = Wanted { elsewhere: ["a".parse().unwrap()].into(), ..Wanted::default() };
        let steps = plan(&wanted, &by_name(&[spec("a", "")]), &BTreeMap::new());
        assert_eq!(steps, [Request::PortRemove { name: "a".parse().unwrap(), forget: false }]);
    }

    #[test]
    fn vfs_are_changed_while_their_nic_runs_and_swap_addresses() {
        let nic = |vfs: &str| -> NicSpec {
            let text = format!(r#"{{"name":"nic0","vfs":4,"mode":"legacy","vf":[{vfs}]}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let (a, b) = (r#""mac":"02:00:00:00:00:01""#, r#""mac":"02:00:00:00:00:02""#);
        let has = nic(&format!(r#"{{"vf":0,{a}}},{{"vf":1,{b}}},{{"vf":2,"vlan":5}}"#));
        let wants = nic(&format!(r#"{{"vf":0,{b}}},{{"vf":1,{a}}},{{"vf":3,"trust":true}}"#));
        let nics = |nic: &NicSpec| [(nic.name.clone(), nic.clone())].into();
        let wanted = Wanted { nics: nics(&wants), ..Wanted::default() };
        let mut now = has.clone();
        for step in plan(&wanted, &BTreeMap::new(), &nics(&has)) {
            let Request::NicSetVf { settings, .. } = step else { panic!("{step:?}") };
            now.set_vf(settings);
            assert_eq!(now.check_vfs(), Ok(()), "after {settings:?}");
        }
        assert_eq!(now, wants);
        assert_eq!(plan(&wanted, &BTreeMap::new(), &nics(&wants)), []);
    }

    #[test]
    fn a_nic_goes_after_the_ports_on_it_and_comes_before_them() {
        let nic = |name: &str, vfs| NicSpec {
            name: name.parse().unwrap(),
            vfs,
            uplinks: Vec::new(),
            bond: Default::default(),
            mode: Default::default(),
            vf: Vec::new(),
            pci: None,
            mtu: 1500,
        };
        let nics = |nics: &[NicSpec]| nics.iter().map(|nic| (nic.name.clone(), nic.clone())).collect();
        let on =
            |name: &str, nic: &str| PortSpec { device: format!("soft:{nic}/vf0").parse().unwrap(), ..spec(name, "") };
        let ports = [on("a", "nic0"), on("b", "nic1"), spec("c", "")];
        let wanted =
            Wanted { ports: by_name(&ports), nics: nics(&[nic("nic0", 4), nic("nic1", 2)]), ..Wanted::default() };
        let steps = plan(&wanted, &by_name(&ports), &nics(&[nic("nic0", 2), nic("nic1", 2), nic("nic2", 2)]));
        let remove = |name: &str| Request::NicRemove { name: name.parse().unwrap(), representors: false };
        assert_eq!(
            steps,
            [
                Request::PortRemove { name: "a".parse().unwrap(), forget: false },
                remove("nic0"),
                remove("nic2"),
                Request::NicAdd(Box::new(nic("nic0", 4))),
                Request::PortAdd(Box::new(ports[0].clone())),
            ]
        );
    }

    #[test]
    fn a_port_that_is_being_added_is_left_alone() {
        assert!(words(&[], &["a"], &[spec("a", "")]).is_empty());
        assert!(words(&[spec("a", "")], &["a"], &[]).is_empty());
    }
}
