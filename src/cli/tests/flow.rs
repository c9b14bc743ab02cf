//! `ringspan flow parse`: without a daemon, and with what programs read.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const FLOW: &str = "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(dst=10.0.0.1,frag=no), packets:0, bytes:0, used:never, \
                    actions:ct(commit),2";

fn parse(input: &[u8], options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringspan"));
    command.args(["flow", "parse", "-"]).args(options).env("RINGSPAN_CONTROL", "/nonexistent/control.sock");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn flows_are_printed_back_as_ovs_prints_them() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let dump = format!("flow-dump from the main thread:\n{FLOW}\n");
    std::fs::write(file.path(), &dump).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_ringspan")).args(["flow", "parse"]).arg(file.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), dump);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    // Normalised: a number may be written otherwise, and lines may end as elsewhere.
    let other = FLOW.replace("0x0800", "2048").replace("in_port(1)", "in_port(01)") + "\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&parse(other.as_bytes(), &[]).stdout), format!("{FLOW}\n"));
}

#[test]
fn json_has_the_structure_and_what_cannot_be_offloaded() {
    let output = parse(FLOW.as_bytes(), &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["line"], 1);
    assert_eq!(line["flow"]["keys"][0]["recirc_id"]["value"], 0);
    assert_eq!(line["flow"]["keys"][4]["ipv4"]["dst"]["value"], "10.0.0.1");
    assert_eq!(line["flow"]["actions"][1]["output"], 2);
    assert_eq!(line["obstacles"], serde_json::json!([{ "reason": "action-conntrack", "part": "ct(commit)" }]));
}

#[test]
fn a_line_that_is_no_flow_is_named_and_the_others_are_read() {
    let input = [FLOW, "in_port(1),frobnicate(5)", "", FLOW, "nonsense"].join("\n");
    let output = parse(input.as_bytes(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{FLOW}\n{FLOW}\n"));
    let errors = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(
        lines,
        [
            "ringspan: standard input: line 2, column 12: unknown field: \"frobnicate(5)\"",
            "ringspan: standard input: line 5, column 1: expected a field such as eth(...), found \"nonsense\"",
            "ringspan: standard input: 2 lines are not flows",
        ]
    );
    let output = parse(input.as_bytes(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    let second: Value = serde_json::from_slice(output.stdout.split(|byte| *byte == b'\n').nth(1).unwrap()).unwrap();
    assert_eq!((&second["line"], &second["error"]["column"]), (&2.into(), &12.into()));
}

#[test]
fn megabytes_without_an_end_are_one_line_that_is_no_flow() {
    let mut input = b"x".repeat(3 << 20);
    input.extend_from_slice(b"\n\xff\n");
    input.extend_from_slice(FLOW.as_bytes());
    let output = parse(&input, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{FLOW}\n"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("line 1, column 262145: longer than 256 KiB"), "{errors}");
    assert!(errors.contains("line 2, column 1: not UTF-8"), "{errors}");
}

#[test]
fn a_file_that_is_not_there_is_a_failure() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_ringspan")).args(["flow", "parse", "/nonexistent/flows"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "ringspan: /nonexistent/flows: No such file or directory (os error 2)\n"
    );
}
