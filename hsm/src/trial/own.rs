//! Keys such as anybody with the user PIN can make, to try with what the token does for them.

use std::iter::once;

use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_KEY_TYPE, CK_MECHANISM_TYPE, CKF_WRAP, CKK_CHACHA20, CKK_DES3, CKM_AES_CBC, CKM_AES_CBC_PAD,
    CKM_AES_CCM, CKM_AES_CFB1, CKM_AES_CFB8, CKM_AES_CFB64, CKM_AES_CFB128, CKM_AES_CTR,
    CKM_AES_CTS, CKM_AES_ECB, CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP,
    CKM_AES_KEY_WRAP_PAD, CKM_AES_KEY_WRAP_PKCS7, CKM_AES_OFB, CKM_CHACHA20, CKM_CHACHA20_KEY_GEN,
    CKM_CHACHA20_POLY1305, CKM_DES3_CBC, CKM_DES3_CBC_PAD, CKM_DES3_ECB, CKM_DES3_KEY_GEN,
    CKM_EC_KEY_PAIR_GEN, CKM_ECDH_AES_KEY_WRAP, CKM_GENERIC_SECRET_KEY_GEN,
};

use super::{Result, Trial};
use crate::ffi::Wrapping;
use crate::session_key;
use crate::template::{OWN_AES, OWN_EC, OWN_EC_PRIVATE, OWN_OTHER, OWN_SECRET, Rule};

/// Session objects; each is none if the token makes none.
#[derive(Default)]
pub(crate) struct Own {
    /// An AES key that wraps, unwraps and derives, ...
    pub(crate) aes: Option<ObjectHandle>,
    /// ... and how such a key wraps here.
    pub(crate) aes_wraps: Vec<Wrapping>,
    /// A generic secret that derives, of [`session_key::KEY_BYTES`] bytes.
    pub(crate) secret: Option<ObjectHandle>,
    /// Keys that wrap by mechanisms which are not for AES keys.
    others: Vec<(ObjectHandle, Vec<Wrapping>)>,
}

/// A mechanism, and how it is used.
type WrapMechanism = (CK_MECHANISM_TYPE, Wrapping);

const fn plain(mechanism: CK_MECHANISM_TYPE) -> WrapMechanism {
    (mechanism, Wrapping::Plain(mechanism))
}

const fn iv(mechanism: CK_MECHANISM_TYPE) -> WrapMechanism {
    (mechanism, Wrapping::Iv(mechanism))
}

const fn short_iv(mechanism: CK_MECHANISM_TYPE) -> WrapMechanism {
    (mechanism, Wrapping::ShortIv(mechanism))
}

/// What many tokens wrap by: tried where the token has the mechanism, whatever it says that it is
/// for.
const COMMON_WAYS: [WrapMechanism; 7] = [
    plain(CKM_AES_KEY_WRAP),
    plain(CKM_AES_KEY_WRAP_PAD),
    plain(CKM_AES_KEY_WRAP_KWP),
    iv(CKM_AES_CBC_PAD),
    iv(CKM_AES_CBC),
    plain(CKM_AES_ECB),
    (CKM_AES_GCM, Wrapping::Gcm),
];

/// What few do: tried where it says that it wraps (`CKF_WRAP`).
const RARE_WAYS: [WrapMechanism; 9] = [
    plain(CKM_AES_KEY_WRAP_PKCS7),
    (CKM_AES_CTR, Wrapping::Ctr),
    (CKM_AES_CCM, Wrapping::Ccm),
    iv(CKM_AES_OFB),
    iv(CKM_AES_CFB1),
    iv(CKM_AES_CFB8),
    iv(CKM_AES_CFB64),
    iv(CKM_AES_CFB128),
    iv(CKM_AES_CTS),
];

const DES3_WAYS: [WrapMechanism; 3] = [
    short_iv(CKM_DES3_CBC_PAD),
    short_iv(CKM_DES3_CBC),
    plain(CKM_DES3_ECB),
];

const CHACHA20_WAYS: [WrapMechanism; 2] = [
    (CKM_CHACHA20, Wrapping::ChaCha20),
    (CKM_CHACHA20_POLY1305, Wrapping::ChaCha20Poly1305),
];

const EC_WAYS: [WrapMechanism; 1] = [(CKM_ECDH_AES_KEY_WRAP, Wrapping::EcdhAes)];

impl Own {
    /// For a trial whose mechanisms are known.
    pub(crate) fn make(trial: &Trial<'_>) -> Result<Self> {
        let mut own = Self::default();
        let made = own.fill(trial);
        if made.is_err() {
            own.destroy(trial)?;
        }
        made.map(|()| own)
    }

    fn fill(&mut self, trial: &Trial<'_>) -> Result<()> {
        let length = Rule::length(session_key::KEY_BYTES);
        let generate = |mechanism, rules: &[Rule]| {
            let watched = trial.watched;
            let template = once(&length).chain(rules);
            trial.given(
                watched
                    .raw()
                    .generate_key(watched.session(), mechanism, template),
            )
        };
        self.aes = generate(CKM_AES_KEY_GEN, OWN_AES)?;
        self.aes_wraps = COMMON_WAYS
            .into_iter()
            .filter(|(mechanism, _)| trial.offers(*mechanism))
            .map(|(_, wrapping)| wrapping)
            .chain(that_wrap(trial, &RARE_WAYS)?)
            .collect();
        self.secret = generate(CKM_GENERIC_SECRET_KEY_GEN, OWN_SECRET)?;
        for (ways, mechanism, kind) in [
            (&DES3_WAYS[..], CKM_DES3_KEY_GEN, CKK_DES3),
            (&CHACHA20_WAYS, CKM_CHACHA20_KEY_GEN, CKK_CHACHA20),
        ] {
            let ways = that_wrap(trial, ways)?;
            if ways.is_empty() {
                continue;
            }
            if let Some(key) = other(trial, mechanism, kind)? {
                self.others.push((key, ways));
            }
        }
        let ways = that_wrap(trial, &EC_WAYS)?;
        if ways.is_empty() {
            return Ok(());
        }
        let watched = trial.watched;
        let pair = watched.raw().generate_key_pair(
            watched.session(),
            CKM_EC_KEY_PAIR_GEN,
            OWN_EC.iter(),
            OWN_EC_PRIVATE.iter(),
        );
        if let Some((public, private)) = trial.given(pair)? {
            self.others.push((public, ways));
            trial.destroy(private)?;
        }
        Ok(())
    }

    pub(crate) fn destroy(&self, trial: &Trial<'_>) -> Result<()> {
        let others = self.others.iter().map(|(key, _)| *key);
        for key in self.aes.into_iter().chain(self.secret).chain(others) {
            trial.destroy(key)?;
        }
        Ok(())
    }

    /// Each key, with each way in which it wraps.
    pub(crate) fn wraps(&self) -> impl Iterator<Item = (ObjectHandle, Wrapping)> {
        let aes = self
            .aes
            .into_iter()
            .flat_map(|key| self.aes_wraps.iter().map(move |way| (key, *way)));
        let others = self
            .others
            .iter()
            .flat_map(|(key, ways)| ways.iter().map(move |way| (*key, *way)));
        aes.chain(others)
    }
}

fn that_wrap(trial: &Trial<'_>, ways: &[WrapMechanism]) -> Result<Vec<Wrapping>> {
    let mut wrap = Vec::new();
    for (mechanism, wrapping) in ways {
        if !trial.offers(*mechanism) {
            continue;
        }
        // One that says nothing of a mechanism is not believed to be without it.
        let info = trial.watched.mechanism_info(*mechanism)?;
        if info.is_none_or(|info| info.flags & CKF_WRAP != 0) {
            wrap.push(*wrapping);
        }
    }
    Ok(wrap)
}

/// A key of a type that has but one length.
fn other(
    trial: &Trial<'_>,
    mechanism: CK_MECHANISM_TYPE,
    kind: CK_KEY_TYPE,
) -> Result<Option<ObjectHandle>> {
    let watched = trial.watched;
    let kind = Rule::key_type(kind);
    let template = once(&kind).chain(OWN_OTHER);
    trial.given(
        watched
            .raw()
            .generate_key(watched.session(), mechanism, template),
    )
}
