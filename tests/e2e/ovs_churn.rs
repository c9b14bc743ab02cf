//! Ten thousand flows of Open vSwitch's, of which a thousand a second change where they go: no frame goes astray.

use anyhow::Result;
use ringspan_testkit::churn::{self, Plan};
use ringspan_testkit::needs;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;

#[test]
fn flows_that_change_all_the_time_never_lead_a_frame_astray() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let net = Netns::new("ovs-churn")?;
    net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
    let ovs = Ovs::start_in(Some(&net))?;
    let seen = churn::run(net, ovs, Plan { flows: 10_000, changes: 100, steps: 50, window: 128 })?;
    println!("{seen:?}");
    Ok(())
}
