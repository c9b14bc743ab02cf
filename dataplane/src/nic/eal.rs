//! DPDK's Environment Abstraction Layer: started once per process, with what a lane needs and nothing else.
//!
//! See [EAL parameters](https://doc.dpdk.org/guides-22.11/linux_gsg/linux_eal_parameters.html).

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs::{self, File};
use std::marker::PhantomData;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::configure::MOST_NODES;
use super::error::{EalError, describe, rte_errno};
use super::{log, signals};

/// A PCI function that is never there. A list of allowed functions with only this one keeps EAL from probing what
/// nobody asked for, and still lets functions be plugged in later, which `--no-pci` does not.
const NO_PCI_FUNCTION: &str = "pci:ffff:ff:1f.7";
/// The same for the auxiliary bus (Mellanox subfunctions): an empty name bypasses its scan.
const NO_AUXILIARY_DEVICE: &str = "auxiliary:";
/// Where the kernel says how many hugepages there are.
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";
/// ... and what each NUMA node has of them, and of processors.
const NODES: &str = "/sys/devices/system/node";
/// Where EAL's memory begins, where nobody else is; by itself it would begin at 4 GiB, amid what a guest calls its memory. A vDPA device that changes between a
/// guest and a relay is told both by their own addresses (`crate::vdpa`), and what overlaps has to be unmapped and pinned again within the pause. This is above the
/// memory of guests of less than 256 GiB, and leaves as much below the 39 bits that the IOMMUs of smaller machines have. EAL takes it for a hint
/// (eal_common_memory.c, eal_get_virtual_area).
const BASE_ADDRESS: u64 = 1 << 38;
/// Least memory that EAL and one small device start with.
const LEAST_MIB: u32 = 16;

/// Whether packet memory is in hugepages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Where enough are free; otherwise ordinary memory.
    #[default]
    Auto,
    /// Only in hugepages; a start without them is an error.
    Require,
    /// Never. Slower, and PCI devices that need vfio may refuse it.
    Off,
}

impl FromStr for HugePages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "require" => Ok(Self::Require),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is not a choice for huge pages: auto, require or off")),
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Require => "require",
            Self::Off => "off",
        })
    }
}

/// How DPDK is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalConfig {
    /// Name of the lane; part of DPDK's thread and file names.
    pub name: String,
    /// Memory for packets in MiB, 16 at least. All of it is taken at the start, and never more; but on each further NUMA node as much again may be
    /// taken later, out of hugepages, when a guest or a device there has packets.
    pub memory_mib: u32,
    /// A core, one of the lane's workers: on a machine of several NUMA nodes the memory is taken from its node first.
    pub near: Option<u16>,
    /// Whether it is in hugepages.
    pub huge_pages: HugePages,
}

struct Started {
    memory_mib: u32,
    huge_pages: bool,
    has_nodes: bool,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// DPDK, started. It stays until the process ends; this is the right to use it, and may be copied.
#[derive(Clone, Copy)]
pub struct Eal {
    started: &'static Started,
}

impl fmt::Debug for Eal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Started { memory_mib, huge_pages, .. } = self.started;
        write!(f, "Eal {{ memory_mib: {memory_mib}, huge_pages: {huge_pages} }}")
    }
}

impl Eal {
    /// Starts DPDK: no device is probed, no file is left anywhere, and the calling thread keeps its CPUs.
    ///
    /// The calling thread no longer takes real-time signals, nor do threads that it starts from now on: net_tap asks the
    /// kernel for one with each frame, and would interrupt system calls with it. A thread of its own takes them, or the only worker.
    /// So this is best called by a program's first thread, before it starts others.
    ///
    /// # Errors
    /// [`EalError`]; after [`EalError::Init`] the process cannot try again.
    pub fn start(config: &EalConfig) -> Result<Self, EalError> {
        static STARTING: Mutex<()> = Mutex::new(());
        let _starting = STARTING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if STARTED.get().is_some() {
            return Err(EalError::AlreadyStarted);
        }
        let name_is_plain = config.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if config.name.is_empty() || config.name.len() > 64 || !name_is_plain {
            return Err(EalError::Name(config.name.clone()));
        }
        if config.memory_mib < LEAST_MIB {
            let reason = format!("too little, a lane needs {LEAST_MIB} at least");
            return Err(EalError::Memory { wanted_mib: config.memory_mib, reason });
        }
        let _others_wait = (config.huge_pages != HugePages::Off).then(lock_huge_pages);
        let huge_pages = choose_memory(config)?;
        log::install()?;
        let this_thread = Pid::from_raw(0);
        let affinity = sched_getaffinity(this_thread).map_err(EalError::Affinity)?;
        // DPDK's threads inherit that.
        signals::divert();
        let result = init(&arguments(config, huge_pages, &affinity));
        // EAL pins the calling thread to its main lcore, and threads made later would inherit that.
        sched_setaffinity(this_thread, &affinity).map_err(EalError::Affinity)?;
        result?;
        if huge_pages {
            keep_memory();
        }
        leave_no_folder();
        signals::start_taker();
        let started = STARTED.get_or_init(|| Started {
            memory_mib: config.memory_mib,
            huge_pages,
            has_nodes: config.near.is_some(),
        });
        Ok(Self { started })
    }

    /// DPDK, when it is started in this process.
    pub fn started() -> Option<Self> {
        STARTED.get().map(|started| Self { started })
    }

    /// Whether packet memory is in hugepages.
    pub fn huge_pages(&self) -> bool {
        self.started.huge_pages
    }

    /// Whether it was started for a machine of several NUMA nodes.
    pub(super) fn has_nodes(&self) -> bool {
        self.started.has_nodes
    }

    /// Memory for packets in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.started.memory_mib
    }

    /// Version of the DPDK that is linked, such as `DPDK 22.11.1`.
    pub fn dpdk_version(&self) -> String {
        // SAFETY: returns a static, terminated string.
        unsafe { CStr::from_ptr(dpdk_sys::shim_version()) }.to_string_lossy().into_owned()
    }

    /// Most devices this build of DPDK allows in one process.
    pub fn max_ports(&self) -> u16 {
        dpdk_sys::SHIM_MAX_ETHPORTS as u16
    }

    /// Makes the calling thread known to DPDK, so that it gets its own cache in every pool. Without it a thread works
    /// too, but takes and returns each buffer at the pool's shared ring.
    pub fn register_thread(&self) -> Result<RegisteredThread, EalError> {
        // SAFETY: EAL is started. Reads a thread-local value.
        let known = unsafe { dpdk_sys::shim_lcore_id() } != u32::MAX;
        // SAFETY: EAL is started, and the calling thread is not known to it.
        if !known && unsafe { dpdk_sys::rte_thread_register() } != 0 {
            let limit = dpdk_sys::SHIM_MAX_LCORE as u32;
            return Err(EalError::Thread { error: describe(rte_errno()), limit });
        }
        if !known {
            REGISTERED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(RegisteredThread { ours: !known, of_this_thread: PhantomData })
    }
}

/// Threads of ours that DPDK knows: each may keep some buffers of every pool.
static REGISTERED: AtomicU32 = AtomicU32::new(0);

/// How many threads of ours DPDK knows.
pub(super) fn registered_threads() -> u32 {
    REGISTERED.load(Ordering::Relaxed)
}

/// The calling thread is known to DPDK until this is dropped.
#[derive(Debug)]
pub struct RegisteredThread {
    ours: bool,
    /// A registration belongs to its thread: not `Send`.
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.ours {
            REGISTERED.fetch_sub(1, Ordering::Relaxed);
            // SAFETY: this thread was registered by `register_thread`; the guard cannot leave it.
            unsafe { dpdk_sys::rte_thread_unregister() };
        }
    }
}

/// Keeps other lanes that start at the same time from counting the same free hugepages, until this one has taken its own.
fn lock_huge_pages() -> Option<Flock<File>> {
    // The folder is as good as any file that every lane of a machine can open. Without the lock things go well, too, most times.
    let folder = File::open(HUGE_PAGES).ok()?;
    Flock::lock(folder, FlockArg::LockExclusive).ok()
}

/// The same while this lane may take some more: on a machine of several nodes, on another one than it started with.
pub(super) fn lock_growth() -> Option<Flock<File>> {
    Eal::started().filter(|eal| eal.huge_pages() && eal.has_nodes()).and_then(|_| lock_huge_pages())
}

/// What EAL takes from here on it keeps. Each time that its heap grows or shrinks, all of DPDK's virtio drivers send their back-ends anew what memory there
/// is, under its lock; so that is to happen rarely, and not as often as a guest likes. And memory that went and came again at the same address
/// would be other memory to us than to a device that has the old one in its IOMMU.
fn keep_memory() {
    // SAFETY: EAL is started.
    let status = unsafe { dpdk_sys::shim_keep_memory() };
    if status != 0 {
        tracing::warn!("DPDK may give hugepages back while the lane runs: {}", describe(status));
    }
}

fn init(arguments: &[String]) -> Result<(), EalError> {
    // EAL may keep pointers into its arguments, so they stay for good.
    let mut pointers = Vec::with_capacity(arguments.len() + 1);
    for argument in arguments {
        let argument = CString::new(argument.as_str()).map_err(|_| EalError::Name(argument.clone()))?;
        pointers.push(argument.into_raw());
    }
    let count = pointers.len() as i32;
    pointers.push(std::ptr::null_mut());
    let argv = Box::leak(pointers.into_boxed_slice()).as_mut_ptr();
    // SAFETY: `argv` is an array of `count` terminated strings and a null pointer, all of them writable and never freed.
    let (status, said) = log::listen(|| unsafe { dpdk_sys::rte_eal_init(count, argv) });
    if status < 0 {
        let error = describe(rte_errno());
        return Err(EalError::Init { error, said, arguments: arguments[1..].join(" ") });
    }
    Ok(())
}

/// EAL makes a folder for files that it was told not to write.
fn leave_no_folder() {
    // SAFETY: EAL is started; the result is null or a terminated string that stays.
    let folder = unsafe { dpdk_sys::rte_eal_get_runtime_dir().as_ref().map(|path| CStr::from_ptr(path)) };
    if let Some(folder) = folder.and_then(|path| path.to_str().ok()) {
        // Not empty, or never there: both are fine.
        fs::remove_dir(folder).ok();
    }
}

fn arguments(config: &EalConfig, huge_pages: bool, affinity: &CpuSet) -> Vec<String> {
    // EAL's main lcore does nothing in ringspan: workers are threads of our own. It must name a CPU we may use.
    let first = (0..CpuSet::count()).find(|cpu| affinity.is_set(*cpu).unwrap_or(false)).unwrap_or(0);
    // EAL takes its memory from the node of the CPU whose number the main lcore has (eal_common_lcore.c, rte_eal_cpu_init), wherever that runs.
    let most = dpdk_sys::SHIM_MAX_LCORE as u32;
    let near = config.near.filter(|core| u32::from(*core) < most);
    if let (None, Some(core)) = (near, config.near) {
        tracing::warn!(
            "packet memory is taken from the NUMA node of core 0: DPDK knows {most} cores, and the lane's first is {core}; \
             a first core below {most} on the wanted node mends this"
        );
    }
    let lcore = near.map_or_else(|| format!("0@{first}"), |core| format!("{core}@{core}"));
    let memory = config.memory_mib.to_string();
    let mut arguments = vec![
        "ringspan-lane".to_string(),
        format!("--lcores={lcore}"),
        format!("--file-prefix=ringspan-{}", config.name),
        "--iova-mode=va".into(),
        format!("--base-virtaddr={BASE_ADDRESS:#x}"),
        "--no-telemetry".into(),
        format!("--allow={NO_PCI_FUNCTION}"),
        format!("--allow={NO_AUXILIARY_DEVICE}"),
        format!("-m{memory}"),
    ];
    if huge_pages {
        // The limit keeps the heap from growing past what was asked for; one file per list of pages keeps descriptors few.
        // The n-th limit is that of node n, and a node without one grows without end.
        let limits = vec![memory; most_node(Path::new(NODES)) + 1].join(",");
        arguments.extend(["--in-memory".into(), "--single-file-segments".into(), format!("--socket-limit={limits}")]);
    } else {
        // --in-memory is refused together with --no-huge (DPDK 22.11).
        arguments.extend(["--no-huge".into(), "--no-shconf".into()]);
    }
    arguments
}

/// Whether the memory comes from hugepages.
fn choose_memory(config: &EalConfig) -> Result<bool, EalError> {
    let wanted = u64::from(config.memory_mib) << 20;
    let free = free_huge_page_bytes(Path::new(HUGE_PAGES));
    let (free_mib, wanted_mib) = (free >> 20, config.memory_mib);
    let enough = free >= wanted;
    match config.huge_pages {
        HugePages::Require if !enough => {
            let page = huge_page_bytes().max(1);
            return Err(EalError::NoHugePages { wanted_mib, free_mib, pages: wanted.div_ceil(page) });
        }
        HugePages::Auto if !enough => tracing::warn!(
            "packet memory: {wanted_mib} MiB of ordinary memory, because only {free_mib} MiB of hugepages are free; \
             reserve hugepages for speed"
        ),
        HugePages::Off => tracing::info!("packet memory: {wanted_mib} MiB of ordinary memory, as configured"),
        _ => tracing::info!("packet memory: {wanted_mib} MiB in hugepages"),
    }
    let huge_pages = enough && config.huge_pages != HugePages::Off;
    if !huge_pages {
        let available = available_bytes();
        if available < wanted {
            let reason = format!("the machine has {} MiB available: lower it", available >> 20);
            return Err(EalError::Memory { wanted_mib, reason });
        }
    }
    Ok(huge_pages)
}

/// Bytes in free hugepages of all sizes.
fn free_huge_page_bytes(folder: &Path) -> u64 {
    let Ok(sizes) = fs::read_dir(folder) else { return 0 };
    let of_size = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let free: u64 = fs::read_to_string(entry.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
        Some(kib * 1024 * free)
    };
    sizes.flatten().filter_map(of_size).sum()
}

/// Whether a NUMA node has a hugepage that is free.
pub(super) fn has_free_huge_pages(node: u16) -> bool {
    free_huge_page_bytes(&Path::new(NODES).join(format!("node{node}/hugepages"))) > 0
}

/// Size of a default hugepage.
fn huge_page_bytes() -> u64 {
    meminfo("Hugepagesize:")
}

/// Memory that can be had without swapping.
fn available_bytes() -> u64 {
    meminfo("MemAvailable:")
}

/// A line of /proc/meminfo in bytes, 0 when it is not there.
fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The highest number of a NUMA node, of those that DPDK knows: there may be others missing before it.
fn most_node(folder: &Path) -> usize {
    let Ok(nodes) = fs::read_dir(folder) else { return 0 };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("node")?.parse::<usize>().ok();
    nodes.flatten().filter_map(number).filter(|node| *node < MOST_NODES as usize).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_free_hugepages_of_all_sizes() {
        let folder = tempfile::tempdir().unwrap();
        for (size, free) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "1\n")] {
            fs::create_dir(folder.path().join(size)).unwrap();
            fs::write(folder.path().join(size).join("free_hugepages"), free).unwrap();
        }
        assert_eq!(free_huge_page_bytes(folder.path()), 3 * (2 << 20) + (1 << 30));
        assert_eq!(free_huge_page_bytes(&folder.path().join("none")), 0);
    }

    #[test]
    fn the_highest_node_counts_where_numbers_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["node0", "node8", "node252", "online", "nodes"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(most_node(folder.path()), 8, "DPDK knows none from 32 on, and refuses so many limits");
        assert_eq!(most_node(&folder.path().join("none")), 0);
    }

    #[test]
    fn arguments_never_grow_memory_and_never_probe() {
        let config = EalConfig { name: "main".into(), memory_mib: 256, near: None, huge_pages: HugePages::Auto };
        let mut affinity = CpuSet::new();
        affinity.set(3).unwrap();
        let huge = arguments(&config, true, &affinity).join(" ");
        assert!(
            huge.contains("--lcores=0@3") && huge.contains("-m256") && huge.contains("--socket-limit=256"),
            "{huge}"
        );
        let plain = arguments(&config, false, &affinity).join(" ");
        assert!(plain.contains("--no-huge --no-shconf") && !plain.contains("--in-memory"), "{plain}");
        let near = arguments(&EalConfig { near: Some(7), ..config }, true, &affinity).join(" ");
        assert!(near.contains("--lcores=7@7"), "{near}");
        assert!(!huge.contains("--no-pci") && huge.contains("--allow=pci:ffff:ff:1f.7"), "{huge}");
    }

    #[test]
    fn memory_that_the_machine_does_not_have_is_refused_with_the_remedy() {
        let config = EalConfig { name: "main".into(), memory_mib: u32::MAX, near: None, huge_pages: HugePages::Off };
        let error = choose_memory(&config).unwrap_err().to_string();
        assert!(error.contains("memory_mib = 4294967295") && error.contains("lower it"), "{error}");
        let error = choose_memory(&EalConfig { huge_pages: HugePages::Require, ..config }).unwrap_err().to_string();
        assert!(error.contains("nr_hugepages"), "{error}");
    }
}
