//! A participant: two public keys and a name; and the private keys, in an encrypted file or on a
//! token of their own.

mod file;
mod token;

use std::path::Path;

use p256::PublicKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use serde::{Deserialize, Serialize};
use strongroom_core::{files, parse_error};
use zeroize::Zeroizing;

use super::CeremonyError;
use super::encoding::{base64, hex, sha256, unbase64};

pub(super) use file::new_key;
pub use file::{KeyFile, MIN_PASSPHRASE_CHARS, public_path};
pub use token::create as create_on_token;

/// Names are printed, read aloud and compared: short, and without anything that could be taken for
/// something else.
const MAX_NAME: usize = 64;

/// What everybody may know of a participant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    name: String,
    signing: VerifyingKey,
    agreement: PublicKey,
    signing_spki: Vec<u8>,
    agreement_spki: Vec<u8>,
}

/// The public file, and the same fields of a plan.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublicFile {
    pub(super) name: String,
    pub(super) signing_key: String,
    pub(super) agreement_key: String,
}

impl Participant {
    /// From a name and two `SubjectPublicKeyInfo`, DER.
    ///
    /// # Errors
    /// [`CeremonyError::Participant`] for a name that can't be printed, a key that is not P-256, or
    /// one key for both purposes.
    pub fn new(
        name: &str,
        signing_spki: &[u8],
        agreement_spki: &[u8],
    ) -> Result<Self, CeremonyError> {
        check_name(name).map_err(CeremonyError::Participant)?;
        let refuse = |what: &str| {
            CeremonyError::Participant(format!(
                "{name}: the {what} key is not a P-256 public key (SubjectPublicKeyInfo, base64): copy it from the .pub file"
            ))
        };
        // Only the canonical encoding: the fingerprint is a hash of these bytes, and must not have
        // two values for one key.
        let decode = |spki: &[u8]| {
            PublicKey::from_public_key_der(spki).ok().filter(|key| {
                key.to_public_key_der()
                    .is_ok_and(|der| der.as_bytes() == spki)
            })
        };
        let signing = decode(signing_spki).ok_or_else(|| refuse("signing"))?;
        let agreement = decode(agreement_spki).ok_or_else(|| refuse("agreement"))?;
        if signing == agreement {
            return Err(CeremonyError::Participant(format!(
                "{name}: the signing key and the agreement key are the same; each purpose has a key of its own (NIST SP 800-57): make new ones with `strongroom ceremony custodian new`"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            signing: signing.into(),
            agreement,
            signing_spki: signing_spki.to_vec(),
            agreement_spki: agreement_spki.to_vec(),
        })
    }

    /// Reads a public file (`FILE.pub`).
    ///
    /// # Errors
    /// [`CeremonyError::Read`], [`CeremonyError::Participant`].
    pub fn load(path: &Path) -> Result<Self, CeremonyError> {
        let text = files::read_to_string(path, files::MAX_WRITTEN_BY_HAND)
            .map_err(|error| CeremonyError::read(path, error))?;
        let file: PublicFile = toml::from_str(&text).map_err(|error| {
            let problem = parse_error::toml(&text, &error);
            CeremonyError::Participant(format!(
                "{} is not a participant's public file: {problem}",
                path.display()
            ))
        })?;
        Self::from_file(&file)
    }

    pub(super) fn from_file(file: &PublicFile) -> Result<Self, CeremonyError> {
        // What is no base64 is not a key either; the message is the same.
        Self::new(
            &file.name,
            &unbase64(&file.signing_key).unwrap_or_default(),
            &unbase64(&file.agreement_key).unwrap_or_default(),
        )
    }

    pub(super) fn to_file(&self) -> PublicFile {
        PublicFile {
            name: self.name.clone(),
            signing_key: base64(&self.signing_spki),
            agreement_key: base64(&self.agreement_spki),
        }
    }

    /// The text of the public file.
    pub fn to_toml(&self) -> String {
        let file = self.to_file();
        format!(
            "# A ceremony participant's public keys; the fingerprint is {}.\nname = {}\nsigning_key = \"{}\"\nagreement_key = \"{}\"\n",
            self.fingerprint(),
            toml::Value::String(file.name),
            file.signing_key,
            file.agreement_key
        )
    }

    /// How people call them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of the signing key's `SubjectPublicKeyInfo`, hexadecimal: what plans, shares and
    /// transcripts call them.
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&self.signing_spki))
    }

    /// The signing key's `SubjectPublicKeyInfo`, DER.
    pub fn signing_spki(&self) -> &[u8] {
        &self.signing_spki
    }

    /// The agreement key's `SubjectPublicKeyInfo`, DER.
    pub fn agreement_spki(&self) -> &[u8] {
        &self.agreement_spki
    }

    /// The agreement key: what shares are encrypted to.
    pub fn agreement_key(&self) -> &PublicKey {
        &self.agreement
    }

    /// Whether this is their signature (r || s) over a SHA-256 digest.
    pub fn verifies(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.signing.verify_prehash(digest, &signature).is_ok())
    }
}

/// What a name must be, or why this one is none.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || " .,-_'()".contains(c) || is_written(c);
    if name.is_empty() || name.trim() != name || name.chars().count() > MAX_NAME {
        return Err(format!(
            "the name {name:?} must have 1 to {MAX_NAME} characters, and no space at its ends"
        ));
    }
    match name.chars().find(|c| !fine(*c)) {
        Some(bad) => Err(format!(
            "the name {name:?} holds {bad:?}: use letters, digits, spaces and . , - _ ' ( )"
        )),
        None => Ok(()),
    }
}

/// Beyond ASCII a name may have what people write names with: anything but what can't be seen,
/// turns the direction of writing, or is a sign.
///
/// By ranges, not by a property of Unicode: those change with its version, and a plan that one
/// program takes must not be refused by another. `docs/transcript-format.md` has the list.
fn is_written(c: char) -> bool {
    let is_none = matches!(
        c,
        '\0'..='\u{bf}'
            | '\u{d7}'
            | '\u{f7}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{1680}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{2000}'..='\u{2bff}'
            | '\u{2e00}'..='\u{2e7f}'
            | '\u{2ff0}'..='\u{3004}'
            | '\u{3008}'..='\u{3020}'
            | '\u{3164}'
            | '\u{e000}'..='\u{f8ff}'
            | '\u{fdd0}'..='\u{fdef}'
            | '\u{fe00}'..='\u{fe6f}'
            | '\u{feff}'..='\u{ff0f}'
            | '\u{ff1a}'..='\u{ff20}'
            | '\u{ff3b}'..='\u{ff40}'
            | '\u{ff5b}'..='\u{ff65}'
            | '\u{ffa0}'
            | '\u{ffe0}'..='\u{ffff}'
            | '\u{1d000}'..='\u{1d7ff}'
            | '\u{1f000}'..='\u{1faff}'
            | '\u{e0000}'..
    );
    !is_none || matches!(c, '\u{aa}' | '\u{ba}')
}

/// What only the participant can do, wherever their private keys are.
pub trait PrivateKeys: Send {
    /// ECDSA over a SHA-256 digest with the signing key: r || s.
    ///
    /// # Errors
    /// [`CeremonyError::Key`], [`CeremonyError::Token`].
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError>;

    /// ECDH with the agreement key: the shared point's x coordinate.
    ///
    /// # Errors
    /// [`CeremonyError::Key`], [`CeremonyError::Token`].
    fn agree(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError>;
}

/// What is asked for to open a participant's private keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlock<'a> {
    /// The passphrase of a key file.
    Passphrase {
        /// Whose.
        name: &'a str,
        /// Of which file.
        path: &'a Path,
    },
    /// The PIN of a token.
    Pin {
        /// Whose.
        name: &'a str,
        /// The token's label.
        token: &'a str,
    },
}

/// A participant with their private keys.
pub struct ParticipantKey {
    participant: Participant,
    keys: Box<dyn PrivateKeys>,
}

impl ParticipantKey {
    /// Joins public and private.
    pub fn new(participant: Participant, keys: Box<dyn PrivateKeys>) -> Self {
        Self { participant, keys }
    }

    /// Reads a key file and its `.pub`; `unlock` is asked once for the passphrase or PIN.
    ///
    /// # Errors
    /// [`CeremonyError::Read`], [`CeremonyError::Key`] for a wrong passphrase or a file that is
    /// none, [`CeremonyError::Token`], and whatever `unlock` fails with.
    pub fn load(
        path: &Path,
        unlock: &mut dyn FnMut(Unlock<'_>) -> Result<Zeroizing<String>, CeremonyError>,
    ) -> Result<Self, CeremonyError> {
        file::load(path, unlock)
    }

    /// The public half.
    pub fn participant(&self) -> &Participant {
        &self.participant
    }

    /// Signs a SHA-256 digest: r || s.
    ///
    /// # Errors
    /// [`CeremonyError::Key`], [`CeremonyError::Token`].
    pub fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError> {
        let signature = self.keys.sign_digest(digest)?;
        // A token that signs with some other key must not spoil a document that others have signed.
        if self.participant.verifies(digest, &signature) {
            Ok(signature)
        } else {
            Err(CeremonyError::Key(format!(
                "the private key does not belong to {}'s public file: take the pair that was made together",
                self.participant.name
            )))
        }
    }

    /// ECDH with the agreement key: the shared point's x coordinate.
    ///
    /// # Errors
    /// [`CeremonyError::Key`], [`CeremonyError::Token`].
    pub(super) fn agree(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError> {
        self.keys.agree(peer)
    }
}

impl std::fmt::Debug for ParticipantKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParticipantKey")
            .field("participant", &self.participant.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
