//! vhost-user messages as they are on the wire: header, requests, and what each must look like.
//!
//! Names and layouts are those of QEMU's docs/interop/vhost-user.rst. All integers are in the machine's byte order.

use std::fmt;

use ringspan_protocol::{MAX_QUEUE_PAIRS, MAX_RING_SIZE};

/// Bytes of a header: request, flags, payload size.
pub const HEADER_SIZE: usize = 12;
/// Longest payload that is read, known request or not. The longest legal one has 1032 bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// Longest log of dirty pages in bytes, and furthest place of it in its file: it has a bit for each page up to 32 TiB.
const MAX_LOG: u64 = 1 << 30;
/// Most regions in one SET_MEM_TABLE, and so the most descriptors with any message.
pub const MAX_REGIONS: usize = 32;
/// Rings of a session: two for each queue pair.
pub const MAX_RINGS: usize = 2 * MAX_QUEUE_PAIRS as usize;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const REGION_SIZE: usize = 32;
const NOFD: u64 = 1 << 8;
/// In SET_VRING_ADDR: the fourth address is where the used ring is for the log (VHOST_VRING_F_LOG).
const VRING_F_LOG: u32 = 1;
/// No part of a ring has as many bytes: a ring has at most 32768 descriptors of 16 bytes.
const LARGEST_PART: u64 = 1 << 20;

/// Protocol feature: more than one queue pair, and GET_QUEUE_NUM.
pub const PROTOCOL_F_MQ: u64 = 1 << 0;
/// Protocol feature: the log of dirty pages comes as a descriptor.
pub const PROTOCOL_F_LOG_SHMFD: u64 = 1 << 1;
/// Protocol feature: SEND_RARP.
pub const PROTOCOL_F_RARP: u64 = 1 << 2;
/// Protocol feature: any request may ask for a reply.
pub const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// Protocol feature: NET_SET_MTU.
pub const PROTOCOL_F_NET_MTU: u64 = 1 << 4;
/// Protocol feature: memory regions that come and go one by one.
pub const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
/// What a session offers.
pub const PROTOCOL_FEATURES: u64 = PROTOCOL_F_MQ
    | PROTOCOL_F_LOG_SHMFD
    | PROTOCOL_F_RARP
    | PROTOCOL_F_REPLY_ACK
    | PROTOCOL_F_NET_MTU
    | PROTOCOL_F_CONFIGURE_MEM_SLOTS;

macro_rules! requests {
    ($($name:ident = $code:literal,)*) => {
        /// What a front-end may ask, by the specification's names.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, missing_docs)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Request { $($name = $code,)* }

        impl Request {
            /// The request of this number.
            pub fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$name),)* _ => None }
            }
        }
    };
}

requests! {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    SET_LOG_FD = 7,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    GET_QUEUE_NUM = 17,
    SET_VRING_ENABLE = 18,
    SEND_RARP = 19,
    NET_SET_MTU = 20,
    SET_BACKEND_REQ_FD = 21,
    IOTLB_MSG = 22,
    SET_VRING_ENDIAN = 23,
    GET_CONFIG = 24,
    SET_CONFIG = 25,
    CREATE_CRYPTO_SESSION = 26,
    CLOSE_CRYPTO_SESSION = 27,
    POSTCOPY_ADVISE = 28,
    POSTCOPY_LISTEN = 29,
    POSTCOPY_END = 30,
    GET_INFLIGHT_FD = 31,
    SET_INFLIGHT_FD = 32,
    GPU_SET_SOCKET = 33,
    RESET_DEVICE = 34,
    VRING_KICK = 35,
    GET_MAX_MEM_SLOTS = 36,
    ADD_MEM_REG = 37,
    REM_MEM_REG = 38,
    SET_STATUS = 39,
    GET_STATUS = 40,
    GET_SHARED_OBJECT = 41,
    SET_DEVICE_STATE_FD = 42,
    CHECK_DEVICE_STATE = 43,
    GET_SHMEM_CONFIG = 44,
}

/// What a payload must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// No payload.
    Empty,
    /// One 64-bit word.
    Word,
    /// Ring index and a number, 32 bits each.
    RingState,
    /// Ring index, flags, and four addresses.
    RingAddress,
    /// A ring index with the flag for "no descriptor", and that descriptor.
    RingFd,
    /// Bytes of a log and where it begins in its file, and that file.
    Log,
    /// No payload, or a word that means nothing, and a descriptor.
    Descriptor,
    /// Count, padding, and up to [`MAX_REGIONS`] regions, each with a descriptor.
    MemoryTable,
    /// Padding and one region; `fd` where it comes with a descriptor.
    MemoryRegion {
        /// Whether the descriptor must be there. It may be there when it need not (old front-ends send it).
        fd: bool,
    },
}

impl Request {
    /// What this request's payload must look like; `None` where ringspan does not serve the request.
    pub fn shape(self) -> Option<Shape> {
        Some(match self {
            Self::GET_FEATURES
            | Self::SET_OWNER
            | Self::RESET_OWNER
            | Self::GET_PROTOCOL_FEATURES
            | Self::GET_QUEUE_NUM
            | Self::RESET_DEVICE
            | Self::GET_MAX_MEM_SLOTS => Shape::Empty,
            Self::SET_FEATURES | Self::SET_PROTOCOL_FEATURES | Self::NET_SET_MTU | Self::SEND_RARP => Shape::Word,
            Self::SET_LOG_BASE => Shape::Log,
            Self::SET_LOG_FD => Shape::Descriptor,
            Self::SET_VRING_NUM | Self::SET_VRING_BASE | Self::GET_VRING_BASE | Self::SET_VRING_ENABLE => {
                Shape::RingState
            }
            Self::SET_VRING_ADDR => Shape::RingAddress,
            Self::SET_VRING_KICK | Self::SET_VRING_CALL | Self::SET_VRING_ERR => Shape::RingFd,
            Self::SET_MEM_TABLE => Shape::MemoryTable,
            Self::ADD_MEM_REG => Shape::MemoryRegion { fd: true },
            Self::REM_MEM_REG => Shape::MemoryRegion { fd: false },
            _ => return None,
        })
    }

    /// The protocol feature without which this request must not be sent.
    pub fn needs(self) -> Option<(u64, &'static str)> {
        match self {
            Self::GET_QUEUE_NUM => Some((PROTOCOL_F_MQ, "MQ")),
            Self::SET_LOG_BASE => Some((PROTOCOL_F_LOG_SHMFD, "LOG_SHMFD")),
            Self::SEND_RARP => Some((PROTOCOL_F_RARP, "RARP")),
            Self::NET_SET_MTU => Some((PROTOCOL_F_NET_MTU, "NET_MTU")),
            Self::GET_MAX_MEM_SLOTS | Self::ADD_MEM_REG | Self::REM_MEM_REG => {
                Some((PROTOCOL_F_CONFIGURE_MEM_SLOTS, "CONFIGURE_MEM_SLOTS"))
            }
            _ => None,
        }
    }

    /// Whether the answer is part of the request itself, so that NEED_REPLY has no meaning for it. SET_LOG_BASE is answered by all back-ends,
    /// though the specification does not say with what; its own payload suits the front-ends known.
    pub fn has_reply(self) -> bool {
        matches!(
            self,
            Self::GET_FEATURES
                | Self::GET_PROTOCOL_FEATURES
                | Self::GET_QUEUE_NUM
                | Self::GET_VRING_BASE
                | Self::GET_MAX_MEM_SLOTS
                | Self::SET_LOG_BASE
        )
    }
}

/// The first twelve bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of the request.
    pub code: u32,
    /// Version, and the two flags.
    pub flags: u32,
    /// Bytes of payload that follow.
    pub size: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { code: word(0), flags: word(4), size: word(8) }
    }

    /// The header of a request that wants a reply where the request has none of its own.
    pub fn request(request: Request, size: usize) -> Self {
        let need = if request.has_reply() { 0 } else { FLAG_NEED_REPLY };
        Self { code: request as u32, flags: VERSION | need, size: size as u32 }
    }

    /// The header of an answer to this message.
    pub fn reply(&self, size: usize) -> Self {
        Self { code: self.code, flags: VERSION | FLAG_REPLY, size: size as u32 }
    }

    /// Whether the sender wants an acknowledgement.
    pub fn need_reply(&self) -> bool {
        self.flags & FLAG_NEED_REPLY != 0
    }

    /// Whether this is an answer.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// The header as it is sent.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&self.code.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// Refuses a header that is no request of version 1, or whose payload is not to be read.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn check(&self) -> Result<(), String> {
        if self.flags & VERSION_MASK != VERSION {
            return Err(format!("protocol version {}, only 1 is known", self.flags & VERSION_MASK));
        }
        if self.is_reply() {
            return Err("it is marked as a reply, and nothing was asked".into());
        }
        if self.flags & !(VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY) != 0 {
            return Err(format!("reserved flags are set ({:#x})", self.flags));
        }
        if self.size as usize > MAX_PAYLOAD {
            return Err(format!("a payload of {} bytes, at most {MAX_PAYLOAD} are read", self.size));
        }
        Ok(())
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Request::from_code(self.code) {
            Some(request) => write!(f, "{request:?}"),
            None => write!(f, "message {}", self.code),
        }
    }
}

/// One region of guest memory, as the front-end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// Address in the front-end's own space.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

impl Region {
    fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| read_u64(bytes, at * 8);
        Self { guest: word(0), size: word(1), user: word(2), offset: word(3) }
    }

    fn check(&self) -> Result<(), String> {
        if self.size == 0 {
            return Err(format!("the region at {:#x} is empty", self.guest));
        }
        for (what, start) in [("guest", self.guest), ("front-end", self.user), ("file", self.offset)] {
            if start.checked_add(self.size).is_none() {
                return Err(format!("a region of {:#x} bytes wraps around at {what} address {start:#x}", self.size));
            }
        }
        Ok(())
    }
}

/// A payload, checked for everything that can be seen from its bytes alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// No payload.
    Empty,
    /// A 64-bit word.
    Word(u64),
    /// A number for a ring.
    Ring {
        /// The ring.
        index: usize,
        /// The number.
        number: u32,
    },
    /// A ring, and whether a descriptor belongs to the message.
    RingFd {
        /// The ring.
        index: usize,
        /// Whether there is one; else the ring is polled.
        fd: bool,
    },
    /// Where a ring is.
    RingAddress {
        /// The ring.
        index: usize,
        /// Where its used ring is for the log, if that was said.
        log: Option<u64>,
    },
    /// A log of dirty pages.
    Log {
        /// Bytes.
        size: u64,
        /// Where it begins in its file.
        offset: u64,
    },
    /// A descriptor alone.
    Descriptor,
    /// Regions of guest memory.
    Regions(Vec<Region>),
}

impl Body {
    /// Reads and checks the payload of a served request.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(request: Request, shape: Shape, payload: &[u8]) -> Result<Self, String> {
        let expect = |size: usize| {
            if payload.len() == size {
                Ok(())
            } else {
                Err(format!("a payload of {} bytes where {size} belong", payload.len()))
            }
        };
        match shape {
            Shape::Empty => expect(0).map(|()| Self::Empty),
            Shape::Word => expect(8).map(|()| Self::Word(read_u64(payload, 0))),
            Shape::RingState => {
                expect(8)?;
                let (index, number) = (ring_index(read_u32(payload, 0))?, read_u32(payload, 4));
                match request {
                    Request::SET_VRING_NUM if !number.is_power_of_two() || number > u32::from(MAX_RING_SIZE) => {
                        return Err(format!(
                            "ring {index}: size {number}, must be a power of two up to {MAX_RING_SIZE}"
                        ));
                    }
                    Request::SET_VRING_ENABLE if number > 1 => {
                        return Err(format!("ring {index}: enable {number}, must be 0 or 1"));
                    }
                    _ => {}
                }
                Ok(Self::Ring { index, number })
            }
            Shape::RingAddress => {
                expect(40)?;
                let (index, flags) = (ring_index(read_u32(payload, 0))?, read_u32(payload, 4));
                if flags & !VRING_F_LOG != 0 {
                    return Err(format!("ring {index}: unknown flags {flags:#x}"));
                }
                for (what, at, align) in [("descriptor table", 8, 16), ("used ring", 16, 4), ("available ring", 24, 2)]
                {
                    let address = read_u64(payload, at);
                    if !address.is_multiple_of(align) {
                        return Err(format!(
                            "ring {index}: the {what}'s address {address:#x} is not aligned to {align}"
                        ));
                    }
                }
                let log = (flags & VRING_F_LOG != 0).then(|| read_u64(payload, 32));
                if let Some(log) = log.filter(|log| log.checked_add(LARGEST_PART).is_none()) {
                    return Err(format!(
                        "ring {index}: the used ring's address for the log, {log:#x}, is beyond all memory"
                    ));
                }
                Ok(Self::RingAddress { index, log })
            }
            Shape::Log => {
                expect(16)?;
                let (size, offset) = (read_u64(payload, 0), read_u64(payload, 8));
                if size == 0 || size > MAX_LOG || offset > MAX_LOG {
                    return Err(format!(
                        "a log of {size:#x} bytes at {offset:#x}, 1 to {MAX_LOG:#x} bytes are accepted"
                    ));
                }
                Ok(Self::Log { size, offset })
            }
            Shape::Descriptor => Ok(Self::Descriptor),
            Shape::RingFd => {
                expect(8)?;
                let word = read_u64(payload, 0);
                if word & !(0xff | NOFD) != 0 {
                    return Err(format!("reserved bits are set ({word:#x})"));
                }
                Ok(Self::RingFd { index: ring_index((word & 0xff) as u32)?, fd: word & NOFD == 0 })
            }
            Shape::MemoryTable => {
                if payload.len() < 8 {
                    return Err(format!("a payload of {} bytes, too short for a table", payload.len()));
                }
                let count = read_u32(payload, 0) as usize;
                if count == 0 || count > MAX_REGIONS {
                    return Err(format!(
                        "{count} memory regions, 1 to {MAX_REGIONS} are accepted (use fewer and larger memory backends)"
                    ));
                }
                expect(8 + count * REGION_SIZE)?;
                let regions: Vec<Region> = payload[8..].chunks_exact(REGION_SIZE).map(Region::parse).collect();
                regions.iter().try_for_each(Region::check)?;
                Ok(Self::Regions(regions))
            }
            Shape::MemoryRegion { .. } => {
                expect(8 + REGION_SIZE)?;
                let region = Region::parse(&payload[8..]);
                region.check()?;
                Ok(Self::Regions(vec![region]))
            }
        }
    }

    /// Descriptors that must come with it, and how many may.
    pub fn descriptors(&self, shape: Shape) -> (usize, usize) {
        match (self, shape) {
            (Self::RingFd { fd: true, .. } | Self::Log { .. } | Self::Descriptor, _) => (1, 1),
            (Self::Regions(_), Shape::MemoryRegion { fd: false }) => (0, 1),
            (Self::Regions(regions), _) => (regions.len(), regions.len()),
            _ => (0, 0),
        }
    }
}

/// The payload of SET_MEM_TABLE for these regions.
pub fn memory_table(regions: &[Region]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(8 + regions.len() * REGION_SIZE);
    payload.extend((regions.len() as u32).to_ne_bytes());
    payload.extend([0; 4]);
    for region in regions {
        for word in [region.guest, region.size, region.user, region.offset] {
            payload.extend(word.to_ne_bytes());
        }
    }
    payload
}

fn ring_index(index: u32) -> Result<usize, String> {
    if (index as usize) < MAX_RINGS {
        Ok(index as usize)
    } else {
        Err(format!("ring {index}, there are {MAX_RINGS} (0 to {})", MAX_RINGS - 1))
    }
}

/// The payload of SET_VRING_BASE, and of the answer to GET_VRING_BASE.
pub fn ring_state(index: usize, number: u32) -> Vec<u8> {
    [(index as u32).to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// A 64-bit word at this place, 0 where the payload ends before it.
pub fn read_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(request: Request, payload: &[u8]) -> Result<Body, String> {
        Body::parse(request, request.shape().expect("a served request"), payload)
    }

    fn state(index: u32, number: u32) -> Vec<u8> {
        [index.to_ne_bytes(), number.to_ne_bytes()].concat()
    }

    #[test]
    fn headers_survive_the_wire() {
        let header = Header { code: 5, flags: 9, size: 1032 };
        assert_eq!(Header::parse(&header.to_bytes()), header);
        assert_eq!(header.check(), Ok(()));
        assert_eq!(header.to_string(), "SET_MEM_TABLE");
        assert_eq!(Header { code: 4711, ..header }.to_string(), "message 4711");
    }

    #[test]
    fn headers_that_are_no_requests_are_refused() {
        for (flags, size, why) in
            [(0, 0, "version 0"), (5, 0, "reply"), (0x11, 0, "reserved"), (1, u32::MAX, "4294967295 bytes")]
        {
            let error = Header { code: 1, flags, size }.check().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn ring_sizes_are_powers_of_two() {
        for good in [1, 256, 32768] {
            assert_eq!(parse(Request::SET_VRING_NUM, &state(3, good)), Ok(Body::Ring { index: 3, number: good }));
        }
        for bad in [0, 3, 1000, 65536, u32::MAX] {
            let error = parse(Request::SET_VRING_NUM, &state(3, bad)).unwrap_err();
            assert!(error.contains(&format!("size {bad}")) && error.contains("power of two"), "{error}");
        }
    }

    #[test]
    fn ring_indices_end_at_64() {
        assert!(parse(Request::GET_VRING_BASE, &state(63, 0)).is_ok());
        for index in [64, 255, u32::MAX] {
            assert!(parse(Request::GET_VRING_BASE, &state(index, 0)).unwrap_err().contains("there are 64"));
        }
        assert!(parse(Request::SET_VRING_KICK, &64u64.to_ne_bytes()).is_err());
        assert_eq!(
            parse(Request::SET_VRING_KICK, &0x105u64.to_ne_bytes()),
            Ok(Body::RingFd { index: 5, fd: false }),
            "polled: no descriptor"
        );
    }

    #[test]
    fn memory_tables_are_read_and_bounded() {
        let region = Region { guest: 0, size: 4096, user: 0x7000_0000_0000, offset: 0 };
        let table = memory_table(&[region; 32]);
        assert_eq!(parse(Request::SET_MEM_TABLE, &table), Ok(Body::Regions(vec![region; 32])));
        assert!(parse(Request::SET_MEM_TABLE, &memory_table(&[region; 33])).unwrap_err().contains("33 memory regions"));
        assert!(parse(Request::SET_MEM_TABLE, &memory_table(&[])).unwrap_err().contains("0 memory regions"));
        assert!(parse(Request::SET_MEM_TABLE, &table[..table.len() - 1]).is_err());
        let wrapping = Region { guest: u64::MAX - 100, ..region };
        assert!(parse(Request::SET_MEM_TABLE, &memory_table(&[wrapping])).unwrap_err().contains("wraps"));
        let empty = Region { size: 0, ..region };
        assert!(parse(Request::SET_MEM_TABLE, &memory_table(&[empty])).unwrap_err().contains("empty"));
    }

    #[test]
    fn ring_addresses_are_aligned() {
        let words = |desc: u64, used: u64, avail: u64| {
            let mut payload = state(0, 0);
            for word in [desc, used, avail, 0] {
                payload.extend(word.to_ne_bytes());
            }
            parse(Request::SET_VRING_ADDR, &payload)
        };
        assert!(words(0x1000, 0x2004, 0x3002).is_ok());
        for (desc, used, avail, what) in
            [(8, 0, 0, "descriptor table"), (0, 2, 0, "used ring"), (0, 0, 1, "available ring")]
        {
            assert!(words(desc, used, avail).unwrap_err().contains(what));
        }
    }

    #[test]
    fn a_rings_place_in_the_log_ends_within_all_addresses() {
        let place = |flags: u32, log: u64| {
            let mut payload = state(0, flags);
            for word in [0, 0, 0, log] {
                payload.extend(word.to_ne_bytes());
            }
            parse(Request::SET_VRING_ADDR, &payload)
        };
        assert!(place(VRING_F_LOG, 1 << 52).is_ok() && place(0, u64::MAX).is_ok());
        for log in [u64::MAX, u64::MAX - 4 * 32768] {
            assert!(place(VRING_F_LOG, log).unwrap_err().contains("beyond all memory"));
        }
    }
}
