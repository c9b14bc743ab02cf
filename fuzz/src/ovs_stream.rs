//! What cuts the answers of OVS's daemons into objects and lines; it is private to the client.

#[path = "../../src/ovs/client/frame.rs"]
mod frame;
#[path = "../../src/ovs/client/stream.rs"]
mod stream;

use stream::{At, Lines, Stream};

/// The objects in what comes in pieces, up to where it is none, and why.
pub fn objects<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut frames, mut objects) = (frame::Frames::default(), Vec::new());
    for piece in pieces {
        frames.push(piece);
        loop {
            match frames.next() {
                Ok(Some(object)) => objects.push(object.to_vec()),
                Ok(None) => break,
                Err(why) => return (objects, Some(why.to_string())),
            }
        }
    }
    (objects, None)
}

struct Taken(Vec<Vec<u8>>);

impl Lines for Taken {
    fn line(&mut self, line: &[u8]) {
        self.0.push(line.to_vec());
    }

    fn pause(&mut self) {}
}

/// The lines of an answer that comes in pieces, and what stands around them once it is whole. `Err` where it is no answer with a text.
pub fn lines<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Vec<Vec<u8>>, Option<Vec<u8>>), ()> {
    let (mut stream, mut taken) = (Stream::default(), Taken(Vec::new()));
    for piece in pieces {
        match stream.push(piece, &mut taken) {
            At::Inside => {}
            At::End(around, used) => {
                assert!(used <= piece.len());
                return Ok((taken.0, Some(around)));
            }
            At::Other(_) => return Err(()),
        }
    }
    Ok((taken.0, None))
}
