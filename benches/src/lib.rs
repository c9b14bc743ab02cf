//! Benchmarks of ringspan and its peers.
//!
//! `cargo xtask bench` runs the program `ringspan-bench`: a guest that is a load generator ([`driver`], [`load`]), against ringspan
//! and against others on the same core ([`peer`], [`ovs`]), in turns ([`run`]), cell by cell of a matrix ([`cell`]). Beside the rates
//! stand round trips and idle costs ([`rates`], [`latency`]), how soon who sleeps is awake ([`wake`]), instructions a packet
//! ([`instructions`]), iperf3 of a Linux guest ([`iperf`]), guests that are migrated ([`migration`], [`numbers`]), the small figures ([`figures`], [`ports`]), and what generator and machine can
//! do ([`generator`], [`handback`], [`distance`], [`calm`]). The program `look-up` sets the software NIC beside OVS-DPDK, with the same [`flows`]; `two-paths` sets what is offloaded beside what goes through Open vSwitch, and
//! `many-flows` says what a hundred thousand flows cost, both with a real Open vSwitch ([`scene`]). [`report`], [`target`] and [`page`] show what was found.

pub mod calm;
pub mod cell;
pub mod clock;
pub mod cpu;
pub mod distance;
pub mod driver;
pub mod figures;
pub mod flows;
pub mod generator;
pub mod handback;
pub mod instructions;
pub mod iperf;
pub mod latency;
pub mod load;
pub mod machine;
pub mod migration;
pub mod numbers;
pub mod ovs;
pub mod page;
pub mod peer;
pub mod ports;
pub mod rates;
pub mod report;
pub mod run;
pub mod scene;
pub mod target;
pub mod wake;
