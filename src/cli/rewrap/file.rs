//! One file.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;

use super::journal::{Identity, Partial};
use super::scan;
use super::tally::Tally;
use super::{Common, Rewrapper};
use crate::cli::exit::{Exit, Failure};
use crate::cli::output::Format;
use crate::cli::remote::{Remote, block_on};

/// The file is read, and its journal written, in pieces of this many bytes.
const PIECE_BYTES: usize = 1024 * 1024;
/// No ciphertext that an appliance takes is longer, bytes.
const MAX_CIPHERTEXT_BYTES: usize = 64 * 1024 * 1024;

#[derive(Args, Debug)]
pub(in crate::cli) struct FileArgs {
    #[command(flatten)]
    common: Common,
    /// A file of any kind with ciphertexts in it: a list, JSON, YAML, an SQL dump
    file: PathBuf,
    /// Write the new text here; the file itself is left as it is
    #[arg(long, value_name = "FILE", conflicts_with_all = ["in_place", "count", "retire"])]
    out: Option<PathBuf>,
    /// Replace the file, in one step
    #[arg(long, required_unless_present_any = ["out", "count"], conflicts_with = "count")]
    in_place: bool,
}

pub(in crate::cli) fn run(args: &FileArgs, remote: &Remote, format: Format) -> Result<(), Failure> {
    block_on(async {
        let rewrapper = Rewrapper::new(&args.common, remote).await?;
        if args.common.count {
            return rewrapper.tell(format, &count(&args.file)?, false);
        }
        // A link stays a link: what it leads to is replaced.
        let source =
            fs::canonicalize(&args.file).map_err(|error| Failure::file(&args.file, &error))?;
        let target = args.out.as_ref().unwrap_or(&source);
        let size = fs::metadata(&source).map_or(0, |metadata| metadata.len());
        let bar = format.bar(size, "rewrapping");
        let tally = rewrap(&rewrapper, &source, target, &bar).await?;
        bar.finish_and_clear();
        if args.common.retire {
            rewrapper.retire(&count(&source)?).await?;
        }
        rewrapper.tell(format, &tally, args.common.retire)
    })
}

/// Counts, changes nothing.
pub(super) fn count(path: &Path) -> Result<Tally, Failure> {
    let fail = |error: std::io::Error| Failure::file(path, &error);
    let mut tally = Tally::default();
    let mut pieces = Pieces::new(File::open(path).map_err(fail)?);
    while let Some(piece) = pieces.next(path)? {
        for found in scan::find(&piece) {
            tally.current(found.version);
        }
    }
    Ok(tally)
}

/// Rewraps what is older than the latest version. The target is replaced only when everything went
/// well, and only if anything changed.
pub(super) async fn rewrap(
    rewrapper: &Rewrapper<'_>,
    source: &Path,
    target: &Path,
    bar: &ProgressBar,
) -> Result<Tally, Failure> {
    let fail = |error: std::io::Error| Failure::file(source, &error);
    let file = File::open(source).map_err(fail)?;
    let identity = || {
        let common = rewrapper.common;
        Identity::of(&file, &common.name, common.bound(), rewrapper.latest).map_err(fail)
    };
    let before = identity()?;
    let mut partial = Partial::open(target, before.clone(), &file)
        .map_err(|error| Failure::file(target, &error))?;
    (&file)
        .seek(SeekFrom::Start(partial.progress.read))
        .map_err(fail)?;
    bar.inc(partial.progress.read);
    let mut pieces = Pieces::new(file.try_clone().map_err(fail)?);
    while let Some(piece) = pieces.next(source)? {
        let mut tally = Tally::default();
        let lines = partial.progress.lines;
        let place = |_, at: usize| {
            let line = lines + count_lines(piece.get(..at).unwrap_or_default()) + 1;
            format!("{}, line {line}", source.display())
        };
        let new = rewrapper
            .texts(&[(&piece, rewrapper.common.bound())], &mut tally, place)
            .await?
            .concat();
        partial
            .add(&new, piece.len() as u64, count_lines(&piece), &tally)
            .map_err(|error| Failure::file(target, &error))?;
        bar.inc(piece.len() as u64);
    }
    if identity()? != before {
        return Err(Failure::new(
            Exit::Failed,
            format!(
                "{} was changed meanwhile: nothing was written",
                source.display()
            ),
        )
        .next("run it again when nothing writes the file"));
    }
    let done = if partial.progress.tally.has_rewrapped() || source != target {
        partial.finish()
    } else {
        partial.discard()
    };
    done.map_err(|error| Failure::file(target, &error))
}

fn count_lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// A file in pieces, none of which ends within a ciphertext.
struct Pieces {
    file: File,
    /// What was read and waits for the rest.
    rest: Vec<u8>,
    ended: bool,
}

impl Pieces {
    fn new(file: File) -> Self {
        Self {
            file,
            rest: Vec::new(),
            ended: false,
        }
    }

    fn next(&mut self, path: &Path) -> Result<Option<Vec<u8>>, Failure> {
        while !self.ended {
            let read = (&self.file)
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut self.rest)
                .map_err(|error| Failure::file(path, &error))?;
            self.ended = read == 0;
            let settled = if self.ended {
                self.rest.len()
            } else {
                scan::settled(&self.rest)
            };
            if settled > 0 {
                let rest = self.rest.split_off(settled);
                return Ok(Some(std::mem::replace(&mut self.rest, rest)));
            }
            if self.rest.len() > MAX_CIPHERTEXT_BYTES {
                return Err(Failure::new(
                    Exit::Failed,
                    format!(
                        "{} has a ciphertext that is longer than any of the appliance's",
                        path.display()
                    ),
                ));
            }
        }
        Ok(None)
    }
}
