//! Whether a key that must not leave the token comes out of it in parts.
//!
//! By PKCS#11 what is derived from a sensitive key is sensitive too, but it may be as short as one byte, and that is found by 256 tries; byte by byte
//! a whole key is known (Clulow 2003). So no mechanism that keeps the base key's bits may be used on a KEK, however well it keeps the rest.

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CKA_VALUE, CKA_VALUE_LEN, CKM_CONCATENATE_BASE_AND_DATA, CKM_CONCATENATE_BASE_AND_KEY,
    CKM_CONCATENATE_DATA_AND_BASE, CKM_EXTRACT_KEY_FROM_KEY, CKM_XOR_BASE_AND_DATA,
};

use super::{Result, Trial};
use crate::ffi::{Derivation, writable};
use crate::session_key;
use crate::template::{NEARLY_KNOWN, OPEN, PART, Rule};

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// One byte of the key.
    Short,
    /// A whole key, of which all but one byte are known.
    NearlyKnown,
    /// A whole key that is not sensitive.
    Open,
}

impl Asked {
    fn template(self) -> &'static [Rule] {
        match self {
            Self::Short => PART,
            Self::NearlyKnown => NEARLY_KNOWN,
            Self::Open => OPEN,
        }
    }
}

/// The mechanism by which something can be derived from that key that tells of it; `None`: by none that keeps its bits.
pub(crate) fn way(trial: &Trial<'_>, base: ObjectHandle) -> Result<Option<&'static str>> {
    use Asked::{NearlyKnown, Open, Short};
    let data = writable(&[0x5a; session_key::LEN]);
    let whole = Derivation::Data(&data);
    let all_but_one = Derivation::Data(&data[1..]);
    let ways = [
        (
            CKM_EXTRACT_KEY_FROM_KEY,
            "CKM_EXTRACT_KEY_FROM_KEY",
            Derivation::Bit(0),
            Short,
        ),
        (CKM_XOR_BASE_AND_DATA, "CKM_XOR_BASE_AND_DATA", whole, Short),
        (
            CKM_CONCATENATE_BASE_AND_DATA,
            "CKM_CONCATENATE_BASE_AND_DATA",
            whole,
            Short,
        ),
        (
            CKM_CONCATENATE_BASE_AND_KEY,
            "CKM_CONCATENATE_BASE_AND_KEY",
            Derivation::Key(base),
            Short,
        ),
        (
            CKM_CONCATENATE_DATA_AND_BASE,
            "CKM_CONCATENATE_DATA_AND_BASE",
            all_but_one,
            NearlyKnown,
        ),
    ];
    for (mechanism, name, given, guessed) in ways {
        if !trial.offers(mechanism) {
            continue;
        }
        for asked in [guessed, Open] {
            let line = trial.line;
            let part = line.raw().derive_key(
                line.session(),
                mechanism,
                given,
                base,
                asked.template().iter(),
            );
            let Some(part) = trial.given(part)? else {
                continue;
            };
            let tells = tells(trial, part, asked);
            trial.destroy(part)?;
            if tells? {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

fn tells(trial: &Trial<'_>, part: ObjectHandle, asked: Asked) -> Result<bool> {
    let line = trial.line;
    let attribute = |name| line.raw().attribute(line.session(), part, name);
    let guessed = match asked {
        // A token that takes the length and ignores it gives a whole key, which tells as little as the base; one that does not say is not believed.
        Asked::Short => {
            let whole = Rule::length(session_key::LEN);
            !attribute(CKA_VALUE_LEN)?.is_some_and(|length| whole.admits(&length))
        }
        Asked::NearlyKnown => true,
        Asked::Open => false,
    };
    Ok(guessed
        || attribute(CKA_VALUE)?.is_some_and(|value| !value.is_empty())
        || trial.own_wraps(part)?)
}
