//! The API from the outside of [`super::handle`], and its description.

mod openapi;
