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
use crate::selector::Found;
use crate::selftest;
use crate::trial;
use crate::watched::{Watch, WatchedSession};

/// How often a session looks for what another has found, and the pause after each.
const MAX_LOOKS: u32 = 10;
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How often a start looks at what is on the token, and the pause after each look.
const FIRST_LOOKS: u32 = 6;
const FIRST_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A connection that works.
pub(super) struct Connected {
    pub(super) module: Arc<Module>,
    pub(super) conn: Conn,
    pub(super) slot: Slot,
    pub(super) facts: Arc<Facts>,
}

/// A token that was found, and what is on it.
struct Reached {
    watched: WatchedSession,
    keys: Keys,
    found: Found,
}

/// `known`: what the first connection found, for every later one.
pub(super) fn connect(
    shared: &Shared,
    module: Arc<Module>,
    known: Option<&Arc<Facts>>,
    watch: &Arc<Watch>,
) -> Result<Connected, Fault> {
    let Reached {
        watched,
        keys,
        found,
    } = match known {
        Some(facts) => reach(shared, module.library(), Some(facts), watch)?,
        None => reach_first(shared, &module, watch)?,
    };
    let abilities = match test(shared, &watched, &keys, known) {
        Ok(abilities) => abilities,
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

/// Finds the token, logs in, and looks at what is on it.
fn reach(
    shared: &Shared,
    library: Arc<Library>,
    known: Option<&Facts>,
    watch: &Arc<Watch>,
) -> Result<Reached, Fault> {
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
    match look(shared, &watched, known) {
        Ok(keys) => Ok(Reached {
            watched,
            keys,
            found,
        }),
        Err(fault) => {
            watched.close();
            Err(fault)
        }
    }
}

/// As [`reach`], at a start: an object that another process is just writing is not whole for a
/// moment, and `SoftHSM` never looks again at one that it has seen so, unless it is started again.
fn reach_first(shared: &Shared, module: &Module, watch: &Arc<Watch>) -> Result<Reached, Fault> {
    for _ in 1..FIRST_LOOKS {
        match reach(shared, module.library(), None, watch) {
            Err(fault) if fault.is_of_a_look() => {
                tracing::info!(%fault, "looking at the token again");
                std::thread::sleep(FIRST_LOOK_INTERVAL);
                watch.tick();
                module.restart()?;
            }
            reached => return reached,
        }
    }
    reach(shared, module.library(), None, watch)
}

fn look(shared: &Shared, watched: &WatchedSession, known: Option<&Facts>) -> Result<Keys, Fault> {
    shared.access.login(watched)?;
    let keys = Keys::check(watched, shared.config.shape)?;
    if let Some(facts) = known {
        facts.learn(keys.generations.describe())?;
    }
    shared.registers.check(watched)?;
    Ok(keys)
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

fn test(
    shared: &Shared,
    watched: &WatchedSession,
    keys: &Keys,
    known: Option<&Arc<Facts>>,
) -> Result<Arc<selftest::Abilities>, Fault> {
    if let Some(facts) = known {
        selftest::run_short(watched, keys, &facts.abilities)?;
        return Ok(Arc::clone(&facts.abilities));
    }
    let abilities = selftest::run(watched, keys, &watched.mechanisms()?)?;
    trial::at_start(
        watched,
        keys,
        shared.config.shape,
        abilities.profile.oaep,
        trial::Places::Session,
    )?;
    Ok(Arc::new(abilities))
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
