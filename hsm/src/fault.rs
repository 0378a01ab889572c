//! What a PKCS#11 call's failure means: for the item, for the session, or for the whole connection.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::error::HsmError;

/// A failed call, or a finding of our own.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The module answered `CKR_…`.
    Token(RvError, Function),
    /// An error that is ready for the caller.
    Own(HsmError),
}

/// How far a failure reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// This operation only.
    Item,
    /// The key's handle is stale: unwrap it again.
    Object,
    /// This session is gone: open another.
    Session,
    /// The token is gone or broken: reconnect.
    Device,
    /// The PIN was refused: stop.
    Pin,
    /// Could be the data or the device; a known-good operation tells (see `Conn::canary`).
    Unclear,
}

impl Fault {
    pub(crate) fn reach(&self) -> Reach {
        match self {
            Self::Own(HsmError::Pin(_)) => Reach::Pin,
            Self::Own(HsmError::Unavailable(_)) => Reach::Device,
            Self::Own(_) => Reach::Item,
            Self::Token(code, function) => reach(*code, *function),
        }
    }

    /// The failure as callers see it.
    pub(crate) fn into_error(self) -> HsmError {
        match self.reach() {
            Reach::Device | Reach::Session => HsmError::Unavailable(self.to_string()),
            Reach::Pin => match self {
                Self::Own(error) => error,
                Self::Token(code, _) => HsmError::Pin(code_name(code)),
            },
            _ => match self {
                Self::Own(error) => error,
                Self::Token(code, function) => HsmError::Pkcs11 {
                    function: format!("C_{function:?}"),
                    code: code_name(code),
                },
            },
        }
    }

    /// The code, if the module gave one.
    pub(crate) fn code(&self) -> Option<RvError> {
        match self {
            Self::Token(code, _) => Some(*code),
            Self::Own(_) => None,
        }
    }

    /// Whether the token won't have an attribute of the template: the call may be tried without those that are optional.
    pub(crate) fn refuses_template(&self) -> bool {
        matches!(
            self.code(),
            Some(
                RvError::AttributeTypeInvalid
                    | RvError::AttributeValueInvalid
                    | RvError::AttributeReadOnly
                    | RvError::TemplateInconsistent
            )
        )
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(code, function) => {
                write!(f, "C_{function:?} returned {}", code_name(*code))
            }
            Self::Own(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Pkcs11(code, function) => Self::Token(code, function),
            Error::NullFunctionPointer => Self::Own(HsmError::Unsupported(
                "a PKCS#11 function that is needed: the module has none".to_owned(),
            )),
            other => Self::Own(HsmError::Pkcs11 {
                function: "the PKCS#11 module".to_owned(),
                code: format!("an answer that makes no sense: {other}"),
            }),
        }
    }
}

impl From<HsmError> for Fault {
    fn from(error: HsmError) -> Self {
        Self::Own(error)
    }
}

/// `CKR_SESSION_HANDLE_INVALID` for `RvError::SessionHandleInvalid`.
pub(crate) fn code_name(code: RvError) -> String {
    match code {
        RvError::VendorDefined(value) | RvError::UnknownErrorCode(value) => {
            return format!("CKR {value:#x}");
        }
        _ => {}
    }
    let mut name = "CKR".to_owned();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn reach(code: RvError, function: Function) -> Reach {
    match code {
        RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid => Reach::Object,
        RvError::SessionHandleInvalid
        | RvError::SessionClosed
        | RvError::UserNotLoggedIn
        // An operation that was left behind in this session; a fresh one has none.
        | RvError::OperationActive
        | RvError::OperationNotInitialized
        | RvError::UnwrappingKeyHandleInvalid
        | RvError::WrappingKeyHandleInvalid => Reach::Session,
        RvError::DeviceRemoved
        | RvError::DeviceError
        | RvError::TokenNotPresent
        | RvError::TokenNotRecognized
        | RvError::SlotIdInvalid
        | RvError::CryptokiNotInitialized => Reach::Device,
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked
        | RvError::UserPinNotInitialized
            if matches!(function, Function::Login) =>
        {
            Reach::Pin
        }
        RvError::GeneralError
        | RvError::FunctionFailed
        | RvError::DeviceMemory
        | RvError::HostMemory
        | RvError::FunctionCanceled
        | RvError::VendorDefined(_)
        | RvError::UnknownErrorCode(_) => Reach::Unclear,
        _ => Reach::Item,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_as_pkcs11_does() {
        assert_eq!(
            code_name(RvError::SessionHandleInvalid),
            "CKR_SESSION_HANDLE_INVALID"
        );
        assert_eq!(code_name(RvError::PinLenRange), "CKR_PIN_LEN_RANGE");
        assert_eq!(
            code_name(RvError::VendorDefined(0x8000_0001)),
            "CKR 0x80000001"
        );
    }

    #[test]
    fn a_pin_code_counts_only_from_login() {
        assert_eq!(reach(RvError::PinIncorrect, Function::Login), Reach::Pin);
        assert_eq!(reach(RvError::PinIncorrect, Function::Sign), Reach::Item);
    }
}
