//! What Strongroom is made of below any protocol: named keys, the sealed store, the audit log,
//! policy, identities, TLS, the configuration.
//!
//! A decision goes one way, `policy` → `keyring` → `strongroom_hsm`, and the result comes back.
//!
//! May know: `strongroom-hsm`. Knows nothing of HTTP, of the ceremony, of the command line, and of
//! PKCS#11; only `store` knows of sled. `tests/specification.rs` holds it to its `Cargo.toml`.

pub mod atomic;
pub mod audit;
pub mod causes;
mod clock;
pub mod config;
pub mod duration;
pub mod files;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hex;
pub mod identity;
pub mod json;
pub mod keyring;
pub mod lifecycle;
pub mod lock;
pub mod owner;
pub mod parse_error;
pub mod policy;
pub mod rotation;
pub mod seldom;
pub mod store;
pub mod tls;
pub mod tokens;

#[cfg(test)]
mod testing;
