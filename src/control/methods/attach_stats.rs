//! What guests' NICs counted: the agent meters with it.

use ringspan_protocol::QueueCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::attach::record::{Counted, Record};
use crate::attach::request::Mode;
use crate::control::{Daemon, locked};
use crate::error::Error;
use crate::host::Host;

/// Whose counters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stats {
    /// Of this guest; of all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

/// What a guest's NIC counted, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestStats {
    /// The guest.
    pub guest: String,
    /// Which of its NICs.
    pub nic: u16,
    /// Whether they are of now; false: the last known, or none.
    pub current: bool,
    /// Where they are from: `port`, or the interface that was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// They never go back while the NIC is attached.
    pub counted: Counted,
}

pub(super) fn stats(call: &mut Call, Stats { guest }: Stats) -> Result<Vec<GuestStats>, Error> {
    let daemon = call.daemon;
    let host = daemon.host();
    let all = daemon.attachments.count(guest.as_deref(), |record| match record.wanted.mode {
        Mode::Vhost => (of_port(daemon, record), Some("port".to_owned())),
        Mode::Passthrough => of_representor(&host, record),
    });
    let told = all.into_iter().map(|(record, current, source, counted)| {
        let source = source.filter(|_| current);
        GuestStats { guest: record.wanted.guest, nic: record.wanted.nic, current, source, counted }
    });
    Ok(told.collect())
}

/// What its port counted; none when its lane cannot be asked.
fn of_port(daemon: &Daemon, record: &Record) -> Option<Counted> {
    let name = record.key().port().ok()?;
    let lane = locked(&daemon.desired).ports.get(&name)?.lane.clone();
    let (counters, current) = daemon.lane(&lane).ok()?.counters(Some(&name), false).remove(&name)?;
    if !current {
        return None;
    }
    let sum = |queues: &[QueueCounters]| {
        let mut all = QueueCounters::default();
        queues.iter().for_each(|queue| all.add(queue));
        all
    };
    let (from, to) = (sum(&counters.from_guest), sum(&counters.to_guest));
    Some(Counted {
        tx_packets: from.received,
        tx_bytes: from.received_bytes,
        tx_dropped: from.drops.total(),
        rx_packets: to.sent,
        rx_bytes: to.sent_bytes,
        rx_dropped: to.drops.total(),
    })
}

/// What the interface counted that stands for the VF: it receives what the guest sends.
fn of_representor(host: &Host, record: &Record) -> (Option<Counted>, Option<String>) {
    let Some(name) = &record.representor else { return (None, None) };
    let read = |file: &str| host.sysfs.number::<u64>(&format!("class/net/{name}/statistics/{file}"));
    let counted = || {
        Some(Counted {
            tx_packets: read("rx_packets")?,
            tx_bytes: read("rx_bytes")?,
            tx_dropped: read("rx_dropped")?,
            rx_packets: read("tx_packets")?,
            rx_bytes: read("tx_bytes")?,
            rx_dropped: read("tx_dropped")?,
        })
    };
    (counted(), Some(name.clone()))
}
