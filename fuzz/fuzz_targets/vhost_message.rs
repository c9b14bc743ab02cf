//! Any bytes as messages of a front-end: no panic, and what was read has what its request asks for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan_fuzz::message::{Body, HEADER_SIZE, Header, MAX_PAYLOAD, MAX_REGIONS, MAX_RINGS, Request, memory_table};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Some((head, behind)) = rest.split_first_chunk::<HEADER_SIZE>() {
        let header = Header::parse(head);
        assert_eq!(header.to_bytes(), *head);
        let _ = header.to_string();
        if header.check().is_err() {
            return;
        }
        assert!(header.size as usize <= MAX_PAYLOAD);
        let (payload, behind) = behind.split_at(behind.len().min(header.size as usize));
        rest = behind;
        let Some((request, shape)) =
            Request::from_code(header.code).and_then(|request| request.shape().map(|shape| (request, shape)))
        else {
            continue;
        };
        let Ok(body) = Body::parse(request, shape, payload) else { continue };
        let (least, most) = body.descriptors(shape);
        assert!(least <= most && most <= MAX_REGIONS);
        match body {
            Body::Ring { index, .. } | Body::RingFd { index, .. } => assert!(index < MAX_RINGS),
            Body::RingAddress { index, log } => {
                assert!(index < MAX_RINGS && log.is_none_or(|log| log.checked_add(16 * 32768).is_some()));
            }
            Body::Regions(regions) => {
                assert!((1..=MAX_REGIONS).contains(&regions.len()));
                for region in &regions {
                    let ends = [region.guest, region.user, region.offset].map(|start| start.checked_add(region.size));
                    assert!(region.size > 0 && ends.iter().all(Option::is_some));
                }
                if request == Request::SET_MEM_TABLE {
                    // The padding means nothing.
                    assert_eq!(memory_table(&regions)[8..], payload[8..]);
                }
            }
            Body::Empty | Body::Word(_) | Body::Log { .. } | Body::Descriptor => {}
        }
    }
});
