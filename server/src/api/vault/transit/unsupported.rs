//! What Vault's Transit does and this appliance doesn't: each says so in Vault's words, where Vault
//! has them. `request!` has the names that are refused wherever they stand.

use crate::api::pipeline::answer::Answer;
use crate::api::vault::batch::ItemError;
use crate::api::vault::call::Call;
use crate::api::vault::error::ApiError;

/// What is refused whatever the key is.
#[derive(Clone, Copy)]
pub(super) enum Refused {
    /// `export` of anything but public keys: no key leaves in plaintext.
    Export,
    /// Vault's backup holds the key in plaintext.
    Backup,
    /// It would take a plaintext key.
    Restore,
    /// A data key neither `plaintext` nor `wrapped`.
    DataKey,
    Exportable,
    PlaintextBackup,
    /// A nonce served convergent keys of version 1, which nobody makes any more, and was
    /// CVE-2023-4680.
    Nonce,
    /// A context of what is made with the key itself, not with one derived from it.
    Context,
    /// A context of a key that is made.
    KeyContext,
    ManagedKey,
    /// A hash of the input in place of an input, where an HMAC is made.
    Prehashed,
    /// An asymmetric key that is imported.
    PublicKey,
    /// A version that is imported in the place of another.
    ImportedVersion,
    /// A type that signs, of a key that is imported.
    TypeToImport,
    /// A type that signs, of a key that encrypts.
    TypeToEncrypt,
}

impl Refused {
    fn why(self) -> &'static str {
        match self {
            Self::Export => "private key material is not exportable",
            Self::Backup => "exporting is disallowed on the policy",
            Self::Restore => "restore is not supported: bring a key in with keys/:name/import",
            Self::DataKey => "Invalid path, must be 'plaintext' or 'wrapped'",
            Self::Exportable => {
                "exportable is not supported: keys never leave the appliance in plaintext"
            }
            Self::PlaintextBackup => {
                "allow_plaintext_backup is not supported: keys never leave the appliance in plaintext"
            }
            Self::Nonce => "provided nonce not allowed for this key",
            Self::Context => {
                "signatures and HMACs are not made with derived keys: leave context out"
            }
            Self::KeyContext => {
                "a key has no context of its own: leave it out, and give it with each operation"
            }
            Self::ManagedKey => "managed keys are not supported: every key is held by the HSM",
            Self::Prehashed => "prehashed is for signatures: an HMAC is made of the input as it is",
            Self::PublicKey => "provided type does not support public_key import",
            Self::ImportedVersion => {
                "version is not supported: an imported version becomes the latest one"
            }
            Self::TypeToImport => {
                "signing keys can't be imported: they are made in the token; create one with keys/:name"
            }
            Self::TypeToEncrypt => "the type of a key that encrypts is aes256-gcm96",
        }
    }

    /// Refuses the request, or the item, if it asks for this.
    pub(super) fn when(self, asked: bool) -> Result<(), Self> {
        if asked { Err(self) } else { Ok(()) }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        Self::bad_request(refused.why())
    }
}

impl From<Refused> for ItemError {
    fn from(refused: Refused) -> Self {
        refused.why().into()
    }
}

/// `export` of anything but public keys.
pub(in crate::api) async fn export(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    Err(Refused::Export.into())
}

/// `backup`.
pub(in crate::api) async fn backup(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    Err(Refused::Backup.into())
}

/// `restore`.
pub(in crate::api) async fn restore(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    Err(Refused::Restore.into())
}

/// `datakey` of a kind that isn't there.
pub(in crate::api) async fn datakey(_: &mut Call<'_>) -> Result<Answer, ApiError> {
    Err(Refused::DataKey.into())
}
