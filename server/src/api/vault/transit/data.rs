//! What answers hold: by serde, and on the hot path by hand too.

use std::fmt;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Serialize, Serializer};
use strongroom_core::hex;
use strongroom_core::keyring::Ciphertext;
use zeroize::Zeroizing;

use crate::api::vault::envelope::{Envelope, Members};
use crate::api::vault::wire::{BASE64, PREFIX};

/// `vault:v<version>:<base64>`, or base64url.
pub(super) struct Versioned<'a> {
    pub(super) version: u32,
    pub(super) bytes: &'a [u8],
    pub(super) url: bool,
}

impl fmt::Display for Versioned<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = if self.url { &URL_SAFE_NO_PAD } else { &BASE64 };
        let text = Base64Display::new(self.bytes, engine);
        write!(f, "{PREFIX}{}:{text}", self.version)
    }
}

impl Serialize for Versioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes that may be a secret: what is made of them on their way to the answer is wiped.
#[derive(Clone, Copy)]
pub(super) enum Encoded<'a> {
    Hex(&'a [u8]),
    Base64(&'a [u8]),
}

impl Serialize for Encoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = Zeroizing::new(match self {
            Self::Hex(bytes) => hex::encode(bytes),
            Self::Base64(bytes) => BASE64.encode(bytes),
        });
        serializer.serialize_str(&text)
    }
}

/// Of `encrypt` and `rewrap`.
#[derive(Serialize)]
pub(super) struct Encrypted<'a> {
    ciphertext: Versioned<'a>,
    key_version: u32,
}

impl<'a> Encrypted<'a> {
    pub(super) fn new(version: u32, bytes: &'a [u8]) -> Self {
        Self {
            ciphertext: Versioned {
                version,
                bytes,
                url: false,
            },
            key_version: version,
        }
    }
}

impl<'a> From<&'a Ciphertext> for Encrypted<'a> {
    fn from(made: &'a Ciphertext) -> Self {
        Self::new(made.version, &made.bytes)
    }
}

impl Members for Encrypted<'_> {
    fn write(&self, envelope: &mut Envelope) {
        envelope.raw("\"ciphertext\":");
        envelope.versioned(self.ciphertext.version, self.ciphertext.bytes);
        envelope.raw(",\"key_version\":");
        envelope.number(self.key_version);
    }
}

/// Of `decrypt`.
#[derive(Serialize)]
pub(super) struct Decrypted<'a> {
    #[serde(serialize_with = "base64")]
    pub(super) plaintext: &'a [u8],
}

fn base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    Encoded::Base64(bytes).serialize(serializer)
}

impl Members for Decrypted<'_> {
    fn write(&self, envelope: &mut Envelope) {
        envelope.raw("\"plaintext\":\"");
        envelope.base64(self.plaintext);
        envelope.raw("\"");
    }
}

/// Of `datakey`.
#[derive(Serialize)]
pub(super) struct DataKeyMade<'a> {
    ciphertext: Versioned<'a>,
    key_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<Encoded<'a>>,
}

impl<'a> DataKeyMade<'a> {
    /// `plaintext`: where it is answered too.
    pub(super) fn new(made: &'a Ciphertext, plaintext: Option<&'a [u8]>) -> Self {
        let Encrypted {
            ciphertext,
            key_version,
        } = Encrypted::from(made);
        Self {
            ciphertext,
            key_version,
            plaintext: plaintext.map(Encoded::Base64),
        }
    }
}

/// Of `random`.
#[derive(Serialize)]
pub(super) struct Drawn<'a> {
    pub(super) random_bytes: Encoded<'a>,
}

/// Of `hash`.
#[derive(Serialize)]
pub(super) struct Digest<'a> {
    pub(super) sum: Encoded<'a>,
}

/// Of `hmac`.
#[derive(Serialize)]
pub(super) struct Tag<'a> {
    pub(super) hmac: Versioned<'a>,
}

/// Of `sign`.
#[derive(Serialize)]
pub(super) struct Signed<'a> {
    pub(super) signature: Versioned<'a>,
    pub(super) key_version: u32,
}

/// Of `verify`.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Valid {
    pub(super) valid: bool,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::pipeline::answer::RequestId;
    use crate::api::vault::batch::results::Outcome;

    /// Byte for byte.
    fn check<T: Members>(data: &T) {
        let written = |write: &dyn Fn(&mut Envelope)| {
            let mut envelope = Envelope::open(&RequestId::random(), 0);
            let start = envelope.len();
            write(&mut envelope);
            let body = envelope.close(&[], None::<&()>);
            String::from_utf8(body.slice(start..).to_vec()).unwrap()
        };
        let by_hand = written(&|envelope| envelope.object(data));
        assert_eq!(by_hand, written(&|envelope| envelope.json(data)));
    }

    fn check_outcomes<T: Members>(made: impl Fn() -> Option<T>) {
        for error in [None, Some("a \"b\"\\ \u{1}\u{e9}")] {
            for reference in ["", "r-1", "\"\n\u{7f}\u{1f600}/"] {
                let outcome = Outcome {
                    made: made(),
                    error,
                    reference,
                };
                let mut by_hand = Envelope::open(&RequestId::random(), 0);
                let mut by_serde = Envelope::open(&RequestId::random(), 0);
                let start = by_hand.len();
                outcome.write(&mut by_hand);
                outcome.serialize_into(&mut by_serde);
                let tail = |envelope: Envelope| envelope.close(&[], None::<&()>).slice(start..);
                let by_hand = tail(by_hand);
                assert_eq!(by_hand, tail(by_serde));
            }
        }
    }

    #[test]
    fn what_is_written_by_hand_is_what_serde_writes() {
        for bytes in [&b""[..], b"a", &[0xff; 3], &[0xfb; 4099]] {
            for version in [1, u32::MAX] {
                check(&Encrypted::new(version, bytes));
                check_outcomes(|| Some(Encrypted::new(version, bytes)));
            }
            check(&Decrypted { plaintext: bytes });
            check_outcomes(|| Some(Decrypted { plaintext: bytes }));
        }
        check_outcomes(|| None::<Encrypted<'_>>);
    }
}
