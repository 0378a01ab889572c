//! The command line.

/// Parses the arguments, runs the command, and gives the exit code.
#[allow(clippy::todo)]
pub fn main() -> std::process::ExitCode {
    todo!()
}
