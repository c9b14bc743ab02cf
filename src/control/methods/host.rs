//! Methods about what the agent's files want of this host.

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

/// The plan for this machine.
pub(crate) fn plan_of(params: &PlanOf) -> Result<Plan, Error> {
    let files = Files { host: params.file.clone(), common: params.common.clone() };
    let settings = Settings::read(&files, &|path| std::fs::read_to_string(path))?;
    let host = Host::new(Path::new("/"), None, Box::new(FilesOnly));
    Ok(conf::plan(&settings, &Inventory::read(&host, conf::addresses())))
}
