//! Every object of the appliance as data: what provisioning asks the token for, and what each start
//! demands of it.
//!
//! One table serves both, so that a check can't forget an attribute which provisioning sets. See
//! PKCS#11 3.1, sections 4.4 to 4.10.

use std::borrow::Cow;

use base16ct::lower::encode_string as hex;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_KEY_TYPE, CK_MECHANISM_TYPE, CK_ULONG, CKA_ALLOWED_MECHANISMS,
    CKA_ALWAYS_SENSITIVE, CKA_CLASS, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_EC_PARAMS,
    CKA_EC_POINT, CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_ID, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL,
    CKA_MODIFIABLE, CKA_MODULUS_BITS, CKA_NEVER_EXTRACTABLE, CKA_PRIVATE, CKA_PUBLIC_EXPONENT,
    CKA_SENSITIVE, CKA_SIGN, CKA_SIGN_RECOVER, CKA_TOKEN, CKA_TRUSTED, CKA_UNWRAP,
    CKA_UNWRAP_TEMPLATE, CKA_VALUE, CKA_VALUE_LEN, CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_WRAP,
    CKA_WRAP_WITH_TRUSTED, CKK_AES, CKK_EC, CKK_GENERIC_SECRET, CKK_RSA, CKM_AES_GCM,
    CKM_AES_KEY_GEN, CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, CKM_RSA_PKCS, CKM_RSA_PKCS_KEY_PAIR_GEN,
    CKM_RSA_PKCS_OAEP, CKM_SHA224_HMAC, CKM_SHA256_HMAC, CKM_SHA384_HMAC, CKM_SHA512_HMAC,
    CKO_DATA, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY, CKO_SECRET_KEY,
};

use crate::config::KeyShape;

macro_rules! rule {
    ($when:ident $name:ident = $value:expr) => {
        Rule {
            attribute: $name,
            name: stringify!($name),
            value: $value,
            when: When::$when,
        }
    };
}

/// One attribute and the value it must have.
#[derive(Clone)]
pub(crate) struct Rule {
    pub(crate) attribute: CK_ATTRIBUTE_TYPE,
    /// As PKCS#11 spells it, for error messages.
    pub(crate) name: &'static str,
    pub(crate) value: Value,
    pub(crate) when: When,
}

/// An attribute's value.
#[derive(Clone)]
pub(crate) enum Value {
    Bool(bool),
    Ulong(CK_ULONG),
    Bytes(Cow<'static, [u8]>),
    Mechanisms(&'static [CK_MECHANISM_TYPE]),
    /// An attribute that is itself a template: the object must have at least these.
    Template(Cow<'static, [Rule]>),
}

/// When a rule is given to the token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Asked for and checked.
    Always,
    /// Asked for and checked, but left out for a token that does not know the attribute.
    IfKnown,
    /// Set by the token itself: only checked.
    CheckOnly,
}

/// A key (or key pair) that lives on the token.
pub(crate) struct KeySpec {
    /// For people: "master key".
    pub(crate) name: &'static str,
    /// What the ceremony's progress line says.
    pub(crate) making: &'static str,
    /// `CKA_LABEL` of all its objects.
    pub(crate) label: &'static str,
    /// `CKM_…_KEY_GEN`.
    pub(crate) mechanism: CK_MECHANISM_TYPE,
    /// The public key of a pair.
    pub(crate) public: Option<&'static [Rule]>,
    /// The private or secret key.
    pub(crate) private: &'static [Rule],
}

impl KeySpec {
    /// Class of the private half or secret key.
    pub(crate) fn private_class(&self) -> CK_ULONG {
        if self.public.is_some() {
            CKO_PRIVATE_KEY
        } else {
            CKO_SECRET_KEY
        }
    }
}

impl KeySpec {
    /// Whether a second token needs this very key; it makes the others itself.
    pub(crate) fn is_moved(&self) -> bool {
        [
            MASTER.label,
            TRANSFER.label,
            MEMORY_MASTER.label,
            STORE.label,
        ]
        .contains(&self.label)
    }

    /// [`KeySpec::private`] as the plan decided.
    pub(crate) fn private_rules(&self, shape: KeyShape) -> Vec<Rule> {
        let mut rules = self.private.to_vec();
        if shape == KeyShape::Fixed || !self.is_moved() {
            return rules;
        }
        for rule in &mut rules {
            match rule.attribute {
                CKA_EXTRACTABLE => rule.value = YES,
                CKA_NEVER_EXTRACTABLE => rule.value = NO,
                // The token can't say them of a key that it did not make.
                CKA_LOCAL | CKA_ALWAYS_SENSITIVE if shape == KeyShape::Moved => rule.value = NO,
                _ => {}
            }
        }
        if shape == KeyShape::Moved {
            // Not to be told where a key is unwrapped, and SoftHSM then says 0: that it is the same
            // key, the trial shows.
            rules.retain(|rule| rule.attribute != CKA_VALUE_LEN);
        }
        rules.push(rule!(Always CKA_WRAP_WITH_TRUSTED = YES));
        // Last: SoftHSM lets nothing be set after it.
        rules.sort_by_key(|rule| rule.attribute == CKA_MODIFIABLE);
        rules
    }

    /// [`KeySpec::public`] as the plan decided; empty for a secret key.
    pub(crate) fn public_rules(&self, shape: KeyShape) -> Vec<Rule> {
        let mut rules = self.public.unwrap_or_default().to_vec();
        if shape == KeyShape::Moved && self.is_moved() {
            for rule in &mut rules {
                if rule.attribute == CKA_LOCAL {
                    rule.value = NO;
                }
            }
        }
        rules
    }
}

impl Rule {
    /// `CKA_VALUE_LEN`, bytes.
    pub(crate) fn length(bytes: usize) -> Self {
        // At most a few dozen: fits any CK_ULONG.
        rule!(Always CKA_VALUE_LEN = Value::Ulong(bytes as CK_ULONG))
    }

    /// `CKA_KEY_TYPE`, a `CKK_…`.
    pub(crate) fn key_type(kind: CK_KEY_TYPE) -> Self {
        rule!(Always CKA_KEY_TYPE = Value::Ulong(kind))
    }

    /// `CKA_VALUE`.
    pub(crate) fn value(bytes: &'static [u8]) -> Self {
        rule!(Always CKA_VALUE = Value::Bytes(Cow::Borrowed(bytes)))
    }

    /// `CKA_MODULUS_BITS`.
    pub(crate) fn modulus_bits(bits: CK_ULONG) -> Self {
        rule!(Always CKA_MODULUS_BITS = Value::Ulong(bits))
    }

    /// The same attribute with the other value, if it is yes or no.
    pub(crate) fn opposite(&self) -> Option<Self> {
        match self.value {
            Value::Bool(value) => Some(Self {
                value: Value::Bool(!value),
                ..self.clone()
            }),
            _ => None,
        }
    }

    /// Whether the rule goes into a creation template.
    pub(crate) fn asked(&self, with_optional: bool) -> bool {
        match self.when {
            When::Always => true,
            When::IfKnown => with_optional,
            When::CheckOnly => false,
        }
    }

    /// The rule without what a token need not know in a template: such as that refuses the whole
    /// template because of `CKA_COPYABLE`.
    pub(crate) fn without_optional(&self) -> Self {
        let Value::Template(inner) = &self.value else {
            return self.clone();
        };
        let inner = inner
            .iter()
            .filter(|rule| rule.attribute != CKA_COPYABLE || rule.when != When::IfKnown);
        Self {
            value: Value::Template(inner.cloned().collect()),
            ..self.clone()
        }
    }

    /// Whether an attribute's bytes, as the token gave them, satisfy the rule. Templates are
    /// compared elsewhere.
    pub(crate) fn admits(&self, bytes: &[u8]) -> bool {
        match &self.value {
            // CK_TRUE is 1, but "not zero" counts as true in C.
            Value::Bool(value) => bytes.len() == 1 && bytes.iter().all(|b| (*b != 0) == *value),
            Value::Ulong(value) => bytes == value.to_ne_bytes(),
            Value::Bytes(value) => bytes == &**value,
            Value::Mechanisms(value) => {
                let (chunks, rest) = bytes.as_chunks::<{ size_of::<CK_MECHANISM_TYPE>() }>();
                rest.is_empty()
                    && chunks.len() == value.len()
                    && chunks
                        .iter()
                        .all(|c| value.contains(&CK_MECHANISM_TYPE::from_ne_bytes(*c)))
            }
            Value::Template(_) => false,
        }
    }

    /// The demanded value for an error message.
    pub(crate) fn wanted(&self) -> String {
        match &self.value {
            Value::Bool(value) => value.to_string(),
            Value::Ulong(value) => value.to_string(),
            Value::Bytes(value) => hex(value),
            Value::Mechanisms(value) => value
                .iter()
                .map(|mechanism| mechanism_name(*mechanism))
                .collect::<Vec<_>>()
                .join(", "),
            Value::Template(rules) => rules
                .iter()
                .map(|rule| format!("{}={}", rule.name, rule.wanted()))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}

macro_rules! rules {
    ($($when:ident $name:ident = $value:expr;)+) => { &[$(rule!($when $name = $value)),+] };
}

const YES: Value = Value::Bool(true);
const NO: Value = Value::Bool(false);
const OAEP_ONLY: Value = Value::Mechanisms(&[CKM_RSA_PKCS_OAEP]);
/// The public exponent of every RSA key, big-endian.
pub(crate) const F4: &[u8] = &[1, 0, 1];
/// DER of the object identifier prime256v1 (1.2.840.10045.3.1.7).
pub(crate) const P256_OID: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// What the master key forces on every key it unwraps. A call must repeat these (`SoftHSM`) or
/// leave them out.
///
/// Master keys of earlier builds do not force the last three, so they are asked for and not
/// demanded: whether it matters on a token, the trial finds out (`trial/parts.rs`). Without
/// `CKA_MODIFIABLE` and `CKA_COPYABLE` the user may leave them at true in the call, and `SoftHSM`
/// then lets them set `CKA_DERIVE`, `CKA_WRAP` and `CKA_UNWRAP`, on the key or on a copy.
pub(crate) const MASTER_UNWRAP_TEMPLATE: &[Rule] = rules! {
    Always CKA_EXTRACTABLE = NO;
    Always CKA_SENSITIVE = YES;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    IfKnown CKA_DERIVE = NO;
    IfKnown CKA_COPYABLE = NO;
    IfKnown CKA_MODIFIABLE = NO;
};

/// What the transfer key forces on what it unwraps: it comes out under a trusted key, and is good
/// for nothing else. Each must be repeated in the call, so the same table is the template of the
/// call.
///
/// `CKA_COPYABLE` and `CKA_MODIFIABLE` are not ornament: without them `SoftHSM` lets the user set
/// `CKA_DERIVE`, and copy with `CKA_ENCRYPT`.
pub(crate) const TRANSFER_UNWRAP_TEMPLATE: &[Rule] = rules! {
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = YES;
    Always CKA_WRAP_WITH_TRUSTED = YES;
    Always CKA_ENCRYPT = NO;
    Always CKA_DECRYPT = NO;
    Always CKA_SIGN = NO;
    Always CKA_VERIFY = NO;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_DERIVE = NO;
    Always CKA_COPYABLE = NO;
    Always CKA_MODIFIABLE = NO;
};

/// What the BYOK wrapping key forces on the ephemeral AES key: it may unwrap the target and nothing
/// else. Keys of earlier builds do not force the last three, see [`MASTER_UNWRAP_TEMPLATE`].
pub(crate) const WRAPPING_UNWRAP_TEMPLATE: &[Rule] = rules! {
    Always CKA_EXTRACTABLE = NO;
    Always CKA_SENSITIVE = YES;
    Always CKA_WRAP = NO;
    Always CKA_ENCRYPT = NO;
    Always CKA_DECRYPT = NO;
    IfKnown CKA_DERIVE = NO;
    IfKnown CKA_COPYABLE = NO;
    IfKnown CKA_MODIFIABLE = NO;
};

/// The public half of an RSA key: `$wrap` says whether the token may wrap with it.
macro_rules! rsa_public {
    ($label:literal, wrap: $wrap:expr) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
            Always CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
            Always CKA_LABEL = Value::Bytes(Cow::Borrowed($label));
            Always CKA_ID = Value::Bytes(Cow::Borrowed($label));
            Always CKA_TOKEN = YES;
            Always CKA_PRIVATE = NO;
            Always CKA_WRAP = $wrap;
            Always CKA_ENCRYPT = NO;
            Always CKA_VERIFY = NO;
            Always CKA_VERIFY_RECOVER = NO;
            Always CKA_DERIVE = NO;
            Always CKA_MODIFIABLE = NO;
            IfKnown CKA_COPYABLE = NO;
            CheckOnly CKA_LOCAL = YES;
            Always CKA_PUBLIC_EXPONENT = Value::Bytes(Cow::Borrowed(F4));
            Always CKA_MODULUS_BITS = Value::Ulong(4096);
        }
    };
}

/// The private half of an RSA key.
macro_rules! rsa_private {
    ($label:literal, unwrap: $unwrap:expr, decrypt: $decrypt:expr $(, $rest:ident = $value:expr)*) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_PRIVATE_KEY);
            Always CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
            Always CKA_LABEL = Value::Bytes(Cow::Borrowed($label));
            Always CKA_ID = Value::Bytes(Cow::Borrowed($label));
            Always CKA_TOKEN = YES;
            Always CKA_PRIVATE = YES;
            Always CKA_SENSITIVE = YES;
            Always CKA_EXTRACTABLE = NO;
            Always CKA_UNWRAP = $unwrap;
            Always CKA_DECRYPT = $decrypt;
            Always CKA_SIGN = NO;
            Always CKA_SIGN_RECOVER = NO;
            Always CKA_DERIVE = NO;
            Always CKA_MODIFIABLE = NO;
            IfKnown CKA_COPYABLE = NO;
            Always CKA_ALLOWED_MECHANISMS = OAEP_ONLY;
            $(Always $rest = $value;)*
            CheckOnly CKA_ALWAYS_SENSITIVE = YES;
            CheckOnly CKA_NEVER_EXTRACTABLE = YES;
            CheckOnly CKA_LOCAL = YES;
        }
    };
}

/// Wraps KEKs (public half) and unwraps them (private half), as session objects only.
pub(crate) const MASTER: KeySpec = KeySpec {
    name: "master key",
    making: "RSA-4096 master key",
    label: "strongroom-master",
    mechanism: CKM_RSA_PKCS_KEY_PAIR_GEN,
    public: Some(rsa_public!(b"strongroom-master", wrap: YES)),
    private: rsa_private!(
        b"strongroom-master", unwrap: YES, decrypt: NO,
        CKA_UNWRAP_TEMPLATE = Value::Template(Cow::Borrowed(MASTER_UNWRAP_TEMPLATE))
    ),
};

/// Unwraps KEKs on their way from one master key to the next: they come out extractable, but only
/// under keys that the security officer has marked as trusted.
pub(crate) const TRANSFER: KeySpec = KeySpec {
    name: "transfer key",
    making: "RSA-4096 transfer key",
    label: "strongroom-transfer",
    mechanism: CKM_RSA_PKCS_KEY_PAIR_GEN,
    public: Some(rsa_public!(b"strongroom-transfer", wrap: YES)),
    private: rsa_private!(
        b"strongroom-transfer", unwrap: YES, decrypt: NO,
        CKA_UNWRAP_TEMPLATE = Value::Template(Cow::Borrowed(TRANSFER_UNWRAP_TEMPLATE))
    ),
};

/// What the security officer imports of a new master or transfer key: its public numbers, marked as
/// trusted. Label, identifier and numbers are compared elsewhere.
pub(crate) const TRUSTED: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
    Always CKA_TOKEN = YES;
    Always CKA_PRIVATE = NO;
    Always CKA_TRUSTED = YES;
    Always CKA_WRAP = YES;
    Always CKA_ENCRYPT = NO;
    Always CKA_VERIFY = NO;
    Always CKA_VERIFY_RECOVER = NO;
    Always CKA_DERIVE = NO;
    Always CKA_MODIFIABLE = NO;
    IfKnown CKA_COPYABLE = NO;
};

/// Wraps KEKs of `memory` residency and decrypts them into the host; can't unwrap.
pub(crate) const MEMORY_MASTER: KeySpec = KeySpec {
    name: "memory master key",
    making: "RSA-4096 master key for memory residency",
    label: "strongroom-memory-master",
    mechanism: CKM_RSA_PKCS_KEY_PAIR_GEN,
    public: Some(rsa_public!(b"strongroom-memory-master", wrap: YES)),
    private: rsa_private!(b"strongroom-memory-master", unwrap: NO, decrypt: YES),
};

/// Unwraps the ephemeral AES key of an imported key (BYOK). Its public half is for others, never
/// for the token.
pub(crate) const WRAPPING: KeySpec = KeySpec {
    name: "BYOK wrapping key",
    making: "RSA-4096 wrapping key for imports",
    label: "strongroom-wrapping",
    mechanism: CKM_RSA_PKCS_KEY_PAIR_GEN,
    public: Some(rsa_public!(b"strongroom-wrapping", wrap: NO)),
    private: rsa_private!(
        b"strongroom-wrapping", unwrap: YES, decrypt: NO,
        CKA_UNWRAP_TEMPLATE = Value::Template(Cow::Borrowed(WRAPPING_UNWRAP_TEMPLATE))
    ),
};

/// Authenticates and encrypts the sealed store's records.
pub(crate) const STORE: KeySpec = KeySpec {
    name: "store key",
    making: "AES-256 store key",
    label: "strongroom-store",
    mechanism: CKM_AES_KEY_GEN,
    public: None,
    private: rules! {
        Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
        Always CKA_KEY_TYPE = Value::Ulong(CKK_AES);
        Always CKA_LABEL = Value::Bytes(Cow::Borrowed(b"strongroom-store"));
        Always CKA_ID = Value::Bytes(Cow::Borrowed(b"strongroom-store"));
        Always CKA_TOKEN = YES;
        Always CKA_PRIVATE = YES;
        Always CKA_SENSITIVE = YES;
        Always CKA_EXTRACTABLE = NO;
        Always CKA_ENCRYPT = YES;
        Always CKA_DECRYPT = YES;
        Always CKA_SIGN = NO;
        Always CKA_VERIFY = NO;
        Always CKA_WRAP = NO;
        Always CKA_UNWRAP = NO;
        Always CKA_DERIVE = NO;
        Always CKA_MODIFIABLE = NO;
        IfKnown CKA_COPYABLE = NO;
        Always CKA_ALLOWED_MECHANISMS = Value::Mechanisms(&[CKM_AES_GCM]);
        Always CKA_VALUE_LEN = Value::Ulong(32);
        CheckOnly CKA_ALWAYS_SENSITIVE = YES;
        CheckOnly CKA_NEVER_EXTRACTABLE = YES;
        CheckOnly CKA_LOCAL = YES;
    },
};

/// Signs the audit log and other transcripts.
pub(crate) const AUDIT: KeySpec = KeySpec {
    name: "audit signing key",
    making: "P-256 audit signing key",
    label: "strongroom-audit",
    mechanism: CKM_EC_KEY_PAIR_GEN,
    public: Some(rules! {
        Always CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
        Always CKA_KEY_TYPE = Value::Ulong(CKK_EC);
        Always CKA_LABEL = Value::Bytes(Cow::Borrowed(b"strongroom-audit"));
        Always CKA_ID = Value::Bytes(Cow::Borrowed(b"strongroom-audit"));
        Always CKA_TOKEN = YES;
        Always CKA_PRIVATE = NO;
        Always CKA_VERIFY = YES;
        Always CKA_WRAP = NO;
        Always CKA_ENCRYPT = NO;
        Always CKA_DERIVE = NO;
        Always CKA_MODIFIABLE = NO;
        IfKnown CKA_COPYABLE = NO;
        CheckOnly CKA_LOCAL = YES;
        Always CKA_EC_PARAMS = Value::Bytes(Cow::Borrowed(P256_OID));
    }),
    private: rules! {
        Always CKA_CLASS = Value::Ulong(CKO_PRIVATE_KEY);
        Always CKA_KEY_TYPE = Value::Ulong(CKK_EC);
        Always CKA_LABEL = Value::Bytes(Cow::Borrowed(b"strongroom-audit"));
        Always CKA_ID = Value::Bytes(Cow::Borrowed(b"strongroom-audit"));
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
        Always CKA_ALLOWED_MECHANISMS = Value::Mechanisms(&[CKM_ECDSA]);
        CheckOnly CKA_ALWAYS_SENSITIVE = YES;
        CheckOnly CKA_NEVER_EXTRACTABLE = YES;
        CheckOnly CKA_LOCAL = YES;
    },
};

/// A key of the appliance's data: what may be done with it, and whether it may still be wrapped.
macro_rules! data_key {
    ($type:expr, aead: $aead:expr, mac: $mac:expr, extractable: $extractable:expr, mechanisms: $mechanisms:expr) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
            Always CKA_KEY_TYPE = Value::Ulong($type);
            Always CKA_TOKEN = NO;
            Always CKA_PRIVATE = YES;
            Always CKA_SENSITIVE = YES;
            Always CKA_EXTRACTABLE = $extractable;
            Always CKA_WRAP = NO;
            Always CKA_UNWRAP = NO;
            Always CKA_ENCRYPT = $aead;
            Always CKA_DECRYPT = $aead;
            Always CKA_SIGN = $mac;
            Always CKA_VERIFY = $mac;
            Always CKA_DERIVE = NO;
            IfKnown CKA_COPYABLE = NO;
            IfKnown CKA_ALLOWED_MECHANISMS = Value::Mechanisms($mechanisms);
            // Last: SoftHSM lets nothing be set after it.
            Always CKA_MODIFIABLE = NO;
        }
    };
}

const GCM_ONLY: &[CK_MECHANISM_TYPE] = &[CKM_AES_GCM];
const HMAC_ONLY: &[CK_MECHANISM_TYPE] = &[
    CKM_SHA224_HMAC,
    CKM_SHA256_HMAC,
    CKM_SHA384_HMAC,
    CKM_SHA512_HMAC,
];

/// A KEK that the master key has unwrapped, for AES-GCM: what the call asks for, and what each must
/// be before it is used.
pub(crate) const KEK_AEAD: &[Rule] =
    data_key!(CKK_AES, aead: YES, mac: NO, extractable: NO, mechanisms: GCM_ONLY);

/// The same for HMAC.
pub(crate) const KEK_MAC: &[Rule] =
    data_key!(CKK_GENERIC_SECRET, aead: NO, mac: YES, extractable: NO, mechanisms: HMAC_ONLY);

/// A new key until it has been wrapped: the only extractable object there ever is, for
/// milliseconds. Without the optional attributes, so that its comparison with the KEK says
/// something of both.
pub(crate) const NEW_AEAD: &[Rule] =
    data_key!(CKK_AES, aead: YES, mac: NO, extractable: YES, mechanisms: GCM_ONLY);

/// The same for HMAC.
pub(crate) const NEW_MAC: &[Rule] =
    data_key!(CKK_GENERIC_SECRET, aead: NO, mac: YES, extractable: YES, mechanisms: HMAC_ONLY);

/// BYOK's first step: the AES key that unwraps the target.
pub(crate) const EPHEMERAL: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_AES);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = NO;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = YES;
    Always CKA_ENCRYPT = NO;
    Always CKA_DECRYPT = NO;
    Always CKA_DERIVE = NO;
    IfKnown CKA_COPYABLE = NO;
    // Last: SoftHSM lets nothing be set after it.
    Always CKA_MODIFIABLE = NO;
};

/// What anybody with the user PIN may make for a trial, but for its type and its right: it has no
/// other.
pub(crate) const OWN: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = NO;
    Always CKA_ENCRYPT = NO;
    Always CKA_DECRYPT = NO;
    Always CKA_SIGN = NO;
    Always CKA_VERIFY = NO;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_DERIVE = NO;
};

/// The same in few words, for a token that won't have all of them.
pub(crate) const OWN_IN_SHORT: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_TOKEN = NO;
    // With CKA_WRAP it would be the pair of rights that no key on the token may have.
    Always CKA_DECRYPT = NO;
};

/// The halves of a pair on P-256, but for the public one's right.
pub(crate) const OWN_EC: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_EC);
    Always CKA_TOKEN = NO;
    Always CKA_EC_PARAMS = Value::Bytes(Cow::Borrowed(P256_OID));
};
pub(crate) const OWN_EC_PRIVATE: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_PRIVATE_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_EC);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_DECRYPT = NO;
};

/// P-256's base point, for a public key that is imported.
pub(crate) const EC_POINT: &Rule = &rule!(
    Always CKA_EC_POINT = Value::Bytes(Cow::Borrowed(&[
        0x04, 0x41, 0x04, 0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5,
        0x63, 0xa4, 0x40, 0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39,
        0x45, 0xd8, 0x98, 0xc2, 0x96, 0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7,
        0xeb, 0x4a, 0x7c, 0x0f, 0x9e, 0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb,
        0xb6, 0x40, 0x68, 0x37, 0xbf, 0x51, 0xf5,
    ]))
);

/// `CKA_WRAP` alone.
pub(crate) const WRAPS: &Rule = &rule!(Always CKA_WRAP = YES);
/// `CKA_UNWRAP` alone.
pub(crate) const UNWRAPS: &Rule = &rule!(Always CKA_UNWRAP = YES);
/// `CKA_VERIFY` alone.
pub(crate) const VERIFIES: &Rule = &rule!(Always CKA_VERIFY = YES);

/// What is not a key at all, and tells its value by nature.
pub(crate) const AS_DATA: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_DATA);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
};

/// A key that wraps and is marked as trusted, which the security officer alone must be able to
/// make: no more than that takes.
macro_rules! claimed {
    ($($rest:ident = $value:expr;)+) => {
        rules! { $(Always $rest = $value;)+ Always CKA_WRAP = YES; Always CKA_TRUSTED = YES; }
    };
}

/// An AES key that is generated, unwrapped or derived.
pub(crate) const CLAIMED_AES: &[Rule] = claimed! {
    CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    CKA_KEY_TYPE = Value::Ulong(CKK_AES);
};

/// One that is imported.
pub(crate) const CLAIMED_AES_IMPORT: &[Rule] = claimed! {
    CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    CKA_KEY_TYPE = Value::Ulong(CKK_AES);
    CKA_VALUE = Value::Bytes(Cow::Borrowed(&[0x5a; 32]));
};

/// The public half of an RSA pair that is generated, but for its length.
pub(crate) const CLAIMED_RSA: &[Rule] = claimed! {
    CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
    CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
    CKA_PUBLIC_EXPONENT = Value::Bytes(Cow::Borrowed(F4));
};

/// The same of P-256.
pub(crate) const CLAIMED_EC: &[Rule] = claimed! {
    CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
    CKA_KEY_TYPE = Value::Ulong(CKK_EC);
    CKA_EC_PARAMS = Value::Bytes(Cow::Borrowed(P256_OID));
};

/// A key out of another, but for its type and length; of whatever type, it can be used so that
/// tries show when it is found.
pub(crate) const PART: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = NO;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_DERIVE = NO;
};

/// `CKA_ENCRYPT` alone, for a key that is no generic secret.
pub(crate) const ENCRYPTS: &Rule = &rule!(Always CKA_ENCRYPT = YES);
/// `CKA_SIGN` alone, for one that is.
pub(crate) const SIGNS: &Rule = &rule!(Always CKA_SIGN = YES);

/// A whole key out of another.
macro_rules! opened {
    (sensitive: $sensitive:expr, extractable: $extractable:expr) => {
        rules! {
            Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
            Always CKA_KEY_TYPE = Value::Ulong(CKK_GENERIC_SECRET);
            Always CKA_TOKEN = NO;
            Always CKA_SENSITIVE = $sensitive;
            Always CKA_EXTRACTABLE = $extractable;
            Always CKA_VALUE_LEN = Value::Ulong(32);
        }
    };
}

/// A key that is told and wrapped, out of one that is not.
pub(crate) const OPEN: &[Rule] = opened!(sensitive: NO, extractable: YES);
/// One that is told only, and one that is wrapped only: what a token may give that refuses both in
/// one.
pub(crate) const TOLD: &[Rule] = opened!(sensitive: NO, extractable: NO);
pub(crate) const WRAPPED: &[Rule] = opened!(sensitive: YES, extractable: YES);

/// What makes a key on the token worth more to a thief of the user PIN, each by itself.
pub(crate) const LOOSER: &[Rule] = rules! {
    Always CKA_SENSITIVE = NO;
    Always CKA_EXTRACTABLE = YES;
    Always CKA_WRAP_WITH_TRUSTED = NO;
    Always CKA_DECRYPT = YES;
    Always CKA_SIGN = YES;
    Always CKA_SIGN_RECOVER = YES;
    Always CKA_UNWRAP = YES;
    Always CKA_WRAP = YES;
    Always CKA_DERIVE = YES;
    // A copy of which the others can be set.
    Always CKA_MODIFIABLE = YES;
    Always CKA_COPYABLE = YES;
};

/// The same, of attributes that are lists: another template, or other mechanisms.
pub(crate) const LOOSER_LISTS: &[Rule] = rules! {
    Always CKA_UNWRAP_TEMPLATE = Value::Template(Cow::Borrowed(rules! { Always CKA_EXTRACTABLE = YES; }));
    Always CKA_ALLOWED_MECHANISMS = Value::Mechanisms(&[CKM_RSA_PKCS]);
};

/// `CKA_DERIVE` alone.
pub(crate) const DERIVES: &Rule = &rule!(Always CKA_DERIVE = YES);

/// `CKA_TRUSTED` alone.
pub(crate) const TRUSTED_MARK: &Rule = &rule!(Always CKA_TRUSTED = YES);
/// On the token, or in the session.
pub(crate) const ON_TOKEN: &[Rule] = &[rule!(Always CKA_TOKEN = NO), rule!(Always CKA_TOKEN = YES)];

/// What goes under trusted keys only, to try them with.
pub(crate) const GUARDED: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_AES);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = YES;
    Always CKA_WRAP_WITH_TRUSTED = YES;
    Always CKA_ENCRYPT = NO;
    Always CKA_DECRYPT = NO;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_DERIVE = NO;
    Always CKA_MODIFIABLE = NO;
};

/// An imported AES key between its unwrapping and its wrapping under the master key: a session
/// object of milliseconds.
pub(crate) const TARGET_AEAD: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_AES);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = YES;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_ENCRYPT = YES;
    Always CKA_DECRYPT = NO;
};

/// The same for an HMAC key.
pub(crate) const TARGET_MAC: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_GENERIC_SECRET);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = YES;
    Always CKA_EXTRACTABLE = YES;
    Always CKA_WRAP = NO;
    Always CKA_UNWRAP = NO;
    Always CKA_SIGN = YES;
};

/// What the self-test of RFC 5649 unwraps a public test vector into: readable, to compare its
/// bytes.
pub(crate) const KWP_TEST_TARGET: &[Rule] = rules! {
    Always CKA_CLASS = Value::Ulong(CKO_SECRET_KEY);
    Always CKA_KEY_TYPE = Value::Ulong(CKK_GENERIC_SECRET);
    Always CKA_TOKEN = NO;
    Always CKA_PRIVATE = YES;
    Always CKA_SENSITIVE = NO;
    Always CKA_EXTRACTABLE = YES;
};

pub(crate) mod signing;

/// The keys that every appliance has, in the order of their making; those of [`OPTIONAL`] come on
/// request.
pub(crate) const REQUIRED: [&KeySpec; 4] = [&MASTER, &STORE, &AUDIT, &WRAPPING];

/// The keys that an appliance may have.
pub(crate) const OPTIONAL: [&KeySpec; 2] = [&TRANSFER, &MEMORY_MASTER];

/// The keys that are replaced by a rotation, in the order of their making: each generation has a
/// master key, and the others as the first had.
pub(crate) const ROTATED: [&KeySpec; 3] = [&MASTER, &TRANSFER, &MEMORY_MASTER];

fn mechanism_name(mechanism: CK_MECHANISM_TYPE) -> String {
    match mechanism {
        CKM_RSA_PKCS_OAEP => "CKM_RSA_PKCS_OAEP".to_owned(),
        CKM_AES_GCM => "CKM_AES_GCM".to_owned(),
        CKM_ECDSA => "CKM_ECDSA".to_owned(),
        other => format!("mechanism {other:#x}"),
    }
}
