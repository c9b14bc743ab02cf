//! The daemon and the command line of ringspan.
fn main() {}
