//! The client against a real Open vSwitch, and against peers that break.

mod broken;
mod real;
