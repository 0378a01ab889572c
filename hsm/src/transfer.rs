//! Whether a token is fit for a transfer key, found out by trying: with a throwaway KEK, by all that the user's PIN allows, and then by a
//! move as a rotation makes it.
//!
//! PKCS#11 says what `CKA_UNWRAP_TEMPLATE`, `CKA_WRAP_WITH_TRUSTED` and `CKA_TRUSTED` mean, but tokens differ, and one that ignored
//! them would let whoever has the user's PIN take every KEK out. So each refusal is asked for.

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_MODULUS, CKA_PUBLIC_EXPONENT, CKA_VALUE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY};
use rsa::pkcs8::DecodePublicKey as _;
use rsa::traits::PublicKeyParts as _;

use crate::error::HsmError;
use crate::fault::{Fault, Reach};
use crate::keys;
use crate::keys::generation::{Numbered, trusted_rules};
use crate::line::Line;
use crate::template::MASTER;
use crate::types::{KeyUsage, MasterKind, OaepHash};
use crate::{selftest, session_key};

type Result<T> = std::result::Result<T, Fault>;

/// A KEK that protects nothing.
pub(crate) struct Throwaway {
    hash: OaepHash,
    by_transfer: Vec<u8>,
    /// What it makes of a fixed input.
    answer: Vec<u8>,
}

impl Throwaway {
    /// Made, wrapped by the transfer key, and destroyed.
    pub(crate) fn new(line: &Line, transfer: Numbered<'_>) -> Result<Self> {
        let hash = selftest::preferred_oaep(line)?;
        let public = one(line, CKO_PUBLIC_KEY, transfer)?;
        let original = session_key::generate(line, KeyUsage::Aead, MasterKind::Hsm)?;
        let made = || -> Result<Self> {
            let by_transfer =
                line.session()
                    .wrap_key(&session_key::oaep(hash), public, original)?;
            Ok(Self {
                hash,
                by_transfer,
                answer: answer(line, original)?,
            })
        };
        let made = made();
        line.session().destroy_object(original)?;
        made
    }

    fn unwrap(
        &self,
        line: &Line,
        transfer: ObjectHandle,
        template: &[Attribute],
    ) -> std::result::Result<ObjectHandle, Error> {
        line.session().unwrap_key(
            &session_key::oaep(self.hash),
            transfer,
            &self.by_transfer,
            template,
        )
    }

    /// As a rotation does it: out of the transfer key, under the trusted key, and out of the master key again. `None`: all well.
    pub(crate) fn move_to(
        &self,
        line: &Line,
        transfer: Numbered<'_>,
        trusted: ObjectHandle,
        master: Numbered<'_>,
    ) -> Result<Option<String>> {
        let transfer = one(line, CKO_PRIVATE_KEY, transfer)?;
        let master = one(line, CKO_PRIVATE_KEY, master)?;
        let moved = self.unwrap(line, transfer, &session_key::to_move(KeyUsage::Aead))?;
        let wrapped = line
            .session()
            .wrap_key(&session_key::oaep(self.hash), trusted, moved);
        line.session().destroy_object(moved)?;
        let wrapped = match wrapped.map_err(Fault::from) {
            Ok(wrapped) => wrapped,
            Err(fault) if is_refusal(&fault) => {
                return Ok(Some(format!(
                    "it does not wrap a key from the transfer key even by a trusted one ({fault})"
                )));
            }
            Err(fault) => return Err(fault),
        };
        let usage = KeyUsage::Aead;
        let kek = session_key::unwrap(line, self.hash, master, &wrapped, usage, false)?;
        let same = answer(line, kek)? == self.answer;
        line.session().destroy_object(kek)?;
        Ok((!same).then(|| "a key that was moved is another key afterwards".to_owned()))
    }
}

/// Why the token is not fit for a transfer key, as far as the user's PIN can tell; `None`: it is. The pair is on the token.
pub(crate) fn check_as_user(line: &Line, transfer: Numbered<'_>) -> Result<Option<String>> {
    let throwaway = Throwaway::new(line, transfer)?;
    let private = one(line, CKO_PRIVATE_KEY, transfer)?;
    if let Some(attribute) = unforced(line, &throwaway, private)? {
        return Ok(Some(format!(
            "a key comes out of the transfer key with another {attribute:?} than its CKA_UNWRAP_TEMPLATE says"
        )));
    }
    let template = session_key::to_move(KeyUsage::Aead);
    let moved = match throwaway
        .unwrap(line, private, &template)
        .map_err(Fault::from)
    {
        Ok(moved) => moved,
        Err(fault) if is_refusal(&fault) => {
            return Ok(Some(format!(
                "no key comes out of the transfer key ({fault})"
            )));
        }
        Err(fault) => return Err(fault),
    };
    let leak = leak(line, moved, one(line, CKO_PUBLIC_KEY, transfer)?);
    line.session().destroy_object(moved)?;
    if let Some(leak) = leak? {
        return Ok(Some(leak.to_owned()));
    }
    Ok(user_marks(line, transfer)?
        .then(|| "whoever has the user PIN can mark a key as trusted".to_owned()))
}

/// The first attribute that can be had otherwise than the template says.
fn unforced(
    line: &Line,
    throwaway: &Throwaway,
    private: ObjectHandle,
) -> Result<Option<AttributeType>> {
    for attribute in session_key::to_move(KeyUsage::Aead) {
        let Some(other) = flipped(&attribute) else {
            continue;
        };
        let kind = attribute.attribute_type();
        let mut template = session_key::to_move(KeyUsage::Aead);
        for place in &mut template {
            if place.attribute_type() == kind {
                *place = other.clone();
            }
        }
        if refused(throwaway.unwrap(line, private, &template), |object| {
            line.session().destroy_object(object)
        })? {
            continue;
        }
        return Ok(Some(kind));
    }
    Ok(None)
}

/// What the user can do with a key that comes out of the transfer key, and must not.
fn leak(line: &Line, moved: ObjectHandle, public: ObjectHandle) -> Result<Option<&'static str>> {
    let session = || line.session();
    let destroy = |object| session().destroy_object(object);
    let nothing = |()| Ok(());
    if line.raw().attribute(session(), moved, CKA_VALUE)?.is_some() {
        return Ok(Some("a key from the transfer key tells its value"));
    }
    let mut output = Vec::new();
    let used = line
        .raw()
        .gcm_encrypt(session(), moved, &[0; 12], &[], &[0; 16], &mut output);
    if !refused(used, nothing)? {
        return Ok(Some("a key from the transfer key encrypts"));
    }
    let hash = selftest::preferred_oaep(line)?;
    let wrapped = session().wrap_key(&session_key::oaep(hash), public, moved);
    if !refused(wrapped, |_| Ok(()))? {
        return Ok(Some(
            "a key from the transfer key is wrapped by a public key that is not trusted",
        ));
    }
    let own = session().generate_key(
        &Mechanism::AesKeyGen,
        &[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Wrap(true),
            Attribute::Decrypt(false),
            Attribute::ValueLen(32.into()),
        ],
    )?;
    let mut wrapped = true;
    for mechanism in [Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad] {
        wrapped &= refused(session().wrap_key(&mechanism, own, moved), |_| Ok(()))?;
    }
    session().destroy_object(own)?;
    if !wrapped {
        return Ok(Some(
            "a key from the transfer key is wrapped by an AES key that is not trusted",
        ));
    }
    for weaker in [
        Attribute::WrapWithTrusted(false),
        Attribute::Sensitive(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Derive(true),
    ] {
        let weaker = [weaker];
        if !refused(session().update_attributes(moved, &weaker), nothing)?
            || !refused(session().copy_object(moved, &weaker), destroy)?
        {
            return Ok(Some(
                "the attributes of a key from the transfer key can be weakened",
            ));
        }
    }
    Ok(None)
}

/// Whether the user can do what is the security officer's alone.
fn user_marks(line: &Line, key: Numbered<'_>) -> Result<bool> {
    let public = one(line, CKO_PUBLIC_KEY, key)?;
    let yes = [Attribute::Trusted(true)];
    let session = || line.session();
    let number = |name| -> Result<Vec<u8>> {
        let number = line.raw().attribute(session(), public, name)?;
        number.ok_or_else(|| {
            HsmError::Unsupported("telling the numbers of a public key".to_owned()).into()
        })
    };
    let mut import = public_template(number(CKA_MODULUS)?, number(CKA_PUBLIC_EXPONENT)?);
    import.push(Attribute::Token(false));
    import.push(Attribute::Trusted(true));
    let destroy = |object| session().destroy_object(object);
    Ok(
        !(refused(session().update_attributes(public, &yes), |()| Ok(()))?
            && refused(session().copy_object(public, &yes), destroy)?
            && refused(session().create_object(&import), destroy)?),
    )
}

/// Imports a public key as the security officer, marked as trusted; the mark that is there already if it is of the same numbers.
///
/// `SoftHSM` lets `CKA_TRUSTED` be given at an object's creation only; PKCS#11 means it to be set afterwards. Both are tried.
pub(crate) fn mark(line: &Line, key: Numbered<'_>, spki: &[u8]) -> Result<ObjectHandle> {
    let unfit =
        |problem: String| HsmError::Unsupported(format!("marking a key as trusted: {problem}"));
    let numbers = rsa::PublicKey::from_public_key_der(spki).map_err(|error| {
        HsmError::Rotation(format!("the {} is no RSA key: {error}", key.public_name()))
    })?;
    let label = key.trusted_label();
    let name = key.trusted_name();
    if let [there] = line.find(CKO_PUBLIC_KEY, &label)?.as_slice() {
        if keys::spki(line, *there)?.as_deref() == Some(spki)
            && keys::check(line, *there, &name, &trusted_rules(key)).is_ok()
        {
            return Ok(*there);
        }
        return Err(HsmError::KeyExists(format!(
            "{name}, which is not of the key that is to be marked: destroy it first"
        ))
        .into());
    }
    let mut plain = public_template(numbers.n_bytes().to_vec(), numbers.e_bytes().to_vec());
    plain.extend([
        Attribute::Token(true),
        Attribute::Label(label.clone().into_bytes()),
        Attribute::Id(label.into_bytes()),
    ]);
    let trusted = Attribute::Trusted(true);
    // Last: SoftHSM lets nothing be set after CKA_MODIFIABLE.
    let fixed = [Attribute::Copyable(false), Attribute::Modifiable(false)];
    let at_once = [&plain[..], std::slice::from_ref(&trusted), &fixed].concat();
    let made = match line.session().create_object(&at_once).map_err(Fault::from) {
        Ok(made) => made,
        Err(fault) if is_refusal(&fault) => {
            let made = line.session().create_object(&plain).map_err(|error| {
                unfit(format!("the import was refused ({})", Fault::from(error)))
            })?;
            for attribute in std::iter::once(trusted).chain(fixed) {
                // What came of it is seen below.
                let _ = line.session().update_attributes(made, &[attribute]);
            }
            made
        }
        Err(fault) => return Err(fault),
    };
    match keys::check(line, made, &name, &trusted_rules(key)) {
        Ok(()) => Ok(made),
        Err(fault) => {
            line.session().destroy_object(made)?;
            Err(unfit(fault.to_string()).into())
        }
    }
}

/// The public half of the first generation of the master key, for a try.
pub(crate) fn first_master(line: &Line) -> Result<(Numbered<'static>, Vec<u8>)> {
    let key = Numbered::from(&MASTER);
    let spki = keys::spki(line, one(line, CKO_PUBLIC_KEY, key)?)?;
    let spki = spki
        .ok_or_else(|| HsmError::Unsupported("telling the numbers of a public key".to_owned()))?;
    Ok((key, spki))
}

fn public_template(modulus: Vec<u8>, exponent: Vec<u8>) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::PUBLIC_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Private(false),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
        Attribute::VerifyRecover(false),
        Attribute::Derive(false),
        Attribute::Modulus(modulus),
        Attribute::PublicExponent(exponent),
    ]
}

fn flipped(attribute: &Attribute) -> Option<Attribute> {
    Some(match attribute {
        Attribute::Token(v) => Attribute::Token(!v),
        Attribute::Private(v) => Attribute::Private(!v),
        Attribute::Sensitive(v) => Attribute::Sensitive(!v),
        Attribute::Extractable(v) => Attribute::Extractable(!v),
        Attribute::WrapWithTrusted(v) => Attribute::WrapWithTrusted(!v),
        Attribute::Encrypt(v) => Attribute::Encrypt(!v),
        Attribute::Decrypt(v) => Attribute::Decrypt(!v),
        Attribute::Sign(v) => Attribute::Sign(!v),
        Attribute::Verify(v) => Attribute::Verify(!v),
        Attribute::Wrap(v) => Attribute::Wrap(!v),
        Attribute::Unwrap(v) => Attribute::Unwrap(!v),
        Attribute::Derive(v) => Attribute::Derive(!v),
        Attribute::Copyable(v) => Attribute::Copyable(!v),
        Attribute::Modifiable(v) => Attribute::Modifiable(!v),
        _ => return None,
    })
}

/// Whether the token refused; what it gave instead is undone. A token that is gone has refused nothing.
fn refused<T>(
    result: std::result::Result<T, Error>,
    undo: impl FnOnce(T) -> std::result::Result<(), Error>,
) -> Result<bool> {
    match result.map_err(Fault::from) {
        Ok(given) => {
            undo(given)?;
            Ok(false)
        }
        Err(fault) if is_refusal(&fault) => Ok(true),
        Err(fault) => Err(fault),
    }
}

fn is_refusal(fault: &Fault) -> bool {
    match fault {
        Fault::Token(RvError::FunctionFailed | RvError::GeneralError, _) => true,
        fault => !matches!(fault.reach(), Reach::Device | Reach::Session | Reach::Pin),
    }
}

fn answer(line: &Line, key: ObjectHandle) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    line.raw()
        .gcm_encrypt(line.session(), key, &[0; 12], &[], &[0; 16], &mut output)?;
    Ok(output)
}

fn one(line: &Line, class: cryptoki_sys::CK_ULONG, key: Numbered<'_>) -> Result<ObjectHandle> {
    keys::only(line, &key.label(), class, &key.name())
}
