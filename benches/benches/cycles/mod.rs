//! A measurement for criterion in ticks of the processor's time stamp counter: cycles of its nominal clock.

use criterion::measurement::{Measurement, ValueFormatter};
use criterion::{Criterion, Throughput};
use ringspan_benches::clock::ticks;

/// Measures in cycles.
pub struct Cycles;

/// Criterion with that.
#[allow(dead_code, reason = "each benchmark is a crate of its own")]
pub fn criterion() -> Criterion<Cycles> {
    Criterion::default().with_measurement(Cycles)
}

impl Measurement for Cycles {
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        ticks()
    }
    fn end(&self, start: u64) -> u64 {
        ticks() - start
    }
    fn add(&self, a: &u64, b: &u64) -> u64 {
        a + b
    }
    fn zero(&self) -> u64 {
        0
    }
    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Self
    }
}

impl ValueFormatter for Cycles {
    fn scale_values(&self, _: f64, _: &mut [f64]) -> &'static str {
        "cycles"
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let (each, unit) = match throughput {
            Throughput::Elements(packets) => (*packets, "cycles/packet"),
            Throughput::Bytes(bytes) => (*bytes, "cycles/byte"),
            _ => (1, "cycles"),
        };
        values.iter_mut().for_each(|value| *value /= each as f64);
        unit
    }
    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "cycles"
    }
}
