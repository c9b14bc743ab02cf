//! Ports: wanted, made, kept, and never fought over silently.

use serde_json::json;

use super::{Bench, kind};
use crate::control::Ending;

#[test]
fn a_port_is_added_listed_changed_and_removed() {
    let bench = Bench::start("");
    let added = bench.add("vm1", "vdev:net_null0,size=64").unwrap();
    assert_eq!(
        (&added["phase"], &added["lane"], &added["origin"]),
        (&json!("listening"), &json!("main"), &json!("run-time"))
    );
    let changed = bench.call("port.set", json!({ "name": "vm1", "mtu": 9000 })).unwrap();
    assert_eq!((&changed["spec"]["mtu"], &changed["status"]["spec"]["mtu"]), (&json!(9000), &json!(9000)));
    let stats = bench.call("port.stats", json!({})).unwrap();
    assert_eq!((&stats[0]["current"], &stats[0]["totals"]["from_guest"]["received"]), (&json!(true), &json!(10)));
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    assert_eq!(kind(&bench.call("port.remove", json!({ "name": "vm1" })).unwrap_err()), "not-found");
    bench.call("port.remove", json!({ "name": "vm1", "if_exists": true })).unwrap();
}
