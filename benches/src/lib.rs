//! Benchmarks of ringspan and its peers.
