//! The daemon is killed at any point, and changes that fail are taken back.

use super::*;

#[test]
fn a_daemon_killed_at_any_point_of_attaching_leaves_all_or_nothing() {
    killed_everywhere(
        |_, _| (),
        |bench, all| bench.attach(all, "g").is_ok(),
        |bench, all| {
            let done = bench.world.of(&key("g"));
            match all.get(&key("g")) {
                None => assert_eq!(done, []),
                Some(record) => assert_eq!((record.stage, done), (Stage::Attached, STEPS.to_vec())),
            }
            // The agent asks again, and gets it.
            assert_eq!(bench.attach(all, "g").unwrap().stage, Stage::Attached);
            assert_eq!(bench.world.of(&key("g")), STEPS);
        },
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_detaching_has_detached_or_will_have() {
    killed_everywhere(
        |bench, all| drop(bench.attach(all, "g").unwrap()),
        |bench, all| all.detach(&bench.world, &key("g"), false).is_ok(),
        |bench, all| {
            let done = bench.world.of(&key("g"));
            match all.get(&key("g")) {
                None => assert_eq!(done, []),
                // It was killed before it had begun.
                Some(record) => assert_eq!((record.stage, done), (Stage::Attached, STEPS.to_vec())),
            }
            all.detach(&bench.world, &key("g"), false).unwrap();
            assert!(!all.detach(&bench.world, &key("g"), false).unwrap());
            assert_eq!(bench.world.of(&key("g")), []);
        },
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_taking_back_a_failure_leaves_nothing() {
    killed_everywhere(
        |bench, _| *bench.world.refuses.borrow_mut() = Some(Step::Port),
        |bench, all| bench.attach(all, "g").is_err_and(|error| error.message.contains("Port is refused")),
        |bench, all| {
            assert_eq!(all.get(&key("g")), None);
            assert_eq!(bench.world.of(&key("g")), []);
        },
    );
}

#[test]
fn a_daemon_killed_at_any_point_of_a_change_is_as_before_or_has_changed() {
    killed_everywhere(
        |bench, all| drop(bench.attach(all, "g").unwrap()),
        |bench, all| {
            let change = |record: &mut Record| {
                record.wanted.vlan = 7;
                Ok(())
            };
            all.change(&bench.world, &key("g"), change).is_ok()
        },
        |bench, all| {
            let record = all.get(&key("g")).unwrap();
            let done = bench.world.done.borrow();
            assert!(done.iter().all(|(.., vlan)| *vlan == record.wanted.vlan), "{done:?} and {}", record.wanted.vlan);
            assert_eq!((record.stage, done.len()), (Stage::Attached, STEPS.len()));
        },
    );
}

#[test]
fn a_change_that_is_refused_is_taken_back() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    let refusal = |record: &mut Record| {
        record.wanted.vlan = 7;
        *bench.world.refuses.borrow_mut() = Some(Step::Bridge);
        Ok(())
    };
    let error = all.change(&bench.world, &key("g"), refusal).unwrap_err();
    assert!(error.message.contains("Bridge is refused; left: Bridge is refused"), "{error}");
    *bench.world.refuses.borrow_mut() = None;
    bench.recover(&all);
    let record = all.get(&key("g")).unwrap();
    assert_eq!((record.stage, record.wanted.vlan, record.problem), (Stage::Attached, 0, None));
    assert!(bench.world.done.borrow().iter().all(|(.., vlan)| *vlan == 0));
}

#[test]
fn what_cannot_be_taken_back_stays_written_down_until_it_can() {
    let bench = Bench::new();
    let all = bench.boot();
    bench.attach(&all, "g").unwrap();
    *bench.world.sticks.borrow_mut() = Some(Step::Bridge);
    assert_eq!(all.detach(&bench.world, &key("g"), false).unwrap_err().kind, ErrorKind::OvsDown);
    let record = all.get(&key("g")).unwrap();
    assert_eq!((record.stage, record.begun.len()), (Stage::Detaching, 3));
    assert!(record.problem.unwrap().contains("Bridge"));
    // It cannot be attached anew either, until that is done.
    assert_eq!(bench.attach(&all, "g").unwrap_err().kind, ErrorKind::OvsDown);
    *bench.world.sticks.borrow_mut() = None;
    assert_eq!(bench.attach(&all, "g").unwrap().stage, Stage::Attached);
}
