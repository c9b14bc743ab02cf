//! What comes over the socket: hostile, broken, idle or in a hurry, it is answered or bounded.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use super::{Bench, Client, kind, skip};
use crate::control::Ending;
use crate::control::methods::METHODS;
use crate::control::peer::Role;

#[test]
fn what_is_no_request_is_refused_with_the_kind_and_the_connection_goes_on() {
    let bench = Bench::start("");
    let deep = "[".repeat(10_000);
    for (line, code, word) in [
        ("{", -32700, "malformed"),
        ("\u{1}", -32700, "malformed"),
        (&*deep, -32700, "malformed"),
        ("[]", -32600, "invalid-request"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"version.get"}]"#, -32600, "invalid-request"),
        ("5", -32600, "invalid-request"),
        (r#"{"id":7,"method":"version.get"}"#, -32600, "invalid-request"),
        (r#"{"jsonrpc":"2.0","id":7}"#, -32600, "invalid-request"),
        (r#"{"jsonrpc":"2.0","id":[],"method":"version.get"}"#, -32600, "invalid-request"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"no.such"}"#, -32601, "unknown-method"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"version.get","params":[1]}"#, -32602, "usage"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"version.get","params":{"x":1}}"#, -32602, "usage"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"port.get","params":{}}"#, -32602, "usage"),
        (r#"{"jsonrpc":"2.0","id":7,"method":"port.get","params":{"name":"a b"}}"#, -32602, "usage"),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"port.add","params":{"name":"a","socket":"/x","device":"vdev:net_null0","colour":1}}"#,
            -32602,
            "usage",
        ),
    ] {
        let mut client = bench.client();
        client.send(format!("{line}\n").as_bytes()).unwrap();
        let answer = client.message();
        let error = &answer["error"];
        assert_eq!((error["code"].as_i64(), kind(error)), (Some(code), word), "{line:.80}: {answer}");
        assert!(!error["message"].as_str().unwrap().is_empty());
        if line.contains("\"id\":7") {
            assert_eq!(answer["id"], 7, "{line}");
        }
        assert!(client.call("version.get", json!({})).is_ok(), "after {line:.80}");
    }
}

#[test]
fn a_request_without_an_id_is_done_and_not_answered() {
    let bench = Bench::start("");
    let mut client = bench.client();
    client.send(b"{\"jsonrpc\":\"2.0\",\"method\":\"version.get\"}\n\n").unwrap();
    client.send(b"{\"jsonrpc\":\"2.0\",\"id\":\"two\",\"method\":\"version.get\"}\n").unwrap();
    assert_eq!(client.message()["id"], "two");
}

#[test]
fn a_request_of_100_mb_is_refused_and_costs_no_memory() {
    let bench = Bench::start("");
    let mut client = bench.client();
    let mut chunk = vec![b'x'; 1 << 20];
    chunk[..9].copy_from_slice(b"{\"method\"");
    for _ in 0..100 {
        // The daemon stops reading at some point; what matters is that its answer arrives.
        if client.send(&chunk).is_err() {
            break;
        }
    }
    assert_eq!(kind(&client.message()["error"]), "too-long");
    assert!(client.closed());
    assert!(bench.call("version.get", json!({})).is_ok());
}

#[test]
fn half_a_request_and_then_silence_is_answered_and_closed() {
    let bench = Bench::start("");
    let mut client = bench.client();
    client.send(b"{\"jsonrpc\":\"2.0\",").unwrap();
    let begun = Instant::now();
    assert_eq!(kind(&client.message()["error"]), "too-long");
    let took = begun.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(15)).contains(&took), "{took:?}");
}

#[test]
fn a_thousand_idle_connections_are_bounded_and_go_away_again() {
    let bench = Bench::start("[log]\nlevel = \"error\"");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut open: Vec<UnixStream> = Vec::new();
    for _ in 0..1000 {
        open.push(UnixStream::connect(bench.path("c.sock")).unwrap());
    }
    let mut last = Client::new(open.pop().unwrap());
    assert_eq!(kind(&last.message()["error"]), "no-room");
    // One of the first is served still.
    let mut first = Client::new(open.swap_remove(0));
    assert!(first.call("version.get", json!({})).is_ok());
    drop(open);
    bench.until("there is room again", || {
        let mut client = bench.client();
        let sent = client.send(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version.get\"}\n");
        (sent.is_ok() && client.message().get("result").is_some()).then_some(())
    });
}

/// Connects as another user: SO_PEERCRED is taken from the thread that connects, and a thread can have its own user.
fn client_as(bench: &Bench, uid: u32) -> Client {
    let path = bench.path("c.sock");
    let connect = move || {
        // SAFETY: raw system calls that change the credentials of this thread alone (the C library would change all
        // threads'); the thread ends right after connecting.
        let changed = unsafe {
            libc::syscall(libc::SYS_setgroups, 0, 0) == 0
                && libc::syscall(libc::SYS_setresgid, uid, uid, uid) == 0
                && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
        };
        assert!(changed, "root is needed to become another user");
        UnixStream::connect(path).unwrap()
    };
    Client::new(std::thread::spawn(connect).join().unwrap())
}

/// Lets every user reach the bench's socket.
fn open_to_all(bench: &Bench) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(bench.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_reader_reads_and_is_refused_every_change() {
    if !nix::unistd::geteuid().is_root() {
        return skip("a_reader_reads_and_is_refused_every_change", "needs root, to become another user");
    }
    let bench = Bench::start("socket_mode = \"0666\"");
    open_to_all(&bench);
    bench.add("vm1", "vdev:net_null0").unwrap();
    let mut reader = client_as(&bench, 65534);
    assert_eq!(reader.call("port.list", json!({})).unwrap()[0]["name"], "vm1");
    for method in METHODS.iter().filter(|method| method.role == Role::Change) {
        let params = serde_json::from_str(method.example.0).unwrap();
        let error = reader.call(method.name, params).unwrap_err();
        assert_eq!(kind(&error), "permission", "{}", method.name);
        assert!(error["message"].as_str().unwrap().contains("user 65534 may only read"), "{error}");
    }
    assert_eq!(bench.call("port.list", json!({})).unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn the_group_may_change_and_who_is_no_reader_may_not_even_look() {
    if !nix::unistd::geteuid().is_root() {
        return skip(
            "the_group_may_change_and_who_is_no_reader_may_not_even_look",
            "needs root, to become another user",
        );
    }
    let bench = Bench::start("group = \"65533\"\nreaders = \"65534\"");
    open_to_all(&bench);
    let mut changer = client_as(&bench, 65533);
    changer.call("port.add", bench.port("vm1", "vdev:net_null0")).unwrap();
    let mut reader = client_as(&bench, 65534);
    reader.call("port.list", json!({})).unwrap();
    assert_eq!(kind(&reader.call("port.remove", json!({ "name": "vm1" })).unwrap_err()), "permission");
    let mut nobody = client_as(&bench, 65532);
    for method in ["port.list", "version.get", "no.such"] {
        assert_eq!(kind(&nobody.call(method, json!({})).unwrap_err()), "permission");
    }
}

#[test]
fn a_reader_of_events_gets_what_it_missed_and_what_comes() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0,ready=1").unwrap();
    let seen = bench.until("the driver is ready", || {
        let events = bench.events_after(0);
        let ready = events.iter().find(|event| event["event"] == "driver-ready")?;
        assert_eq!((&ready["lane"], &ready["port"], &ready["pairs"]), (&json!("main"), &json!("vm1"), &json!(1)));
        let numbers: Vec<_> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        events.last()?["sequence"].as_u64()
    });
    let mut follower = bench.client();
    follower.call("events.subscribe", json!({})).unwrap();
    assert_eq!(kind(&follower.call("events.subscribe", json!({})).unwrap_err()), "exists");
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    let mut removed = follower.message();
    while removed["params"]["event"] != "port-removed" {
        removed = follower.message();
    }
    assert_eq!((&removed["method"], &removed["params"]["port"]), (&json!("event"), &json!("vm1")));
    let error = bench.call("events.subscribe", json!({ "after": 1_000_000 })).unwrap_err();
    assert_eq!(kind(&error), "invalid");

    // Numbers go on over a restart, and what is not kept any more is told.
    bench.stop(Ending::StopLanes);
    bench.boot();
    let mut late = bench.client();
    let last = late.call("events.subscribe", json!({ "after": seen })).unwrap()["last"].as_u64().unwrap();
    assert!(last > seen);
    let missed = late.message();
    assert_eq!((&missed["method"], &missed["params"]["from"]), (&json!("missed"), &json!(seen + 1)));
    let next = late.message();
    assert_eq!(next["params"]["sequence"].as_u64(), Some(missed["params"]["to"].as_u64().unwrap() + 1));
    assert_eq!(next["params"]["event"], "daemon-started");
}

#[test]
fn who_watches_flows_is_sent_them_again_and_again_and_may_go_on_asking() {
    let bench = Bench::start("");
    let mut watcher = bench.client();
    let wrong = watcher.call("flow.watch", json!({ "filter": {}, "interval_ms": 10 })).unwrap_err();
    assert_eq!(kind(&wrong), "invalid");
    watcher.call("flow.watch", json!({ "filter": { "sort": "rate", "limit": 5 }, "interval_ms": 100 })).unwrap();
    let mut looks = Vec::new();
    while looks.len() < 2 {
        let message = watcher.message();
        assert_eq!(message["method"], "flows");
        assert_eq!((&message["params"]["stats"]["flows"], &message["params"]["list"]["total"]), (&json!(0), &json!(0)));
        looks.push(message["params"]["time_ms"].as_u64().unwrap());
    }
    assert!(looks[1] > looks[0]);
    let again = watcher.call("flow.watch", json!({ "filter": {} })).unwrap_err();
    assert_eq!(kind(&again), "exists");
}

#[test]
fn the_schema_has_every_method_event_and_kind() {
    let bench = Bench::start("");
    let schema = bench.call("schema.get", json!({})).unwrap();
    for method in METHODS {
        let entry = &schema["methods"][method.name];
        for part in ["description", "role", "params", "result", "example"] {
            assert!(!entry[part].is_null(), "{} {part}", method.name);
        }
    }
    let text = schema.to_string();
    for word in ["driver-ready", "lane-died", "config-conflict", "unknown-method", "no-room", "may_exist"] {
        assert!(text.contains(&format!("\"{word}\"")), "{word}");
    }
    // Every reference leads somewhere.
    for reference in text.split("\"$ref\":\"#/$defs/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schema["$defs"].get(name).is_some(), "{name}");
    }
}

#[test]
fn a_live_control_socket_and_a_file_in_its_place_are_not_taken_away() {
    let mut bench = Bench::start("");
    let mut other = Bench::stopped("");
    let socket = bench.path("c.sock");
    let text = std::fs::read_to_string(other.path("ringspan.toml")).unwrap();
    let mine = other.path("c.sock").display().to_string();
    let run_dir = format!("[control]\nrun_dir = \"{}\"", other.path("run").display());
    let text = text.replace(&mine, &socket.display().to_string()).replace("[control]", &run_dir);
    std::fs::write(other.path("ringspan.toml"), text).unwrap();
    let error = other.try_boot().unwrap_err();
    assert!(error.contains("somebody serves"), "{error}");
    assert!(bench.call("version.get", json!({})).is_ok());
    bench.stop(Ending::StopLanes);
    std::fs::write(&socket, "precious").unwrap();
    let error = bench.try_boot().unwrap_err();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    std::fs::remove_file(&socket).unwrap();
    // One that a killed daemon left is replaced.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    bench.boot();
}

#[test]
fn jobs_are_listed_and_a_second_one_of_the_same_is_refused() {
    let bench = Bench::start("");
    bench.lane_pid("main");
    let job = bench.call("lane.restart", json!({ "name": "main" })).unwrap();
    let again = bench.call("lane.restart", json!({ "name": "main" }));
    if let Err(error) = again {
        assert_eq!(kind(&error), "busy");
    }
    let done = bench.call("job.wait", json!({ "id": job["id"] })).unwrap();
    assert_eq!((&done["state"], &done["item"]), (&json!("done"), &json!("main")));
    assert!(bench.call("job.list", json!({})).unwrap().as_array().unwrap().iter().any(|one| one["id"] == job["id"]));
    assert_eq!(kind(&bench.call("job.get", json!({ "id": 99 })).unwrap_err()), "not-found");
    assert_eq!(kind(&bench.call("lane.restart", json!({ "name": "no" })).unwrap_err()), "not-found");
    assert_eq!(bench.call("job.cancel", json!({ "id": job["id"] })).unwrap()["state"], "done", "too late to cancel");
}

#[test]
fn a_reader_that_does_not_read_is_told_what_it_missed_or_disconnected() {
    let bench = Bench::start("");
    let daemon = &bench.running.as_ref().unwrap().daemon;
    let mut slow = bench.client();
    let after = slow.call("events.subscribe", json!({})).unwrap()["last"].as_u64().unwrap();
    let begun = Instant::now();
    for _ in 0..20_000 {
        daemon.events.tell(None, None, crate::control::EventKind::PortChanged);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody waits for a reader");
    let mut late = bench.client();
    late.call("events.subscribe", json!({ "after": after })).unwrap();
    let missed = late.message();
    assert_eq!(missed["method"], "missed");
    assert_eq!(late.message()["params"]["sequence"].as_u64(), missed["params"]["to"].as_u64().map(|to| to + 1));
    // What was sent can be read; then the connection ends.
    let mut fds = [PollFd::new(slow.0.get_ref().as_fd(), PollFlags::empty())];
    assert_eq!(poll(&mut fds, 20_000u16), Ok(1), "the connection was not ended");
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut slow.0, &mut rest).unwrap();
    assert!(!rest.is_empty() && rest.len() < 20_000 * 60, "{} bytes", rest.len());
}
