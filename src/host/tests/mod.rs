//! Hosts that are not here: made-up trees and a made-up kernel, and what ringspan says of them.

mod inventory;
mod kernel;
#[allow(dead_code, reason = "what changes things comes with the methods that do")]
mod tree;
