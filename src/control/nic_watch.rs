//! What changes at NICs without anybody having asked for it: links, and representors that somebody removes. Each change is told once.

use std::collections::BTreeMap;

use ringspan_protocol::{NicName, NicPort, NicStatus};

use super::EventKind;

/// NICs as they were last seen.
#[derive(Debug, Default)]
pub(super) struct NicWatch(BTreeMap<NicName, Seen>);

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Link up, and unplugged, by device.
    uplinks: BTreeMap<String, (bool, bool)>,
    /// Missing, and how often removed.
    representors: BTreeMap<NicPort, (bool, u64)>,
}

impl NicWatch {
    /// What happened to a NIC since it was last seen; nothing of one that is new.
    pub(super) fn look(&mut self, status: &NicStatus) -> Vec<EventKind> {
        let nic = &status.spec.name;
        let uplinks = status.uplinks.iter().map(|one| (one.device.to_string(), (one.up, one.removed)));
        let representors = status.ports.iter().map(|port| (port.port, (port.missing, port.removals)));
        let seen = Seen { uplinks: uplinks.collect(), representors: representors.collect() };
        let mut events = Vec::new();
        if let Some(before) = self.0.get(nic) {
            for (device, now) in &seen.uplinks {
                let (nic, device, before) = (nic.clone(), device.clone(), before.uplinks.get(&device.clone()));
                match (before, now) {
                    (Some((_, false)), (_, true)) => events.push(EventKind::NicUplinkRemoved { nic, device }),
                    (Some((false, _)), (true, _)) => events.push(EventKind::NicUplinkUp { nic, device }),
                    (Some((true, _)), (false, false)) => events.push(EventKind::NicUplinkDown { nic, device }),
                    _ => {}
                }
            }
            for port in &status.ports {
                let Some((was_missing, removals)) = before.representors.get(&port.port) else { continue };
                let (nic, representor) = (nic.clone(), port.representor.clone());
                if port.removals > *removals || port.missing && !was_missing {
                    events
                        .push(EventKind::NicRepresentorRemoved { nic: nic.clone(), representor: representor.clone() });
                }
                if !port.missing && (*was_missing || port.removals > *removals) {
                    events.push(EventKind::NicRepresentorBack { nic, representor });
                }
            }
        }
        self.0.insert(nic.clone(), seen);
        events
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(up: bool, removed: bool, missing: bool, removals: u64) -> NicStatus {
        let counters = serde_json::to_value(ringspan_protocol::NicPortCounters::default()).unwrap();
        serde_json::from_value(json!({
            "spec": { "name": "nic0", "vfs": 0, "uplinks": ["pci:0000:0a:00.0"] }, "core": 0, "rules": 0, "masks": 0,
            "uplinks": [{ "device": "pci:0000:0a:00.0", "up": up, "removed": removed, "active": true }],
            "ports": [{ "port": "uplink", "representor": "nic0", "missing": missing, "removals": removals, "up": up, "counters": counters }],
        }))
        .unwrap()
    }

    #[test]
    fn links_and_representors_that_change_are_told_once() {
        let mut watch = NicWatch::default();
        let mut told = |status: NicStatus| -> Vec<String> {
            let word = |event: &EventKind| match serde_json::to_value(event).unwrap()["event"].take() {
                Value::String(word) => word,
                other => panic!("{other}"),
            };
            watch.look(&status).iter().map(word).collect()
        };
        assert_eq!(told(status(true, false, false, 0)), [""; 0], "nothing is known of before");
        assert_eq!(told(status(false, false, false, 0)), ["nic-uplink-down"]);
        assert_eq!(told(status(false, false, false, 0)), [""; 0]);
        assert_eq!(told(status(true, false, false, 0)), ["nic-uplink-up"]);
        assert_eq!(told(status(false, true, false, 0)), ["nic-uplink-removed"]);
        assert_eq!(told(status(false, true, true, 1)), ["nic-representor-removed"]);
        assert_eq!(told(status(false, true, false, 1)), ["nic-representor-back"]);
        // Made anew between two looks.
        assert_eq!(told(status(false, true, false, 2)), ["nic-representor-removed", "nic-representor-back"]);
    }
}
