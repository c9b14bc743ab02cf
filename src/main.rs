//! The daemon and the command line of ringspan.

fn main() -> std::process::ExitCode {
    ringspan::cli::main()
}
