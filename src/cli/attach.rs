//! `ringspan port attach`, `ringspan port detach` and `ringspan attachment`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use ringspan_protocol::{LaneName, MacAddress};
use serde_json::{Map, Value, json};

use super::client::Client;
use super::options::{Output, RoleWord, api_word};
use super::port::{installed_qemu, quoted};
use super::table::Table;
use super::{Failure, print_json, word};
use crate::attach::guest::Qmp;
use crate::attach::sync::{Finding, Synced};
use crate::control::{Attached, AttachmentEntry, GuestStats};

#[derive(Debug, Args)]
pub(super) struct Attach {
    /// The guest's id.
    guest: String,
    /// Which of the guest's NICs.
    #[arg(long, default_value_t = 0, value_name = "N")]
    nic: u16,
    /// How the guest gets the VF.
    #[arg(long, default_value = "vhost")]
    mode: ModeWord,
    /// This VF and no other: its id, its address, its interface, or soft:NIC/vfN.
    #[arg(long, conflicts_with_all = ["model", "wire"])]
    device: Option<String>,
    /// A free VF of this model.
    #[arg(long)]
    model: Option<String>,
    /// A free VF on this wire: its PF's interface, the bridge that this is on, or a software NIC.
    #[arg(long)]
    wire: Option<String>,
    /// The guest's NUMA node: VFs near to it are taken first.
    #[arg(long, value_name = "N")]
    numa_node: Option<u32>,
    /// The guest's MAC address; made from the machine's and the port's name when not given.
    #[arg(long)]
    mac: Option<MacAddress>,
    /// Its VLAN; 0: none.
    #[arg(long, default_value_t = 0)]
    vlan: u16,
    /// The bridge for its representor; that of the uplink when not given.
    #[arg(long)]
    bridge: Option<String>,
    /// What OVN knows it by.
    #[arg(long, value_name = "ID")]
    iface_id: Option<String>,
    /// Least rate from the guest that the NIC keeps for it, in Mbit/s; 0: none.
    #[arg(long, default_value_t = 0, value_name = "MBITS")]
    min_rate: u32,
    /// Most rate in each direction, in Mbit/s; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "MBITS")]
    max_rate: u32,
    /// Queue pairs, 1 to 32.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// The MTU in bytes, 68 to 9216.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Path of the vhost-user socket; in the daemon's run directory when not given.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Which side listens there.
    #[arg(long, default_value = "server")]
    role: RoleWord,
    /// Owner of the listening socket.
    #[arg(long, value_name = "USER:GROUP")]
    socket_owner: Option<String>,
    /// Permission bits of the listening socket, octal.
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<String>,
    /// The lane that carries it.
    #[arg(long)]
    lane: Option<LaneName>,
    /// For this version of QEMU; that of qemu-system-x86_64 in PATH when not given.
    #[arg(long, value_name = "X.Y")]
    qemu_version: Option<String>,
    /// Size of the guest's memory.
    #[arg(long, default_value = "512M")]
    memory: String,
    /// Queue pairs of the guest's NIC; the port's when not given.
    #[arg(long, value_name = "N")]
    guest_queues: Option<u16>,
    /// Whether the guest's memory is shared; false is refused before anything is touched.
    #[arg(long, value_name = "BOOL")]
    memory_shared: Option<bool>,
    /// The bus of a running guest that the NIC is plugged into, a root port's on q35 (--print plug).
    #[arg(long, value_name = "ID")]
    bus: Option<String>,
    /// The process of a guest that runs: whether its memory is shared is looked up there.
    #[arg(long, value_name = "PID", conflicts_with = "memory_shared")]
    qemu_pid: Option<u32>,
    /// What to print: QEMU's arguments, a libvirt domain's elements, or what is executed over QMP to plug or unplug it.
    #[arg(long, default_value = "args", conflicts_with = "json")]
    print: PrintWord,
    #[command(flatten)]
    output: Output,
}

/// The words of a mode.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ModeWord {
    /// As a virtio NIC.
    Vhost,
    /// Whole, by vfio-pci.
    Passthrough,
}

/// What of the answer is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PrintWord {
    Args,
    Memory,
    Libvirt,
    Plug,
    Unplug,
}

#[derive(Debug, Subcommand)]
pub(super) enum Attachment {
    /// List guests' NICs.
    List(Output),
    /// Compare them with the agent's guests, and with the host. Exit code 1: something is not as it should be.
    Sync {
        /// The guests that there are: GUEST, or GUEST=0,1 for just these of its NICs.
        guests: Vec<String>,
        /// What guests' NICs should be: a file with a JSON list of what `port.attach` takes. Guests in it need not be named besides.
        #[arg(long, value_name = "FILE")]
        wanted: Option<PathBuf>,
        /// Detach what is orphaned, make what drifted as it should be, and attach what is missing of the wanted ones.
        #[arg(long)]
        mend: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Show what guests' NICs counted, from the guest's view.
    Stats {
        /// Of this guest alone.
        guest: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// Those of these fields that have a value.
fn given(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Map<String, Value> {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn params(wish: &Attach) -> Value {
    let qemu = given([
        ("qemu_version", wish.qemu_version.clone().or_else(installed_qemu).map(Value::from)),
        ("memory", Some(wish.memory.clone().into())),
        ("guest_queues", wish.guest_queues.map(Value::from)),
        ("memory_shared", wish.memory_shared.map(Value::from)),
        ("bus", wish.bus.clone().map(Value::from)),
        ("qemu_pid", wish.qemu_pid.map(Value::from)),
    ]);
    Value::Object(given([
        ("guest", Some(wish.guest.clone().into())),
        ("nic", Some(wish.nic.into())),
        ("mode", Some(api_word(wish.mode).into())),
        ("device", wish.device.clone().map(Value::from)),
        ("model", wish.model.clone().map(Value::from)),
        ("wire", wish.wire.clone().map(Value::from)),
        ("numa_node", wish.numa_node.map(Value::from)),
        ("mac", wish.mac.map(|mac| mac.to_string().into())),
        ("vlan", Some(wish.vlan.into())),
        ("bridge", wish.bridge.clone().map(Value::from)),
        ("iface_id", wish.iface_id.clone().map(Value::from)),
        ("min_rate", Some(wish.min_rate.into())),
        ("max_rate", Some(wish.max_rate.into())),
        ("queues", Some(wish.queues.into())),
        ("mtu", Some(wish.mtu.into())),
        ("socket", wish.socket.as_ref().map(|path| json!(path))),
        ("role", Some(api_word(wish.role).into())),
        ("socket_owner", wish.socket_owner.clone().map(Value::from)),
        ("socket_mode", wish.socket_mode.clone().map(Value::from)),
        ("lane", wish.lane.as_ref().map(|lane| lane.to_string().into())),
        ("qemu", Some(Value::Object(qemu))),
    ]))
}

pub(super) fn attach(client: &mut Client, wish: &Attach) -> Result<(), Failure> {
    let answer = client.call("port.attach", params(wish))?;
    if wish.output.json {
        return print_json(&answer);
    }
    let Attached { qemu, .. } = serde_json::from_value(answer)?;
    let mut out = std::io::stdout();
    let shell = |args: &[String]| args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" ");
    let mut lines = |steps: &[Qmp]| -> Result<(), Failure> {
        for step in steps {
            match step {
                Qmp::Execute(_) => writeln!(out, "{step}")?,
                Qmp::Wait(_) | Qmp::Call(_) => writeln!(out, "# {step}")?,
            }
        }
        Ok(())
    };
    match wish.print {
        PrintWord::Plug => return lines(&qemu.plug),
        PrintWord::Unplug => return lines(&qemu.unplug),
        PrintWord::Args => writeln!(out, "{}", shell(&qemu.args))?,
        PrintWord::Memory => writeln!(out, "{}", shell(&qemu.memory))?,
        PrintWord::Libvirt => write!(out, "{}", qemu.libvirt)?,
    }
    Ok(())
}

pub(super) fn detach(client: &mut Client, guest: &str, nic: u16, disturb: bool, output: Output) -> Result<(), Failure> {
    let answer = client.call("port.detach", json!({ "guest": guest, "nic": nic, "disturb": disturb }))?;
    if output.json { print_json(&answer) } else { Ok(()) }
}

/// `GUEST`, or `GUEST=0,1`.
fn guest(text: &str) -> Result<Value, Failure> {
    let Some((guest, nics)) = text.split_once('=') else { return Ok(json!({ "guest": text })) };
    let numbers = nics.split(',').filter(|nic| !nic.is_empty()).map(str::parse);
    let nics: Vec<u16> = numbers
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::Usage(format!("{text:?}: write GUEST, or GUEST=0,1 with the numbers of its NICs")))?;
    Ok(json!({ "guest": guest, "nics": nics }))
}

/// A list of what `port.attach` takes.
fn wanted_in(file: &Path) -> Result<Vec<Value>, Failure> {
    let failed = |why: String| Failure::Failed(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(format!("it is no JSON list: {error}")))
}

/// Puts a NIC to its guest, who may be named already. One without a guest is left to the daemon, which refuses it.
fn add_wanted(guests: &mut Vec<Value>, wanted: Value) {
    let id = wanted["guest"].clone();
    let at = guests.iter().position(|guest| guest["guest"] == id).unwrap_or_else(|| {
        guests.push(json!({ "guest": id }));
        guests.len() - 1
    });
    match guests[at].get_mut("attach").and_then(Value::as_array_mut) {
        Some(list) => list.push(wanted),
        None => guests[at]["attach"] = json!([wanted]),
    }
}

pub(super) fn run(mut client: Client, command: Attachment) -> Result<(), Failure> {
    match command {
        Attachment::List(output) => {
            let list = client.call("attachment.list", json!({}))?;
            if output.json {
                return print_json(&list);
            }
            let mut table = Table::new(&["GUEST", "NIC", "MODE", "STAGE", "DEVICE", "MAC", "VLAN", "BRIDGE", "NOTE"]);
            for one in serde_json::from_value::<Vec<AttachmentEntry>>(list)? {
                table.row([
                    one.guest,
                    one.nic.to_string(),
                    word(&one.mode),
                    word(&one.stage),
                    one.device,
                    one.mac.to_string(),
                    one.vlan.to_string(),
                    one.bridge.unwrap_or_else(|| "-".into()),
                    one.problem.unwrap_or_default(),
                ]);
            }
            table.print()
        }
        Attachment::Sync { guests, wanted, mend, output } => {
            let mut guests = guests.iter().map(|text| guest(text)).collect::<Result<Vec<_>, _>>()?;
            for wanted in wanted.as_deref().map(wanted_in).transpose()?.into_iter().flatten() {
                add_wanted(&mut guests, wanted);
            }
            let answer = client.call("attachment.sync", json!({ "guests": guests, "mend": mend }))?;
            let synced: Synced = serde_json::from_value(answer.clone())?;
            if output.json {
                print_json(&answer)?
            } else {
                print_synced(&synced)?
            }
            let all = [&synced.orphaned, &synced.missing, &synced.drifted].into_iter().flatten();
            match all.filter(|one| !one.mended).count() {
                0 => Ok(()),
                1 => Err(Failure::Failed("1 NIC of a guest is not as it should be".into())),
                left => Err(Failure::Failed(format!("{left} NICs of guests are not as they should be"))),
            }
        }
        Attachment::Stats { guest, output } => {
            let params = guest.map_or_else(|| json!({}), |guest| json!({ "guest": guest }));
            let stats = client.call("attachment.stats", params)?;
            if output.json {
                return print_json(&stats);
            }
            let mut table =
                Table::new(&["GUEST", "NIC", "SENT", "BYTES", "DROPPED", "RECEIVED", "BYTES", "DROPPED", "NOTE"]);
            for GuestStats { guest, nic, current, counted, .. } in serde_json::from_value::<Vec<GuestStats>>(stats)? {
                let numbers = [
                    counted.tx_packets,
                    counted.tx_bytes,
                    counted.tx_dropped,
                    counted.rx_packets,
                    counted.rx_bytes,
                    counted.rx_dropped,
                ];
                let note = if current { String::new() } else { "not of now".into() };
                table.row(
                    [guest, nic.to_string()].into_iter().chain(numbers.map(|number| number.to_string())).chain([note]),
                );
            }
            table.print()
        }
    }
}

fn print_synced(synced: &Synced) -> Result<(), Failure> {
    let mut table = Table::new(&["GUEST", "NIC", "STATE", "DEVICE", "WHAT", "MENDED"]);
    for (state, list) in [("orphaned", &synced.orphaned), ("missing", &synced.missing), ("drifted", &synced.drifted)] {
        for Finding { guest, nic, target, what, mended, error } in list {
            let mended = match error {
                Some(error) => error.message.clone(),
                None => if *mended { "yes" } else { "no" }.to_owned(),
            };
            let device = target.clone().unwrap_or_else(|| "-".into());
            table.row([guest.clone(), nic.to_string(), state.to_owned(), device, what.join("; "), mended]);
        }
    }
    table.print()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_goes_to_its_guest() {
        let mut guests = vec![json!({ "guest": "g1", "nics": [0] })];
        for (guest, nic) in [("g1", 1), ("g2", 0), ("g1", 2)] {
            add_wanted(&mut guests, json!({ "guest": guest, "nic": nic }));
        }
        let one = |guest: &str, nic: u16| json!({ "guest": guest, "nic": nic });
        let expected = [
            json!({ "guest": "g1", "nics": [0], "attach": [one("g1", 1), one("g1", 2)] }),
            json!({ "guest": "g2", "attach": [one("g2", 0)] }),
        ];
        assert_eq!(guests, expected);
    }
}
