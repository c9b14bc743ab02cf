//! The test's side of the guest's agent: commands in, exit code and output back, one after the other.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wait::{self, Finished};

/// A connection to the agent's serial port.
pub struct Agent {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    line: Vec<u8>,
    number: u64,
}

impl Agent {
    /// Connects to the socket that QEMU listens on.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        let reader = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, reader, line: Vec::new(), number: 0 })
    }

    /// The next line, or nothing when none was complete within 100 ms.
    pub fn line(&mut self) -> Result<Option<String>> {
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(0) => bail!("QEMU closed the agent's port: it ended"),
            Ok(_) if self.line.ends_with(b"\n") => {
                let line = String::from_utf8_lossy(&self.line).trim().to_string();
                self.line.clear();
                Ok(Some(line))
            }
            Ok(_) => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).context("cannot read from the agent's port"),
        }
    }

    /// Runs a shell script in the guest and waits for its end. The guest kills it after `limit`.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<Finished> {
        self.number += 1;
        let number = self.number;
        writeln!(self.stream, "{number} {} {}", limit.as_secs().max(1), encode(script.as_bytes()))?;
        let start = Instant::now();
        while start.elapsed() < limit + Duration::from_secs(20) {
            wait::check_stopped()?;
            let Some(line) = self.line()? else { continue };
            let mut words = line.split(' ');
            // Lines of an earlier life of the guest, or an answer that came too late, are passed over.
            if words.next().and_then(|word| word.parse().ok()) != Some(number) {
                continue;
            }
            let code =
                words.next().and_then(|word| word.parse().ok()).context("the agent's answer has no exit code")?;
            let text = decode(words.next().unwrap_or_default()).context("the agent's answer is not base64")?;
            return Ok(Finished { code, text: String::from_utf8_lossy(&text).into_owned() });
        }
        bail!("the guest did not answer within {limit:?} to: {script}")
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 of RFC 4648, padded.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= group.len() { ALPHABET[index] as char } else { '=' });
        }
    }
    text
}

/// The bytes, or nothing when the text is not base64.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0u32;
        for letter in group {
            bits = bits << 6 | ALPHABET.iter().position(|known| known == letter)? as u32;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len().max(1)]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc_and_comes_back() {
        assert_eq!(encode(b"foobar"), "Zm9vYmFy");
        assert_eq!(encode(b"fooba"), "Zm9vYmE=");
        assert_eq!(encode(b"foob"), "Zm9vYg==");
        for length in 0..20u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(77)).collect();
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
        assert_eq!(decode("a b!"), None);
    }
}
