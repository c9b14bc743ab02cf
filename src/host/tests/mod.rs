//! Hosts that are not here: made-up trees and a made-up kernel, and what ringspan says of them.

mod attach;
mod bond;
mod card;
mod change;
mod eswitch;
mod firmware;
mod inventory;
mod kernel;
mod tree;
mod udev;
mod vdpa;
mod work;
