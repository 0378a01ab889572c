//! The server: the API over HTTP, start, run and stop, and the rights that the process gives up.
//!
//! May know: `strongroom-core`, `strongroom-hsm`, HTTP. Knows nothing of PKCS#11, of sled, of the
//! ceremony and of the command line, and makes no request itself. `tests/specification.rs` holds it
//! to its `Cargo.toml`.
//!
//! | module | what | may name |
//! |---|---|---|
//! | [`serve`] | start and stop, the listener, signals, reload | [`api`], [`harden`] |
//! | [`api`] | requests and answers | [`harden`]: its report |
//! | [`harden`] | what the process gives up | neither |

pub mod api;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
pub mod harden;
pub mod serve;

#[cfg(test)]
mod testing;
