//! The guest itself, before any of ours: DPDK's own vhost driver behind its NIC. When these fail, look at the machine first.

use std::time::Duration;

use anyhow::Result;
use ringspan_testkit::netns::{Background, Netns};
use ringspan_testkit::qemu::{Guest, GuestSpec, split_arguments};
use ringspan_testkit::{needs, paths, wait};

#[test]
fn a_guest_boots_runs_commands_and_comes_back_after_reboots() -> Result<()> {
    needs!(Root, Guest);
    let mut guest = Guest::boot(&GuestSpec::default())?;
    assert_eq!(guest.sh("echo out; echo err >&2")?, "out\nerr\n");
    assert_eq!(guest.run("exit 7", Duration::from_secs(5))?.code, 7);
    assert_eq!(guest.run("sleep 60", Duration::from_secs(1))?.code, 137, "the guest ends what takes too long");
    let before = guest.sh("cat /proc/sys/kernel/random/boot_id")?;
    guest.reboot()?;
    let between = guest.sh("cat /proc/sys/kernel/random/boot_id")?;
    guest.reset()?;
    let after = guest.sh("cat /proc/sys/kernel/random/boot_id")?;
    assert!(before != between && between != after, "each boot has its own number");
    assert!(guest.monitor.execute("query-status", Duration::from_secs(2))?["running"].as_bool() == Some(true));
    Ok(())
}

#[test]
fn a_guest_pings_through_dpdks_own_vhost() -> Result<()> {
    needs!(Root, Guest, Program("dpdk-testpmd"));
    let folder = paths::scratch()?;
    let socket = folder.path().join("vhost.sock");
    let socket = socket.display().to_string();
    let net = Netns::new("kit")?;
    net.tap("tap0", "192.0.2.1/24", 1500)?;
    let mut testpmd = net.command("timeout");
    testpmd.args(["-k", "5", "180", "sh", "-c"]).arg(format!(
        "sleep 180 | exec dpdk-testpmd --lcores 0@0,1@1 --no-huge --no-shconf --iova-mode=va -m 256 --no-pci --file-prefix=kit{} \
         --vdev net_vhost0,iface={socket},queues=1 --vdev net_tap0,iface=tap0 -- --forward-mode=io --total-num-mbufs=8192",
        std::process::id()
    ));
    let _testpmd = Background::start(&mut testpmd)?;
    wait::until(Duration::from_secs(30), "testpmd's socket", || {
        Ok(folder.path().join("vhost.sock").exists().then_some(()))
    })?;
    let nics = format!(
        "-chardev socket,id=c0,path={socket} -netdev vhost-user,id=n0,chardev=c0 -device virtio-net-pci,netdev=n0"
    );
    let mut guest = Guest::boot(&GuestSpec { nics: split_arguments(&nics), ..GuestSpec::default() })?;
    guest.sh("ip link set eth0 up; ip address add 192.0.2.2/24 dev eth0")?;
    net.wait_ping("192.0.2.2", Duration::from_secs(20))?;
    Ok(())
}
