//! What a file must fulfil beyond its grammar. Every refusal carries the offset where it stands.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringspan_protocol::{DeviceSpec, LaneName};
use toml::Spanned;

use super::{
    Config, ConfigNic, ConfigPort, Control, ControlTable, DEFAULT_SOCKET, DEFAULT_STATE_DIR, File, HostSettings,
    HostTable,
};
use super::{HostCores, LaneSettings, Log, MAIN_LANE, Ovs, OvsTable};
use crate::nic_request::NicRequest;
use crate::port_request::{PortRequest, check_socket, parse_group, parse_mode};

/// Default of `memory_mib`.
const DEFAULT_MEMORY_MIB: u32 = 256;
/// Default of `rebalance_ms`, and its bounds.
const DEFAULT_REBALANCE_MS: u32 = 1000;
const REBALANCE_MS: std::ops::RangeInclusive<u32> = 10..=60_000;
/// Default of `ovs.max_flows`, and its bounds: OVS prints 440 bytes for each, and spends 30 us.
const MAX_FLOWS: usize = 50_000;
const FLOWS: std::ops::RangeInclusive<usize> = 1..=250_000;
/// Default of `ovs.grace_ms`, and its bounds.
const GRACE_MS: u64 = 10_000;
const GRACE: std::ops::RangeInclusive<u64> = 0..=3_600_000;
/// What DPDK itself needs, in MiB, before there is any packet.
const LANE_BASE_MIB: u32 = 16;
/// The least that one device queue takes, in MiB: two rings of 512 descriptors, a buffer of 2 KiB behind half of them.
const QUEUE_MIB: u32 = 1;

/// Byte offset in the file, and what is wrong there.
type Refusal = (usize, String);

fn at<T>(value: &Spanned<T>, message: impl Into<String>) -> Refusal {
    (value.span().start, message.into())
}

pub(super) fn check(
    file: &Path,
    read: File,
    host: &HostCores,
    line_of: impl Fn(usize) -> usize,
) -> Result<Config, Refusal> {
    let control = control(&read.control)?;
    let lanes = lanes(&read, host)?;
    for lane in &lanes {
        let socket = crate::lanes::socket_path(&control.run_dir, &lane.name);
        check_socket(&socket).map_err(|message| {
            let key = read.control.run_dir.as_ref().or(read.control.socket.as_ref());
            let message = format!("lane {}: {message}: give control.run_dir a shorter path", lane.name);
            (key.map_or(0, |key| key.span().start), message)
        })?;
    }
    nics(&read.nic, &lanes)?;
    ports(&read.port, &lanes, &control)?;
    memory(&read, &lanes)?;
    let ovs = ovs(&read.ovs)?;
    let host = host_settings(&read.host)?;
    let nics = read.nic.into_iter();
    let nics = nics.map(|nic| ConfigNic { line: line_of(nic.span().start), request: nic.into_inner() }).collect();
    let ports = read.port.into_iter();
    let ports = ports.map(|port| ConfigPort { line: line_of(port.span().start), request: port.into_inner() }).collect();
    Ok(Config {
        file: file.to_owned(),
        control,
        log: Log { format: read.log.format, level: read.log.level },
        ovs,
        host,
        lanes,
        nics,
        ports,
    })
}

fn control(table: &ControlTable) -> Result<Control, Refusal> {
    let path = |key: &str, value: &Option<Spanned<PathBuf>>, default: PathBuf| match value {
        Some(path) if path.get_ref().is_absolute() => Ok(path.get_ref().clone()),
        Some(path) => Err(at(path, format!("control.{key} {:?} is not absolute: begin it with /", path.get_ref()))),
        None => Ok(default),
    };
    let group = |key: &str, value: &Option<Spanned<String>>| match value {
        Some(name) => parse_group(name.get_ref()).map(|gid| Some(gid.as_raw())).ok_or_else(|| {
            at(name, format!("control.{key}: there is no group {:?} here: create it, or name another", name.get_ref()))
        }),
        None => Ok(None),
    };
    let socket = path("socket", &table.socket, DEFAULT_SOCKET.into())?;
    if let Err(message) = check_socket(&socket) {
        return Err((table.socket.as_ref().map_or(0, |s| s.span().start), format!("control.{message}")));
    }
    let beside_socket = socket.parent().unwrap_or(Path::new("/")).to_owned();
    let run_dir = path("run_dir", &table.run_dir, beside_socket)?;
    let readers = group("readers", &table.readers)?;
    let socket_mode = match &table.socket_mode {
        Some(mode) => {
            parse_mode(mode.get_ref()).map_err(|message| at(mode, format!("control.socket_mode: {message}")))?
        }
        None if readers.is_some() => 0o666,
        None => 0o660,
    };
    Ok(Control {
        socket,
        socket_mode,
        state_dir: path("state_dir", &table.state_dir, DEFAULT_STATE_DIR.into())?,
        run_dir,
        group: group("group", &table.group)?,
        readers,
        lane_program: match &table.lane_program {
            Some(_) => Some(path("lane_program", &table.lane_program, PathBuf::new())?),
            None => None,
        },
    })
}

fn host_settings(table: &HostTable) -> Result<HostSettings, Refusal> {
    for (key, path) in [("sysfs", &table.sysfs), ("pci_ids", &table.pci_ids)] {
        if let Some(path) = path.as_ref().filter(|path| !path.get_ref().is_absolute()) {
            return Err(at(path, format!("host.{key} {:?} is not absolute: begin it with /", path.get_ref())));
        }
    }
    if let Some(id) = table.id.as_ref().filter(|id| id.get_ref().is_empty() || id.get_ref().len() > 128) {
        return Err(at(id, "host.id has 1 to 128 characters: give the id that the agent has for this host"));
    }
    Ok(HostSettings {
        id: table.id.as_ref().map(|id| id.get_ref().clone()),
        sysfs: table.sysfs.as_ref().map_or_else(|| "/sys".into(), |path| path.get_ref().clone()),
        pci_ids: table.pci_ids.as_ref().map(|path| path.get_ref().clone()),
    })
}

fn ovs(table: &OvsTable) -> Result<Ovs, Refusal> {
    if let Some(path) = table.run_dir.as_ref().filter(|path| !path.get_ref().is_absolute()) {
        return Err(at(path, format!("ovs.run_dir {:?} is not absolute: begin it with /", path.get_ref())));
    }
    if let Some(command) = table.restart_command.as_ref().filter(|command| command.get_ref().is_empty()) {
        return Err(at(command, "ovs.restart_command is empty: give the program and its arguments"));
    }
    fn bounded<T: PartialOrd + Copy + std::fmt::Display>(
        key: &str,
        value: &Option<Spanned<T>>,
        default: T,
        bounds: std::ops::RangeInclusive<T>,
    ) -> Result<T, Refusal> {
        match value {
            Some(value) if !bounds.contains(value.get_ref()) => {
                let (has, low, high) = (value.get_ref(), bounds.start(), bounds.end());
                Err(at(value, format!("ovs.{key} is {has}: give {low} to {high}")))
            }
            Some(value) => Ok(*value.get_ref()),
            None => Ok(default),
        }
    }
    Ok(Ovs {
        run_dir: table.run_dir.as_ref().map(|path| path.get_ref().clone()),
        restart_command: table.restart_command.as_ref().map(|command| command.get_ref().clone()),
        max_flows: bounded("max_flows", &table.max_flows, MAX_FLOWS, FLOWS)?,
        grace: Duration::from_millis(bounded("grace_ms", &table.grace_ms, GRACE_MS, GRACE)?),
        kernel_tunnels: table.kernel_tunnels,
    })
}

fn lanes(read: &File, host: &HostCores) -> Result<Vec<LaneSettings>, Refusal> {
    let main = MAIN_LANE.parse::<LaneName>().map_err(|error| (0, error.to_string()))?;
    let memory = |value: &Option<Spanned<u32>>| match value {
        Some(mib) if *mib.get_ref() < LANE_BASE_MIB => {
            Err(at(mib, format!("memory_mib is {}: a lane needs at least {LANE_BASE_MIB}", mib.get_ref())))
        }
        Some(mib) => Ok(*mib.get_ref()),
        None => Ok(DEFAULT_MEMORY_MIB),
    };
    let dataplane = &read.dataplane;
    let cores = match &dataplane.cores {
        Some(cores) => checked_cores(cores, host)?,
        None => vec![host.online.first().copied().unwrap_or(0)],
    };
    let mut lanes = vec![LaneSettings {
        name: main,
        cores,
        memory_mib: memory(&dataplane.memory_mib)?,
        huge_pages: dataplane.huge_pages,
        rebalance_ms: rebalance(&dataplane.rebalance_ms, DEFAULT_REBALANCE_MS)?,
        busy_poll: dataplane.busy_poll,
    }];
    for table in &read.lane {
        let lane = table.get_ref();
        if lane.name.as_str() == MAIN_LANE {
            return Err(at(table, "the lane \"main\" is described by [dataplane]: give this [[lane]] another name"));
        }
        if lanes.iter().any(|other| other.name == lane.name) {
            return Err(at(table, format!("there are two lanes {}: give one another name", lane.name)));
        }
        lanes.push(LaneSettings {
            name: lane.name.clone(),
            cores: checked_cores(&lane.cores, host)?,
            memory_mib: memory(&lane.memory_mib)?,
            huge_pages: lane.huge_pages.unwrap_or(dataplane.huge_pages),
            rebalance_ms: rebalance(&lane.rebalance_ms, lanes[0].rebalance_ms)?,
            busy_poll: lane.busy_poll.unwrap_or(dataplane.busy_poll),
        });
    }
    Ok(lanes)
}

/// Shorter intervals measure noise, longer ones come too late.
fn rebalance(value: &Option<Spanned<u32>>, default: u32) -> Result<u32, Refusal> {
    match value {
        Some(ms) if *ms.get_ref() != 0 && !REBALANCE_MS.contains(ms.get_ref()) => {
            let (ms_given, least, most) = (ms.get_ref(), REBALANCE_MS.start(), REBALANCE_MS.end());
            Err(at(ms, format!("rebalance_ms is {ms_given}: choose {least} to {most}, or 0 for never")))
        }
        Some(ms) => Ok(*ms.get_ref()),
        None => Ok(default),
    }
}

fn checked_cores(cores: &Spanned<Vec<u16>>, host: &HostCores) -> Result<Vec<u16>, Refusal> {
    let list = cores.get_ref();
    if list.is_empty() {
        return Err(at(cores, "cores is empty: a lane needs at least one"));
    }
    for (index, core) in list.iter().enumerate() {
        if !host.online.contains(core) {
            let online = &host.online;
            return Err(at(cores, format!("core {core} does not exist or is offline: this machine has {online:?}")));
        }
        if list[..index].contains(core) {
            return Err(at(cores, format!("core {core} is listed twice: a core has one worker of a lane")));
        }
    }
    Ok(list.clone())
}

/// What two ports may not share: the lane counts for a device that exists only within one.
pub(crate) fn device_keys(device: &DeviceSpec, lane: Option<&LaneName>) -> Vec<(Option<LaneName>, String)> {
    device.parts().iter().map(|part| device_key(part, lane)).collect()
}

/// The same for a device that is none of several.
fn device_key(device: &DeviceSpec, lane: Option<&LaneName>) -> (Option<LaneName>, String) {
    match device {
        // A cable lies in one lane, and its name means the same cable everywhere.
        DeviceSpec::Pci { .. } | DeviceSpec::VhostVdpa { .. } | DeviceSpec::Vdpa { .. } | DeviceSpec::Patch { .. } => {
            (None, device.identity())
        }
        DeviceSpec::Vdev { .. } | DeviceSpec::Soft { .. } | DeviceSpec::Bond { .. } => {
            (lane.cloned(), device.identity())
        }
    }
}

fn ports(ports: &[Spanned<PortRequest>], lanes: &[LaneSettings], control: &Control) -> Result<(), Refusal> {
    let (mut names, mut sockets, mut devices) = (HashMap::new(), HashMap::new(), HashMap::new());
    let mut interfaces = HashMap::new();
    let mut ends = HashMap::<_, &PortRequest>::new();
    for table in ports {
        let port = table.get_ref();
        port.spec(None).map_err(|error| at(table, error.message))?;
        if names.insert(&port.name, ()).is_some() {
            return Err(at(table, format!("there are two ports {}: give one another name", port.name)));
        }
        if port.socket == control.socket {
            return Err(at(table, format!("port {}: {:?} is the control socket", port.name, port.socket)));
        }
        if let Some(other) = sockets.insert(&port.socket, &port.name) {
            let socket = &port.socket;
            return Err(at(table, format!("port {}: the port {other} has the socket {socket:?} already", port.name)));
        }
        for interface in port.device.parts().iter().filter_map(DeviceSpec::interface) {
            if let Some(other) = interfaces.insert(interface, &port.name) {
                return Err(at(
                    table,
                    format!("port {}: the port {other} has the interface {interface} already", port.name),
                ));
            }
        }
        if matches!(port.device, DeviceSpec::Patch { .. }) {
            ends.insert(port.device.identity(), port);
        }
        if let Some(other) = port.device.other_end().and_then(|end| ends.get(&end.identity())) {
            let lanes = port.lane.as_ref().zip(other.lane.as_ref());
            if let Some((ours, theirs)) = lanes.filter(|(ours, theirs)| ours != theirs) {
                let message = format!(
                    "port {}: its lane is {ours}, and that of the port {} at the other end of its patch is {theirs}: give both the same",
                    port.name, other.name
                );
                return Err(at(table, message));
            }
            if port.queues != other.queues {
                let (queues, theirs) = (port.queues, other.queues);
                let message = format!(
                    "port {}: queues is {queues}, and {theirs} of the port {} at the other end of its patch: give both the same",
                    port.name, other.name
                );
                return Err(at(table, message));
            }
        }
        if let Some(lane) = &port.lane
            && !lanes.iter().any(|known| known.name == *lane)
        {
            return Err(at(
                table,
                format!(
                    "port {}: there is no lane {lane}: add a [[lane]], or name one of {}",
                    port.name,
                    names_of(lanes)
                ),
            ));
        }
        // A port that names no lane goes where there is room: only with one lane is it known here which that is.
        let lane = port.lane.as_ref().or(if lanes.len() == 1 { Some(&lanes[0].name) } else { None });
        for part in port.device.parts() {
            let key = device_key(part, lane);
            let placed =
                lane.is_some() || key.0.is_none() && !matches!(part, DeviceSpec::Vdev { .. } | DeviceSpec::Soft { .. });
            if placed && let Some(other) = devices.insert(key, &port.name) {
                let device = part.identity();
                return Err(at(table, format!("port {}: the port {other} has the device {device} already", port.name)));
            }
        }
    }
    Ok(())
}

fn nics(nics: &[Spanned<NicRequest>], lanes: &[LaneSettings]) -> Result<(), Refusal> {
    let mut names = HashMap::new();
    for table in nics {
        let nic = table.get_ref();
        nic.spec().map_err(|error| at(table, error.message))?;
        if names.insert(&nic.name, ()).is_some() {
            return Err(at(table, format!("there are two NICs {}: give one another name", nic.name)));
        }
        if let Some(lane) = nic.lane.as_ref().filter(|lane| !lanes.iter().any(|known| known.name == **lane)) {
            let known = names_of(lanes);
            let message = format!("NIC {}: there is no lane {lane}: add a [[lane]], or name one of {known}", nic.name);
            return Err(at(table, message));
        }
    }
    Ok(())
}

fn names_of(lanes: &[LaneSettings]) -> String {
    lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Refuses a lane whose memory can never hold the queues of the ports that name it (all ports when it is the only one).
fn memory(read: &File, lanes: &[LaneSettings]) -> Result<(), Refusal> {
    let mut needs: BTreeMap<&LaneName, u32> = BTreeMap::new();
    for port in &read.port {
        let port = port.get_ref();
        if let Some(lane) = port.lane.as_ref().or(if lanes.len() == 1 { Some(&lanes[0].name) } else { None }) {
            *needs.entry(lane).or_insert(LANE_BASE_MIB) += u32::from(port.queues) * QUEUE_MIB;
        }
    }
    for lane in lanes {
        let need = needs.get(&lane.name).copied().unwrap_or(0);
        if lane.memory_mib < need {
            let table = read.lane.iter().find(|table| table.get_ref().name == lane.name);
            let key = match table {
                Some(table) => table.get_ref().memory_mib.as_ref().map_or(table.span().start, |key| key.span().start),
                None => read.dataplane.memory_mib.as_ref().map_or(0, |key| key.span().start),
            };
            let (name, has) = (&lane.name, lane.memory_mib);
            return Err((key, format!("memory_mib of lane {name} is {has}: its ports need at least {need}")));
        }
    }
    Ok(())
}
