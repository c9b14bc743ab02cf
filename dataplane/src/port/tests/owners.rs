//! Nobody has a ring of the guest's, or its memory, beside its owner, at whatever step a switch ends.

use super::*;

/// How many words a device is told while `change` is done.
fn words(scene: &Scene, change: impl FnOnce()) -> usize {
    let before = scene.device.lock().said.len();
    change();
    scene.device.lock().said.len() - before
}

#[test]
fn a_device_that_goes_at_any_step_of_a_switch_leaves_no_ring_with_two_owners() {
    for (from, to) in [(Mode::Auto, Mode::Relay), (Mode::Relay, Mode::Auto)] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let backing = running(&scene, &spec(folder.path(), from));
        let steps = words(&scene, || backing.set(&spec(folder.path(), to)).unwrap());
        assert!(steps > 5, "{steps}");
        // Each waits until a device is looked for again.
        std::thread::scope(|scope| (0..=steps).for_each(|step| drop(scope.spawn(move || goes_after(step, from, to)))));
    }
}

fn goes_after(step: usize, from: Mode, to: Mode) {
    let (scene, when) = (Scene::new(), format!("{from:?} to {to:?}, gone after {step} words"));
    let folder = tempfile::tempdir().unwrap();
    let backing = running(&scene, &spec(folder.path(), from));
    scene.device.lock().goes_after = Some(step);
    // It may have been done by then, or refused.
    let _ = backing.set(&spec(folder.path(), to));
    scene.assert_one_owner(&backing, &when);
    scene.device.lock().gone = true;
    std::fs::remove_file(folder.path().join("node")).unwrap();
    backing.attend();
    assert_eq!(has(&backing), (ModeStatus::Down, 0), "{when}");
    assert!(scene.world().relayed.is_empty() && !scene.device.runs(), "{when}");
    assert_eq!(scene.device.lock().mapped.len(), 0, "{when}");
    // It is back, and the guest goes on.
    std::fs::write(folder.path().join("node"), "").unwrap();
    (scene.device.lock().gone, scene.device.lock().goes_after) = (false, None);
    attend_until_up(&backing);
    scene.assert_one_owner(&backing, &when);
    assert_eq!(backing.pairs(), 1, "{when}");
}

#[test]
fn a_front_end_that_is_killed_at_any_step_of_a_switch_leaves_no_ring_with_anybody() {
    let folder = tempfile::tempdir().unwrap();
    let (auto, relay) = (spec(folder.path(), Mode::Auto), spec(folder.path(), Mode::Relay));
    for (from, to) in [(&auto, &relay), (&relay, &auto)] {
        let scene = Scene::new();
        let backing = running(&scene, from);
        let steps = words(&scene, || backing.set(to).unwrap());
        for step in 0..steps {
            let (scene, when) = (Scene::new(), format!("{:?} to {:?}, killed after {step} words", from.mode, to.mode));
            let backing = running(&scene, from);
            let midway = Arc::new(Barrier::new(2));
            scene.device.lock().waits_after = Some((step, Arc::clone(&midway)));
            std::thread::scope(|scope| {
                let changed = scope.spawn(|| backing.set(to));
                midway.wait();
                // The session stops each ring, and the memory goes.
                let ended = scope.spawn(|| {
                    (0..2).for_each(|index| assert!(backing.stop(index).is_some(), "{when}"));
                    backing.memory(GuestMap::new(&Arc::new(GuestMemoryMmap::new())));
                });
                midway.wait();
                ended.join().unwrap();
                changed.join().unwrap().unwrap();
            });
            assert!(scene.world().relayed.is_empty() && !scene.device_has().0, "{when}");
            assert_eq!((scene.guests(), backing.pairs()), (vec![], 0), "{when}: the guest's memory is let go of");
            connect(&backing, VERSION_1);
            assert_eq!(start(&backing), 1, "{when}: the next guest");
            scene.assert_one_owner(&backing, &when);
        }
    }
}

#[test]
fn a_device_that_cannot_be_reset_is_closed_before_a_relay_gets_the_rings() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Auto));
    scene.device.lock().refuses.insert("status", libc::EIO);
    let relay = PortSpec { mode: Mode::Relay, ..spec(folder.path(), Mode::Relay) };
    let said = backing.set(&relay).unwrap_err().message;
    assert!(said.contains("cannot be reset"), "{said}");
    scene.assert_one_owner(&backing, "a device that is not reset");
    assert_eq!((has(&backing), scene.device.runs()), ((ModeStatus::Down, 0), false));
}

#[test]
fn where_a_relay_was_is_forgotten_before_the_device_has_the_ring() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let backing = running(&scene, &spec(folder.path(), Mode::Relay));
    assert_eq!(scene.forgotten(), BTreeSet::new());
    backing.set(&spec(folder.path(), Mode::Auto)).unwrap();
    assert_eq!((has(&backing), scene.forgotten()), ((ModeStatus::Vdpa, 1), BTreeSet::from([0, 1])));
    backing.stop(0);
    backing.start(0, ring());
    assert_eq!(scene.forgotten(), BTreeSet::from([0]));
}

#[test]
fn the_device_has_the_lanes_rings_or_the_guests() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let relay = PortSpec { mode: Mode::Relay, ..auto.clone() };
    let backing = running(&scene, &auto);
    for _ in 0..3 {
        assert_eq!(scene.device_has(), (true, false));
        backing.set(&relay).unwrap();
        assert_eq!(scene.device_has(), (false, true));
        scene.assert_one_owner(&backing, "relayed");
        backing.set(&auto).unwrap();
        scene.assert_one_owner(&backing, "back");
    }
}

#[test]
fn what_the_device_refuses_a_relay_that_has_it_leaves_no_ring_with_two_and_the_guest_gets_it_back() {
    type Asked = fn(&Driver);
    let memory: Asked = |driver| driver.memory(memory_at(LANE));
    let begin: Asked = |driver| {
        driver.stop(1);
        driver.start(1, ring_at(LANE));
    };
    for (word, asked) in [("map", memory), ("place", begin)] {
        let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
        let auto = spec(folder.path(), Mode::Auto);
        let backing = running(&scene, &PortSpec { mode: Mode::Relay, ..auto.clone() });
        let driver = scene.world().driver.upgrade().unwrap();
        scene.device.lock().refuses.insert(word, libc::ENOMEM);
        asked(&driver);
        assert_eq!(scene.device_has(), (false, false), "{word}");
        scene.assert_one_owner(&backing, word);
        scene.device.lock().refuses.clear();
        backing.set(&auto).unwrap();
        assert_eq!((has(&backing), scene.device_has()), ((ModeStatus::Vdpa, 1), (true, false)), "{word}");
        scene.assert_one_owner(&backing, word);
    }
}

#[test]
fn a_relays_device_keeps_the_guests_memory_during_a_migration_only_and_is_given_it_before_the_rings_stop() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    assert_eq!(scene.guests(), [0]);
    // Its pages may be others by the time that the device is to have them again: a balloon, free page reporting.
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]));
    backing.memory(memory());
    assert_eq!(scene.guests(), [] as [u64; 0]);
    scene.device.lock().said.clear();
    backing.set(&auto).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
    let said = scene.device.lock().said.clone();
    let at = |word: &str| said.iter().position(|one| one == word).unwrap_or_else(|| panic!("no {word}: {said:?}"));
    assert!(at("map 0x0") < at("status 0"), "pinned within the pause: {said:?}");
    assert_eq!(said.iter().filter(|word| word.ends_with("map 0x0")).count(), 1, "{said:?}");

    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let log = RingLog { log: DirtyLog::map(file, 0, 4096).unwrap(), used: 0x3000 };
    let migrate = || (0..2).for_each(|index| backing.log(index, Some(log.clone())));
    let stay = || (0..2).for_each(|index| backing.log(index, None));
    scene.device.lock().said.clear();
    migrate();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![0]));
    stay();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
    assert!(!scene.device.lock().said.iter().any(|word| word.ends_with("map 0x0")), "nothing is pinned twice");
    migrate();
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    assert_eq!(scene.guests(), [0]);
    stay();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]), "it was the operator's by then");
    backing.set(&auto).unwrap();
    migrate();
    (0..2).for_each(|index| assert!(backing.stop(index).is_some()));
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 0), vec![]), "the guest has gone");
}

#[test]
fn guest_memory_that_cannot_be_pinned_again_leaves_the_relay_with_the_device() {
    let (scene, folder) = (Scene::new(), tempfile::tempdir().unwrap());
    let auto = spec(folder.path(), Mode::Auto);
    let backing = running(&scene, &auto);
    backing.set(&PortSpec { mode: Mode::Relay, ..auto.clone() }).unwrap();
    scene.device.lock().refuses_below = LANE;
    let refused = backing.set(&PortSpec { mode: Mode::Vdpa, ..auto.clone() }).unwrap_err();
    assert!(refused.message.contains("memory"), "{refused}");
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Relay, 1), vec![]));
    assert_eq!(scene.device_has(), (false, true));
    scene.device.lock().refuses_below = 0;
    backing.set(&auto).unwrap();
    assert_eq!((has(&backing), scene.guests()), ((ModeStatus::Vdpa, 1), vec![0]));
}
