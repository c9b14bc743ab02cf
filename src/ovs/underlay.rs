//! The network that the kernel's tunnels go through.
//!
//! A flow of the kernel's datapath only says where a tunnel ends; what its packets look like outside is the kernel's affair: its routes, its
//! neighbours, its addresses. A NIC whose uplink's representor has the host's address sees those packets, and does the same by what is read here.
//! Where the kernel would not go by that representor itself, or does not know its neighbour yet, flows stay with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use ringspan_protocol::MacAddress;

use super::rtnetlink::{Want, ask};

/// What was read of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Underlay {
    /// Ways to the far ends of tunnels, or why there is none.
    ways: BTreeMap<IpAddr, Result<Way, String>>,
    /// Addresses of the host's at uplinks.
    ends: Vec<End>,
    /// The kernel's own devices for tunnels of OVS's, such as `vxlan_sys_4789`.
    devices: BTreeSet<String>,
}

/// How packets go to a tunnel's far end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Way {
    /// The uplink's representor.
    pub interface: String,
    /// Its MAC address.
    pub eth_src: MacAddress,
    /// That of the neighbour.
    pub eth_dst: MacAddress,
    /// The host's address, unless the tunnel says another one.
    pub src: IpAddr,
    /// All addresses that the host has there.
    pub own: Vec<IpAddr>,
}

/// Where packets of tunnels end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The uplink's representor.
    pub interface: String,
    /// Its MAC address.
    pub mac: MacAddress,
    /// An address of it, but none that is another one on each link (fe80::/10).
    pub address: IpAddr,
}

/// An uplink's representor, as the kernel has it.
#[derive(Debug, Default)]
struct Interface {
    mac: Option<MacAddress>,
    addresses: Vec<IpAddr>,
}

impl Underlay {
    /// Reads how packets come and go by these representors of uplinks, and how they go to these far ends.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub(crate) fn read(uplinks: &BTreeSet<String>, far: &BTreeSet<IpAddr>) -> io::Result<Self> {
        let mut read = Self::default();
        let ports: BTreeSet<&String> = uplinks.iter().filter(|name| is_port(name)).collect();
        let mut interfaces: BTreeMap<String, Interface> = BTreeMap::new();
        for entry in nix::ifaddrs::getifaddrs()? {
            // An address may have a label behind the interface's name, such as `nic0:1`; no interface has a colon in its own.
            let name = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
            if super::compile::tunnel_device(&name).is_some() {
                read.devices.insert(name);
                continue;
            }
            // What comes by a port of a bridge is not the host's, whatever address it has.
            if !uplinks.contains(&name) || !entry.flags.contains(InterfaceFlags::IFF_UP) || ports.contains(&name) {
                continue;
            }
            let interface = interfaces.entry(name).or_default();
            let Some(address) = entry.address else { continue };
            if let Some(link) = address.as_link_addr() {
                interface.mac = link.addr().map(MacAddress);
            }
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
            interface.addresses.extend(v4.or(address.as_sockaddr_in6().map(|v6| v6.ip().into())));
        }
        for (name, Interface { mac, addresses }) in &interfaces {
            let Some(mac) = *mac else { continue };
            let is_of_link = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let addresses = addresses.iter().copied().filter(|address| !is_of_link(address));
            read.ends.extend(addresses.map(|address| End { interface: name.clone(), mac, address }));
        }
        // Nothing goes by the uplinks when the host has no address there.
        let neighbours = if read.ends.is_empty() || far.is_empty() { Vec::new() } else { neighbours()? };
        for to in far {
            read.ways.insert(*to, way(*to, &interfaces, &neighbours));
        }
        Ok(read)
    }

    /// The way to a tunnel's far end, or why there is none.
    pub(crate) fn way(&self, to: IpAddr) -> Result<&Way, String> {
        match self.ways.get(&to) {
            Some(way) => way.as_ref().map_err(Clone::clone),
            None => Err(format!("the way to {to} is not known yet")),
        }
    }

    /// Where packets of the kernel's tunnels end.
    pub(crate) fn ends(&self) -> &[End] {
        &self.ends
    }

    /// The kernel's devices for tunnels of OVS's.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(String::as_str)
    }

    /// One that was not read, for tests.
    #[cfg(test)]
    pub(crate) fn of(ways: &[(IpAddr, Way)], ends: &[End], devices: &[&str]) -> Self {
        let ways = ways.iter().map(|(to, way)| (*to, Ok(way.clone()))).collect();
        Self { ways, ends: ends.to_vec(), devices: devices.iter().map(|name| (*name).to_owned()).collect() }
    }
}

/// Whether it is a port of a bridge of the kernel's or of OVS's, or a member of a bond. One that cannot be asked is as good as that.
fn is_port(interface: &str) -> bool {
    let Ok(index) = if_nametoindex(interface) else { return true };
    let mut request = LinkMessage::default();
    request.header.index = index;
    let mut is = false;
    let asked = ask(RouteNetlinkMessage::GetLink(request), Want::One, |answer| {
        if let RouteNetlinkMessage::NewLink(answer) = answer {
            is |= answer.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
        }
    });
    is || asked.is_err()
}

fn way(to: IpAddr, interfaces: &BTreeMap<String, Interface>, neighbours: &[Neighbour]) -> Result<Way, String> {
    let route = route(to)?;
    let (interface, found) = interfaces
        .iter()
        .find(|(name, _)| if_nametoindex(name.as_str()) == Ok(route.interface))
        .ok_or_else(|| format!("the route to {to} does not go by an uplink's representor"))?;
    let eth_src = found.mac.ok_or_else(|| format!("{interface} has no MAC address"))?;
    let hop = route.gateway.unwrap_or(to);
    let known = neighbours.iter().find(|one| one.interface == route.interface && one.address == hop);
    let eth_dst = known.ok_or_else(|| format!("the MAC address of {hop} is not known yet"))?.mac;
    let src = route.source.ok_or_else(|| format!("the route to {to} has no source address"))?;
    Ok(Way { interface: interface.clone(), eth_src, eth_dst, src, own: found.addresses.clone() })
}

struct Route {
    interface: u32,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// What the kernel would do with a packet to this address, or why no rule can do that.
fn route(to: IpAddr) -> Result<Route, String> {
    let mut request = RouteMessage::default();
    (request.header.address_family, request.header.destination_prefix_length) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.attributes.push(RouteAttribute::Destination(to.into()));
    let mut found = Err(format!("no route to {to}"));
    let asked = ask(RouteNetlinkMessage::GetRoute(request), Want::One, |answer| {
        if let RouteNetlinkMessage::NewRoute(answer) = answer
            && answer.header.kind == RouteType::Unicast
        {
            found = plain(answer.attributes).map_err(|why| format!("the route to {to} {why}"));
        }
    });
    asked.map_err(|error| format!("no route to {to}: {error}"))?;
    found
}

/// A route, unless more is done with packets than to send them to a gateway as they are.
fn plain(attributes: Vec<RouteAttribute>) -> Result<Route, &'static str> {
    let mut route = Route { interface: 0, source: None, gateway: None };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.interface = index,
            RouteAttribute::PrefSource(address) => route.source = ip(&address),
            RouteAttribute::Gateway(address) => route.gateway = ip(&address),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => return Err("has an encapsulation of its own"),
            RouteAttribute::Via(_) => return Err("goes by a gateway of another family of addresses"),
            _ => {}
        }
    }
    Ok(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

struct Neighbour {
    interface: u32,
    address: IpAddr,
    mac: MacAddress,
}

/// All whose MAC address the kernel would use.
fn neighbours() -> io::Result<Vec<Neighbour>> {
    let mut found = Vec::new();
    ask(RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()), Want::All, |answer| {
        if let RouteNetlinkMessage::NewNeighbour(answer) = answer {
            found.extend(neighbour(&answer));
        }
    })?;
    Ok(found)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    if !matches!(message.header.state, Reachable | Stale | Delay | Probe | Permanent) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    Some(Neighbour { interface: message.header.ifindex, address: address?, mac: mac? })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use ringspan_testkit::netns::Netns;
    use ringspan_testkit::{needs, wait};

    use netlink_packet_route::route::{RouteLwEnCapType, RouteVia};

    use super::*;

    #[test]
    fn a_route_that_does_more_than_to_name_a_gateway_is_none() {
        let (gateway, source) = (Ipv4Addr::new(198, 51, 100, 9), Ipv4Addr::new(198, 51, 100, 1));
        let with = |more: Option<RouteAttribute>| {
            let route = [
                RouteAttribute::Oif(7),
                RouteAttribute::PrefSource(RouteAddress::Inet(source)),
                RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            ];
            plain(route.into_iter().chain(more).collect())
        };
        let route = with(None).unwrap();
        assert_eq!((route.interface, route.gateway, route.source), (7, Some(gateway.into()), Some(source.into())));
        let why = |more| with(Some(more)).err().unwrap_or_default();
        assert!(why(RouteAttribute::EncapType(RouteLwEnCapType::Mpls)).contains("encapsulation"));
        assert!(why(RouteAttribute::Encap(Vec::new())).contains("encapsulation"));
        let other = "fe80::9".parse::<std::net::Ipv6Addr>().unwrap();
        assert!(why(RouteAttribute::Via(RouteVia::Inet6(other))).contains("another family"));
    }

    #[test]
    fn the_way_to_a_far_end_is_that_of_the_kernels_own_packets() -> anyhow::Result<()> {
        needs!(Root);
        let net = Netns::new("underlay")?;
        net.ip(&["link", "add", "nic0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "far"])?;
        net.ip(&["link", "set", "nic0", "up"])?;
        net.ip(&["link", "set", "far", "up"])?;
        net.ip(&["address", "add", "198.51.100.1/24", "dev", "nic0"])?;
        net.ip(&["route", "add", "203.0.113.0/24", "via", "198.51.100.9"])?;
        let uplinks = BTreeSet::from(["nic0".to_owned()]);
        let [near, beyond, nowhere] = ["198.51.100.2", "203.0.113.7", "192.0.2.1"].map(|text| text.parse().unwrap());
        let far_v6: IpAddr = "fd00::2".parse()?;
        let far = BTreeSet::from([near, beyond, nowhere, far_v6]);
        let read = || {
            std::thread::scope(|scope| {
                let read = scope.spawn(|| {
                    net.join()?;
                    Ok::<_, anyhow::Error>(Underlay::read(&uplinks, &far)?)
                });
                read.join().unwrap()
            })
        };
        let before = read()?;
        assert!(before.way(near).unwrap_err().contains("MAC address of 198.51.100.2 is not known yet"));
        assert!(before.way(nowhere).unwrap_err().contains("no route"));
        net.ip(&["neighbour", "add", "198.51.100.2", "lladdr", "02:00:00:00:00:02", "dev", "nic0"])?;
        net.ip(&["neighbour", "add", "198.51.100.9", "lladdr", "02:00:00:00:00:09", "dev", "nic0"])?;
        let mac = |last| MacAddress([2, 0, 0, 0, 0, last]);
        let after = wait::until(Duration::from_secs(20), "neighbours", || {
            let read = read()?;
            Ok(read.way(beyond).is_ok().then_some(read))
        })?;
        for (to, hop) in [(near, 2), (beyond, 9)] {
            let way = after.way(to).unwrap();
            assert_eq!((way.interface.as_str(), way.eth_src, way.eth_dst), ("nic0", mac(1), mac(hop)));
            assert_eq!(way.src, "198.51.100.1".parse::<IpAddr>()?);
        }
        let address = "198.51.100.1".parse()?;
        assert_eq!(after.ends(), [End { interface: "nic0".into(), mac: mac(1), address }]);
        // One that has a label is the interface's, too.
        net.ip(&["address", "add", "198.51.100.11/24", "dev", "nic0", "label", "nic0:1"])?;
        let labelled = read()?;
        let second = "198.51.100.11".parse::<IpAddr>()?;
        assert!(labelled.ends().iter().any(|end| end.address == second), "{:?}", labelled.ends());
        assert!(labelled.way(near).unwrap().own.contains(&second));
        // Tunnels over IPv6 end there, too, and no other address of IPv4 is needed for that.
        net.ip(&["address", "flush", "dev", "nic0"])?;
        net.ip(&["address", "add", "fd00::1/64", "dev", "nic0", "nodad"])?;
        net.ip(&["neighbour", "add", "fd00::2", "lladdr", "02:00:00:00:00:02", "dev", "nic0"])?;
        let v6 = wait::until(Duration::from_secs(20), "neighbours over IPv6", || {
            let read = read()?;
            Ok(read.way(far_v6).is_ok().then_some(read))
        })?;
        assert_eq!(v6.ends(), [End { interface: "nic0".into(), mac: mac(1), address: "fd00::1".parse()? }]);
        assert_eq!(v6.way(far_v6).unwrap().eth_dst, mac(2));
        // A port of a bridge gets nothing for the host.
        net.ip(&["link", "add", "bridge", "type", "bridge"])?;
        net.ip(&["link", "set", "nic0", "master", "bridge"])?;
        let port = read()?;
        assert!(port.ends().is_empty() && port.way(near).is_err());
        Ok(())
    }
}
