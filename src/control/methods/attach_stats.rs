//! What guests' NICs counted: the agent meters with it.

use ringspan_protocol::QueueCounters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::attach::counted::handed_over;
use crate::attach::record::{Counted, Record};
use crate::attach::request::Mode;
use crate::control::{Daemon, locked};
use crate::error::Error;

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
    /// Where they are from: `port`, the VF's representor, or `INTERFACE vf N` where the PF's driver counts.
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
        Mode::Passthrough => handed_over(&host, record),
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
