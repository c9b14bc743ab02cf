//! Hosts that are not here: made-up trees and a made-up kernel, and what ringspan says of them.

mod attach;
mod bond;
mod change;
mod eswitch;
mod inventory;
mod kernel;
mod tree;
