//! A KEK's ways in and out: generated, imported, unwrapped, compared.

use base16ct::lower::encode_string as hex;
use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::CKA_VALUE_LEN;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Conn, Result};
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::ffi::writable;
use crate::keys::Pair;
use crate::session_key;
use crate::types::{HashAlgorithm, KeyUsage, MasterKind, OaepHash, TransferBlob, WrappedKey};

impl Conn {
    /// Makes a KEK, wraps it and destroys the extractable original; the caller gets it only after
    /// it has been unwrapped and compared.
    pub(crate) fn generate_key(
        &mut self,
        usage: KeyUsage,
        master: MasterKind,
    ) -> Result<WrappedKey> {
        let original = session_key::generate(&self.watched, usage, master)?;
        let result = self.wrap_and_compare(original, usage, master);
        let destroyed = self.watched.session().destroy_object(original);
        let wrapped = result?;
        destroyed?;
        Ok(wrapped)
    }

    /// See [`crate::Hsm::import_key`].
    pub(crate) fn import_key(
        &mut self,
        oaep: OaepHash,
        encrypted_aes_key: &[u8],
        wrapped_target: &[u8],
        usage: KeyUsage,
        master: MasterKind,
    ) -> Result<WrappedKey> {
        if !self.abilities.profile.oaep_accepted.contains(&oaep) {
            return Err(HsmError::Unsupported(format!("RSA-OAEP with {oaep:?}")).into());
        }
        let Some(kwp) = self.abilities.kwp else {
            return Err(HsmError::Unsupported("CKM_AES_KEY_WRAP_KWP (RFC 5649)".to_owned()).into());
        };
        // RFC 5649: the key, padded to 8 bytes, and 8 more.
        if wrapped_target.len() != session_key::KEY_BYTES.next_multiple_of(8) + 8 {
            return Err(wrong_length(session_key::KEY_BYTES));
        }
        let ephemeral = session_key::unwrap_ephemeral(
            &self.watched,
            oaep,
            &self.keys.wrapping,
            encrypted_aes_key,
            self.abilities.narrow_session_keys,
        )
        .map_err(|fault| self.unwrapping_failed(fault))?;
        let target =
            session_key::unwrap_target(&self.watched, kwp, ephemeral, wrapped_target, usage)
                .map_err(|fault| self.unwrapping_failed(fault));
        let destroyed = self.watched.session().destroy_object(ephemeral);
        let target = target?;
        let result = destroyed
            .map_err(Fault::from)
            .and_then(|()| self.check_length(target, usage))
            .and_then(|()| self.wrap_and_compare(target, usage, master));
        let destroyed = self.watched.session().destroy_object(target);
        let wrapped = result?;
        destroyed?;
        Ok(wrapped)
    }

    /// See [`crate::Hsm::unwrap_to_memory`].
    pub(crate) fn unwrap_to_memory(&self, key: &WrappedKey) -> Result<Zeroizing<Vec<u8>>> {
        if key.master != MasterKind::Memory {
            return Err(HsmError::Unsupported(
                "taking a key of hsm residency into host memory".to_owned(),
            )
            .into());
        }
        let master = self.master_of(key)?;
        let bytes = self
            .watched
            .decrypt(&session_key::oaep(key.oaep), master.private, &key.blob)
            .map(Zeroizing::new)
            .map_err(|error| self.unwrapping_failed(error.into()))?;
        if bytes.len() == session_key::KEY_BYTES {
            Ok(bytes)
        } else {
            Err(HsmError::Authentication.into())
        }
    }

    pub(super) fn unwrap(&self, key: &WrappedKey) -> Result<ObjectHandle> {
        if key.master != MasterKind::Hsm {
            return Err(HsmError::Unsupported(
                "using a key of memory residency inside the token".to_owned(),
            )
            .into());
        }
        let master = self.master_of(key)?;
        let handle = session_key::unwrap(
            &self.watched,
            key.oaep,
            master.private,
            &master.forced,
            &key.blob,
            key.usage,
            self.abilities.narrow_session_keys,
        )
        .map_err(|fault| self.unwrapping_failed(fault))?;
        // RSA wrapping has no authenticity: whatever was wrapped, only a key of the right length is
        // used.
        if let Err(fault) = self.check_length(handle, key.usage) {
            self.destroy_quietly(handle)?;
            return Err(fault);
        }
        Ok(handle)
    }

    /// The master key that wraps it, of whatever generation.
    fn master_of(&self, key: &WrappedKey) -> Result<&Pair> {
        // That there is one of its kind at all.
        self.keys.master(key.master)?;
        let generations = &self.keys.generations;
        generations
            .master(key.master, &key.master_fingerprint)
            .ok_or_else(|| {
                let here = generations.fingerprints(key.master);
                HsmError::OtherMaster {
                    wanted: hex(&key.master_fingerprint),
                    here: here
                        .iter()
                        .map(|one| hex(one))
                        .collect::<Vec<_>>()
                        .join(" and "),
                }
                .into()
            })
    }

    /// `SoftHSM` says 0 of any unwrapped key: then the length is left to the self-comparison and,
    /// for imports, to the wrapped form.
    fn check_length(&self, key: ObjectHandle, usage: KeyUsage) -> Result<()> {
        let length = self
            .watched
            .raw()
            .attribute(self.watched.session(), key, CKA_VALUE_LEN)?
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, cryptoki_sys::CK_ULONG::from_ne_bytes);
        let generated = session_key::generated_len(usage, MasterKind::Hsm);
        let fits = |wanted: usize| usize::try_from(length) == Ok(wanted);
        if length == 0 || fits(session_key::KEY_BYTES) || fits(generated) {
            return Ok(());
        }
        Err(wrong_length(session_key::KEY_BYTES))
    }

    fn wrap_and_compare(
        &mut self,
        original: ObjectHandle,
        usage: KeyUsage,
        kind: MasterKind,
    ) -> Result<WrappedKey> {
        let mut id = [0; 16];
        self.watched.session().generate_random_slice(&mut id)?;
        let wrapped = self.wrap(original, id, usage, kind)?;
        let copy = match kind {
            MasterKind::Hsm => self.unwrap(&wrapped)?,
            MasterKind::Memory => {
                let bytes = self.unwrap_to_memory(&wrapped)?;
                session_key::create(&self.watched, usage, &bytes, false)?
            }
        };
        let same = self.same(original, copy, usage);
        match (same, kind) {
            (Ok(true), MasterKind::Hsm) => self.keep(id, copy)?,
            (same, _) => {
                self.destroy_quietly(copy)?;
                if !same? {
                    return Err(HsmError::SelfTest("wrapping a new key".to_owned()).into());
                }
            }
        }
        Ok(wrapped)
    }

    /// Wraps a new key by the master key in force, and by the transfer key of its generation where
    /// there is one.
    fn wrap(
        &self,
        key: ObjectHandle,
        id: [u8; 16],
        usage: KeyUsage,
        kind: MasterKind,
    ) -> Result<WrappedKey> {
        let oaep = self.abilities.profile.oaep;
        let wrap = |by: &Pair| self.watched.wrap_key(oaep, by.public, key);
        let master = self.keys.master(kind)?;
        let transfer = match (kind, &self.keys.generations.current().transfer) {
            (MasterKind::Hsm, Some(transfer)) => Some(TransferBlob {
                fingerprint: transfer.fingerprint(),
                blob: wrap(transfer)?,
            }),
            _ => None,
        };
        Ok(WrappedKey {
            id,
            usage,
            master: kind,
            master_fingerprint: master.fingerprint(),
            oaep,
            blob: wrap(master)?,
            transfer,
        })
    }

    /// Whether two session keys are one key.
    pub(super) fn same(&self, a: ObjectHandle, b: ObjectHandle, usage: KeyUsage) -> Result<bool> {
        let expected = self.fixed_answer(a, usage)?;
        Ok(bool::from(
            expected.ct_eq(self.fixed_answer(b, usage)?.as_slice()),
        ))
    }

    /// What a key makes of a fixed input: equal answers, equal keys. Never given out.
    fn fixed_answer(&self, key: ObjectHandle, usage: KeyUsage) -> Result<Zeroizing<Vec<u8>>> {
        match usage {
            KeyUsage::Aead => self
                .gcm_encrypt(key, &[0; 12], &[], &writable(&[0; 16]))
                .map(Zeroizing::new),
            KeyUsage::Mac => self.mac(key, HashAlgorithm::Sha256, &writable(&[0; 16])),
        }
    }

    /// A wrapped key that does not unwrap: told apart from a token that does not work.
    pub(super) fn unwrapping_failed(&self, fault: Fault) -> Fault {
        match fault.code() {
            Some(
                RvError::WrappedKeyInvalid
                | RvError::WrappedKeyLenRange
                | RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::KeySizeRange
                | RvError::AttributeValueInvalid,
            ) => HsmError::Authentication.into(),
            Some(RvError::MechanismInvalid | RvError::MechanismParamInvalid) => {
                HsmError::Unsupported(format!("this way of unwrapping ({fault})")).into()
            }
            _ if fault.reach() == Reach::Unclear => self.unless_device(fault),
            _ => fault,
        }
    }
}

fn wrong_length(wanted: usize) -> Fault {
    HsmError::InvalidKey(format!("it must be {wanted} bytes long")).into()
}
