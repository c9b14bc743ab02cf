//! Undoes the compression of kernel modules and of the kernel itself.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What a file or a part of it is compressed with, by its first bytes.
fn tool(bytes: &[u8]) -> Option<&'static [&'static str]> {
    match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some(&["xz", "-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(&["zstd", "-dc"]),
        [0x1f, 0x8b, ..] => Some(&["gzip", "-dc"]),
        _ => None,
    }
}

/// The content of a module, whether it is compressed or not: busybox's insmod may not know how.
pub fn plain(file: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    match tool(&bytes) {
        Some(tool) => pipe(tool, bytes),
        None if bytes.starts_with(b"\x7fELF") => Ok(bytes),
        None => bail!("{} is no module, and compressed in no known way", file.display()),
    }
}

/// The kernel proper out of a bzImage (kernel: Documentation/arch/x86/boot.rst, fields setup_sects, payload_offset and
/// payload_length). QEMU starts it directly; unpacking it in the guest takes seconds without hardware virtualisation,
/// and after a reset, when the memory is full of translated code, more than a minute.
pub fn kernel(image: &[u8]) -> Result<Vec<u8>> {
    let word =
        |at: usize| -> Option<usize> { Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize) };
    let sectors = image.get(0x1f1).map(|count| if *count == 0 { 4 } else { usize::from(*count) });
    let begin = sectors.zip(word(0x248)).map(|(sectors, offset)| (sectors + 1) * 512 + offset);
    // The last four bytes are the size of what comes out.
    let payload = begin.zip(word(0x24c)).and_then(|(begin, length)| image.get(begin..begin + length.checked_sub(4)?));
    let payload = payload.context("the kernel image has no payload where its header says")?;
    let tool = tool(payload).context("the kernel image's payload is compressed in no known way")?;
    let kernel = pipe(tool, payload.to_vec())?;
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { bail!("the kernel image's payload is no ELF file") }
}

fn pipe(tool: &[&str], input: Vec<u8>) -> Result<Vec<u8>> {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {}: install it", tool[0]))?;
    let mut stdin = child.stdin.take().context("the input is piped")?;
    // On a thread of its own: input and output are larger than a pipe holds.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    // A tool that has seen the end of its stream need not read the rest.
    let _ = writer.join();
    if !output.status.success() {
        bail!("{}: {}", tool.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}
