//! Finding the token: by label, by serial number, or by RFC 7512 URI.

use cryptoki::slot::{Slot, TokenInfo};

use crate::ceremony::SlotState;
use crate::config::TokenSelector;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::ffi::Raw;
use crate::types::TokenIdentity;

/// What a token must match; unset fields match anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenFilter {
    label: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    slot: Option<u64>,
}

/// The token that was found.
pub(crate) struct Found {
    pub(crate) slot: Slot,
    pub(crate) info: TokenInfo,
    pub(crate) identity: TokenIdentity,
}

impl TokenSelector {
    /// Whether it can name a token at all, before there is one.
    ///
    /// # Errors
    /// [`HsmError::Config`], which does not repeat the URI: a PIN may stand in it.
    pub fn check(&self) -> Result<(), HsmError> {
        TokenFilter::new(self).map(drop)
    }

    /// Whether it names the token in that slot, alone or with others.
    ///
    /// # Errors
    /// As [`TokenSelector::check`].
    pub fn names(&self, slot: &SlotState) -> Result<bool, HsmError> {
        Ok(TokenFilter::new(self)?.matches(&slot.token, slot.slot))
    }
}

impl TokenFilter {
    pub(crate) fn new(selector: &TokenSelector) -> Result<Self, HsmError> {
        let mut wanted = Self::default();
        match selector {
            TokenSelector::Label(label) => wanted.label = Some(label.clone()),
            TokenSelector::Serial(serial) => wanted.serial = Some(serial.clone()),
            TokenSelector::Uri(uri) => return from_uri(uri),
        }
        Ok(wanted)
    }

    /// Narrowed to one token: after a reconnection it must be the one that was there at start.
    pub(crate) fn and_serial(mut self, serial: &str) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }

    /// The one token that matches.
    pub(crate) fn find(&self, raw: &Raw) -> Result<Found, Fault> {
        let mut matching = Vec::new();
        let mut seen = Vec::new();
        for slot in raw.slots_with_token()? {
            // A token may go between the two calls; another one may still be right.
            let Ok(info) = raw.token_info(slot) else {
                continue;
            };
            let identity = TokenIdentity {
                label: info.label().to_owned(),
                serial: info.serial_number().to_owned(),
                manufacturer: info.manufacturer_id().to_owned(),
                model: info.model().to_owned(),
            };
            if info.token_initialized() {
                seen.push(format!("{:?} (serial {})", identity.label, identity.serial));
            }
            if self.matches(&identity, slot.id()) {
                matching.push(Found {
                    slot,
                    info,
                    identity,
                });
            }
        }
        let seen = if seen.is_empty() {
            "none".to_owned()
        } else {
            seen.join(", ")
        };
        match (matching.pop(), matching.len()) {
            (Some(found), 0) => Ok(found),
            (Some(_), more) => Err(HsmError::Config(format!(
                "{} tokens match {self}; name the serial number too. Tokens seen: {seen}",
                more + 1
            ))
            .into()),
            (None, _) => Err(HsmError::Config(format!(
                "no token matches {self}. Tokens seen: {seen}"
            ))
            .into()),
        }
    }

    fn matches(&self, token: &TokenIdentity, slot: u64) -> bool {
        let same = |wanted: &Option<String>, value: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == value)
        };
        same(&self.label, &token.label)
            && same(&self.serial, &token.serial)
            && same(&self.manufacturer, &token.manufacturer)
            && same(&self.model, &token.model)
            && self.slot.is_none_or(|wanted| wanted == slot)
    }
}

impl std::fmt::Display for TokenFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        let fields = [
            ("label", &self.label),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                parts.push(format!("{name} {value:?}"));
            }
        }
        if let Some(slot) = self.slot {
            parts.push(format!("slot {slot}"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// RFC 7512, section 2.3, as far as it names a token.
fn from_uri(uri: &str) -> Result<TokenFilter, HsmError> {
    let refused = |problem: &str| {
        // Without the URI itself: a PIN may stand in it.
        HsmError::Config(format!("the token URI is not usable: {problem}"))
    };
    let rest = uri
        .strip_prefix("pkcs11:")
        .ok_or_else(|| refused("it must begin with \"pkcs11:\""))?;
    // Wherever it stands: behind the wrong separator it would be a part of a value, which messages
    // repeat.
    if let Some(name) = ["pin-value", "pin-source"]
        .into_iter()
        .find(|name| rest.contains(name))
    {
        return Err(refused(&format!(
            "it holds {name}: a PIN is never given in a URI, name a PIN file or a credential instead"
        )));
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut wanted = TokenFilter::default();
    for part in query
        .split('&')
        .chain(path.split(';'))
        .filter(|part| !part.is_empty())
    {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| refused("a part of it has no \"=\""))?;
        let value = percent_decode(value)
            .ok_or_else(|| refused(&format!("the value of {name} is not percent-encoded UTF-8")))?;
        let field = match name {
            "token" => &mut wanted.label,
            "serial" => &mut wanted.serial,
            "manufacturer" => &mut wanted.manufacturer,
            "model" => &mut wanted.model,
            "slot-id" => {
                let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                let slot = value.parse().ok().filter(|_| digits);
                let slot = slot.ok_or_else(|| refused("slot-id is not a number"))?;
                if wanted.slot.replace(slot).is_some() {
                    return Err(refused("it holds slot-id twice"));
                }
                continue;
            }
            _ => {
                return Err(refused(&format!(
                    "it holds {name:?}; known are token, serial, manufacturer, model and slot-id"
                )));
            }
        };
        if field.replace(value).is_some() {
            return Err(refused(&format!("it holds {name} twice")));
        }
    }
    if wanted == TokenFilter::default() {
        return Err(refused("it names no token: add token=… or serial=…"));
    }
    Ok(wanted)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_uri_names_a_token() {
        let wanted = from_uri("pkcs11:token=My%20token%3b1;serial=0a;slot-id=7").unwrap();
        assert_eq!(wanted.label.as_deref(), Some("My token;1"));
        assert_eq!(wanted.serial.as_deref(), Some("0a"));
        assert_eq!(wanted.slot, Some(7));
        assert_eq!(
            wanted.to_string(),
            "label \"My token;1\", serial \"0a\", slot 7"
        );
    }

    #[test]
    fn a_pin_in_a_uri_is_refused_and_not_repeated() {
        for uri in [
            "pkcs11:token=a?pin-value=123456",
            "pkcs11:token=a;pin-value=123456",
            "pkcs11:token=a?pin-source=file:/123456",
            "pkcs11:token=a&pin-value=123456",
            "pkcs11:token=a?model=b;pin-value=123456",
        ] {
            let error = from_uri(uri).unwrap_err().to_string();
            assert!(error.contains("never given in a URI"), "{error}");
            assert!(!error.contains("123456"), "{error}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (uri, part) in [
            ("token=a", "must begin"),
            ("pkcs11:", "names no token"),
            ("pkcs11:token=a;object=b", "\"object\""),
            ("pkcs11:token=a;token=b", "twice"),
            ("pkcs11:token=%g0", "percent"),
            ("pkcs11:token=%f", "percent"),
            ("pkcs11:token=%ff", "percent"),
            ("pkcs11:token", "no \"=\""),
            ("pkcs11:slot-id=x", "not a number"),
            ("pkcs11:slot-id=+1", "not a number"),
        ] {
            let error = from_uri(uri).unwrap_err().to_string();
            assert!(error.contains(part), "{uri}: {error}");
        }
    }
}
