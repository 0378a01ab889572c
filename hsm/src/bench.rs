//! The yardstick for benchmarks: the same token, called by nothing but a loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::HsmConfig;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::line::{Access, Line, Watch};
use crate::module::Module;
use crate::selector::Wanted;
use crate::session_key;
use crate::types::{KeyUsage, MasterKind};

/// Time of `count` times `C_DecryptInit` and `C_Decrypt`: AES-256-GCM with a session key, `len` bytes of plaintext, one thread, one session.
///
/// # Errors
/// As [`crate::Hsm::start`]; the token needs no keys.
pub fn raw_gcm_decrypt(config: &HsmConfig, len: usize, count: u32) -> Result<Duration, HsmError> {
    let wanted = Wanted::new(&config.token)?;
    let module = Module::acquire(&config.module).map_err(Fault::into_error)?;
    let result = measure(&module, config, &wanted, len, count);
    module.release(false);
    result.map_err(Fault::into_error)
}

fn measure(
    module: &Module,
    config: &HsmConfig,
    wanted: &Wanted,
    len: usize,
    count: u32,
) -> Result<Duration, Fault> {
    let library = module.library();
    let found = wanted.find(&library.context)?;
    let line = Line::open(library, found.slot, Arc::new(Watch::default()))?;
    Access::new(config.pin.clone()).login(&line)?;
    let key = session_key::generate(&line, KeyUsage::Aead, MasterKind::Hsm)?;
    let (iv, plaintext) = ([7; 12], vec![1; len]);
    let mut ciphertext = Vec::new();
    line.raw()
        .gcm_encrypt(line.session(), key, &iv, &[], &plaintext, &mut ciphertext)?;
    let mut output = Vec::with_capacity(ciphertext.len());
    let started = Instant::now();
    for _ in 0..count {
        output.clear();
        line.raw()
            .gcm_decrypt(line.session(), key, &iv, &[], &ciphertext, &mut output)?;
    }
    let elapsed = started.elapsed();
    line.close();
    if output == plaintext {
        Ok(elapsed)
    } else {
        Err(HsmError::SelfTest("AES-GCM".to_owned()).into())
    }
}
