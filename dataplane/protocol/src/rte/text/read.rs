//! Reads what was printed.

use super::super::actions::Settable;
use super::super::header::{Form, Header, Item, ItemKind};
use super::super::{LEAST_PRIORITY, encap, pattern};
use super::{SHORT, port};
use crate::rule::{Action, Field, FieldError, FieldMatch, Match, Rule, RuleId};
use crate::{MacAddress, NicPort};

/// Not a rule as it is printed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a rule as it is printed: {0}")]
pub struct Unreadable(String);

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

/// What lines before the rule have set.
#[derive(Default)]
struct Before {
    encap: Option<Vec<Item>>,
    decap: bool,
    samples: Vec<NicPort>,
    /// Actions that set a field of which the one before sets another part.
    apart: Vec<usize>,
}

/// What is said beside the rule.
struct Comment {
    id: RuleId,
    also: Vec<FieldMatch>,
    undone: Vec<(usize, Action)>,
    apart: Vec<usize>,
    refresh: bool,
}

/// Reads the lines of one rule.
///
/// # Errors
/// [`Unreadable`], with the first word that is none; of a value that its field cannot have, with the field and what it can have.
pub fn read(text: &str) -> Result<Rule, Unreadable> {
    let mut before = Before::default();
    let mut lines = text.lines().peekable();
    let line = lines.next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default();
    let mut comment = comment(&mut line.split_whitespace().peekable())?;
    before.apart = std::mem::take(&mut comment.apart);
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace().peekable();
        if lines.peek().is_none() {
            return rule(&mut words, &before, comment);
        }
        expect(&mut words, &["set"])?;
        match word(&mut words)? {
            "raw_encap" => {
                expect(&mut words, &["0"])?;
                before.encap = Some(items(&mut words, "end_set")?);
            }
            "raw_decap" => before.decap = true,
            "sample_actions" => {
                expect(&mut words, &[&before.samples.len().to_string(), "port_id"])?;
                before.samples.push(port(named(&mut words, "id", 16)?));
            }
            other => return Err(Unreadable(other.into())),
        }
    }
    Err(Unreadable("there is no line".into()))
}

fn word<'a>(words: &mut Words<'a>) -> Result<&'a str, Unreadable> {
    words.next().ok_or_else(|| Unreadable("the line ends too early".into()))
}

fn expect(words: &mut Words<'_>, wanted: &[&str]) -> Result<(), Unreadable> {
    for wanted in wanted {
        let found = word(words)?;
        if found != *wanted {
            return Err(Unreadable(format!("{found} in place of {wanted}")));
        }
    }
    Ok(())
}

/// The next word as a number of at most so many bits, which is one of what is named.
fn number<T: TryFrom<u128>>(words: &mut Words<'_>, of: &str, bits: u32) -> Result<T, Unreadable> {
    let text = word(words)?;
    let found = value(Form::Number, text).filter(|number| *number <= most(bits));
    found.and_then(|number| number.try_into().ok()).ok_or_else(|| unfit(of, text, Form::Number, bits))
}

/// A word, and the number behind it.
fn named<T: TryFrom<u128>>(words: &mut Words<'_>, name: &str, bits: u32) -> Result<T, Unreadable> {
    expect(words, &[name])?;
    number(words, name, bits)
}

fn most(bits: u32) -> u128 {
    u128::MAX >> (128 - bits)
}

/// A value that what is named cannot have, and what it can have.
fn unfit(of: &str, text: &str, form: Form, bits: u32) -> Unreadable {
    let can = match form {
        Form::Mac => "a MAC address".into(),
        Form::Ipv4 => "an address of IPv4".into(),
        Form::Ipv6 => "an address of IPv6".into(),
        Form::Number if bits < 4 => format!("a number from 0 to {}", most(bits)),
        Form::Number => format!("a number from 0 to {0} ({0:#x})", most(bits)),
    };
    Unreadable(format!("{of} {text}: it is {can}"))
}

fn value(form: Form, text: &str) -> Option<u128> {
    match form {
        Form::Mac => {
            let MacAddress([a, b, c, d, e, f]) = text.parse().ok()?;
            Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into())
        }
        Form::Ipv4 => text.parse::<std::net::Ipv4Addr>().ok().map(|address| u32::from(address).into()),
        Form::Ipv6 => text.parse::<std::net::Ipv6Addr>().ok().map(u128::from),
        Form::Number => match text.strip_prefix("0x") {
            Some(digits) => u128::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
    }
}

fn comment(words: &mut Words<'_>) -> Result<Comment, Unreadable> {
    let id = word(words)?;
    let id = id.parse().map_err(|_| Unreadable(id.into()))?;
    let mut comment = Comment { id, also: Vec::new(), undone: Vec::new(), apart: Vec::new(), refresh: true };
    while let Some(next) = words.next() {
        match next {
            "also" => {
                let text = word(words)?;
                comment.also.push(text.parse().map_err(|error: FieldError| Unreadable(error.to_string()))?);
            }
            "do" => {
                let at = number(words, next, 16)?;
                let text = word(words)?;
                comment.undone.push((at, serde_json::from_str(text).map_err(|_| Unreadable(text.into()))?));
            }
            "apart" => comment.apart.push(number(words, next, 16)?),
            "quiet" => comment.refresh = false,
            other => return Err(Unreadable(other.into())),
        }
    }
    Ok(comment)
}

fn rule(words: &mut Words<'_>, before: &Before, comment: Comment) -> Result<Rule, Unreadable> {
    expect(words, &["flow", "create", "0"])?;
    let priority: u32 = named(words, "priority", 32)?;
    let priority = LEAST_PRIORITY
        .checked_sub(priority)
        .ok_or_else(|| Unreadable(format!("priority {priority}: it is a number from 0 to {LEAST_PRIORITY}")))?;
    expect(words, &["transfer", "pattern", "represented_port", "ethdev_port_id", "is"])?;
    let in_port = port(number(words, "ethdev_port_id", 16)?);
    expect(words, &["/"])?;
    let mut fields = pattern::fields(&items(words, "end")?);
    expect(words, &["actions"])?;
    let mut actions = Vec::new();
    while words.peek() != Some(&"end") {
        step(words, before, &mut actions)?;
        expect(words, &["/"])?;
    }
    expect(words, &["end"])?;
    if let Some(more) = words.next() {
        return Err(Unreadable(more.into()));
    }
    let Comment { id, also, undone, refresh, .. } = comment;
    fields.extend(also);
    for (at, action) in undone {
        actions.insert(at.min(actions.len()), action);
    }
    let matches = Match::new(joined(fields)).map_err(|error| Unreadable(error.to_string()))?;
    Ok(Rule { id, priority, in_port, matches, actions, refresh })
}

/// Parts of one field as one.
fn joined(fields: Vec<FieldMatch>) -> Vec<FieldMatch> {
    let mut all: Vec<FieldMatch> = Vec::new();
    for one in fields {
        match all.iter_mut().find(|known| known.field() == one.field()) {
            Some(known) => {
                let (value, mask) = (known.value() | one.value(), known.mask() | one.mask());
                *known = FieldMatch::new(one.field(), value, mask).unwrap_or(*known);
            }
            None => all.push(one),
        }
    }
    all
}

fn items(words: &mut Words<'_>, end: &str) -> Result<Vec<Item>, Unreadable> {
    let mut items = Vec::new();
    loop {
        let name = word(words)?;
        if name == end {
            return Ok(items);
        }
        let kind = ItemKind::ALL.iter().find(|kind| kind.name() == name).ok_or_else(|| Unreadable(name.into()))?;
        items.push(item(*kind, words)?);
    }
}

fn item(kind: ItemKind, words: &mut Words<'_>) -> Result<Item, Unreadable> {
    let mut item = Item::any(kind);
    loop {
        let name = word(words)?;
        if name == "/" {
            return Ok(item);
        }
        if kind.next() == Some(name) {
            expect(words, &["is"])?;
            item.next = Some(number::<u8>(words, name, 1)? != 0);
            continue;
        }
        let header = Header::named(kind, name).ok_or_else(|| Unreadable(name.into()))?;
        let (how, text) = (word(words)?, word(words)?);
        if how == "prefix" {
            let bits = text.parse().ok().filter(|bits| (1..=header.bits).contains(bits));
            let can = || Unreadable(format!("{name} prefix {text}: it is a number from 1 to {}", header.bits));
            let others = header.bits - bits.ok_or_else(can)?;
            header.put(&mut item.mask, header.mask() << others & header.mask());
            continue;
        }
        let found = value(header.form, text).filter(|value| *value <= header.mask());
        let value = found.ok_or_else(|| unfit(name, text, header.form, header.bits as u32))?;
        match how {
            "is" => item.put(header, value, header.mask()),
            "spec" => header.put(&mut item.spec, value),
            "mask" => header.put(&mut item.mask, value),
            "last" => {
                let mut last = Item::any(kind).spec;
                header.put(&mut last, value);
                item.last = Some(last);
            }
            other => return Err(Unreadable(other.into())),
        }
    }
}

fn step(words: &mut Words<'_>, before: &Before, actions: &mut Vec<Action>) -> Result<(), Unreadable> {
    let missing = || Unreadable("what it says is in no line before it".into());
    match word(words)? {
        "count" => {}
        "drop" => actions.push(Action::Drop),
        "represented_port" => actions.push(Action::Output(port(named(words, "ethdev_port_id", 16)?))),
        "sample" => {
            expect(words, &["ratio", "1"])?;
            let index: usize = named(words, "index", 16)?;
            actions.push(Action::Output(*before.samples.get(index).ok_or_else(missing)?));
        }
        "of_push_vlan" => {
            let tpid = named(words, "ethertype", 16)?;
            // Its id and priority come at once.
            expect(words, &["/", "of_set_vlan_vid"])?;
            let vid: u16 = named(words, "vlan_vid", 12)?;
            expect(words, &["/", "of_set_vlan_pcp"])?;
            let pcp: u16 = named(words, "vlan_pcp", 3)?;
            actions.push(Action::PushVlan { tpid, tci: pcp << 13 | 0x1000 | vid });
        }
        "of_set_vlan_vid" => {
            set(FieldMatch::new(Field::VlanTci, named(words, "vlan_vid", 12)?, 0xfff), before, actions)?;
        }
        "of_set_vlan_pcp" => {
            let pcp: u128 = named(words, "vlan_pcp", 3)?;
            set(FieldMatch::new(Field::VlanTci, pcp << 13, 0xe000), before, actions)?;
        }
        "of_pop_vlan" => actions.push(Action::PopVlan),
        "modify_field" => {
            expect(words, &["op", "set", "dst_type"])?;
            let name = word(words)?;
            expect(words, &["src_type", "value", "src_value"])?;
            let text = word(words)?;
            expect(words, &["width"])?;
            let width = word(words)?;
            let settable = Settable::named(name).ok_or_else(|| Unreadable(name.into()))?;
            if width != settable.width.to_string() {
                return Err(Unreadable(format!("{name} width {width}: it has {} bits", settable.width)));
            }
            // Whole bytes.
            let value = value(Form::Number, &format!("0x{text}")).filter(|_| text.len().is_multiple_of(2));
            let value = value.filter(|value| *value <= most(settable.width));
            let value = value.ok_or_else(|| unfit(name, &format!("0x{text}"), Form::Number, settable.width))?;
            set(settable.to(value), before, actions)?;
        }
        "dec_ttl" => actions.push(Action::DecTtl),
        "vxlan_decap" => actions.push(Action::TunnelPop),
        "raw_decap" if before.decap => {
            expect(words, &["index", "0"])?;
            actions.push(Action::TunnelPop);
        }
        "raw_encap" => {
            expect(words, &["index", "0"])?;
            let items = before.encap.as_ref().ok_or_else(missing)?;
            let mut bytes = Vec::new();
            for one in items {
                bytes.extend(&one.spec);
            }
            // What the words do not say is the same in all of them.
            let tunnel = bytes.len().checked_sub(ItemKind::Geneve.size()).ok_or_else(missing)?;
            match items.last().map(|last| last.kind) {
                Some(ItemKind::Geneve) => bytes[tunnel + 2..tunnel + 4].copy_from_slice(&[0x65, 0x58]),
                Some(ItemKind::Vxlan) => bytes[tunnel] = 0x08,
                _ => return Err(missing()),
            }
            actions.push(Action::TunnelPush(Box::new(encap::push(&bytes).ok_or_else(missing)?)));
        }
        other => {
            let short = SHORT.iter().find(|short| short.action == other).ok_or_else(|| Unreadable(other.into()))?;
            expect(words, &[short.word])?;
            let text = word(words)?;
            let settable = Settable::named(short.name).ok_or_else(|| Unreadable(other.into()))?;
            let value = value(short.form, text).filter(|value| *value <= most(settable.width));
            let value = value.ok_or_else(|| unfit(short.word, text, short.form, settable.width))?;
            set(settable.to(value), before, actions)?;
        }
    }
    Ok(())
}

/// One more field to set; the two parts of one field that come one behind the other are one, if they are not said to be two.
fn set(field: Result<FieldMatch, FieldError>, before: &Before, actions: &mut Vec<Action>) -> Result<(), Unreadable> {
    let field = field.map_err(|error| Unreadable(error.to_string()))?;
    let is_apart = before.apart.contains(&actions.len());
    match actions.last_mut().filter(|_| !is_apart) {
        Some(Action::Set(known)) if known.field() == field.field() && known.mask() & field.mask() == 0 => {
            let both = FieldMatch::new(field.field(), known.value() | field.value(), known.mask() | field.mask());
            *known = both.map_err(|error| Unreadable(error.to_string()))?;
        }
        _ => actions.push(Action::Set(field)),
    }
    Ok(())
}
