//! `ringspan flow`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use serde_json::json;

use super::Failure;
use crate::ovs::flow::parse::{self, LONGEST_LINE};
use crate::ovs::flow::{Line, Names};

/// Reads flows, one a line, and prints each back, or what is in it. Goes on after a line that is not a flow.
pub(super) fn parse(file: &Path, as_json: bool) -> Result<(), Failure> {
    let (name, reader): (_, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".into(), Box::new(io::stdin()))
    } else {
        let name = file.display().to_string();
        let opened = File::open(file).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        (name, Box::new(opened))
    };
    let mut lines = Lines { reader: BufReader::new(reader), bytes: Vec::new() };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let (mut number, mut wrong) = (0_u64, 0_u64);
    while let Some(text) = lines.next().map_err(|error| Failure::Failed(format!("{name}: {error}")))? {
        number += 1;
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match parse::bytes(text, number as usize, Names::Allowed) {
            Ok(Line::Flow(flow)) if as_json => {
                let obstacles = flow.obstacles();
                writeln!(out, "{}", json!({ "line": number, "flow": flow, "obstacles": obstacles }))?;
            }
            Ok(Line::Flow(flow)) => writeln!(out, "{flow}")?,
            Ok(Line::Thread(core)) if as_json => writeln!(out, "{}", json!({ "line": number, "thread": core }))?,
            Ok(heading @ Line::Thread(_)) => writeln!(out, "{heading}")?,
            Err(error) => {
                wrong += 1;
                if as_json {
                    let error = json!({ "column": error.column, "reason": error.reason });
                    writeln!(out, "{}", json!({ "line": number, "error": error }))?;
                }
                // What came before it first.
                out.flush()?;
                eprintln!("ringspan: {name}: {error}");
            }
        }
    }
    out.flush()?;
    match wrong {
        0 => Ok(()),
        1 => Err(Failure::Failed(format!("{name}: one line is not a flow"))),
        _ => Err(Failure::Failed(format!("{name}: {wrong} lines are not flows"))),
    }
}

/// The lines of a file, each no longer in memory than the longest that can be a flow.
struct Lines<R> {
    reader: BufReader<R>,
    bytes: Vec<u8>,
}

impl<R: Read> Lines<R> {
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.bytes.clear();
        let limit = LONGEST_LINE as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.bytes)?;
        if read as u64 == limit && self.bytes.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n')?;
        }
        Ok((read > 0).then_some(self.bytes.as_slice()))
    }
}
