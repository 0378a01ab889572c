//! Signing keys: made on the token, found again by their id, held against their table in each
//! session before their first use, destroyed.

use base16ct::lower::encode_string as hex;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_EC_POINT, CKA_ID};

use super::{Conn, Result};
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::keys;
use crate::pool::Turn;
use crate::template::signing::{LABEL, spec};
use crate::types::{Digest, SignItem, Signature, SigningKey, SigningKind};

/// `SubjectPublicKeyInfo` of an Ed25519 key, up to the 32 bytes of the key itself (RFC 8410).
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

impl Conn {
    /// Makes a key pair with this id. Whatever fails, no private key is left behind unless the
    /// token can't be reached.
    pub(crate) fn generate_signing_key(
        &mut self,
        kind: SigningKind,
        id: &[u8; 16],
    ) -> Result<SigningKey> {
        if !self.abilities.profile.signing.contains(&kind) {
            return Err(HsmError::Unsupported(format!(
                "{} keys: its mechanism list lacks {}",
                kind.name(),
                missing(kind)
            ))
            .into());
        }
        if !self.find_signing_key(id)?.is_empty() {
            return Err(HsmError::KeyExists(format!("signing key {}", hex(id))).into());
        }
        let (public, private) = match self.make_pair(kind, id) {
            // `SoftHSM` now and then answers so while another thread looks for objects.
            Err(fault) if fault.reach() == Reach::Unclear => {
                self.destroy_signing_keys(std::slice::from_ref(id))?;
                self.make_pair(kind, id)
            }
            other => other,
        }?;
        let result = self.describe(kind, id, public, private);
        // The public half is in the caller's record from here on.
        let gone = self.destroy_quietly(public);
        match result.and_then(|key| gone.map(|()| key)) {
            Ok(key) => {
                self.signing.push(*id, private);
                Ok(key)
            }
            Err(fault) => {
                self.destroy_quietly(private)?;
                Err(fault)
            }
        }
    }

    /// One signature per item, in their order.
    pub(crate) fn sign_items(
        &mut self,
        items: &[SignItem],
        results: &mut Vec<std::result::Result<Vec<u8>, HsmError>>,
        turn: Turn,
    ) -> Result<()> {
        self.each(items, results, turn, |conn, item| {
            let handle = conn.signing_key(&item.key)?;
            match conn.sign_one(handle, item) {
                Err(fault) if fault.reach() == Reach::Object => {
                    conn.signing.pop(&item.key.id);
                    let handle = conn.signing_key(&item.key)?;
                    conn.sign_one(handle, item)
                }
                other => other,
            }
        })
    }

    /// Destroys the private halves with these ids; those that are not there are no error.
    pub(crate) fn destroy_signing_keys(&mut self, ids: &[[u8; 16]]) -> Result<()> {
        for id in ids {
            self.signing.pop(id);
            for handle in self.find_signing_key(id)? {
                match self
                    .watched
                    .session()
                    .destroy_object(handle)
                    .map_err(Fault::from)
                {
                    Ok(()) => {}
                    // Another session has destroyed it meanwhile.
                    Err(fault) if fault.reach() == Reach::Object => {}
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(())
    }

    /// The ids of all signing keys on the token.
    pub(crate) fn signing_keys(&self) -> Result<Vec<[u8; 16]>> {
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(LABEL.as_bytes().to_vec()),
        ];
        let mut ids = Vec::new();
        for handle in self.watched.find_objects(&template)? {
            let id = self
                .watched
                .raw()
                .attribute(self.watched.session(), handle, CKA_ID)?;
            // One whose id is none of ours is not ours to count.
            ids.extend(id.and_then(|id| <[u8; 16]>::try_from(id).ok()));
        }
        Ok(ids)
    }

    fn make_pair(&self, kind: SigningKind, id: &[u8; 16]) -> Result<(ObjectHandle, ObjectHandle)> {
        let spec = spec(kind);
        let attempt = |with_optional: bool| {
            let private = spec.private.iter().filter(|rule| rule.asked(with_optional));
            Ok(self.watched.raw().generate_key_pair_with_id(
                self.watched.session(),
                spec.mechanism,
                spec.public.iter(),
                private,
                id,
            )?)
        };
        match attempt(true) {
            Err::<_, Fault>(fault) if fault.refuses_template() => attempt(false),
            other => other,
        }
    }

    fn describe(
        &self,
        kind: SigningKind,
        id: &[u8; 16],
        public: ObjectHandle,
        private: ObjectHandle,
    ) -> Result<SigningKey> {
        let spec = spec(kind);
        keys::check(&self.watched, private, spec.name, spec.private)?;
        let spki = match kind {
            SigningKind::Ed25519 => self
                .watched
                .raw()
                .attribute(self.watched.session(), public, CKA_EC_POINT)?
                .as_deref()
                .and_then(ed25519_spki),
            SigningKind::EcdsaP256 | SigningKind::Rsa4096 => keys::spki(&self.watched, public)?,
        };
        let spki = spki.ok_or_else(|| {
            HsmError::InvalidKey(format!(
                "the public half of a new {} can't be read",
                spec.name
            ))
        })?;
        Ok(SigningKey {
            id: *id,
            kind,
            spki,
        })
    }

    fn find_signing_key(&self, id: &[u8; 16]) -> Result<Vec<ObjectHandle>> {
        let template = [
            Attribute::Class(ObjectClass::PRIVATE_KEY),
            Attribute::Label(LABEL.as_bytes().to_vec()),
            Attribute::Id(id.to_vec()),
        ];
        Ok(self.watched.find_objects(&template)?)
    }

    fn signing_key(&mut self, key: &SigningKey) -> Result<ObjectHandle> {
        if let Some(handle) = self.signing.get(&key.id) {
            return Ok(*handle);
        }
        let name = spec(key.kind).name;
        let handle = match self.find_signing_key(&key.id)?.as_slice() {
            [handle] => *handle,
            found => {
                return Err(HsmError::InvalidKey(format!(
                    "the {name} {} is on the token {} times, it must be there once",
                    hex(&key.id),
                    found.len()
                ))
                .into());
            }
        };
        // An error of this key alone: the appliance's other keys are none the worse for it.
        keys::check(&self.watched, handle, name, spec(key.kind).private).map_err(|fault| {
            match fault {
                Fault::Own(error @ HsmError::KeyPolicy { .. }) => {
                    HsmError::InvalidKey(error.to_string()).into()
                }
                other => other,
            }
        })?;
        self.signing.push(key.id, handle);
        Ok(handle)
    }

    fn sign_one(&self, handle: ObjectHandle, item: &SignItem) -> Result<Vec<u8>> {
        let mechanism = mechanism(item)?;
        Ok(self.watched.sign(&mechanism, handle, &item.data)?)
    }
}

fn mechanism(item: &SignItem) -> std::result::Result<Mechanism<'static>, HsmError> {
    Ok(match (item.key.kind, item.signature) {
        (SigningKind::EcdsaP256, Signature::Ecdsa) => Mechanism::Ecdsa,
        (SigningKind::Rsa4096, Signature::Pkcs1v15) => Mechanism::RsaPkcs,
        (SigningKind::Rsa4096, Signature::Pss { digest, salt }) => {
            let (hash_alg, mgf) = match digest {
                Digest::Sha224 => (MechanismType::SHA224, PkcsMgfType::MGF1_SHA224),
                Digest::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
                Digest::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
                Digest::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
            };
            Mechanism::RsaPkcsPss(PkcsPssParams {
                hash_alg,
                mgf,
                s_len: u64::from(salt).into(),
            })
        }
        (SigningKind::Ed25519, Signature::Ed25519) => {
            Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure))
        }
        (kind, signature) => {
            return Err(HsmError::Unsupported(format!(
                "{signature:?} signatures with {} keys",
                kind.name()
            )));
        }
    })
}

/// A DER OCTET STRING or BIT STRING by the standard's versions; some tokens give the 32 bytes bare.
fn ed25519_spki(point: &[u8]) -> Option<Vec<u8>> {
    let key: [u8; 32] = match point {
        [0x04, 0x20, key @ ..] | [0x03, 0x21, 0x00, key @ ..] if key.len() == 32 => {
            key.try_into().ok()?
        }
        key => key.try_into().ok()?,
    };
    Some([&ED25519_SPKI_PREFIX[..], &key].concat())
}

/// The mechanisms of a kind, for the message that says they are not all there.
fn missing(kind: SigningKind) -> String {
    let names: Vec<_> = spec(kind)
        .signs_with
        .iter()
        .map(|(_, name)| *name)
        .collect();
    names.join(" or ")
}
