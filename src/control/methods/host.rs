//! Methods about what the agent's files want of this host.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, device};
use crate::error::{Error, ErrorKind};
use crate::host::conf::{self, Applied, Files, Inventory, Plan, Settings};
use crate::host::doctor::{FilesOnly, Host};
use crate::host::sriov::Count;

/// Which files the agent reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanOf {
    /// The agent's host.conf, an absolute path.
    pub file: PathBuf,
    /// The common configuration, where host.conf does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// The agent's host.conf, an absolute path.
    pub file: PathBuf,
    /// The common configuration, where host.conf does not name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub common: Option<PathBuf>,
    /// Changes nothing, and says what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

pub(super) fn apply(call: &mut Call, Apply { file, common, dry_run }: Apply) -> Result<Applied, Error> {
    let plan = plan(call, PlanOf { file, common })?;
    Ok(conf::apply(plan, dry_run, |interface, count| {
        let count =
            count.try_into().map_err(|_| Error::new(ErrorKind::Invalid, format!("{count} VFs are too many")))?;
        let wish = device::EnableVfs {
            pf: interface.into(),
            count: Count::Number(count),
            disturb: false,
            timeout_ms: device::ENABLE_MS,
        };
        Ok(device::enable_vfs(call, wish)?.done)
    }))
}

pub(super) fn plan(_: &mut Call, params: PlanOf) -> Result<Plan, Error> {
    for path in [Some(&params.file), params.common.as_ref()].into_iter().flatten() {
        // The daemon's folder is not the caller's.
        if !path.is_absolute() {
            let message = format!("{}: give the whole path, from /", path.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    plan_of(&params)
}

/// More than this is no configuration.
const LONGEST: u64 = 1 << 20;

/// Reads a file whose path a client gave, or another file: the daemon, which may read everything, does not wait for a pipe or a device, nor fill
/// its memory.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(text)
}

/// The plan for this machine.
pub(crate) fn plan_of(params: &PlanOf) -> Result<Plan, Error> {
    let files = Files { host: params.file.clone(), common: params.common.clone() };
    let settings = Settings::read(&files, &read)?;
    let host = Host::new(Path::new("/"), None, Box::new(FilesOnly));
    Ok(conf::plan(&settings, &Inventory::read(&host, conf::addresses())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.conf");
        std::fs::write(&path, "rack: r1\n").unwrap();
        assert_eq!(read(&path).unwrap(), "rack: r1\n");
        std::fs::write(&path, vec![b'#'; LONGEST as usize + 1]).unwrap();
        assert!(read(&path).is_err());
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in [&pipe, Path::new("/dev/zero"), folder.path()] {
            assert!(read(other).is_err(), "{}", other.display());
        }
    }
}
