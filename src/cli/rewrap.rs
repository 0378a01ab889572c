//! `strongroom key rewrap-all`: a file of ciphertexts, encrypted again with the latest key version.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::exit::{Exit, Failure};
use super::files;
use super::output::Format;
use super::remote::{Remote, block_on};

#[derive(Args, Debug)]
pub(super) struct RewrapArgs {
    /// The key's name
    name: String,
    /// The ciphertexts, one a line; empty lines are kept
    file: PathBuf,
    /// Write the new ciphertexts here; nothing is written unless every line was rewrapped
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "in_place",
        conflicts_with = "in_place"
    )]
    out: Option<PathBuf>,
    /// Replace the file, in one step
    #[arg(long)]
    in_place: bool,
    /// Ciphertexts in one request
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
}

pub(super) fn run(args: &RewrapArgs, remote: &Remote, format: Format) -> Result<(), Failure> {
    let text = files::read(&args.file)?;
    let text = std::str::from_utf8(&text)
        .map_err(|_| Failure::new(Exit::Usage, format!("{} is not text", args.file.display())))?;
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let places: Vec<usize> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(place, _)| place)
        .collect();
    let bar = format.bar(places.len() as u64, "rewrapping");
    block_on(async {
        let client = remote.client()?;
        let path = remote.path(&format!("rewrap/{}", args.name));
        for places in places.chunks(usize::from(args.batch)) {
            let batch: Vec<Value> = places
                .iter()
                .filter_map(|place| lines.get(*place))
                .map(|line| json!({"ciphertext": line.trim()}))
                .collect();
            let body = json!({"batch_input": batch});
            let answer: Answer = client.data("POST", &path, Some(&body)).await?;
            if answer.batch_results.len() != places.len() {
                return Err(Failure::new(
                    Exit::Failed,
                    "the appliance answered with another number of ciphertexts than it was given",
                ));
            }
            for (place, result) in places.iter().zip(answer.batch_results) {
                let rewrapped = result.ciphertext(*place + 1, &args.file)?;
                if let Some(line) = lines.get_mut(*place) {
                    *line = rewrapped;
                }
            }
            bar.inc(places.len() as u64);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let mut out = lines.join("\n");
    out.push('\n');
    let target = args.out.as_ref().unwrap_or(&args.file);
    files::replace(target, out.as_bytes())?;
    format.either(
        &format!(
            "{} ciphertexts rewrapped into {}",
            places.len(),
            target.display()
        ),
        &json!({"rewrapped": places.len(), "file": target}),
    )
}

#[derive(Deserialize)]
struct Answer {
    batch_results: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    #[serde(default)]
    ciphertext: String,
    #[serde(default)]
    error: String,
}

impl Item {
    fn ciphertext(self, line: usize, file: &std::path::Path) -> Result<String, Failure> {
        if self.error.is_empty() && !self.ciphertext.is_empty() {
            return Ok(self.ciphertext);
        }
        Err(Failure::new(
            Exit::Failed,
            format!("{}, line {line}: {}", file.display(), self.error),
        )
        .next("nothing was written; correct or remove that line and run it again"))
    }
}
