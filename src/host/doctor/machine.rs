//! This machine: programs are run, Open vSwitch and the kernel are asked.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

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
}

impl Machine {
    /// With Open vSwitch at `place`, and what ringspan has to do with it.
    pub(crate) fn new(place: Place, own: Own) -> Self {
        Self { place, own }
    }
}

impl Surroundings for Machine {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<Ran, Unseen> {
        let found = PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
        let mut command = Command::new(found.ok_or(Unseen::Absent)?);
        command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| Unseen::from(&error))?;
        // Both pipes are emptied meanwhile, so that the program cannot be stuck on them.
        let stdout = child.stdout.take().map(|pipe| thread::spawn(move || all_of(pipe)));
        let stderr = child.stderr.take().map(|pipe| thread::spawn(move || all_of(pipe)));
        let good = wait(child, program)?;
        let text =
            |pipe: Option<thread::JoinHandle<String>>| pipe.and_then(|pipe| pipe.join().ok()).unwrap_or_default();
        Ok(Ran { good, stdout: text(stdout), stderr: text(stderr) })
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
}

fn all_of(mut pipe: impl Read) -> String {
    let mut text = Vec::new();
    // What was read until an error is better than nothing.
    let _ = pipe.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn wait(mut child: Child, program: &str) -> Result<bool, Unseen> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if begun.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(5)),
            Ok(None) => {
                let _ = child.kill();
                // One that hangs in the kernel, say on a card's firmware, ends when that lets it: nobody waits for it here.
                thread::spawn(move || child.wait());
                return Err(Unseen::Other(format!("{program} did not end within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(Unseen::from(&error)),
        }
    }
}
