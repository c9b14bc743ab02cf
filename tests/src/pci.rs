//! PCI functions of the machine that this runs on, through sysfs, and the registers of one.
//!
//! # Invariants
//! A [`Window`] maps a function's first register space for as long as it lives. Registers are read and written as whole 32-bit
//! words at offsets that were checked.

use std::fs;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use crate::wait;

/// A function by its address, such as `0000:01:00.0`.
#[derive(Debug, Clone)]
pub struct Function {
    address: String,
}

impl Function {
    /// The function at this address, which is there.
    pub fn at(address: &str) -> Result<Self> {
        let function = Self { address: address.into() };
        ensure!(function.path("").is_dir(), "this machine has no PCI function {address}");
        Ok(function)
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn path(&self, attribute: &str) -> PathBuf {
        PathBuf::from("/sys/bus/pci/devices").join(&self.address).join(attribute)
    }

    /// The name that a link of the function points to.
    fn link(&self, attribute: &str) -> Option<String> {
        Some(fs::read_link(self.path(attribute)).ok()?.file_name()?.to_string_lossy().into_owned())
    }

    /// The kernel driver that it is bound to.
    pub fn driver(&self) -> Option<String> {
        self.link("driver")
    }

    /// Its group behind the IOMMU.
    pub fn iommu_group(&self) -> Option<String> {
        self.link("iommu_group")
    }

    /// Its network interface, when the kernel drives it.
    pub fn interface(&self) -> Option<String> {
        let mut interfaces = fs::read_dir(self.path("net")).ok()?;
        Some(interfaces.next()?.ok()?.file_name().to_string_lossy().into_owned())
    }

    /// Makes this many virtual functions of it. Returns them.
    pub fn make_virtual_functions(&self, count: u16) -> Result<Vec<Self>> {
        fs::write(self.path("sriov_numvfs"), count.to_string())
            .with_context(|| format!("making {count} virtual functions of {}", self.address))?;
        let function = |number: u16| {
            let name = self.link(&format!("virtfn{number}")).context("a virtual function without its link")?;
            Self::at(&name)
        };
        (0..count).map(function).collect()
    }

    /// Takes its virtual functions away. Waits until their users let go of them.
    pub fn end_virtual_functions(&self) -> Result<()> {
        fs::write(self.path("sriov_numvfs"), "0").with_context(|| format!("ending functions of {}", self.address))
    }

    /// Gives it to another kernel driver, whose module is loaded.
    pub fn bind(&self, driver: &str) -> Result<()> {
        fs::write(self.path("driver_override"), driver)?;
        if self.driver().is_some() {
            fs::write(self.path("driver/unbind"), &self.address)?;
        }
        fs::write("/sys/bus/pci/drivers_probe", &self.address)?;
        let what = format!("{} to be bound to {driver}", self.address);
        wait::until(Duration::from_secs(10), &what, || Ok((self.driver().as_deref() == Some(driver)).then_some(())))
    }

    /// Takes it out of the machine, as far as the kernel is concerned. Waits until its user lets go of it.
    pub fn remove(&self) -> Result<()> {
        fs::write(self.path("remove"), "1").with_context(|| format!("removing {}", self.address))
    }

    /// Its registers, whoever drives it: the kernel must run with `iomem=relaxed`.
    pub fn window(&self) -> Result<Window> {
        let path = self.path("resource0");
        let file = fs::File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        let size = file.metadata()?.len() as usize;
        let length = size.try_into().context("a function without registers")?;
        // SAFETY: a new mapping at an address that the kernel chooses; it is reached through the window alone.
        let start =
            unsafe { mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0) };
        let start = start.with_context(|| format!("mapping {}: is it iomem=relaxed?", path.display()))?.cast();
        Ok(Window { start, size })
    }
}

/// A function's registers.
#[derive(Debug)]
pub struct Window {
    start: NonNull<u8>,
    size: usize,
}

impl Window {
    fn register(&self, offset: usize) -> *mut u32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.size, "no register at {offset:#x}");
        // SAFETY: inside of the mapping by the assertion.
        unsafe { self.start.add(offset) }.as_ptr().cast()
    }

    /// What a register says. Panics when there is none.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: mapped and aligned.
        unsafe { self.register(offset).read_volatile() }
    }

    /// Writes a register. Panics when there is none.
    pub fn write(&self, offset: usize, value: u32) {
        // SAFETY: mapped and aligned; what the device does then is the caller's wish.
        unsafe { self.register(offset).write_volatile(value) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped in `window` with this address and length.
        let _ = unsafe { munmap(self.start.cast(), self.size) };
    }
}
