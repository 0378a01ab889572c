//! How many files and connections may be open at once (`RLIMIT_NOFILE`): enough for every
//! connection, with the rest kept for what serves them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ServeError;

/// Kept from connections: for the store, the audit log, TLS files, libraries, and the token, which
/// opens its own (`SoftHSM` one for each object). Without it, connections that nobody has to be
/// allowed for would keep the token from its objects.
const RESERVED_DESCRIPTORS: u64 = 256;

/// Whether [`provide`] could, by the limits of this process.
pub(super) fn check(max_connections: usize) -> Result<(), ServeError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    let (limit, needed) = (soft.max(hard), needed(max_connections));
    if limit >= needed {
        Ok(())
    } else {
        Err(too_many(max_connections, limit, needed))
    }
}

/// Raises the soft limit as far as `max_connections` needs it, and no further: a PKCS#11 module may
/// use `select(2)`, which knows 1,024 descriptors.
pub(super) fn provide(max_connections: usize) -> Result<(), ServeError> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(refused)?;
    let needed = needed(max_connections);
    if soft >= needed {
        return Ok(());
    }
    if hard >= needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok() {
        tracing::info!(from = soft, to = needed, "raised the limit of open files");
        return Ok(());
    }
    Err(too_many(max_connections, soft.max(hard), needed))
}

fn refused(source: nix::Error) -> ServeError {
    ServeError::System {
        what: "the limit of open files (RLIMIT_NOFILE) can't be read",
        source: source.into(),
    }
}

fn too_many(max_connections: usize, limit: u64, needed: u64) -> ServeError {
    ServeError::Descriptors {
        max_connections,
        limit,
        needed,
        most: limit.saturating_sub(RESERVED_DESCRIPTORS),
    }
}

fn needed(max_connections: usize) -> u64 {
    u64::try_from(max_connections)
        .unwrap_or(u64::MAX)
        .saturating_add(RESERVED_DESCRIPTORS)
}

/// What can be done instead of raising the limit.
pub(super) fn or_fewer(most: u64) -> String {
    if most == 0 {
        return String::new();
    }
    format!("set max_connections to at most {most}, or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_a_limit_that_suffices() {
        let refused = |limit: u64| too_many(1000, limit, needed(1000)).to_string();
        let said = refused(256);
        assert!(
            said.ends_with("the limit is 256: raise the limit to 1256 or more (LimitNOFILE= of the unit, `ulimit -n`)"),
            "{said}"
        );
        assert!(refused(100).contains("the limit is 100: raise the limit to 1256"));
        let said = refused(300);
        assert!(
            said.contains("300: set max_connections to at most 44, or raise the limit to 1256"),
            "{said}"
        );
    }
}
