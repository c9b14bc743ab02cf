//! Any bytes as a line of a dump: no panic, and what was read prints to text that reads and prints the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan::ovs::flow::{Line, Names, Style, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Line::Flow(flow)) = parse::bytes(bytes, 1, Names::Allowed) else { return };
    for style in [Style::Verbose, Style::Terse] {
        let text = flow.display(style).to_string();
        // A flag without a name cannot be read: OVS does not say which it is either.
        if text.contains("[Unknown]") {
            continue;
        }
        // What is not printed, such as bits that are not set by an action, may be lost; what is printed stays.
        let again = parse::flow(&text, 1, Names::Allowed).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(again.display(style).to_string(), text);
    }
    flow.obstacles();
});
