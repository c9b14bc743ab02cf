//! `ringspan port`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringspan_protocol::nic::UplinkStatus;
use ringspan_protocol::{
    MigrationStatus, ModeStatus, NodeStatus, PolicyStatus, PortName, ReceiveWake, ShareStatus, ZeroCopyStatus,
};
use serde_json::{Value, json};

use super::client::Client;
use super::options::{Add, Port, api_word};
use super::table::Table;
use super::{Failure, print_json, word};
use crate::control::{PortEntry, PortStats};
use crate::qemu_args::QemuArgs;

pub(super) fn run(mut client: Client, command: Port) -> Result<(), Failure> {
    match command {
        Port::Add(add) => {
            let as_json = add.output.json;
            let added = client.call("port.add", params_of(&add))?;
            if as_json { print_json(&added) } else { Ok(()) }
        }
        Port::Remove { name, if_exists } => {
            client.call("port.remove", json!({ "name": name, "if_exists": if_exists })).map(drop)
        }
        Port::Attach(wish) => super::attach::attach(&mut client, &wish),
        Port::Detach { guest, nic, disturb, output } => {
            super::attach::detach(&mut client, &guest, nic, disturb, output)
        }
        Port::List(output) => {
            let ports = client.call("port.list", json!({}))?;
            if output.json { print_json(&ports) } else { list(&serde_json::from_value::<Vec<PortEntry>>(ports)?) }
        }
        Port::Show { name, output } => {
            let port = client.call("port.get", json!({ "name": name }))?;
            if output.json { print_json(&port) } else { show(&serde_json::from_value(port)?) }
        }
        Port::Stats { name, watch, extended, output } => {
            let params = stats_params(name.as_ref(), extended);
            if watch {
                return watch_stats(&mut client, &params);
            }
            let stats = client.call("port.stats", params)?;
            if output.json {
                print_json(&stats)
            } else {
                print_stats(&serde_json::from_value::<Vec<PortStats>>(stats)?)
            }
        }
        Port::Set { name, mtu, mac, promiscuous, allmulti, compat, vlan, min_rate, max_rate, mode } => {
            let mut params = json!({ "name": name });
            let mut put = |key: &str, value: Option<Value>| {
                if let Some(value) = value {
                    params[key] = value;
                }
            };
            put("mtu", mtu.map(Value::from));
            put("mac", mac.map(|mac| mac.to_string().into()));
            put("promiscuous", promiscuous.map(|policy| api_word(policy).into()));
            put("allmulti", allmulti.map(|policy| api_word(policy).into()));
            put("compat", compat.map(|compat| json!(compat)));
            put("vlan", vlan.map(Value::from));
            put("min_rate", min_rate.map(Value::from));
            put("max_rate", max_rate.map(Value::from));
            put("mode", mode.map(|mode| api_word(mode).into()));
            client.call("port.set", params).map(drop)
        }
        Port::Wait { name, phase, timeout, output } => {
            let timeout_ms = (timeout.max(0.0) * 1000.0) as u64;
            let params = json!({ "name": name, "phase": api_word(phase), "timeout_ms": timeout_ms });
            let port = client.call("port.wait", params)?;
            if output.json { print_json(&port) } else { Ok(()) }
        }
        Port::QemuArgs { name, libvirt, qemu_version, memory, no_memory, guest_queues, output } => {
            let mut params = json!({ "name": name, "memory": if no_memory { String::new() } else { memory } });
            if let Some(version) = qemu_version.or_else(installed_qemu) {
                params["qemu_version"] = version.into();
            }
            if let Some(queues) = guest_queues {
                params["guest_queues"] = queues.into();
            }
            let made = client.call("port.qemu-args", params)?;
            if output.json {
                return print_json(&made);
            }
            let made: QemuArgs = serde_json::from_value(made)?;
            let mut out = std::io::stdout();
            match libvirt {
                true => write!(out, "{}", made.libvirt)?,
                false => writeln!(out, "{}", made.args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" "))?,
            }
            Ok(())
        }
    }
}

fn params_of(add: &Add) -> Value {
    let mut params = json!({
        "name": add.name,
        "socket": add.socket_path,
        "role": api_word(add.role),
        "device": add.device,
        "queues": add.queues,
        "mtu": add.mtu,
        "promiscuous": api_word(add.promiscuous),
        "allmulti": api_word(add.allmulti),
        "offloads": add.offloads,
        "zero_copy": api_word(add.zero_copy),
        "mode": api_word(add.mode),
        "may_exist": add.may_exist,
        "max_rate": add.max_rate,
    });
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            params[key] = value;
        }
    };
    put("mac", add.mac.map(|mac| mac.to_string().into()));
    put("socket_owner", add.socket_owner.clone().map(Value::from));
    put("socket_mode", add.socket_mode.clone().map(Value::from));
    put("compat", add.compat.map(|compat| json!(compat)));
    put("zero_copy_from", add.zero_copy_from.map(Value::from));
    put("lane", add.lane.as_ref().map(|lane| lane.to_string().into()));
    params
}

fn stats_params(name: Option<&PortName>, extended: bool) -> Value {
    match name {
        Some(name) => json!({ "name": name, "extended": extended }),
        None => json!({ "extended": extended }),
    }
}

/// A word that a shell reads back as it is.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The first line of what the QEMU in PATH says of its version.
pub(super) fn installed_qemu() -> Option<String> {
    let output = Command::new("qemu-system-x86_64").arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

fn list(ports: &[PortEntry]) -> Result<(), Failure> {
    let mut table = Table::new(&["PORT", "LANE", "PHASE", "DEVICE", "QUEUES", "MTU", "SOCKET", "NOTE"]);
    for port in ports {
        table.row([
            port.name.to_string(),
            port.lane.as_ref().map_or_else(|| "-".into(), ToString::to_string),
            word(&port.phase),
            port.spec.device.to_string(),
            port.spec.queues.to_string(),
            port.spec.mtu.to_string(),
            port.spec.socket.display().to_string(),
            port.reason.clone().unwrap_or_default(),
        ]);
    }
    table.print()
}

fn show(port: &PortEntry) -> Result<(), Failure> {
    let spec = &port.spec;
    let mut rows = vec![
        ("port", port.name.to_string()),
        ("lane", port.lane.as_ref().map_or_else(|| "-".into(), ToString::to_string)),
        ("origin", word(&port.origin)),
        ("phase", word(&port.phase)),
    ];
    rows.extend(port.reason.clone().map(|reason| ("reason", reason)));
    rows.extend([
        ("socket", format!("{} ({})", spec.socket.display(), word(&spec.role))),
        ("device", spec.device.to_string()),
        ("queues", spec.queues.to_string()),
        ("mtu", spec.mtu.to_string()),
        ("compat", word(&spec.compat)),
        ("rate", if spec.max_rate == 0 { "no limit".into() } else { format!("{} Mbit/s each way", spec.max_rate) }),
        ("offloads", if spec.offloads { "offered" } else { "not offered" }.into()),
    ]);
    if let Some(status) = &port.status {
        let device = &status.device;
        let speed = device.speed_mbps.map_or_else(String::new, |mbps| format!(", {mbps} Mbit/s"));
        rows.push(("mode", word(&status.mode)));
        rows.extend(status.mode_reason.clone().map(|reason| ("not vdpa", reason)));
        rows.extend(status.shares.iter().map(|share| ("core", placement(share))));
        if status.mode == ModeStatus::Vdpa {
            rows.push(("CPU", "0: the device reads the rings, and no worker".into()));
        }
        rows.extend([
            ("features", format!("{:#x}", status.features)),
            ("active pairs", status.active_pairs.to_string()),
            ("guest memory", format!("{} MiB in {} regions", status.memory_bytes >> 20, status.memory_regions)),
            ("driver", device.driver.clone()),
            ("receive wake", wake(device.receive_wake)),
            ("spread", word(&device.spread)),
            ("link", format!("{}{speed}", if device.link_up { "up" } else { "down" })),
            ("device mac", device.mac.to_string()),
            ("promiscuous", policy(&device.promiscuous)),
            ("allmulti", policy(&device.allmulti)),
            ("tx checksum by", word(&device.offloads.tx_checksum)),
            ("tx TCP segments by", word(&device.offloads.tx_tcp_segments)),
            ("tx UDP segments by", word(&device.offloads.tx_udp_segments)),
            ("rx checksum by", word(&device.offloads.rx_checksum)),
            ("zero copy", zero_copy(&status.zero_copy)),
            ("migratable", migration(&status.migration)),
        ]);
        rows.extend(nodes(&status.nodes).map(|nodes| ("numa nodes", nodes)));
        rows.extend(device.members.iter().map(|one| ("member", member(one))));
    }
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for (key, value) in rows {
        writeln!(out, "{key:<width$}  {value}")?;
    }
    Ok(())
}

/// What wakes a worker that sleeps; a timer with how long it may take.
fn wake(wake: ReceiveWake) -> String {
    match wake {
        ReceiveWake::Timer => format!("timer, {} ms at most", ReceiveWake::LONGEST_TIMER.as_millis()),
        wake => word(&wake),
    }
}

/// What a core has of a port.
fn placement(share: &ShareStatus) -> String {
    let list = |numbers: &[u16]| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
    let pairs = if share.pairs.is_empty() { String::new() } else { format!(", guest pair {}", list(&share.pairs)) };
    format!("{} (device queue {}{pairs})", share.core, list(&share.queues))
}

/// Where a port's memory is, on a machine of several NUMA nodes.
fn nodes(status: &NodeStatus) -> Option<String> {
    let text = |node: Option<u16>| node.map_or_else(|| "any".into(), |node| node.to_string());
    let NodeStatus { guest, device, buffers } = *status;
    let known = [guest, device, buffers].iter().any(Option::is_some);
    known.then(|| {
        let guest = guest.map_or_else(|| "not known yet".into(), |node| node.to_string());
        format!("guest {guest}, device {}, packet buffers {}", text(device), text(buffers))
    })
}

/// A device of a bond.
fn member(one: &UplinkStatus) -> String {
    format!("{}: {}{}", one.device, if one.up { "up" } else { "down" }, if one.active { ", sends" } else { "" })
}

fn policy(status: &PolicyStatus) -> String {
    match status {
        PolicyStatus::On => "on".into(),
        PolicyStatus::Off => "off".into(),
        PolicyStatus::Refused(reason) => format!("refused by the device: {reason}"),
    }
}

fn zero_copy(status: &ZeroCopyStatus) -> String {
    match (status.from, &status.reason) {
        (Some(from), _) => format!("from {from} bytes"),
        (None, Some(reason)) => format!("off: {reason}"),
        (None, None) => "off".into(),
    }
}

fn migration(status: &MigrationStatus) -> String {
    match (&status.reason, status.logging) {
        (_, true) => format!("under way, {} pages logged", status.pages),
        (Some(reason), _) => format!("no: {reason}"),
        (None, _) => "yes".into(),
    }
}

fn print_stats(stats: &[PortStats]) -> Result<(), Failure> {
    let headings = [
        "PORT",
        "DIRECTION",
        "QUEUE",
        "RECEIVED",
        "SENT",
        "FULL",
        "NO-RING",
        "LONG",
        "BAD",
        "NIC-FULL",
        "NO-BUF",
        "OFFLOAD",
        "RATE",
        "LOST",
        "BYTES",
        "NOT-COPIED",
    ];
    let mut table = Table::new(&headings);
    for port in stats {
        let name = if port.current { port.name.to_string() } else { format!("{} (last known)", port.name) };
        let (counters, totals) = (&port.counters, &port.totals);
        let sides = [
            ("from-guest", &counters.from_guest, &totals.from_guest),
            ("to-guest", &counters.to_guest, &totals.to_guest),
        ];
        for (direction, queues, total) in sides {
            let queues = queues.iter().enumerate().map(|(index, queue)| (index.to_string(), queue));
            for (queue, counts) in queues.chain([("all".to_owned(), total)]) {
                let drops = &counts.drops;
                let numbers = [
                    counts.received,
                    counts.sent,
                    drops.guest_ring_full,
                    drops.no_ring,
                    drops.too_long,
                    drops.malformed_chain,
                    drops.nic_full,
                    drops.no_buffers,
                    drops.bad_offload,
                    drops.over_rate,
                    drops.lost,
                    counts.sent_bytes,
                    counts.zero_copied,
                ];
                let cells = [name.clone(), direction.into(), queue];
                table.row(cells.into_iter().chain(numbers.iter().map(u64::to_string)));
            }
        }
    }
    table.print()?;
    let mut out = std::io::stdout().lock();
    for port in stats.iter().filter(|port| port.counters.unsent > 0) {
        let unsent = port.counters.unsent;
        writeln!(
            out,
            "\n{}: {unsent} of the frames sent were left in the vDPA device when its rings changed hands",
            port.name
        )?;
    }
    for port in stats.iter().filter(|port| !port.counters.device.is_empty()) {
        writeln!(out, "\n{} device", port.name)?;
        for (name, value) in port.counters.device.iter().filter(|(_, value)| *value > 0) {
            writeln!(out, "  {name} {value}")?;
        }
    }
    Ok(())
}

/// Rates, each second, until the daemon or the reader goes.
fn watch_stats(client: &mut Client, params: &Value) -> Result<(), Failure> {
    let mut before: Option<(Instant, Vec<PortStats>)> = None;
    loop {
        let now: Vec<PortStats> = serde_json::from_value(client.call("port.stats", params.clone())?)?;
        let at = Instant::now();
        if let Some((then, old)) = &before {
            let seconds = at.duration_since(*then).as_secs_f64();
            let rate = |now: u64, old: u64| format!("{:.0}", now.saturating_sub(old) as f64 / seconds);
            let mut table = Table::new(&[
                "PORT",
                "FROM-GUEST/s",
                "DROPPED/s",
                "TO-GUEST/s",
                "DROPPED/s",
                "Mbit/s OUT",
                "Mbit/s IN",
            ]);
            for port in &now {
                let Some(old) = old.iter().find(|old| old.name == port.name) else { continue };
                let ((out, back), (out_old, back_old)) =
                    ((&port.totals.from_guest, &port.totals.to_guest), (&old.totals.from_guest, &old.totals.to_guest));
                let mbit = |now: u64, old: u64| rate(now * 8 / 1_000_000, old * 8 / 1_000_000);
                table.row([
                    port.name.to_string(),
                    rate(out.sent, out_old.sent),
                    rate(out.drops.total(), out_old.drops.total()),
                    rate(back.sent, back_old.sent),
                    rate(back.drops.total(), back_old.drops.total()),
                    mbit(out.sent_bytes, out_old.sent_bytes),
                    mbit(back.sent_bytes, back_old.sent_bytes),
                ]);
            }
            table.print()?;
            writeln!(std::io::stdout())?;
        }
        before = Some((at, now));
        std::thread::sleep(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_is_said_with_its_length() {
        let said = [ReceiveWake::Interrupt, ReceiveWake::Event, ReceiveWake::Timer].map(wake);
        assert_eq!(said, ["interrupt", "event", "timer, 2 ms at most"]);
    }
}
