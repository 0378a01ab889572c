//! Fuzz entries: what a client sends.

mod base64;
mod body;
mod route;
mod wire;

pub use body::{form_body, json_body};
pub use route::route;
pub use wire::ciphertext;
