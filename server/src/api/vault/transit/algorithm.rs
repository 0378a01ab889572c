//! The hash algorithms by Vault's names.

use crate::api::vault::error::ApiError;
use crate::api::vault::names::word;
use strongroom_core::keyring::Algorithm;

/// The hashes, for the document.
pub(super) const HASHES: &[&str] = &[
    "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512",
    "",
];

/// The same, of signatures.
pub(super) const SIGNED_HASHES: &[&str] = &[
    "sha2-224", "sha2-256", "sha2-384", "sha2-512", "sha3-224", "sha3-256", "sha3-384", "sha3-512",
    "none", "",
];

/// From the path, else the body, else SHA-256; and whether the body says another one than the path,
/// which counts.
pub(super) fn of_path_or_body(
    captures: [Option<&str>; 2],
    body: Option<&str>,
) -> Result<(Algorithm, bool), ApiError> {
    let [path, _] = captures;
    let algorithm = named_algorithm(path.or(body).unwrap_or_default())?;
    let differs = body.is_some_and(|name| path.is_some_and(|path| path != name));
    Ok((algorithm, differs))
}

/// By Vault's name; empty: SHA-256.
pub(super) fn named_algorithm(name: &str) -> Result<Algorithm, ApiError> {
    Ok(match name {
        "" | "sha2-256" => Algorithm::Sha2_256,
        "sha2-224" => Algorithm::Sha2_224,
        "sha2-384" => Algorithm::Sha2_384,
        "sha2-512" => Algorithm::Sha2_512,
        "sha3-224" => Algorithm::Sha3_224,
        "sha3-256" => Algorithm::Sha3_256,
        "sha3-384" => Algorithm::Sha3_384,
        "sha3-512" => Algorithm::Sha3_512,
        _ => {
            return Err(
                ApiError::bad_request(format!("unsupported algorithm {}", word(name)))
                    .because("unsupported algorithm"),
            );
        }
    })
}

/// The hash of `sign` and `verify`: from the path, else `hash_algorithm`, else its old name
/// `algorithm`, else SHA-256. `None`: `none`. And whether the path counts, and not what the
/// body says.
pub(super) fn hash(
    captures: [Option<&str>; 2],
    hash_algorithm: Option<&str>,
    algorithm: Option<&str>,
) -> Result<(Option<Algorithm>, bool), ApiError> {
    let [from_path, _] = captures;
    let filled = |text: &&str| !text.is_empty();
    let (hash, old) = (hash_algorithm.filter(filled), algorithm.filter(filled));
    if hash.is_some() && old.is_some() && hash != old {
        return Err(ApiError::bad_request(
            "hash_algorithm and algorithm differ: give one of them",
        ));
    }
    let given = hash.or(old);
    let name = from_path.filter(filled).or(given);
    let replaced = given != name && given.is_some();
    let hash = match name.unwrap_or_default() {
        "none" => None,
        name => Some(named_algorithm(name).map_err(|_| invalid_hash(name))?),
    };
    Ok((hash, replaced))
}

/// A hash that `sign` and `verify` do not know.
pub(super) fn invalid_hash(name: &str) -> ApiError {
    ApiError::bad_request(format!("invalid hash algorithm {:?}", word(name)))
        .because("invalid hash algorithm")
}
