//! Runs in a guest that is migrated: numbered datagrams to the host whose address is given, and a tally of those that come from there.

use std::net::UdpSocket;

use ringspan_benches::numbers::{PORT, answer};

fn main() -> std::io::Result<()> {
    let Some(host) = std::env::args().nth(1) else {
        return Err(std::io::Error::other("usage: numbers ADDRESS"));
    };
    answer(&UdpSocket::bind(("0.0.0.0", PORT))?, &format!("{host}:{PORT}"))
}
