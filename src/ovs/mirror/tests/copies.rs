//! Flows that several threads of the userspace datapath have, each with counters of its own.

use proptest::prelude::*;

use super::super::counted::OfOvs;
use super::super::packed::Kinds;
use super::super::table::{Misses, Source, Table, Told};
use crate::ovs::flow::Ufid;

/// A thread's copy: its packets.
type Packets = u64;

fn line(ufid: u128, packets: Packets, actions: &str) -> String {
    let (ufid, bytes) = (Ufid(ufid), packets * 100);
    format!(
        "ufid:{ufid}, recirc_id(0),in_port(a), packets:{packets}, bytes:{bytes}, used:{packets}.5s, dp:ovs, actions:{actions}"
    )
}

fn shown(table: &Table, ufid: u128) -> Option<OfOvs> {
    table.flows.get(&ufid).map(|entry| entry.ovs())
}

/// The flow's packets after each line of a dump that has these copies of it, and after its end.
fn packets(table: &mut Table, copies: &[Packets]) -> Vec<Packets> {
    let lines: Vec<String> = copies.iter().map(|packets| line(1, *packets, "b")).collect();
    let now = |table: &Table| shown(table, 1).map(|ovs| (ovs.packets, ovs.bytes));
    let (mut told, mut seen) = (Vec::new(), Vec::new());
    table.begin(Source::Text);
    for line in lines {
        if !table.is_as_before(line.as_bytes()) {
            told.extend(Told::from_line(&mut Kinds::default(), &line));
        }
        seen.extend(now(table));
    }
    table.finish(Source::Text, told, Misses::default(), 10);
    seen.extend(now(table));
    assert!(seen.iter().all(|(packets, bytes)| *bytes == packets * 100), "{seen:?}");
    seen.into_iter().map(|(packets, _)| packets).collect()
}

#[test]
fn what_copies_counted_is_added_up_when_a_dump_ends_and_stays_as_it_was_until_then() {
    let mut table = Table::default();
    assert_eq!(packets(&mut table, &[100, 50]), [150]);
    assert_eq!(packets(&mut table, &[110, 60]), [150, 150, 170]);
    assert_eq!(packets(&mut table, &[60, 110, 5]), [170, 170, 170, 175]);
    // The copy that was used last says when that was.
    assert_eq!(shown(&table, 1).unwrap().used(), Some(5500));
    // What one alone counts is shown as soon as it is read.
    assert_eq!(packets(&mut Table::default(), &[7]), [7]);
}

#[test]
fn a_copy_that_comes_takes_nothing_away_wherever_in_the_dump_it_stands() {
    for copies in [[3, 105], [105, 3]] {
        let mut table = Table::default();
        packets(&mut table, &[100]);
        let seen = packets(&mut table, &copies);
        assert!(seen.iter().all(|packets| (100..=108).contains(packets)) && seen.is_sorted(), "{seen:?}");
        assert_eq!(seen.last(), Some(&108));
    }
}

/// A dump may miss a copy, or tell of one twice, while a thread's table grows: the next one says how it is.
#[test]
fn what_is_shown_is_what_the_last_dump_said_whatever_was_in_those_before() {
    let mut table = Table::default();
    for _ in 0..3 {
        assert_eq!(packets(&mut table, &[100, 50]).last(), Some(&150));
        assert_eq!(packets(&mut table, &[100]), [150, 100]);
    }
    assert_eq!(packets(&mut table, &[101, 101]).last(), Some(&202));
    assert_eq!(packets(&mut table, &[102]), [202, 102]);
    // The flow goes and comes back: another one.
    assert!(packets(&mut table, &[]).is_empty());
    assert_eq!(packets(&mut table, &[5]), [5]);
    assert_eq!(packets(&mut table, &[6]), [6, 6]);
}

#[test]
fn a_flow_of_one_copy_that_was_made_anew_counts_from_there() {
    let mut table = Table::default();
    packets(&mut table, &[100]);
    assert_eq!(packets(&mut table, &[7]), [100, 7]);
    assert_eq!(packets(&mut table, &[8]), [8, 8]);
}

#[test]
fn copies_whose_actions_change_go_on_counting() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    table.begin(Source::Text);
    let told = [line(1, 101, "c"), line(1, 51, "c")];
    let told = told.iter().filter_map(|line| Told::from_line(&mut Kinds::default(), line)).collect();
    assert_eq!(table.finish(Source::Text, told, Misses::default(), 10).changed, [1]);
    assert_eq!(shown(&table, 1).unwrap().packets, 152);
}

#[test]
fn a_dump_that_breaks_off_changes_nothing() {
    let mut table = Table::default();
    packets(&mut table, &[100, 50]);
    table.begin(Source::Text);
    assert!(table.is_as_before(line(1, 110, "b").as_bytes()));
    assert_eq!(packets(&mut table, &[111, 60]), [150, 150, 171]);
    // In the middle of a flow that looks like a new one.
    let mut table = Table::default();
    packets(&mut table, &[100]);
    table.begin(Source::Text);
    assert!(table.is_as_before(line(1, 3, "b").as_bytes()));
    assert_eq!(packets(&mut table, &[4, 101]), [100, 100, 105]);
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

proptest! {
    /// Copies on four threads come, count, are missed and go.
    #[test]
    fn what_is_shown_changes_when_a_dump_ends_and_is_what_all_copies_counted_then(
        dumps in prop::collection::vec(prop::collection::vec(0..50u64, 1..5), 1..20)
    ) {
        let (mut table, mut last): (_, Option<(u64, bool)>) = (Table::default(), None);
        let mut counted = [0; 4];
        for more in dumps {
            counted.iter_mut().zip(&more).for_each(|(counted, more)| *counted += more);
            let copies = &counted[..more.len()];
            let seen = packets(&mut table, copies);
            let (end, meanwhile) = seen.split_last().unwrap();
            prop_assert_eq!(*end, copies.iter().sum::<u64>());
            if let Some((before, several)) = last {
                // Of one copy alone the first line may say more already.
                let stays = |packets: &u64| *packets == before || !several && (before..=copies[0]).contains(packets);
                prop_assert!(meanwhile.iter().all(stays), "{seen:?} after {before}");
            }
            last = Some((*end, copies.len() > 1));
        }
    }
}
