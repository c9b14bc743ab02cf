//! A bridge's meters with their limits, by its management socket: OpenFlow 1.3 (section A.3.5.14, OFPMP_METER_CONFIG). The datapath tells of its meters'
//! counters only, never of their limits.
//!
//! A bridge whose `protocols` leave OpenFlow 1.3 out refuses.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringspan_protocol::{MeterSpec, MeterUnit};

use super::rpc::connected;
use super::{OvsError, Place};

const PEER: &str = "a bridge's management socket";
const METHOD: &str = "OFPMP_METER_CONFIG";
/// OFP13_VERSION, and messages of it.
const VERSION: u8 = 4;
const HELLO: u8 = 0;
const ERROR: u8 = 1;
const REQUEST: u8 = 18;
const REPLY: u8 = 19;
/// struct ofp_header; ofp_multipart_reply behind it; ofp_meter_config without its bands; ofp_meter_band_drop.
const HEADER: usize = 8;
const MULTIPART: usize = 8;
const CONFIG: usize = 8;
const BAND: usize = 16;
const METER_CONFIG: u16 = 10;
/// OFPM_ALL, OFPMPF_REPLY_MORE.
const ALL: u32 = 0xffff_ffff;
const MORE: u16 = 1;
/// OFPMF_KBPS, OFPMF_PKTPS, OFPMF_BURST; OFPMBT_DROP.
const KBPS: u16 = 1;
const PKTPS: u16 = 2;
const BURST: u16 = 4;
const DROP: u16 = 1;
/// Most bytes of an answer.
const MOST: usize = 16 << 20;

/// A meter as OpenFlow has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfMeter {
    /// Its number on its bridge.
    pub id: u32,
    flags: u16,
    /// Kind, rate and burst of each band.
    bands: Vec<(u16, u32, u32)>,
}

impl OfMeter {
    /// The same for an engine, by another number.
    ///
    /// # Errors
    /// What an engine's meter cannot do.
    pub(crate) fn spec(&self, id: u32) -> Result<MeterSpec, String> {
        let unit = match self.flags & (KBPS | PKTPS) {
            KBPS => MeterUnit::Kbit,
            PKTPS => MeterUnit::Packets,
            _ => return Err(format!("meter {} counts neither kbit nor packets", self.id)),
        };
        let &[(kind, rate, burst)] = &self.bands[..] else {
            return Err(format!("meter {} has {} bands, and an engine's has one", self.id, self.bands.len()));
        };
        if kind != DROP || rate == 0 {
            return Err(format!("meter {} does something else than to drop above a rate", self.id));
        }
        let burst = if self.flags & BURST == 0 { 0 } else { burst };
        Ok(MeterSpec { id, unit, rate: rate.into(), burst: burst.into() })
    }
}

/// All meters of a bridge.
pub(crate) fn meters(place: &Place, bridge: &str, limit: Duration) -> Result<Vec<OfMeter>, OvsError> {
    let path = place.management(bridge);
    let until = Instant::now() + limit;
    let socket = connected(&path, limit).map_err(|errno| OvsError::Unreachable {
        peer: PEER,
        path: path.clone(),
        reason: errno.desc().into(),
        errno: Some(errno as i32),
    })?;
    let mut stream = UnixStream::from(socket);
    let closed = |reason: String| OvsError::Closed { peer: PEER, method: METHOD.into(), bytes: 0, reason };
    let body = [&METER_CONFIG.to_be_bytes()[..], &[0; 6], &ALL.to_be_bytes(), &[0; 4]].concat();
    stream.set_nonblocking(false).map_err(|error| closed(error.to_string()))?;
    stream
        .write_all(&[message(HELLO, &[]), message(REQUEST, &body)].concat())
        .map_err(|error| closed(error.to_string()))?;
    let (mut buffer, mut found) = (Vec::new(), Vec::new());
    loop {
        while let Some(message) = next(&mut buffer) {
            match look(&message) {
                Said::Nothing => {}
                Said::Meters(meters, more) => {
                    found.extend(meters);
                    if !more {
                        return Ok(found);
                    }
                }
                Said::Refused(reason) => {
                    return Err(OvsError::Refused { peer: PEER, method: METHOD.into(), reason });
                }
                Said::Garbage => {
                    let what = "no message of OpenFlow 1.3".into();
                    return Err(OvsError::Garbage { peer: PEER, method: METHOD.into(), what });
                }
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || buffer.len() > MOST {
            return Err(OvsError::Silent { peer: PEER, method: METHOD.into(), limit });
        }
        let mut chunk = [0; 16 << 10];
        stream.set_read_timeout(Some(left)).map_err(|error| closed(error.to_string()))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(closed("end of file".into())),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            // It is looked at the time again.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut | std::io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(closed(error.to_string())),
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + body.len()) as u16;
    [&[VERSION, kind], &length.to_be_bytes()[..], &[0, 0, 0, 1], body].concat()
}

/// The next whole message. A length below that of the header is none: what is there is then looked at as it is, and refused.
fn next(buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    let length = usize::from(u16_at(buffer, 2)?).max(HEADER);
    (buffer.len() >= length).then(|| buffer.drain(..length).collect())
}

enum Said {
    Nothing,
    Meters(Vec<OfMeter>, bool),
    Refused(String),
    Garbage,
}

fn look(message: &[u8]) -> Said {
    if u16_at(message, 2).map(usize::from) != Some(message.len()) {
        return Said::Garbage;
    }
    match (message[0], message[1]) {
        // It says the newest version that it speaks; both then speak the older one of the two.
        (_, HELLO) => Said::Nothing,
        (_, ERROR) => Said::Refused(format!("error {:02x?}", message.get(HEADER..HEADER + 4).unwrap_or(&[]))),
        (VERSION, REPLY) if u16_at(message, HEADER) == Some(METER_CONFIG) => {
            let more = u16_at(message, HEADER + 2).is_some_and(|flags| flags & MORE != 0);
            let configs = message.get(HEADER + MULTIPART..).and_then(configs);
            configs.map_or(Said::Garbage, |configs| Said::Meters(configs, more))
        }
        (VERSION, _) => Said::Nothing,
        _ => Said::Garbage,
    }
}

fn configs(mut bytes: &[u8]) -> Option<Vec<OfMeter>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (config, rest) = bytes.split_at_checked(usize::from(u16_at(bytes, 0)?).max(CONFIG))?;
        let mut meter = OfMeter { id: u32_at(config, 4)?, flags: u16_at(config, 2)?, bands: Vec::new() };
        let mut bands = &config[CONFIG..];
        while !bands.is_empty() {
            let (band, more) = bands.split_at_checked(usize::from(u16_at(bands, 2)?).max(BAND))?;
            meter.bands.push((u16_at(band, 0)?, u32_at(band, 4)?, u32_at(band, 8)?));
            bands = more;
        }
        found.push(meter);
        bytes = rest;
    }
    Some(found)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_one_that_is_cut_is_refused() {
        let band = [0, 1, 0, 16, 0, 0, 0, 100, 0, 0, 0, 10, 0, 0, 0, 0];
        let config = [&[0, 24, 0, 6, 0, 0, 0, 7][..], &band].concat();
        let body = [&[0, 10, 0, 0, 0, 0, 0, 0][..], &config].concat();
        let Said::Meters(found, false) = look(&message(REPLY, &body)) else { panic!("not read") };
        assert_eq!(found, [OfMeter { id: 7, flags: PKTPS | BURST, bands: vec![(DROP, 100, 10)] }]);
        for cut in 9..body.len() {
            assert!(matches!(look(&message(REPLY, &body[..cut])), Said::Garbage), "{cut}");
        }
        assert!(matches!(look(b"HTTP/1.1 400"), Said::Garbage));
    }

    #[test]
    fn what_an_engines_meter_cannot_do_says_why() {
        let meter = |flags, bands: &[(u16, u32, u32)]| OfMeter { id: 7, flags, bands: bands.to_vec() }.spec(3);
        assert_eq!(meter(PKTPS | BURST, &[(DROP, 100, 10)]).unwrap().limits(), (100, 10));
        assert_eq!(meter(KBPS, &[(DROP, 8, 5)]).unwrap().limits(), (1000, 1000));
        for (flags, bands) in [
            (KBPS, &[][..]),
            (KBPS, &[(DROP, 8, 0), (DROP, 9, 0)]),
            (KBPS, &[(2, 8, 0)]),
            (KBPS, &[(DROP, 0, 0)]),
            (0, &[(DROP, 8, 0)]),
        ] {
            assert!(meter(flags, bands).is_err(), "{flags} {bands:?}");
        }
    }
}
