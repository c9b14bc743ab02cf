//! The software NIC, from guest to guest: without a rule frames come out of representors, with one they go straight across, changed as
//! the rule says and with right checksums. Frames are checked byte for byte, and the counters add up.

mod attach;
mod bond;
mod kit;
mod legacy;
mod lent;
mod many;
mod order;
mod ovs;
mod representor;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kit::{Scene, arrives, nic, nothing, receive, rule, send};
use ringspan_protocol::{Action, FailureKind, NicPort, Rule, TunnelKind, TunnelPush};
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{ETHERTYPE, Plan};
use ringspan_testkit::guest::{NetHeader, feature};
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

const IPV4: [u8; 2] = [8, 0];
const VF0: NicPort = NicPort::Vf(0);
const VF1: NicPort = NicPort::Vf(1);

fn out(port: NicPort) -> Action {
    Action::Output(port)
}

/// A packet with its checksum filled in.
fn finished(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    let (start, place) = (packet.l4_start(), packet.checksum_place());
    let checksum = !ringspan_testkit::packet::sum(&frame[start..]);
    frame[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

#[test]
fn a_vf_without_rules_is_its_representor_and_with_rules_frames_go_straight_across() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-across", &nic(2, &[]), 2)?;
    let slow = scene.far("nic0_vf0", ETHERTYPE)?;
    let plan = Plan::new(2_000, 64);
    crossing::run(&mut End::Guest(&mut scene.guests[0]), &mut End::Far(&slow), Ways::Both, plan)?;
    let before = scene.port(VF0)?;
    ensure!((before.hits, before.misses) == (0, 2_000), "{before:?}");
    ensure!((before.representor_sent, before.representor_received, before.sent) == (2_000, 2_000, 2_000), "{before:?}");

    scene.install(vec![rule(1, VF0, &[], vec![out(VF1)]), rule(2, VF1, &[], vec![out(VF0)])])?;
    let [first, second] = &mut scene.guests[..] else { unreachable!() };
    crossing::run(&mut End::Guest(first), &mut End::Guest(second), Ways::Both, Plan::new(20_000, 128))?;
    nothing(&slow)?;
    let counters = scene.counters()?;
    ensure!(counters.len() == 2 && counters.iter().all(|rule| rule.packets == 20_000), "{counters:?}");
    ensure!(counters.iter().all(|rule| rule.idle_ms.is_some_and(|ms| ms < 10_000)), "{counters:?}");
    let after = scene.port(VF0)?;
    ensure!((after.hits, after.misses, after.sent) == (20_000, 2_000, 22_000), "{after:?}");

    scene.remove(&[1, 2, 3])?;
    crossing::run(&mut End::Guest(&mut scene.guests[0]), &mut End::Far(&slow), Ways::Both, plan)?;
    scene.adds_up()
}

#[test]
fn what_a_rule_changes_is_changed_and_its_checksums_are_right() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::with("snic-change", &nic(2, &[]), 2, |options| options.with(feature::HOST_OFFLOADS))?;
    let slow = scene.far("nic0_vf0", IPV4)?;
    let packet = Packet { ecn: false, ..Packet::new(100) };
    let frame = finished(&packet);
    let set = |text: &str| Action::Set(text.parse().expect("a field"));
    let tcp = ["eth_type=0x800", "ip_proto=6"];
    for (name, actions) in [
        ("nothing", vec![]),
        ("mac", vec![set("eth_src=02:00:00:00:00:01"), set("eth_dst=02:00:00:00:00:02")]),
        (
            "nat",
            vec![set("ipv4_src=10.1.1.1"), set("tp_src=1000"), set("ipv4_dst=10.0.0.0/255.0.0.0"), set("tp_dst=1")],
        ),
        ("ttl", vec![Action::DecTtl, set("ip_tos=0x20/0xfc")]),
    ] {
        let across = rule(1, VF0, &tcp, [actions, vec![out(VF1)]].concat());
        scene.install(vec![across])?;
        for header in [NetHeader::default(), packet.checksum_header()] {
            let sent = if header == NetHeader::default() { frame.clone() } else { packet.frame() };
            let [first, second] = &mut scene.guests[..] else { unreachable!() };
            send(first, &sent, &header)?;
            let (_, got) = receive(second)?;
            packet.check(&got).map_err(|error| error.context(name))?;
            ensure!(got[packet.header_len()..] == frame[packet.header_len()..], "{name}: payload");
            ensure!((got == frame) == (name == "nothing"), "{name}: {got:02x?}");
        }
    }
    // A VLAN tag on, and off again on the way back.
    scene.install(vec![
        rule(1, VF0, &tcp, vec![Action::PushVlan { tpid: 0x8100, tci: 0x2005 }, out(VF1)]),
        rule(2, VF1, &["vlan_tci=0x1005/0x1fff", "eth_type=0x800"], vec![Action::PopVlan, out(VF0)]),
    ])?;
    let [first, second] = &mut scene.guests[..] else { unreachable!() };
    send(first, &frame, &NetHeader::default())?;
    let (_, tagged) = receive(second)?;
    ensure!(tagged[12..18] == [0x81, 0, 0x20, 5, 8, 0] && tagged[18..] == frame[14..], "{tagged:02x?}");
    send(second, &tagged, &NetHeader::default())?;
    ensure!(receive(first)?.1 == frame);
    // A time to live that is over is for the slow path, as it came.
    scene.install(vec![rule(1, VF0, &tcp, vec![Action::DecTtl, out(VF1)])])?;
    let mut old = frame.clone();
    old[22] = 1;
    send(&mut scene.guests[0], &old, &NetHeader::default())?;
    ensure!(arrives(&slow)? == old);
    scene.adds_up()
}

#[test]
fn large_frames_cross_whole_and_are_cut_where_nobody_would_do_it() -> Result<()> {
    needs!(Root, Lane);
    let large = |options: ringspan_testkit::guest::Options| {
        let rx_room = 65_600;
        ringspan_testkit::guest::Options { tx_room: 65_600, ring_size: 64, rx_room, ..options }
            .with(feature::HOST_OFFLOADS | feature::GUEST_OFFLOADS)
    };
    let mut scene = Scene::with("snic-large", &nic(2, &[]), 2, large)?;
    let slow = scene.far("nic0_vf0", IPV4)?;
    let packet = Packet { ecn: false, ..Packet::new(20_000) };
    let (mss, segments) = (1000, 20);
    send(&mut scene.guests[0], &packet.frame(), &packet.segment_header(mss))?;
    let came = (0..segments).map(|_| arrives(&slow)).collect::<Result<Vec<_>>>()?;
    packet.check_segments(mss, &came)?;

    scene.install(vec![rule(1, VF0, &["eth_type=0x800"], vec![out(VF1)])])?;
    let [first, second] = &mut scene.guests[..] else { unreachable!() };
    send(first, &packet.frame(), &packet.segment_header(mss))?;
    let (header, whole) = receive(second)?;
    ensure!(whole == packet.frame() && header.gso_size == mss as u16, "{header:?}, {} bytes", whole.len());

    scene.install(vec![rule(1, VF0, &["eth_type=0x800"], vec![Action::DecTtl, out(VF1)])])?;
    let [first, second] = &mut scene.guests[..] else { unreachable!() };
    send(first, &packet.frame(), &packet.segment_header(mss))?;
    for _ in 0..segments {
        let (_, segment) = receive(second)?;
        packet.check(&segment)?;
        ensure!(segment[22] == 63);
    }
    scene.adds_up()
}

fn tunnel(kind: TunnelKind) -> TunnelPush {
    TunnelPush {
        kind,
        id: 42,
        eth_src: "02:00:00:00:aa:01".parse().expect("an address"),
        eth_dst: "02:00:00:00:aa:02".parse().expect("an address"),
        src: "198.51.100.2".parse().expect("an address"),
        dst: "198.51.100.3".parse().expect("an address"),
        tos: 0,
        ttl: 64,
        dont_fragment: true,
        src_port: None,
        dst_port: kind.port(),
        checksum: true,
        options: String::new(),
    }
}

#[test]
fn what_goes_into_a_tunnel_at_the_uplink_comes_out_of_it_there() -> Result<()> {
    needs!(Root, Lane);
    let uplink = ringspan_testkit::daemon::tap_device("up0");
    let mut scene = Scene::new("snic-tunnel", &nic(2, &[&uplink]), 2)?;
    let wire = scene.far("up0", IPV4)?;
    let frame = finished(&Packet::new(300));
    for (kind, matched) in [(TunnelKind::Vxlan, "tunnel_kind=1"), (TunnelKind::Geneve, "tunnel_kind=2")] {
        let back = [matched, "tunnel_id=0x2a", "tunnel_ipv4_src=198.51.100.2", "eth_type=0x800"];
        scene.install(vec![
            rule(1, VF0, &[], vec![Action::TunnelPush(Box::new(tunnel(kind))), out(NicPort::Uplink)]),
            rule(2, NicPort::Uplink, &back, vec![Action::TunnelPop, out(VF1)]),
        ])?;
        send(&mut scene.guests[0], &frame, &NetHeader::default())?;
        let outer = arrives(&wire)?;
        ensure!(outer.len() == frame.len() + 50 && outer[50..] == frame[..], "{kind:?}: {outer:02x?}");
        Packet { udp: true, ..Packet::new(0) }.check(&outer)?;
        wire.send(&outer)?;
        ensure!(receive(&mut scene.guests[1])?.1 == frame, "{kind:?}");
        // Another network: nobody knows it, and the slow path gets it as it came.
        let slow = scene.far("nic0", IPV4)?;
        let mut other = outer.clone();
        other[40..42].fill(0);
        other[48] = 43;
        wire.send(&other)?;
        ensure!(arrives(&slow)? == other, "{kind:?}");
        // So does one whose checksum is wrong.
        let mut broken = outer;
        broken[100] ^= 1;
        wire.send(&broken)?;
        ensure!(arrives(&slow)? == broken, "{kind:?}");
    }
    scene.adds_up()
}

#[test]
fn a_rule_in_use_sends_a_frame_to_the_representor_now_and_then_and_copies_none() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-refresh", &nic(2, &[]), 2)?;
    let slow = scene.far("nic0_vf0", IPV4)?;
    scene.install(vec![Rule { refresh: true, ..rule(1, VF0, &[], vec![out(VF1)]) }])?;
    let frame = finished(&Packet::new(50));
    let (begun, mut sent, mut across, mut refreshed) = (Instant::now(), 0, 0, 0);
    let mut bytes = vec![0; 2048];
    while refreshed < 2 {
        ensure!(begun.elapsed() < Duration::from_secs(11), "{refreshed} of {sent} frames came to the representor");
        send(&mut scene.guests[0], &frame, &NetHeader::default())?;
        sent += 1;
        scene.guests[1].rx[0].receive(64, |_| across += 1);
        refreshed += u64::from(slow.receive(&mut bytes)?.is_some());
        std::thread::sleep(Duration::from_millis(2));
    }
    while across + refreshed < sent {
        ensure!(
            begun.elapsed() < Duration::from_secs(20),
            "{sent} sent, {across} across, {refreshed} to the representor"
        );
        scene.guests[1].rx[0].receive(64, |_| across += 1);
        refreshed += u64::from(slow.receive(&mut bytes)?.is_some());
    }
    // Where somebody asks for it, more often.
    let often = |ms| ringspan_protocol::Request::NicRefresh { nic: "nic0".parse().expect("a name"), ms };
    ensure!(scene.lane.client()?.ask(often(5)).is_err() && scene.lane.client()?.ask(often(60_000)).is_err());
    scene.lane.client()?.ask(often(200))?;
    let (since, before) = (Instant::now(), refreshed);
    while refreshed - before < 5 {
        ensure!(since.elapsed() < Duration::from_secs(15), "{} frames came to the representor", refreshed - before);
        send(&mut scene.guests[0], &frame, &NetHeader::default())?;
        sent += 1;
        scene.guests[1].rx[0].receive(64, |_| across += 1);
        refreshed += u64::from(slow.receive(&mut bytes)?.is_some());
        std::thread::sleep(Duration::from_millis(2));
    }
    let last = Instant::now();
    while across + refreshed < sent {
        ensure!(last.elapsed() < Duration::from_secs(20), "{sent} sent, {across} across, {refreshed} refreshed");
        scene.guests[1].rx[0].receive(64, |_| across += 1);
        refreshed += u64::from(slow.receive(&mut bytes)?.is_some());
    }
    let counted = scene.counters()?[0].packets;
    ensure!(counted == across && across + refreshed == sent, "{counted} {across} {refreshed} {sent}");
    scene.adds_up()
}

#[test]
fn frames_of_a_hostile_guest_cost_only_themselves() -> Result<()> {
    needs!(Root, Lane);
    let uplink = ringspan_testkit::daemon::tap_device("up0");
    let mut scene = Scene::new("snic-hostile", &nic(2, &[&uplink]), 2)?;
    scene.install(vec![
        rule(1, VF0, &["eth_type=0x800"], vec![Action::Set("ipv4_src=1.2.3.4".parse()?), Action::DecTtl, out(VF1)]),
        rule(
            2,
            VF0,
            &["eth_type=0x86dd"],
            vec![Action::Set("ipv6_dst=fd00::1".parse()?), out(NicPort::Uplink), out(VF1)],
        ),
        rule(3, VF0, &["tunnel_kind=1"], vec![Action::TunnelPop, out(VF1)]),
        rule(4, VF0, &["vlan_tci=0x1000/0x1000"], vec![Action::PopVlan, out(VF1)]),
        rule(5, VF0, &["eth_type=0x806"], vec![Action::Set("arp_tpa=1.2.3.4".parse()?), out(VF1)]),
    ])?;
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    for number in 0..4_000 {
        let packet = Packet {
            ipv6: number & 1 > 0,
            udp: number & 2 > 0,
            tags: number % 3,
            options: number % 4,
            ..Packet::new(random() % 200)
        };
        let mut frame = packet.frame();
        if packet.udp {
            let port = packet.l4_start() + 2;
            frame[port..port + 2].copy_from_slice(&4789u16.to_be_bytes());
        }
        let len = frame.len();
        for _ in 0..random() % 4 {
            frame[random() % len] = random() as u8;
        }
        frame.truncate(14 + random() % len);
        let mut header = NetHeader::default();
        if number % 5 == 0 {
            header = NetHeader { flags: random() as u8 & 1, ..packet.segment_header(1 + random() % 300) };
        }
        send(&mut scene.guests[0], &frame, &header)?;
        scene.guests[1].rx[0].receive(64, |_| {});
    }
    scene.adds_up()?;
    // All is well afterwards.
    scene.install(vec![rule(9, VF0, &["eth_dst=52:54:00:12:34:56"], vec![out(VF1)])])?;
    let [first, second] = &mut scene.guests[..] else { unreachable!() };
    crossing::run(&mut End::Guest(first), &mut End::Guest(second), Ways::There, Plan::new(1_000, 64))?;
    scene.adds_up()
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_changes_nothing() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-refuse", &nic(24, &[]), 1)?;
    let refused = |error: anyhow::Error| error.downcast::<ringspan_protocol::Failure>().map(|failure| failure.kind);
    let kind = |result: Result<()>| result.err().and_then(|error| refused(error).ok());
    ensure!(kind(scene.install(vec![rule(1, VF0, &["tp_dst=80"], vec![out(VF1)])])) == Some(FailureKind::Invalid));
    let no_port = rule(1, VF0, &[], vec![out(NicPort::Vf(24))]);
    ensure!(kind(scene.install(vec![no_port])) == Some(FailureKind::Unsupported));
    ensure!(scene.status()?.rules == 0);
    let mut ask = |request| scene.lane.client().and_then(|client| client.ask(request)).map(drop);
    let add = |spec| ringspan_protocol::Request::NicAdd(Box::new(spec));
    let other = |vfs| ringspan_protocol::NicSpec { name: "nic1".parse().expect("a name"), ..nic(vfs, &[]) };
    ensure!(kind(ask(add(nic(3, &[])))) == Some(FailureKind::Exists));
    ensure!(kind(ask(add(other(33)))) == Some(FailureKind::NoRoom));
    let own = ringspan_protocol::NicSpec { uplinks: vec!["soft:nic1/vf0".parse()?], ..other(1) };
    ensure!(kind(ask(add(own))) == Some(FailureKind::Invalid));
    let gone = ringspan_protocol::Request::NicRemove { name: "nic0".parse()?, representors: true };
    ensure!(kind(ask(gone.clone())) == Some(FailureKind::Busy), "a port has a VF");
    scene.guests.clear();
    scene.lane.remove("vm0")?;
    ensure!(scene.net.ip(&["link", "show", "nic0_vf23"]).is_ok());
    scene.lane.client()?.ask(gone)?;
    ensure!(scene.net.ip(&["link", "show", "nic0_vf23"]).is_err(), "the representor is still there");
    Ok(())
}

#[test]
fn a_meter_lets_pass_what_it_may_and_drops_the_rest() -> Result<()> {
    needs!(Root, Lane);
    use ringspan_protocol::{MeterSpec, MeterUnit, Request};
    let mut scene = Scene::new("snic-meter", &nic(2, &[]), 2)?;
    let set = |scene: &mut Scene, rate, burst, unit| {
        let meters = vec![MeterSpec { id: 7, unit, rate, burst }];
        scene.lane.client()?.ask(Request::MeterSet { nic: "nic0".parse()?, meters }).map(drop)
    };
    let begun = Instant::now();
    let all_came = |scene: &mut Scene, sent| loop {
        let port = scene.port(VF0)?;
        if port.received >= sent {
            return Ok::<_, anyhow::Error>(port);
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "{port:?}");
        std::thread::sleep(Duration::from_millis(2));
    };
    let metered = vec![rule(1, VF0, &[], vec![Action::Meter(7), out(VF1)])];
    ensure!(scene.install(metered.clone()).is_err(), "there is no such meter");
    ensure!(set(&mut scene, 0, 5, MeterUnit::Packets).is_err());
    set(&mut scene, 1, 1, MeterUnit::Packets)?;
    scene.install(metered)?;
    let frame = finished(&Packet::new(1000));
    let sent = 200;
    for _ in 0..sent {
        send(&mut scene.guests[0], &frame, &NetHeader::default())?;
    }
    let port = all_came(&mut scene, sent)?;
    // One at once, and one in each second that went by.
    let most = 2 + begun.elapsed().as_secs();
    ensure!(port.drop_meter >= sent - most && port.drop_meter < sent, "{port:?}");
    ensure!(port.hits == sent && scene.counters()?[0].packets == sent);
    // By bytes: 10 frames at once, and then 1 kbit/s.
    set(&mut scene, 1, 8 * frame.len() as u64 / 100, MeterUnit::Kbit)?;
    for _ in 0..sent {
        send(&mut scene.guests[0], &frame, &NetHeader::default())?;
    }
    let now = all_came(&mut scene, 2 * sent)?;
    ensure!((sent - 20..sent).contains(&(now.drop_meter - port.drop_meter)), "{now:?}");
    let remove = Request::MeterRemove { nic: "nic0".parse()?, ids: vec![7] };
    ensure!(scene.lane.client()?.ask(remove.clone()).is_err(), "a rule uses it");
    scene.remove(&[1])?;
    scene.lane.client()?.ask(remove)?;
    scene.adds_up()
}
