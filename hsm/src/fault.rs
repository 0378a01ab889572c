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

/// What a failed call says to a trial, which asks for what the token must refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The token won't do that.
    Refused,
    /// So some tokens say no, and others that they are not well: a token that does what it should
    /// has refused.
    Unclear,
    /// The token did not get as far as refusing.
    Failed,
}

impl Fault {
    pub(crate) fn verdict(&self) -> Verdict {
        match self {
            // The module lacks the function.
            Self::Own(HsmError::Unsupported(_)) => Verdict::Refused,
            Self::Own(_) => Verdict::Failed,
            Self::Token(code, _) => verdict(*code),
        }
    }

    pub(crate) fn reach(&self) -> Reach {
        match self {
            Self::Own(HsmError::Pin(_)) => Reach::Pin,
            // They were there when the connection was made: the token is away, or another is in its
            // place.
            Self::Own(
                HsmError::Unavailable(_) | HsmError::Missing { .. } | HsmError::Register { .. },
            ) => Reach::Device,
            Self::Own(_) => Reach::Item,
            Self::Token(code, function) => reach(*code, *function),
        }
    }

    /// Whether it is what a look at the token's objects has found. That may be of the moment: one
    /// that is just being written is not whole, or not there.
    pub(crate) fn is_of_a_look(&self) -> bool {
        matches!(
            self,
            Self::Own(
                HsmError::KeyPolicy { .. } | HsmError::Missing { .. } | HsmError::Register { .. }
            ) | Self::Token(_, Function::GetAttributeValue)
        ) || self.reach() == Reach::Object
    }

    /// The failure as callers see it.
    pub(crate) fn into_error(self) -> HsmError {
        // The first connection fails as the error that it is.
        if let Self::Own(error @ (HsmError::Missing { .. } | HsmError::Register { .. })) = self {
            return error;
        }
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

    /// Whether the token won't have an attribute of the template: the call may be tried without
    /// those that are optional.
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
            // Of `Raw::gcm_encrypt` alone.
            Error::NotSupported => Self::Own(HsmError::Unsupported(
                "AES-GCM with the caller's IV: the token writes another in its place".to_owned(),
            )),
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
        // So some tokens answer to data that they can't make sense of, which clients choose.
        RvError::DeviceError
            if matches!(
                function,
                Function::Decrypt | Function::UnwrapKey | Function::Sign | Function::Verify
            ) =>
        {
            Reach::Unclear
        }
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

/// By name, each: a code that is not here must not pass for a refusal.
fn verdict(code: RvError) -> Verdict {
    match code {
        RvError::ActionProhibited
        | RvError::ArgumentsBad
        | RvError::AttributeReadOnly
        | RvError::AttributeSensitive
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::CurveNotSupported
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::DomainParamsInvalid
        | RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::FunctionNotSupported
        | RvError::FunctionRejected
        | RvError::InformationSensitive
        | RvError::KeyFunctionNotPermitted
        | RvError::KeyIndigestible
        | RvError::KeyNeeded
        | RvError::KeyNotNeeded
        | RvError::KeyNotWrappable
        | RvError::KeySizeRange
        | RvError::KeyTypeInconsistent
        | RvError::KeyUnextractable
        | RvError::MechanismInvalid
        | RvError::MechanismParamInvalid
        | RvError::PublicKeyInvalid
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::UnwrappingKeySizeRange
        | RvError::UnwrappingKeyTypeInconsistent
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange
        | RvError::WrappingKeySizeRange
        | RvError::WrappingKeyTypeInconsistent => Verdict::Refused,
        RvError::FunctionFailed
        | RvError::GeneralError
        | RvError::KeyHandleInvalid
        | RvError::ObjectHandleInvalid
        | RvError::UnwrappingKeyHandleInvalid
        | RvError::UserNotLoggedIn
        // Kryoptic, of a key that may not wrap this one.
        | RvError::WrappingKeyHandleInvalid
        | RvError::VendorDefined(_)
        | RvError::UnknownErrorCode(_) => Verdict::Unclear,
        _ => Verdict::Failed,
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

    #[test]
    fn a_device_that_fails_has_refused_nothing() {
        for code in [
            RvError::DeviceError,
            RvError::DeviceMemory,
            RvError::DeviceRemoved,
            RvError::FunctionCanceled,
            RvError::HostMemory,
            RvError::OperationActive,
            RvError::SessionClosed,
            RvError::SessionCount,
            RvError::SessionHandleInvalid,
            RvError::SessionReadOnly,
            RvError::TokenNotPresent,
            RvError::TokenWriteProtected,
        ] {
            assert_eq!(verdict(code), Verdict::Failed, "{code:?}");
        }
        // As Kryoptic and SoftHSM refuse to wrap a key.
        assert_eq!(verdict(RvError::WrappingKeyHandleInvalid), Verdict::Unclear);
        assert_eq!(verdict(RvError::KeyNotWrappable), Verdict::Refused);
    }
}
