//! What the fuzz targets call, one function for each parser of what the configuration or the token
//! says; not there in an ordinary build. The short form of each is run by `cargo test`.

pub use crate::keys::fuzz::{ec_point, key_attribute, rsa_numbers};
pub use crate::selector::fuzz::token_uri;

#[cfg(test)]
#[path = "../../fuzz/short.rs"]
#[macro_use]
mod short;

#[cfg(test)]
mod tests {
    short_forms! {
        "strongroom_hsm", "../fuzz";
        ec_point 300, key_attribute 3000, rsa_numbers 300, token_uri 3000,
    }
}
