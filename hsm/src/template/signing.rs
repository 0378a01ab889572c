//! Signing keys that callers ask for: many on one token, told apart by `CKA_ID`, which is not in
//! these tables because it differs in each.
//!
//! The private half is a token object that signs and does nothing else; it never leaves the token,
//! not even wrapped. The public half is a session object of a moment: what is kept of it is in the
//! caller's records.

use cryptoki_sys::{
    CK_MECHANISM_TYPE, CKA_ALLOWED_MECHANISMS, CKA_ALWAYS_SENSITIVE, CKA_CLASS, CKA_COPYABLE,
    CKA_DECRYPT, CKA_DERIVE, CKA_EC_PARAMS, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL,
    CKA_MODIFIABLE, CKA_MODULUS_BITS, CKA_NEVER_EXTRACTABLE, CKA_PRIVATE, CKA_PUBLIC_EXPONENT,
    CKA_SENSITIVE, CKA_SIGN, CKA_SIGN_RECOVER, CKA_TOKEN, CKA_UNWRAP, CKA_VERIFY, CKK_EC,
    CKK_EC_EDWARDS, CKK_RSA, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EC_KEY_PAIR_GEN, CKM_ECDSA,
    CKM_EDDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS_PSS, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
};

use super::{F4, NO, P256_OID, Rule, Value, When, YES};
use crate::types::SigningKind;

/// `CKA_LABEL` of all of them.
pub(crate) const LABEL: &str = "strongroom-signing";
/// DER of the object identifier id-Ed25519 (1.3.101.112).
pub(crate) const ED25519_OID: &[u8] = &[0x06, 0x03, 0x2b, 0x65, 0x70];

/// How a kind of key is made.
pub(crate) struct SigningSpec {
    /// For people.
    pub(crate) name: &'static str,
    /// `CKM_…_KEY_PAIR_GEN`.
    pub(crate) mechanism: CK_MECHANISM_TYPE,
    /// What it signs with: each must be on the token's list.
    pub(crate) signs_with: &'static [(CK_MECHANISM_TYPE, &'static str)],
    pub(crate) public: &'static [Rule],
    pub(crate) private: &'static [Rule],
}

macro_rules! public {
    ($type:expr, $($name:ident = $value:expr),+) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
            Always CKA_KEY_TYPE = Value::Ulong($type);
            Always CKA_TOKEN = NO;
            Always CKA_PRIVATE = NO;
            Always CKA_VERIFY = YES;
            $(Always $name = $value;)+
        }
    };
}

macro_rules! private {
    ($type:expr, $mechanisms:expr) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_PRIVATE_KEY);
            Always CKA_KEY_TYPE = Value::Ulong($type);
            Always CKA_LABEL = Value::Bytes(std::borrow::Cow::Borrowed(LABEL.as_bytes()));
            Always CKA_TOKEN = YES;
            Always CKA_PRIVATE = YES;
            Always CKA_SENSITIVE = YES;
            Always CKA_EXTRACTABLE = NO;
            Always CKA_SIGN = YES;
            Always CKA_SIGN_RECOVER = NO;
            Always CKA_DECRYPT = NO;
            Always CKA_UNWRAP = NO;
            Always CKA_DERIVE = NO;
            Always CKA_MODIFIABLE = NO;
            IfKnown CKA_COPYABLE = NO;
            Always CKA_ALLOWED_MECHANISMS = Value::Mechanisms($mechanisms);
            CheckOnly CKA_ALWAYS_SENSITIVE = YES;
            CheckOnly CKA_NEVER_EXTRACTABLE = YES;
            CheckOnly CKA_LOCAL = YES;
        }
    };
}

const ECDSA_P256: SigningSpec = SigningSpec {
    name: "P-256 signing key",
    mechanism: CKM_EC_KEY_PAIR_GEN,
    signs_with: &[
        (CKM_EC_KEY_PAIR_GEN, "CKM_EC_KEY_PAIR_GEN"),
        (CKM_ECDSA, "CKM_ECDSA"),
    ],
    public: public!(
        CKK_EC,
        CKA_EC_PARAMS = Value::Bytes(std::borrow::Cow::Borrowed(P256_OID))
    ),
    private: private!(CKK_EC, &[CKM_ECDSA]),
};

const RSA_4096: SigningSpec = SigningSpec {
    name: "RSA-4096 signing key",
    mechanism: CKM_RSA_PKCS_KEY_PAIR_GEN,
    signs_with: &[
        (CKM_RSA_PKCS_KEY_PAIR_GEN, "CKM_RSA_PKCS_KEY_PAIR_GEN"),
        (CKM_RSA_PKCS_PSS, "CKM_RSA_PKCS_PSS"),
        (CKM_RSA_PKCS, "CKM_RSA_PKCS"),
    ],
    public: public!(
        CKK_RSA,
        CKA_MODULUS_BITS = Value::Ulong(4096),
        CKA_PUBLIC_EXPONENT = Value::Bytes(std::borrow::Cow::Borrowed(F4))
    ),
    private: private!(CKK_RSA, &[CKM_RSA_PKCS_PSS, CKM_RSA_PKCS]),
};

const ED25519: SigningSpec = SigningSpec {
    name: "Ed25519 signing key",
    mechanism: CKM_EC_EDWARDS_KEY_PAIR_GEN,
    signs_with: &[
        (CKM_EC_EDWARDS_KEY_PAIR_GEN, "CKM_EC_EDWARDS_KEY_PAIR_GEN"),
        (CKM_EDDSA, "CKM_EDDSA"),
    ],
    public: public!(
        CKK_EC_EDWARDS,
        CKA_EC_PARAMS = Value::Bytes(std::borrow::Cow::Borrowed(ED25519_OID))
    ),
    private: private!(CKK_EC_EDWARDS, &[CKM_EDDSA]),
};

/// The table of a kind.
pub(crate) fn spec(kind: SigningKind) -> &'static SigningSpec {
    match kind {
        SigningKind::EcdsaP256 => &ECDSA_P256,
        SigningKind::Rsa4096 => &RSA_4096,
        SigningKind::Ed25519 => &ED25519,
    }
}
