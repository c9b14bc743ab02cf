//! Legacy mode: where a frame goes by its MAC address and VLAN, as the embedded bridge of an SR-IOV NIC has it.
//!
//! The table is what was said of the VFs. What is for nobody's address goes to the uplink, what is for a group to all in the VLAN. A VF of
//! which no address was said has the one that it sent from last, as if its driver had told it, while nobody else has it and until its
//! guest's port goes; no other address is learnt.

use ringspan_protocol::nic::MAX_VFS;
use ringspan_protocol::{Field, VfLink, VfSettings};

use super::key::{Key, Places};
use crate::nic::Meter;

/// Bits of a word of a [`Key`] that has a MAC address.
const ADDRESS: u64 = !0xffff;
/// The bit of such a word that says that the address is a group's.
const GROUP: u64 = 1 << 56;
/// The groups of which bridges forward nothing (IEEE 802.1Q, table 8-1), but for their last four bits.
const LINK_LOCAL: u64 = 0x0180_c200_0000 << 16;
/// The type of tags that a VLAN has here.
pub const TPID: u16 = 0x8100;
/// Most and least that a limited VF may send at once: 20 ms of its rate, and two of the largest frames of guests.
const BURST_PER_SECOND: u64 = 50;
const LEAST_BURST: u64 = 128 << 10;

const _: () = assert!(MAX_VFS < 128, "a port is a bit");

/// Ports as bits: the uplink is the lowest, then the VFs.
pub type Ports = u128;

/// Why a frame goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is no frame.
    Malformed,
    /// The VF may not send it.
    Spoof,
    /// The VF sends too much.
    Rate,
    /// Nobody is to have it.
    Nobody,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outputs {
    /// As it came.
    pub as_it_is: Ports,
    /// With the VLAN tag changed.
    pub changed: Ports,
    /// How.
    pub change: Change,
    /// The table has the address.
    pub known: bool,
}

/// What becomes of the VLAN tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// One of this value comes in front.
    Push(u16),
    /// The outer one goes.
    Pop,
}

/// The table.
#[derive(Debug)]
pub struct Bridge {
    vfs: Vec<Vf>,
    /// Where something is at the other end.
    there: Ports,
}

#[derive(Debug)]
struct Vf {
    settings: VfSettings,
    /// Its address, as a word of a key has it; 0 while it is not known.
    address: u64,
    meter: Option<Meter>,
}

impl Vf {
    fn is_up(&self) -> bool {
        self.settings.link != VfLink::Disable
    }
}

fn bit(port: usize) -> Ports {
    1 << port
}

/// What meters a VF; `None` where it is not limited. Made outside of the worker.
pub fn meter(settings: &VfSettings) -> Option<Meter> {
    let rate = u64::from(settings.max_mbit) * 1_000_000 / 8;
    if rate == 0 { None } else { Meter::new(rate, (rate / BURST_PER_SECOND).max(LEAST_BURST)) }
}

impl Bridge {
    /// A bridge between an uplink and VFs, to which nothing is connected.
    pub fn new(vfs: impl Iterator<Item = VfSettings>) -> Self {
        let vfs = vfs.map(|settings| Vf { settings, address: word(&settings), meter: meter(&settings) });
        Self { vfs: vfs.collect(), there: 0 }
    }

    /// Something else is at the other end of a port than before, or nothing: who is there now did not say an address yet.
    pub fn connect(&mut self, port: usize, there: bool) {
        self.there = self.there & !bit(port) | if there { bit(port) } else { 0 };
        if let Some(vf) = port.checked_sub(1).and_then(|at| self.vfs.get_mut(at)) {
            vf.address = word(&vf.settings);
        }
    }

    /// Gives a VF other settings, with the meter for them. What it had is given back, to be freed elsewhere.
    pub fn set(&mut self, settings: VfSettings, meter: Option<Meter>) -> Option<Meter> {
        let vf = self.vfs.get_mut(usize::from(settings.vf))?;
        let old = std::mem::replace(&mut vf.settings, settings);
        if settings.mac.is_some() || old.mac.is_some() {
            vf.address = word(&settings);
        }
        // One that goes on as it was has not forgotten what it let pass.
        let same = vf.meter.as_ref().map(Meter::limits) == meter.as_ref().map(Meter::limits);
        let given = if same { meter } else { std::mem::replace(&mut vf.meter, meter) };
        self.take_learnt(usize::from(settings.vf), word(&settings));
        given
    }

    /// Where a frame goes that came from a port.
    ///
    /// # Errors
    /// Why it goes nowhere.
    #[inline]
    pub fn decide(&mut self, key: &Key, places: &Places, from: usize, len: usize) -> Result<Outputs, Why> {
        if places.l3 == 0 {
            return Err(Why::Malformed);
        }
        let (to, source) = (key.0[1] & ADDRESS, key.0[2] & ADDRESS);
        let tagged = places.tags > 0 && key.get(Field::VlanTpid) == u64::from(TPID);
        let mut vlan = if tagged { (key.0[1] & 0xfff) as u16 } else { 0 };
        let mut own = None;
        let mut trusted = true;
        if let Some(at) = from.checked_sub(1) {
            self.may_send(at, source, places.tags > 0, len)?;
            let settings = &self.vfs[at].settings;
            trusted = settings.trust;
            if settings.vlan != 0 {
                vlan = settings.vlan;
                own = Some(u16::from(settings.qos) << 13 | vlan);
            }
        }
        let mut outputs =
            Outputs { as_it_is: 0, changed: 0, change: own.map_or(Change::Pop, Change::Push), known: false };
        if to & GROUP == 0
            && let Some(vf) = self.find(to, vlan)
        {
            outputs.known = true;
            // What it sends to itself goes nowhere.
            if vf + 1 != from && self.reaches(vf) {
                outputs.add(vf + 1, self.vfs[vf].settings.vlan != 0, own.is_some());
            }
            return outputs.or_nobody();
        }
        let link_local = to & !(0xf << 16) == LINK_LOCAL;
        if link_local && !trusted {
            return Err(Why::Nobody);
        }
        for vf in 0..self.vfs.len() {
            let wants = to & GROUP != 0 && !link_local || self.vfs[vf].settings.trust;
            if wants && vf + 1 != from && self.reaches(vf) && self.is_in(vf, vlan) {
                outputs.add(vf + 1, self.vfs[vf].settings.vlan != 0, own.is_some());
            }
        }
        if from != 0 && self.there & 1 != 0 {
            outputs.add(0, false, own.is_some());
        }
        outputs.or_nobody()
    }

    /// The VF that has an address in a VLAN: the same one may be in several. One that is in this VLAN only comes first. No address is
    /// nobody's, though it stands for one that is not known.
    #[inline]
    fn find(&self, to: u64, vlan: u16) -> Option<usize> {
        if to == 0 {
            return None;
        }
        let has = |own: u16| self.vfs.iter().position(|vf| vf.address == to && vf.settings.vlan == own);
        has(vlan).or_else(|| if vlan == 0 { None } else { has(0) })
    }

    /// Whether a VF may send a frame of this length from this address, with or without a tag.
    #[inline]
    fn may_send(&mut self, at: usize, source: u64, tagged: bool, len: usize) -> Result<(), Why> {
        let vf = &self.vfs[at];
        if !vf.is_up() {
            return Err(Why::Nobody);
        }
        if tagged && vf.settings.vlan != 0 {
            return Err(Why::Spoof);
        }
        if vf.address != source {
            match vf.settings.mac {
                Some(_) if vf.settings.spoof_check => return Err(Why::Spoof),
                Some(_) => {}
                None => self.learn(at, source)?,
            }
        }
        let passes = self.vfs[at].meter.as_mut().is_none_or(|meter| meter.passes(len as u32));
        if passes { Ok(()) } else { Err(Why::Rate) }
    }

    #[cold]
    fn learn(&mut self, at: usize, source: u64) -> Result<(), Why> {
        let taken =
            |vf: usize| self.vfs[vf].address == source && (self.vfs[vf].settings.mac.is_some() || self.reaches(vf));
        if source == 0 || source & GROUP != 0 || (0..self.vfs.len()).any(taken) {
            return Err(Why::Spoof);
        }
        self.vfs[at].address = source;
        self.take_learnt(at, source);
        Ok(())
    }

    /// An address is this VF's from now on, and no other one's that learnt it.
    fn take_learnt(&mut self, at: usize, address: u64) {
        for (other, vf) in self.vfs.iter_mut().enumerate() {
            if other != at && vf.settings.mac.is_none() && vf.address == address {
                vf.address = 0;
            }
        }
    }

    /// Whether a VF has frames of this VLAN.
    fn is_in(&self, vf: usize, vlan: u16) -> bool {
        let own = self.vfs[vf].settings.vlan;
        own == 0 || own == vlan
    }

    fn reaches(&self, vf: usize) -> bool {
        self.vfs[vf].is_up() && self.there & bit(vf + 1) != 0
    }
}

impl Outputs {
    /// `in_vlan`: frames have no tag there that is a VLAN's; `from_vlan`: where it came from neither.
    fn add(&mut self, port: usize, in_vlan: bool, from_vlan: bool) {
        if in_vlan == from_vlan {
            self.as_it_is |= bit(port);
        } else {
            self.changed |= bit(port);
        }
    }

    fn or_nobody(self) -> Result<Self, Why> {
        if self.as_it_is | self.changed == 0 { Err(Why::Nobody) } else { Ok(self) }
    }

    /// The one port that it goes to as it is.
    #[inline]
    pub fn forward(&self) -> Option<u16> {
        let one = self.changed == 0 && self.as_it_is.is_power_of_two();
        one.then(|| self.as_it_is.trailing_zeros() as u16)
    }
}

/// An address as a word of a key has it.
fn word(settings: &VfSettings) -> u64 {
    settings.mac.map_or(0, |mac| mac.0.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringspan_testkit::packet::Packet;

    /// VF 0 and 1 without a VLAN, 2 and 3 in VLAN 10, 4 of which nothing was said; their addresses end in their numbers.
    fn bridge() -> Bridge {
        let mac = |vf: u16| Some(format!("02:00:00:00:00:{vf:02x}").parse().unwrap());
        let vf = |vf: u16| match vf {
            0 | 1 => VfSettings { mac: mac(vf), ..VfSettings::new(vf) },
            2 | 3 => VfSettings { mac: mac(vf), vlan: 10, qos: 5, ..VfSettings::new(vf) },
            _ => VfSettings::new(vf),
        };
        let mut bridge = Bridge::new((0..5).map(vf));
        (0..6).for_each(|port| bridge.connect(port, true));
        bridge
    }

    fn frame(from: u8, to: u8, vlan: Option<u16>) -> Vec<u8> {
        let mut frame = Packet { tags: usize::from(vlan.is_some()), ..Packet::new(10) }.frame();
        frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from]);
        if to == 0xff {
            frame[..6].fill(0xff);
        }
        if let Some(vlan) = vlan {
            frame[14..16].copy_from_slice(&vlan.to_be_bytes());
        }
        frame
    }

    fn decide(bridge: &mut Bridge, from: usize, frame: &[u8]) -> Result<(Ports, Ports), Why> {
        let (key, places) = Key::parse(frame, frame.len(), from as u16);
        bridge.decide(&key, &places, from, frame.len()).map(|outputs| (outputs.as_it_is, outputs.changed))
    }

    #[test]
    fn frames_go_to_the_address_in_the_vlan_and_else_to_the_uplink() {
        let mut bridge = bridge();
        // From port (VF + 1) and address, to address, tag in the frame; ports by bits as it is, and with the tag changed.
        for (from, source, to, tag, wanted) in [
            (1, 0, 1, None, Ok((0b100, 0))),
            (1, 0, 1, Some(20), Ok((0b100, 0))),
            (1, 0, 0, None, Err(Why::Nobody)),
            (1, 0, 0x77, None, Ok((1, 0))),
            (1, 0, 2, None, Ok((1, 0))),
            (1, 0, 2, Some(10), Ok((0, 0b1000))),
            (1, 1, 0x77, None, Err(Why::Spoof)),
            (1, 0, 0xff, None, Ok((0b100101, 0))),
            (1, 0, 0xff, Some(10), Ok((0b100101, 0b11000))),
            (1, 0, 0xff, Some(11), Ok((0b100101, 0))),
            (3, 2, 3, None, Ok((0b10000, 0))),
            (3, 2, 1, None, Ok((0, 0b100))),
            (3, 2, 0x77, None, Ok((0, 1))),
            (3, 2, 0xff, None, Ok((0b10000, 0b100111))),
            (3, 2, 3, Some(10), Err(Why::Spoof)),
            (0, 0x55, 1, None, Ok((0b100, 0))),
            (0, 0x55, 2, None, Err(Why::Nobody)),
            (0, 0x55, 2, Some(10), Ok((0, 0b1000))),
            (0, 0x55, 0x77, None, Err(Why::Nobody)),
            (0, 0x55, 0xff, None, Ok((0b100110, 0))),
            (0, 0x55, 0xff, Some(10), Ok((0b100110, 0b11000))),
        ] {
            let got = decide(&mut bridge, from, &frame(source, to, tag));
            assert_eq!(got, wanted, "from port {from}, {source:02x} to {to:02x}, tag {tag:?}");
        }
        let (key, places) = Key::parse(&frame(2, 0x77, None), 64, 3);
        assert_eq!(bridge.decide(&key, &places, 3, 64).unwrap().change, Change::Push(5 << 13 | 10));
        assert_eq!(decide(&mut bridge, 1, &[0; 13]), Err(Why::Malformed));
    }

    #[test]
    fn an_address_that_was_not_said_is_the_one_it_sends_from_unless_it_is_somebody_elses() {
        let mut bridge = bridge();
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Err(Why::Nobody));
        assert_eq!(decide(&mut bridge, 5, &frame(0x66, 0x77, None)), Ok((1, 0)));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Ok((0b100000, 0)));
        assert_eq!(decide(&mut bridge, 5, &frame(1, 0x77, None)), Err(Why::Spoof));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 1, None)), Ok((0b100, 0)));
    }

    #[test]
    fn a_learnt_address_is_one_vfs_alone_and_goes_with_its_guest_or_when_it_is_given_to_another_vf() {
        let mut bridge = bridge();
        bridge.set(VfSettings::new(1), None);
        assert_eq!(decide(&mut bridge, 5, &frame(0x66, 0x77, None)), Ok((1, 0)));
        assert_eq!(decide(&mut bridge, 2, &frame(0x66, 0x77, None)), Err(Why::Spoof), "VF 4 has it");
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Ok((0b100000, 0)));
        // Another guest comes: the address was not its own.
        bridge.connect(5, true);
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Err(Why::Nobody));
        assert_eq!(decide(&mut bridge, 2, &frame(0x66, 0x77, None)), Ok((1, 0)), "nobody has it any more");
        // It is given to VF 0, which comes in front, and then to VF 4, which comes behind.
        let mac = Some("02:00:00:00:00:66".parse().unwrap());
        for (vf, port) in [(0, 0b10), (4, 0b100000)] {
            bridge.set(VfSettings { mac, ..VfSettings::new(vf) }, None);
            assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Ok((port, 0)));
            assert_eq!(decide(&mut bridge, 2, &frame(0x66, 0x77, None)), Err(Why::Spoof));
            bridge.set(VfSettings::new(vf), None);
            assert_eq!(decide(&mut bridge, 2, &frame(0x66, 0x77, None)), Ok((1, 0)));
        }
        // One that is cut off does not keep it.
        bridge.set(VfSettings { link: VfLink::Disable, ..VfSettings::new(1) }, None);
        assert_eq!(decide(&mut bridge, 5, &frame(0x66, 0x77, None)), Ok((1, 0)));
        bridge.set(VfSettings::new(1), None);
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, None)), Ok((0b100000, 0)));
    }

    #[test]
    fn an_address_may_be_in_two_vlans_and_none_is_nobodys() {
        let mut bridge = bridge();
        // VF 2, in VLAN 10, gets the address of VF 0, which is in all that no other VF is in.
        let old = bridge.vfs[2].settings;
        bridge.set(VfSettings { mac: bridge.vfs[0].settings.mac, ..old }, None);
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0, Some(10))), Ok((0, 0b1000)));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0, Some(11))), Ok((0b10, 0)));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0, None)), Ok((0b10, 0)));
        assert_eq!(decide(&mut bridge, 4, &frame(3, 0, None)), Ok((0b1000, 0)));
        // VF 4 is silent.
        let mut nowhere = frame(0x55, 0, None);
        nowhere[..6].fill(0);
        assert_eq!(decide(&mut bridge, 0, &nowhere), Err(Why::Nobody));
    }

    #[test]
    fn a_frame_with_a_tag_that_its_vf_may_not_send_teaches_nothing() {
        let mut bridge = bridge();
        bridge.set(VfSettings { vlan: 10, ..VfSettings::new(4) }, None);
        assert_eq!(decide(&mut bridge, 5, &frame(0x66, 0x77, Some(10))), Err(Why::Spoof));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x66, Some(10))), Err(Why::Nobody));
    }

    #[test]
    fn what_a_vf_may_do_changes_while_frames_flow() {
        let mut bridge = bridge();
        let old = bridge.vfs[1].settings;
        bridge.set(VfSettings { link: VfLink::Disable, ..old }, None);
        assert_eq!(decide(&mut bridge, 1, &frame(0, 1, None)), Err(Why::Nobody));
        assert_eq!(decide(&mut bridge, 2, &frame(1, 0, None)), Err(Why::Nobody));
        bridge.set(VfSettings { spoof_check: false, trust: true, ..old }, None);
        assert_eq!(decide(&mut bridge, 2, &frame(9, 0, None)), Ok((0b10, 0)));
        assert_eq!(decide(&mut bridge, 0, &frame(0x55, 0x77, None)), Ok((0b100, 0)), "a trusted VF has the rest");
        let mut lacp = frame(1, 0, None);
        lacp[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 2]);
        assert_eq!(decide(&mut bridge, 2, &lacp), Ok((1, 0)));
        lacp[11] = 0;
        assert_eq!(decide(&mut bridge, 1, &lacp), Err(Why::Nobody));
        bridge.connect(0, false);
        assert_eq!(decide(&mut bridge, 1, &frame(0, 0x78, None)), Ok((0b100, 0)), "no uplink");
    }
}
