//! The kernel's sysfs, below a root of choice, so that a made-up tree can stand for a host.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What happens when an attribute is written: the kernel acts on it, and so does a made-up tree.
type Writer = dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync;

/// A tree that looks as `/sys` does.
#[derive(Clone)]
pub(crate) struct Sysfs {
    root: PathBuf,
    writer: Arc<Writer>,
}

impl Sysfs {
    /// The tree at `root`, which is `/sys` outside of tests.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), writer: Arc::new(write) }
    }

    /// A made-up tree: `writer` is given each path below the root, and the text that is written there.
    #[cfg(test)]
    pub(crate) fn made_up(root: &Path, writer: impl Fn(&Path, &str) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let (root, below) = (root.to_owned(), root.to_owned());
        let writer = move |path: &Path, text: &str| writer(path.strip_prefix(&below).unwrap_or(path), text);
        Self { root, writer: Arc::new(writer) }
    }

    /// Where an attribute is.
    pub(crate) fn path(&self, attribute: &str) -> PathBuf {
        self.root.join(attribute)
    }

    /// Whether there is such an attribute, folder or link.
    pub(crate) fn has(&self, attribute: &str) -> bool {
        self.path(attribute).exists()
    }

    /// What an attribute says, without the line's end. Many exist and cannot be read on some devices (EOPNOTSUPP).
    pub(crate) fn read(&self, attribute: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.path(attribute))?.trim().to_owned())
    }

    /// What an attribute says; nothing where it is missing, cannot be read, or is empty.
    pub(crate) fn text(&self, attribute: &str) -> Option<String> {
        self.read(attribute).ok().filter(|text| !text.is_empty())
    }

    /// The number that an attribute says, in decimal.
    pub(crate) fn number<T: FromStr>(&self, attribute: &str) -> Option<T> {
        self.text(attribute)?.parse().ok()
    }

    /// The number that an attribute says as `0x8086`.
    pub(crate) fn hex(&self, attribute: &str) -> Option<u32> {
        u32::from_str_radix(self.text(attribute)?.trim_start_matches("0x"), 16).ok()
    }

    /// The bytes of an attribute.
    pub(crate) fn bytes(&self, attribute: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(attribute))
    }

    /// The name that a link points to.
    pub(crate) fn link(&self, attribute: &str) -> Option<String> {
        Some(fs::read_link(self.path(attribute)).ok()?.file_name()?.to_str()?.to_owned())
    }

    /// The names in a folder, sorted; none where there is no such folder.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Writes an attribute that exists, in one system call, as the kernel wants it.
    pub(crate) fn write(&self, attribute: &str, text: &str) -> io::Result<()> {
        (self.writer)(&self.path(attribute), text)
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    match file.write(text.as_bytes())? {
        written if written == text.len() => Ok(()),
        written => Err(io::Error::new(io::ErrorKind::WriteZero, format!("{written} of {} bytes taken", text.len()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_empty_or_unreadable_says_nothing_and_is_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(folder.path());
        fs::write(folder.path().join("a"), "0x8086\n").unwrap();
        fs::write(folder.path().join("b"), "\n").unwrap();
        fs::write(folder.path().join("n"), "-1\n").unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        assert_eq!(sysfs.hex("a"), Some(0x8086));
        assert_eq!((sysfs.text("b"), sysfs.text("c"), sysfs.text("d")), (None, None, None));
        assert_eq!(sysfs.number::<i32>("n"), Some(-1));
        assert_eq!(sysfs.write("c", "1").unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!sysfs.has("c"));
        sysfs.write("b", "2").unwrap();
        assert_eq!(sysfs.number::<u16>("b"), Some(2));
    }
}
