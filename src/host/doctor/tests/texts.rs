//! Texts of hardware that is not here, written from public documentation. None was seen on hardware.

/// `lspci -D -v` of a ConnectX-5. Written after lspci's format (pciutils, ls-caps.c and ls-ecaps.c) and the capabilities that NVIDIA's
/// "ConnectX-5 Ethernet Adapter Cards User Manual" and kernel bug reports show of it. Not seen on hardware.
pub(crate) const LSPCI_CONNECTX5: &str = "\
0000:03:00.0 Ethernet controller: Mellanox Technologies MT27800 Family [ConnectX-5]
\tSubsystem: Mellanox Technologies ConnectX-5 EN network interface card, 100GbE dual-port QSFP28
\tFlags: bus master, fast devsel, latency 0, IRQ 26, NUMA node 0, IOMMU group 14
\tMemory at 383ffe000000 (64-bit, prefetchable) [size=32M]
\tExpansion ROM at 91400000 [disabled] [size=1M]
\tCapabilities: [60] Express Endpoint, MSI 00
\tCapabilities: [48] Vital Product Data
\tCapabilities: [9c] MSI-X: Enable+ Count=64 Masked-
\tCapabilities: [100] Advanced Error Reporting
\tCapabilities: [150] Alternative Routing-ID Interpretation (ARI)
\tCapabilities: [180] Single Root I/O Virtualization (SR-IOV)
\tCapabilities: [1c0] Secondary PCI Express
\tKernel driver in use: mlx5_core
\tKernel modules: mlx5_core
";

/// `mstconfig -d 0000:03:00.0 -e query`. Written after NVIDIA's "MFT documentation: mlxconfig" and mstflint's mlxcfg_ui.cpp: three columns with -e,
/// a star before what differs. Not seen on hardware.
pub(crate) const MSTCONFIG_PENDING: &str = "
Device #1:
----------

Device type:        ConnectX5
Name:               MCX516A-CCA_Ax
Description:        ConnectX-5 EN network interface card; 100GbE dual-port QSFP28; PCIe3.0 x16; tall bracket; ROHS R6
Device:             0000:03:00.0

Configurations:                                          Default             Current             Next Boot
*       NUM_OF_VFS                                  0                   4                   8
        SRIOV_EN                                    False(0)            True(1)             True(1)
        LINK_TYPE_P1                                ETH(2)              ETH(2)              ETH(2)
The '*' shows parameters with next value different from default/current value.
";

/// The kernel's words (drivers/pci/iov.c, sriov_enable). Not seen on hardware.
pub(crate) const LOG_MMIO: &str = "[  102.418] mlx5_core 0000:03:00.0: not enough MMIO resources for SR-IOV";
/// The driver's words (drivers/net/ethernet/mellanox/mlx5/core/cmd.c, wait_func), as NVIDIA's community posts show them. Not seen on hardware.
pub(crate) const LOG_ENABLE_HCA: &str = "[  167.511] mlx5_core 0000:03:00.2: wait_func:1108:(pid 512): ENABLE_HCA(0x104) timeout. Will cause a leak of a command resource";
/// The driver's words (drivers/net/ethernet/mellanox/mlx5/core/lag/lag.c). Not seen on hardware.
pub(crate) const LOG_VF_LAG: &str = "[  201.004] mlx5_core 0000:03:00.0: Failed to activate VF LAG\nMake sure all VFs are unbound prior to VF LAG activation or deactivation";

/// `ip link show` where the kernel's estimate is too small (iproute2, lib/libnetlink.c, rtnl_dump_done). Not seen on hardware.
pub(crate) const IP_TOO_SMALL: &str = "Error: Buffer too small for object.\nDump terminated\n";

/// `ip link show` with 250 VFs of netdevsim, Linux 6.1, iproute2 6.1; its exit code is 0.
pub(crate) const IP_TRUNCATED: &str = "Truncated VF list: eth3\n";
