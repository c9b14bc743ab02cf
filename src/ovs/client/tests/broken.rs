//! A scripted peer that answers as it should not.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::ovs::client::{Bounds, OvsError, Rpc};

/// Longest wait for what should come at once.
const SOON: Duration = Duration::from_secs(20);
const SMALL: Bounds = Bounds { time: SOON, bytes: 1 << 20, remedy: "ask for less" };

/// A peer that serves one connection with `script`.
struct Peer {
    _folder: tempfile::TempDir,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    fn new(script: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peer.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || script(listener.accept().unwrap().0));
        Self { _folder: folder, path, thread: Some(thread) }
    }

    /// Reads the request, and answers with these bytes.
    fn answers(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::new(move |mut stream| {
            request(&mut stream);
            // The client may have enough before all is written.
            let _ = stream.write_all(&bytes);
        })
    }

    fn connect(&self) -> Rpc {
        Rpc::connect("ovsdb-server", &self.path).unwrap()
    }

    /// What a call to this peer ends with.
    fn error(&self, bounds: Bounds) -> OvsError {
        self.connect().call("get_schema", json!([]), bounds).unwrap_err()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The next object that the client sends; null at the end.
fn request(stream: &mut UnixStream) -> Value {
    serde_json::Deserializer::from_reader(stream).into_iter().next().and_then(Result::ok).unwrap_or(Value::Null)
}

#[test]
fn a_peer_that_closes_in_mid_answer_is_an_error_wherever_it_is_cut() {
    let whole = r#"{"id":1,"result":{"name":"Open_vSwitch"},"error":null}"#;
    for cut in [0, 1, 7, whole.len() - 1] {
        let error = Peer::answers(&whole[..cut]).error(SMALL);
        assert!(matches!(error, OvsError::Closed { bytes, .. } if bytes == cut), "{cut}: {error}");
        let text = error.to_string();
        assert!(text.contains("ovsdb-server") && text.contains("get_schema") && text.contains("try again"), "{text}");
    }
}

#[test]
fn garbage_is_named_as_such() {
    let long = "{\"id\":1,\"result\":".to_owned() + &"[".repeat(200);
    let not_utf8: &[u8] = b"{\"id\":1,\"result\":\"\xff\"}";
    for bytes in [
        b"HTTP/1.1 400\r\n".as_slice(),
        b"{\"id\":}",
        b"{]",
        long.as_bytes(),
        not_utf8,
        b"{\"id\":7,\"result\":0}",
        b"{}",
    ] {
        let error = Peer::answers(bytes).error(SMALL);
        assert!(matches!(error, OvsError::Garbage { .. }), "{bytes:?}: {error}");
    }
}

#[test]
fn an_endless_answer_is_cut_off() {
    let peer = Peer::new(|mut stream| {
        request(&mut stream);
        let _ = stream.write_all(b"{\"id\":1,\"result\":\"");
        let block = vec![b'x'; 1 << 20];
        // 100 MB, or until the client hangs up.
        for _ in 0..100 {
            if stream.write_all(&block).is_err() {
                return;
            }
        }
        panic!("the client took 100 MB");
    });
    let error = peer.error(SMALL);
    assert!(matches!(error, OvsError::TooLong { limit: 1_048_576, .. }), "{error}");
    assert!(error.to_string().contains("ask for less"));
}

#[test]
fn a_peer_that_tells_without_end_is_cut_off() {
    let peer = Peer::new(|mut stream| {
        request(&mut stream);
        let note = format!("{{\"id\":null,\"method\":\"update\",\"params\":[\"{}\"]}}", "x".repeat(900 << 10));
        // 90 MB, or until the client hangs up.
        for _ in 0..100 {
            if stream.write_all(note.as_bytes()).is_err() {
                return;
            }
        }
        panic!("the client kept 90 MB");
    });
    let error = peer.error(SMALL);
    assert!(matches!(error, OvsError::Garbage { .. }) && error.to_string().contains("MiB"), "{error}");
}

#[test]
fn a_silent_peer_costs_no_more_than_the_limit_even_if_it_trickles() {
    let peer = Peer::new(|mut stream| {
        request(&mut stream);
        while stream.write_all(b" ").is_ok() {
            // A byte every now and then is what is tested.
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let begun = Instant::now();
    let error = peer.error(Bounds { time: Duration::from_millis(100), ..SMALL });
    assert!(matches!(error, OvsError::Silent { .. }), "{error}");
    assert!(begun.elapsed() < SOON);
}

#[test]
fn echo_requests_are_answered_and_notifications_kept_in_the_midst_of_a_call() {
    let (tell, told) = std::sync::mpsc::channel();
    let peer = Peer::new(move |mut stream| {
        request(&mut stream);
        let burst = concat!(
            r#"{"id":"echo","method":"echo","params":[1]}{"id":null,"method":"update","params":["a",{}]}"#,
            r#"{"id":"x","method":"steal","params":[]}"#
        );
        stream.write_all(burst.as_bytes()).unwrap();
        tell.send((request(&mut stream), request(&mut stream))).unwrap();
        stream.write_all(br#"{"id":1,"error":null,"result":5}"#).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let mut rpc = peer.connect();
    assert_eq!(rpc.call("transact", json!([]), SMALL).unwrap(), json!(5));
    let (echo, other) = told.recv_timeout(SOON).unwrap();
    assert_eq!(echo, json!({ "id": "echo", "result": [1], "error": null }));
    assert_eq!(other, json!({ "id": "x", "result": null, "error": "unknown method" }));
    assert_eq!(rpc.note(Duration::ZERO).unwrap().unwrap().method, "update");
    assert!(rpc.note(Duration::from_millis(20)).unwrap().is_none());
    drop(rpc);
}

#[test]
fn a_database_without_monitor_cond_is_asked_by_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("db.sock")).unwrap();
    let server = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        assert_eq!(request(&mut stream)["method"], "monitor_cond");
        stream.write_all(br#"{"id":1,"result":null,"error":"unknown method"}"#).unwrap();
        let second = request(&mut stream);
        stream.write_all(br#"{"id":2,"result":{},"error":null}{"id":null,"method":"update","params":[]}"#).unwrap();
        second
    });
    let place = crate::ovs::client::Place::new(Some(folder.path()));
    let mut database = crate::ovs::client::Database::connect(&place).unwrap();
    database.watch(&[("Bridge", &["name"])], SOON).unwrap();
    assert!(database.changed(SOON).unwrap());
    let asked = server.join().unwrap();
    assert_eq!(asked["method"], "monitor");
    assert_eq!(asked["params"][2]["Bridge"]["columns"], json!(["name"]));
}
