//! What the token is trusted with, asked of it: each trial tries, as somebody who has the user PIN
//! would, what the token must refuse.
//!
//! | trial | when |
//! |---|---|
//! | [`kek`]: a KEK that the master key unwrapped can't be had in any weaker form, nor in parts ([`parts`]) | at each connection |
//! | [`kept`]: the keys on the token stay there, and do what they are for | where the keys are made, and at each start |
//! | [`trusted`]: no key that wraps what goes under trusted keys only can be had without the security officer | where the keys are made, and at each start, if any key depends on it |
//! | [`transfer`]: what comes out of the transfer key is good for nothing else | the same |

mod forced;
pub(crate) mod kek;
pub(crate) mod kept;
mod own;
mod parts;
pub(crate) mod transfer;
pub(crate) mod trusted;

use std::thread;
use std::time::Duration;

use cryptoki::error::Error;
use cryptoki::object::ObjectHandle;
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CKA_VALUE, CKM_RSA_AES_KEY_WRAP, CKM_RSA_PKCS,
    CKM_RSA_PKCS_OAEP, CKM_RSA_X_509,
};

use crate::config::KeyShape;
use crate::error::HsmError;
use crate::fault::{Fault, Reach, Verdict};
use crate::ffi::{Wrapping, writable};
use crate::keys::{self, Keys};
use crate::session_key;
use crate::template::{ON_TOKEN, Rule};
use crate::types::OaepHash;
use crate::watched::WatchedSession;
use own::Own;

type Result<T> = std::result::Result<T, Fault>;

/// What is tried of the keys at each start, beside [`kek`]. What is wrong is an
/// [`HsmError::Trial`], or an [`HsmError::KeyPolicy`] of one of the keys.
pub(crate) fn at_start(
    watched: &WatchedSession,
    keys: &Keys,
    shape: KeyShape,
    hash: OaepHash,
    places: Places,
) -> Result<()> {
    let transfers: Vec<_> = keys
        .generations
        .all()
        .iter()
        .filter_map(|generation| generation.transfer.as_ref())
        .collect();
    Trial::with(watched, hash, places, |trial| {
        kept::check(trial, keys)?;
        if transfers.is_empty() && shape == KeyShape::Fixed {
            return Ok(());
        }
        for transfer in &transfers {
            if let Some(reason) = transfer::check(trial, transfer.public, transfer.private)? {
                return Err(failed("transfer key", reason));
            }
        }
        let public = keys.generations.current().master.public;
        if shape != KeyShape::Fixed
            && let Some(reason) = movable(trial, public)?
        {
            return Err(failed("keys that a backup moves", reason));
        }
        // Last, as it is the dearest; it is the same question for both.
        match trusted::way(trial, public)? {
            Some(function) => Err(failed("mark of trusted keys", trusted::by(function))),
            None => Ok(()),
        }
    })
}

/// Why keys that go under trusted keys only are not safe here, by what wraps them. `public`: an RSA
/// public key that wraps and is not trusted.
pub(crate) fn movable(trial: &Trial<'_>, public: ObjectHandle) -> Result<Option<String>> {
    trusted::is_ignored(trial, public)
}

fn failed(what: &str, reason: String) -> Fault {
    HsmError::Trial {
        what: what.to_owned(),
        reason,
    }
    .into()
}

/// What is tried, and where the appliance has its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Places {
    /// Session objects: nothing is written on the token.
    Session,
    /// Objects on the token too. Only where the keys are made: `SoftHSM` leaves a thing without a
    /// name where it refuses to make one.
    Token,
}

/// A session in which something is tried: its own, so that whatever the token leaves behind where
/// it refuses to make an object ends with it.
pub(crate) struct Trial<'a> {
    watched: &'a WatchedSession,
    places: Places,
    /// The token's mechanisms.
    offered: Vec<CK_MECHANISM_TYPE>,
    hash: OaepHash,
    own: Own,
}

impl<'a> Trial<'a> {
    /// Runs `body`; what it needs is destroyed afterwards, whatever came of it.
    pub(crate) fn with<T>(
        watched: &WatchedSession,
        hash: OaepHash,
        places: Places,
        body: impl FnOnce(&Trial<'_>) -> Result<T>,
    ) -> Result<T> {
        let own = watched.another()?;
        let before = match places {
            Places::Session => Vec::new(),
            Places::Token => own.find_objects(&[])?,
        };
        let result = Trial::within(&own, hash, places, body);
        let swept = match places {
            Places::Session => Ok(()),
            Places::Token => sweep(&own, &before),
        };
        own.close();
        swept.and(result)
    }

    fn within<T>(
        watched: &'a WatchedSession,
        hash: OaepHash,
        places: Places,
        body: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        let mut trial = Self {
            watched,
            places,
            offered: watched.mechanisms()?,
            hash,
            own: Own::default(),
        };
        trial.own = Own::make(&trial)?;
        let result = body(&trial);
        trial.own.destroy(&trial)?;
        result
    }

    /// What the token gave; `None`: it refused. A token that does not work has refused nothing.
    fn given<T>(&self, result: std::result::Result<T, Error>) -> Result<Option<T>> {
        let fault = match result {
            Ok(given) => return Ok(Some(given)),
            Err(error) => Fault::from(error),
        };
        match fault.verdict() {
            Verdict::Refused => Ok(None),
            Verdict::Unclear => self.works().map(|()| None).map_err(|_| fault),
            Verdict::Failed => Err(fault),
        }
    }

    /// That the token makes a key and uses it.
    fn works(&self) -> Result<()> {
        let key = session_key::canary(self.watched)?;
        let used = answer(self.watched, key);
        self.watched.session().destroy_object(key)?;
        used.map(drop)
    }

    fn destroy(&self, object: ObjectHandle) -> std::result::Result<(), Error> {
        self.watched.session().destroy_object(object)
    }

    /// Where a key may be made, as rules of a template.
    fn places(&self) -> &'static [Rule] {
        match self.places {
            Places::Session => &ON_TOKEN[..1],
            Places::Token => ON_TOKEN,
        }
    }

    fn offers(&self, mechanism: CK_MECHANISM_TYPE) -> bool {
        self.offered.contains(&mechanism)
    }

    /// Whether a key of anybody's own making wraps that one.
    fn own_wraps(&self, key: ObjectHandle) -> Result<bool> {
        for (own, wrapping) in self.own.wraps() {
            if self.wraps(wrapping, own, key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether that AES key wraps the other one.
    fn aes_wraps(&self, by: ObjectHandle, key: ObjectHandle) -> Result<bool> {
        for wrapping in &self.own.aes_wraps {
            if self.wraps(*wrapping, by, key)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an RSA key wraps that secret key.
    fn rsa_wraps(&self, by: ObjectHandle, key: ObjectHandle) -> Result<bool> {
        for (mechanism, wrapping) in [
            (CKM_RSA_PKCS_OAEP, Wrapping::Oaep(self.hash)),
            (CKM_RSA_PKCS, Wrapping::Plain(CKM_RSA_PKCS)),
            (CKM_RSA_X_509, Wrapping::Plain(CKM_RSA_X_509)),
        ] {
            if self.offers(mechanism) && self.wraps(wrapping, by, key)? {
                return Ok(true);
            }
        }
        self.rsa_aes_wraps(by, key)
    }

    /// Whether an RSA key wraps that key, of any kind, by way of an AES key.
    fn rsa_aes_wraps(&self, by: ObjectHandle, key: ObjectHandle) -> Result<bool> {
        Ok(
            self.offers(CKM_RSA_AES_KEY_WRAP)
                && self.wraps(Wrapping::RsaAes(self.hash), by, key)?,
        )
    }

    fn wraps(&self, wrapping: Wrapping, by: ObjectHandle, key: ObjectHandle) -> Result<bool> {
        let wrapped = self
            .watched
            .raw()
            .wrap_key(self.watched.session(), wrapping, by, key);
        Ok(self.given(wrapped)?.is_some())
    }

    /// That none of these attributes of a key can be had otherwise, by setting or by a copy, and
    /// that no copy tells its value. What is taken and ignored is no harm. What is wrong is an
    /// [`HsmError::KeyPolicy`].
    fn keeps(
        &self,
        key: ObjectHandle,
        name: &str,
        rules: &[Rule],
        with_optional: bool,
        attributes: &[CK_ATTRIBUTE_TYPE],
    ) -> Result<()> {
        let watched = self.watched;
        let check = |key| keys::check_small(watched, key, name, rules, with_optional);
        let weaker = rules
            .iter()
            .filter(|rule| attributes.contains(&rule.attribute))
            .filter_map(Rule::opposite);
        for rule in weaker {
            let set = watched.raw().set_attribute(watched.session(), key, &rule);
            if self.given(set)?.is_some() {
                check(key)?;
            }
            let copy = watched
                .raw()
                .copy_object(watched.session(), key, std::iter::once(&rule));
            if let Some(copy) = self.given(copy)? {
                let result = check(copy).and_then(|()| self.tells_nothing(copy, name));
                self.destroy(copy)?;
                result?;
            }
        }
        Ok(())
    }

    /// That a key does not tell its value to whoever has the user PIN.
    fn tells_nothing(&self, key: ObjectHandle, name: &str) -> Result<()> {
        let watched = self.watched;
        let value = watched.raw().attribute(watched.session(), key, CKA_VALUE)?;
        if value.is_some_and(|value| !value.is_empty()) {
            let problem = "is told to whoever has the user PIN";
            return Err(keys::policy(name, "CKA_VALUE", problem).into());
        }
        Ok(())
    }

    /// One attribute that is yes or no; `None` if it is not told.
    fn told(&self, object: ObjectHandle, attribute: &Rule) -> Result<Option<bool>> {
        let value =
            self.watched
                .raw()
                .attribute(self.watched.session(), object, attribute.attribute)?;
        Ok(match value.as_deref() {
            Some([byte]) => Some(*byte != 0),
            _ => None,
        })
    }
}

/// How long another process may take from an object's making to its name.
const MAX_NAMING_DELAY: Duration = Duration::from_secs(1);

/// Destroys what `SoftHSM` left where it refused to make an object on the token: what was not there
/// before and has neither name nor `CKA_TOKEN`. Whatever has either, somebody else made meanwhile:
/// the trial destroys what it was given by its handle.
fn sweep(watched: &WatchedSession, before: &[ObjectHandle]) -> Result<()> {
    let mut left = watched.find_objects(&[])?;
    left.retain(|object| !before.contains(object));
    let left = leftovers(watched, left)?;
    if left.is_empty() {
        return Ok(());
    }
    // SoftHSM writes each object so first, another process's too, and then what it is to be.
    thread::sleep(MAX_NAMING_DELAY);
    for object in leftovers(watched, left)? {
        match watched
            .session()
            .destroy_object(object)
            .map_err(Fault::from)
        {
            Err(fault) if fault.reach() != Reach::Object => return Err(fault),
            _ => {}
        }
    }
    Ok(())
}

/// Those of them that are still there, and nothing whole.
fn leftovers(watched: &WatchedSession, objects: Vec<ObjectHandle>) -> Result<Vec<ObjectHandle>> {
    let mut left = Vec::new();
    for object in objects {
        let whole = watched
            .is_nameless(object)
            .and_then(|nameless| Ok(!nameless || watched.is_on_token(object)?));
        match whole {
            Ok(false) => left.push(object),
            Ok(true) => {}
            Err(fault) if fault.reach() == Reach::Object => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(left)
}

/// What a key makes of a fixed input.
fn answer(watched: &WatchedSession, key: ObjectHandle) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    watched.raw().gcm_encrypt(
        watched.session(),
        key,
        &[0; 12],
        &[],
        &writable(&[0; 16]),
        &mut output,
    )?;
    Ok(output)
}
