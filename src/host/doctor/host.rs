//! The host as the checks see it: files below a root folder, and what else can be asked. It remembers what was read, for the bundle.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::distribution::Distribution;
use super::kernel_log::{self, KernelLog};
use super::nic::{self, Nic};
use crate::error::Error;
use crate::ovs::verify::Verified;

/// More than this is not read of a file: what checks look at is small.
const LONGEST: u64 = 16 << 20;

/// Why something is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unseen {
    /// It is not there.
    Absent,
    /// This user may not look.
    Denied,
    /// Anything else.
    Other(String),
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("not there"),
            Self::Denied => f.write_str("not visible to this user"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl From<&std::io::Error> for Unseen {
    fn from(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Absent,
            ErrorKind::PermissionDenied => Self::Denied,
            // Attributes that an interface has no value for.
            ErrorKind::InvalidInput | ErrorKind::Unsupported => Self::Absent,
            _ if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV)) => Self::Absent,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    /// Whether it ended with exit code 0.
    pub good: bool,
    pub stdout: String,
    pub stderr: String,
}

/// What is asked of more than files.
pub(crate) trait Surroundings: Send + Sync {
    /// Runs a program that only looks, within seconds.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<Ran, Unseen>;
    /// What `ringspan ovs verify` says.
    fn verify_ovs(&self) -> Result<Verified, Error>;
    /// Queueing disciplines: interface and kind.
    fn qdiscs(&self) -> Result<Vec<(String, String)>, Unseen>;
    /// Whether the checks run as root.
    fn privileged(&self) -> bool;
    /// Ports, configured or added, whose device is a vDPA device: names and devices.
    fn vdpa_ports(&self) -> Vec<(String, String)> {
        vec![]
    }
}

/// Nothing but files: a tree that was copied from another host.
pub(crate) struct FilesOnly;

impl FilesOnly {
    const WHY: &str = "only files of this host are here";
}

impl Surroundings for FilesOnly {
    fn run(&self, _: &str, _: &[&str]) -> Result<Ran, Unseen> {
        Err(Unseen::Other(Self::WHY.into()))
    }

    fn verify_ovs(&self) -> Result<Verified, Error> {
        Err(Error::new(crate::error::ErrorKind::Permission, Self::WHY))
    }

    fn qdiscs(&self) -> Result<Vec<(String, String)>, Unseen> {
        Err(Unseen::Other(Self::WHY.into()))
    }

    fn privileged(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }
}

/// The host as the checks see it.
pub(crate) struct Host {
    root: PathBuf,
    log_file: Option<PathBuf>,
    surroundings: Box<dyn Surroundings>,
    distribution: OnceLock<Distribution>,
    nics: OnceLock<Vec<Nic>>,
    log: OnceLock<Result<KernelLog, Unseen>>,
    ovs: OnceLock<Result<Verified, Error>>,
    /// What was read, by a path that begins with `files/`, `links/` or `programs/`.
    seen: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Host {
    /// A host whose files are below `root`; `log_file` stands for the kernel log.
    pub(crate) fn new(root: &Path, log_file: Option<PathBuf>, surroundings: Box<dyn Surroundings>) -> Self {
        Self {
            root: root.into(),
            log_file,
            surroundings,
            distribution: OnceLock::new(),
            nics: OnceLock::new(),
            log: OnceLock::new(),
            ovs: OnceLock::new(),
            seen: Mutex::default(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn remember(&self, place: String, content: &[u8]) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_insert_with(|| content.to_vec());
    }

    /// What was read until now.
    pub(super) fn seen(&self) -> BTreeMap<String, Vec<u8>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The content of a file.
    pub(crate) fn bytes(&self, path: &str) -> Result<Vec<u8>, Unseen> {
        let mut content = Vec::new();
        let file = fs::File::open(self.at(path)).map_err(|error| Unseen::from(&error))?;
        file.take(LONGEST).read_to_end(&mut content).map_err(|error| Unseen::from(&error))?;
        self.remember(format!("files{path}"), &content);
        Ok(content)
    }

    /// The text of a file, without white space around it.
    pub(crate) fn text(&self, path: &str) -> Result<String, Unseen> {
        Ok(String::from_utf8_lossy(&self.bytes(path)?).trim().to_owned())
    }

    /// The number in a file: decimal, or hexadecimal with `0x`.
    pub(crate) fn number(&self, path: &str) -> Result<u64, Unseen> {
        let text = self.text(path)?;
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        };
        number.ok_or_else(|| Unseen::Other(format!("{path} has {text:?}, which is no number")))
    }

    /// The last part of what a link points to: a driver's name, a group's number.
    pub(crate) fn link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.at(path)).ok()?;
        self.remember(format!("links{path}"), target.as_os_str().as_bytes());
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// All of what a link points to.
    pub(crate) fn whole_link(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.at(path)).ok()?;
        self.remember(format!("links{path}"), target.as_os_str().as_bytes());
        Some(target.to_str()?.to_owned())
    }

    /// Whether there is something.
    pub(crate) fn exists(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path)).is_ok()
    }

    /// Names in a folder, sorted: numbers by their value.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>, Unseen> {
        let entries = fs::read_dir(self.at(path)).map_err(|error| Unseen::from(&error))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), name.clone()));
        Ok(names)
    }

    /// Runs a program that only looks.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<Ran, Unseen> {
        let ran = self.surroundings.run(program, arguments)?;
        let words: Vec<String> =
            std::iter::once(program).chain(arguments.iter().copied()).map(|word| word.replace('/', "_")).collect();
        self.remember(format!("programs/{}", words.join(" ")), format!("{}{}", ran.stdout, ran.stderr).as_bytes());
        Ok(ran)
    }

    /// What `ringspan ovs verify` says; asked once, since all flows are dumped for it.
    pub(crate) fn verify_ovs(&self) -> &Result<Verified, Error> {
        self.ovs.get_or_init(|| self.surroundings.verify_ovs())
    }

    pub(crate) fn qdiscs(&self) -> Result<Vec<(String, String)>, Unseen> {
        self.surroundings.qdiscs()
    }

    pub(crate) fn privileged(&self) -> bool {
        self.surroundings.privileged()
    }

    /// Ports whose device is a vDPA device: names and devices.
    pub(crate) fn vdpa_ports(&self) -> Vec<(String, String)> {
        self.surroundings.vdpa_ports()
    }

    /// The distribution, which remedies must fit.
    pub(crate) fn distribution(&self) -> &Distribution {
        self.distribution.get_or_init(|| Distribution::read(self))
    }

    /// The kernel's release, such as `6.1.0-18-amd64`.
    pub(crate) fn kernel(&self) -> String {
        self.text("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into())
    }

    /// The words of the kernel's command line.
    pub(crate) fn command_line(&self) -> Result<Vec<String>, Unseen> {
        Ok(self.text("/proc/cmdline")?.split_whitespace().map(str::to_owned).collect())
    }

    /// Network cards' functions, virtual ones included, by address.
    pub(crate) fn nics(&self) -> &[Nic] {
        self.nics.get_or_init(|| nic::list(self))
    }

    /// Physical functions.
    pub(crate) fn physical(&self) -> impl Iterator<Item = &Nic> {
        self.nics().iter().filter(|nic| nic.parent.is_none())
    }

    /// Whether there is a card that can have VFs: without one, much of what else would fail is a warning.
    pub(crate) fn wants_vfs(&self) -> bool {
        self.physical().any(|nic| nic.has_sriov() == Some(true))
    }

    /// The kernel's log of this boot.
    pub(crate) fn kernel_log(&self) -> &Result<KernelLog, Unseen> {
        self.log.get_or_init(|| match &self.log_file {
            Some(file) => kernel_log::read(file),
            None => kernel_log::find(self, &self.at("/dev/kmsg")),
        })
    }
}
