//! Private keys on a PKCS#11 token of the participant's own. The key file is then a TOML reference
//! to it.

use std::path::{Path, PathBuf};

use p256::PublicKey;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde::{Deserialize, Serialize};
use strongroom_hsm::ceremony::ParticipantToken;
use strongroom_hsm::{PinSource, SecretPin, TokenSelector};
use zeroize::Zeroizing;

use super::super::encoding::hex;
use super::{CeremonyError, Participant, ParticipantKey, PrivateKeys, Unlock, file};

/// How the keys are found again; the serial number, since labels can be changed.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    module: PathBuf,
    token_label: String,
    token_serial: String,
    /// `CKA_ID`, hexadecimal.
    key_id: String,
}

/// Makes both keys on a token, and writes FILE (the reference to it) and FILE.pub.
///
/// # Errors
/// [`CeremonyError::Token`], [`CeremonyError::Write`], [`CeremonyError::Participant`] for the name.
pub fn create(
    name: &str,
    path: &Path,
    module: &Path,
    selector: &TokenSelector,
    pin: &Zeroizing<String>,
) -> Result<ParticipantKey, CeremonyError> {
    // Before anything is made on the token: keys that no file refers to would stay there for good.
    super::check_name(name).map_err(CeremonyError::Participant)?;
    file::check_free(path)?;
    let token = ParticipantToken::make_keys(module, selector, &source(pin), name)?;
    let participant = Participant::new(name, &token.keys().signing, &token.keys().agreement)?;
    let reference = Reference {
        module: module.to_owned(),
        token_label: token.token().label.clone(),
        token_serial: token.token().serial.clone(),
        key_id: hex(&token.keys().id),
    };
    let text = toml::to_string(&reference)
        .map_err(|error| CeremonyError::Key(format!("the reference to the token: {error}")))?;
    file::write_new(
        path,
        &participant,
        &format!("# {name}'s keys are on this token.\n{text}"),
    )?;
    Ok(ParticipantKey::new(participant, Box::new(OnToken(token))))
}

impl Reference {
    /// What a key file holds, if it is one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        toml::from_str(text).ok()
    }

    pub(super) fn open(
        &self,
        participant: Participant,
        unlock: &mut dyn FnMut(Unlock<'_>) -> Result<Zeroizing<String>, CeremonyError>,
    ) -> Result<ParticipantKey, CeremonyError> {
        let pin = unlock(Unlock::Pin {
            name: participant.name(),
            token: &self.token_label,
        })?;
        let mut id = vec![0; self.key_id.len() / 2];
        base16ct::lower::decode(&self.key_id, &mut id).map_err(|_| {
            CeremonyError::Key(format!(
                "the key file's key_id {:?} is not hexadecimal: it was changed",
                self.key_id
            ))
        })?;
        let selector = TokenSelector::Serial(self.token_serial.clone());
        let token = ParticipantToken::open(&self.module, &selector, &source(&pin), &id)?;
        let keys = token.keys();
        if keys.signing != participant.signing_spki()
            || keys.agreement != participant.agreement_spki()
        {
            return Err(CeremonyError::Key(format!(
                "the keys on token {:?} are not those of {}'s .pub file: take the pair that was made together",
                self.token_label,
                participant.name()
            )));
        }
        Ok(ParticipantKey::new(participant, Box::new(OnToken(token))))
    }
}

struct OnToken(ParticipantToken);

impl PrivateKeys for OnToken {
    fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], CeremonyError> {
        Ok(self.0.sign_digest(digest)?)
    }

    fn agree(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, CeremonyError> {
        Ok(self.0.agree(peer.to_sec1_point(false).as_bytes())?)
    }
}

fn source(pin: &Zeroizing<String>) -> PinSource {
    PinSource::Given(SecretPin::new(Zeroizing::new(pin.as_bytes().to_vec())))
}
