//! `ringspan doctor` in the emulated host: what a check looks at is broken, the check says so with its cause, its remedy is pasted as it stands, and
//! the check passes.
//!
//! What only a reboot mends is broken in hosts that are booted for it ([`breaks_boot`]): what the remedy wrote for the next boot is what the next one is
//! booted with. Not broken here, since nothing emulates it: firmware of Mellanox cards, VF LAG, ARI, domains beside 0000.

mod cases;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::pci::Function;
use ringspan_testkit::wait::{self, Finished};
use ringspan_testkit::{paths, qemu};
use serde_json::Value;
use tempfile::TempDir;

use super::vdpa::NIC;
use super::{FIRST, SECOND};
use cases::{CASES, Case, ON_A_SMALL_ESTIMATE, ON_REPRESENTORS, ON_VDPA};

/// Longest time for one thing: nothing is fast here.
const LIMIT: Duration = Duration::from_secs(180);
/// A lane that takes little memory; Open vSwitch is restarted without systemd, which does not run here.
const CONFIGURATION: &str = "[dataplane]\ncores = [0]\nmemory_mib = 64\n[ovs]\nrestart_command = [\"/usr/share/openvswitch/scripts/ovs-ctl\", \"restart\"]\n";

impl Case {
    fn name(&self) -> String {
        format!("the doctor finds and mends: {} ({})", self.says.replace("{vdpa}", NIC), self.check)
    }
}

type Check = (&'static str, fn(&mut Lab) -> Result<()>);

/// What takes more than a line of shell.
const SPECIAL: &[Check] = &[
    ("the doctor finds and mends: memory that cannot be pinned (memlock)", memlock),
    ("the doctor finds and mends: a guest whose memory is its own (guest-memory)", guest_memory),
    ("the doctor as nobody says unknown where it cannot look", nobody),
];

/// Whether the name of a check contains this.
pub fn is_wanted(only: &str) -> bool {
    CASES.iter().any(|case| case.name().contains(only)) || SPECIAL.iter().any(|(name, _)| name.contains(only))
}

/// The same of what needs boots of its own.
pub fn is_boot_wanted(only: &str) -> bool {
    BOOTS.iter().flat_map(|boot| boot.says).any(|says| boot_name(says).contains(only))
}

fn boot_name((check, _, says): &(&str, &str, &str)) -> String {
    format!("the doctor finds: {says} ({check})")
}

/// The host, and what stands in for what it does not have.
struct Lab<'a> {
    daemon: Option<Daemon>,
    /// `bin`: programs that are found first; `covered`: where a case covered something; `asked`: what the stand-ins were asked.
    folder: TempDir,
    story: &'a mut fs::File,
}

/// Breaks and mends everything. Returns how many checks were made.
pub fn run(story: &mut fs::File, only: &str) -> Result<u32> {
    if !is_wanted(only) {
        return Ok(0);
    }
    let daemon = Daemon::start(CONFIGURATION, None)?;
    let mut lab = Lab { daemon: Some(daemon), folder: stand_ins()?, story };
    let report = lab.report(&[])?;
    // What the last boot mended.
    for check in ["iommu", "iommu-passthrough", "kernel-log"] {
        let found = all(&report, check);
        ensure!(found.iter().all(|one| one["state"] == "pass"), "{found:#?}");
    }
    let mut done = 0;
    // A case may need what an earlier one of the same check left.
    let is_wanted = |case: &&Case| CASES.iter().any(|other| other.check == case.check && other.name().contains(only));
    for case in CASES.iter().filter(is_wanted) {
        lab.begin(&case.name())?;
        lab.case(case).with_context(|| case.name())?;
        done += 1;
    }
    for (name, check) in SPECIAL.iter().filter(|(name, _)| name.contains(only)) {
        lab.begin(name)?;
        check(&mut lab).context(*name)?;
        done += 1;
    }
    Ok(done)
}

/// The same of what is broken on representors, while there are some.
pub fn on_representors(story: &mut fs::File) -> Result<()> {
    let mut lab = Lab { daemon: None, folder: stand_ins()?, story };
    for case in ON_REPRESENTORS {
        lab.begin(&case.name())?;
        lab.case(case).with_context(|| case.name())?;
    }
    Ok(())
}

/// The same of a dump of links that fails in the kernel; `look` sees it fail before the doctor is asked.
pub fn on_a_small_estimate(
    story: &mut fs::File,
    module: &str,
    look: impl FnOnce(&mut fs::File) -> Result<()>,
) -> Result<()> {
    let mut lab = Lab { daemon: None, folder: stand_ins()?, story };
    let case = ON_A_SMALL_ESTIMATE;
    lab.begin(&case.name())?;
    lab.sh(&case.breaks.replace("{estimate}", module))?;
    look(lab.story)?;
    lab.case(&Case { breaks: ":", ..case }).with_context(|| case.name())
}

/// The same of what ports on vDPA devices need, with the modules of this folder, of which none is loaded: modprobe finds them as if their package were
/// installed. Leaves the kernel as it was.
pub fn on_vdpa(story: &mut fs::File, modules: &Path) -> Result<()> {
    let known = Path::new("/etc/modprobe.d/ringspan-lab-vdpa.conf");
    let mut lines = String::new();
    for (module, needs) in [("vdpa", ""), ("vhost_vdpa", "modprobe -a vhost vhost_iotlb irqbypass; "), ("vp_vdpa", "")]
    {
        lines += &format!("install {module} {needs}insmod {}\n", modules.join(format!("{module}.ko")).display());
    }
    fs::write(known, lines)?;
    let mut lab = Lab { daemon: Some(Daemon::start(CONFIGURATION, None)?), folder: stand_ins()?, story };
    for case in ON_VDPA {
        lab.begin(&case.name())?;
        lab.case(case).with_context(|| case.name())?;
    }
    Ok(fs::remove_file(known)?)
}

/// Programs that do what the host's own would do if it had a network, systemd and a boot loader.
fn stand_ins() -> Result<TempDir> {
    let folder = paths::scratch()?;
    let bin = folder.path().join("bin");
    fs::create_dir(&bin)?;
    std::os::unix::fs::symlink(paths::program("ringspan")?, bin.join("ringspan"))?;
    let asked = folder.path().join("asked");
    let noted = format!("#!/bin/sh\necho \"$(basename $0) $*\" >> {}\n", asked.display());
    let scripts = [
        // No network: the packages must be known, and what is on the disk already is uncovered.
        (
            "apt-get",
            "/usr/bin/apt-get -s \"$@\" >/dev/null || exit\nif [ -e $COVERED ]; then umount $(cat $COVERED); rm $COVERED; fi\n",
        ),
        (
            "systemctl",
            "case \"$*\" in 'start openvswitch-switch') /usr/share/openvswitch/scripts/ovs-ctl start --system-id=random >/dev/null ;; \
             daemon-reload|'restart ringspan') ;; *) echo \"nothing stands in for systemctl $*\" >&2; exit 1 ;; esac\n",
        ),
        ("update-grub", ""),
        ("update-initramfs", ""),
        ("reboot", ""),
    ];
    for (name, script) in scripts {
        let path = bin.join(name);
        fs::write(&path, format!("{noted}{script}"))?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(folder)
}

/// Findings of a check.
fn all(report: &Value, check: &str) -> Vec<Value> {
    report["findings"].as_array().into_iter().flatten().filter(|one| one["check"] == check).cloned().collect()
}

/// Those that say this.
fn saying(report: &Value, check: &str, says: &str) -> Option<Value> {
    let is_it = |one: &Value| {
        one["state"] != "pass"
            && (one["message"].as_str().is_some_and(|text| text.contains(says)) || one["item"].as_str() == Some(says))
    };
    all(report, check).into_iter().find(is_it)
}

impl Lab<'_> {
    fn begin(&mut self, name: &str) -> Result<()> {
        Ok(writeln!(self.story, "--> {name}")?)
    }

    fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        format!("{}:{path}", self.folder.path().join("bin").display())
    }

    fn shell(&self, script: &str) -> Result<Finished> {
        let mut command = Command::new("sh");
        command.args(["-ec", script]).env("PATH", self.path()).env("COVERED", self.folder.path().join("covered"));
        if let Some(daemon) = &self.daemon {
            command.env("RINGSPAN_CONTROL", daemon.socket());
        }
        wait::run(&mut command, LIMIT)
    }

    /// Fills in what is not known before.
    fn sh(&self, script: &str) -> Result<String> {
        let mut script = script.replace("{first}", FIRST).replace("{second}", SECOND).replace("{vdpa}", NIC);
        if script.contains("{eth}") {
            let interface = wait::until(LIMIT, "the first NIC's interface", || Ok(Function::at(FIRST)?.interface()))?;
            script = script.replace("{eth}", &interface);
        }
        if script.contains("{vf}") {
            let link = fs::read_link(format!("/sys/bus/pci/devices/{FIRST}/virtfn0"))?;
            let name = link.file_name().context("a VF's link")?.to_string_lossy().into_owned();
            script = script.replace("{vf}", &name);
        }
        self.shell(&script)?.success(&script)
    }

    /// What the doctor says when it is started by these words.
    fn report(&self, by: &[&str]) -> Result<Value> {
        let program = self.folder.path().join("bin/ringspan");
        let mut words: Vec<String> = by.iter().map(|word| (*word).to_owned()).collect();
        words.extend([program.display().to_string(), "doctor".into(), "--json".into(), "--local".into()]);
        let finished = wait::run(Command::new(&words[0]).args(&words[1..]).env("PATH", self.path()), LIMIT)?;
        let report = serde_json::Deserializer::from_str(&finished.text).into_iter::<Value>().next();
        let report = report.context("the doctor says nothing")?.with_context(|| finished.text.clone())?;
        let expected = i32::from(report["state"] == "fail");
        ensure!(finished.code == expected, "exit code {} of {}", finished.code, report["state"]);
        Ok(report)
    }

    /// What a broken check says, with evidence.
    fn found(&mut self, by: &[&str], check: &str, says: &str, state: &str) -> Result<Value> {
        let mut last = Vec::new();
        let found = wait::until(Duration::from_secs(30), &format!("{check} to say {says:?}"), || {
            let report = self.report(by)?;
            last = all(&report, check);
            Ok(saying(&report, check, says))
        });
        let found = found.with_context(|| format!("it says: {last:#?}"))?;
        ensure!(found["state"] == state, "{state} was expected: {found:#}");
        ensure!(found["evidence"].as_array().is_some_and(|lines| !lines.is_empty()), "no evidence: {found:#}");
        writeln!(
            self.story,
            "    {}: {}",
            found["state"].as_str().unwrap_or_default(),
            found["message"].as_str().unwrap_or_default()
        )?;
        Ok(found)
    }

    /// Pastes the commands of a remedy. Returns its comments.
    fn paste(&mut self, found: &Value) -> Result<Vec<String>> {
        let mut comments = Vec::new();
        let lines: Vec<&str> = found["remedy"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(!lines.is_empty(), "no remedy: {found:#}");
        for line in lines {
            if line.starts_with('#') {
                writeln!(self.story, "    {line}")?;
                comments.push(line.to_owned());
            } else {
                writeln!(self.story, "    $ {line}")?;
                self.shell(line)?.success(line).with_context(|| format!("the remedy failed: {found:#}"))?;
            }
        }
        Ok(comments)
    }

    /// Waits until the check says so no more.
    fn mended(&self, by: &[&str], check: &str, says: &str) -> Result<()> {
        let mut last = None;
        let seen = wait::until(LIMIT, &format!("{check} to pass"), || {
            last = saying(&self.report(by)?, check, says);
            Ok(last.is_none().then_some(()))
        });
        seen.with_context(|| format!("after its remedy: {last:#?}"))
    }

    fn case(&mut self, case: &Case) -> Result<()> {
        let start = Instant::now();
        self.sh(case.breaks).context("breaking it")?;
        let says = case.says.replace("{vdpa}", NIC);
        let found = self.found(&[], case.check, &says, case.state)?;
        let comments = self.paste(&found)?;
        if !case.by_hand.is_empty() {
            ensure!(!comments.is_empty(), "nothing says what must be done by hand: {found:#}");
            writeln!(self.story, "    by hand: {}", case.by_hand)?;
            self.sh(case.by_hand).context("what the remedy says, by hand")?;
        }
        self.mended(&[], case.check, &says)?;
        self.sh(case.undo).context("tidying up")?;
        writeln!(self.story, "    passes; {:.1} s", start.elapsed().as_secs_f64())?;
        Ok(())
    }
}

/// Whoever starts ringspan without the right to lock memory has a limit; systemd's is set by the remedy.
fn memlock(lab: &mut Lab) -> Result<()> {
    let limited = |limit: &str| {
        let words = [
            "prlimit".to_owned(),
            format!("--memlock={limit}:{limit}"),
            "setpriv".into(),
            "--bounding-set=-ipc_lock".into(),
        ];
        words.to_vec()
    };
    let narrow = limited("65536");
    let narrow: Vec<&str> = narrow.iter().map(String::as_str).collect();
    let found = lab.found(&narrow, "memlock", "RLIMIT_MEMLOCK is 65536 bytes", "warn")?;
    lab.paste(&found)?;
    // What systemd would read.
    let unit = fs::read_to_string("/etc/systemd/system/ringspan.service.d/memlock.conf")?;
    let limit = unit.lines().find_map(|line| line.strip_prefix("LimitMEMLOCK=")).context("no LimitMEMLOCK")?;
    let wide = limited(&limit.replace("infinity", "unlimited"));
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    lab.mended(&wide, "memlock", "RLIMIT_MEMLOCK")
}

/// A real QEMU, which is started anew with the words of the remedy.
fn guest_memory(lab: &mut Lab) -> Result<()> {
    let start = |more: &str| -> Result<std::process::Child> {
        let line = format!("-M q35 -accel tcg -display none -nodefaults -S -m 32M -name guest=lab {more}");
        let child = Command::new("qemu-system-x86_64")
            .args(qemu::split_arguments(&line))
            .stdin(std::process::Stdio::null())
            .spawn()?;
        Ok(child)
    };
    let end = |mut child: std::process::Child| -> Result<()> {
        child.kill()?;
        child.wait()?;
        Ok(())
    };
    let guest = start("")?;
    let found =
        wait::until(LIMIT, "the guest", || Ok(saying(&lab.report(&[])?, "guest-memory", "its memory is not shared")));
    end(guest)?;
    let found = found?;
    ensure!(
        found["state"] == "warn" && found["item"].as_str().is_some_and(|item| item.starts_with("lab (")),
        "{found:#}"
    );
    let comments = lab.paste(&found)?;
    // Between "start it with" and the alternative.
    let words = comments[0].split_once("start it with ").context("no words to start it with")?.1;
    let words =
        words.split(", or ").next().unwrap_or(words).replace("SIZE", "32M").replace("-machine ", "-machine q35,");
    writeln!(lab.story, "    by hand: qemu-system-x86_64 ... {words}")?;
    let guest = start(&words)?;
    let mended = wait::until(LIMIT, "guest-memory to pass", || {
        Ok(all(&lab.report(&[])?, "guest-memory").first().is_some_and(|one| one["state"] == "pass").then_some(()))
    });
    end(guest)?;
    mended
}

/// Another user sees less, and takes nothing that he does not see for broken.
fn nobody(lab: &mut Lab) -> Result<()> {
    let root = lab.report(&[])?;
    // Where nobody may run it from: neither the build folder nor that of the stand-ins need be open to all.
    let place = Path::new("/usr/local/bin/ringspan");
    fs::copy(paths::program("ringspan")?, place)?;
    let words = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "/usr/local/bin/ringspan",
        "doctor",
        "--json",
        "--local",
    ];
    let finished = wait::run(Command::new(words[0]).args(&words[1..]), LIMIT)?;
    let report: Value = serde_json::Deserializer::from_str(&finished.text)
        .into_iter()
        .next()
        .context("the doctor says nothing")?
        .with_context(|| finished.text.clone())?;
    ensure!(report["host"]["privileged"] == false, "{}", report["host"]);
    let expected = i32::from(report["state"] == "fail");
    ensure!(finished.code == expected, "exit code {} of {}", finished.code, report["state"]);
    for check in ["kernel-log", "ari"] {
        let found = all(&report, check);
        ensure!(found.iter().any(|one| one["state"] == "unknown"), "{check}: {found:#?}");
        for one in found.iter().filter(|one| one["state"] == "unknown") {
            writeln!(lab.story, "    {check}: {}", one["message"].as_str().unwrap_or_default())?;
        }
    }
    let listed = wait::run(Command::new("lspci").args(["-D", "-v", "-s", SECOND]), LIMIT)?.success("lspci")?;
    ensure!(listed.contains("Single Root I/O Virtualization (SR-IOV)"), "lspci -v has other words: {listed}");
    writeln!(lab.story, "    {}", listed.trim_end().replace('\n', "\n    "))?;
    let sees = |report: &Value, finding: &Value| {
        all(report, finding["check"].as_str().unwrap_or_default())
            .iter()
            .any(|one| one["item"] == finding["item"] && one["state"] == finding["state"])
    };
    for one in report["findings"].as_array().into_iter().flatten() {
        if one["state"] == "fail" || one["state"] == "warn" {
            ensure!(sees(&root, one), "nobody sees what root does not: {one:#}");
        }
    }
    Ok(())
}

/// What only another boot mends.
pub struct Boot {
    /// What the kernel is booted with.
    pub words: &'static str,
    /// Done in the host, before the doctor is asked.
    breaks: &'static str,
    /// Check, state, and what is said.
    says: &'static [(&'static str, &'static str, &'static str)],
}

impl Boot {
    /// How many checks are made in it.
    pub fn says(&self) -> u32 {
        self.says.len() as u32
    }
}

/// Hosts that are booted only to be found broken. What the next one is booted with has all that the remedies wrote.
pub const BOOTS: &[Boot] = &[
    Boot {
        words: "intel_iommu=off igb.max_vfs=8",
        breaks: ":",
        says: &[
            ("iommu", "fail", "the command line turns it off (intel_iommu=off)"),
            ("module-parameters", "fail", "igb.max_vfs=8: the driver takes 7 at most"),
        ],
    },
    Boot {
        words: "intel_iommu=on",
        breaks: "echo 2 > /sys/bus/pci/devices/{first}/sriov_numvfs; echo 'igb {first}: not enough MMIO resources for SR-IOV' > /dev/kmsg",
        says: &[
            ("iommu-passthrough", "warn", "iommu=pt is not on the command line"),
            ("iommu-isolation", "warn", "share their IOMMU group"),
            ("kernel-log", "fail", "the firmware gave the VFs no address space (MMIO)"),
        ],
    },
];

/// Inside: finds the host of `BOOTS[number]` broken, pastes the remedies, and returns the kernel's words for the next boot.
pub fn breaks_boot(story: &mut fs::File, number: usize) -> Result<String> {
    let boot = BOOTS.get(number).with_context(|| format!("there is no boot {number}"))?;
    // The boot loader's configuration, as the installation of this host left it.
    fs::write("/etc/default/grub", format!("GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"{}\"\n", boot.words))?;
    wait::run(Command::new("modprobe").args(["-a", "igb"]), LIMIT)?.success("modprobe igb")?;
    let mut lab = Lab { daemon: None, folder: stand_ins()?, story };
    lab.sh(boot.breaks)?;
    for says in boot.says {
        lab.begin(&boot_name(says))?;
        let (check, state, says) = says;
        let found = lab.found(&[], check, says, state)?;
        lab.paste(&found)?;
    }
    let asked = fs::read_to_string(lab.folder.path().join("asked")).unwrap_or_default();
    ensure!(asked.contains("update-grub") && asked.contains("reboot"), "no boot was asked for: {asked:?}");
    let grub = fs::read_to_string("/etc/default/grub")?;
    let Some(words) = grub.lines().find_map(|line| line.strip_prefix("GRUB_CMDLINE_LINUX=")) else {
        bail!("no command line in: {grub}");
    };
    let words = words.trim_matches('"').trim().to_owned();
    writeln!(lab.story, "    the next boot: {words}")?;
    Ok(words)
}
