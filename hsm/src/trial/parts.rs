//! Whether a key that must not leave the token comes out of it in parts.
//!
//! By PKCS#11 what is derived from a sensitive key is sensitive too, but it may be as short as one
//! byte, and that is found by 256 tries; byte by byte a whole key is known (Clulow 2003). So no
//! mechanism that keeps the base key's bits may be used on a KEK, however well it keeps the rest;
//! nor may a key be unwrapped as a shorter one. A token that refuses short keys may give longer
//! parts, and those types whose length goes without saying.
//!
//! What is encrypted or hashed (`CKM_AES_ECB_ENCRYPT_DATA`, `CKM_SHA256_KEY_DERIVATION`) keeps no
//! bits of the base, and is not asked for: the first is no more than the key does for whoever has
//! the user PIN, and of the second a random key is not found.

use std::iter::once;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_KEY_TYPE, CK_MECHANISM_TYPE, CK_ULONG, CKA_KEY_TYPE, CKA_VALUE, CKA_VALUE_LEN, CKK_AES,
    CKK_DES, CKK_DES2, CKK_DES3, CKK_GENERIC_SECRET, CKM_CONCATENATE_BASE_AND_DATA,
    CKM_CONCATENATE_BASE_AND_KEY, CKM_CONCATENATE_DATA_AND_BASE, CKM_DES_CBC, CKM_DES_ECB,
    CKM_DES3_CBC, CKM_DES3_ECB, CKM_EXTRACT_KEY_FROM_KEY, CKM_XOR_BASE_AND_DATA,
};

use super::{Result, Trial, answer};
use crate::fault::Verdict;
use crate::ffi::{Derivation, Wrapping, writable};
use crate::session_key;
use crate::template::{ENCRYPTS, OPEN, PART, Rule, SIGNS, TOLD, WRAPPED};
use crate::types::{HashAlgorithm, KeyUsage};

/// A kind of key by its type and, if that does not say it, its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    key_type: CK_KEY_TYPE,
    length: Option<usize>,
}

const fn secret(length: usize) -> Kind {
    Kind {
        key_type: CKK_GENERIC_SECRET,
        length: Some(length),
    }
}

const fn by_type(key_type: CK_KEY_TYPE) -> Kind {
    Kind {
        key_type,
        length: None,
    }
}

/// Shorter than a key of [`session_key::KEY_BYTES`] bytes. Each by itself is found by trying, or
/// the next is by what is known of it.
pub(super) const SHORTER_KINDS: [Kind; 10] = [
    secret(1),
    secret(2),
    secret(4),
    secret(5),
    secret(8),
    secret(16),
    Kind {
        key_type: CKK_AES,
        length: Some(16),
    },
    by_type(CKK_DES),
    by_type(CKK_DES2),
    by_type(CKK_DES3),
];

impl Kind {
    /// What says it in a template.
    pub(super) fn rules(self) -> Vec<Rule> {
        let mut rules = vec![Rule::key_type(self.key_type)];
        rules.extend(self.length.map(Rule::length));
        rules
    }

    /// That template with this kind of key in place of the other.
    pub(super) fn instead(self, template: &[Rule]) -> Vec<Rule> {
        // The class first, and the length before CKA_MODIFIABLE, after which SoftHSM lets nothing
        // be set.
        let (class, rest) = template.split_at(template.len().min(1));
        let rest = rest
            .iter()
            .filter(|rule| ![CKA_KEY_TYPE, CKA_VALUE_LEN].contains(&rule.attribute));
        let mut rules = class.to_vec();
        rules.extend(self.rules());
        rules.extend(rest.cloned());
        rules
    }

    pub(super) fn usage(self) -> KeyUsage {
        if self.key_type == CKK_GENERIC_SECRET {
            KeyUsage::Mac
        } else {
            KeyUsage::Aead
        }
    }

    /// The attribute that asks for it.
    pub(super) fn attribute(self) -> &'static str {
        if self.length.is_some() {
            "CKA_VALUE_LEN"
        } else {
            "CKA_KEY_TYPE"
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy)]
enum Asked {
    /// A part of the key.
    Short(Kind),
    /// A key of which all but one byte are known.
    NearlyKnown(usize),
    /// A whole key that is told, or wrapped, or both.
    Open(&'static [Rule]),
}

/// All in one first: a token may refuse that, and give each by itself.
const OPENED: [Asked; 3] = [Asked::Open(OPEN), Asked::Open(TOLD), Asked::Open(WRAPPED)];

impl Asked {
    fn template(self) -> Vec<Rule> {
        let kind = match self {
            Self::Short(kind) => kind,
            Self::NearlyKnown(length) => secret(length),
            Self::Open(template) => return template.to_vec(),
        };
        let mut template = kind.instead(PART);
        template.push(match kind.usage() {
            KeyUsage::Mac => SIGNS.clone(),
            KeyUsage::Aead => ENCRYPTS.clone(),
        });
        template
    }
}

/// The mechanism by which something can be derived from that key that tells of it; `None`: by none
/// that keeps its bits.
pub(super) fn way(trial: &Trial<'_>, base: ObjectHandle) -> Result<Option<&'static str>> {
    let data = writable(&[0x5a; session_key::KEY_BYTES]);
    let whole = Derivation::Data(&data);
    let ways = [
        (
            CKM_EXTRACT_KEY_FROM_KEY,
            "CKM_EXTRACT_KEY_FROM_KEY",
            Derivation::Bit(0),
        ),
        (CKM_XOR_BASE_AND_DATA, "CKM_XOR_BASE_AND_DATA", whole),
        (
            CKM_CONCATENATE_BASE_AND_DATA,
            "CKM_CONCATENATE_BASE_AND_DATA",
            whole,
        ),
        (
            CKM_CONCATENATE_BASE_AND_KEY,
            "CKM_CONCATENATE_BASE_AND_KEY",
            Derivation::Key(base),
        ),
    ];
    for (mechanism, name, given) in ways {
        if !trial.offers(mechanism) {
            continue;
        }
        let own = shortest(trial, mechanism)?.map(secret);
        let kinds = SHORTER_KINDS
            .into_iter()
            .chain(own.filter(|own| !SHORTER_KINDS.contains(own)));
        for asked in kinds.map(Asked::Short).chain(OPENED) {
            if derives(trial, mechanism, given, base, asked)? {
                return Ok(Some(name));
            }
        }
    }
    // As long as the shorter of the two, where nobody says how long.
    let short = Asked::Short(by_type(CKK_GENERIC_SECRET));
    if trial.offers(CKM_XOR_BASE_AND_DATA)
        && derives(
            trial,
            CKM_XOR_BASE_AND_DATA,
            Derivation::Data(&data[..1]),
            base,
            short,
        )?
    {
        return Ok(Some("CKM_XOR_BASE_AND_DATA"));
    }
    if trial.offers(CKM_CONCATENATE_DATA_AND_BASE) {
        let all_but_one = Derivation::Data(&data[1..]);
        for asked in once(Asked::NearlyKnown(session_key::KEY_BYTES)).chain(OPENED) {
            let mechanism = CKM_CONCATENATE_DATA_AND_BASE;
            if derives(trial, mechanism, all_but_one, base, asked)? {
                return Ok(Some("CKM_CONCATENATE_DATA_AND_BASE"));
            }
        }
    }
    joined(trial, base)
}

/// The mechanism by which that key is put behind one of anybody's own. By PKCS#11 the base key
/// alone needs `CKA_DERIVE`, and that is the other one (Kryoptic 1.5 does so).
pub(super) fn joined(trial: &Trial<'_>, key: ObjectHandle) -> Result<Option<&'static str>> {
    let mechanism = CKM_CONCATENATE_BASE_AND_KEY;
    if !trial.offers(mechanism) {
        return Ok(None);
    }
    let name = "CKM_CONCATENATE_BASE_AND_KEY";
    trial.own.derives_by(trial, &[(mechanism, name)])?;
    for own in trial.own.bases() {
        for asked in once(Asked::NearlyKnown(session_key::KEY_BYTES + 1)).chain(OPENED) {
            if derives(trial, mechanism, Derivation::Key(key), own, asked)? {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// Bytes of the shortest key that the token says the mechanism makes, if that is shorter than a
/// whole one.
fn shortest(trial: &Trial<'_>, mechanism: CK_MECHANISM_TYPE) -> Result<Option<usize>> {
    let info = trial.watched.mechanism_info(mechanism)?;
    let told = info.map_or(0, |info| info.ulMinKeySize);
    let whole = session_key::KEY_BYTES as CK_ULONG;
    // Some count bits.
    let bytes = if told > whole { told / 8 } else { told };
    Ok(usize::try_from(bytes)
        .ok()
        .filter(|bytes| (1..session_key::KEY_BYTES).contains(bytes)))
}

/// Whether what is asked for is made, and tells of the key.
fn derives(
    trial: &Trial<'_>,
    mechanism: CK_MECHANISM_TYPE,
    given: Derivation<'_>,
    base: ObjectHandle,
    asked: Asked,
) -> Result<bool> {
    let watched = trial.watched;
    let template = asked.template();
    let part = watched
        .raw()
        .derive_key(watched.session(), mechanism, given, base, template.iter());
    let Some(part) = trial.given(part)? else {
        return Ok(false);
    };
    let tells = tells(trial, part, asked);
    trial.destroy(part)?;
    tells
}

fn tells(trial: &Trial<'_>, part: ObjectHandle, asked: Asked) -> Result<bool> {
    let watched = trial.watched;
    let attribute = |name| watched.raw().attribute(watched.session(), part, name);
    let guessed = match asked {
        // A token that takes the length and ignores it gives a whole key, which tells as little as
        // the base; one that does not say is not believed.
        Asked::Short(_) => {
            let whole = Rule::length(session_key::KEY_BYTES);
            !attribute(CKA_VALUE_LEN)?.is_some_and(|length| whole.admits(&length))
        }
        Asked::NearlyKnown(_) => true,
        Asked::Open(_) => false,
    };
    Ok(guessed
        || attribute(CKA_VALUE)?.is_some_and(|value| !value.is_empty())
        || trial.own_wraps(part)?)
}

/// Whether a key of that kind, which was unwrapped by a template without the rights by which it
/// could be seen, is all of what was wrapped.
pub(super) fn says_whole(trial: &Trial<'_>, kind: Kind, part: ObjectHandle) -> Result<bool> {
    if kind.length.is_none() {
        return Ok(!works_as_des(trial, part)?);
    }
    let watched = trial.watched;
    let told = watched
        .raw()
        .attribute(watched.session(), part, CKA_VALUE_LEN)?;
    let whole = Rule::length(session_key::KEY_BYTES);
    Ok(told.is_some_and(|told| whole.admits(&told)))
}

/// Whether it is as long as its type says. `SoftHSM` takes a key of another length, and does
/// nothing with it.
fn works_as_des(trial: &Trial<'_>, key: ObjectHandle) -> Result<bool> {
    let watched = trial.watched;
    let data = writable(&[0; 16]);
    for mechanism in [
        Mechanism::DesEcb,
        Mechanism::DesCbc([0; 8]),
        Mechanism::Des3Ecb,
        Mechanism::Des3Cbc([0; 8]),
    ] {
        let used = watched
            .raw()
            .encrypt(watched.session(), &mechanism, key, &data);
        if trial.given(used)?.is_some() {
            return Ok(true);
        }
    }
    for wrapping in [
        Wrapping::Plain(CKM_DES_ECB),
        Wrapping::ShortIv(CKM_DES_CBC),
        Wrapping::Plain(CKM_DES3_ECB),
        Wrapping::ShortIv(CKM_DES3_CBC),
    ] {
        let rules = by_type(CKK_GENERIC_SECRET).instead(PART);
        let unwrapped =
            watched
                .raw()
                .unwrap_key(watched.session(), wrapping, key, &data, rules.iter());
        if let Some(unwrapped) = trial.given(unwrapped)? {
            trial.destroy(unwrapped)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// The same of one that can be used: a token that takes the kind and ignores it shows so that it
/// does. `whole`: unwraps it as it is, for a use.
pub(super) fn is_whole(
    trial: &Trial<'_>,
    kind: Kind,
    part: ObjectHandle,
    whole: impl FnOnce(KeyUsage) -> Result<ObjectHandle>,
) -> Result<bool> {
    if kind.length.is_none() {
        return Ok(!works_as_des(trial, part)?);
    }
    let watched = trial.watched;
    let data = writable(&[0; 16]);
    let made = |key| match kind.usage() {
        KeyUsage::Mac => {
            let mac = session_key::hmac(HashAlgorithm::Sha256);
            Ok(watched.sign(&mac, key, &data)?)
        }
        KeyUsage::Aead => answer(watched, key),
    };
    let key = whole(kind.usage())?;
    let wanted = made(key);
    trial.destroy(key)?;
    let wanted = wanted?;
    match made(part) {
        Ok(found) => Ok(found == wanted),
        // What is not to be used is not shown to be whole.
        Err(fault) if fault.verdict() != Verdict::Failed => Ok(false),
        Err(fault) => Err(fault),
    }
}
