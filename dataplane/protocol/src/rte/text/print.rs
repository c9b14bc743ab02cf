//! Prints rules.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::actions::Modify;
use super::super::header::{Form, HEADERS, Item, ItemKind};
use super::super::pattern;
use super::super::{Refusal, RteFlow, Step};
use super::{LONGEST, SHORT, Short, number};
use crate::rule::{Action, FieldMatch, Rule};
use crate::{MacAddress, NicPort};

/// The lines of a rule.
///
/// # Errors
/// [`Refusal`], when it has no one pattern.
pub fn print(rule: &Rule) -> Result<String, Refusal> {
    let flow = RteFlow::new(rule)?;
    let text = lines(rule, &flow, false);
    let fits = |text: &str| text.lines().all(|line| line.starts_with('#') || line.len() <= LONGEST);
    Ok(if fits(&text) { text } else { lines(rule, &flow, true) })
}

/// The lines, in as few characters as possible or as they are told to drivers.
fn lines(rule: &Rule, flow: &RteFlow, is_short: bool) -> String {
    let mut before = String::new();
    let mut actions = String::new();
    let mut copies = 0;
    let unspoken = unspoken(rule);
    for step in flow.steps.iter().filter(|step| unspoken.is_empty() || !matches!(step, Step::Encap(_))) {
        match step {
            Step::Set(modify) if is_short => set_short(modify, &mut actions),
            step => self::step(step, &mut before, &mut actions, &mut copies),
        }
    }
    let mut text = String::new();
    let _ = write!(text, "# {}", rule.id);
    comment(rule, flow, unspoken, &mut text);
    let _ = write!(text, "\n{before}");
    let from = number(rule.in_port);
    let _ = write!(
        text,
        "flow create 0 priority {} transfer pattern represented_port ethdev_port_id is {from} / ",
        flow.priority
    );
    flow.items.iter().for_each(|one| item(one, if is_short { Words::Short } else { Words::Usual }, &mut text));
    let _ = write!(text, "end actions {actions}end");
    text
}

/// What the words do not say.
fn comment(rule: &Rule, flow: &RteFlow, unspoken: Vec<(usize, Action)>, text: &mut String) {
    for field in unsaid(rule, &flow.items) {
        let _ = write!(text, " also {field}");
    }
    let mut undone: Vec<_> = flow.undone.iter().cloned().chain(unspoken).collect();
    undone.sort_by_key(|(at, _)| *at);
    for (at, action) in &undone {
        let _ = write!(text, " do {at} {}", serde_json::to_string(action).unwrap_or_default());
    }
    let done = rule.actions.iter().enumerate().filter(|(at, _)| undone.iter().all(|(undone, _)| undone != at));
    let done: Vec<&Action> = done.map(|(_, action)| action).collect();
    for (at, pair) in done.windows(2).enumerate() {
        // The words of both could be those of one action that sets more.
        if let [Action::Set(one), Action::Set(two)] = pair
            && one.field() == two.field()
            && two.mask() & !one.mask() != 0
        {
            let _ = write!(text, " apart {}", at + 1);
        }
    }
    if !rule.refresh {
        text.push_str(" quiet");
    }
}

/// Tunnels with options: the words have none for options of any kind.
fn unspoken(rule: &Rule) -> Vec<(usize, Action)> {
    let is = |action: &Action| matches!(action, Action::TunnelPush(push) if !push.options.is_empty() && !push.checksum);
    rule.actions.iter().cloned().enumerate().filter(|(_, action)| is(action)).collect()
}

/// What the words say less than the rule matches.
fn unsaid(rule: &Rule, items: &[Item]) -> Vec<FieldMatch> {
    let said = pattern::fields(&items.iter().map(spoken).collect::<Vec<_>>());
    let rest = |field: &FieldMatch| {
        let of_it = said.iter().filter(|said| said.field() == field.field());
        let left = of_it.fold(field.mask(), |left, said| left & !said.mask());
        FieldMatch::new(field.field(), field.value() & left, left).ok().filter(|_| left != 0)
    };
    rule.matches.fields().iter().filter_map(rest).collect()
}

/// An item without what there is no word for.
fn spoken(item: &Item) -> Item {
    let mut said = Item { next: item.next, last: item.last.clone(), ..Item::any(item.kind) };
    for header in HEADERS.iter().filter(|header| header.kind == item.kind && header.word.is_some()) {
        said.put(header, header.get(&item.spec), header.get(&item.mask));
    }
    said
}

/// How much is said of an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    /// What counts.
    Usual,
    /// The same in as few characters as possible.
    Short,
    /// All fields, of a header that is put in front.
    Whole,
}

fn item(item: &Item, words: Words, text: &mut String) {
    let whole = words == Words::Whole;
    text.push_str(item.kind.name());
    for header in HEADERS.iter().filter(|header| header.kind == item.kind) {
        let (mask, value) = (header.get(&item.mask), header.get(&item.spec));
        let Some(word) = header.word.filter(|_| mask != 0 || whole) else { continue };
        let last = item.last.as_ref().map(|last| header.get(last)).filter(|last| *last != value);
        let value = write_value(header.form, value);
        let _ = match last {
            None if mask == header.mask() || whole => write!(text, " {word} is {value}"),
            None => {
                let bits = mask.count_ones() as usize;
                let _ = write!(text, " {word} spec {value} {word} ");
                match words {
                    Words::Short if mask == header.mask() << (header.bits - bits) & header.mask() => {
                        write!(text, "prefix {bits}")
                    }
                    _ => write!(text, "mask {}", write_value(header.form, mask)),
                }
            }
            Some(last) => {
                let (last, mask) = (write_value(header.form, last), write_value(header.form, mask));
                write!(text, " {word} spec {value} {word} last {last} {word} mask {mask}")
            }
        };
    }
    if let Some((word, next)) = item.kind.next().zip(item.next) {
        let _ = write!(text, " {word} is {}", u8::from(next));
    }
    text.push_str(" / ");
}

fn write_value(form: Form, value: u128) -> String {
    match form {
        Form::Mac => {
            let [.., a, b, c, d, e, f] = value.to_be_bytes();
            MacAddress([a, b, c, d, e, f]).to_string()
        }
        Form::Ipv4 => Ipv4Addr::from(value as u32).to_string(),
        Form::Ipv6 => Ipv6Addr::from(value).to_string(),
        Form::Number => format!("{value:#x}"),
    }
}

fn step(step: &Step, before: &mut String, text: &mut String, copies: &mut u32) {
    let to = |port: &NicPort| number(*port);
    let _ = match step {
        Step::Count => write!(text, "count"),
        Step::Copy(port) => {
            // Its list of samples has no represented ports; a port's id means the same there.
            let _ = writeln!(before, "set sample_actions {copies} port_id id {} / end", to(port));
            let done = write!(text, "sample ratio 1 index {copies}");
            *copies += 1;
            done
        }
        Step::To(port) => write!(text, "represented_port ethdev_port_id {}", to(port)),
        Step::Drop => write!(text, "drop"),
        Step::PushVlan(tpid) => write!(text, "of_push_vlan ethertype {tpid:#x}"),
        Step::VlanVid(vid) => write!(text, "of_set_vlan_vid vlan_vid {vid}"),
        Step::VlanPcp(pcp) => write!(text, "of_set_vlan_pcp vlan_pcp {pcp}"),
        Step::PopVlan => write!(text, "of_pop_vlan"),
        Step::Set(modify) => {
            set(modify, text);
            Ok(())
        }
        Step::DecTtl => write!(text, "dec_ttl"),
        Step::VxlanDecap => write!(text, "vxlan_decap"),
        Step::GeneveDecap { v6 } => {
            let ip = if *v6 { "ipv6" } else { "ipv4" };
            let _ = writeln!(before, "set raw_decap 0 eth / {ip} / udp / geneve / end_set");
            write!(text, "raw_decap index 0")
        }
        Step::Encap(headers) => {
            before.push_str("set raw_encap 0 ");
            split(headers).iter().for_each(|one| item(one, Words::Whole, before));
            before.push_str("end_set\n");
            write!(text, "raw_encap index 0")
        }
    };
    text.push_str(" / ");
}

fn set(modify: &Modify, text: &mut String) {
    let value: String = modify.value.iter().map(|byte| format!("{byte:02x}")).collect();
    let (name, width) = (modify.name, modify.width);
    let _ = write!(text, "modify_field op set dst_type {name} src_type value src_value {value} width {width}");
}

/// The same in the words of an older action, if there is one.
fn set_short(modify: &Modify, text: &mut String) {
    match SHORT.iter().find(|short| short.name == modify.name) {
        Some(Short { action, word, form, .. }) => {
            let value = modify.value.iter().fold(0, |value, byte| value << 8 | u128::from(*byte));
            let _ = write!(text, "{action} {word} {}", write_value(*form, value));
        }
        None => set(modify, text),
    }
    text.push_str(" / ");
}

/// Headers of a tunnel, each as an item.
fn split(headers: &[u8]) -> Vec<Item> {
    let v6 = headers.get(12) == Some(&0x86);
    let ip = if v6 { ItemKind::Ipv6 } else { ItemKind::Ipv4 };
    let tunnel = ItemKind::Eth.size() + ip.size() + ItemKind::Udp.size();
    let is_geneve = headers.get(tunnel + 2) == Some(&0x65);
    let last = if is_geneve { ItemKind::Geneve } else { ItemKind::Vxlan };
    let mut rest = headers;
    let mut cut = |kind: ItemKind| {
        let (spec, left) = rest.split_at(kind.size().min(rest.len()));
        rest = left;
        Item { spec: spec.to_vec(), ..Item::any(kind) }
    };
    [ItemKind::Eth, ip, ItemKind::Udp, last].map(&mut cut).into()
}
