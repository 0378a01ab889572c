//! Keys that were born movable, from one token to another of the same kind under a transport key
//! that the custodians share.
//!
//! The transport key is never an object on a token's disk: it is a session object for the seconds
//! of its use. On the token that gives, the security officer makes it, since only they can set
//! `CKA_TRUSTED`, and only a trusted key wraps what has `CKA_WRAP_WITH_TRUSTED`; it can wrap, and
//! nothing else. On the token that takes it can unwrap, and nothing else.

use cryptoki::error::RvError;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki_sys::CK_MECHANISM_TYPE;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;
use zeroize::Zeroize as _;

use super::token::{log_in, on_token};
use super::{Epoch, MovedKey, Trial};
use crate::config::{HsmConfig, KeyShape};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::{Wrapping, writable};
use crate::keys::generation::{Numbered, parse};
use crate::keys::{Keys, Pair};
use crate::pin::SecretPin;
use crate::provision;
use crate::register::Register;
use crate::selftest::{self, Abilities};
use crate::session_key;
use crate::template::{AUDIT, MASTER, MEMORY_MASTER, OPTIONAL, Rule, STORE, TRANSFER, WRAPPING};
use crate::types::{KeyUsage, MasterKind};
use crate::watched::{Access, WatchedSession};

/// Bytes of AES-256.
const AES_256_BYTES: usize = 32;
/// What the trial's KEK encrypts, and the store key.
const TRIAL_PLAINTEXT: &[u8; 16] = b"strongroom trial";

/// Every key that a second token needs, wrapped.
pub(super) fn export(
    config: &HsmConfig,
    so_pin: &SecretPin,
    transport: &[u8; AES_256_BYTES],
) -> Result<(Vec<MovedKey>, Trial, Epoch), HsmError> {
    on_token(&config.module, &config.token, |watched, found| {
        log_in(watched, UserType::So, so_pin, &found.info)?;
        let trusted = make_trusted(watched, transport);
        watched.session().logout()?;
        let trusted = trusted?;
        let result = Access::new(config.pin.clone())
            .login(watched)
            .and_then(|()| wrap_all(watched, config.shape, trusted));
        // Whatever came of it: it must not outlive this.
        let gone = watched.session().destroy_object(trusted);
        let result = result?;
        gone?;
        Ok(result)
    })
}

fn make_trusted(
    watched: &WatchedSession,
    transport: &[u8; AES_256_BYTES],
) -> Result<ObjectHandle, Fault> {
    create(
        watched,
        transport,
        &[
            // The security officer makes no private objects. As a session object it is on no disk, and in no other process.
            Attribute::Private(false),
            Attribute::Wrap(true),
            Attribute::Unwrap(false),
            Attribute::Trusted(true),
        ],
    )
    .map_err(|fault| match fault.code() {
        Some(
            RvError::AttributeReadOnly
            | RvError::AttributeTypeInvalid
            | RvError::AttributeValueInvalid
            | RvError::TemplateInconsistent
            | RvError::UserNotLoggedIn,
        ) => HsmError::Unsupported(
            "a key that the security officer makes CKA_TRUSTED: this token leaves that to its maker's tool, so nothing can be moved".to_owned(),
        )
        .into(),
        _ => fault,
    })
}

fn create(
    watched: &WatchedSession,
    value: &[u8; AES_256_BYTES],
    more: &[Attribute],
) -> Result<ObjectHandle, Fault> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::Value(value.to_vec()),
    ];
    template.extend_from_slice(more);
    let result = watched.session().create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            value.zeroize();
        }
    }
    Ok(result?)
}

fn wrap_all(
    watched: &WatchedSession,
    shape: KeyShape,
    trusted: ObjectHandle,
) -> Result<(Vec<MovedKey>, Trial, Epoch), Fault> {
    let keys = Keys::check(watched, shape)?;
    if shape == KeyShape::Fixed {
        return Err(fixed().into());
    }
    let offered = watched.mechanisms()?;
    let abilities = selftest::run(watched, &keys, &offered)?;
    let kwp = abilities.kwp.ok_or_else(no_kwp)?;
    if keys.generations.describe().len() > 1 {
        return Err(HsmError::Rotation(
            "a rotation of the master key was begun and not ended: end it before a backup"
                .to_owned(),
        )
        .into());
    }
    let current = keys.generations.current();
    let mut moved = Vec::new();
    let pair = |spec, pair: Option<&'_ Pair>| {
        let key = Numbered {
            spec,
            generation: current.number,
        };
        pair.map(|pair| (key.label(), pair.private, Some(pair.spki.clone())))
    };
    let pairs = [
        pair(&MASTER, Some(&current.master)),
        pair(&TRANSFER, current.transfer.as_ref()),
        pair(&MEMORY_MASTER, current.memory_master.as_ref()),
        Some((STORE.label.to_owned(), keys.store, None)),
    ];
    for (label, private, spki) in pairs.into_iter().flatten() {
        moved.push(MovedKey {
            label,
            wrapped: watched.raw().wrap_key(
                watched.session(),
                Wrapping::Plain(kwp),
                trusted,
                private,
            )?,
            spki,
        });
    }
    let trial = Trial::new(watched, &keys, &abilities)?;
    let value = Register::StoreEpoch.must_read(watched)?;
    Ok((moved, trial, Epoch(value)))
}

fn fixed() -> HsmError {
    HsmError::Unsupported(
        "a backup of these keys: the plan decided in their initial ceremony that they never leave the token ([keys] backup = false)".to_owned(),
    )
}

fn no_kwp() -> HsmError {
    HsmError::Unsupported(
        "AES key wrap with padding (RFC 5649), under which keys are moved".to_owned(),
    )
}

impl Trial {
    /// A KEK that the master key wraps, with its answer, and a text that the store key sealed.
    fn new(watched: &WatchedSession, keys: &Keys, abilities: &Abilities) -> Result<Self, Fault> {
        let session = watched.session();
        let kek = session_key::generate(watched, KeyUsage::Aead, MasterKind::Hsm)?;
        let result = (|| {
            let master = keys.master(MasterKind::Hsm)?;
            let wrapped = watched.wrap_key(abilities.profile.oaep, master.public, kek)?;
            let mut answer = Vec::new();
            watched.raw().gcm_encrypt(
                session,
                kek,
                &[0; 12],
                &[],
                &writable(TRIAL_PLAINTEXT),
                &mut answer,
            )?;
            // At random, as the store's own are: the store key must see no nonce twice.
            let mut iv = [0; 12];
            session.generate_random_slice(&mut iv)?;
            let mut sealed = Vec::new();
            watched.raw().gcm_encrypt(
                session,
                keys.store,
                &iv,
                &writable(TRIAL_PLAINTEXT),
                &writable(TRIAL_PLAINTEXT),
                &mut sealed,
            )?;
            Ok(Self {
                wrapped,
                oaep: abilities.profile.oaep,
                answer,
                iv,
                sealed,
            })
        })();
        session.destroy_object(kek)?;
        result
    }

    fn check(&self, watched: &WatchedSession, keys: &Keys) -> Result<(), Fault> {
        let fails = |what: &str| {
            HsmError::SelfTest(format!(
                "{what} on the new token does not open what the old one sealed: the backup is of other keys, or was altered"
            ))
        };
        let session = watched.session();
        let master = keys.master(MasterKind::Hsm)?;
        let kek = session_key::unwrap(
            watched,
            self.oaep,
            master.private,
            &master.forced,
            &self.wrapped,
            KeyUsage::Aead,
            false,
        )
        .map_err(|_| fails("the master key"))?;
        let mut answer = Vec::new();
        let encrypted = watched.raw().gcm_encrypt(
            session,
            kek,
            &[0; 12],
            &[],
            &writable(TRIAL_PLAINTEXT),
            &mut answer,
        );
        session.destroy_object(kek)?;
        encrypted?;
        if answer != self.answer {
            return Err(fails("the master key").into());
        }
        let mut opened = zeroize::Zeroizing::new(Vec::new());
        let result = watched.raw().gcm_decrypt(
            session,
            keys.store,
            &self.iv,
            &writable(TRIAL_PLAINTEXT),
            &self.sealed,
            &mut opened,
        );
        if result.is_err() || opened.as_slice() != TRIAL_PLAINTEXT {
            return Err(fails("the store key").into());
        }
        Ok(())
    }
}

/// The keys on an initialised token without any, and new ones for what is not moved.
pub(super) fn import(
    config: &HsmConfig,
    transport: &[u8; AES_256_BYTES],
    moved: &[MovedKey],
    trial: &Trial,
    epoch: &Epoch,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HsmError> {
    on_token(&config.module, &config.token, |watched, _| {
        Access::new(config.pin.clone()).login(watched)?;
        if let Some(name) = crate::keys::existing(watched)? {
            return Err(HsmError::KeyExists(name).into());
        }
        if Register::StoreEpoch.exists(watched)? {
            return Err(HsmError::KeyExists(Register::StoreEpoch.label().to_owned()).into());
        }
        let offered = watched.mechanisms()?;
        let unwrapping = create(
            watched,
            transport,
            &[
                Attribute::Private(true),
                Attribute::Wrap(false),
                Attribute::Unwrap(true),
            ],
        )?;
        let result = unwrap_all(watched, &offered, unwrapping, moved, progress);
        let gone = watched.session().destroy_object(unwrapping);
        result?;
        gone?;
        for spec in [&WRAPPING, &AUDIT] {
            progress(spec.making);
            provision::make(watched, spec.into(), KeyShape::Moved)?;
        }
        progress("check of all attributes, and a trial");
        let keys = Keys::check(watched, KeyShape::Moved)?;
        trial.check(watched, &keys)?;
        // Last, as where keys are made: while it is missing or empty, nothing depends on them.
        Register::StoreEpoch.create(watched)?;
        if !epoch.0.is_empty() {
            Register::StoreEpoch.write(watched, &epoch.0)?;
        }
        Ok(())
    })
}

fn unwrap_all(
    watched: &WatchedSession,
    offered: &[CK_MECHANISM_TYPE],
    unwrapping: ObjectHandle,
    moved: &[MovedKey],
    progress: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let kwp = selftest::kwp(watched, offered)?.ok_or_else(no_kwp)?;
    // The label tells the generation too, which the keys of a token that was rotated before have.
    let named = |label: &str| match parse(label) {
        Some((key, false)) => Some(key),
        _ => (label == STORE.label).then(|| Numbered::from(&STORE)),
    };
    for spec in [&MASTER, &TRANSFER, &MEMORY_MASTER, &STORE] {
        let found = moved.iter().find_map(|key| {
            named(&key.label)
                .filter(|name| name.spec.label == spec.label)
                .map(|name| (name, key))
        });
        let Some((name, key)) = found else {
            if OPTIONAL.iter().any(|optional| optional.label == spec.label) {
                continue;
            }
            return Err(HsmError::Config(format!("the backup lacks the {}", spec.name)).into());
        };
        progress(&name.name());
        if let Some(spki) = &key.spki {
            public(watched, name, spki)?;
        }
        unwrap_one(watched, kwp, unwrapping, name, &key.wrapped)?;
    }
    Ok(())
}

fn unwrap_one(
    watched: &WatchedSession,
    kwp: CK_MECHANISM_TYPE,
    unwrapping: ObjectHandle,
    key: Numbered<'_>,
    wrapped: &[u8],
) -> Result<ObjectHandle, Fault> {
    let rules = key.private_rules(KeyShape::Moved);
    let asked: Vec<&Rule> = rules.iter().filter(|rule| rule.asked(true)).collect();
    Ok(watched.raw().unwrap_key(
        watched.session(),
        Wrapping::Plain(kwp),
        unwrapping,
        wrapped,
        asked.into_iter(),
    )?)
}

/// The public half as an object, from its numbers.
fn public(
    watched: &WatchedSession,
    name: Numbered<'_>,
    spki: &[u8],
) -> Result<ObjectHandle, Fault> {
    let key = rsa::PublicKey::from_public_key_der(spki).map_err(|_| {
        HsmError::Config(format!(
            "the backup's public half of the {} is no RSA key",
            name.name()
        ))
    })?;
    // As the table has it; the check of all keys afterwards holds it against that.
    let id = name.label().into_bytes();
    let template = [
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Label(id.clone()),
        Attribute::Id(id),
        Attribute::Token(true),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Derive(false),
        Attribute::Modulus(key.n().to_be_bytes_trimmed_vartime().into()),
        Attribute::PublicExponent(key.e().to_be_bytes_trimmed_vartime().into()),
        Attribute::Copyable(false),
        // Last: SoftHSM lets nothing be set after it.
        Attribute::Modifiable(false),
    ];
    Ok(watched.session().create_object(&template)?)
}
