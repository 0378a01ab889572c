//! Optional client tokens, each bound to one identity: a token is worthless without the
//! certificate.
//!
//! The file holds the SHA-256 of each token. A plain hash is enough because [`Tokens::new_token`]
//! makes tokens of 256 random bits, which nobody can guess: the slow hashes made for passwords
//! would add nothing but time to each request.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::files;
use crate::hex;
use crate::identity::Identity;
use crate::parse_error;

/// What a token begins with, so that secret scanners and people know one when they see it.
pub const TOKEN_PREFIX: &str = "srt.";

const ID_FORM: &str =
    "use 1 to 64 letters, digits, '.', '-' and '_', and not `srt.` at its beginning";

/// The tokens file, parsed: SHA-256 of each token, never the token.
#[derive(Debug, Default)]
pub struct Tokens {
    by_identity: HashMap<String, Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    sha256: [u8; 32],
    info: TokenInfo,
}

/// A token that was presented and is good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its name in the file; what `lookup-self` calls the accessor.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
}

/// A fresh token: the client gets the one half, the tokens file the other.
pub struct NewToken {
    /// What the client sends as `X-Vault-Token`. Shown once, kept nowhere.
    pub token: Zeroizing<String>,
    /// A `[[token]]` table to append to the tokens file.
    pub entry: String,
}

/// Why a tokens file was refused, or no token could be made.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// Can't be read.
    #[error("the tokens file {path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Can't be understood.
    #[error("the tokens file {path} is not valid: {problem}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
    /// A new token can't have this name.
    #[error("{0:?} can't name a token: {ID_FORM}")]
    Id(String),
    /// The kernel gave no random bytes.
    #[error("no random bytes from the kernel")]
    Random,
    /// The entry could not be written down.
    #[error("the token's entry can't be written as TOML: {0}")]
    Entry(String),
}

impl Tokens {
    /// Reads and validates the whole file.
    pub fn load(path: &Path) -> Result<Self, TokensError> {
        let text = files::read_to_string(path, files::MAX_GENERATED_LIST).map_err(|source| {
            TokensError::Read {
                path: path.to_owned(),
                source,
            }
        })?;
        Self::parse(&text).map_err(|problem| TokensError::Invalid {
            path: path.to_owned(),
            problem,
        })
    }

    /// As [`Tokens::load`], from the file's text; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| parse_error::toml(text, &error))?;
        let (mut ids, mut hashes) = (HashSet::new(), HashSet::new());
        let mut tokens = Self::default();
        for token in file.tokens {
            if !ids.insert(token.id.0.clone()) {
                return Err(format!("two tokens have the id {:?}", token.id.0));
            }
            if !hashes.insert(token.sha256.0) {
                return Err(format!(
                    "the token {:?} has the same sha256 as another: each client gets a token of its own",
                    token.id.0
                ));
            }
            tokens
                .by_identity
                .entry(token.identity.0.as_str().to_owned())
                .or_default()
                .push(Entry {
                    sha256: token.sha256.0,
                    info: TokenInfo {
                        id: token.id.0,
                        created: token.created.0.as_second(),
                    },
                });
        }
        Ok(tokens)
    }

    /// The token's entry, if it exists and is bound to this identity; constant-time in the token.
    pub fn check(&self, token: &str, identity: &Identity) -> Option<TokenInfo> {
        let entries = self.by_identity.get(identity.as_str())?;
        let presented = Sha256::digest(token.as_bytes());
        // Looks at every entry of this identity, whichever fits.
        let mut found = u32::MAX;
        for (index, entry) in (0_u32..).zip(entries) {
            let fits = entry.sha256.ct_eq(presented.as_slice());
            found.conditional_assign(&index, fits);
        }
        entries
            .get(usize::try_from(found).ok()?)
            .map(|entry| entry.info.clone())
    }

    /// Makes a token of 256 random bits for `identity`.
    pub fn new_token(
        id: &str,
        identity: &Identity,
        description: Option<&str>,
    ) -> Result<NewToken, TokensError> {
        let id = TokenId::try_from(id.to_owned()).map_err(|_| TokensError::Id(id.to_owned()))?;
        let mut secret = Zeroizing::new([0_u8; 32]);
        getrandom::fill(secret.as_mut()).map_err(|_| TokensError::Random)?;
        // Room for all of it at once: growing would leave a copy of the first part behind.
        let mut token = Zeroizing::new(String::with_capacity(64));
        token.push_str(TOKEN_PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(secret.as_ref(), &mut token);
        let created = format!("{:.0}", jiff::Timestamp::now()).parse().map_err(
            |error: toml::value::DatetimeParseError| TokensError::Entry(error.to_string()),
        )?;
        let entry = toml::to_string(&NewFile {
            token: [NewEntry {
                id: &id.0,
                sha256: hex::encode(&Sha256::digest(token.as_bytes())),
                identity: identity.as_str(),
                created,
                description,
            }],
        })
        .map_err(|error| TokensError::Entry(error.to_string()))?;
        Ok(NewToken { token, entry })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "token", default)]
    tokens: Vec<FileEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    id: TokenId,
    sha256: Hash,
    identity: BoundIdentity,
    created: Created,
    #[serde(rename = "description")]
    _description: Option<String>,
}

#[derive(Serialize)]
struct NewFile<'a> {
    token: [NewEntry<'a>; 1],
}

#[derive(Serialize)]
struct NewEntry<'a> {
    id: &'a str,
    sha256: String,
    identity: &'a str,
    created: toml::value::Datetime,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct TokenId(String);

impl TryFrom<String> for TokenId {
    type Error = String;

    fn try_from(id: String) -> Result<Self, String> {
        let good = (1..=64).contains(&id.len())
            && !id.contains(TOKEN_PREFIX)
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
        if good {
            Ok(Self(id))
        } else {
            // Does not repeat it either.
            Err(format!("`id` names the token: {ID_FORM}"))
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Hash([u8; 32]);

impl TryFrom<String> for Hash {
    type Error = String;

    fn try_from(hex: String) -> Result<Self, String> {
        if hex.starts_with(TOKEN_PREFIX) {
            // Does not repeat it: an error message ends up in logs.
            return Err(
                "this is a token, not its SHA-256: take it out of the file, and replace it with one that was never written down"
                    .into(),
            );
        }
        let mut digest = [0; 32];
        match base16ct::mixed::decode(&hex, &mut digest) {
            Ok(bytes) if bytes.len() == 32 => Ok(Self(digest)),
            _ => Err("`sha256` is 64 hexadecimal digits: `printf %s TOKEN | sha256sum`".into()),
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct BoundIdentity(Identity);

impl TryFrom<String> for BoundIdentity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A token may stand here by mistake, so the message does not repeat it.
        text.parse().map(Self).map_err(|_| {
            "`identity` is not an identity: write spiffe://DOMAIN/PATH, dns:NAME, or spki:sha256: and 64 lower-case hex digits"
                .to_owned()
        })
    }
}

#[derive(Deserialize)]
#[serde(try_from = "toml::value::Datetime")]
struct Created(jiff::Timestamp);

impl TryFrom<toml::value::Datetime> for Created {
    type Error = String;

    fn try_from(datetime: toml::value::Datetime) -> Result<Self, String> {
        datetime.to_string().parse().map(Self).map_err(|_| {
            format!("`created` is {datetime}: write a time with its zone, as 2026-01-31T12:00:00Z")
        })
    }
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn a_new_token_is_good_for_its_identity_only() {
        let vault = identity("spiffe://example.org/vault/0");
        let other = identity("dns:other.example.org");
        let made = Tokens::new_token("vault-0", &vault, Some("eu \"one\"")).unwrap();
        let second = Tokens::new_token("vault-1", &vault, None).unwrap();
        let third = Tokens::new_token("other", &other, None).unwrap();
        assert_eq!(made.token.len(), TOKEN_PREFIX.len() + 43);
        assert!(!made.entry.contains(made.token.as_str()));
        let tokens = Tokens::parse(&format!(
            "{}\n{}\n{}",
            made.entry, second.entry, third.entry
        ))
        .unwrap();

        let info = tokens.check(&made.token, &vault).unwrap();
        assert_eq!(info.id, "vault-0");
        assert!((jiff::Timestamp::now().as_second() - info.created).abs() < 5);
        assert_eq!(tokens.check(&second.token, &vault).unwrap().id, "vault-1");
        assert_eq!(tokens.check(&made.token, &other), None);
        assert_eq!(tokens.check(&third.token, &vault), None);
        for wrong in ["", "srt.", &made.token[..made.token.len() - 1]] {
            assert_eq!(tokens.check(wrong, &vault), None);
        }
        assert_eq!(tokens.check(&made.token, &identity("dns:nobody")), None);
    }

    #[test]
    fn a_token_in_the_file_is_refused_wherever_it_stands_and_never_told_of() {
        let made = Tokens::new_token("a", &identity("dns:a"), None).unwrap();
        let token = made.token.as_str();
        let quoted = format!("\"{token}\"");
        let lines: Vec<&str> = made.entry.lines().collect();
        let mut texts = vec![
            format!("{}\n{token}\n", made.entry),
            format!("{}\ntoken = {quoted}\n", made.entry),
            format!("{}\n{quoted} = 1\n", made.entry),
            format!("{token} = 1\n{}\n", made.entry),
            format!("{}\n[{token}]\n", made.entry),
        ];
        for (number, line) in lines.iter().enumerate() {
            let Some((name, _)) = line.split_once(" = ") else {
                continue;
            };
            for value in [
                token,
                &quoted,
                &format!("[{quoted}]"),
                &format!("\"{token}"),
            ] {
                let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
                lines[number] = format!("{name} = {value}");
                texts.push(lines.join("\n"));
            }
        }
        assert!(texts.len() >= 21, "{texts:?}");
        for text in texts {
            let told = Tokens::parse(&text).err().unwrap_or_default();
            assert!(!told.contains(&token[4..20]), "{text}: {told}");
            // Free text for people, which goes nowhere.
            assert!(!told.is_empty() || text.contains("description"), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        let sha256 = "0a".repeat(32);
        let good = format!(
            "[[token]]\nid = \"a\"\nsha256 = \"{sha256}\"\nidentity = \"dns:a\"\ncreated = 2026-01-31T12:00:00Z\n"
        );
        assert!(Tokens::parse(&good).is_ok());
        for (line, from, to) in [
            (2, "\"a\"\n", "\"a b\"\n"),
            (3, sha256.as_str(), "0a0a"),
            (4, "dns:a", "a"),
            (5, "2026-01-31T12:00:00Z", "2026-01-31T12:00:00"),
            (5, "2026-01-31T12:00:00Z", "\"yesterday\""),
            (5, "created", "creation"),
        ] {
            let error = Tokens::parse(&good.replacen(from, to, 1)).err().unwrap();
            assert!(error.contains(&format!("line {line},")), "{to}: {error}");
        }
        assert!(Tokens::parse(&format!("{good}{good}")).is_err());
        let same_hash = good.replacen("\"a\"", "\"b\"", 1);
        assert!(Tokens::parse(&format!("{good}{same_hash}")).is_err());
    }

    #[test]
    fn a_token_in_place_of_its_hash_is_not_repeated() {
        let error = Tokens::parse(
            "[[token]]\nid='a'\nsha256='srt.abc'\nidentity='dns:a'\ncreated=2026-01-31T12:00:00Z",
        )
        .err()
        .unwrap();
        assert!(error.contains("not its SHA-256"), "{error}");
        assert!(!error.contains("srt.abc"), "{error}");
    }

    #[test]
    fn the_shipped_example_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/tokens.toml");
        let tokens = Tokens::load(&path).unwrap();
        let operator = identity("spiffe://example.org/operator/alice");
        assert_eq!(
            tokens.check("srt.example", &operator).map(|info| info.id),
            None,
            "the example must hold no usable token"
        );
    }
}
