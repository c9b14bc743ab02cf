//! What many flows take.

use std::time::Duration;

use super::super::table::{Entry, Misses, Source};
use super::super::work::{News, Work};
use super::{Fake, all_steps, whole};
use crate::ovs::client::Place;

/// Counts the lines that are not as before.
struct AsBefore<'a> {
    work: &'a mut Work,
    others: usize,
}

impl crate::ovs::client::Lines for AsBefore<'_> {
    fn line(&mut self, line: &[u8]) {
        self.others += usize::from(!self.work.table.is_as_before(line));
    }

    fn pause(&mut self) {}
}

/// With `RINGSPAN_FLOWS=100000` and `--release --nocapture` it is a measurement, too.
#[test]
fn texts_of_many_flows_add_up_to_less_than_half_a_kibibyte_each_and_a_dump_without_a_change_tells_the_engine_nothing() {
    let count: u32 = std::env::var("RINGSPAN_FLOWS").ok().and_then(|count| count.parse().ok()).unwrap_or(3000);
    let any = "skb_priority(0/0),skb_mark(0/0),ct_state(0/0),ct_zone(0/0),ct_mark(0/0),ct_label(0/0),recirc_id(0),dp_hash(0/0)";
    let flow = |at: u32| {
        let ufid = crate::ovs::flow::Ufid((u128::from(at) << 96) | (u128::from(at) * 0x9e37_79b9_7f4a_7c15));
        let [_, a, b, c] = at.to_be_bytes();
        format!(
            "ufid:{ufid}, {any},in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:{a:02x}:{b:02x}:{c:02x},dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(src=10.{a}.{b}.{c}/0.0.0.0,dst=10.0.0.2/0.0.0.0,proto=17/0,tos=0/0,ttl=64/0,frag=no),udp(src=1/0,dst=2/0), packets:10, bytes:600, used:0.123s, dp:ovs, actions:nic0_vf1, dp-extra-info:miniflow_bits(5,1)\n"
        )
    };
    let text: String = (0..count).map(flow).collect();
    let (mut work, fake) = (Work::default(), Fake::default());
    let cpu = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        Duration::from(now)
    };
    work.limit = 200_000;
    // Kilobytes of this process that are in memory (proc(5)); alone in its process only this test's.
    let memory = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    fake.told().keeps_nothing = true;
    let before = memory();
    let begun = cpu();
    whole(&mut work, &fake, &text);
    println!("{} bytes; first: {:?}", text.len(), cpu() - begun);
    // With what the allocator does not give back.
    println!("{} bytes a flow in memory", memory().saturating_sub(before) * 1024 / u64::from(count));
    assert_eq!(fake.log().len(), count as usize);
    // As it comes from ovs-vswitchd: what our side of the socket costs, too.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ovs-vswitchd.pid"), "1\n").unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("ovs-vswitchd.1.ctl")).unwrap();
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for id in 1..=4 {
            let _ = std::io::Read::read(&mut stream, &mut [0; 1000]).unwrap();
            let answer = serde_json::json!({ "error": null, "id": id, "result": text }).to_string();
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        }
    });
    let mut switch = crate::ovs::client::Switch::connect(&Place::new(Some(folder.path()))).unwrap();
    for _ in 0..4 {
        let begun = cpu();
        work.table.begin(Source::Text);
        let mut news = AsBefore { work: &mut work, others: 0 };
        switch.dump_lines("dummy@ovs-dummy", &mut news).unwrap();
        assert_eq!(news.others, 0);
        work.take(News::Dump { source: Source::Text, told: Vec::new(), misses: Misses::default() });
        all_steps(&mut work, &fake);
        println!("all without a change {:?}", cpu() - begun);
    }
    peer.join().unwrap();
    assert!(fake.log().is_empty());
    // As malloc(3) of glibc rounds it.
    let text = |entry: &Entry| match entry.text().size() {
        0 => 0,
        size => (size + 8).next_multiple_of(16).max(32),
    };
    let texts: usize = work.table.flows.values().map(text).sum();
    // A table that has just grown has as much room again.
    let each = texts / count as usize + 2 * (size_of::<(u128, Entry)>() + 1);
    println!("{each} bytes a flow");
    // What its rule takes in the lane comes on top.
    assert!(each < 450);
}
