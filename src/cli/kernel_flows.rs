//! `ringspan flow dump`.

use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::Failure;
use crate::ovs::kernel::{Change, Datapath, KernelError, Told, Unreadable};

/// How long nothing is waited for: only how often the wait begins anew.
const WAIT: Duration = Duration::from_secs(3600);

/// Prints the flows of a datapath of the kernel and, with `follow`, each change from then on.
pub(super) fn dump(datapath: &str, follow: bool, as_json: bool) -> Result<(), Failure> {
    let mut datapath = Datapath::open(datapath)?;
    // Before the dump, so that nothing that changes falls between the two.
    let watch = if follow { Some(datapath.watch()?) } else { None };
    let mut out = io::BufWriter::new(io::stdout().lock());
    all(&mut datapath, as_json, &mut out)?;
    let Some(mut watch) = watch else { return Ok(()) };
    loop {
        let mut changes = vec![];
        let waited = watch.wait(WAIT, &mut changes);
        for change in &changes {
            match change {
                Change::Put(told) if as_json => writeln!(out, "{}", json!({ "put": value(told) }))?,
                Change::Put(told) => writeln!(out, "+ {}", text(told))?,
                Change::Deleted(ufid) if as_json => writeln!(out, "{}", json!({ "deleted": ufid }))?,
                Change::Deleted(ufid) => writeln!(out, "- ufid:{ufid}")?,
                Change::DeletedUnnamed if as_json => writeln!(out, "{}", json!({ "deleted": null }))?,
                Change::DeletedUnnamed => writeln!(out, "- a flow without a name")?,
                Change::Ports => {}
            }
        }
        out.flush()?;
        match waited {
            Ok(()) => {}
            Err(error @ KernelError::Overrun) => {
                eprintln!("ringspan: {error}: here are all flows again");
                all(&mut datapath, as_json, &mut out)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn all(datapath: &mut Datapath, as_json: bool, out: &mut impl Write) -> Result<(), Failure> {
    for told in datapath.dump()? {
        if as_json {
            writeln!(out, "{}", value(&told))?;
        } else {
            writeln!(out, "{}", text(&told))?;
        }
    }
    Ok(out.flush()?)
}

fn text(told: &Told) -> String {
    match told {
        Told::Flow(flow) => flow.to_string(),
        Told::Unreadable(Unreadable { ufid: Some(ufid), reason }) => format!("ufid:{ufid}: not understood: {reason}"),
        Told::Unreadable(Unreadable { ufid: None, reason }) => {
            format!("a flow without a name: not understood: {reason}")
        }
    }
}

fn value(told: &Told) -> Value {
    match told {
        Told::Flow(flow) => json!({ "flow": flow, "obstacles": flow.obstacles() }),
        Told::Unreadable(unreadable) => {
            json!({ "ufid": unreadable.ufid, "not_understood": unreadable.reason.to_string() })
        }
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::Failed(error.to_string())
    }
}
