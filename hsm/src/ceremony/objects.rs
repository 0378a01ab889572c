//! Every object of a token, by what it is to the appliance.

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{CK_ULONG, CKA_CLASS, CKA_LABEL, CKO_DATA, CKO_PUBLIC_KEY};

use super::text;
use crate::fault::{Fault, Reach};
use crate::keys::generation::{Numbered, parse};
use crate::register::Register;
use crate::template::{KeySpec, OPTIONAL, REQUIRED};
use crate::watched::WatchedSession;

/// What an object that nobody here made is called.
const FOREIGN_OBJECT: &str = "not of the appliance";
/// What is left of an object whose making was cut off: `SoftHSM` writes it to the token with
/// defaults first (a key that may both wrap and decrypt, and even `CKA_TOKEN=false`), and gives it
/// its name and attributes afterwards.
const HALF_MADE: &str = "half-made object";
/// How every label of the appliance's objects begins.
const LABEL_PREFIX: &str = "strongroom-";

/// An object that is kept on the token.
pub(super) struct TokenObject {
    pub(super) handle: ObjectHandle,
    /// `CKA_CLASS`, or the largest number if the token does not tell.
    pub(super) class: CK_ULONG,
    pub(super) label: String,
    /// "master key", "public half of the master key", ...
    pub(super) name: String,
    /// Its place in a list for people.
    rank: usize,
}

impl TokenObject {
    /// Whether the appliance made it, or began to.
    pub(super) fn is_ours(&self) -> bool {
        self.label.starts_with(LABEL_PREFIX) || self.is_half_made()
    }

    /// It has neither a label nor an identifier, as nothing on a token of the appliance is without.
    pub(super) fn is_half_made(&self) -> bool {
        self.name == HALF_MADE
    }

    /// Whether it is far enough to tell its attributes.
    pub(super) fn has_class(&self) -> bool {
        self.class != CK_ULONG::MAX
    }

    pub(super) fn class_name(&self) -> String {
        text::class(self.class)
    }
}

/// How often a listing is begun again.
const MAX_LISTINGS: usize = 50;

/// Begins again when an object went in the middle: a running server replaces its epoch object with
/// each change of the store.
pub(super) fn steadily<T>(mut body: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    for _ in 1..MAX_LISTINGS {
        match body() {
            Err(fault) if fault.reach() == Reach::Object => {}
            other => return other,
        }
    }
    body()
}

/// All that this login may see: the appliance's keys in the order of their making, then the
/// registers, the epoch object last, then the rest.
pub(super) fn all(watched: &WatchedSession) -> Result<Vec<TokenObject>, Fault> {
    steadily(|| list(watched))
}

fn list(watched: &WatchedSession) -> Result<Vec<TokenObject>, Fault> {
    let mut objects = Vec::new();
    for handle in watched.find_objects(&[])? {
        let object = describe(watched, handle)?;
        let on_token = watched.is_on_token(handle)?;
        // Nobody else being here, a nameless object that calls itself a session object is one that
        // was left on the token.
        if on_token || (object.is_half_made() && watched.library().has_one_user()) {
            objects.push(object);
        }
    }
    objects.sort_by(|a, b| {
        (a.rank, &a.label, a.class, a.handle.handle()).cmp(&(
            b.rank,
            &b.label,
            b.class,
            b.handle.handle(),
        ))
    });
    Ok(objects)
}

fn describe(watched: &WatchedSession, handle: ObjectHandle) -> Result<TokenObject, Fault> {
    let attribute = |name| watched.told(handle, name);
    let class = attribute(CKA_CLASS)?
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(CK_ULONG::MAX, CK_ULONG::from_ne_bytes);
    let label = String::from_utf8_lossy(&attribute(CKA_LABEL)?.unwrap_or_default()).into_owned();
    let (rank, name) = if watched.is_nameless(handle)? {
        (usize::MAX - 2, HALF_MADE.to_owned())
    } else {
        identify(class, &label)
    };
    Ok(TokenObject {
        handle,
        class,
        label,
        name,
        rank,
    })
}

fn identify(class: CK_ULONG, label: &str) -> (usize, String) {
    if let Some((key, trusted)) = parse(label) {
        let place = known().position(|spec| spec.label == key.spec.label);
        let generation = usize::try_from(key.generation).unwrap_or(usize::MAX);
        let rank = place
            .unwrap_or_default()
            .saturating_add(generation.saturating_mul(100))
            .saturating_sub(100)
            .min(usize::MAX - 8)
            .saturating_mul(4)
            .min(usize::MAX - 8);
        if trusted && class == CKO_PUBLIC_KEY {
            return (rank + 2, key.trusted_name());
        }
        if !trusted && class == key.spec.private_class() {
            return (rank, key.name());
        }
        if !trusted && class == CKO_PUBLIC_KEY {
            return (rank + 1, key.public_name());
        }
    }
    for (place, spec) in known().enumerate() {
        let key = Numbered::from(spec);
        if spec.label == label && class == spec.private_class() {
            return (4 * place, key.name());
        }
        if spec.label == label && class == CKO_PUBLIC_KEY && spec.public.is_some() {
            return (4 * place + 1, key.public_name());
        }
    }
    let register = Register::ALL.into_iter().find(|one| one.label() == label);
    if let (Some(register), CKO_DATA) = (register, class) {
        let rank = match register {
            Register::StoreEpoch => usize::MAX - 1,
            Register::AuditEnd | Register::CeremonyTranscript => usize::MAX - 3,
        };
        return (rank, register.name().to_owned());
    }
    if label.starts_with(LABEL_PREFIX) {
        return (usize::MAX, format!("object labelled {label:?}"));
    }
    (usize::MAX, FOREIGN_OBJECT.to_owned())
}

fn known() -> impl Iterator<Item = &'static KeySpec> {
    REQUIRED.into_iter().chain(OPTIONAL)
}
