//! A PKCS#11 2.40 module for tests. It forwards every call to a real module and misbehaves as a
//! control file tells it to: see `README.md`.
//!
//! - `functions`: the C functions, each one a call of `inject::call`
//! - `inject`: what happens before a call is forwarded
//! - `control`: the control file's language;  `watch`: when it is read, and what a lost token does
//! - `traits`: what real tokens do otherwise than they should;  `real`: the module behind this one;
//!   `log`: the log file;  `codes`: names of return values

#![allow(unsafe_code, reason = "a PKCS#11 module is a C interface")]

mod codes;
mod control;
mod functions;
mod inject;
mod log;
mod real;
mod traits;
mod watch;
