//! What a guest has, or may have, is not taken away from it.

use super::*;

#[test]
fn what_a_guest_has_open_is_not_taken_away() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    *bench.world.user.borrow_mut() = Some("its guest is connected (driver-ready)".into());
    let error = all.detach(&bench.world, &key("g"), false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    // The state, what is still to be done, in that order, and the way to force it.
    let mut rest = error.message.as_str();
    for part in ["driver-ready", "device_del", "DEVICE_DELETED", "net-g-nic0", "netdev_del", "--disturb"] {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("no {part} in its place: {error}")).1;
    }
    assert_eq!(bench.world.of(&key("g")), STEPS);
    // An agent's list that lacks a guest that runs is a mistake of the list.
    let synced = sync(&all, &bench.world, &[], true, |_| panic!("nothing is to be attached"));
    let orphan = &synced.orphaned[0];
    assert!(!orphan.mended && orphan.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Busy), "{orphan:?}");
    assert_eq!(bench.world.of(&key("g")), STEPS);
    assert!(all.detach(&bench.world, &key("g"), true).unwrap());
    // It is gone, whoever is connected.
    assert!(!all.detach(&bench.world, &key("g"), false).unwrap());
    assert_eq!(bench.world.of(&key("g")), []);
}

#[test]
fn what_a_guest_may_have_is_not_taken_away_while_nobody_can_say() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    *bench.world.silent.borrow_mut() = Some("lane main does not answer".into());
    let error = all.detach(&bench.world, &key("g"), false).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    for part in ["not known", "lane main does not answer", "try again", "ringspan lane list", "--disturb"] {
        assert!(error.message.contains(part), "no {part}: {error}");
    }
    let synced = sync(&all, &bench.world, &[], true, |_| panic!("nothing is to be attached"));
    let orphan = &synced.orphaned[0];
    assert!(!orphan.mended && orphan.error.as_ref().is_some_and(|error| error.kind == ErrorKind::Busy), "{orphan:?}");
    assert_eq!((all.get(&key("g")).unwrap().stage, bench.world.of(&key("g"))), (Stage::Attached, STEPS.to_vec()));
    // Its lane is down for good, and so is the guest.
    assert!(all.detach(&bench.world, &key("g"), true).unwrap());
    assert_eq!(bench.world.of(&key("g")), []);
}

#[test]
fn what_was_being_taken_back_is_finished_also_while_nobody_can_say_who_has_it() {
    let interrupted = || {
        let bench = Bench::new();
        let all = bench.boot();
        bench.attach(&all, "g").unwrap();
        // Begun and written down, and the daemon is killed.
        all.kill_at(3);
        all.detach(&bench.world, &key("g"), false).unwrap_err();
        drop(all);
        *bench.world.silent.borrow_mut() = Some("lane main is not running yet".into());
        assert_eq!(bench.boot().get(&key("g")).unwrap().stage, Stage::Detaching);
        bench
    };
    for finish in [
        |bench: &Bench, all: &Attachments| bench.recover(all),
        |bench: &Bench, all: &Attachments| assert!(all.detach(&bench.world, &key("g"), false).unwrap()),
        |bench: &Bench, all: &Attachments| assert!(sync(all, &bench.world, &[], true, |_| panic!()).orphaned[0].mended),
    ] {
        let bench = interrupted();
        let all = bench.boot();
        finish(&bench, &all);
        assert_eq!((all.get(&key("g")), bench.world.of(&key("g"))), (None, vec![]));
    }
}

#[test]
fn what_was_handed_over_is_taken_from_nobody_who_has_it_open() {
    let bench = Bench::new();
    let all = bench.boot();
    let wanted = wanted("g", r#","mode":"passthrough""#);
    all.attach(&bench.world, &wanted, |_| Ok(record(&wanted, vf(0)))).unwrap();
    *bench.world.user.borrow_mut() = Some("process 7 has it open".into());
    for disturb in [false, true] {
        let error = all.detach(&bench.world, &key("g"), disturb).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Busy);
        assert!(error.message.contains("process 7") && error.message.contains("DEVICE_DELETED"), "{error}");
        assert!(!error.message.contains("disturb") && !error.message.contains("netdev_del"), "{error}");
    }
    assert_eq!(bench.world.of(&key("g")), STEPS);
    *bench.world.user.borrow_mut() = None;
    assert!(all.detach(&bench.world, &key("g"), false).unwrap());
}
