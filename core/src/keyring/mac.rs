//! HMACs, which the token makes.

use std::sync::Arc;

use strongroom_hsm::{HashAlgorithm, MacItem};
use subtle::ConstantTimeEq;

use super::encrypt::in_order;
use super::key::Version;
use super::{
    Algorithm, HmacInput, HmacTag, Inner, KeyName, Keyring, KeyringError, PerItem, Refusal,
};

impl Keyring {
    /// HMAC of each input with the version's HMAC key, in the token.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] for a version or hash that can't be; [`KeyringError::NotFound`],
    /// [`KeyringError::Hsm`].
    pub async fn hmac(
        &self,
        name: KeyName<&str>,
        algorithm: Algorithm,
        version: Option<u32>,
        inputs: Vec<HmacInput>,
    ) -> PerItem<HmacTag> {
        let version = self.inner.key(name.as_str())?.authenticating(version)?;
        let hash = self.inner.hash(algorithm)?;
        let items = inputs
            .into_iter()
            .map(|input| mac_item(&version, hash, input));
        let tags = self.inner.hsm.hmac(items.collect()).await?;
        let tagged = tags.into_iter().map(|tag| {
            Ok(HmacTag {
                version: version.number,
                tag: tag?.to_vec(),
            })
        });
        Ok(tagged.collect())
    }

    /// Whether each tag is the HMAC of its input; constant-time.
    ///
    /// # Errors
    /// [`KeyringError::Refused`] per item for a version that can't be; for the whole as
    /// [`Keyring::hmac`].
    pub async fn verify_hmac(
        &self,
        name: KeyName<&str>,
        algorithm: Algorithm,
        inputs: Vec<(HmacInput, HmacTag)>,
    ) -> PerItem<bool> {
        let key = self.inner.key(name.as_str())?;
        let hash = self.inner.hash(algorithm)?;
        let mut results = Vec::with_capacity(inputs.len());
        let mut expected = Vec::with_capacity(inputs.len());
        let mut items = Vec::with_capacity(inputs.len());
        for (index, (input, tag)) in inputs.into_iter().enumerate() {
            match key.verifying(tag.version) {
                Ok(version) => {
                    items.push(mac_item(&version, hash, input));
                    expected.push((index, tag.tag));
                }
                Err(refusal) => results.push((index, Err(refusal.into()))),
            }
        }
        if !items.is_empty() {
            let tags = self.inner.hsm.hmac(items).await?;
            results.extend(expected.into_iter().zip(tags).map(|((index, given), tag)| {
                let valid = tag.map(|tag| bool::from(tag.as_slice().ct_eq(&given)));
                (index, valid.map_err(KeyringError::from))
            }));
        }
        Ok(in_order(results))
    }
}

impl Inner {
    fn hash(&self, algorithm: Algorithm) -> Result<HashAlgorithm, KeyringError> {
        let hash = match algorithm {
            Algorithm::Sha2_224 => Some(HashAlgorithm::Sha224),
            Algorithm::Sha2_256 => Some(HashAlgorithm::Sha256),
            Algorithm::Sha2_384 => Some(HashAlgorithm::Sha384),
            Algorithm::Sha2_512 => Some(HashAlgorithm::Sha512),
            _ => None,
        };
        hash.filter(|hash| self.hsm.profile().hmac.contains(hash))
            .ok_or_else(|| Refusal::HmacHash.into())
    }
}

fn mac_item(version: &Arc<Version>, hash: HashAlgorithm, input: HmacInput) -> MacItem {
    MacItem {
        key: version.mac(),
        hash,
        data: input.input,
    }
}
