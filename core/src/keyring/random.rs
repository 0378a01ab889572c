//! Random bytes.

use zeroize::Zeroizing;

use super::{Keyring, KeyringError, RandomSource};

impl Keyring {
    /// `len` random bytes.
    ///
    /// # Errors
    /// [`KeyringError::System`] or [`KeyringError::Hsm`], by source.
    pub async fn random(
        &self,
        len: usize,
        source: RandomSource,
    ) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        match source {
            RandomSource::Platform => kernel_random(len),
            RandomSource::Seal => Ok(self.inner.hsm.random(len).await?),
            RandomSource::All => {
                let mut bytes = kernel_random(len)?;
                let others = self.inner.hsm.random(len).await?;
                for (byte, other) in bytes.iter_mut().zip(others.iter()) {
                    *byte ^= other;
                }
                Ok(bytes)
            }
        }
    }
}

pub(super) fn kernel_random(len: usize) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
    let mut bytes = Zeroizing::new(vec![0; len]);
    getrandom::fill(&mut bytes).map_err(|error| {
        KeyringError::System(format!("no random bytes from the kernel: {error}"))
    })?;
    Ok(bytes)
}
