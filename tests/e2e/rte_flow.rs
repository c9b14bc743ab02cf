//! The `rte_flow` engine on a real driver: net_tap, which makes filters of the kernel's (cls_flower) of its rules. In a guest, whose kernel has them.

use anyhow::{Context, Result, ensure};
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::{needs, paths};

/// What the driver's filters and queues are made of, in the kernel.
const MODULES: &str =
    "for m in tun cls_flower sch_ingress sch_multiq act_mirred act_gact act_skbedit; do modprobe $m; done";

fn rule(id: u32, in_port: &str, port: u16, actions: &str) -> String {
    format!(
        r#"{{"id":"{id:08x}-0000-0000-0000-000000000000","in_port":"{in_port}","match":["eth_type=0x800","vlan_tci=0x0/0x1000","ip_proto=17","ipv4_dst=10.77.0.2","tp_dst={port}"],"actions":[{actions}]}}"#
    )
}

/// One command to the engine, and its answer.
fn ask(guest: &mut Guest, command: &str) -> Result<String> {
    let script = format!(
        "before=$(wc -l </run/answers); printf '%s\n' '{command}' >/run/commands
         until [ $(wc -l </run/answers) -gt $before ]; do sleep 0.05; done; tail -n1 /run/answers"
    );
    guest.sh(&script).with_context(|| format!("asking {command}"))
}

#[test]
fn rules_of_a_real_driver_are_made_hit_counted_removed_and_refused_with_the_reason() -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("tc"));
    let Ok(engine) = paths::program("examples/rte_flow") else {
        ringspan_testkit::skip::skip("rte_flow", "the example rte_flow is not built: cargo build --release --examples");
        return Ok(());
    };
    let mut guest = Guest::boot(&GuestSpec { memory_mib: 512, ..GuestSpec::default() })?;
    let engine = guest.path_of(&engine);
    guest.sh(MODULES)?;
    // Something that writes keeps the queue of commands open.
    guest.sh(&format!(
        "mkfifo /run/commands; : >/run/answers; sleep 600 >/run/commands 2>&1 &
         {engine} vdev:net_tap0,iface=flow0 </run/commands >/run/answers 2>/run/log &
         until ip link show flow0 >/dev/null 2>&1; do sleep 0.1; done"
    ))?;
    let told = |guest: &mut Guest, command: &str| {
        ask(guest, command)
            .with_context(|| format!("the engine said: {}", guest.sh("cat /run/log").unwrap_or_default()))
    };
    let can = told(&mut guest, "can")?;
    ensure!(can.contains(r#""engine":"rte-flow","refreshes":false"#), "it can {can}");
    ensure!(can.contains("takes no rules between ports"), "it can {can}");
    guest.sh(
        "ip addr add 10.77.0.1/24 dev flow0; ip link set flow0 up; ip neigh replace 10.77.0.2 lladdr 02:00:00:00:00:99 dev flow0",
    )?;

    let installed = told(&mut guest, &format!("install {}", rule(1, "uplink", 5001, r#""drop""#)))?;
    ensure!(!installed.contains("error"), "a rule that drops was refused: {installed}");
    ensure!(told(&mut guest, "rules")?.contains("tp_dst=5001"), "the engine does not list its rule");

    // Hit and counted: the kernel's filter is the driver's rule.
    let filters = "tc -s filter show dev flow0 root 2>/dev/null; tc -s filter show dev flow0 ingress; tc -s filter show dev flow0 parent 1:";
    guest.sh("for n in 1 2 3 4 5; do echo x >/dev/udp/10.77.0.2/5001; done; echo x >/dev/udp/10.77.0.2/5002")
        .or_else(|_| guest.sh("bash -c 'for n in 1 2 3 4 5; do echo x >/dev/udp/10.77.0.2/5001; done; echo x >/dev/udp/10.77.0.2/5002'"))?;
    let seen = guest.sh(filters)?;
    let at = seen.find("dst_port 5001").with_context(|| format!("there is no filter of the rule:\n{seen}"))?;
    ensure!(seen[at..].contains(" 5 pkt"), "its filter did not count 5 packets:\n{seen}");

    // Another rule under its name takes its place.
    let replaced = told(&mut guest, &format!("install {}", rule(1, "uplink", 5003, r#""drop""#)))?;
    ensure!(!replaced.contains("error"), "a rule was not replaced: {replaced}");
    let seen = guest.sh(filters)?;
    ensure!(seen.contains("dst_port 5003") && !seen.contains("dst_port 5001"), "the old filter is there:\n{seen}");

    // Between ports: the driver's reason is the rule's.
    let refused = told(&mut guest, &format!("install {}", rule(2, "uplink", 5004, r#"{"output":"vf0"}"#)))?;
    ensure!(
        refused.contains(r#""kind":"unsupported""#) && refused.contains("transfer"),
        "it was not refused: {refused}"
    );
    let counters = told(&mut guest, "counters")?;
    ensure!(counters.matches("\"id\"").count() == 1, "the counters are of other rules: {counters}");

    let removed = told(&mut guest, "remove 00000001-0000-0000-0000-000000000000")?;
    ensure!(!removed.contains("error"), "it was not removed: {removed}");
    let seen = guest.sh(filters)?;
    ensure!(!seen.contains("dst_port 5003"), "its filter stayed:\n{seen}");
    Ok(())
}
