//! Which mode a port has, and what becomes of one that cannot be.

use super::*;

#[test]
fn a_mode_that_cannot_be_leaves_the_port_as_it_was_and_says_so() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let relayed = spec(folder.path(), Mode::Relay);
    let backing = running(&scene, &relayed);
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
    let vdpa = PortSpec { mode: Mode::Vdpa, ..relayed.clone() };
    scene.opened();

    let limited = PortSpec { max_rate: 10, ..vdpa.clone() };
    assert!(backing.set(&limited).unwrap_err().message.contains("max_rate is 10"));
    assert_eq!((scene.opened(), has(&backing)), (vec![], (ModeStatus::Relay, 1)), "nothing was closed for that");

    scene.device.lock().refuses_below = LANE;
    backing.take_events();
    assert!(backing.set(&vdpa).unwrap_err().message.contains("cannot be pinned"));
    assert_eq!(backing.take_events(), [], "it is as it was");
    assert_eq!(
        (scene.opened(), has(&backing)),
        (vec!["lent"], (ModeStatus::Relay, 1)),
        "the same relay has them again"
    );
    assert_eq!((backing.mode().1, backing.allowed()), (None, u64::MAX));

    // It begins at the beginning only: a new relay's rings are there.
    scene.world().lending_fails = Some(Refusal::Position { ring: 0, at: 7, error: "no".into() });
    assert!(backing.set(&vdpa).unwrap_err().message.contains("cannot be pinned"));
    assert_eq!((scene.opened(), has(&backing)), (vec!["lent", "relays", "lent"], (ModeStatus::Relay, 1)));

    scene.world().lending_fails = Some(Refusal::Broken(64));
    scene.world().relays_fail = true;
    let said = backing.set(&vdpa).unwrap_err().message;
    assert!(said.contains("could not be put back") && said.contains("no hugepages"), "{said}");
    assert_eq!(has(&backing), (ModeStatus::Down, 0));

    // What could not be put back is tried again by itself.
    scene.world().relays_fail = false;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
    scene.device.lock().refuses_below = 0;
    backing.set(&vdpa).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
}

#[test]
fn a_relay_that_cannot_be_leaves_the_rings_with_the_device() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
    let offered = backing.allowed();
    scene.world().relays_fail = true;
    let relay = PortSpec { mode: Mode::Relay, ..auto.clone() };
    let failure = backing.set(&relay).unwrap_err();
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::NoRoom, "no hugepages"));
    assert_eq!((has(&backing), backing.allowed()), ((ModeStatus::Vdpa, 1), offered));
    scene.world().relays_fail = false;
    backing.set(&relay).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
}

#[test]
fn a_port_that_is_down_is_relayed_when_that_is_asked_for() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let vdpa = spec(folder.path(), Mode::Vdpa);
    let backing = Backing::open(Box::new(scene.clone()), &vdpa).unwrap();
    connect(&backing, 0);
    assert_eq!(start(&backing), 0, "without VERSION_1");
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    backing.set(&PortSpec { mode: Mode::Relay, ..vdpa.clone() }).unwrap();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));

    // And by the next start, when it is down while its mode is relay.
    drop(backing);
    let relay = spec(folder.path(), Mode::Relay);
    let backing = running(&scene, &relay);
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    std::fs::write(folder.path().join("node"), "").unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
}

#[test]
fn a_port_that_is_down_for_its_guests_sake_is_as_it_was_after_a_change_that_cannot_be() {
    for mode in [Mode::Relay, Mode::Auto] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let vdpa = spec(folder.path(), Mode::Vdpa);
        let backing = Backing::open(Box::new(scene.clone()), &vdpa).unwrap();
        connect(&backing, 0);
        assert_eq!(start(&backing), 0, "without VERSION_1");
        let was = backing.mode();
        assert_eq!(was.0, ModeStatus::Down);
        backing.take_events();
        for node in [false, true] {
            (scene.world().node_fails, scene.world().relays_fail) = (node, true);
            backing.set(&PortSpec { mode, ..vdpa.clone() }).unwrap_err();
            assert_eq!((backing.take_events(), backing.mode()), (vec![], was.clone()), "{mode:?}");
        }
        // Nothing went, so that nothing is waited for, and nothing returns.
        (scene.world().node_fails, scene.world().relays_fail) = (false, false);
        backing.set(&PortSpec { mode, ..vdpa }).unwrap();
        assert_eq!(has(&backing), (ModeStatus::Relay, 1), "{mode:?}");
        let events = backing.take_events();
        assert!(matches!(events[..], [LaneEventKind::ModeChanged { mode: ModeStatus::Relay, .. }]), "{events:?}");
    }
}

#[test]
fn a_guest_in_circles_does_not_open_a_device_that_has_just_refused_the_same() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = Backing::open(Box::new(scene.clone()), &spec(folder.path(), Mode::Vdpa)).unwrap();
    connect(&backing, 0);
    for _ in 0..5 {
        backing.start(0, ring());
        backing.stop(0);
    }
    assert_eq!(scene.opened(), ["node"]);
    assert_eq!(backing.take_events().len(), 1);
    backing.negotiated(VERSION_1);
    assert_eq!((start(&backing), has(&backing)), (1, (ModeStatus::Vdpa, 1)));
}

#[test]
fn the_device_is_tried_again_when_the_last_ring_has_stopped_and_not_before() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    scene.device.lock().moves = false;
    let backing = Backing::open(Box::new(scene.clone()), &spec(folder.path(), Mode::Auto)).unwrap();
    connect(&backing, VERSION_1);
    // Where a split ring stands its used index says.
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap());
    memory.write_obj(7u16, GuestAddress(0x3002)).unwrap();
    backing.memory(GuestMap::new(&memory));
    let moved = RingConfig { base: 7, resume: Some(7), ..ring() };
    (0..2).for_each(|index| drop(backing.start(index, moved.clone())));
    assert_eq!(backing.mode().0, ModeStatus::Relay, "a position that it cannot begin at");
    backing.stop(0);
    backing.start(0, moved.clone());
    assert_eq!(backing.mode().0, ModeStatus::Relay);
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    memory.write_obj(0u16, GuestAddress(0x3002)).unwrap();
    assert_eq!((start(&backing), backing.mode().0), (1, ModeStatus::Vdpa));
}

#[test]
fn after_a_guest_was_migrated_away_the_next_one_is_not_relayed_against_the_mode() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = RingLog { log: DirtyLog::map(file, 0, 4096).unwrap(), used: 0x3000 };
    (0..2).for_each(|index| backing.log(index, Some(log.clone())));
    assert_eq!(backing.mode().0, ModeStatus::Relay);
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    backing.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
    connect(&backing, 0);
    assert_eq!((start(&backing), backing.mode().0), (0, ModeStatus::Down));
}

#[test]
fn features_stay_those_of_the_device_when_it_is_the_port_that_keeps_it_out() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let offer = Handover::new(Box::new(scene.device.clone())).unwrap().facts().offer(u64::MAX);
    let limited = PortSpec { max_rate: 10, ..spec(folder.path(), Mode::Auto) };
    let backing = running(&scene, &limited);
    assert_eq!((backing.mode().0, backing.allowed()), (ModeStatus::Relay, offer));
    let free = PortSpec { max_rate: 0, mode: Mode::Relay, ..limited };
    backing.set(&free).unwrap();
    assert_eq!(backing.allowed(), u64::MAX);
    backing.set(&PortSpec { mode: Mode::Auto, ..free }).unwrap();
    assert_eq!((has(&backing), backing.allowed()), ((ModeStatus::Vdpa, 1), offer));
}

#[test]
fn who_only_looks_does_not_wait_for_a_switch() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    let midway = Arc::new(Barrier::new(2));
    scene.world().slow = Some(Arc::clone(&midway));
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }));
        midway.wait();
        assert_eq!(backing.look(), None);
        assert_eq!((has(&backing), backing.status().0.len()), ((ModeStatus::Vdpa, 1), 0));
        assert!(backing.shares().is_none() && !backing.is_broken() && backing.extended_stats().is_empty());
        midway.wait();
        changed.join().unwrap().unwrap();
    });
    assert_eq!(has(&backing), (ModeStatus::Relay, 1));
}

#[test]
fn what_a_relays_device_has_not_sent_when_it_is_taken_away_is_counted() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Relay));
    scene.world().left = 3;
    backing.set(&spec(folder.path(), Mode::Auto)).unwrap();
    assert_eq!((has(&backing), scene.world().unsent), ((ModeStatus::Vdpa, 1), 3));
    backing.set(&spec(folder.path(), Mode::Relay)).unwrap();
    assert_eq!(scene.world().unsent, 3, "a guest's own rings say themselves what was not sent");
    // And when the device goes.
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!((has(&backing), scene.world().unsent), ((ModeStatus::Down, 0), 6));
}
