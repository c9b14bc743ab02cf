//! Devices that go away, come back, or refuse what a relay tells them later.

use super::*;

#[test]
fn a_relay_is_made_anew_when_the_device_refuses_what_it_says_later() {
    let folder = tempfile::tempdir().unwrap();
    let says = |driver: &Driver, what| match what {
        "map" => driver.memory(GuestMap::new(&Arc::new(
            GuestMemoryMmap::from_ranges(&[(GuestAddress(1 << 33), 0x10_0000)]).unwrap(),
        ))),
        "enable" => (0..2).for_each(|index| driver.start(index, ring_at(LANE))),
        _ => driver.event(LaneEventKind::HandshakeFailed { reason: "no memory table".into() }),
    };
    let words = ["map", "enable", "none"];
    for (mode, word) in words.iter().flat_map(|word| [(Mode::Relay, *word), (Mode::Auto, *word)]) {
        let (scene, when) = (Scene::new(), format!("{mode:?}, {word}"));
        scene.device.lock().moves = mode == Mode::Relay;
        let limited = PortSpec { max_rate: 10, ..spec(folder.path(), mode) };
        let backing = running(&scene, &limited);
        let reason = backing.mode().1;
        let driver = scene.world().driver.upgrade().unwrap();
        assert_eq!((has(&backing), driver.link().unwrap().0), ((ModeStatus::Relay, 1), true), "{when}");
        scene.device.lock().refuses.insert(word, libc::EIO);
        says(&driver, word);
        assert!(!driver.link().unwrap().0, "{when}");
        assert!(backing.look().is_some_and(|look| look.due && !look.up && !look.gone), "{when}");
        scene.device.lock().refuses.clear();
        scene.opened();
        backing.take_events();
        backing.attend();
        assert_eq!((scene.opened(), has(&backing)), (vec!["node", "relays", "lent"], (ModeStatus::Relay, 1)), "{when}");
        let events = backing.take_events();
        assert!(
            matches!(&events[..], [
                LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason: Some(why), .. },
                LaneEventKind::ModeChanged { mode: ModeStatus::Relay, .. },
            ] if why.contains("made anew")),
            "{when}: {events:?}"
        );
        assert_eq!(backing.mode().1, reason, "{when}");
        assert!(scene.world().driver.upgrade().unwrap().link().unwrap().0, "{when}");
        assert!(backing.look().is_none_or(|look| !look.due), "{when}");
    }
}

#[test]
fn a_device_that_goes_amid_a_change_is_taken_again_by_a_port_that_is_not_relayed() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    // It is noticed first by who tells it of memory.
    scene.device.lock().goes_after = Some(0);
    backing.memory(GuestMap::new(&Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000), (GuestAddress(1 << 33), 0x1000)]).unwrap(),
    )));
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    assert!(backing.look().is_some_and(|look| !look.up));
    assert!(backing.take_events().contains(&LaneEventKind::DeviceRemoved));
    scene.device.lock().goes_after = None;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
}

#[test]
fn a_device_that_is_back_and_cannot_be_opened_yet_is_tried_again() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    scene.device.lock().gone = true;
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0));
    scene.device.lock().gone = false;
    scene.world().node_fails = true;
    backing.take_events();
    backing.attend();
    assert!(!backing.take_events().contains(&LaneEventKind::DeviceReturned));
    assert!(backing.look().is_some_and(|look| !look.up));
    scene.world().node_fails = false;
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
    assert_eq!(backing.take_events()[0], LaneEventKind::DeviceReturned);
}

#[test]
fn a_device_that_goes_again_before_anybody_has_looked_twice_is_told_of_each_time() {
    for mode in [Mode::Auto, Mode::Vdpa, Mode::Relay] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let (backing, node) = (running(&scene, &spec(folder.path(), mode)), folder.path().join("node"));
        let was = backing.mode().0;
        backing.take_events();
        for turn in 0..3 {
            scene.device.lock().gone = true;
            std::fs::remove_file(&node).unwrap();
            let look = backing.look().unwrap();
            assert!(look.due && !look.up && !look.gone, "who looks tells nobody: {look:?}");
            backing.attend();
            // Twice without a device is gone once.
            backing.attend();
            scene.device.lock().gone = false;
            std::fs::write(&node, "").unwrap();
            attend_until_up(&backing);
            let events = backing.take_events();
            assert!(
                matches!(&events[..], [
                    LaneEventKind::DeviceRemoved,
                    LaneEventKind::ModeChanged { mode: ModeStatus::Down, .. },
                    LaneEventKind::DeviceReturned,
                    LaneEventKind::ModeChanged { mode, .. },
                ] if *mode == was),
                "{mode:?}, {turn}: {events:?}"
            );
        }
    }
}

#[test]
fn a_device_that_is_back_when_the_guests_driver_starts_is_told_as_returned() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Auto));
    // Refused for this guest's sake, and gone before the next one comes.
    scene.device.lock().refuses_below = LANE;
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    start(&backing);
    assert_eq!(backing.mode().0, ModeStatus::Relay);
    std::fs::remove_file(folder.path().join("node")).unwrap();
    (scene.device.lock().gone, scene.device.lock().refuses_below) = (true, 0);
    backing.attend();
    assert!(backing.take_events().contains(&LaneEventKind::DeviceRemoved));
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    backing.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
    std::fs::write(folder.path().join("node"), "").unwrap();
    scene.device.lock().gone = false;
    connect(&backing, VERSION_1);
    start(&backing);
    attend_until_up(&backing);
    assert_eq!(has(&backing), (ModeStatus::Vdpa, 1));
    let returned = backing.take_events().into_iter().filter(|event| *event == LaneEventKind::DeviceReturned).count();
    assert_eq!(returned, 1);
}

#[test]
fn a_device_that_is_back_and_does_not_suit_the_guest_is_told_as_returned_and_why_nobody_has_it() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Vdpa));
    scene.device.lock().gone = true;
    backing.attend();
    (scene.device.lock().gone, scene.device.lock().refuses_below) = (false, LANE);
    backing.take_events();
    backing.attend();
    let events = backing.take_events();
    assert!(
        matches!(&events[..], [
            LaneEventKind::DeviceReturned,
            LaneEventKind::ModeChanged { mode: ModeStatus::Down, reason: Some(why), .. },
        ] if why.contains("cannot be pinned")),
        "{events:?}"
    );
    assert!(backing.look().is_some_and(|look| !look.up && !look.due), "it is not looked for");
    // Gone again, which is told again.
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!(backing.take_events()[0], LaneEventKind::DeviceRemoved);
}
