//! The lane's socket: one JSON object a line, one thread a connection, all bounded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Uid, geteuid};
use ringspan_protocol::message::MAX_LINE;
use ringspan_protocol::{Envelope, Failure, FailureKind, Reply, Request};

use super::Lane;

/// Connections at a time; control needs two.
const MAX_CONNECTIONS: usize = 32;
/// How long an answer may wait for a peer that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Accepts connections for as long as the process lives. Only the lane's own user and root may speak.
pub fn serve(lane: &Arc<Lane>, listener: &UnixListener) {
    let connections = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: wait until some are free again instead of spinning.
                tracing::warn!(%error, "cannot accept on the lane's socket");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if !may_speak(&stream) || connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        connections.fetch_add(1, Ordering::Relaxed);
        let (lane, count) = (Arc::clone(lane), Arc::clone(&connections));
        let spawned = std::thread::Builder::new().name("lane-socket".into()).spawn(move || {
            if let Err(error) = converse(&lane, &stream) {
                tracing::debug!(%error, "a connection to the lane ended");
            }
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            connections.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(%error, "no thread for a connection to the lane");
        }
    }
}

fn may_speak(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| {
        let peer = Uid::from_raw(peer.uid());
        peer.is_root() || peer == geteuid()
    })
}

/// Answers line by line. Before a Hello of our version only Hello and Shutdown are understood, so that control of any
/// version can replace this lane.
fn converse(lane: &Lane, stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut greeted = false;
    loop {
        line.clear();
        if (&mut reader).take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let refuse = |kind, message: String| Reply::Failed(Failure::new(kind, message));
        let mut shutdown = false;
        let (id, reply) = match serde_json::from_slice::<Envelope<Request>>(&line) {
            Ok(Envelope { id, body }) if greeted || matches!(body, Request::Hello { .. } | Request::Shutdown) => {
                shutdown = matches!(body, Request::Shutdown);
                let reply = lane.answer(body);
                greeted |= matches!(reply, Reply::Hello(_));
                (id, reply)
            }
            Ok(Envelope { id, .. }) => (id, refuse(FailureKind::Version, "say hello first".into())),
            Err(error) => {
                (id_of(&line), refuse(FailureKind::Invalid, format!("not a request of the lane protocol: {error}")))
            }
        };
        let mut answer = serde_json::to_vec(&Envelope { id, body: reply })?;
        answer.push(b'\n');
        let written = (&*stream).write_all(&answer);
        if shutdown {
            lane.shut_down();
        }
        written?;
    }
}

/// The id of a line that is no request, so that its sender can tell which was refused.
fn id_of(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line).ok().and_then(|value| value.get("id")?.as_u64()).unwrap_or(0)
}
