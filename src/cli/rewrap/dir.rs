//! Every file of a directory.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use walkdir::WalkDir;

use super::journal;
use super::tally::Tally;
use super::{Common, Rewrapper, file};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;
use crate::cli::remote::{Remote, block_on};

#[derive(Args, Debug)]
pub(in crate::cli) struct DirArgs {
    #[command(flatten)]
    common: Common,
    /// The directory, with all below it on the same file system; symbolic links are not followed
    folder: PathBuf,
}

pub(in crate::cli) fn run(args: &DirArgs, remote: &Remote, format: Format) -> Result<(), Failure> {
    let files = files(args)?;
    block_on(async {
        let rewrapper = Rewrapper::new(&args.common, remote).await?;
        let bar = format.bar(files.len() as u64, "rewrapping");
        let hidden = indicatif::ProgressBar::hidden();
        let mut tally = Tally::default();
        let mut failures = Vec::new();
        for path in &files {
            bar.inc(1);
            // Most files of a directory have no ciphertext: they are not even copied.
            let done = match file::count(path) {
                Ok(seen) if args.common.count || seen.older_than(rewrapper.latest).is_none() => {
                    Ok(seen)
                }
                Ok(_) => file::rewrap(&rewrapper, path, path, &hidden).await,
                Err(failure) => Err(failure),
            };
            match done {
                Ok(seen) => tally.add(&seen),
                Err(failure) => failures.push(failure.message().to_owned()),
            }
        }
        bar.finish_and_clear();
        if !failures.is_empty() {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "{tally}\n{} of {} files failed:\n{}",
                    failures.len(),
                    files.len(),
                    failures.join("\n")
                ),
            )
            .next("the other files are done; run it again when the cause is gone"));
        }
        if args.common.retire {
            let mut seen = Tally::default();
            for path in self::files(args)? {
                seen.add(&file::count(&path)?);
            }
            rewrapper.retire(&seen).await?;
        }
        rewrapper.tell(format, &tally, args.common.retire)
    })
}

fn files(args: &DirArgs) -> Result<Vec<PathBuf>, Failure> {
    let fail = |error: &io::Error| Failure::file(&args.folder, error);
    // A file in a directory's place would be walked too.
    fs::read_dir(&args.folder).map_err(|error| fail(&error))?;
    let mut files = Vec::new();
    for entry in WalkDir::new(&args.folder)
        .same_file_system(true)
        .sort_by_file_name()
    {
        let entry = entry.map_err(|error| Failure::caused(Exit::Usage, &error))?;
        if entry.file_type().is_file() && !journal::is_ours(entry.path()) {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}
