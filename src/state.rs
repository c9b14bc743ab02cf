//! What must survive a restart of the daemon: the ports added at run time, and what is pinned for those of the file.
//!
//! `state.json` is replaced as a whole and atomically: written beside, synced, renamed, and the folder synced. A file that
//! cannot be read is never written over: the daemon refuses to start and says what to do.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use nix::fcntl::{Flock, FlockArg};
use ringspan_protocol::{Compat, LaneName, NicName, NicSpec, PciAddress, PortName, PortSpec, VfSettings};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::attach::Record;
use crate::attach::record::{Counted, Key};
use crate::error::{Error, ErrorKind};
use crate::host::vdpa::{Book, Entries};
use crate::host::work::{Begun, Journal, Left};

/// Version of the file's form.
const FORM: u32 = 1;

/// The desired state that is not in the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Version of the file's form.
    pub form: u32,
    /// Ports that were added at run time.
    pub ports: BTreeMap<PortName, SavedPort>,
    /// What is pinned for the ports of the configuration file.
    pub config_ports: BTreeMap<PortName, Pin>,
    /// Software NICs that were added at run time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nics: BTreeMap<NicName, SavedNic>,
    /// What guests' attachments have set for VFs of the configuration file's NICs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_vfs: BTreeMap<NicName, Vec<VfSettings>>,
}

impl Default for Saved {
    fn default() -> Self {
        Self {
            form: FORM,
            ports: BTreeMap::new(),
            config_ports: BTreeMap::new(),
            nics: BTreeMap::new(),
            config_vfs: BTreeMap::new(),
        }
    }
}

/// A port that was added at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPort {
    /// The lane it was given.
    pub lane: LaneName,
    /// What it is.
    pub spec: PortSpec,
}

/// A software NIC that was added at run time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNic {
    /// The lane that has it.
    pub lane: LaneName,
    /// What it is.
    pub spec: NicSpec,
}

/// What a port of the configuration file keeps over restarts, and over upgrades of ringspan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pin {
    /// The lane it was given.
    pub lane: LaneName,
    /// The features it offered first.
    pub compat: Compat,
}

/// Where event numbers and the lanes' own event numbers stand. Losing it costs repeated or missed events, no port.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct EventMarks {
    /// No event has had a higher number.
    pub highest: u64,
    /// By lane: its start in milliseconds since the Unix epoch, and its last event that was passed on.
    pub lanes: BTreeMap<LaneName, (u64, u64)>,
}

/// What is remembered of the host's devices.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostState {
    /// The drivers that functions had before they were given to others; null: none.
    #[serde(default)]
    pub original_drivers: BTreeMap<PciAddress, Option<String>>,
    /// The agent's files whose plan was applied last: host.conf, and the common configuration where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<(PathBuf, Option<PathBuf>)>,
    /// The change of the host that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
    /// Functions that a change left without the driver that they had, and that it has not taken back yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub without_driver: BTreeMap<PciAddress, String>,
}

/// Takes a folder for this daemon alone, by a lock on a file in it; `key` is where the file names another.
pub(crate) fn lock_folder(folder: &Path, name: &str, key: &str) -> Result<Flock<File>, Error> {
    let file = folder.join(name);
    let lock = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&file);
    let lock = lock.map_err(|error| Error::io(file.display(), &error))?;
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let folder = folder.display();
        let message =
            format!("another ringspan daemon has the folder {folder}: stop it, or give this one another {key}");
        Error { errno: Some(errno as i32), ..Error::new(ErrorKind::Busy, message) }
    })
}

/// The folder with the state, locked for this daemon until it is released or dropped.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Nothing when the folder was given back.
    lock: Mutex<Option<Flock<File>>>,
    /// Held while what is remembered of the host is read and written again.
    host: Mutex<()>,
}

impl Journal for StateDir {
    fn unbinding(&self, functions: &[(PciAddress, String)]) -> Result<(), Error> {
        self.change_host(|host| {
            if let Some(begun) = &mut host.begun {
                begun.unbound.extend(functions.iter().cloned());
            }
        })
    }

    fn leaving(&self, member: Left) -> Result<(), Error> {
        self.change_host(|host| {
            if let Some(begun) = &mut host.begun {
                begun.left.push(member);
            }
        })
    }

    fn making(&self, index: u32) -> Result<(), Error> {
        self.change_host(|host| {
            if let Some(begun) = &mut host.begun {
                begun.made = Some(index);
            }
        })
    }
}

impl StateDir {
    /// Opens the folder, making it when it is missing. Refused while another daemon has it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(|error| Error::io(format!("state folder {}", path.display()), &error))?;
        let lock = lock_folder(path, "lock", "control.state_dir")?;
        Ok(Self { path: path.to_owned(), lock: Mutex::new(Some(lock)), host: Mutex::new(()) })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Flock<File>>> {
        self.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Gives the folder back: nothing is written any more, and another daemon may have it.
    pub(crate) fn release(&self) {
        self.lock().take();
    }

    /// The desired state; empty when there is none yet.
    pub(crate) fn load(&self) -> Result<Saved, Error> {
        let saved: Saved = self.read("state.json")?.unwrap_or_default();
        if saved.form != FORM {
            let file = self.path.join("state.json");
            let message = format!(
                "{}: written by another version of ringspan (form {}, this one reads {FORM}): start that version, or move the file away",
                file.display(),
                saved.form
            );
            return Err(Error::new(ErrorKind::Version, message));
        }
        Ok(saved)
    }

    /// Replaces the desired state.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), Error> {
        self.write("state.json", saved, true)
    }

    /// What is remembered of the host's devices.
    pub(crate) fn load_host(&self) -> Result<HostState, Error> {
        Ok(self.read("host.json")?.unwrap_or_default())
    }

    /// Changes what is remembered of the host's devices; returns when that is durable.
    pub(crate) fn change_host(&self, change: impl FnOnce(&mut HostState)) -> Result<(), Error> {
        let _one = self.host.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = self.load_host()?;
        let mut host = before.clone();
        change(&mut host);
        if host == before { Ok(()) } else { self.write("host.json", &host, true) }
    }

    /// Guests' attachments.
    pub(crate) fn load_attachments(&self) -> Result<Vec<Record>, Error> {
        Ok(self.read("attachments.json")?.unwrap_or_default())
    }

    /// Replaces them; returns when that is durable.
    pub(crate) fn save_attachments(&self, records: &[Record]) -> Result<(), Error> {
        self.write("attachments.json", &records, true)
    }

    /// What was counted of attachments; nothing where that cannot be read.
    pub(crate) fn load_counted(&self) -> BTreeMap<Key, (Counted, Counted)> {
        let list: Vec<(Key, Counted, Counted)> = self.read("counted.json").ok().flatten().unwrap_or_default();
        list.into_iter().map(|(key, last, earlier)| (key, (last, earlier))).collect()
    }

    /// Replaces that. Not synced: after a crash of the machine ports count from the start, too.
    pub(crate) fn save_counted(&self, counted: &BTreeMap<Key, (Counted, Counted)>) -> Result<(), Error> {
        let list: Vec<_> = counted.iter().map(|(key, (last, earlier))| (key, last, earlier)).collect();
        self.write("counted.json", &list, false)
    }

    /// The event marks; none when there are none, or when they are garbled: they are worth no refusal.
    pub(crate) fn load_marks(&self) -> EventMarks {
        self.read("events.json").ok().flatten().unwrap_or_default()
    }

    /// Replaces the event marks. Not synced: a crash of the machine ends every reader as well.
    pub(crate) fn save_marks(&self, marks: &EventMarks) -> Result<(), Error> {
        self.write("events.json", marks, false)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let file = self.path.join(name);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(file.display(), &error)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            let message = format!(
                "{}: not readable as ringspan's state ({error}): repair it, or move it away to start without the ports in it; it was left as it is",
                file.display()
            );
            Error::new(ErrorKind::Invalid, message)
        })
    }

    fn write(&self, name: &str, value: &impl Serialize, sync: bool) -> Result<(), Error> {
        let held = self.lock();
        if held.is_none() {
            return Err(Error::new(ErrorKind::Cancelled, "the daemon ends: nothing is changed any more"));
        }
        let (file, beside) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let attempt = || -> std::io::Result<()> {
            let mut bytes = serde_json::to_vec_pretty(value)?;
            bytes.push(b'\n');
            let mut new = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
            new.write_all(&bytes)?;
            if sync {
                new.sync_all()?;
            }
            fs::rename(&beside, &file)?;
            if sync {
                File::open(&self.path)?.sync_all()?;
            }
            Ok(())
        };
        attempt().map_err(|error| Error::io(format!("{} cannot be written", file.display()), &error))
    }
}

/// The vDPA devices that ringspan made, or gave another driver.
impl Book for StateDir {
    fn load(&self) -> Result<Entries, Error> {
        Ok(self.read("vdpa.json")?.unwrap_or_default())
    }

    fn save(&self, entries: &Entries) -> Result<(), Error> {
        self.write("vdpa.json", entries, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_back_and_one_daemon_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.load().unwrap(), Saved::default());
        let pin = Pin { lane: "main".parse().unwrap(), compat: Compat::V1 };
        let saved = Saved { config_ports: [("vm1".parse().unwrap(), pin)].into(), ..Saved::default() };
        state.save(&saved).unwrap();
        assert_eq!(state.load().unwrap(), saved);
        assert_eq!(StateDir::open(folder.path()).unwrap_err().kind, ErrorKind::Busy);
        drop(state);
        assert_eq!(StateDir::open(folder.path()).unwrap().load().unwrap(), saved);
    }

    #[test]
    fn a_garbled_state_is_refused_with_the_remedy_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        for garbled in [&b"{\"form\":1,"[..], b"\xff\xfe", b"", b"{\"form\":9,\"ports\":{},\"config_ports\":{}}"] {
            fs::write(folder.path().join("state.json"), garbled).unwrap();
            let error = state.load().unwrap_err();
            assert!(error.message.contains("move"), "{error}");
            assert_eq!(fs::read(folder.path().join("state.json")).unwrap(), garbled);
        }
    }
}
