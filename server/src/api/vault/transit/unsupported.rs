//! What Vault's Transit does and this appliance doesn't: each says so in Vault's words, where Vault
//! has them.

use crate::api::pipeline::answer::Answer;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;

/// `export` of anything but public keys: no key leaves in plaintext.
pub(in crate::api) async fn export(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    refuse("private key material is not exportable")
}

/// `backup`: Vault's backup holds the key in plaintext.
pub(in crate::api) async fn backup(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    refuse("exporting is disallowed on the policy")
}

/// `restore`: it would take a plaintext key.
pub(in crate::api) async fn restore(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    refuse("restore is not supported: bring a key in with keys/:name/import")
}

/// `datakey` of a kind that isn't there.
pub(in crate::api) async fn datakey(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    refuse("Invalid path, must be 'plaintext' or 'wrapped'")
}

fn refuse(why: &'static str) -> Result<Answer, ApiError> {
    Err(ApiError::bad_request(why))
}
