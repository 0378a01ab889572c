//! Batches: many items in one request, each with a result of its own.

pub(in crate::api) mod items;
