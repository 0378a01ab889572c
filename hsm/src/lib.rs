//! PKCS#11 as Strongroom needs it.
//!
//! This crate turns a PKCS#11 token into the few operations of the appliance: it makes and checks
//! the keys, unwraps key-encryption keys (KEKs) into session objects, runs AES-GCM, HMAC, ECDSA and
//! RSA-OAEP in the token, and comes back by itself when the token does. It knows nothing of HTTP or
//! of the store.
//!
//! A caller holds an [`Hsm`], a cheap handle to a pool of operating-system threads, each with its
//! own PKCS#11 session, behind a bounded queue. A [`WrappedKey`] is all that a caller keeps of a
//! KEK; each thread unwraps it once, on first use, into a non-extractable session object, and does
//! so again after a reconnection, so callers never see handles.

pub mod bench;
pub mod ceremony;
mod config;
mod error;
mod fault;
mod ffi;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod keys;
mod module;
mod operations;
mod pin;
mod pool;
mod provision;
mod register;
mod selector;
mod selftest;
mod session_key;
mod template;
mod trial;
mod types;
mod watched;

pub use ceremony::SlotState;
pub use config::{HsmConfig, KeyShape, PinSource, TokenSelector};
pub use error::HsmError;
pub use pin::SecretPin;
pub use provision::{OptionalKeys, Provisioned, TransferKey};
pub use register::Register;
pub use types::{
    Digest, GcmItem, HashAlgorithm, HsmState, KeyUsage, MacItem, MasterGeneration, MasterKind,
    OaepHash, Profile, SignItem, Signature, SigningKey, SigningKind, TokenIdentity, TransferBlob,
    WrappedKey,
};

use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::fault::Fault;
use crate::operations::Conn;
use crate::pool::{Coalescer, Pool};

/// A handle to the token: cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Hsm {
    pool: Arc<Pool>,
    encryptions: Arc<Coalescer<GcmItem, Vec<u8>>>,
    decryptions: Arc<Coalescer<GcmItem, Zeroizing<Vec<u8>>>>,
    macs: Arc<Coalescer<MacItem, Zeroizing<Vec<u8>>>>,
    signatures: Arc<Coalescer<SignItem, Vec<u8>>>,
    /// One writer at a time: two would take the same sequence number.
    register_writer: Arc<tokio::sync::Mutex<()>>,
}

/// One result per item of a batch, or one error for the batch as a whole.
pub type Batch<T> = Result<Vec<Result<T, HsmError>>, HsmError>;

impl Hsm {
    /// Loads the module, finds the token, logs in, checks every key's attributes, runs the power-on
    /// self-tests and starts the threads. Blocks; call it before the async runtime serves anyone.
    pub fn start(config: HsmConfig) -> Result<Self, HsmError> {
        let sessions = config.sessions;
        let pool = Arc::new(Pool::start(config)?);
        Ok(Self {
            pool,
            encryptions: Arc::new(Coalescer::new(Conn::encrypt, sessions)),
            decryptions: Arc::new(Coalescer::new(Conn::decrypt, sessions)),
            macs: Arc::new(Coalescer::new(Conn::hmac, sessions)),
            signatures: Arc::new(Coalescer::new(Conn::sign_items, sessions)),
            register_writer: Arc::default(),
        })
    }

    /// Makes the appliance's keys and the epoch object on an empty token. `progress` is told what
    /// is being made ("RSA-4096 master key", ...). Fails with [`HsmError::KeyExists`] if one is
    /// there.
    pub fn provision(
        config: &HsmConfig,
        optional: OptionalKeys,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Provisioned, HsmError> {
        provision::provision(config, optional, progress)
    }

    /// Ready, reconnecting since when and why, or stopped for good.
    pub fn state(&self) -> HsmState {
        self.pool.state()
    }

    /// What the mechanism list allowed, chosen once at start.
    pub fn profile(&self) -> &Profile {
        &self.pool.facts().abilities.profile
    }

    /// The generations of the master key on the token, oldest first, when they were last looked at.
    pub fn generations(&self) -> Vec<MasterGeneration> {
        self.pool.facts().generations()
    }

    /// Looks for the keys again, after a ceremony made or marked others; no request waits for it.
    /// Keys that are not acceptable are an error, and those that were in use stay so.
    pub async fn refresh_keys(&self) -> Result<Vec<MasterGeneration>, HsmError> {
        self.pool.refresh_keys().await
    }

    /// Starts the PKCS#11 module again (`C_Finalize`, `C_Initialize`), as some show only then what
    /// another process has made. No request is lost: those that were made before are finished,
    /// later ones wait. Every KEK is unwrapped again when it is next used. Not started again is a
    /// module that somebody else in this process uses too, or in which a call hangs.
    pub async fn restart_module(&self) {
        self.pool.restart_module().await;
    }

    /// Wraps a KEK by the master key in force; `None` if it is so already. The key itself, its id
    /// and its session objects stay the same. [`HsmError::NotMovable`] says which key can't be
    /// moved and why, [`HsmError::Rotation`] that the token is not ready for it.
    pub async fn rewrap(&self, key: Arc<WrappedKey>) -> Result<Option<WrappedKey>, HsmError> {
        self.pool.submit(move |conn| conn.rewrap(&key)).await
    }

    /// Label, serial, model of the token in use.
    pub fn token(&self) -> TokenIdentity {
        self.pool.facts().token.clone()
    }

    /// Generates a key in the token, wraps it under the master key of that kind, and destroys the
    /// extractable original.
    pub async fn generate_key(
        &self,
        usage: KeyUsage,
        master: MasterKind,
    ) -> Result<WrappedKey, HsmError> {
        self.pool
            .submit(move |conn| conn.generate_key(usage, master))
            .await
    }

    /// AES-256-GCM encryption in the token: each answer is ciphertext || 16-byte tag, in the items'
    /// order.
    pub async fn encrypt(&self, items: Vec<GcmItem>) -> Batch<Vec<u8>> {
        self.encryptions.submit(&self.pool, items).await
    }

    /// AES-256-GCM decryption in the token; `GcmItem::data` is ciphertext || tag. An item that does
    /// not authenticate answers [`HsmError::Authentication`].
    pub async fn decrypt(&self, items: Vec<GcmItem>) -> Batch<Zeroizing<Vec<u8>>> {
        self.decryptions.submit(&self.pool, items).await
    }

    /// HMAC in the token with keys of usage [`KeyUsage::Mac`].
    pub async fn hmac(&self, items: Vec<MacItem>) -> Batch<Zeroizing<Vec<u8>>> {
        self.macs.submit(&self.pool, items).await
    }

    /// `len` bytes of the token's generator.
    pub async fn random(&self, len: usize) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        self.pool.submit(move |conn| conn.random(len)).await
    }

    /// Decrypts a [`MasterKind::Memory`] key into host memory (32 bytes). The only way a KEK's
    /// bytes leave the token.
    pub async fn unwrap_to_memory(
        &self,
        key: Arc<WrappedKey>,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        self.pool
            .submit(move |conn| conn.unwrap_to_memory(&key))
            .await
    }

    /// ECDSA P-256 over a SHA-256 digest with the audit signing key: r || s, 64 bytes.
    pub async fn sign(&self, digest: [u8; 32]) -> Result<[u8; 64], HsmError> {
        self.pool.submit(move |conn| conn.sign(&digest)).await
    }

    /// Makes a signing key pair on the token: the private half is a token object that signs, is
    /// sensitive and never extractable, and has this `CKA_ID`. [`HsmError::Unsupported`] names
    /// the mechanisms where the token can't. RSA-4096 takes seconds.
    pub async fn generate_signing_key(
        &self,
        kind: SigningKind,
        id: [u8; 16],
    ) -> Result<SigningKey, HsmError> {
        self.pool
            .generate(move |conn| conn.generate_signing_key(kind, &id))
            .await
    }

    /// Signs with keys of [`Hsm::generate_signing_key`]: one signature per item, in their order.
    pub async fn sign_with(&self, items: Vec<SignItem>) -> Batch<Vec<u8>> {
        self.signatures.submit(&self.pool, items).await
    }

    /// Destroys the private halves of these signing keys; those that are not there are no error.
    pub async fn destroy_signing_keys(&self, ids: Vec<[u8; 16]>) -> Result<(), HsmError> {
        self.pool
            .submit(move |conn| conn.destroy_signing_keys(&ids))
            .await
    }

    /// The ids of all signing keys on the token.
    pub async fn signing_keys(&self) -> Result<Vec<[u8; 16]>, HsmError> {
        self.pool.submit(|conn| conn.signing_keys()).await
    }

    /// The audit signing key's public half, `SubjectPublicKeyInfo`, DER.
    pub fn signing_public_key(&self) -> Vec<u8> {
        self.pool.facts().signing_public_key.clone()
    }

    /// Encrypts and authenticates a store record with the store key (AES-256-GCM): ciphertext ||
    /// tag.
    pub async fn store_seal(
        &self,
        iv: [u8; 12],
        aad: Vec<u8>,
        data: Zeroizing<Vec<u8>>,
    ) -> Result<Vec<u8>, HsmError> {
        self.pool
            .submit(move |conn| conn.store_seal(&iv, &aad, &data))
            .await
    }

    /// The reverse of [`Hsm::store_seal`]; [`HsmError::Authentication`] if the record was altered.
    pub async fn store_open(
        &self,
        iv: [u8; 12],
        aad: Vec<u8>,
        data: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, HsmError> {
        self.pool
            .submit(move |conn| conn.store_open(&iv, &aad, &data))
            .await
    }

    /// The value of the epoch data object (empty right after provisioning).
    pub async fn read_epoch(&self) -> Result<Vec<u8>, HsmError> {
        // Never `None`: a token of an appliance has it, and one without it shows no register.
        let value = self.read_register(Register::StoreEpoch).await?;
        Ok(value.unwrap_or_default())
    }

    /// Replaces the value of the epoch data object; durable when this returns.
    pub async fn write_epoch(&self, value: Vec<u8>) -> Result<(), HsmError> {
        self.write_register(Register::StoreEpoch, value).await
    }

    /// A register's value; `None` if it was never written.
    pub async fn read_register(&self, register: Register) -> Result<Option<Vec<u8>>, HsmError> {
        let known = self.pool.registers();
        self.pool
            .submit(move |conn| known.read(register, &conn.watched))
            .await
    }

    /// Replaces a register's value, and makes it where it is not there yet, but for
    /// [`Register::StoreEpoch`], which is made with the keys; durable when this returns.
    pub async fn write_register(&self, register: Register, value: Vec<u8>) -> Result<(), HsmError> {
        let known = self.pool.registers();
        self.write_alone(move |conn| known.write(register, &conn.watched, &value))
            .await
    }

    /// One write after the other, also if the caller of the one before is gone: its job is carried
    /// out all the same, and must not come later.
    async fn write_alone(
        &self,
        mut write: impl FnMut(&mut Conn) -> Result<(), Fault> + Send + 'static,
    ) -> Result<(), HsmError> {
        let alone = Arc::clone(&self.register_writer).lock_owned().await;
        let alone = Arc::new(Mutex::new(Some(alone)));
        let of_the_job = Arc::clone(&alone);
        let written = self
            .pool
            .submit(move |conn| {
                let _alone = &of_the_job;
                write(conn)
            })
            .await;
        // Answered, also for a job whose call hangs: that must not keep all others waiting.
        drop(alone.lock().unwrap_or_else(PoisonError::into_inner).take());
        written
    }

    /// The BYOK wrapping key's public half (RSA-4096), `SubjectPublicKeyInfo`, DER.
    pub fn wrapping_public_key(&self) -> Vec<u8> {
        self.pool.facts().wrapping_public_key.clone()
    }

    /// BYOK: unwraps, in the token, an AES-256 key by RSA-OAEP with the wrapping key and with it
    /// the target key by AES-KWP (RFC 5649), and wraps the target under the master key.
    /// [`HsmError::Unsupported`] names the mechanism where the token can't;
    /// [`HsmError::Authentication`] if either does not unwrap.
    pub async fn import_key(
        &self,
        oaep: OaepHash,
        encrypted_aes_key: Vec<u8>,
        wrapped_target: Vec<u8>,
        usage: KeyUsage,
        master: MasterKind,
    ) -> Result<WrappedKey, HsmError> {
        self.pool
            .submit(move |conn| {
                conn.import_key(oaep, &encrypted_aes_key, &wrapped_target, usage, master)
            })
            .await
    }

    /// Drops the session objects of these keys (after a key is deleted or trimmed).
    pub async fn forget(&self, ids: Vec<[u8; 16]>) -> Result<(), HsmError> {
        self.pool.forget(ids).await
    }

    /// One small round trip through the token, before all jobs that wait: for the watchdog.
    pub async fn probe(&self) -> Result<(), HsmError> {
        self.pool.probe().await
    }

    /// Whether a signing key is made now: a token that does one thing at a time answers nothing
    /// until that is done, or its deadline over.
    pub fn is_generating(&self) -> bool {
        self.pool.is_generating()
    }
}
