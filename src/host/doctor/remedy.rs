//! Commands that mend what a check found, as this distribution has them.

use super::distribution::Family;
use super::host::Host;

impl Host {
    /// Puts words on the kernel's command line, and takes others from it.
    pub(crate) fn kernel_arguments(&self, add: &[&str], remove: &[&str]) -> Vec<String> {
        let mut commands = Vec::new();
        if self.distribution().family == Family::Other || !self.exists("/etc/default/grub") {
            if !add.is_empty() {
                commands.push(format!(
                    "# add to the kernel's command line in the boot loader's configuration: {}",
                    add.join(" ")
                ));
            }
            if !remove.is_empty() {
                commands.push(format!("# remove from the kernel's command line: {}", remove.join(" ")));
            }
            commands.push("reboot".into());
            return commands;
        }
        for word in remove {
            let word = word.replace('.', r"\.").replace('/', r"\/");
            commands.push(format!(
                r#"sed -i -E '/^GRUB_CMDLINE_LINUX/ s/(["'"'"' ]){word}([ "'"'"']|$)/\1\2/' /etc/default/grub"#
            ));
        }
        if !add.is_empty() {
            let words = add.join(" ");
            commands.push(format!(r#"sed -i -E 's/^(GRUB_CMDLINE_LINUX=["'"'"'])/\1{words} /' /etc/default/grub"#));
        }
        commands.push(self.make_grub());
        commands.push("reboot".into());
        commands
    }

    fn make_grub(&self) -> String {
        let distribution = self.distribution();
        if distribution.family == Family::Debian {
            return "update-grub".into();
        }
        // Before version 9, EFI machines of this family have their configuration beside the boot loader.
        let folders = self.names("/boot/efi/EFI").unwrap_or_default();
        let beside = folders.iter().map(|name| format!("/boot/efi/EFI/{name}/grub.cfg")).find(|path| self.exists(path));
        let old = distribution.family == Family::RedHat && distribution.major < 9;
        let target = beside.filter(|_| old && self.exists("/sys/firmware/efi"));
        // Since version 9 the words are in the entries of /boot/loader, which are left alone without being told.
        let entries = distribution.family == Family::RedHat && (9..20).contains(&distribution.major);
        let flag = if entries { " --update-bls-cmdline" } else { "" };
        format!("grub2-mkconfig -o {}{flag}", target.as_deref().unwrap_or("/boot/grub2/grub.cfg"))
    }

    /// Makes the initial RAM disk anew, which has a copy of modprobe.d.
    pub(crate) fn make_initramfs(&self) -> String {
        match self.distribution().family {
            Family::Debian => "update-initramfs -u".into(),
            Family::RedHat | Family::Suse => "dracut -f".into(),
            Family::Other => "# make the initial RAM disk anew".into(),
        }
    }

    /// Installs a package, by its names in Debian and in the others.
    pub(crate) fn install(&self, debian: &str, other: &str) -> String {
        match self.distribution().family {
            Family::Debian => format!("apt-get install -y {debian}"),
            Family::RedHat if self.exists("/usr/bin/dnf") => format!("dnf install -y {other}"),
            Family::RedHat => format!("yum install -y {other}"),
            Family::Suse => format!("zypper install -y {other}"),
            Family::Other => format!("# install {other}"),
        }
    }

    /// Loads modules, now and at each boot.
    pub(crate) fn load_modules(&self, names: &[&str]) -> Vec<String> {
        vec![
            format!("modprobe -a {}", names.join(" ")),
            format!(r"printf '%s\n' {} >> /etc/modules-load.d/ringspan.conf", names.join(" ")),
        ]
    }

    /// Starts Open vSwitch.
    pub(crate) fn start_ovs(&self) -> String {
        match self.distribution().family {
            Family::Debian => "systemctl start openvswitch-switch".into(),
            _ => "systemctl start openvswitch".into(),
        }
    }
}
