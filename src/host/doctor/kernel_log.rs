//! The kernel's log: `/dev/kmsg`, or a text of it.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::host::{Host, Unseen};

/// Messages of this boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct KernelLog {
    /// One message each, without priority and number.
    pub lines: Vec<String>,
    /// Whether it begins later than the boot: the buffer is a ring.
    pub wrapped: bool,
}

/// From the kernel, or from the journal where that knows more.
pub(super) fn find(host: &Host, kmsg: &Path) -> Result<KernelLog, Unseen> {
    let own = read(kmsg);
    if own.as_ref().is_ok_and(|log| !log.wrapped) {
        return own;
    }
    let journal = host.run("journalctl", &["-k", "-b", "-o", "short-monotonic", "--no-pager", "-q"]);
    match journal {
        Ok(ran) if ran.good && !ran.stdout.trim().is_empty() => Ok(KernelLog::parse(&ran.stdout)),
        _ => own,
    }
}

/// From a file: the device, or a text.
pub(super) fn read(path: &Path) -> Result<KernelLog, Unseen> {
    let is_device = fs::metadata(path).map_err(|error| Unseen::from(&error))?.file_type().is_char_device();
    let flags = if is_device { libc::O_NONBLOCK } else { 0 };
    let mut file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| Unseen::from(&error))?;
    let mut text = Vec::new();
    if !is_device {
        file.read_to_end(&mut text).map_err(|error| Unseen::from(&error))?;
        return Ok(KernelLog::parse(&String::from_utf8_lossy(&text)));
    }
    // A read gives one record. EPIPE: the next one was overwritten meanwhile (Documentation/ABI/testing/dev-kmsg).
    let mut record = vec![0; 8192];
    loop {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&record[..length]),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(Unseen::from(&error)),
        }
    }
    Ok(KernelLog::parse(&String::from_utf8_lossy(&text)))
}

impl KernelLog {
    /// Reads records of the device (`6,339,5140900,-;message`, more lines with a space before them) and lines of dmesg alike.
    pub(super) fn parse(text: &str) -> Self {
        let mut log = Self::default();
        let mut first = true;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let record = line.split_once(';').and_then(|(head, message)| Some((sequence(head)?, message)));
            match record {
                Some((sequence, message)) => {
                    log.wrapped |= first && sequence > 0;
                    log.lines.push(message.to_owned());
                }
                // What a record has besides: the device it is of.
                None if line.starts_with(" SUBSYSTEM=") || line.starts_with(" DEVICE=") => {}
                None => log.lines.push(line.to_owned()),
            }
            first = false;
        }
        log
    }
}

/// The number of a record, from `priority,number,microseconds,flags`.
fn sequence(head: &str) -> Option<u64> {
    let mut words = head.split(',');
    words.next()?.parse::<u32>().ok()?;
    let sequence = words.next()?.parse().ok()?;
    words.next()?.parse::<u64>().ok()?;
    Some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_device_and_lines_of_dmesg_are_read_alike() {
        let records = "6,0,0,-;Linux version 6.1\n3,7,1200,-;mlx5_core 0000:03:00.0: x\n SUBSYSTEM=pci\n DEVICE=+pci:0000:03:00.0\n";
        let log = KernelLog::parse(records);
        assert_eq!(log.lines, ["Linux version 6.1", "mlx5_core 0000:03:00.0: x"]);
        assert!(!log.wrapped);
        let dmesg = KernelLog::parse("[    1.2] a; b\n\n[    1.3] c\n");
        assert_eq!(dmesg.lines, ["[    1.2] a; b", "[    1.3] c"]);
    }

    #[test]
    fn a_log_that_begins_after_the_boot_has_wrapped() {
        assert!(KernelLog::parse("6,5123,99,-;later\n6,5124,99,-;and later\n").wrapped);
    }
}
