//! Tests of the keyring on a real token.
