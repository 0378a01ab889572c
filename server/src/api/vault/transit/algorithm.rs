//! The hash algorithms by Vault's names.

use crate::api::vault::body::word;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;
use strongroom_core::keyring::Algorithm;

/// From the path, else the body, else SHA-256.
pub(super) fn algorithm(call: &mut Call<'_>) -> Result<Algorithm, ApiError> {
    let from_body = call.params.text("algorithm")?;
    let (algorithm, differs) = of_path_or_body(call.captures, from_body.as_deref())?;
    if differs {
        call.params.replaced_by_path("algorithm");
    }
    Ok(algorithm)
}

/// And whether the body says another one than the path, which counts.
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
/// `algorithm`, else SHA-256. `None`: `none`.
pub(super) fn hash(call: &mut Call<'_>) -> Result<Option<Algorithm>, ApiError> {
    let params = &call.params;
    let [from_path, _] = call.captures;
    let (hash, old) = (params.text("hash_algorithm")?, params.text("algorithm")?);
    let filled = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(str::to_owned);
    let (hash, old) = (filled(hash.as_deref()), filled(old.as_deref()));
    if hash.is_some() && old.is_some() && hash != old {
        return Err(ApiError::bad_request(
            "hash_algorithm and algorithm differ: give one of them",
        ));
    }
    let given = hash.or(old);
    let name = filled(from_path).or_else(|| given.clone());
    let replaced = given != name && given.is_some();
    let hash = match name.as_deref().unwrap_or_default() {
        "none" => None,
        name => Some(named_algorithm(name).map_err(|_| invalid_hash(name))?),
    };
    if replaced {
        call.params.replaced_by_path("hash_algorithm");
    }
    Ok(hash)
}

/// A hash that `sign` and `verify` do not know.
pub(super) fn invalid_hash(name: &str) -> ApiError {
    ApiError::bad_request(format!("invalid hash algorithm {:?}", word(name)))
        .because("invalid hash algorithm")
}
