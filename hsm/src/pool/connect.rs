//! One attempt to reach the token: find it, log in, check every key, test it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cryptoki::slot::Slot;

use super::{Facts, Shared};
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::Keys;
use crate::module::{Library, Module};
use crate::operations::Conn;
use crate::selftest;
use crate::trial;
use crate::watched::{Watch, WatchedSession};

/// How often a session looks for what another has found, and the pause after each.
const MAX_LOOKS: u32 = 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A connection that works.
pub(super) struct Connected {
    pub(super) module: Arc<Module>,
    pub(super) conn: Conn,
    pub(super) slot: Slot,
    pub(super) facts: Arc<Facts>,
}

/// `known`: what the first connection found, for every later one.
pub(super) fn connect(
    shared: &Shared,
    module: Arc<Module>,
    known: Option<&Arc<Facts>>,
    watch: &Arc<Watch>,
) -> Result<Connected, Fault> {
    let library = module.library();
    let mut wanted = shared.wanted.clone();
    if let Some(facts) = known {
        wanted = wanted.and_serial(&facts.token.serial);
    }
    watch.tick();
    let found = wanted.find(&library.raw)?;
    if found.info.user_pin_locked() {
        return Err(HsmError::Pin("CKF_USER_PIN_LOCKED".to_owned()).into());
    }
    if found.info.user_pin_final_try() {
        tracing::warn!(
            "the token says that one PIN attempt is left: somebody has tried a wrong PIN"
        );
    }
    let watched = WatchedSession::open(library, found.slot, Arc::clone(watch))?;
    let result = log_in_and_test(shared, &watched, known);
    let (keys, abilities) = match result {
        Ok(done) => done,
        Err(fault) => {
            watched.close();
            return Err(fault);
        }
    };
    let facts = if let Some(facts) = known {
        Arc::clone(facts)
    } else {
        Arc::new(Facts {
            token: found.identity,
            abilities: Arc::clone(&abilities),
            signing_public_key: keys.audit.spki.clone(),
            wrapping_public_key: keys.wrapping.spki.clone(),
            generations: Mutex::new(keys.generations.describe()),
        })
    };
    let conn = Conn::new(
        watched,
        keys,
        abilities,
        shared.config.shape,
        shared.config.session_keys,
    )?;
    Ok(Connected {
        module,
        conn,
        slot: found.slot,
        facts,
    })
}

/// One more session beside those that are connected.
pub(super) fn open_another(
    shared: &Shared,
    library: &Arc<Library>,
    slot: Slot,
    facts: &Facts,
    watch: &Arc<Watch>,
) -> Result<Conn, Fault> {
    let watched = WatchedSession::open(Arc::clone(library), slot, Arc::clone(watch))?;
    let keys = shared
        .access
        .login(&watched)
        .and_then(|()| keys_of_others(shared, &watched, facts));
    match keys {
        Ok(keys) => Conn::new(
            watched,
            keys,
            Arc::clone(&facts.abilities),
            shared.config.shape,
            shared.config.session_keys,
        ),
        Err(fault) => {
            watched.close();
            Err(fault)
        }
    }
}

fn log_in_and_test(
    shared: &Shared,
    watched: &WatchedSession,
    known: Option<&Arc<Facts>>,
) -> Result<(Keys, Arc<selftest::Abilities>), Fault> {
    shared.access.login(watched)?;
    let keys = check_keys(shared, watched, known.map(AsRef::as_ref))?;
    shared.registers.check(watched)?;
    let abilities = if let Some(facts) = known {
        selftest::run_short(watched, &keys, &facts.abilities)?;
        Arc::clone(&facts.abilities)
    } else {
        let abilities = selftest::run(watched, &keys, &watched.mechanisms()?)?;
        trial::at_start(
            watched,
            &keys,
            shared.config.shape,
            abilities.profile.oaep,
            trial::Places::Session,
        )?;
        Arc::new(abilities)
    };
    Ok((keys, abilities))
}

fn check_keys(
    shared: &Shared,
    watched: &WatchedSession,
    known: Option<&Facts>,
) -> Result<Keys, Fault> {
    let keys = Keys::check(watched, shared.config.shape)?;
    if let Some(facts) = known {
        facts.learn(keys.generations.describe())?;
    }
    Ok(keys)
}

/// As the sessions that are open already know them.
fn keys_of_others(shared: &Shared, watched: &WatchedSession, facts: &Facts) -> Result<Keys, Fault> {
    look_again(|| {
        let mut keys = Keys::check(watched, shared.config.shape)?;
        facts.recognize(&keys.generations.describe())?;
        let follows = keys.generations.follow(&facts.generations());
        Ok(follows.then_some(keys))
    })?
    .ok_or_else(unseen)
}

/// Looks until there is something, but not for ever: a module may show new objects to one session
/// before it shows them to the next.
pub(super) fn look_again<T>(
    mut look: impl FnMut() -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    for _ in 0..MAX_LOOKS {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(None)
}

/// After [`look_again`] in vain.
pub(super) fn unseen() -> Fault {
    HsmError::Unavailable(
        "one session does not see the master key that another has found".to_owned(),
    )
    .into()
}
