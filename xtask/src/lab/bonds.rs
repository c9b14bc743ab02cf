//! The kernel's bonds under `ringspan`'s hand: made over veth pairs, whose far ends are in a network namespace, where a second bond or a bridge is the switch.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::wait;
use serde_json::Value;

use super::control::{CONFIGURATION, Control, tool};

type Check = (&'static str, fn(&mut Control, &Netns) -> Result<()>);

/// In this order: each leaves nothing.
const CHECKS: &[Check] = &[
    ("a bond in mode 1 is made over two wires, fails over, and tells of it", active_backup),
    ("a bond in mode 2 is adopted as it is and changed to what is wanted", balance_xor),
    ("a bond in mode 4 agrees with a second bond by LACP, and goes on with one wire", lacp),
    ("bonds that cannot be are refused, and a member that is refused leaves nothing", refusals),
];
const BOND: &str = "rsbond0";
const OURS: [&str; 2] = ["rsb0", "rsb1"];
const THEIRS: [&str; 2] = ["far0", "far1"];
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the checks whose names contain `only`. Returns how many passed.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    let checks: Vec<&Check> = CHECKS.iter().filter(|(name, _)| name.contains(only)).collect();
    if checks.is_empty() {
        return Ok(0);
    }
    for module in ["bonding", "veth", "bridge", "8021q", "tun"] {
        tool("modprobe", &[module])?;
    }
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut control = Control { daemon, interface: String::new(), story };
    for (name, check) in &checks {
        let start = Instant::now();
        writeln!(control.story, "--> {name}")?;
        let net = wires()?;
        check(&mut control, &net).with_context(|| format!("{name}\n{}", control.daemon.story()))?;
        if fs::exists(format!("/sys/class/net/{BOND}"))? {
            // Somebody may reach this host by its address.
            control.refused(&["bond", "delete", BOND], &["has an IP address", "--disturb"])?;
        }
        control.done(&["bond", "delete", BOND, "--disturb"])?;
        ensure!(!fs::exists(format!("/sys/class/net/{BOND}"))?, "{BOND} is there after bond delete");
        ensure!(control.done(&["bond", "delete", BOND])?.is_empty(), "a bond was deleted twice");
        tool("ip", &["link", "delete", OURS[0]])?;
        tool("ip", &["link", "delete", OURS[1]])?;
        writeln!(control.story, "    {:.1} s", start.elapsed().as_secs_f64())?;
    }
    Ok(checks.len() as u32)
}

/// Two veth pairs, whose far ends are in a namespace of their own.
fn wires() -> Result<Netns> {
    let net = Netns::new("bonds")?;
    for (ours, theirs) in OURS.iter().zip(THEIRS) {
        tool("ip", &["link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", net.name()])?;
    }
    Ok(net)
}

/// The far ends as members of one interface, with an address.
fn far_end(net: &Netns, name: &str, kind: &[&str]) -> Result<()> {
    net.ip(&[&["link", "add", "name", name, "type"], kind].concat())?;
    for theirs in THEIRS {
        net.ip(&["link", "set", theirs, "down"])?;
        net.ip(&["link", "set", theirs, "master", name])?;
        net.ip(&["link", "set", theirs, "up"])?;
    }
    net.ip(&["address", "add", "192.0.2.2/24", "dev", name])?;
    net.ip(&["link", "set", name, "up"])?;
    Ok(())
}

impl Control<'_> {
    fn bond(&mut self) -> Result<Value> {
        let bonds = self.json(&["bond", "status", BOND])?;
        Ok(bonds[0].clone())
    }

    /// Waits until the bond is so.
    fn await_bond(&mut self, what: &str, so: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + LIMIT;
        loop {
            let bond = self.bond()?;
            if so(&bond) {
                return Ok(bond);
            }
            ensure!(Instant::now() < end, "{what} not within {LIMIT:?}: {bond}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until an event with all of these words was told.
    fn await_event(&mut self, words: &[&str]) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let told = self.daemon.cli(&["events"])?.success("ringspan events")?;
            if let Some(line) = told.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                writeln!(self.story, "    {line}")?;
                return Ok(());
            }
            ensure!(Instant::now() < end, "no event with {words:?} within {LIMIT:?}:\n{told}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn reaches_the_far_end(&mut self) -> Result<()> {
        wait::until(LIMIT, "an answer of the far end by the bond", || {
            Ok(tool("ping", &["-c", "1", "-W", "1", "192.0.2.2"]).is_ok().then_some(()))
        })
    }

    fn with_address(&mut self) -> Result<()> {
        tool("ip", &["address", "add", "192.0.2.1/24", "dev", BOND])?;
        Ok(())
    }
}

fn links(bond: &Value) -> Vec<&str> {
    bond["members"].as_array().into_iter().flatten().filter_map(|one| one["link"].as_str()).collect()
}

fn active_backup(control: &mut Control, net: &Netns) -> Result<()> {
    far_end(net, "swbridge", &["bridge"])?;
    let create = ["bond", "create", BOND, OURS[0], OURS[1], "--mode", "1", "--miimon", "50"];
    control.done(&create)?;
    ensure!(control.done(&create)?.is_empty(), "what is so already was done again");
    let bond = control.await_bond("both links", |bond| links(bond) == ["up", "up"])?;
    ensure!(bond["mode"] == "active-backup" && bond["miimon"] == 50, "{bond}");
    // The first whose link came.
    let sends =
        OURS.iter().position(|name| bond["active"] == *name).with_context(|| format!("nobody sends: {bond}"))?;
    let (one, other) = (OURS[sends], OURS[1 - sends]);
    control.with_address()?;
    control.reaches_the_far_end()?;
    net.ip(&["link", "set", THEIRS[sends], "down"])?;
    control.await_event(&["bond-failover", BOND, &format!("from=\"{one}\""), &format!("to=\"{other}\"")])?;
    control.await_event(&["bond-link", one, "up=false"])?;
    let bond = control.bond()?;
    ensure!(bond["active"] == other && bond["members"][sends]["link_failures"] == 1, "{bond}");
    control.done(&["bond", "status"])?;
    control.reaches_the_far_end()?;
    net.ip(&["link", "set", THEIRS[sends], "up"])?;
    control.await_event(&["bond-link", one, "up=true"])
}

fn balance_xor(control: &mut Control, net: &Netns) -> Result<()> {
    far_end(net, "swbond", &["bond", "mode", "balance-xor", "miimon", "50"])?;
    // As somebody else made it: without watched links, with one member, hashing addresses.
    tool("ip", &["link", "add", BOND, "type", "bond", "mode", "balance-xor"])?;
    tool("ip", &["link", "set", OURS[0], "master", BOND])?;
    let create = ["bond", "create", BOND, OURS[0], OURS[1], "--mode", "2", "--hash-policy", "layer3+4"];
    let done = control.done(&create)?;
    for part in ["miimon", "hash policy", OURS[1]] {
        ensure!(done.contains(part), "no {part} in: {done}");
    }
    ensure!(!done.contains("is made") && !done.contains(&format!("{} is a member", OURS[0])), "{done}");
    ensure!(control.done(&create)?.is_empty(), "what is so already was done again");
    let bond = control.await_bond("both links", |bond| links(bond) == ["up", "up"])?;
    ensure!(bond["hash_policy"] == "layer3+4" && bond["miimon"] == 100, "{bond}");
    control.with_address()?;
    control.reaches_the_far_end()?;
    let seen = tool("ip", &["-d", "link", "show", BOND])?;
    ensure!(seen.contains("xmit_hash_policy layer3+4") && seen.contains("miimon 100"), "{seen}");
    control.refused(&["bond", "create", BOND, OURS[0], OURS[1], "--mode", "4"], &["balance-xor", "bond delete"])
}

fn lacp(control: &mut Control, net: &Netns) -> Result<()> {
    far_end(net, "swbond", &["bond", "mode", "802.3ad", "miimon", "50", "lacp_rate", "fast"])?;
    let partner = net.ip(&["-o", "link", "show", "swbond"])?;
    let partner =
        partner.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no address")?.to_owned();
    control.done(&[
        "bond",
        "create",
        BOND,
        OURS[0],
        OURS[1],
        "--mode",
        "4",
        "--lacp-rate",
        "fast",
        "--hash-policy",
        "layer2+3",
    ])?;
    let agreed = |bond: &Value, count: usize| {
        let members = bond["members"].as_array().into_iter().flatten();
        members.filter(|one| one["lacp"]["carries"] == true && one["link"] == "up").count() == count
    };
    let bond = control.await_bond("an agreement by LACP on both wires", |bond| agreed(bond, 2))?;
    writeln!(control.story, "    {bond}")?;
    ensure!(
        bond["lacp"]["partner"] == partner.as_str() && bond["lacp"]["ports"] == 2,
        "the partner is {partner}: {bond}"
    );
    ensure!(bond["lacp_rate"] == "fast" && bond["hash_policy"] == "layer2+3", "{bond}");
    for member in bond["members"].as_array().context("members")? {
        ensure!(member["lacp"]["partner"] == partner.as_str(), "the partner is {partner}: {member}");
    }
    control.done(&["bond", "status"])?;
    control.with_address()?;
    control.reaches_the_far_end()?;
    net.ip(&["link", "set", THEIRS[1], "down"])?;
    control.await_event(&["bond-link", OURS[1], "up=false"])?;
    control.await_bond("an agreement on one wire", |bond| bond["lacp"]["ports"] == 1 && agreed(bond, 1))?;
    control.reaches_the_far_end()
}

fn refusals(control: &mut Control, _: &Netns) -> Result<()> {
    let [first, second] = OURS;
    control.refused(&["bond", "create", BOND, first, second, "--mode", "6"], &["ARP"])?;
    control.refused(&["bond", "create", BOND, first, "no-such-if"], &["no-such-if"])?;
    control.refused(&["bond", "create", BOND, first, "--mode", "1", "--lacp-rate", "fast"], &["no LACP"])?;
    control.refused(&["bond", "create", BOND, first, second, "--vf-lag"], &["VF LAG"])?;
    tool("ip", &["link", "set", second, "up"])?;
    control.refused(&["bond", "create", BOND, first, second, "--mode", "1"], &[second, "--disturb"])?;
    ensure!(!fs::exists(format!("/sys/class/net/{BOND}"))?, "a refusal made {BOND}");
    control.done(&["bond", "create", BOND, first, second, "--mode", "1", "--disturb"])?;
    tool("ip", &["link", "add", "rsvlan2", "link", BOND, "type", "vlan", "id", "8"])?;
    control.refused(&["bond", "delete", BOND], &["rsvlan2", "stands on it"])?;
    tool("ip", &["link", "delete", "rsvlan2"])?;
    // A member that the kernel refuses, an interface of another kind of link: what was done before it is undone.
    control.done(&["bond", "delete", BOND])?;
    tool("ip", &["link", "set", first, "up"])?;
    tool("ip", &["tuntap", "add", "dev", "tun0", "mode", "tun"])?;
    let refused =
        control.refused(&["bond", "create", BOND, first, "tun0", "--mode", "4", "--disturb"], &["tun0", "undone"]);
    tool("ip", &["link", "delete", "tun0"])?;
    refused?;
    ensure!(!fs::exists(format!("/sys/class/net/{BOND}"))?, "a refusal left {BOND}");
    let seen = tool("ip", &["link", "show", first])?;
    ensure!(seen.contains(",UP") && !seen.contains("master"), "{first} was up before: {seen}");
    Ok(())
}
