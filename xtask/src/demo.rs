//! `cargo xtask demo`.
use anyhow::Result;

#[derive(clap::Args)]
pub struct Options {
    /// Leave everything running at the end, and say how to look around
    #[arg(long)]
    keep: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let _ = options.keep;
    anyhow::bail!("the demo is not there yet")
}
