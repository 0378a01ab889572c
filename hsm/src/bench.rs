//! The yardstick for benchmarks: the same token, called by nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::module::{Library, Module};
use crate::selector::TokenFilter;
use crate::session_key;
use crate::types::{KeyUsage, MasterKind};
use crate::watched::{Access, Watch, WatchedSession};

const IV: [u8; 12] = [7; 12];

/// One session with a session key that decrypts one ciphertext again and again: `C_DecryptInit` and
/// `C_Decrypt`, AES-256-GCM.
pub struct RawDecryption {
    work: Work,
    /// The library stays loaded for as long as this is.
    module: Module,
}

struct Work {
    watched: WatchedSession,
    key: ObjectHandle,
    ciphertext: Vec<u8>,
    plaintext: Vec<u8>,
    output: Vec<u8>,
}

impl RawDecryption {
    /// `len`: bytes of plaintext. The token needs no keys.
    ///
    /// # Errors
    /// As [`crate::Hsm::start`].
    pub fn start(config: &HsmConfig, len: usize) -> Result<Self, HsmError> {
        let wanted = TokenFilter::new(&config.token)?;
        let module = Module::acquire(&config.module).map_err(Fault::into_error)?;
        match Work::start(module.library(), config, &wanted, len) {
            Ok(work) => Ok(Self { work, module }),
            Err(fault) => {
                module.release(false);
                Err(fault.into_error())
            }
        }
    }

    /// Decrypts once.
    ///
    /// # Errors
    /// The token's, or [`HsmError::SelfTest`] if it answers another plaintext.
    pub fn decrypt(&mut self) -> Result<(), HsmError> {
        self.work.decrypt().map_err(Fault::into_error)
    }

    /// How long decrypting `count` times takes, in a loop.
    ///
    /// # Errors
    /// As [`RawDecryption::decrypt`].
    pub fn time(&mut self, count: u32) -> Result<Duration, HsmError> {
        let started = Instant::now();
        for _ in 0..count {
            self.decrypt()?;
        }
        Ok(started.elapsed())
    }

    /// Closes the session.
    pub fn stop(self) {
        self.work.watched.close();
        self.module.release(false);
    }
}

impl Work {
    fn start(
        library: Arc<Library>,
        config: &HsmConfig,
        wanted: &TokenFilter,
        len: usize,
    ) -> Result<Self, Fault> {
        let found = wanted.find(&library.raw)?;
        let watched = WatchedSession::open(library, found.slot, Arc::new(Watch::default()))?;
        Access::new(config.pin.clone()).login(&watched)?;
        let key = session_key::generate(&watched, KeyUsage::Aead, MasterKind::Hsm)?;
        let plaintext = vec![1; len];
        let mut ciphertext = Vec::new();
        watched.raw().gcm_encrypt(
            watched.session(),
            key,
            &IV,
            &[],
            &plaintext,
            &mut ciphertext,
        )?;
        let output = Vec::with_capacity(ciphertext.len());
        Ok(Self {
            watched,
            key,
            ciphertext,
            plaintext,
            output,
        })
    }

    fn decrypt(&mut self) -> Result<(), Fault> {
        self.output.clear();
        self.watched.raw().gcm_decrypt(
            self.watched.session(),
            self.key,
            &IV,
            &[],
            &self.ciphertext,
            &mut self.output,
        )?;
        if self.output == self.plaintext {
            Ok(())
        } else {
            Err(HsmError::SelfTest("AES-GCM".to_owned()).into())
        }
    }
}
