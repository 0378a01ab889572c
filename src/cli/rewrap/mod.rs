//! `strongroom key rewrap-file`, `rewrap-dir`, `rewrap-postgres`: what older key versions
//! encrypted, encrypted again with the latest one.
//!
//! A ciphertext is found wherever `vault:vN:…` stands, in a text of any kind; everything around it
//! stays as it is. What the latest version encrypted is left alone, so a command that was
//! interrupted is simply run again. A version is retired (`--retire`) only after a second
//! look has found no ciphertext of an older one.

mod dir;
mod file;
mod journal;
mod postgres;
mod scan;
mod tally;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use strongroom_client::Client;
use strongroom_core::keyring::KeyName;

use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::Remote;

pub(super) use dir::{DirArgs, run as run_dir};
pub(super) use file::{FileArgs, run as run_file};
pub(super) use postgres::{PostgresArgs, run as run_postgres};

use tally::Tally;

/// What all three take.
#[derive(Args, Debug)]
pub(super) struct Common {
    /// Name of the key
    name: KeyName,
    /// Count the ciphertexts of each version, and write nothing
    #[arg(long)]
    count: bool,
    /// Context of a derived key, base64
    #[arg(long, value_name = "BASE64")]
    context: Option<String>,
    /// Associated data that the ciphertexts are bound to, base64
    #[arg(long, value_name = "BASE64")]
    associated_data: Option<String>,
    /// Skip ciphertexts that the key does not decrypt, instead of stopping
    #[arg(long)]
    skip_foreign: bool,
    /// Number of ciphertexts in one request
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch: u16,
    /// Raise min_decryption_version to the latest version afterwards, if no older ciphertext is
    /// left; use only where nothing else holds ciphertexts of this key
    #[arg(long, conflicts_with_all = ["count", "skip_foreign"])]
    retire: bool,
}

/// What the ciphertexts of a text are bound to, base64.
#[derive(Clone, Copy, Debug, Default)]
struct Binding<'a> {
    context: Option<&'a str>,
    associated_data: Option<&'a str>,
}

impl Common {
    /// What all are bound to.
    fn bound(&self) -> Binding<'_> {
        Binding {
            context: self.context.as_deref(),
            associated_data: self.associated_data.as_deref(),
        }
    }
}

/// Rewraps ciphertexts of one key.
struct Rewrapper<'a> {
    common: &'a Common,
    client: Client,
    rewrap_path: String,
    key_path: String,
    /// When the command began.
    latest: u32,
}

impl<'a> Rewrapper<'a> {
    async fn new(common: &'a Common, remote: &Remote) -> Result<Self, Failure> {
        let client = remote.client()?;
        let key_path = remote.path(&format!("keys/{}", common.name));
        let answer = client.request("GET", &key_path, None).await?;
        // Vault answers the read of a key that is not there with 404 and no words.
        if answer.status == hyper::StatusCode::NOT_FOUND && answer.errors().is_empty() {
            return Err(
                Failure::new(Exit::Failed, format!("there is no key {}", common.name))
                    .next("`strongroom key list` shows the keys that there are"),
            );
        }
        let key: Key = answer.accepted()?.data().map_err(|error| {
            Failure::new(Exit::Failed, format!("the answer is not a key: {error}"))
        })?;
        Ok(Self {
            common,
            client,
            rewrap_path: remote.path(&format!("rewrap/{}", common.name)),
            key_path,
            latest: key.latest_version,
        })
    }

    /// The texts, each with what it is bound to, with every ciphertext of an older version
    /// encrypted again. `place` says where a byte of a text is, for an error.
    async fn texts(
        &self,
        texts: &[(&[u8], Binding<'_>)],
        tally: &mut Tally,
        place: impl Fn(usize, usize) -> String,
    ) -> Result<Vec<Vec<u8>>, Failure> {
        let mut older = Vec::new();
        for (index, (text, bound)) in texts.iter().enumerate() {
            for found in scan::find(text) {
                if found.version < self.latest {
                    older.push((index, *bound, found));
                } else {
                    tally.current(found.version);
                }
            }
        }
        let old: Vec<_> = older
            .iter()
            .map(|(_, bound, found)| (found.text, *bound))
            .collect();
        let mut answers = older.iter().zip(self.rewrap(&old).await?).peekable();
        let mut new = Vec::with_capacity(texts.len());
        for (index, (text, _)) in texts.iter().enumerate() {
            let mut out = Vec::with_capacity(text.len());
            let mut copied = 0;
            while let Some(((_, _, found), answer)) =
                answers.next_if(|((of, _, _), _)| *of == index)
            {
                match answer {
                    Ok(ciphertext) => {
                        tally.rewrapped(scan::version(&ciphertext).ok_or_else(|| {
                            Failure::new(Exit::Failed, "the appliance answered with no ciphertext")
                        })?);
                        out.extend_from_slice(text.get(copied..found.start).unwrap_or_default());
                        out.extend_from_slice(ciphertext.as_bytes());
                        copied = found.start + found.text.len();
                    }
                    Err(_) if self.common.skip_foreign => tally.refused(found.version),
                    Err(why) => {
                        return Err(Failure::new(
                            Exit::Failed,
                            format!("{}: {why}", place(index, found.start)),
                        )
                        .next("if it is of another key, leave it as it is with --skip-foreign"));
                    }
                }
            }
            out.extend_from_slice(text.get(copied..).unwrap_or_default());
            new.push(out);
        }
        Ok(new)
    }

    /// Each ciphertext encrypted again, or why not.
    async fn rewrap(
        &self,
        ciphertexts: &[(&str, Binding<'_>)],
    ) -> Result<Vec<Result<String, String>>, Failure> {
        let mut results = Vec::with_capacity(ciphertexts.len());
        for some in ciphertexts.chunks(usize::from(self.common.batch)) {
            let batch: Vec<Value> = some
                .iter()
                .map(|(ciphertext, bound)| {
                    // Null is none.
                    json!({
                        "ciphertext": ciphertext,
                        "context": bound.context,
                        "associated_data": bound.associated_data,
                    })
                })
                .collect();
            let body = json!({ "batch_input": batch });
            let answer: Answer = self
                .client
                .data("POST", &self.rewrap_path, Some(&body))
                .await?;
            if answer.batch_results.len() != some.len() {
                return Err(Failure::new(
                    Exit::Failed,
                    "the appliance answered with another number of ciphertexts than it was given",
                ));
            }
            results.extend(answer.batch_results.into_iter().map(Item::ciphertext));
        }
        Ok(results)
    }

    /// Raises `min_decryption_version`, if `seen` (a look at what is there now) has nothing older
    /// than the version that the command began with.
    async fn retire(&self, seen: &Tally) -> Result<(), Failure> {
        if let Some((version, count)) = seen.older_than(self.latest) {
            return Err(Failure::new(
                Exit::Failed,
                format!(
                    "nothing is retired: {count} ciphertexts of version {version} are there still"
                ),
            )
            .next("run it again; if they come back, something still writes with an old version"));
        }
        let body = json!({ "min_decryption_version": self.latest });
        self.client
            .request("POST", &format!("{}/config", self.key_path), Some(&body))
            .await?
            .accepted()?;
        Ok(())
    }

    /// Says what came of it.
    fn tell(&self, format: Format, tally: &Tally, retired: bool) -> Result<(), Failure> {
        let mut text = tally.to_string();
        if retired {
            text = format!("{text}; versions below {} are retired", self.latest);
        }
        let mut value = tally.to_json();
        if let Some(fields) = value.as_object_mut() {
            fields.insert("latest_version".to_owned(), json!(self.latest));
            fields.insert("retired".to_owned(), json!(retired));
        }
        format.either(&text, &value)
    }
}

#[derive(Deserialize)]
struct Key {
    latest_version: u32,
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
    fn ciphertext(self) -> Result<String, String> {
        if self.error.is_empty() && !self.ciphertext.is_empty() {
            Ok(self.ciphertext)
        } else {
            Err(self.error)
        }
    }
}
