//! The pairs as objects: made, found again, held against what they must be.

use cryptoki::error::RvError;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CKA_DECRYPT, CKA_DERIVE, CKA_EXTRACTABLE, CKA_PRIVATE, CKA_SENSITIVE,
    CKA_SIGN, CKA_TOKEN, CKA_UNWRAP,
};

use super::ParticipantKeys;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys;
use crate::template::P256_OID;
use crate::watched::WatchedSession;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Signing,
    Agreement,
}

pub(super) const PURPOSES: [Purpose; 2] = [Purpose::Signing, Purpose::Agreement];

/// Both pairs of a participant.
pub(super) struct Found {
    pub(super) keys: ParticipantKeys,
    pub(super) signing: ObjectHandle,
    pub(super) agreement: ObjectHandle,
}

impl Purpose {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Signing => "participant's signing key",
            Self::Agreement => "participant's agreement key",
        }
    }

    fn label(self, name: &str) -> String {
        match self {
            Self::Signing => format!("{name} (ceremony signing)"),
            Self::Agreement => format!("{name} (ceremony agreement)"),
        }
    }

    /// What the private key must be, made here or found.
    fn rules(self) -> [(CK_ATTRIBUTE_TYPE, &'static str, bool); 8] {
        let signing = self == Self::Signing;
        [
            (CKA_TOKEN, "CKA_TOKEN", true),
            (CKA_PRIVATE, "CKA_PRIVATE", true),
            (CKA_SENSITIVE, "CKA_SENSITIVE", true),
            (CKA_EXTRACTABLE, "CKA_EXTRACTABLE", false),
            (CKA_SIGN, "CKA_SIGN", signing),
            (CKA_DERIVE, "CKA_DERIVE", !signing),
            (CKA_DECRYPT, "CKA_DECRYPT", false),
            (CKA_UNWRAP, "CKA_UNWRAP", false),
        ]
    }
}

/// (public, private).
pub(super) fn make_pair(
    watched: &WatchedSession,
    purpose: Purpose,
    id: &[u8],
    name: &str,
) -> Result<[ObjectHandle; 2], Fault> {
    let signing = purpose == Purpose::Signing;
    let both = [
        Attribute::Token(true),
        Attribute::Id(id.to_vec()),
        Attribute::Label(purpose.label(name).into_bytes()),
        Attribute::Derive(!signing),
    ];
    let mut public = both.to_vec();
    public.extend([
        Attribute::Private(false),
        Attribute::Verify(signing),
        Attribute::EcParams(P256_OID.to_vec()),
    ]);
    let mut private = both.to_vec();
    private.extend([
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(signing),
        Attribute::Decrypt(false),
        Attribute::Unwrap(false),
    ]);
    // What a smart card may not know; the last must be last: SoftHSM lets nothing be set after it.
    let mut narrow = private.clone();
    let mechanism = if signing {
        MechanismType::ECDSA
    } else {
        MechanismType::ECDH1_DERIVE
    };
    narrow.extend([
        Attribute::AllowedMechanisms(vec![mechanism]),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ]);
    let attempt = |private: &[Attribute]| {
        watched
            .session()
            .generate_key_pair(&Mechanism::EccKeyPairGen, &public, private)
            .map_err(Fault::from)
    };
    let (public, private) = match attempt(&narrow) {
        Err(Fault::Token(
            RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::AttributeReadOnly
            | RvError::TemplateInconsistent,
            _,
        )) => attempt(&private)?,
        other => other?,
    };
    Ok([public, private])
}

pub(super) fn find_keys(watched: &WatchedSession, id: &[u8]) -> Result<Found, Fault> {
    let (signing, signing_public) = find_pair(watched, Purpose::Signing, id)?;
    let (agreement, agreement_public) = find_pair(watched, Purpose::Agreement, id)?;
    Ok(Found {
        keys: ParticipantKeys {
            id: id.to_vec(),
            signing: signing_public,
            agreement: agreement_public,
        },
        signing,
        agreement,
    })
}

/// The private key, and the public one's `SubjectPublicKeyInfo`.
fn find_pair(
    watched: &WatchedSession,
    purpose: Purpose,
    id: &[u8],
) -> Result<(ObjectHandle, Vec<u8>), Fault> {
    let policy = |attribute: &str, problem: &str| HsmError::KeyPolicy {
        key: purpose.name().to_owned(),
        attribute: attribute.to_owned(),
        problem: problem.to_owned(),
    };
    let signing = purpose == Purpose::Signing;
    let only = |class, use_of| -> Result<ObjectHandle, Fault> {
        let template = [
            Attribute::Class(class),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Id(id.to_vec()),
            use_of,
        ];
        match watched.find_objects(&template)?.as_slice() {
            [object] => Ok(*object),
            found => Err(policy(
                "CKA_ID",
                &format!(
                    "is on {} such objects, there must be one: use the token that the key was made on",
                    found.len()
                ),
            )
            .into()),
        }
    };
    let (private, public) = if signing {
        (
            only(ObjectClass::PRIVATE_KEY, Attribute::Sign(true))?,
            only(ObjectClass::PUBLIC_KEY, Attribute::Verify(true))?,
        )
    } else {
        (
            only(ObjectClass::PRIVATE_KEY, Attribute::Derive(true))?,
            only(ObjectClass::PUBLIC_KEY, Attribute::Derive(true))?,
        )
    };
    for (attribute, name, wanted) in purpose.rules() {
        let value = watched
            .raw()
            .attribute(watched.session(), private, attribute)?;
        let good = match value.as_deref() {
            Some([byte]) => (*byte != 0) == wanted,
            // An attribute that the token does not know is not set.
            _ => !wanted,
        };
        if !good {
            return Err(policy(name, &format!("is not {wanted}")).into());
        }
    }
    let spki = keys::spki(watched, public)?
        .ok_or_else(|| policy("CKA_EC_POINT", "is not a point on P-256"))?;
    Ok((private, spki))
}
