//! A NIC is plugged into a guest that runs and taken out of it again, by what `ringspan port attach` says must be executed over QMP: with
//! split rings, and then with packed ones.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::{Daemon, tap_device};
use ringspan_testkit::guest::Kind;
use ringspan_testkit::needs;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::qemu::{Guest, GuestSpec, split_arguments};
use ringspan_testkit::scene::{GUEST, HOST};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:07:01";

fn attach(daemon: &Daemon) -> Result<Value> {
    let words = ["--device", "soft:nic0/vf0", "--mac", MAC, "--memory", "384M", "--bus", "port0", "--json"];
    let said = daemon.ok(&[&["port", "attach", "g1"], &words[..]].concat())?;
    Ok(serde_json::from_str::<Value>(&said)?["qemu"].clone())
}

/// How many NICs are attached.
fn attached(daemon: &Daemon) -> Result<usize> {
    let list = daemon.call("attachment.list", json!({}))?;
    Ok(list.as_array().with_context(|| format!("no list: {list}"))?.len())
}

fn steps<'a>(said: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    said[name].as_array().with_context(|| format!("no {name} in {said}"))
}

/// What plugs the NIC in, with rings of a format: the only thing that the caller says of his own.
fn plug(said: &Value, rings: Kind) -> Result<Vec<Value>> {
    let mut all = steps(said, "plug")?.clone();
    let nic = all.iter_mut().find(|step| step["execute"]["execute"] == "device_add").context("no device_add")?;
    nic["execute"]["arguments"]["packed"] = json!(rings == Kind::Packed);
    Ok(all)
}

/// The guest has this many NICs.
fn has_nics(guest: &mut Guest, count: usize) -> Result<()> {
    guest.sh_for(
        LONG,
        &format!("until [ $(ls -d /sys/class/net/eth* 2>/dev/null | wc -l) = {count} ]; do sleep 0.05; done"),
    )?;
    Ok(())
}

#[test]
fn a_nic_is_plugged_into_a_running_guest_and_unplugged_as_was_said() -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let net = Netns::new("hotplug")?;
    net.tap("tap0", &format!("{HOST}/24"), 1500)?;
    let daemon = Daemon::start("[dataplane]\ncores = [0]\nmemory_mib = 256\n", Some(&net))?;
    daemon.call("nic.add", json!({ "name": "nic0", "vfs": 1, "uplinks": [tap_device("tap0")], "mode": "legacy" }))?;
    let mut said = attach(&daemon)?;
    let mut nics: Vec<String> = serde_json::from_value(said["memory"].clone())?;
    nics.extend(split_arguments("-device pcie-root-port,id=port0,chassis=1"));
    let mut guest = Guest::boot(&GuestSpec { nics, ..GuestSpec::default() })?;
    has_nics(&mut guest, 0)?;
    let mut qemu = guest.monitor.converse(LONG)?;
    for (round, rings) in [Kind::Split, Kind::Packed].into_iter().enumerate() {
        let all = plug(&said, rings)?;
        ensure!(all.len() == 3, "{all:?}");
        all.iter().try_for_each(|one| qemu.follow(&daemon, one)).with_context(|| format!("round {round}"))?;
        has_nics(&mut guest, 1)?;
        let mac = guest.sh("cat /sys/class/net/eth*/address")?;
        ensure!(mac.trim() == MAC, "the guest's address is {mac}");
        guest.sh(&format!(
            "cd /sys/class/net; for n in eth*; do ip link set $n up; ip address add {GUEST}/24 dev $n; done"
        ))?;
        net.wait_ping(GUEST, LONG).with_context(|| daemon.story())?;
        // A letter for each feature bit that the guest's driver took.
        let bits = guest.sh("cat /sys/class/net/eth*/device/features")?;
        let packed = bits.trim().chars().nth(34) == Some('1');
        ensure!(packed == (rings == Kind::Packed), "{rings:?} rings were wanted, the guest took {bits}");

        if round == 0 {
            // Not before the guest has let go of it.
            let refused = daemon.cli(&["port", "detach", "g1"])?;
            let says = ["its guest is connected (driver-ready)", "DEVICE_DELETED", "netdev_del", "--disturb"];
            ensure!(refused.code == 1 && says.iter().all(|part| refused.text.contains(part)), "{}", refused.text);
            ensure!(attached(&daemon)? == 1, "a detach that was refused has detached");
        }

        let all = steps(&said, "unplug")?;
        let event = &all[1]["wait"];
        ensure!(event["event"] == "DEVICE_DELETED", "{all:?}");
        // A guest that does not run cannot let go of it, though the command is answered.
        qemu.execute(&json!({ "execute": "stop" }))?;
        qemu.follow(&daemon, &all[0])?;
        let devices =
            qemu.execute(&json!({ "execute": "qom-list", "arguments": { "path": "/machine/peripheral" } }))?;
        ensure!(devices.to_string().contains("nic-g1-nic0"), "it went while the guest stood still: {devices}");
        ensure!(!qemu.was_told(event) && attached(&daemon)? == 1, "the guest has let go of it while it stood still");
        qemu.execute(&json!({ "execute": "cont" }))?;
        for (number, one) in all.iter().enumerate().skip(1) {
            qemu.follow(&daemon, one).with_context(|| format!("round {round}, step {number}"))?;
            let last = number + 1 == all.len();
            ensure!(attached(&daemon)? == usize::from(!last), "after {one}: {} are attached", attached(&daemon)?);
        }
        has_nics(&mut guest, 0)?;
        if round == 0 {
            // Nothing of it is left in the guest: the same names are taken again.
            said = attach(&daemon)?;
            qemu.forget();
        }
    }
    Ok(())
}
