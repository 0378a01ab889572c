//! The way of every request, whatever protocol it speaks.

pub(super) mod origin;
