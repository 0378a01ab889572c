//! What the fuzz targets call, one function for each parser of what comes from outside; not there
//! in an ordinary build.
//!
//! `make fuzz` feeds them from `fuzz/targets/`, `cargo test` runs their short form: the seeds of
//! `fuzz/seeds/`, each also in some thousand altered forms. Each function panics if a property does
//! not hold.

pub use crate::audit::fuzz::audit_resume;
pub use crate::audit::verify::fuzz::audit_log;
pub use crate::config::fuzz::config;
pub use crate::duration::fuzz::duration;
pub use crate::identity::fuzz::{certificate, identity};
pub use crate::json::fuzz::strict_json;
pub use crate::keyring::fuzz::key_record;
pub use crate::policy::fuzz::{glob, policy};
pub use crate::store::fuzz::store_record;
pub use crate::tls::fuzz::pem_files;
pub use crate::tokens::fuzz::tokens;

#[cfg(test)]
#[path = "../../fuzz/short.rs"]
#[macro_use]
mod short;

#[cfg(test)]
mod tests {
    short_forms! {
        "strongroom_core", "../fuzz";
        audit_log 300, audit_resume 1000, certificate 3000, config 2000, duration 5000, glob 5000, identity 5000,
        key_record 3000, pem_files 1000, policy 1000, store_record 3000, strict_json 5000, tokens 2000,
    }
}
