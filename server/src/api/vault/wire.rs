//! The small text formats of Vault's Transit: pure functions from text to values, callable from
//! fuzz targets.

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use strongroom_core::duration::{self, DurationError};
use strongroom_core::keyring::{Ciphertext, HmacTag, MadeSignature};
use zeroize::Zeroizing;

/// Standard alphabet with padding. Trailing bits that a canonical encoder leaves zero are not
/// looked at, as in Go.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// What stands before the version of every ciphertext and HMAC.
pub const PREFIX: &str = "vault:v";

/// The text isn't base64: where, as Go's decoder counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("illegal base64 data at input byte {0}")]
pub struct Base64Error(pub usize);

/// Decodes base64 as Go does: line breaks are skipped, padding is required.
pub fn decode_base64(text: &str) -> Result<Zeroizing<Vec<u8>>, Base64Error> {
    // Room for the whole answer at once: a buffer that grows would leave copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
    if BASE64.decode_vec(text, &mut out).is_ok() {
        return Ok(out);
    }
    out.clear();
    if text.bytes().any(is_line_break) {
        let joined: Zeroizing<Vec<u8>> =
            Zeroizing::new(text.bytes().filter(|&b| !is_line_break(b)).collect());
        if BASE64.decode_vec(joined.as_slice(), &mut out).is_ok() {
            return Ok(out);
        }
    }
    Err(Base64Error(base64_fault(text.as_bytes())))
}

/// Why a `vault:v<version>:<base64>` is refused; the words are Vault's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("no prefix")]
    NoPrefix,
    #[error("wrong number of fields")]
    Fields,
    #[error("version number could not be decoded")]
    Version,
    /// A version below zero, which no key has any more.
    #[error("version is too old")]
    TooOld,
    /// A version that no key can have.
    #[error("version is too new")]
    TooNew,
    #[error("could not decode base64")]
    Base64(Base64Error),
}

/// Takes `vault:v<version>:<base64 of nonce || ciphertext || tag>` apart. `v0` means version 1: so
/// Vault's oldest ciphertexts call it.
pub fn parse_ciphertext(text: &str) -> Result<Ciphertext, WireError> {
    let (version, encoded) = split_versioned(text)?;
    let version = version.max(1);
    let mut bytes = decode_base64(encoded).map_err(WireError::Base64)?;
    let bytes = std::mem::take(&mut *bytes);
    Ok(Ciphertext { version, bytes })
}

/// Takes `vault:v<version>:<base64 of an HMAC>` apart.
pub fn parse_hmac(text: &str) -> Result<HmacTag, WireError> {
    let (version, encoded) = split_made(text)?;
    let mut tag = decode_base64(encoded).map_err(WireError::Base64)?;
    let tag = std::mem::take(&mut *tag);
    Ok(HmacTag { version, tag })
}

/// Takes `vault:v<version>:<signature>` apart. `jws`: the signature is base64url without padding.
pub fn parse_signature(text: &str, jws: bool) -> Result<MadeSignature, WireError> {
    let (version, encoded) = split_made(text)?;
    let bytes = if jws {
        let decoded = URL_SAFE_NO_PAD.decode(encoded);
        decoded.map_err(|_| WireError::Base64(Base64Error(0)))?
    } else {
        let mut bytes = decode_base64(encoded).map_err(WireError::Base64)?;
        std::mem::take(&mut *bytes)
    };
    Ok(MadeSignature { version, bytes })
}

/// Reads a duration, with Vault's words for what is wrong with it.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).map_err(|error| match error {
        DurationError::Invalid => "time: invalid duration",
        DurationError::Negative => "a duration cannot be negative",
        DurationError::MissingUnit => "time: missing unit in duration",
        DurationError::UnknownUnit => "time: unknown unit in duration",
    })
}

/// `vault:v<version>:<rest>` to (version, rest).
fn split_versioned(text: &str) -> Result<(u32, &str), WireError> {
    let rest = text.strip_prefix(PREFIX).ok_or(WireError::NoPrefix)?;
    let (version, encoded) = rest.split_once(':').ok_or(WireError::Fields)?;
    let version: i64 = version.parse().map_err(|_| WireError::Version)?;
    let version = match version {
        v if v < 0 => return Err(WireError::TooOld),
        v => u32::try_from(v).map_err(|_| WireError::TooNew)?,
    };
    Ok((version, encoded))
}

/// As [`split_versioned`], of what no version 0 ever made.
fn split_made(text: &str) -> Result<(u32, &str), WireError> {
    match split_versioned(text)? {
        (0, _) => Err(WireError::TooOld),
        made => Ok(made),
    }
}

fn is_line_break(b: u8) -> bool {
    b == b'\r' || b == b'\n'
}

/// The offset at which Go's decoder gives up: clients compare the whole sentence.
fn base64_fault(input: &[u8]) -> usize {
    let mut at = 0;
    let skip_breaks = |at: &mut usize| {
        while input.get(*at).copied().is_some_and(is_line_break) {
            *at += 1;
        }
    };
    loop {
        let mut in_group = 0;
        while in_group < 4 {
            let Some(&b) = input.get(at) else {
                return at - in_group;
            };
            at += 1;
            match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => in_group += 1,
                b'\r' | b'\n' => {}
                b'=' if in_group == 2 => {
                    skip_breaks(&mut at);
                    match input.get(at) {
                        None => return input.len(),
                        Some(b'=') => at += 1,
                        Some(_) => return at - 1,
                    }
                    skip_breaks(&mut at);
                    return at;
                }
                b'=' if in_group == 3 => {
                    skip_breaks(&mut at);
                    return at;
                }
                _ => return at - 1,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn base64_faults_are_where_go_sees_them() {
        for (text, at) in [
            ("abc", 0),
            ("!", 0),
            ("YWJj!", 4),
            ("YWJjY", 4),
            ("YWI=YWI=", 4),
            ("YQ=", 3),
            ("YQ=x", 2),
            ("=", 0),
            ("not base64", 3),
        ] {
            assert_eq!(decode_base64(text).unwrap_err(), Base64Error(at), "{text}");
        }
    }

    #[test]
    fn base64_skips_line_breaks_and_ignores_trailing_bits() {
        assert_eq!(decode_base64("YW\r\nJj\n").unwrap().as_slice(), b"abc");
        assert_eq!(decode_base64("YR==").unwrap().as_slice(), b"a");
        assert!(decode_base64("").unwrap().is_empty());
    }

    #[test]
    fn ciphertexts_are_taken_apart() {
        let good = parse_ciphertext("vault:v7:AAECAwQFBgcICQoLDA0=").unwrap();
        assert_eq!(good.version, 7);
        assert_eq!(good.bytes, (0..14).collect::<Vec<u8>>());
        assert_eq!(
            parse_ciphertext("vault:v0:AAECAwQFBgcICQoL")
                .unwrap()
                .version,
            1
        );
        assert_eq!(parse_hmac("vault:v0:AAAA").err(), Some(WireError::TooOld));
        for jws in [true, false] {
            let refused = parse_signature("vault:v0:AAAA", jws).err();
            assert_eq!(refused, Some(WireError::TooOld));
        }
        for (text, why) in [
            ("", WireError::NoPrefix),
            ("vault:1:AAAA", WireError::NoPrefix),
            ("vault:v1", WireError::Fields),
            ("vault:v:AAAA", WireError::Version),
            ("vault:vx:AAAA", WireError::Version),
            ("vault:v99999999999999999999:AAAA", WireError::Version),
            ("vault:v-1:AAAA", WireError::TooOld),
            ("vault:v4294967296:AAAA", WireError::TooNew),
            ("vault:v1:AAAA:AAAA", WireError::Base64(Base64Error(4))),
        ] {
            assert_eq!(parse_ciphertext(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn durations_are_vaults() {
        for (text, seconds) in [
            ("", 0.0),
            ("3600", 3600.0),
            ("1h30m", 5400.0),
            ("1.5h", 5400.0),
            ("30d", 2_592_000.0),
            ("300ms", 0.3),
            (".5s", 0.5),
        ] {
            let found = parse_duration(text).unwrap().as_secs_f64();
            assert!((found - seconds).abs() < 1e-9, "{text}: {found}");
        }
        for text in [
            "1x",
            "h",
            "+",
            "-1h",
            "1h1",
            "1..2h",
            ".h",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_duration("1x").unwrap_err(),
            "time: unknown unit in duration"
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC*") {
            let _ = parse_ciphertext(&text);
            let _ = parse_hmac(&text);
            let _ = parse_duration(&text);
            let _ = parse_ciphertext(&format!("vault:v1:{text}"));
        }

        #[test]
        fn ciphertexts_survive_the_round_trip(
            version in 1_u32..,
            bytes in proptest::collection::vec(any::<u8>(), 12..200),
        ) {
            let text = format!("{PREFIX}{version}:{}", BASE64.encode(&bytes));
            let found = parse_ciphertext(&text).unwrap();
            prop_assert_eq!(found, Ciphertext { version, bytes });
        }
    }
}
