//! Any bytes as a frame that comes to the software NIC: no panic, what was found lies in the frame, and what is behind the packet decides nothing. A rule
//! that is made of the frame's own key finds it, and changes what it says without leaving the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan_fuzz::eswitch::actions::{Edit, MOST_HEADERS, Program};
use ringspan_fuzz::eswitch::key::{Key, Network, Places};
use ringspan_fuzz::{BURST, Bytes};
use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, RuleId};

/// What rules do to frames; what does not fit a frame must be known before.
const SETS: [&str; 12] = [
    "eth_src=02:00:00:00:00:01",
    "eth_dst=02:00:00:00:00:02",
    "ip_ttl=9",
    "ip_tos=0xfc",
    "ipv4_src=10.0.0.1",
    "ipv4_dst=10.9.0.0/255.255.0.0",
    "ipv6_src=fe80::1",
    "ipv6_dst=fe80::2",
    "tp_src=7",
    "tp_dst=65535",
    "vlan_tci=0x1005",
    "ipv6_label=0x12345",
];

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = Bytes(bytes);
    let (cut, chosen, around) = (bytes.u8(), bytes.u16(), bytes.u8());
    let frame = bytes.0;
    // The first buffer of a frame in several has its first bytes only.
    let head = &frame[..if cut < 128 { frame.len() } else { frame.len().min(usize::from(cut)) }];
    let (key, places) = Key::parse(head, frame.len(), 1);
    check_places(&places, head);
    let _ = key.flow();
    if cut < 128 {
        // Padding behind the packet changes nothing of what it is.
        let padded = [frame, &[0xa5; 3]].concat();
        if places.network != Network::Other {
            assert_eq!(Key::parse(&padded, padded.len(), 1).0, key);
        }
    }
    let inner = Key::parse_inner(head, frame.len(), &key, &places);
    if let Some((key, at)) = &inner {
        check_places(at, &head[usize::from(places.inner)..]);
        assert_eq!(at.inner, 0);
        let _ = key.flow();
    }

    let mut classifier = ringspan_fuzz::eswitch::classifier::Classifier::default();
    classifier.insert(RuleId(1), 0, &key, &Key([u64::MAX; 16]), 1u32);
    let mut found = [0; BURST];
    classifier.look_up(&[key], &mut found);
    assert_eq!(classifier.body_mut(found[0]).copied(), Some(1));

    let Some(program) = program(&key, chosen, around) else { return };
    if !program.fits(&key, &places, cut < 128) {
        return;
    }
    let mut edited = Frame::new(head, frame.len() - head.len());
    program.run(&mut edited, &key, places, places.inner, |frame, _, _| {
        assert!(frame.length() >= frame.head().len());
    });
});

fn check_places(places: &Places, head: &[u8]) {
    let (l3, l4, inner) = (usize::from(places.l3), usize::from(places.l4), usize::from(places.inner));
    assert!(places.tags <= 2 && l3 <= head.len() && l4 <= head.len() && inner <= head.len());
    let least = match places.network {
        Network::Other => 0,
        Network::Ipv4 => 20,
        Network::Ipv6 => 40,
        Network::Arp => 28,
    };
    assert!(l3 + least <= head.len() && (l4 == 0 || l4 >= l3 + least) && (inner == 0 || inner >= l4 + 16));
}

/// A rule for frames like this one, with an action for each bit. Nothing where no rule may be so.
fn program(key: &Key, chosen: u16, tags: u8) -> Option<Program> {
    let sets = SETS.iter().enumerate().filter(|(at, _)| chosen >> at & 1 != 0);
    let mut actions: Vec<Action> = sets.map(|(_, text)| Action::Set(text.parse().expect("a field's match"))).collect();
    if chosen >> 12 & 1 != 0 {
        actions.push(Action::DecTtl);
    }
    for at in 0..4 {
        match tags >> (2 * at) & 3 {
            1 => actions.push(Action::PushVlan { tpid: 0x8100, tci: 0x1007 }),
            2 => actions.push(Action::PopVlan),
            3 => actions.push(Action::Output(NicPort::Vf(0))),
            _ => {}
        }
    }
    actions.push(Action::Output(NicPort::Uplink));
    let fields = [Field::EthType, Field::IpProto, Field::VlanTci, Field::InnerVlanTci];
    let asked = fields.map(|field| FieldMatch::exact(field, key.get(field).into()).ok());
    // Only IP has a protocol.
    let asked = asked
        .into_iter()
        .flatten()
        .filter(|asked| asked.field() != Field::IpProto || matches!(key.get(Field::EthType), 0x0800 | 0x86dd));
    let matches = Match::new(asked).ok()?;
    let rule = Rule { id: RuleId(1), priority: 0, in_port: NicPort::Vf(0), matches, actions, refresh: false };
    rule.check().ok()?;
    Program::new(&rule, 8).ok()
}

/// A frame with room before it, and bytes behind its head that are elsewhere.
struct Frame {
    all: Vec<u8>,
    start: usize,
    elsewhere: usize,
}

impl Frame {
    fn new(head: &[u8], elsewhere: usize) -> Self {
        Self { all: [&[0xee; MOST_HEADERS], head].concat(), start: MOST_HEADERS, elsewhere }
    }
}

impl Edit for Frame {
    fn head(&mut self) -> &mut [u8] {
        &mut self.all[self.start..]
    }

    fn length(&self) -> usize {
        self.all.len() - self.start + self.elsewhere
    }

    fn grow(&mut self, bytes: usize) -> bool {
        let room = self.start >= bytes;
        self.start -= if room { bytes } else { 0 };
        room
    }

    fn shrink(&mut self, bytes: usize) -> bool {
        let there = self.all.len() - self.start >= bytes;
        self.start += if there { bytes } else { 0 };
        there
    }
}
