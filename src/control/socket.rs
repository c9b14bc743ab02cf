//! The control socket: made without ever taking a live one away, and never more connections than there is room for.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection::{Connection, error_line};
use super::peer::Peer;
use super::{Daemon, locked, spawn};
use crate::config::Control;
use crate::error::{Error, ErrorKind};

/// Most connections of one user.
const PER_USER: usize = 256;
/// Most connections at all, of users other than root and the daemon's own: theirs have room beyond it.
const TOTAL: usize = 1024;

/// Who is connected, by user, and how to end them.
#[derive(Debug, Default)]
struct Connected {
    by_user: HashMap<u32, usize>,
    streams: HashMap<u64, Arc<UnixStream>>,
    next: u64,
}

/// The listening control socket.
pub(crate) struct Listener {
    path: PathBuf,
    listener: UnixListener,
    connected: Arc<Mutex<Connected>>,
    closing: Arc<AtomicBool>,
}

impl Listener {
    /// Makes the socket. What is there already is removed only when it is a socket that nobody listens on.
    pub(crate) fn bind(control: &Control) -> Result<Self, Error> {
        let path = &control.socket;
        let shown = path.display();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Error::io(folder.display(), &error))?;
        }
        make_room(path)?;
        // Bound under another name, and renamed when owner and mode are right: nobody can connect before.
        let beside = path.with_file_name(format!(".control.{}", std::process::id()));
        let _ = std::fs::remove_file(&beside);
        let attempt = || -> std::io::Result<UnixListener> {
            let listener = UnixListener::bind(&beside)?;
            if control.group.is_some() {
                chown(&beside, None, control.group)?;
            }
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(control.socket_mode))?;
            std::fs::rename(&beside, path)?;
            Ok(listener)
        };
        let listener = attempt().map_err(|error| {
            let _ = std::fs::remove_file(&beside);
            Error::io(format!("the control socket {shown} cannot be made"), &error)
        })?;
        Ok(Self { path: path.clone(), listener, connected: Arc::default(), closing: Arc::default() })
    }

    /// Accepts until [`Closer::close`], each connection in a thread of its own.
    pub(crate) fn serve(self, daemon: &Arc<Daemon>) -> Closer {
        let closer = Closer {
            path: self.path.clone(),
            connected: Arc::clone(&self.connected),
            closing: Arc::clone(&self.closing),
        };
        let daemon = Arc::clone(daemon);
        spawn("accept".into(), move || {
            for stream in self.listener.incoming() {
                if self.closing.load(Ordering::Acquire) {
                    return;
                }
                match stream {
                    Ok(stream) => self.admit(stream, &daemon),
                    Err(error) => {
                        // Out of descriptors: those that are there go on, and the next may find one free.
                        tracing::warn!("accept: {error}");
                        std::thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        });
        closer
    }

    fn admit(&self, stream: UnixStream, daemon: &Arc<Daemon>) {
        let peer = match Peer::of(&stream) {
            Ok(peer) => peer,
            Err(error) => return tracing::warn!("a peer's credentials cannot be read: {error}"),
        };
        let own = nix::unistd::geteuid().as_raw();
        let stream = Arc::new(stream);
        let number = {
            let mut connected = locked(&self.connected);
            let total = connected.streams.len();
            let count = connected.by_user.entry(peer.uid).or_default();
            let full = *count >= PER_USER || total >= TOTAL && peer.uid != 0 && peer.uid != own;
            if full {
                let uid = peer.uid;
                let message = format!("user {uid} has {count} connections, {total} are open at all: close some first");
                drop(connected);
                return refuse(&stream, &Error::new(ErrorKind::NoRoom, message));
            }
            *count += 1;
            connected.next += 1;
            let number = connected.next;
            connected.streams.insert(number, Arc::clone(&stream));
            number
        };
        let place = Place { connected: Arc::clone(&self.connected), number, uid: peer.uid };
        let daemon = Arc::clone(daemon);
        spawn(format!("control-{number}"), move || {
            let _place = place;
            Connection::new(stream, peer, own).serve(&daemon);
        });
    }
}

/// A connection's place among those allowed; given back when it is dropped.
struct Place {
    connected: Arc<Mutex<Connected>>,
    number: u64,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connected = locked(&self.connected);
        connected.streams.remove(&self.number);
        if let Some(count) = connected.by_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                connected.by_user.remove(&self.uid);
            }
        }
    }
}

/// Says why, without waiting for a peer that does not read.
fn refuse(stream: &UnixStream, error: &Error) {
    let _ = stream.set_nonblocking(true);
    let mut writer = stream;
    let _ = writer.write_all(&error_line(serde_json::Value::Null, error));
}

/// Takes away what is at the socket's path when that is safe.
fn make_room(path: &Path) -> Result<(), Error> {
    let shown = path.display();
    let there = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(shown, &error)),
        Ok(there) => there,
    };
    if !there.file_type().is_socket() {
        let message = format!("{shown} exists and is no socket: move it away, or set control.socket");
        return Err(Error::new(ErrorKind::Exists, message));
    }
    if UnixStream::connect(path).is_ok() {
        let message = format!("somebody serves {shown} already: stop it (ringspan stop), or set control.socket");
        return Err(Error::new(ErrorKind::Busy, message));
    }
    std::fs::remove_file(path).map_err(|error| Error::io(shown, &error))
}

/// Ends the control socket.
pub(crate) struct Closer {
    path: PathBuf,
    connected: Arc<Mutex<Connected>>,
    closing: Arc<AtomicBool>,
}

impl Closer {
    /// Stops accepting, takes the socket away and ends every connection.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the accepting thread, which then sees that it should end.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
        for stream in locked(&self.connected).streams.values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
