//! Sets of flags, with the names that OVS prints.

use serde::{Serialize, Serializer};

use super::masked::Bits;

/// Bits that have names.
pub trait Flags: Bits + Into<u32> {
    /// The names, by bit, in the order in which OVS prints them: lowest bit first.
    const NAMES: &'static [(u32, &'static str)];
    /// The mask with which every flag counts.
    const ALL: u32;
    /// From bits; `None` when there are too many.
    fn from_bits(bits: u32) -> Option<Self>;
}

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident: $repr:ty, all $all:expr, { $($bit:expr => $text:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $repr);

        impl Flags for $name {
            const NAMES: &'static [(u32, &'static str)] = &[$(($bit, $text)),*];
            const ALL: u32 = $all;

            fn from_bits(bits: u32) -> Option<Self> {
                bits.try_into().ok().map(Self)
            }
        }

        impl Bits for $name {
            const ZERO: Self = Self(0);
            const ONES: Self = Self($all);
        }

        impl From<$name> for u32 {
            fn from(flags: $name) -> u32 {
                flags.0.into()
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(names(*self))
            }
        }
    };
}

/// The flags as words: their names, and what has none as one hexadecimal number.
fn names<F: Flags>(flags: F) -> impl Iterator<Item = String> {
    let bits: u32 = flags.into();
    let known = F::NAMES.iter().filter(move |(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned());
    let rest = bits & !F::NAMES.iter().fold(0, |all, (bit, _)| all | bit);
    known.chain((rest != 0).then(|| format!("{rest:#x}")))
}

flags! {
    /// The flags of a TCP header, 12 bits.
    TcpFlags: u16, all 0xfff, {
        0x001 => "fin", 0x002 => "syn", 0x004 => "rst", 0x008 => "psh", 0x010 => "ack", 0x020 => "urg", 0x040 => "ece",
        0x080 => "cwr", 0x100 => "ns", 0x200 => "[200]", 0x400 => "[400]", 0x800 => "[800]",
    }
}

flags! {
    /// What connection tracking says (OVS_CS_F_* of linux/openvswitch.h).
    CtState: u32, all u32::MAX, {
        0x01 => "new", 0x02 => "est", 0x04 => "rel", 0x08 => "rpl", 0x10 => "inv", 0x20 => "trk", 0x40 => "snat", 0x80 => "dnat",
    }
}

flags! {
    /// Flags of a tunnel (FLOW_TNL_F_* of OVS's openvswitch/packets.h).
    TunnelFlags: u8, all 0xf, {
        0x01 => "oam", 0x02 => "df", 0x04 => "csum", 0x08 => "key",
    }
}

flags! {
    /// Why a packet goes to ovs-vswitchd (SLOW_* of OVS's lib/odp-util.h).
    SlowPath: u32, all u32::MAX, {
        0x01 => "cfm", 0x02 => "bfd", 0x04 => "lacp", 0x08 => "stp", 0x10 => "lldp", 0x20 => "action", 0x40 => "match",
    }
}
