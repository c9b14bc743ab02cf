//! Flows that several threads of the userspace datapath have, each with counters of its own.

use proptest::prelude::*;

use super::super::copies::Thread;
use super::super::counted::OfOvs;
use super::super::line::ByOvs;
use super::super::packed::Kinds;
use super::super::table::{Misses, Source, Table, Told};
use crate::ovs::flow::{Stats, Ufid};

type Packets = u64;
/// A thread's copy: its core, with none the main thread, and its packets.
type Copy = (Option<u32>, Packets);

fn line(ufid: u128, packets: Packets, actions: &str) -> String {
    let (ufid, bytes) = (Ufid(ufid), packets * 100);
    format!(
        "ufid:{ufid}, recirc_id(0),in_port(a), packets:{packets}, bytes:{bytes}, used:{packets}.5s, dp:ovs, actions:{actions}"
    )
}

fn heading(core: Option<u32>) -> String {
    core.map_or("flow-dump from the main thread:".into(), |core| format!("flow-dump from pmd on cpu core: {core}"))
}

fn shown(table: &Table, ufid: u128) -> Option<OfOvs> {
    table.flows.get(&ufid).map(|entry| entry.ovs())
}

/// What comes of these lines of a dump before its end; `after` is called after each flow.
fn read(table: &mut Table, lines: impl IntoIterator<Item = String>, mut after: impl FnMut(&Table)) -> Vec<Told> {
    let mut told = Vec::new();
    for line in lines {
        if !table.is_as_before(line.as_bytes()) {
            told.extend(table.told(&mut Kinds::default(), line.as_bytes(), &mut Misses::default()));
        }
        if line.starts_with("ufid:") {
            after(table);
        }
    }
    told
}

/// Lines of a dump that has these copies of the flow.
fn lines(copies: &[Copy], actions: &str) -> Vec<String> {
    copies.iter().flat_map(|(core, packets)| [heading(*core), line(1, *packets, actions)]).collect()
}

/// The flow's packets after each line of a dump that has these copies of it, and after its end.
fn of_copies(table: &mut Table, copies: &[Copy]) -> Vec<Packets> {
    let now = |table: &Table| shown(table, 1).map(|ovs| (ovs.packets, ovs.bytes));
    let mut seen = Vec::new();
    table.begin(Source::Text);
    table.datapath("netdev@ovs-netdev");
    let told = read(table, lines(copies, "b"), |table| seen.extend(now(table)));
    table.finish(Source::Text, told, Misses::default(), 10);
    seen.extend(now(table));
    assert!(seen.iter().all(|(packets, bytes)| *bytes == packets * 100), "{seen:?}");
    seen.into_iter().map(|(packets, _)| packets).collect()
}

/// The same of the first cores.
fn packets(table: &mut Table, packets: &[Packets]) -> Vec<Packets> {
    let copies: Vec<Copy> = packets.iter().zip(0..).map(|(packets, core)| (Some(core), *packets)).collect();
    of_copies(table, &copies)
}

fn last(table: &mut Table, copies: &[Copy]) -> Packets {
    *of_copies(table, copies).last().unwrap()
}

#[test]
fn what_copies_counted_is_added_up_when_a_dump_ends_and_stays_as_it_was_until_then() {
    let mut table = Table::default();
    assert_eq!(packets(&mut table, &[100, 50]), [150]);
    assert_eq!(packets(&mut table, &[110, 60]), [150, 150, 170]);
    assert_eq!(packets(&mut table, &[110, 61, 5]), [170, 170, 170, 176]);
    // The copy that was used last says when that was.
    assert_eq!(shown(&table, 1).unwrap().used(), Some(5500));
    // What one alone counts is shown as soon as it is read.
    assert_eq!(packets(&mut Table::default(), &[7]), [7]);
}

#[test]
fn a_copy_that_comes_takes_nothing_away_wherever_in_the_dump_it_stands() {
    for copies in [[(None, 3), (Some(7), 105)], [(Some(7), 105), (None, 3)]] {
        let mut table = Table::default();
        of_copies(&mut table, &[(Some(7), 100)]);
        let seen = of_copies(&mut table, &copies);
        assert!(seen.iter().all(|packets| (100..=108).contains(packets)) && seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&108));
    }
}

/// It may be missed, or be gone: what it counted are packets of the flow.
#[test]
fn a_copy_that_is_not_told_of_keeps_what_it_counted_and_counts_once_when_it_is_told_of_again() {
    let mut table = Table::default();
    let (one, two) = (Some(1), Some(2));
    for more in 0..5 {
        assert_eq!(last(&mut table, &[(one, 100 + more), (two, 50 + more)]), 150 + 2 * more);
        assert_eq!(last(&mut table, &[(one, 100 + more)]), 150 + 2 * more);
        assert_eq!(last(&mut table, &[(two, 51 + more)]), 151 + 2 * more);
    }
}

#[test]
fn a_copy_that_is_told_of_twice_counts_once() {
    let mut table = Table::default();
    let (one, two) = (Some(1), Some(2));
    // Of a flow that one thread has, a new one and a known one; and of one that two have.
    assert_eq!(last(&mut table, &[(one, 100), (one, 101)]), 101);
    assert_eq!(of_copies(&mut table, &[(one, 102), (one, 102)]), [102; 3]);
    assert_eq!(last(&mut table, &[(one, 103), (two, 50), (one, 104), (two, 50)]), 154);
    assert_eq!(last(&mut table, &[(one, 104), (two, 51), (one, 104), (two, 52)]), 156);
    assert_eq!(last(&mut table, &[(one, 104), (two, 52)]), 156);
}

#[test]
fn a_copy_that_was_made_anew_counts_on() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    assert_eq!(packets(&mut table, &[7, 51]).last(), Some(&158));
    assert_eq!(packets(&mut table, &[8, 51]).last(), Some(&159));
    // So does the only one.
    let mut table = Table::default();
    packets(&mut table, &[100]);
    assert_eq!(packets(&mut table, &[7]), [100, 107]);
    assert_eq!(packets(&mut table, &[8]), [107, 108]);
    // Not one that went, and the flow with it.
    assert!(packets(&mut table, &[]).is_empty());
    assert_eq!(packets(&mut table, &[5]), [5]);
    assert_eq!(packets(&mut table, &[6]), [6, 6]);
}

#[test]
fn a_flow_whose_thread_was_moved_to_another_core_counts_on_there() {
    let mut table = Table::default();
    assert_eq!(last(&mut table, &[(Some(1), 100)]), 100);
    assert_eq!(last(&mut table, &[(Some(5), 3)]), 103);
    assert_eq!(last(&mut table, &[(Some(5), 200)]), 300);
    assert_eq!(last(&mut table, &[(Some(1), 2), (Some(5), 200)]), 302);
}

/// What comes under its heading after a long time is not the copy that was there.
#[test]
fn a_copy_that_was_away_for_long_is_another_one_when_it_comes_again() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    for _ in 0..40 {
        assert_eq!(packets(&mut table, &[100]).last(), Some(&150));
    }
    assert_eq!(packets(&mut table, &[100, 60]).last(), Some(&210));
}

#[test]
fn threads_of_different_datapaths_are_different_ones() {
    let mut table = Table::default();
    for more in 0..3 {
        table.begin(Source::Text);
        let mut told = Vec::new();
        for (datapath, packets) in [("netdev@ovs-netdev", 100), ("dummy@ovs-dummy", 50)] {
            table.datapath(datapath);
            told.extend(read(&mut table, lines(&[(None, packets + more)], "b"), |_| {}));
        }
        table.finish(Source::Text, told, Misses::default(), 10);
        assert_eq!(shown(&table, 1).unwrap().packets, 150 + 2 * more);
    }
}

#[test]
fn copies_whose_actions_change_go_on_counting() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    table.begin(Source::Text);
    table.datapath("netdev@ovs-netdev");
    let told = read(&mut table, lines(&[(Some(0), 101), (Some(1), 51)], "c"), |_| {});
    assert_eq!(table.finish(Source::Text, told, Misses::default(), 10).changed, [1]);
    assert_eq!(shown(&table, 1).unwrap().packets, 152);
}

#[test]
fn a_dump_that_breaks_off_takes_nothing_away() {
    let broken = |table: &mut Table, packets: Packets| {
        table.begin(Source::Text);
        table.datapath("netdev@ovs-netdev");
        assert!(read(table, lines(&[(Some(0), packets)], "b"), |_| {}).is_empty());
    };
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    broken(&mut table, 110);
    assert_eq!(shown(&table, 1).unwrap().packets, 150);
    assert_eq!(packets(&mut table, &[111, 60]), [150, 150, 171]);
    // In the middle of a flow that was made anew.
    let mut table = Table::default();
    packets(&mut table, &[100]);
    broken(&mut table, 3);
    assert_eq!(shown(&table, 1).unwrap().packets, 100);
    assert_eq!(packets(&mut table, &[4, 101]), [100, 100, 205]);
}

#[test]
fn a_copy_is_not_gone_because_many_dumps_broke_off() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    for _ in 0..40 {
        table.begin(Source::Text);
    }
    assert_eq!(packets(&mut table, &[100]).last(), Some(&150));
    assert_eq!(packets(&mut table, &[100, 51]).last(), Some(&151));
}

#[test]
fn what_the_kernel_takes_over_counts_as_the_kernel_says() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    table.begin(Source::Text);
    assert!(table.is_as_before(line(1, 110, "b").as_bytes()));
    let told = Told::from_line(&mut Kinds::default(), &line(1, 7, "b")).unwrap();
    assert_eq!(table.put(told, 10), None);
    table.finish(Source::Text, Vec::new(), Misses::default(), 10);
    assert_eq!(shown(&table, 1).unwrap().packets, 7);
}

#[test]
fn a_flow_that_the_kernel_hands_over_while_a_dump_comes_counts_once() {
    for told_later in [99, 100, 101] {
        let mut table = Table::default();
        table.put(Told::from_line(&mut Kinds::default(), &line(1, 100, "b")).unwrap(), 10);
        table.begin(Source::Text);
        table.datapath("system@ovs-system");
        table.hand_over();
        let told = read(&mut table, [line(1, told_later, "b")], |_| {});
        table.finish(Source::Text, told, Misses::default(), 10);
        assert_eq!(shown(&table, 1).unwrap().packets, told_later.max(100));
    }
}

/// The dump is the newer word, and the kernel's flows have no copies.
#[test]
fn a_flow_that_the_kernel_handed_over_before_a_dump_counts_what_the_dump_says() {
    for told_later in [99, 100, 101] {
        let mut table = Table::default();
        table.put(Told::from_line(&mut Kinds::default(), &line(1, 100, "b")).unwrap(), 10);
        table.hand_over();
        for packets in [told_later, told_later + 1, 7] {
            table.begin(Source::Text);
            table.datapath("system@ovs-system");
            let told = read(&mut table, [line(1, packets, "b")], |_| {});
            table.finish(Source::Text, told, Misses::default(), 10);
            assert_eq!((shown(&table, 1).unwrap().packets, table.flows[&1].thread), (packets, Thread::NONE));
        }
    }
}

/// Of a flow that threads offload differently it is said that which holds for all of them.
#[test]
fn what_open_vswitch_offloaded_of_copies_does_not_depend_on_their_order() {
    let states = [("", ByOvs::No), ("offloaded:partial, ", ByOvs::Partly), ("offloaded:yes, ", ByOvs::Dpdk)];
    let of = |offloaded: &str, actions: &str| {
        let dp = if offloaded.contains("yes") { "dpdk" } else { "ovs" };
        line(1, 1, actions).replace("dp:ovs", &format!("{offloaded}dp:{dp}"))
    };
    for (less, (few, expected)) in states.into_iter().enumerate() {
        for (much, _) in &states[less..] {
            for [one, two] in [[few, much], [much, few]] {
                // New, as it was, with other actions; and with all offloaded, then as before.
                let mut table = Table::default();
                for (actions, [one, two], expected) in [
                    ("b", [one, two], expected),
                    ("b", [one, two], expected),
                    ("c", [one, two], expected),
                    ("c", [states[2].0; 2], ByOvs::Dpdk),
                    ("c", [one, two], expected),
                ] {
                    table.begin(Source::Text);
                    table.datapath("netdev@ovs-netdev");
                    let lines = [heading(Some(0)), of(one, actions), heading(Some(1)), of(two, actions)];
                    let told = read(&mut table, lines, |_| {});
                    table.finish(Source::Text, told, Misses::default(), 10);
                    assert_eq!(table.flows[&1].by_ovs(), expected, "{one:?}, {two:?}, {actions}");
                }
            }
        }
    }
}

#[test]
fn a_flow_that_is_handed_over_amid_a_dump_is_with_tc_as_the_dump_says() {
    let with_tc = line(1, 1, "b").replace("dp:ovs", "offloaded:yes, dp:tc");
    let by_kernel = || Told::new(&mut Kinds::default(), 1, "recirc_id(0),in_port(a)", "b", &Stats::default());
    // The kernel let go of it before the dump had told of it, or afterwards.
    for told_before in [false, true] {
        let mut table = Table::default();
        table.put(by_kernel(), 10);
        table.begin(Source::Text);
        table.datapath("system@ovs-system");
        let mut told = Vec::new();
        if told_before {
            told = read(&mut table, [with_tc.clone()], |_| {});
        }
        table.hand_over();
        if !told_before {
            told = read(&mut table, [with_tc.clone()], |_| {});
        }
        assert_eq!(table.flows[&1].by_ovs(), if told_before { ByOvs::No } else { ByOvs::Tc });
        table.finish(Source::Text, told, Misses::default(), 10);
        assert_eq!(table.flows[&1].by_ovs(), ByOvs::Tc, "{told_before}");
    }
}

/// What becomes of a copy before a dump, and how often the dump tells of it.
fn fate() -> impl Strategy<Value = (Packets, bool, usize)> {
    (0..50u64, prop::bool::weighted(0.1), prop_oneof![1 => Just(0usize), 3 => Just(1), 1 => Just(2)])
}

/// A copy in the model: what it counts, what of that was told, and what was told of those before it.
#[derive(Default, Clone, Copy)]
struct Life {
    counts: Packets,
    told: Packets,
    before: Packets,
}

proptest! {
    /// Copies on four threads count, are made anew, missed, and told of twice.
    #[test]
    fn what_is_shown_never_goes_back_nor_beyond_what_copies_counted_nor_stays_behind_what_was_told(
        dumps in prop::collection::vec((prop::array::uniform4(fate()), 0..24usize), 1..30)
    ) {
        let (mut table, mut lives, mut was) = (Table::default(), [Life::default(); 4], 0);
        for (fates, turn) in dumps {
            let mut copies = Vec::new();
            for (core, (life, (more, anew, times))) in (0..).zip(lives.iter_mut().zip(fates)) {
                if anew {
                    *life = Life { before: life.before + life.told, ..Life::default() };
                }
                life.counts += more;
                if times > 0 {
                    life.told = life.counts;
                }
                copies.extend(std::iter::repeat_n((Some(core), life.counts), times));
            }
            // Threads stand in any order, and twice.
            let turns = copies.len().max(1);
            copies.rotate_left(turn % turns);
            let seen = of_copies(&mut table, &copies);
            let Some(end) = seen.last() else {
                // The flow is gone, and another one when it comes again.
                (lives, was) = (lives.map(|Life { counts, .. }| Life { counts, ..Life::default() }), 0);
                continue;
            };
            prop_assert!(seen[0] >= was && seen.is_sorted(), "{seen:?} after {was}");
            let now: Packets = lives.iter().map(|life| life.told).sum();
            let all = now + lives.iter().map(|life| life.before).sum::<Packets>();
            prop_assert!((now..=all).contains(end), "{end}, not {now} to {all}");
            was = *end;
        }
    }
}
