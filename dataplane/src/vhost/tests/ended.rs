//! Connections end, and others come: restarts, second front-ends, both roles, and the end of the session.

use std::os::unix::net::UnixListener;

use super::*;

#[test]
fn a_front_end_that_goes_leaves_nothing_running() {
    let bench = Bench::new();
    drop(bench.connect_and_start());
    assert_eq!(
        bench.recorder.disconnected(),
        [
            Heard::Stop(0),
            Heard::Stop(1),
            Heard::Memory(0),
            Heard::Event(LaneEventKind::FrontendDisconnected { reason: "the front-end closed the connection".into() }),
        ]
    );
}

#[test]
fn fifty_front_ends_one_after_the_other() {
    let bench = Bench::new();
    for _ in 0..50 {
        drop(bench.connect_and_start());
        bench.recorder.disconnected();
    }
    let private: Vec<_> = fs::read_dir(bench.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(private, ["port.sock"], "private sockets are not left behind");
}

#[test]
fn a_second_front_end_is_closed_at_once_and_the_first_goes_on() {
    let bench = Bench::new();
    let mut first = bench.connect_and_start();
    for _ in 0..3 {
        let mut second = bench.connect();
        assert_eq!(second.answer(), None, "closed");
    }
    assert_eq!(first.stop(0), STEP);
    assert_eq!(bench.recorder.take(), [Heard::Stop(0)], "nobody else was heard");
}

#[test]
fn a_restarted_front_end_always_gets_in() {
    let bench = Bench::new();
    let mut front = bench.connect_and_start();
    for round in 0..50 {
        // The successor is there before the session has taken note of the death.
        drop(front);
        front = bench.connect();
        front.negotiate();
        bench.recorder.take_until("the successor", |heard| *heard == Heard::Negotiated(wanted()));
        if round % 2 == 0 {
            front.share_memory();
            front.set_up(0, 256, 0);
        }
    }
}

#[test]
fn stop_ends_the_connection_and_removes_the_socket() {
    let mut bench = Bench::new();
    let mut front = bench.connect_and_start();
    // Half a message is no reason to wait.
    send(front.socket.as_fd(), &[1, 0, 0], &[]).unwrap();
    let begun = Instant::now();
    bench.session.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "it waited for the front-end");
    assert!(!bench.socket().exists());
    let heard = bench.recorder.take();
    assert_eq!(heard[..3], [Heard::Stop(0), Heard::Stop(1), Heard::Memory(0)]);
    assert_eq!(front.answer(), None);
}

#[test]
fn a_second_session_does_not_take_a_live_socket() {
    let bench = Bench::new();
    let error = Session::start(config(bench.folder.path(), Role::Server), Arc::new(Recorder::default()))
        .map(drop)
        .expect_err("the socket is live");
    assert!(error.to_string().contains("another process listens on it"), "{error}");
    drop(bench.connect_and_start());
}

#[test]
fn the_client_role_waits_for_its_front_end_and_comes_back() {
    let mut bench = Bench::with_role(Role::Client);
    for _ in 0..3 {
        let listener = UnixListener::bind(bench.socket()).unwrap();
        let mut front = FrontEnd::new(listener.accept().unwrap().0);
        front.negotiate();
        front.share_memory();
        front.set_up(0, 256, 0);
        bench.recorder.take_until("ring 0", |heard| matches!(heard, Heard::Start(0, _)));
        drop(listener);
        fs::remove_file(bench.socket()).unwrap();
        drop(front);
        bench.recorder.disconnected();
    }
    let listener = UnixListener::bind(bench.socket()).unwrap();
    bench.session.stop();
    drop(listener);
    assert!(bench.socket().exists(), "the front-end's socket is not ours to remove");
    assert!(bench.session_is_stopped_in_time());
}

#[test]
fn the_offer_changes_with_the_next_connection() {
    let bench = Bench::new();
    let mut front = bench.connect();
    front.negotiate();
    bench.session.set_offer(Compat::V1, true, 9000);
    assert_eq!(front.ask(Request::NET_SET_MTU, &9000u64.to_ne_bytes(), &[]), 1, "not for this one");
    assert!(bench.recorder.failure().contains("the guest's MTU 9000 is larger than the port's 1500"));
    let mut front = bench.connect();
    front.negotiate();
    front.done(Request::NET_SET_MTU, &9000u64.to_ne_bytes(), &[]);
}

impl Bench {
    /// A client session that waits for its front-end stops without waiting on.
    fn session_is_stopped_in_time(&self) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let recorder = Arc::new(Recorder::default());
        let mut session = Session::start(config(folder.path(), Role::Client), recorder).unwrap();
        let begun = Instant::now();
        session.stop();
        begun.elapsed() < Duration::from_secs(4)
    }
}
