//! The agent's files put together as the agent does it.
//!
//! `host.conf` comes first. Where it names a `common_config_file` that is there, the basic options, of which `disable_security_group` is one, are taken from that alone: what
//! `host.conf` says of them is forgotten. `host_local.conf` comes last: its values win, its lists are added. (cloudpods, pkg/hostman/options/options.go; structarg appends to lists)

use std::path::{Path, PathBuf};

use super::file::{self, At, Keys, Placed, invalid};
use super::plan::{Level, Problem};
use crate::error::Error;

/// Where the agent looks for its own additions when `host.conf` does not say.
const LOCAL: &str = "/etc/yunion/host_local.conf";

/// What reads files, so that tests have none.
pub(crate) type Read<'a> = dyn Fn(&Path) -> std::io::Result<String> + 'a;

/// Which files there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Files {
    /// The agent's `host.conf`.
    pub host: PathBuf,
    /// The common configuration, where `host.conf` does not name it: the agent may have it on its command line.
    pub common: Option<PathBuf>,
}

/// What the agent is set to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub networks: Vec<Placed<String>>,
    pub sriov_nics: Vec<Placed<String>>,
    pub ovs_offload_nics: Vec<Placed<String>>,
    pub disable_security_group: bool,
    /// Where that was said; absent: nowhere, so it is false.
    pub said: Option<At>,
    /// The files that were read, in order.
    pub read: Vec<PathBuf>,
    /// What is odd about the files.
    pub problems: Vec<Problem>,
}

impl Settings {
    /// Reads and puts together.
    pub(crate) fn read(files: &Files, read: &Read) -> Result<Self, Error> {
        let load = |path: &Path| -> Result<Option<Keys>, Error> {
            match read(path) {
                Ok(text) => Ok(Some(file::read(path, &text)?)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io(format!("{} cannot be read", path.display()), &error)),
            }
        };
        let Some(host) = load(&files.host)? else {
            let error = std::io::Error::from_raw_os_error(libc::ENOENT);
            return Err(Error::io(format!("{}: name the agent's host.conf", files.host.display()), &error));
        };
        let mut settings = Self { read: vec![files.host.clone()], ..Self::default() };
        settings.networks = host.networks.clone();
        settings.sriov_nics = host.sriov_nics.clone();
        settings.ovs_offload_nics = host.ovs_offload_nics.clone();
        settings.secure(&host);
        let named = host.common_config_file.as_ref().filter(|path| !path.value.as_os_str().is_empty());
        let common = named.map(|path| path.value.clone()).or_else(|| files.common.clone());
        if let Some(path) = common {
            match load(&path)? {
                Some(common) => settings.replace(&path, &host, &common),
                None => settings.warn(
                    named.map(|path| &path.at),
                    format!("the common configuration {} is not there", path.display()),
                    "on the host it is mounted from the cluster's ConfigMap; name it with --common",
                ),
            }
        }
        let local = host.local_config_file.as_ref().map_or_else(|| LOCAL.into(), |path| path.value.clone());
        if !local.as_os_str().is_empty()
            && let Some(keys) = load(&local)?
        {
            settings.read.push(local);
            settings.networks.extend(keys.networks.iter().cloned());
            settings.sriov_nics.extend(keys.sriov_nics.iter().cloned());
            settings.ovs_offload_nics.extend(keys.ovs_offload_nics.iter().cloned());
            settings.secure(&keys);
            settings.mistyped(&keys);
        }
        settings.mistyped(&host);
        if settings.networks.is_empty() {
            let at = At { file: files.host.as_path().into(), line: 0 };
            let remedy = "the agent needs one entry at least, such as - eth0/br0/10.0.0.1";
            return Err(invalid(&at, "networks is missing or empty", remedy));
        }
        Ok(settings)
    }

    fn secure(&mut self, keys: &Keys) {
        if let Some(said) = &keys.disable_security_group {
            self.disable_security_group = said.value;
            self.said = Some(said.at.clone());
        }
    }

    /// The basic options are the common configuration's alone.
    fn replace(&mut self, path: &Path, host: &Keys, common: &Keys) {
        self.read.push(path.into());
        self.disable_security_group = false;
        self.said = None;
        self.secure(common);
        if let Some(said) = &host.disable_security_group
            && said.value != self.disable_security_group
        {
            let message = format!(
                "disable_security_group: {} has no effect: the agent takes it from {} alone, where it is {}",
                said.value,
                path.display(),
                self.disable_security_group
            );
            self.warn(Some(&said.at), message, "set it there, or in host_local.conf, which comes last");
        }
        let lists = [
            ("networks", &common.networks),
            ("sriov_nics", &common.sriov_nics),
            ("ovs_offload_nics", &common.ovs_offload_nics),
        ];
        for (name, list) in lists {
            if let Some(first) = list.first() {
                let message = format!("{name} has no effect in the common configuration");
                self.warn(Some(&first.at), message, "the agent reads it from host.conf and host_local.conf only");
            }
        }
    }

    fn mistyped(&mut self, keys: &Keys) {
        for one in &keys.mistyped {
            let (key, meant) = &one.value;
            let message = format!("the agent knows no {key}, and passes over it");
            self.warn(Some(&one.at), message, &format!("write {meant}, if that was meant"));
        }
    }

    fn warn(&mut self, at: Option<&At>, message: String, remedy: &str) {
        self.problems.push(Problem::new(Level::Warning, at, message, remedy));
    }
}
