//! Keys such as anybody with the user PIN can make, to try with what the token does for them.
//!
//! Each has one right: a token may refuse a key with two, and give two with one each. It is asked
//! for in every way in which a user has a key, since a trial without it tries nothing. So where the
//! token says that a mechanism wraps (unwraps, derives), makes keys of its type, and gives none
//! with that right, that is no refusal to count on: it is an [`HsmError::Untried`]. Where it makes
//! no keys of that type at all, nobody has one.

use std::iter::once;

use cryptoki::error::Error;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_FLAGS, CK_KEY_TYPE, CK_MECHANISM_TYPE, CKA_DERIVE, CKA_UNWRAP, CKA_WRAP, CKF_DERIVE,
    CKF_UNWRAP, CKF_WRAP, CKK_AES, CKK_CHACHA20, CKK_DES3, CKK_GENERIC_SECRET, CKM_AES_CBC,
    CKM_AES_CBC_ENCRYPT_DATA, CKM_AES_CBC_PAD, CKM_AES_CCM, CKM_AES_CFB1, CKM_AES_CFB8,
    CKM_AES_CFB64, CKM_AES_CFB128, CKM_AES_CTR, CKM_AES_CTS, CKM_AES_ECB, CKM_AES_ECB_ENCRYPT_DATA,
    CKM_AES_GCM, CKM_AES_KEY_GEN, CKM_AES_KEY_WRAP, CKM_AES_KEY_WRAP_KWP, CKM_AES_KEY_WRAP_PAD,
    CKM_AES_KEY_WRAP_PKCS7, CKM_AES_OFB, CKM_CHACHA20, CKM_CHACHA20_KEY_GEN, CKM_CHACHA20_POLY1305,
    CKM_CONCATENATE_BASE_AND_DATA, CKM_CONCATENATE_BASE_AND_KEY, CKM_CONCATENATE_DATA_AND_BASE,
    CKM_DES3_CBC, CKM_DES3_CBC_PAD, CKM_DES3_ECB, CKM_DES3_KEY_GEN, CKM_EC_KEY_PAIR_GEN,
    CKM_ECDH_AES_KEY_WRAP, CKM_EXTRACT_KEY_FROM_KEY, CKM_GENERIC_SECRET_KEY_GEN, CKM_HKDF_DERIVE,
    CKM_SHA1_KEY_DERIVATION, CKM_SHA256_KEY_DERIVATION, CKM_SHA384_KEY_DERIVATION,
    CKM_SHA512_KEY_DERIVATION, CKM_XOR_BASE_AND_DATA,
};

use super::{Result, Trial};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::Wrapping;
use crate::session_key;
use crate::template::{
    DERIVES, EC_POINT, ENCRYPTS, OWN, OWN_EC, OWN_EC_PRIVATE, OWN_IN_SHORT, Rule, SIGNS, UNWRAPS,
    VERIFIES, WRAPS,
};
use crate::types::{KeyUsage, MasterKind};

/// Session objects; each is none if nobody has such a key here.
#[derive(Default)]
pub(crate) struct Own {
    /// An AES key that wraps, ...
    pub(crate) aes: Option<ObjectHandle>,
    /// ... and how such a key wraps here.
    pub(crate) aes_wraps: Vec<Wrapping>,
    /// Keys that wrap by mechanisms which are not for AES keys.
    others: Vec<(ObjectHandle, Vec<Wrapping>)>,
    /// Keys that derive, each of [`session_key::KEY_BYTES`] bytes.
    secret_base: Option<ObjectHandle>,
    aes_base: Option<ObjectHandle>,
}

/// A mechanism and its name.
pub(crate) type Named = (CK_MECHANISM_TYPE, &'static str);

/// A mechanism that wraps, and how it is used.
type Way = (Named, Wrapping);

macro_rules! names {
    ($($mechanism:ident)+) => { &[$(($mechanism, stringify!($mechanism))),+] };
}

macro_rules! way {
    ($mechanism:ident, $wrapping:expr) => {
        (($mechanism, stringify!($mechanism)), $wrapping)
    };
}

/// What many tokens wrap by: tried where the token has the mechanism, whatever it says that it is
/// for.
const COMMON_WAYS: [Way; 7] = [
    way!(CKM_AES_KEY_WRAP, Wrapping::Plain(CKM_AES_KEY_WRAP)),
    way!(CKM_AES_KEY_WRAP_PAD, Wrapping::Plain(CKM_AES_KEY_WRAP_PAD)),
    way!(CKM_AES_KEY_WRAP_KWP, Wrapping::Plain(CKM_AES_KEY_WRAP_KWP)),
    way!(CKM_AES_CBC_PAD, Wrapping::Iv(CKM_AES_CBC_PAD)),
    way!(CKM_AES_CBC, Wrapping::Iv(CKM_AES_CBC)),
    way!(CKM_AES_ECB, Wrapping::Plain(CKM_AES_ECB)),
    way!(CKM_AES_GCM, Wrapping::Gcm),
];

/// What few do: tried where it says that it wraps (`CKF_WRAP`).
const RARE_WAYS: [Way; 9] = [
    way!(
        CKM_AES_KEY_WRAP_PKCS7,
        Wrapping::Plain(CKM_AES_KEY_WRAP_PKCS7)
    ),
    way!(CKM_AES_CTR, Wrapping::Ctr),
    way!(CKM_AES_CCM, Wrapping::Ccm),
    way!(CKM_AES_OFB, Wrapping::Iv(CKM_AES_OFB)),
    way!(CKM_AES_CFB1, Wrapping::Iv(CKM_AES_CFB1)),
    way!(CKM_AES_CFB8, Wrapping::Iv(CKM_AES_CFB8)),
    way!(CKM_AES_CFB64, Wrapping::Iv(CKM_AES_CFB64)),
    way!(CKM_AES_CFB128, Wrapping::Iv(CKM_AES_CFB128)),
    way!(CKM_AES_CTS, Wrapping::Iv(CKM_AES_CTS)),
];

const DES3_WAYS: [Way; 3] = [
    way!(CKM_DES3_CBC_PAD, Wrapping::ShortIv(CKM_DES3_CBC_PAD)),
    way!(CKM_DES3_CBC, Wrapping::ShortIv(CKM_DES3_CBC)),
    way!(CKM_DES3_ECB, Wrapping::Plain(CKM_DES3_ECB)),
];

const CHACHA20_WAYS: [Way; 2] = [
    way!(CKM_CHACHA20, Wrapping::ChaCha20),
    way!(CKM_CHACHA20_POLY1305, Wrapping::ChaCha20Poly1305),
];

const EC_WAYS: [Way; 1] = [way!(CKM_ECDH_AES_KEY_WRAP, Wrapping::EcdhAes)];

/// How keys are derived from any key ...
pub(crate) const DERIVATIONS: &[Named] = names! {
    CKM_CONCATENATE_BASE_AND_KEY CKM_CONCATENATE_BASE_AND_DATA CKM_CONCATENATE_DATA_AND_BASE
    CKM_XOR_BASE_AND_DATA CKM_EXTRACT_KEY_FROM_KEY CKM_SHA1_KEY_DERIVATION
    CKM_SHA256_KEY_DERIVATION CKM_SHA384_KEY_DERIVATION CKM_SHA512_KEY_DERIVATION CKM_HKDF_DERIVE
};
/// ... and from AES keys alone.
pub(crate) const AES_DERIVATIONS: &[Named] = names! {
    CKM_AES_ECB_ENCRYPT_DATA CKM_AES_CBC_ENCRYPT_DATA
};

/// A type of secret key.
struct Secret {
    name: &'static str,
    key_type: CK_KEY_TYPE,
    generator: CK_MECHANISM_TYPE,
    /// Whether the type does not say how long it is.
    sized: bool,
    /// One that anybody may have.
    value: &'static [u8],
    /// What such keys are for, beside what is tried.
    usual: &'static Rule,
}

const AES: Secret = Secret {
    name: "AES",
    key_type: CKK_AES,
    generator: CKM_AES_KEY_GEN,
    sized: true,
    value: &[0x5a; session_key::KEY_BYTES],
    usual: ENCRYPTS,
};

const GENERIC: Secret = Secret {
    name: "generic secret",
    key_type: CKK_GENERIC_SECRET,
    generator: CKM_GENERIC_SECRET_KEY_GEN,
    sized: true,
    value: &[0x5a; session_key::KEY_BYTES],
    usual: SIGNS,
};

const DES3: Secret = Secret {
    name: "triple DES",
    key_type: CKK_DES3,
    generator: CKM_DES3_KEY_GEN,
    sized: false,
    // Of odd parity, each third another.
    value: &[
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        0x01, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23,
    ],
    usual: ENCRYPTS,
};

const CHACHA20: Secret = Secret {
    name: "ChaCha20",
    key_type: CKK_CHACHA20,
    generator: CKM_CHACHA20_KEY_GEN,
    sized: false,
    value: &[0x5a; 32],
    usual: ENCRYPTS,
};

impl Secret {
    /// One with these rights and no others, in whatever way the token gives it.
    fn with(&self, trial: &Trial<'_>, rights: &[&Rule]) -> Result<Option<ObjectHandle>> {
        let watched = trial.watched;
        let length = self.sized.then(|| Rule::length(self.value.len()));
        for template in self.templates(rights) {
            let rules = template.iter().chain(&length);
            let made = watched
                .raw()
                .generate_key(watched.session(), self.generator, rules);
            if let Some(key) = with_right(trial, made, rights)? {
                return Ok(Some(key));
            }
        }
        self.imported(trial, rights)
    }

    /// The same of [`Secret::value`].
    fn imported(&self, trial: &Trial<'_>, rights: &[&Rule]) -> Result<Option<ObjectHandle>> {
        let watched = trial.watched;
        let value = Rule::value(self.value);
        for template in self.templates(rights) {
            let rules = template.iter().chain(once(&value));
            let made = watched.raw().create_object(watched.session(), rules);
            if let Some(key) = with_right(trial, made, rights)? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn templates(&self, rights: &[&Rule]) -> [Vec<Rule>; 2] {
        [OWN, OWN_IN_SHORT].map(|rules| {
            let is_right = |rule: &&Rule| rights.iter().any(|one| one.attribute == rule.attribute);
            let (class, rest) = rules.split_at(1);
            let mut template = class.to_vec();
            template.push(Rule::key_type(self.key_type));
            template.extend(rest.iter().filter(|rule| !is_right(rule)).cloned());
            template.extend(rights.iter().copied().cloned());
            template
        })
    }

    /// That nobody has such a key, of which the token gave none.
    fn is_nobodys(
        &self,
        trial: &Trial<'_>,
        right: &Rule,
        mechanisms: impl Iterator<Item = Named>,
    ) -> Result<()> {
        let Some(mechanism) = trial.says(mechanisms, right)? else {
            return Ok(());
        };
        match self.with(trial, &[self.usual])? {
            None => Ok(()),
            Some(key) => {
                trial.destroy(key)?;
                Err(untried(mechanism, right, self.name))
            }
        }
    }
}

/// What was made, if the token does not say that it lacks the rights.
fn with_right(
    trial: &Trial<'_>,
    made: std::result::Result<ObjectHandle, Error>,
    rights: &[&Rule],
) -> Result<Option<ObjectHandle>> {
    let Some(key) = trial.given(made)? else {
        return Ok(None);
    };
    for right in rights {
        if trial.told(key, right)? == Some(false) {
            trial.destroy(key)?;
            return Ok(None);
        }
    }
    Ok(Some(key))
}

/// What a mechanism does with a key that has the right, for people.
fn does(right: &Rule) -> &'static str {
    match right.attribute {
        CKA_WRAP => "wraps",
        CKA_UNWRAP => "unwraps",
        _ => "derives keys",
    }
}

pub(super) fn untried(mechanism: &str, right: &Rule, keys: &str) -> Fault {
    HsmError::Untried(format!(
        "it says that {mechanism} {}, and makes {keys} keys, but neither generates nor imports one with {}",
        does(right),
        right.name
    ))
    .into()
}

impl Trial<'_> {
    /// The first of these mechanisms of which the token says that it does what a key may with that
    /// right. One that says nothing of a mechanism is not believed to be without it.
    pub(super) fn says(
        &self,
        mechanisms: impl Iterator<Item = Named>,
        right: &Rule,
    ) -> Result<Option<&'static str>> {
        let flag: CK_FLAGS = match right.attribute {
            CKA_WRAP => CKF_WRAP,
            CKA_UNWRAP => CKF_UNWRAP,
            CKA_DERIVE => CKF_DERIVE,
            _ => return Ok(None),
        };
        for (mechanism, name) in mechanisms.filter(|(mechanism, _)| self.offers(*mechanism)) {
            let info = self.watched.mechanism_info(mechanism)?;
            if info.is_none_or(|info| info.flags & flag != 0) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

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
        self.aes = AES.with(trial, &[WRAPS])?;
        if self.aes.is_none() {
            AES.is_nobodys(trial, WRAPS, aes_mechanisms())?;
        }
        self.aes_wraps = COMMON_WAYS
            .into_iter()
            .filter(|((mechanism, _), _)| trial.offers(*mechanism))
            .map(|(_, wrapping)| wrapping)
            .chain(that_wrap(trial, &RARE_WAYS)?)
            .collect();
        self.wraps_something(trial)?;
        for (ways, kind) in [(&DES3_WAYS[..], &DES3), (&CHACHA20_WAYS, &CHACHA20)] {
            let wrappings = that_wrap(trial, ways)?;
            if wrappings.is_empty() {
                continue;
            }
            match kind.with(trial, &[WRAPS])? {
                Some(key) => self.others.push((key, wrappings)),
                None => kind.is_nobodys(trial, WRAPS, named(ways))?,
            }
        }
        let wrappings = that_wrap(trial, &EC_WAYS)?;
        if !wrappings.is_empty() {
            match ec_public(trial, WRAPS)? {
                Some(key) => self.others.push((key, wrappings)),
                None => ec_is_nobodys(trial)?,
            }
        }
        let offers = |mechanisms: &[Named]| mechanisms.iter().any(|one| trial.offers(one.0));
        if offers(DERIVATIONS) {
            self.secret_base = GENERIC.with(trial, &[DERIVES])?;
        }
        if offers(DERIVATIONS) || offers(AES_DERIVATIONS) {
            self.aes_base = AES.with(trial, &[DERIVES])?;
        }
        Ok(())
    }

    /// That the AES key wraps what may be wrapped: that a key which wraps nothing wraps no KEK
    /// either shows nothing.
    fn wraps_something(&self, trial: &Trial<'_>) -> Result<()> {
        let Some(own) = self.aes else { return Ok(()) };
        let open = session_key::generate(trial.watched, KeyUsage::Aead, MasterKind::Hsm)?;
        let mut ways = self.aes_wraps.iter();
        let wraps = loop {
            match ways.next().map(|way| trial.wraps(*way, own, open)) {
                None => break Ok(false),
                Some(Ok(false)) => {}
                Some(result) => break result,
            }
        };
        trial.destroy(open)?;
        if wraps? {
            return Ok(());
        }
        wrap_nothing(trial)
    }

    pub(crate) fn destroy(&self, trial: &Trial<'_>) -> Result<()> {
        let others = self.others.iter().map(|(key, _)| *key);
        for key in self.aes.into_iter().chain(self.bases()).chain(others) {
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

    /// Keys that derive.
    pub(crate) fn bases(&self) -> impl Iterator<Item = ObjectHandle> {
        self.secret_base.into_iter().chain(self.aes_base)
    }

    /// That there is a key for each of these mechanisms, or nobody has one.
    pub(crate) fn derives_by(&self, trial: &Trial<'_>, mechanisms: &[Named]) -> Result<()> {
        if self.aes_base.is_some() {
            return Ok(());
        }
        let of_any = mechanisms
            .iter()
            .copied()
            .filter(|one| !AES_DERIVATIONS.contains(one));
        if self.secret_base.is_none() {
            GENERIC.is_nobodys(trial, DERIVES, of_any)?;
        }
        let of_aes = AES_DERIVATIONS.iter().copied();
        AES.is_nobodys(
            trial,
            DERIVES,
            of_aes.filter(|one| mechanisms.contains(one)),
        )
    }
}

/// Two AES keys of one value, of which one wraps and the other unwraps; or one that does both.
pub(crate) struct Twins {
    pub(crate) wraps: ObjectHandle,
    pub(crate) unwraps: ObjectHandle,
}

impl Twins {
    /// None if nobody has an AES key that unwraps.
    pub(crate) fn make(trial: &Trial<'_>) -> Result<Option<Self>> {
        // What is generated with one right unwraps nothing that anybody has wrapped.
        if let Some(wraps) = AES.imported(trial, &[WRAPS])? {
            match AES.imported(trial, &[UNWRAPS]) {
                Ok(Some(unwraps)) => return Ok(Some(Self { wraps, unwraps })),
                refused => {
                    trial.destroy(wraps)?;
                    refused?;
                }
            }
        }
        if let Some(both) = AES.with(trial, &[WRAPS, UNWRAPS])? {
            return Ok(Some(Self {
                wraps: both,
                unwraps: both,
            }));
        }
        AES.is_nobodys(trial, UNWRAPS, aes_mechanisms())?;
        Ok(None)
    }

    pub(crate) fn destroy(&self, trial: &Trial<'_>) -> Result<()> {
        trial.destroy(self.wraps)?;
        if self.unwraps != self.wraps {
            trial.destroy(self.unwraps)?;
        }
        Ok(())
    }
}

/// Where a key that wraps has wrapped nothing: that the token does not say that it would.
pub(crate) fn wrap_nothing(trial: &Trial<'_>) -> Result<()> {
    match trial.says(aes_mechanisms(), WRAPS)? {
        None => Ok(()),
        Some(mechanism) => Err(HsmError::Untried(format!(
            "it says that {mechanism} wraps, and gives AES keys with CKA_WRAP that wrap by no mechanism even what may be wrapped"
        ))
        .into()),
    }
}

/// Each AES mechanism that wraps.
fn aes_mechanisms() -> impl Iterator<Item = Named> {
    named(&COMMON_WAYS).chain(named(&RARE_WAYS))
}

fn named(ways: &[Way]) -> impl Iterator<Item = Named> {
    ways.iter().map(|(mechanism, _)| *mechanism)
}

fn that_wrap(trial: &Trial<'_>, ways: &[Way]) -> Result<Vec<Wrapping>> {
    let mut wrap = Vec::new();
    for (mechanism, wrapping) in ways {
        if trial.says(once(*mechanism), WRAPS)?.is_some() {
            wrap.push(*wrapping);
        }
    }
    Ok(wrap)
}

/// The public half of a pair on P-256 with that right; what the private half may do is the token's
/// to say.
fn ec_public(trial: &Trial<'_>, right: &Rule) -> Result<Option<ObjectHandle>> {
    let watched = trial.watched;
    let public = || OWN_EC.iter().chain(once(right));
    let pair = watched.raw().generate_key_pair(
        watched.session(),
        CKM_EC_KEY_PAIR_GEN,
        public(),
        OWN_EC_PRIVATE.iter(),
    );
    if let Some((public, private)) = trial.given(pair)? {
        trial.destroy(private)?;
        if let Some(public) = with_right(trial, Ok(public), &[right])? {
            return Ok(Some(public));
        }
    }
    let imported = watched
        .raw()
        .create_object(watched.session(), public().chain(once(EC_POINT)));
    with_right(trial, imported, &[right])
}

/// [`Secret::is_nobodys`] of a public key that wraps.
fn ec_is_nobodys(trial: &Trial<'_>) -> Result<()> {
    let Some(mechanism) = trial.says(named(&EC_WAYS), WRAPS)? else {
        return Ok(());
    };
    match ec_public(trial, VERIFIES)? {
        None => Ok(()),
        Some(key) => {
            trial.destroy(key)?;
            Err(untried(mechanism, WRAPS, "EC"))
        }
    }
}
