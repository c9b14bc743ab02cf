//! Methods about what the agent's files want of this host.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use crate::error::{Error, ErrorKind};
use crate::host::conf::{self, Files, Inventory, Plan, Settings};
use crate::host::doctor::{FilesOnly, Host};

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
