//! `completions` and `man`: made from the command line's own definition.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::exit::{Exit, Failure};

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// Shell to write the script for
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "strongroom", &mut script);
    std::io::stdout()
        .write_all(&script)
        .map_err(|error| Failure::new(Exit::Failed, format!("standard output: {error}")))
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Directory to write to, created if it does not exist
    folder: PathBuf,
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<(), Failure> {
    std::fs::create_dir_all(&args.folder)
        .and_then(|()| clap_mangen::generate_to(command, &args.folder))
        .map_err(|error| Failure::file(&args.folder, &error))
}
