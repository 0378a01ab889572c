//! The transcripts of the ceremonies before, which a later one's directory holds too.

use std::fs;
use std::path::Path;

use super::RunError;
use crate::transcript;

/// Copies of the transcripts that came before, oldest first: `0001.jsonl`, …
pub(super) const CHAIN_DIRECTORY: &str = "chain";

/// The transcripts that a ceremony in this directory goes on from, oldest first; none for an
/// initial ceremony.
pub(super) fn previous(folder: &Path) -> Result<Vec<Vec<u8>>, RunError> {
    let chain = folder.join(CHAIN_DIRECTORY);
    if !chain.exists() {
        return Ok(Vec::new());
    }
    let fail = |error| RunError::file(&chain, error);
    let mut paths = fs::read_dir(&chain)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(fail)?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    paths.sort();
    paths
        .iter()
        .map(|path| transcript::read(path).map_err(|error| RunError::file(path, error)))
        .collect()
}
