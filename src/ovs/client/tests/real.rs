//! A database server and a switch of the test's own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ringspan_testkit::needs;
use ringspan_testkit::ovs::{DATAPATH, Ovs};
use serde_json::json;

use crate::ovs::client::{Database, OvsError, Place, Switch};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_database_gives_its_schema_rows_and_refusals() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    ovs.add_port("br0", "p1", &["external_ids:iface-id=vm1"])?;
    let mut database = Database::connect(&Place::new(Some(ovs.run_dir())))?;
    let schema = database.schema()?;
    assert!(schema["tables"]["Interface"]["columns"]["ofport"].is_object(), "{schema}");
    let tables =
        database.select(&[("Bridge", &["name", "ports"]), ("Interface", &["name", "external_ids", "ofport"])])?;
    let [bridges, interfaces] = &tables[..] else { panic!("{tables:?}") };
    assert_eq!(bridges[0].text("name"), "br0");
    assert_eq!(bridges[0].references("ports").len(), 2);
    let p1 = interfaces.iter().find(|row| row.text("name") == "p1").context("p1")?;
    assert_eq!(p1.entry("external_ids", "iface-id"), Some("vm1"));
    assert_eq!(p1.entry("external_ids", "other"), None);
    assert!(p1.number("ofport").is_some());
    let refused = database.transact(vec![json!({ "op": "select", "table": "Nothing", "where": [] })]).unwrap_err();
    assert!(refused.connection_is_good() && refused.to_string().contains("Nothing"), "{refused}");
    // A refusal leaves the connection as it was.
    assert_eq!(database.select(&[("Bridge", &["name"])])?[0].len(), 1);
    Ok(())
}

#[test]
fn a_change_in_the_database_is_told_and_silence_too() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    let mut database = Database::connect(&Place::new(Some(ovs.run_dir())))?;
    database.watch(&[("Bridge", &["name", "ports"])], SOON)?;
    assert!(!database.changed(Duration::from_millis(50))?);
    ovs.add_bridge("br0")?;
    assert!(database.changed(SOON)?);
    while database.changed(Duration::from_millis(100))? {}
    // A column that nobody asked for.
    ovs.vsctl(&["set", "Bridge", "br0", "external_ids:x=y"])?;
    assert!(!database.changed(Duration::from_millis(200))?);
    Ok(())
}

#[test]
fn the_switch_runs_commands_and_says_why_not() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    let mut switch = Switch::connect(&Place::new(Some(ovs.run_dir())))?;
    assert_eq!(switch.process.pid, ovs.pid());
    assert!(switch.process.started.is_some() && switch.process.life().starts_with(&format!("{} ", ovs.pid())));
    assert_eq!(switch.call("dpctl/dump-dps", &[])?.trim(), DATAPATH);
    let refused = switch.call("dpctl/nonsense", &["x"]).unwrap_err();
    assert!(refused.connection_is_good() && refused.to_string().contains("dpctl/nonsense"), "{refused}");
    assert_eq!(switch.call("version", &[])?.lines().count(), 1);
    Ok(())
}

#[test]
fn a_switch_that_is_gone_or_restarted_is_found_again() -> Result<()> {
    needs!(Ovs);
    let mut ovs = Ovs::start()?;
    let place = Place::new(Some(ovs.run_dir()));
    let mut switch = Switch::connect(&place)?;
    ovs.stop_switch();
    let gone = switch.call("version", &[]).unwrap_err();
    assert!(matches!(gone, OvsError::Closed { .. }), "{gone}");
    // The pid file and the socket are still there, as after a crash.
    let nobody = Switch::connect(&place).unwrap_err().to_string();
    assert!(nobody.contains("Connection refused") && nobody.contains("ovs.run_dir"), "{nobody}");
    ovs.start_switch()?;
    Switch::connect(&place)?.call("version", &[])?;
    let nowhere = Place::new(Some(&ovs.path("no-such-folder")));
    let nowhere = Switch::connect(&nowhere).unwrap_err().to_string();
    assert!(nowhere.contains("no-such-folder/ovs-vswitchd.pid"), "{nowhere}");
    Ok(())
}

#[test]
fn an_answer_of_many_megabytes_comes_whole() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    let mut database = Database::connect(&Place::new(Some(ovs.run_dir())))?;
    let long = "ä\n\"\\".repeat(200_000);
    database.transact(vec![
        json!({ "op": "update", "table": "Open_vSwitch", "where": [], "row": { "external_ids": ["map", [["long", long]]] } }),
    ])?;
    let begun = Instant::now();
    let rows = database.select(&[("Open_vSwitch", &["external_ids"])])?;
    assert_eq!(rows[0][0].entry("external_ids", "long"), Some(long.as_str()));
    assert!(begun.elapsed() < SOON);
    Ok(())
}
