//! Word of changes in a bridge's OpenFlow tables, by its management socket `BRIDGE.mgmt`: OpenFlow 1.0 and the flow monitor of Nicira's extensions
//! (OVS's include/openflow/nicira-ext.h, "Flow Table Monitoring"). What changed is not read: that something did is enough.
//!
//! A bridge that is set to speak later versions only refuses; it is then looked at from time to time.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::rpc::connected;
use super::{OvsError, Place};

/// How the bridge is called in errors.
const PEER: &str = "a bridge's management socket";
/// OFP10_VERSION.
const VERSION: u8 = 1;
/// struct ofp_header.
const HEADER: usize = 8;

const HELLO: u8 = 0;
const ERROR: u8 = 1;
const ECHO_REQUEST: u8 = 2;
const ECHO_REPLY: u8 = 3;
const VENDOR: u8 = 4;
const STATS_REQUEST: u8 = 16;
const STATS_REPLY: u8 = 17;

/// OFPST_VENDOR, NX_VENDOR_ID, NXST_FLOW_MONITOR.
const OF_VENDOR: u16 = 0xffff;
const NICIRA: u32 = 0x2320;
const FLOW_MONITOR: u32 = 2;
/// NXFMF_INITIAL, NXFMF_ADD, NXFMF_DELETE, NXFMF_MODIFY.
const FLAGS: u16 = 1 | 2 | 4 | 8;
/// What is before the updates in a reply: ofp10_stats_msg and nicira10_stats_msg from behind the header.
const BEFORE_UPDATES: usize = 16;
/// Parts follow (OFPSF_REPLY_MORE).
const MORE: u16 = 1;
/// NXFME_ADDED, NXFME_DELETED, NXFME_MODIFIED.
const ADDED: u16 = 0;
const DELETED: u16 = 1;
const MODIFIED: u16 = 2;
/// After which time all is asked for anew where a flow with a timeout was changed: what it was before is not told.
const FORGETS: Duration = Duration::from_secs(60);
/// OFPP_NONE: whatever port a flow's actions name.
const ANY_PORT: u16 = 0xffff;
/// All tables.
const ANY_TABLE: u8 = 0xff;

/// The request's transaction.
const XID: u32 = 0x7269_6e67;

/// A connection that tells of changes.
#[derive(Debug)]
pub(crate) struct FlowMonitor {
    stream: UnixStream,
    bridge: String,
    /// What came and is no whole message yet.
    buffer: Vec<u8>,
    idle: IdleTimeouts,
    since: Instant,
}

/// Idle timeouts of a bridge's flows in seconds, and how many flows have each: never fewer than there are.
#[derive(Debug, Default)]
struct IdleTimeouts {
    flows: BTreeMap<u16, u64>,
    /// One was changed: it may be counted twice.
    blurred: bool,
}

/// What a message means here.
enum Said {
    /// Nothing.
    Nothing,
    /// The monitor is set up: what comes from here on are changes.
    Ready,
    /// Flows changed, or so many did that some were not told.
    Changed,
}

impl FlowMonitor {
    /// Asks to be told of changes in the bridge's flows, from now on.
    pub(crate) fn connect(place: &Place, bridge: &str, limit: Duration) -> Result<Self, OvsError> {
        let path = place.management(bridge);
        let until = Instant::now() + limit;
        let socket = connected(&path, limit).map_err(|errno| OvsError::Unreachable {
            peer: PEER,
            path: path.clone(),
            reason: errno.desc().into(),
            errno: Some(errno as i32),
        })?;
        let (stream, bridge, buffer) = (UnixStream::from(socket), bridge.into(), Vec::new());
        let mut monitor = Self { stream, bridge, buffer, idle: IdleTimeouts::default(), since: Instant::now() };
        monitor.send(&message(HELLO, XID, &[]))?;
        monitor.send(&message(STATS_REQUEST, XID, &request()))?;
        loop {
            while let Some(message) = monitor.next() {
                match monitor.look(&message)? {
                    Said::Ready => return Ok(monitor),
                    Said::Nothing | Said::Changed => {}
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(OvsError::Silent { peer: PEER, method: monitor.what(), limit });
            }
            super::rpc::readable(monitor.stream.as_fd(), left);
            monitor.read()?;
        }
    }

    /// Whether flows changed since this was last asked. Waits for nothing.
    pub(crate) fn changed(&mut self) -> Result<bool, OvsError> {
        let mut changed = false;
        loop {
            let more = self.read()?;
            while let Some(message) = self.next() {
                changed |= matches!(self.look(&message)?, Said::Changed);
            }
            if !more {
                return Ok(changed);
            }
        }
    }

    /// The shortest idle timeout of the bridge's flows.
    pub(crate) fn shortest_idle(&self) -> Option<Duration> {
        self.idle.flows.first_key_value().map(|(seconds, _)| Duration::from_secs((*seconds).into()))
    }

    /// Whether a new connection would know the timeouts better.
    pub(crate) fn is_blurred(&self) -> bool {
        self.idle.blurred && self.since.elapsed() >= FORGETS
    }

    fn what(&self) -> String {
        format!("the flow monitor of bridge {}", self.bridge)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), OvsError> {
        self.stream.write_all(bytes).map_err(|error| self.closed(error.to_string()))
    }

    /// Reads what is there: whether there may be more.
    fn read(&mut self) -> Result<bool, OvsError> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(self.closed("end of file".into())),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(count == chunk.len())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(self.closed(error.to_string())),
        }
    }

    fn closed(&self, reason: String) -> OvsError {
        OvsError::Closed { peer: PEER, method: self.what(), bytes: self.buffer.len(), reason }
    }

    /// The next whole message.
    fn next(&mut self) -> Option<Vec<u8>> {
        let &[_, _, high, low, ..] = self.buffer.as_slice() else { return None };
        // A length below that of the header is none: the message is then looked at as it is, and refused.
        let length = usize::from(u16::from_be_bytes([high, low])).max(HEADER);
        (self.buffer.len() >= length).then(|| self.buffer.drain(..length).collect())
    }

    fn look(&mut self, message: &[u8]) -> Result<Said, OvsError> {
        let &[version, kind, high, low, a, b, c, d, ref body @ ..] = message else { return Ok(Said::Nothing) };
        let garbage = |what: String| OvsError::Garbage { peer: PEER, method: self.what(), what };
        if usize::from(u16::from_be_bytes([high, low])) != message.len() {
            return Err(garbage("a message without a length".into()));
        }
        let xid = u32::from_be_bytes([a, b, c, d]);
        match kind {
            // It says the newest version that it speaks; both then speak the older one of the two.
            HELLO => Ok(Said::Nothing),
            _ if version != VERSION => Err(garbage(format!("version {version} of OpenFlow"))),
            ERROR => {
                let reason = format!("it has none: error {:02x?}", body.get(..4).unwrap_or(body));
                Err(OvsError::Refused { peer: PEER, method: self.what(), reason })
            }
            ECHO_REQUEST => {
                let answer = self::message(ECHO_REPLY, xid, body);
                self.send(&answer)?;
                Ok(Said::Nothing)
            }
            STATS_REPLY if xid == XID => {
                self.idle.update(body);
                let more = body.get(2..4).is_some_and(|flags| u16::from_be_bytes([flags[0], flags[1]]) & MORE != 0);
                Ok(if more { Said::Nothing } else { Said::Ready })
            }
            // Changes; that there are too many to tell, and that there are no longer (NXT_FLOW_MONITOR_PAUSED, _RESUMED).
            STATS_REPLY => {
                self.idle.update(body);
                Ok(Said::Changed)
            }
            VENDOR => Ok(Said::Changed),
            _ => Ok(Said::Nothing),
        }
    }
}

impl IdleTimeouts {
    /// Takes a reply's updates: struct nx_flow_update_full, of which the first 10 bytes count, or shorter ones that say nothing here.
    fn update(&mut self, body: &[u8]) {
        let mut rest = body.get(BEFORE_UPDATES..).unwrap_or_default();
        while let &[l0, l1, e0, e1, ..] = rest {
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let Some((update, behind)) = rest.split_at_checked(length).filter(|_| length >= 4) else { return };
            rest = behind;
            let Some(&[high, low]) = update.get(8..10) else { continue };
            let seconds = u16::from_be_bytes([high, low]);
            let flows = self.flows.get(&seconds).copied().unwrap_or(0);
            let now = match u16::from_be_bytes([e0, e1]) {
                _ if seconds == 0 => continue,
                ADDED => flows + 1,
                // It may have had another one.
                MODIFIED => {
                    self.blurred = true;
                    flows + 1
                }
                DELETED => flows.saturating_sub(1),
                _ => continue,
            };
            if now == 0 {
                self.flows.remove(&seconds)
            } else {
                self.flows.insert(seconds, now)
            };
        }
    }
}

impl AsFd for FlowMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn message(kind: u8, xid: u32, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u16;
    [&[VERSION, kind], &length.to_be_bytes()[..], &xid.to_be_bytes(), body].concat()
}

/// struct ofp10_stats_msg from behind its header, nicira10_stats_msg and nx_flow_monitor_request: with the flows that are there already, and
/// without a match.
fn request() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(OF_VENDOR.to_be_bytes());
    body.extend([0; 2]);
    body.extend(NICIRA.to_be_bytes());
    body.extend(FLOW_MONITOR.to_be_bytes());
    body.extend([0; 4]);
    body.extend(1_u32.to_be_bytes());
    body.extend(FLAGS.to_be_bytes());
    body.extend(ANY_PORT.to_be_bytes());
    body.extend([0, 0, ANY_TABLE, 0, 0, 0, 0, 0]);
    body
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use anyhow::Result;
    use ringspan_testkit::needs;
    use ringspan_testkit::ovs::Ovs;
    use ringspan_testkit::wait;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn changes_of_a_bridges_flows_are_told_and_nothing_else() -> Result<()> {
        needs!(Ovs);
        let ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        ovs.ofctl("br0", "add-flow", &["in_port=1,actions=drop"])?;
        let mut monitor = FlowMonitor::connect(&Place::new(Some(ovs.run_dir())), "br0", SOON)?;
        assert!(!monitor.changed()?, "what was there before is no change");
        ovs.ofctl("br0", "dump-flows", &[])?;
        assert!(!monitor.changed()?);
        for (command, words) in [
            ("add-flow", "in_port=2,actions=drop"),
            ("mod-flows", "in_port=2,actions=output:1"),
            ("del-flows", "in_port=2"),
        ] {
            ovs.ofctl("br0", command, &[words])?;
            wait::until(SOON, command, || Ok(monitor.changed()?.then_some(())))?;
        }
        ovs.vsctl(&["del-br", "br0"])?;
        let ended = wait::until(SOON, "the end of the connection", || Ok(monitor.changed().err()))?;
        assert!(matches!(ended, OvsError::Closed { .. }), "{ended}");
        Ok(())
    }

    #[test]
    fn the_shortest_idle_timeout_is_known_from_the_start_and_as_flows_come_and_go() -> Result<()> {
        needs!(Ovs);
        let ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        let many: String =
            (0..2000).map(|vlan| format!("dl_vlan={vlan},in_port=9,idle_timeout=700,actions=drop\n")).collect();
        std::fs::write(ovs.path("flows"), many)?;
        ovs.ofctl("br0", "add-flows", &[&ovs.path("flows").display().to_string()])?;
        ovs.ofctl("br0", "add-flow", &["in_port=1,actions=drop"])?;
        let mut monitor = FlowMonitor::connect(&Place::new(Some(ovs.run_dir())), "br0", SOON)?;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!((monitor.shortest_idle(), monitor.is_blurred()), (seconds(700), false));
        for (command, words, wanted) in [
            ("add-flow", "in_port=2,idle_timeout=60,actions=drop", seconds(60)),
            ("add-flow", "in_port=3,idle_timeout=30,hard_timeout=900,actions=drop", seconds(30)),
            ("del-flows", "in_port=3", seconds(60)),
            ("del-flows", "in_port=2", seconds(700)),
            ("del-flows", "in_port=9", None),
        ] {
            ovs.ofctl("br0", command, &[words])?;
            wait::until(SOON, words, || {
                monitor.changed()?;
                Ok((monitor.shortest_idle() == wanted).then_some(()))
            })?;
        }
        Ok(())
    }

    #[test]
    fn updates_that_are_cut_off_are_passed_over() {
        let mut body = vec![0; BEFORE_UPDATES];
        body.extend([
            0, 24, 0, 0, 0, 0, 0, 1, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 3, 0, 0, 0, 1, 0, 24, 0,
            0,
        ]);
        for end in 0..=body.len() {
            let mut idle = IdleTimeouts::default();
            idle.update(&body[..end]);
            assert_eq!(idle.flows.len(), usize::from(end >= BEFORE_UPDATES + 24), "{end}");
        }
        // A length of none ends it.
        IdleTimeouts::default().update(&[0; 64]);
    }

    #[test]
    fn a_bridge_of_later_versions_only_refuses() -> Result<()> {
        needs!(Ovs);
        let ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        ovs.vsctl(&["set", "Bridge", "br0", "protocols=OpenFlow13"])?;
        assert!(FlowMonitor::connect(&Place::new(Some(ovs.run_dir())), "br0", SOON).is_err());
        Ok(())
    }

    #[test]
    fn what_is_no_openflow_ends_the_connection() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join("br0.mgmt"))?;
        let answers = [
            &b"HTTP/1.1 400"[..],
            &[1, 17, 0, 3, 0, 0, 0, 0],
            &[4, 17, 0, 8, 0, 0, 0, 0],
            &[1, 1, 0, 8, 0, 0, 0, 0],
            b"",
        ];
        let peer = std::thread::spawn(move || -> Result<()> {
            for answer in answers {
                let (mut stream, _) = listener.accept()?;
                let mut hello = [0; HEADER + 40];
                stream.read_exact(&mut hello)?;
                stream.write_all(answer)?;
            }
            Ok(())
        });
        for _ in answers {
            assert!(FlowMonitor::connect(&Place::new(Some(folder.path())), "br0", SOON).is_err());
        }
        peer.join().expect("the peer ends")
    }
}
