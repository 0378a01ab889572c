//! What the fuzz targets call, one function for each parser of what people and files bring to a
//! ceremony; not there in an ordinary build. The short form of each is run by `cargo test`.

pub use crate::fuzz::{backup, ceremony_plan, share, transcript, words};

#[cfg(test)]
#[path = "../../fuzz/short.rs"]
#[macro_use]
mod short;

#[cfg(test)]
mod tests {
    short_forms! {
        "strongroom_ceremony", "../fuzz";
        backup 3000, ceremony_plan 1000, share 3000, transcript 200, words 3000,
    }
}
