//! The kernel as a source, beside dumps of text.

use super::super::Engine;
use super::super::table::{Misses, Source, Told as ToldFlow};
use super::super::work::{Change, News, Work};
use super::{Fake, all_steps, line, round, told};

fn kernel(work: &mut Work, fake: &Fake, changes: Vec<Change>) -> Vec<String> {
    work.take(News::Kernel(changes));
    all_steps(work, fake);
    fake.log()
}

fn kernel_dump(work: &mut Work, fake: &Fake, told: Vec<ToldFlow>) -> Vec<String> {
    work.take(News::Dump { source: Source::Kernel, told, misses: Misses::default() });
    all_steps(work, fake);
    fake.log()
}

#[test]
fn what_the_kernel_tells_is_done_at_once_and_is_newer_than_its_dump() {
    let (mut work, fake) = (Work::default(), Fake::default());
    // Flows of the userspace datapath are there at the same time.
    assert_eq!(round(&mut work, &fake, &[line(9, "nic0_vf0", 0x9999, "nic0_vf1")]), ["+9"]);
    let (one, two) = (told(1, "nic0_vf0", 0x1111, "nic0_vf1"), told(2, "nic0_vf0", 0x2222, "nic0_vf1"));
    work.take(News::KernelBegins);
    // While its dump is on its way: one that the dump has is gone again, one is another one.
    let gone = kernel(&mut work, &fake, vec![Change::Put(one.clone()), Change::Deleted(1)]);
    assert_eq!(gone, [""; 0], "it came and went before any engine was told");
    assert_eq!(kernel(&mut work, &fake, vec![Change::Put(told(2, "nic0_vf0", 0x2222, "nic0"))]), ["+2"]);
    assert_eq!(kernel_dump(&mut work, &fake, vec![one, two, told(3, "nic0_vf1", 0x3333, "nic0")]), ["+3"]);
    assert_eq!(work.table.flows[&2].text().actions(), "nic0");
    // Removed before anything is installed.
    let both = vec![Change::Put(told(4, "nic0_vf0", 0x4444, "nic0")), Change::Deleted(3)];
    assert_eq!(kernel(&mut work, &fake, both), ["-3", "+4"]);
    // Told again and the same: nothing. Gone by its dump, as after a flush that nobody told of.
    assert_eq!(kernel(&mut work, &fake, vec![Change::Put(told(4, "nic0_vf0", 0x4444, "nic0"))]), [""; 0]);
    work.take(News::KernelBegins);
    assert_eq!(kernel_dump(&mut work, &fake, vec![told(2, "nic0_vf0", 0x2222, "nic0")]), ["-4"]);
    // The dumps of the userspace datapath know nothing of these, and take nothing away.
    assert_eq!(round(&mut work, &fake, &[]), ["-9"]);
    assert_eq!(work.table.flows.len(), 1);
}

#[test]
fn when_the_kernel_is_not_listened_to_any_more_its_flows_go_on_with_the_dumps_of_text() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[]);
    work.take(News::KernelBegins);
    let flows = [told(1, "nic0_vf0", 0x1111, "nic0_vf1"), told(2, "nic0_vf0", 0x2222, "nic0_vf1")].to_vec();
    assert_eq!(kernel_dump(&mut work, &fake, flows.clone()).len(), 2);
    work.take(News::KernelLost);
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1111, "nic0_vf1")]), ["-2"]);
    // And back: the kernel takes over what the text had.
    work.take(News::KernelBegins);
    assert_eq!(kernel_dump(&mut work, &fake, flows), ["+2"]);
    assert_eq!(round(&mut work, &fake, &[]), [""; 0]);
    // Another datapath's flow of that ufid stays with OVS, and touches nothing.
    assert_eq!(round(&mut work, &fake, &[line(1, "nic0_vf1", 0x1111, "nic0")]), [""; 0]);
    assert_eq!((work.table.misses().unreadable, fake.told().rules.len()), (1, 2));
}

#[test]
fn what_an_earlier_daemon_left_is_compared_when_all_sources_have_told() {
    let (mut work, fake) = (Work::default(), Fake::default());
    round(&mut work, &fake, &[line(1, "nic0_vf0", 0x1111, "nic0_vf1"), line(2, "nic0_vf0", 0x2222, "nic0_vf1")]);
    let mut new = Work::new(1000, false);
    new.look(&fake.nics());
    new.table.begin(Source::Text);
    let text = vec![told(1, "nic0_vf0", 0x1111, "nic0_vf1")];
    new.take(News::Dump { source: Source::Text, told: text, misses: Misses::default() });
    all_steps(&mut new, &fake);
    assert_eq!(fake.log(), [""; 0]);
    // The second flow is the kernel's now, and another one.
    new.take(News::KernelBegins);
    new.complete = true;
    assert_eq!(kernel_dump(&mut new, &fake, vec![told(2, "nic0_vf0", 0x2222, "nic0")]), ["+2"]);
}
