//! How many files and connections may be open at once (`RLIMIT_NOFILE`): enough for every
//! connection, with the rest kept for what serves them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ServeError;

/// Kept from connections: for the store, the audit log, TLS files, libraries, and the token, which
/// opens its own (`SoftHSM` one for each object). Without it, connections that nobody has to be
/// allowed for would keep the token from its objects.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Raises the soft limit as far as `max_connections` needs it, and no further: a PKCS#11 module may
/// use `select(2)`, which knows 1,024 descriptors.
pub(super) fn provide(max_connections: usize) -> Result<(), ServeError> {
    let refused = |source: nix::Error| ServeError::System {
        what: "the limit of open files (RLIMIT_NOFILE) can't be read",
        source: source.into(),
    };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    let needed = needed(max_connections);
    if soft >= needed {
        return Ok(());
    }
    if hard >= needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok() {
        tracing::info!(from = soft, to = needed, "raised the limit of open files");
        return Ok(());
    }
    Err(ServeError::Descriptors {
        max_connections,
        limit: soft.max(hard),
        needed,
        most: soft.max(hard).saturating_sub(RESERVED_DESCRIPTORS),
    })
}

fn needed(max_connections: usize) -> u64 {
    u64::try_from(max_connections)
        .unwrap_or(u64::MAX)
        .saturating_add(RESERVED_DESCRIPTORS)
}
