//! What the token does for callers, on one session: `Conn` is that session with its keys and its
//! unwrapped KEKs.

mod kek;
mod signing;
mod transfer;

use std::num::NonZeroUsize;
use std::sync::Arc;

use cryptoki::context::Function;
use cryptoki::error::RvError;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use lru::LruCache;
use zeroize::Zeroizing;

use crate::config::KeyShape;
use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::ffi::{TAG_LEN, writable};
use crate::keys::Keys;
use crate::pool::Turn;
use crate::selftest::Abilities;
use crate::session_key;
use crate::types::{GcmItem, HashAlgorithm, KeyUsage, MacItem, MasterGeneration, WrappedKey};
use crate::watched::WatchedSession;

/// More random bytes than this come in several calls.
const MAX_RANDOM_PER_CALL: usize = 64 * 1024;

/// A logged-in session whose keys have been checked.
pub(crate) struct Conn {
    pub(crate) watched: WatchedSession,
    keys: Keys,
    abilities: Arc<Abilities>,
    /// What is demanded of the keys.
    shape: KeyShape,
    /// Unwrapped KEKs: session objects, which die with the session.
    cache: LruCache<[u8; 16], ObjectHandle>,
    /// Signing keys that were found and checked: token objects, which stay when they fall out of
    /// here.
    signing: LruCache<[u8; 16], ObjectHandle>,
    canary: Canary,
}

/// A key of this session and something it has encrypted: if that still decrypts, the token works.
struct Canary {
    key: ObjectHandle,
    ciphertext: Vec<u8>,
}

type Result<T> = std::result::Result<T, Fault>;

impl Conn {
    /// `line` is logged in. `capacity`: KEKs to keep.
    pub(crate) fn new(
        watched: WatchedSession,
        keys: Keys,
        abilities: Arc<Abilities>,
        shape: KeyShape,
        capacity: usize,
    ) -> Result<Self> {
        let canary = Canary::new(&watched)?;
        let capacity = NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            watched,
            keys,
            abilities,
            shape,
            cache: LruCache::new(capacity),
            signing: LruCache::new(capacity),
            canary,
        })
    }

    /// Decides what an unclear failure was: the device's, if the canary fails too, else the
    /// operation's own.
    pub(crate) fn settle(&self, fault: Fault) -> Fault {
        if fault.reach() != Reach::Unclear {
            return fault;
        }
        match self.canary.sing(&self.watched) {
            Ok(()) => Fault::Own(fault.into_error()),
            Err(_) => HsmError::Unavailable(fault.to_string()).into(),
        }
    }

    /// One small round trip through the token.
    pub(crate) fn probe(&self) -> Result<()> {
        self.canary.sing(&self.watched)
    }

    pub(crate) fn encrypt(
        &mut self,
        items: &[GcmItem],
        results: &mut Vec<std::result::Result<Vec<u8>, HsmError>>,
        turn: Turn,
    ) -> Result<()> {
        self.each(items, results, turn, |conn, item| {
            conn.with_kek(&item.key, KeyUsage::Aead, |conn, key| {
                conn.gcm_encrypt(key, &item.iv, &item.aad, &item.data)
            })
        })
    }

    pub(crate) fn decrypt(
        &mut self,
        items: &[GcmItem],
        results: &mut Vec<std::result::Result<Zeroizing<Vec<u8>>, HsmError>>,
        turn: Turn,
    ) -> Result<()> {
        self.each(items, results, turn, |conn, item| {
            conn.with_kek(&item.key, KeyUsage::Aead, |conn, key| {
                conn.gcm_decrypt(key, &item.iv, &item.aad, &item.data)
            })
        })
    }

    pub(crate) fn hmac(
        &mut self,
        items: &[MacItem],
        results: &mut Vec<std::result::Result<Zeroizing<Vec<u8>>, HsmError>>,
        turn: Turn,
    ) -> Result<()> {
        self.each(items, results, turn, |conn, item| {
            if !conn.abilities.profile.hmac.contains(&item.hash) {
                return Err(HsmError::Unsupported(format!("HMAC with {:?}", item.hash)).into());
            }
            conn.with_kek(&item.key, KeyUsage::Mac, |conn, key| {
                conn.mac(key, item.hash, &item.data)
            })
        })
    }

    pub(crate) fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(vec![0; len]);
        for chunk in bytes.chunks_mut(MAX_RANDOM_PER_CALL) {
            self.watched.session().generate_random_slice(chunk)?;
        }
        Ok(bytes)
    }

    pub(crate) fn sign(&self, digest: &[u8; 32]) -> Result<[u8; 64]> {
        let signature = self
            .watched
            .sign(&Mechanism::Ecdsa, self.keys.audit.private, digest)?;
        signature.try_into().map_err(|_| {
            HsmError::Pkcs11 {
                function: "C_Sign".to_owned(),
                code: "a signature that is not 64 bytes long".to_owned(),
            }
            .into()
        })
    }

    pub(crate) fn store_seal(&self, iv: &[u8; 12], aad: &[u8], data: &[u8]) -> Result<Vec<u8>> {
        self.gcm_encrypt(self.keys.store, iv, aad, data)
    }

    pub(crate) fn store_open(
        &self,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        self.gcm_decrypt(self.keys.store, iv, aad, data)
    }

    /// What a look at the keys finds: a ceremony may have made others. This session works with
    /// those that it has until it is told to [follow](Conn::follow).
    pub(crate) fn look_at_keys(&self) -> Result<Vec<MasterGeneration>> {
        Ok(Keys::check(&self.watched, self.shape)?
            .generations
            .describe())
    }

    /// Looks for the keys again, and has new KEKs wrapped by the generation that is in force in
    /// `known`. `false`: that one is not to be seen, or not in force yet; the keys are those of
    /// before.
    pub(crate) fn follow(&mut self, known: &[MasterGeneration]) -> Result<bool> {
        let mut keys = Keys::check(&self.watched, self.shape)?;
        let follows = keys.generations.follow(known);
        if follows {
            self.keys = keys;
        }
        Ok(follows)
    }

    /// Whether new KEKs are wrapped by the generation that is in force in `known`.
    pub(crate) fn wraps_as(&self, known: &[MasterGeneration]) -> bool {
        self.generations()
            .iter()
            .any(|own| own.in_force && known.iter().any(|one| one.in_force && one.same_keys(own)))
    }

    /// The generations of the master key that this session knows, oldest first.
    pub(crate) fn generations(&self) -> Vec<MasterGeneration> {
        self.keys.generations.describe()
    }

    pub(crate) fn forget(&mut self, ids: &[[u8; 16]]) -> Result<()> {
        for id in ids {
            if let Some(handle) = self.cache.pop(id) {
                self.destroy_quietly(handle)?;
            }
        }
        Ok(())
    }

    /// Runs a batch from the first item that has no result on, until the turn is over, but one item
    /// at least. A fault of one item stays with it, a fault of the session or device ends the
    /// batch.
    fn each<I, T>(
        &mut self,
        items: &[I],
        results: &mut Vec<std::result::Result<T, HsmError>>,
        turn: Turn,
        mut operation: impl FnMut(&mut Self, &I) -> Result<T>,
    ) -> Result<()> {
        for item in items.iter().skip(results.len()) {
            results.push(match operation(self, item) {
                Ok(value) => Ok(value),
                Err(fault) => {
                    let fault = self.settle(fault);
                    if fault.reach() != Reach::Item {
                        return Err(fault);
                    }
                    Err(fault.into_error())
                }
            });
            if turn.is_over() {
                break;
            }
        }
        Ok(())
    }

    /// Runs an operation with the unwrapped key; if the token has forgotten the object, unwraps it
    /// once more.
    fn with_kek<T>(
        &mut self,
        key: &WrappedKey,
        usage: KeyUsage,
        operation: impl Fn(&Self, ObjectHandle) -> Result<T>,
    ) -> Result<T> {
        if key.usage != usage {
            return Err(HsmError::Unsupported(format!(
                "{usage:?} operations with a key made for {:?}",
                key.usage
            ))
            .into());
        }
        let handle = self.kek(key)?;
        match operation(self, handle) {
            Err(fault) if fault.reach() == Reach::Object => {
                self.cache.pop(&key.id);
                let handle = self.kek(key)?;
                operation(self, handle)
            }
            other => other,
        }
    }

    fn kek(&mut self, key: &WrappedKey) -> Result<ObjectHandle> {
        if let Some(handle) = self.cache.get(&key.id) {
            return Ok(*handle);
        }
        let handle = self.unwrap(key)?;
        self.keep(key.id, handle)?;
        Ok(handle)
    }

    fn keep(&mut self, id: [u8; 16], handle: ObjectHandle) -> Result<()> {
        if let Some((_, evicted)) = self.cache.push(id, handle) {
            self.destroy_quietly(evicted)?;
        }
        Ok(())
    }

    fn destroy_quietly(&self, handle: ObjectHandle) -> Result<()> {
        match self
            .watched
            .session()
            .destroy_object(handle)
            .map_err(Fault::from)
        {
            Ok(()) => Ok(()),
            Err(fault) if matches!(fault.reach(), Reach::Item | Reach::Object) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    fn gcm_encrypt(
        &self,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
    ) -> Result<Vec<u8>> {
        let mut output = Vec::new();
        self.watched
            .raw()
            .gcm_encrypt(self.watched.session(), key, iv, aad, data, &mut output)?;
        if output.len() == data.len() + TAG_LEN {
            Ok(output)
        } else {
            Err(odd_length("C_Encrypt"))
        }
    }

    fn gcm_decrypt(
        &self,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8],
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let Some(length) = data.len().checked_sub(TAG_LEN) else {
            return Err(HsmError::Authentication.into());
        };
        let mut output = Zeroizing::new(Vec::new());
        match self.watched.raw().gcm_decrypt(
            self.watched.session(),
            key,
            iv,
            aad,
            data,
            &mut output,
        ) {
            Ok(()) if output.len() == length => Ok(output),
            Ok(()) => Err(odd_length("C_Decrypt")),
            Err(error) => Err(self.decryption_failed(error.into())),
        }
    }

    /// A tag that does not fit has a code of its own in each token; `SoftHSM`'s is
    /// `CKR_GENERAL_ERROR`, which could mean anything.
    fn decryption_failed(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Token(
                RvError::EncryptedDataInvalid
                | RvError::EncryptedDataLenRange
                | RvError::DataInvalid
                | RvError::DataLenRange
                | RvError::SignatureInvalid
                // CKR_AEAD_DECRYPT_FAILED of PKCS#11 3.0, which cryptoki has no name for.
                | RvError::UnknownErrorCode(cryptoki_sys::CKR_AEAD_DECRYPT_FAILED),
                Function::Decrypt,
            ) => HsmError::Authentication.into(),
            Fault::Token(_, Function::Decrypt) if fault.reach() == Reach::Unclear => {
                self.unless_device(fault)
            }
            other => other,
        }
    }

    fn unless_device(&self, fault: Fault) -> Fault {
        match self.settle(fault) {
            fault if fault.reach() == Reach::Item => HsmError::Authentication.into(),
            fault => fault,
        }
    }

    fn mac(
        &self,
        key: ObjectHandle,
        hash: HashAlgorithm,
        data: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        Ok(Zeroizing::new(self.watched.sign(
            &session_key::hmac(hash),
            key,
            data,
        )?))
    }
}

impl Canary {
    fn new(watched: &WatchedSession) -> Result<Self> {
        let key = session_key::canary(watched)?;
        let mut ciphertext = Vec::new();
        watched.raw().gcm_encrypt(
            watched.session(),
            key,
            &[0; 12],
            &[],
            &writable(&[0; 16]),
            &mut ciphertext,
        )?;
        Ok(Self { key, ciphertext })
    }

    fn sing(&self, watched: &WatchedSession) -> Result<()> {
        let mut plaintext = Vec::new();
        watched.raw().gcm_decrypt(
            watched.session(),
            self.key,
            &[0; 12],
            &[],
            &self.ciphertext,
            &mut plaintext,
        )?;
        if plaintext == [0; 16] {
            Ok(())
        } else {
            Err(HsmError::SelfTest("AES-GCM".to_owned()).into())
        }
    }
}

fn odd_length(function: &str) -> Fault {
    HsmError::Pkcs11 {
        function: function.to_owned(),
        code: "an output of the wrong length".to_owned(),
    }
    .into()
}
