//! A participant's own token, a smart card say: a key pair that signs and one that agrees on keys.
//!
//! One purpose a key (SP 800-57 part 1, 5.2). The four objects are found again by their common
//! `CKA_ID`.

mod pair;

use std::path::Path;
use std::sync::Arc;

use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_VALUE, CKM_ECDH1_DERIVE, CKM_ECDSA};
use p256::PublicKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::{PinSource, TokenSelector};
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::module::Module;
use crate::selector::TokenFilter;
use crate::types::TokenIdentity;
use crate::watched::{Access, Watch, WatchedSession};
use pair::{Found, PURPOSES, Purpose, find_keys, make_pair};

/// The public halves, and how to find the private ones again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParticipantKeys {
    /// `CKA_ID` of all four objects: 16 random bytes.
    pub id: Vec<u8>,
    /// ECDSA P-256: `SubjectPublicKeyInfo`, DER.
    pub signing: Vec<u8>,
    /// ECDH P-256: `SubjectPublicKeyInfo`, DER.
    pub agreement: Vec<u8>,
}

/// A participant's token, logged in until this is dropped.
pub struct ParticipantToken {
    connection: Connection,
    token: TokenIdentity,
    keys: ParticipantKeys,
    signing: ObjectHandle,
    agreement: ObjectHandle,
}

/// A session and the module under it; both end with it.
struct Connection {
    module: Module,
    watched: Option<WatchedSession>,
}

impl ParticipantToken {
    /// Makes a pair for each purpose on an initialized token and tries both. `name` goes into the
    /// labels, for people. Pairs of other ceremonies on the same token stay as they are.
    pub fn make_keys(
        module: &Path,
        selector: &TokenSelector,
        pin: &PinSource,
        name: &str,
    ) -> Result<Self, HsmError> {
        let attempt = || {
            let (connection, token) = connect(module, selector, pin)?;
            let watched = connection.watched()?;
            let mut id = vec![0; 16];
            watched.session().generate_random_slice(&mut id)?;
            let mut made = Vec::new();
            let result = PURPOSES
                .into_iter()
                .try_for_each(|purpose| {
                    make_pair(watched, purpose, &id, name).map(|pair| made.extend(pair))
                })
                .and_then(|()| find_keys(watched, &id))
                .and_then(|found| try_keys(watched, &found).map(|()| found));
            if result.is_err() {
                for object in made {
                    if let Err(error) = watched.session().destroy_object(object) {
                        tracing::warn!(%error, "a key that can't be used is left on the token");
                    }
                }
            }
            let found = result?;
            Ok(Self::new(connection, token, found))
        };
        attempt().map_err(Fault::into_error)
    }

    /// Finds the pairs with that `CKA_ID` again and checks their attributes.
    pub fn open(
        module: &Path,
        selector: &TokenSelector,
        pin: &PinSource,
        id: &[u8],
    ) -> Result<Self, HsmError> {
        let attempt = || {
            let (connection, token) = connect(module, selector, pin)?;
            let found = find_keys(connection.watched()?, id)?;
            Ok(Self::new(connection, token, found))
        };
        attempt().map_err(Fault::into_error)
    }

    /// Which token: its serial number finds it again.
    pub fn token(&self) -> &TokenIdentity {
        &self.token
    }

    /// The public halves.
    pub fn keys(&self) -> &ParticipantKeys {
        &self.keys
    }

    /// ECDSA over a SHA-256 digest: r || s.
    pub fn sign_digest(&self, digest: &[u8; 32]) -> Result<[u8; 64], HsmError> {
        self.connection
            .watched()
            .and_then(|watched| sign(watched, self.signing, digest))
            .map_err(Fault::into_error)
    }

    /// ECDH with a peer's public key, a SEC1 point: the shared x coordinate.
    pub fn agree(&self, peer: &[u8]) -> Result<Zeroizing<[u8; 32]>, HsmError> {
        // Checked here, whatever the token checks: a point off the curve would tell of the private
        // key.
        let peer = PublicKey::from_sec1_bytes(peer)
            .map_err(|_| HsmError::InvalidKey("the peer's is not a point on P-256".to_owned()))?;
        self.connection
            .watched()
            .and_then(|watched| agree(watched, self.agreement, &peer))
            .map_err(Fault::into_error)
    }

    fn new(connection: Connection, token: TokenIdentity, found: Found) -> Self {
        Self {
            connection,
            token,
            keys: found.keys,
            signing: found.signing,
            agreement: found.agreement,
        }
    }
}

impl Connection {
    fn watched(&self) -> Result<&WatchedSession, Fault> {
        // Only `drop` takes it.
        self.watched
            .as_ref()
            .ok_or_else(|| HsmError::Unavailable("the session is closed".to_owned()).into())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(watched) = self.watched.take() {
            watched.close();
        }
        self.module.release(false);
    }
}

fn connect(
    module: &Path,
    selector: &TokenSelector,
    pin: &PinSource,
) -> Result<(Connection, TokenIdentity), Fault> {
    let wanted = TokenFilter::new(selector)?;
    let mut connection = Connection {
        module: Module::acquire(module)?,
        watched: None,
    };
    let library = connection.module.library();
    let found = wanted.find(&library.raw)?;
    let offered = library.raw.mechanisms(found.slot)?;
    for (mechanism, name) in [
        (CKM_ECDSA, "CKM_ECDSA"),
        (CKM_ECDH1_DERIVE, "CKM_ECDH1_DERIVE"),
    ] {
        if !offered.contains(&mechanism) {
            return Err(HsmError::Unsupported(name.to_owned()).into());
        }
    }
    if found.info.user_pin_locked() {
        return Err(HsmError::Pin("CKF_USER_PIN_LOCKED".to_owned()).into());
    }
    let watched = WatchedSession::open(library, found.slot, Arc::new(Watch::default()))?;
    let login = Access::new(pin.clone()).login(&watched);
    connection.watched = Some(watched);
    login?;
    Ok((connection, found.identity))
}

/// Pairwise: each private key belongs to the public key that others will use.
fn try_keys(watched: &WatchedSession, found: &Found) -> Result<(), Fault> {
    let failed = |purpose: Purpose| Fault::from(HsmError::SelfTest(purpose.name().to_owned()));
    let digest: [u8; 32] = Sha256::digest(b"Strongroom participant's key").into();
    let signature = sign(watched, found.signing, &digest)?;
    let good = VerifyingKey::from_public_key_der(&found.keys.signing)
        .ok()
        .zip(Signature::from_slice(&signature).ok())
        .is_some_and(|(key, signature)| key.verify_prehash(&digest, &signature).is_ok());
    if !good {
        return Err(failed(Purpose::Signing));
    }
    // Both ways around with a key of a moment.
    let mut bytes = Zeroizing::new([0; 32]);
    watched.session().generate_random_slice(&mut *bytes)?;
    let own = PublicKey::from_public_key_der(&found.keys.agreement)
        .map_err(|_| failed(Purpose::Agreement))?;
    let ours = p256::SecretKey::from_slice(&*bytes).map_err(|_| failed(Purpose::Agreement))?;
    let expected = (own.to_projective() * *ours.to_nonzero_scalar()).to_affine();
    let answer = agree(watched, found.agreement, &ours.public_key())?;
    let same = expected
        .to_sec1_point(false)
        .x()
        .is_some_and(|x| x.as_slice() == answer.as_slice());
    if same {
        Ok(())
    } else {
        Err(failed(Purpose::Agreement))
    }
}

fn sign(watched: &WatchedSession, key: ObjectHandle, digest: &[u8; 32]) -> Result<[u8; 64], Fault> {
    let signature = watched.sign(&Mechanism::Ecdsa, key, digest)?;
    signature
        .try_into()
        .map_err(|_| odd("C_Sign", "a signature that is not 64 bytes long"))
}

fn agree(
    watched: &WatchedSession,
    key: ObjectHandle,
    peer: &PublicKey,
) -> Result<Zeroizing<[u8; 32]>, Fault> {
    let point = peer.to_sec1_point(false);
    let secret = match derive(watched, key, point.as_bytes()) {
        // PKCS#11 wants every token to take the bare point, but some want it as CKA_EC_POINT is: in
        // an OCTET STRING.
        Err(fault @ Fault::Token(..)) if matches!(fault.reach(), Reach::Item | Reach::Unclear) => {
            let mut wrapped = vec![0x04, 0x41];
            wrapped.extend_from_slice(point.as_bytes());
            derive(watched, key, &wrapped).map_err(|_| fault)?
        }
        other => other?,
    };
    let value = watched
        .raw()
        .attribute(watched.session(), secret, CKA_VALUE)
        .map(|value| value.map(Zeroizing::new));
    watched.session().destroy_object(secret)?;
    let value = value?.ok_or_else(|| {
        HsmError::Unsupported("giving out a secret of CKM_ECDH1_DERIVE".to_owned())
    })?;
    coordinate(&value).ok_or_else(|| odd("C_DeriveKey", "a secret that is not 32 bytes long"))
}

/// A coordinate is a number of fixed length; some tokens drop its leading zeros.
fn coordinate(value: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let mut shared = Zeroizing::new([0; 32]);
    let start = shared.len().checked_sub(value.len())?;
    shared[start..].copy_from_slice(value);
    (!value.is_empty()).then_some(shared)
}

/// The shared secret as a session object that tells its value.
fn derive(
    watched: &WatchedSession,
    key: ObjectHandle,
    point: &[u8],
) -> Result<ObjectHandle, Fault> {
    let mechanism = Mechanism::Ecdh1Derive(Ecdh1DeriveParams::new(EcKdf::null(), point));
    Ok(watched.session().derive_key(
        &mechanism,
        key,
        &[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::ValueLen(32.into()),
        ],
    )?)
}

fn odd(function: &str, code: &str) -> Fault {
    HsmError::Pkcs11 {
        function: function.to_owned(),
        code: code.to_owned(),
    }
    .into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_coordinate_has_32_bytes_whatever_the_token_drops() {
        assert_eq!(*coordinate(&[7; 32]).unwrap(), [7; 32]);
        let mut expected = [0; 32];
        expected[30..].copy_from_slice(&[1, 2]);
        assert_eq!(*coordinate(&[1, 2]).unwrap(), expected);
        assert!(coordinate(&[]).is_none() && coordinate(&[7; 33]).is_none());
    }
}
