//! The grammar of the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringspan_protocol::{Compat, DeviceSpec, LaneName, MacAddress, PortName};

use crate::config::{DEFAULT_FILE, DEFAULT_SOCKET};

/// Bridges guests' virtio rings to the queues of DPDK devices.
#[derive(Debug, Parser)]
#[command(name = "ringspan", version, propagate_version = true, arg_required_else_help = true)]
pub(super) struct Options {
    /// The daemon's control socket; when not given, that of the environment variable RINGSPAN_CONTROL, else /run/ringspan/control.sock.
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

impl Options {
    /// The control socket that is meant, with `RINGSPAN_CONTROL` as it is in the environment. The grammar does not read it: clap shows an option that
    /// has its value from there in each usage text, as if it had to be given.
    pub(super) fn control(&self, environment: Option<OsString>) -> PathBuf {
        let named = environment.filter(|value| !value.is_empty()).map(PathBuf::from);
        self.control.clone().or(named).unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_FILE, value_name = "FILE")]
        config: PathBuf,
    },
    /// End the daemon, and return when it has ended. Lanes go on.
    Stop {
        /// Shut the lanes down too: guests lose their network.
        #[arg(long)]
        lanes: bool,
    },
    /// Read the configuration file again, and change what differs.
    Reload {
        /// Return at once, with the number of the job.
        #[arg(long)]
        no_wait: bool,
    },
    /// Ports: guests' NICs.
    #[command(subcommand)]
    Port(Port),
    /// Attachments: guests' NICs, as the agent asks for them.
    #[command(subcommand)]
    Attachment(super::attach::Attachment),
    /// Software NICs: switches with VFs, in a lane.
    #[command(subcommand)]
    Nic(super::nic::Nic),
    /// Devices: physical and virtual functions of this host's NICs.
    #[command(subcommand)]
    Device(super::device::Device),
    /// PFs: the physical functions of this host's NICs.
    #[command(subcommand)]
    Pf(super::device::Pf),
    /// VFs: how many, and what their PFs have set for them.
    #[command(subcommand)]
    Vf(super::device::Vf),
    /// Eswitches: how NICs' switches forward.
    #[command(subcommand)]
    Eswitch(super::device::Eswitch),
    /// Bonds: several ports of the kernel's as one, and VF LAG.
    #[command(subcommand)]
    Bond(super::bond::Bond),
    /// Firmware: what Mellanox NICs are set to for their VFs.
    #[command(subcommand)]
    Firmware(super::firmware::Firmware),
    /// vDPA: devices of the kernel's vDPA bus, and what they are made on.
    #[command(subcommand)]
    Vdpa(super::vdpa::Vdpa),
    /// Lanes: the DPDK processes that carry the ports.
    #[command(subcommand)]
    Lane(Lane),
    /// Open vSwitch: its settings, its bridges, and whether its flows are offloaded.
    #[command(subcommand)]
    Ovs(super::ovs::Ovs),
    /// The host as its agent wants it: what host.conf asks of its NICs.
    #[command(subcommand)]
    Host(super::host::Host),
    /// Find out what of this host stands in the way, and what mends it. Needs no daemon. Exit code 1: something fails.
    Doctor(super::doctor::Doctor),
    /// Jobs: slow work.
    #[command(subcommand)]
    Job(Job),
    /// Flows: what Open vSwitch has in its datapath.
    #[command(subcommand)]
    Flow(Flow),
    /// Call a method of the control API.
    Call {
        /// The method, such as port.list.
        method: String,
        /// Its parameters, a JSON object.
        #[arg(value_name = "JSON")]
        params: Option<String>,
    },
    /// Show events.
    Events {
        /// Begin after the event of this number; 0: with the oldest that is kept. Without it, and without --follow: 0.
        #[arg(long, value_name = "N")]
        after: Option<u64>,
        /// Go on with each new event.
        #[arg(long)]
        follow: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages.
    Man {
        /// Into this folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Output for programs.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Port {
    /// Add a port; it survives restarts.
    Add(Box<Add>),
    /// Remove a port that was added at run time.
    Remove {
        /// Its name.
        name: PortName,
        /// A port that is not there is a success.
        #[arg(long)]
        if_exists: bool,
    },
    /// Give a guest a VF: chosen, prepared, its port made; and print what QEMU must be told.
    Attach(Box<super::attach::Attach>),
    /// Take all of that back. What is not there is a success.
    Detach {
        /// The guest's id.
        guest: String,
        /// Which of the guest's NICs.
        #[arg(long, default_value_t = 0, value_name = "N")]
        nic: u16,
        /// Also while its guest is connected, or its lane cannot be asked for that; it loses its NIC then. Not with mode passthrough.
        #[arg(long)]
        disturb: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List all ports.
    List(Output),
    /// Show one port.
    Show {
        /// Its name.
        name: PortName,
        #[command(flatten)]
        output: Output,
    },
    /// Show counters of one port, or of all.
    Stats {
        /// Its name.
        name: Option<PortName>,
        /// Show rates each second, until interrupted.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// With the device's extended statistics.
        #[arg(long)]
        extended: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Change a running port that was added at run time.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args([
        "mtu", "mac", "promiscuous", "allmulti", "compat", "vlan", "min_rate", "max_rate", "mode",
    ]))]
    Set {
        /// Its name.
        name: PortName,
        /// The MTU in bytes, 68 to 9216.
        #[arg(long)]
        mtu: Option<u16>,
        /// The device's MAC address.
        #[arg(long)]
        mac: Option<MacAddress>,
        /// Receive every unicast frame.
        #[arg(long)]
        promiscuous: Option<PolicyWord>,
        /// Receive every multicast frame.
        #[arg(long)]
        allmulti: Option<PolicyWord>,
        /// The set of virtio features.
        #[arg(long, value_parser = parse_compat)]
        compat: Option<Compat>,
        /// VLAN of a guest's attachment; 0: none.
        #[arg(long)]
        vlan: Option<u16>,
        /// Least rate that the NIC keeps for a guest's attachment, in Mbit/s; 0: none.
        #[arg(long, value_name = "MBITS")]
        min_rate: Option<u32>,
        /// Most rate in each direction, in Mbit/s; 0: no limit.
        #[arg(long, value_name = "MBITS")]
        max_rate: Option<u32>,
        /// Who moves the packets, where the device is a vDPA device.
        #[arg(long, value_enum)]
        mode: Option<ModeWord>,
    },
    /// Wait until a port has come that far.
    Wait {
        /// Its name.
        name: PortName,
        /// What to wait for.
        phase: PhaseWord,
        /// Longest wait in seconds.
        #[arg(long, default_value_t = 30.0, value_name = "SECONDS")]
        timeout: f64,
        #[command(flatten)]
        output: Output,
    },
    /// Print what QEMU must be told so that a guest gets the port.
    QemuArgs {
        /// Its name.
        name: PortName,
        /// Print elements of a libvirt domain.
        #[arg(long)]
        libvirt: bool,
        /// For this version; that of qemu-system-x86_64 in PATH when not given.
        #[arg(long, value_name = "X.Y")]
        qemu_version: Option<String>,
        /// Size of the guest's memory.
        #[arg(long, default_value = "512M", conflicts_with = "no_memory")]
        memory: String,
        /// No arguments for memory: for a guest's second port.
        #[arg(long)]
        no_memory: bool,
        /// Queue pairs of the guest's NIC; the port's when not given.
        #[arg(long, value_name = "N")]
        guest_queues: Option<u16>,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Its name.
    pub name: PortName,
    /// Path of the vhost-user socket.
    #[arg(long, visible_alias = "socket", value_name = "PATH")]
    pub socket_path: PathBuf,
    /// Which side listens: server: ringspan does; client: the front-end does.
    #[arg(long, default_value = "server")]
    pub role: RoleWord,
    /// What it is bridged to: pci:ADDRESS[,devargs], vdev:NAME[,devargs], soft:NIC/vfN, patch:NAME/a (or /b), bond:mode=1,DEVICE,DEVICE, vhost-vdpa:PATH or vdpa:ADDRESS.
    #[arg(long)]
    pub device: DeviceSpec,
    /// Queues of the device in each direction, 1 to 32.
    #[arg(long, default_value_t = 1)]
    pub queues: u16,
    /// The MTU in bytes, 68 to 9216.
    #[arg(long, default_value_t = 1500)]
    pub mtu: u16,
    /// The device's MAC address; its own when not given.
    #[arg(long)]
    pub mac: Option<MacAddress>,
    /// Receive every unicast frame.
    #[arg(long, default_value = "auto")]
    pub promiscuous: PolicyWord,
    /// Receive every multicast frame.
    #[arg(long, default_value = "auto")]
    pub allmulti: PolicyWord,
    /// Owner of the listening socket.
    #[arg(long, value_name = "USER:GROUP")]
    pub socket_owner: Option<String>,
    /// Permission bits of the listening socket, octal.
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// The set of virtio features; the latest when not given.
    #[arg(long, value_parser = parse_compat)]
    pub compat: Option<Compat>,
    /// Offer the guest checksum and segmentation offloads; `false` makes the guest do them.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub offloads: bool,
    /// Whether the device reads large frames where the guest wrote them.
    #[arg(long, value_enum, default_value_t = ZeroCopyWord::Auto)]
    pub zero_copy: ZeroCopyWord,
    /// Least length in bytes of a frame that is not copied then; by the kind of device when not given.
    #[arg(long, value_name = "BYTES")]
    pub zero_copy_from: Option<u16>,
    /// Most in each direction, in Mbit/s; 0: no limit.
    #[arg(long, default_value_t = 0, value_name = "MBITS")]
    pub max_rate: u32,
    /// Who moves the packets, where the device is a vDPA device.
    #[arg(long, value_enum, default_value_t = ModeWord::Auto)]
    pub mode: ModeWord,
    /// The lane that carries it; the one with the fewest ports when not given.
    #[arg(long)]
    pub lane: Option<LaneName>,
    /// An equal port of that name is a success.
    #[arg(long)]
    pub may_exist: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub(super) enum Lane {
    /// List all lanes.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shut a lane down and start it again; its guests wait meanwhile.
    Restart {
        /// Its name.
        name: LaneName,
        /// Return at once, with the number of the job.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Job {
    /// List jobs that run or have ended.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show one job.
    Get {
        /// Its number.
        id: u64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Wait for a job's end.
    Wait {
        /// Its number.
        id: u64,
        /// Longest wait in seconds.
        #[arg(long, default_value_t = 600.0, value_name = "SECONDS")]
        timeout: f64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Ask a job to end.
    Cancel {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Flow {
    /// List OVS's flows, each with its state and the packets of both paths.
    List(FlowList),
    /// Show OVS's flows again and again, those with the highest rate first, until it is interrupted.
    Watch(FlowWatch),
    /// Count OVS's flows by state and by the reason why they stay with it.
    Stats(Output),
    /// Read flows as ovs-appctl dpctl/dump-flows prints them, and print them back; the daemon is not asked.
    Parse {
        /// A file with one flow a line; -: standard input.
        file: PathBuf,
        /// Print each as JSON, one object a line, with the parts that keep it from being offloaded.
        #[arg(long)]
        json: bool,
    },
    /// Print the flows of the kernel's datapath as ovs-appctl dpctl/dump-flows -m does, read from the kernel; neither the daemon nor Open vSwitch is asked.
    Dump {
        /// The datapath's name.
        #[arg(long, default_value = "ovs-system")]
        datapath: String,
        /// Go on with each change: + and the flow that is new or another, - and the name of one that is gone.
        #[arg(long)]
        follow: bool,
        /// Print each as JSON, one object a line, with the parts that keep it from being offloaded.
        #[arg(long)]
        json: bool,
    },
}

/// Which flows.
#[derive(Debug, Args)]
pub(super) struct FlowChoice {
    /// Say of each why it stays with OVS.
    #[arg(long)]
    pub why: bool,
    /// Only those that come in or go out by this port.
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// Only those in this state.
    #[arg(long)]
    pub state: Option<FlowStateWord>,
    /// Only those that stay with OVS for this reason.
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
}

/// What is watched.
#[derive(Debug, Args)]
pub(super) struct FlowWatch {
    #[command(flatten)]
    pub choice: FlowChoice,
    /// The order.
    #[arg(long, default_value = "rate")]
    pub sort: FlowSortWord,
    /// Seconds from one look to the next, 0.1 to 3600.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    pub interval: f64,
    /// At most so many flows; when not given, as many as the terminal has room for, and 100 where there is none.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// End after so many looks.
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    #[command(flatten)]
    pub output: Output,
}

/// Which flows, and how.
#[derive(Debug, Args)]
pub(super) struct FlowList {
    #[command(flatten)]
    pub choice: FlowChoice,
    /// The order: by ufid when not given.
    #[arg(long)]
    pub sort: Option<FlowSortWord>,
    /// Print them as ovs-appctl dpctl/dump-flows does, those of this type; counters are those of the path that has the flow.
    #[arg(long = "type", value_name = "TYPE", conflicts_with_all = ["why", "json"])]
    pub kind: Option<FlowTypeWord>,
    /// Print the rules that NICs hold, in the syntax of DPDK's testpmd.
    #[arg(long, conflicts_with_all = ["why", "port", "state", "reason", "sort", "kind"])]
    pub rules: bool,
    /// At most so many: 1000 when not given, and at most 10000; with --type and --rules all.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

/// The words of a flow's state.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FlowStateWord {
    Offloaded,
    Partial,
    Not,
    Pending,
}

/// The words of dpctl/dump-flows for who has a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FlowTypeWord {
    /// A NIC has it, by a rule of ringspan's or by Open vSwitch's own doing.
    Offloaded,
    /// It stays with OVS.
    NonOffloaded,
    /// All flows.
    All,
}

/// The words of an order of flows.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FlowSortWord {
    Ufid,
    Packets,
    Bytes,
    Rate,
}

/// The words of a port's role.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoleWord {
    Server,
    Client,
}

/// The words of a policy.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PolicyWord {
    Auto,
    On,
    Off,
}

/// The words of zero copy.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ZeroCopyWord {
    Auto,
    Off,
    Always,
}

/// The words of who moves packets.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ModeWord {
    Auto,
    Vdpa,
    Relay,
}

/// What can be waited for.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum PhaseWord {
    Listening,
    Connected,
    DriverReady,
    Closed,
}

/// The word as the API has it.
pub(super) fn api_word(word: impl ValueEnum) -> String {
    word.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn parse_compat(text: &str) -> Result<Compat, String> {
    serde_json::from_value(text.into()).map_err(|_| format!("{text:?} is no set of features: there is 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_socket_is_the_option_s_else_the_environment_s_else_the_usual_one() {
        let control = |words: &[&str], environment: Option<&str>| {
            let words = ["ringspan"].iter().chain(words);
            Options::parse_from(words).control(environment.map(OsString::from))
        };
        assert_eq!(control(&["port", "list", "--control", "/a"], Some("/b")), PathBuf::from("/a"));
        assert_eq!(control(&["port", "list"], Some("/b")), PathBuf::from("/b"));
        assert_eq!(control(&["port", "list"], Some("")), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(control(&["port", "list"], None), PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(DEFAULT_SOCKET, "/run/ringspan/control.sock", "the help says so");
    }
}
