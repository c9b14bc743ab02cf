//! This machine: programs are run, Open vSwitch and the kernel are asked.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::host::{Ran, Surroundings, Unseen};
use crate::error::Error;
use crate::ovs::client::Place;
use crate::ovs::qdisc;
use crate::ovs::verify::{self, Own, Verified};

/// A program that takes longer hangs: on a card whose firmware does not answer, say.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where programs are, also for users without the superuser's folders in PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// This machine.
pub(crate) struct Machine {
    place: Place,
    own: Own,
    vdpa_ports: Vec<(String, String)>,
}

impl Machine {
    /// With Open vSwitch at `place`, and what ringspan has to do with it.
    pub(crate) fn new(place: Place, own: Own) -> Self {
        Self { place, own, vdpa_ports: vec![] }
    }

    /// The same, with these ports on vDPA devices: names and devices.
    pub(crate) fn with_vdpa_ports(self, vdpa_ports: Vec<(String, String)>) -> Self {
        Self { vdpa_ports, ..self }
    }
}

impl Surroundings for Machine {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<Ran, Unseen> {
        let found = PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
        let mut command = Command::new(found.ok_or(Unseen::Absent)?);
        command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| Unseen::from(&error))?;
        follow(child, program, PATIENCE)
    }

    fn verify_ovs(&self) -> Result<Verified, Error> {
        verify::verify(&self.place, Path::new("/sys"), &self.own)
    }

    fn qdiscs(&self) -> Result<Vec<(String, String)>, Unseen> {
        let found = qdisc::list().map_err(|error| Unseen::from(&error))?;
        Ok(found.into_iter().map(|one| (one.interface, one.kind)).collect())
    }

    fn privileged(&self) -> bool {
        nix::unistd::geteuid().is_root()
    }

    fn vdpa_ports(&self) -> Vec<(String, String)> {
        self.vdpa_ports.clone()
    }
}

/// Longest output that is kept: what a program says beyond is read and forgotten.
const LONGEST: usize = 16 << 20;
/// How long the end of a program is not looked for while its pipes say nothing.
const LOOK: Duration = Duration::from_millis(5);

/// Reads what the program says until it has ended, or until `patience` is over. What it started in turn may keep the pipes for as long as it
/// likes: they are read without waiting once the program itself has ended.
fn follow(mut child: Child, program: &str, patience: Duration) -> Result<Ran, Unseen> {
    let begun = Instant::now();
    let mut out = Pipe::new(child.stdout.take().map(OwnedFd::from)).map_err(|error| Unseen::from(&error))?;
    let mut err = Pipe::new(child.stderr.take().map(OwnedFd::from)).map_err(|error| Unseen::from(&error))?;
    loop {
        let ended = child.try_wait().map_err(|error| Unseen::from(&error))?;
        // After the end: what it said last is in the pipes by now.
        out.read();
        err.read();
        if let Some(status) = ended {
            return Ok(Ran { good: status.success(), stdout: out.text(), stderr: err.text() });
        }
        if begun.elapsed() >= patience {
            let _ = child.kill();
            // One that hangs in the kernel, say on a card's firmware, ends when that lets it: nobody waits for it here.
            thread::spawn(move || child.wait());
            return Err(Unseen::Other(format!("{program} did not end within {} s", patience.as_secs())));
        }
        let mut polled: Vec<PollFd> = [&out, &err]
            .into_iter()
            .filter_map(|pipe| Some(PollFd::new(pipe.file.as_ref()?.as_fd(), PollFlags::POLLIN)))
            .collect();
        if polled.is_empty() {
            thread::sleep(LOOK);
        } else {
            // An interrupted wait is a short one.
            let _ = poll(&mut polled, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO));
        }
    }
}

/// An end of a pipe that is read without waiting.
struct Pipe {
    /// Absent: nothing more comes.
    file: Option<File>,
    text: Vec<u8>,
}

impl Pipe {
    fn new(end: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(end) = &end {
            let flags = OFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFL)?);
            fcntl(end, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        Ok(Self { file: end.map(File::from), text: Vec::new() })
    }

    /// Takes what is there. A writer that never stops is not followed for longer than a pipe's worth.
    fn read(&mut self) {
        let mut block = [0; 1 << 16];
        for _ in 0..4 {
            let Some(file) = &mut self.file else { return };
            match file.read(&mut block) {
                Ok(count) if count > 0 => {
                    let room = LONGEST.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&block[..count.min(room)]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The end, or an error: what was read until then is better than nothing.
                _ => self.file = None,
            }
        }
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, patience: Duration) -> Result<Ran, Unseen> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        follow(command.spawn().unwrap(), "sh", patience)
    }

    /// The longest that a test waits for what must not be waited for.
    const LONG: Duration = Duration::from_secs(300);

    #[test]
    fn what_a_program_started_may_keep_its_pipes() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let begun = Instant::now();
        let ran =
            run(&format!("echo said; sleep 600 & echo $! > {}; echo wrong >&2; exit 3", pid.display()), LONG).unwrap();
        let took = begun.elapsed();
        let child: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let alive = Path::new(&format!("/proc/{child}")).exists();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert!(alive, "it held the pipes until now");
        assert_eq!(ran, Ran { good: false, stdout: "said\n".into(), stderr: "wrong\n".into() });
        assert!(took < LONG / 2, "took {took:?}");
    }

    #[test]
    fn more_than_a_pipe_holds_comes_whole() {
        let ran = run("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2", LONG).unwrap();
        assert_eq!((ran.good, ran.stdout.len(), ran.stderr.as_str()), (true, 3_000_000, "end\n"));
    }

    #[test]
    fn a_program_that_does_not_end_is_ended_and_named() {
        let why = run("exec sleep 600", Duration::ZERO).unwrap_err();
        assert!(why.to_string().contains("sh did not end within 0 s"), "{why}");
    }
}
