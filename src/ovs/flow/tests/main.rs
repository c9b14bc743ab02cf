//! OVS's flow text: what a real switch prints comes back, and what is not a flow is refused with its place.

mod errors;
mod lines;
mod properties;
mod switch;

use ringspan::ovs::flow::{Flow, Names, parse};

/// Lines of a file of this folder that are not comments.
fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn read(line: &str) -> Flow {
    parse::flow(line, 1, Names::Allowed).unwrap_or_else(|error| panic!("{error}\n{line}"))
}

/// A flow with these actions.
fn doing(actions: &str) -> String {
    format!("recirc_id(0),in_port(1),eth(),eth_type(0x0800), packets:0, bytes:0, used:never, actions:{actions}")
}

/// A flow with these keys.
fn matching(keys: &str) -> String {
    format!("{keys}, packets:0, bytes:0, used:never, actions:2")
}
