//! Fuzz entries: what a client sends.

mod base64;
mod body;
mod duration;
mod route;
mod wire;

pub use body::{form_body, json_body};
pub use duration::duration;
pub use route::route;
pub use wire::ciphertext;
