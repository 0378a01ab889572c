//! What the fuzz targets call, one function for each parser of what clients send; not there in an
//! ordinary build. The short form of each is run by `cargo test`.

pub use crate::api::vault::fuzz::{ciphertext, form_body, json_body, route};

#[cfg(test)]
#[path = "../../fuzz/short.rs"]
#[macro_use]
mod short;

#[cfg(test)]
mod tests {
    short_forms! {
        "strongroom_server", "../fuzz";
        ciphertext 5000, form_body 3000, json_body 3000, route 3000,
    }
}
