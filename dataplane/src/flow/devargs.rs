//! Device arguments of a NIC's physical function, and the names of the ports that its driver makes of them, as text.
//!
//! See [DPDK's guide to mlx5](https://doc.dpdk.org/guides-22.11/nics/mlx5.html), "Driver options".

use ringspan_protocol::nic::PciNic;
use ringspan_protocol::{DeviceSpec, NicPort};

/// The arguments for a function with so many VFs: its own port and a representor for each VF. Of two functions that are bonded the second one's VFs
/// are those from `vfs` on, which the driver makes of the first one's device.
pub fn arguments(nic: &PciNic, vfs: u16) -> String {
    let mut parts = Vec::new();
    if vfs > 0 {
        let list = if vfs == 1 { "0".into() } else { format!("[0-{}]", vfs - 1) };
        let list = if nic.bonded { format!("pf[0,1]vf{list}") } else { format!("vf{list}") };
        parts.push(format!("representor={list}"));
    }
    // Rules between ports need the switch's own tables.
    parts.push("dv_esw_en=1".into());
    parts.push(format!("dv_flow_en={}", nic.dv_flow_en));
    if !nic.args.is_empty() {
        parts.push(nic.args.clone());
    }
    parts.join(",")
}

/// The device as DPDK is told it. Virtual devices, which stand in for a NIC in tests, get their own arguments only.
pub fn device(nic: &PciNic, vfs: u16) -> DeviceSpec {
    match &nic.pf {
        DeviceSpec::Pci { address, .. } => DeviceSpec::Pci { address: *address, args: arguments(nic, vfs) },
        other => other.clone(),
    }
}

/// The port of the switch whose representor has this name: `0000:0a:00.0_representor_vf3`, with the function's number before it where functions are bonded
/// (`0000:0a:00.0_representor_c0pf1vf3`; mlx5_os.c, `mlx5_dev_spawn`). VFs of a second function come behind those of the first.
pub fn representor(name: &str, vfs: u16) -> Option<NicPort> {
    let (_, port) = name.rsplit_once("_representor_")?;
    let (before, vf) = port.rsplit_once("vf")?;
    let vf: u16 = vf.parse().ok()?;
    let function: u16 = match before.rsplit_once("pf") {
        Some((_, number)) => number.parse().ok()?,
        None if before.is_empty() => 0,
        None => return None,
    };
    (vf < vfs).then(|| NicPort::Vf(function * vfs + vf))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(pf: &str, bonded: bool, dv_flow_en: u8, args: &str) -> PciNic {
        PciNic { pf: pf.parse().unwrap(), bonded, dv_flow_en, args: args.into(), offload: Default::default() }
    }

    #[test]
    fn a_function_is_probed_with_its_representors() {
        for (one, vfs, text) in [
            (nic("pci:0000:0a:00.0", false, 1, ""), 4, "representor=vf[0-3],dv_esw_en=1,dv_flow_en=1"),
            (nic("pci:0000:0a:00.0", false, 2, ""), 1, "representor=vf0,dv_esw_en=1,dv_flow_en=2"),
            (nic("pci:0000:0a:00.0", true, 1, ""), 4, "representor=pf[0,1]vf[0-3],dv_esw_en=1,dv_flow_en=1"),
            (nic("pci:0000:0a:00.0", false, 1, "txq_inline_max=0"), 0, "dv_esw_en=1,dv_flow_en=1,txq_inline_max=0"),
        ] {
            assert_eq!(arguments(&one, vfs), text);
            assert_eq!(device(&one, vfs).to_string(), format!("pci:0000:0a:00.0,{text}"));
        }
        let tap = nic("vdev:net_tap0,iface=up0", false, 1, "");
        assert_eq!(device(&tap, 2).to_string(), "vdev:net_tap0,iface=up0");
    }

    #[test]
    fn a_representor_is_known_by_its_name() {
        for (name, vfs, port) in [
            ("0000:0a:00.0_representor_vf3", 4, Some(NicPort::Vf(3))),
            ("0000:0a:00.0_representor_c0pf0vf3", 4, Some(NicPort::Vf(3))),
            ("0000:0a:00.0_representor_pf1vf0", 4, Some(NicPort::Vf(4))),
            ("0000:0a:00.0_representor_vf4", 4, None),
            ("0000:0a:00.0", 4, None),
            ("0000:0a:00.0_representor_sf1", 4, None),
            ("net_tap0", 4, None),
        ] {
            assert_eq!(representor(name, vfs), port, "{name}");
        }
    }
}
