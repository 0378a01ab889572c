//! A prototype, in tests only: can KEKs be wrapped again though the master key unwraps them as non-extractable?
//! See docs/transfer-key.md. Each fact that the design would rest on is asserted on a real token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki_sys::{
    CKA_CLASS, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_KEY_TYPE,
    CKA_LABEL, CKA_MODIFIABLE, CKA_MODULUS, CKA_MODULUS_BITS, CKA_PRIVATE, CKA_PUBLIC_EXPONENT,
    CKA_SENSITIVE, CKA_SIGN, CKA_TOKEN, CKA_TRUSTED, CKA_UNWRAP, CKA_UNWRAP_TEMPLATE, CKA_VERIFY,
    CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKK_RSA, CKM_RSA_PKCS_KEY_PAIR_GEN, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
};

use crate::ceremony;
use crate::config::TokenSelector;
use crate::line::{Line, Watch};
use crate::module::Module;
use crate::pin::SecretPin;
use crate::selector::Wanted;
use crate::session_key;
use crate::template::{MASTER_UNWRAP_TEMPLATE, Rule, Value, When};
use crate::types::OaepHash;

macro_rules! rules {
    ($($name:ident = $value:expr;)+) => {
        &[$(Rule { attribute: $name, name: stringify!($name), value: $value, when: When::Always }),+]
    };
}

const YES: Value = Value::Bool(true);
const NO: Value = Value::Bool(false);

/// What the transfer key forces on what it unwraps: it comes out under a trusted key and is good for nothing else.
static TRANSFER: &[Rule] = rules! {
    CKA_TOKEN = NO;
    CKA_PRIVATE = YES;
    CKA_SENSITIVE = YES;
    CKA_EXTRACTABLE = YES;
    CKA_WRAP_WITH_TRUSTED = YES;
    CKA_ENCRYPT = NO;
    CKA_DECRYPT = NO;
    CKA_SIGN = NO;
    CKA_VERIFY = NO;
    CKA_WRAP = NO;
    CKA_UNWRAP = NO;
    CKA_DERIVE = NO;
    CKA_COPYABLE = NO;
    CKA_MODIFIABLE = NO;
};

/// The same without the two that keep a copy from being changed: what `CKA_WRAP_WITH_TRUSTED` does by itself.
static TRANSFER_LOOSE: &[Rule] = rules! {
    CKA_SENSITIVE = YES;
    CKA_EXTRACTABLE = YES;
    CKA_WRAP_WITH_TRUSTED = YES;
};

struct Token {
    module: Module,
    line: Line,
    so_pin: SecretPin,
    user_pin: SecretPin,
}

impl Token {
    fn new() -> Self {
        drop(strongroom_softhsm::Throwaway::in_process().unwrap());
        let path = strongroom_softhsm::module_path().unwrap();
        let blank = ceremony::slots(&path).unwrap();
        let blank = blank.iter().find(|slot| !slot.initialized).unwrap();
        let pin = |text: &str| SecretPin::new(text.as_bytes().to_vec().into());
        let (so_pin, user_pin) = (pin("so pin"), pin("user pin"));
        let label = format!("transfer-{}", std::process::id());
        let made = ceremony::initialize_token(&path, blank.slot, &label, &so_pin).unwrap();
        let selector = TokenSelector::Serial(made.token.serial);
        ceremony::set_user_pin(&path, &selector, &so_pin, &user_pin).unwrap();
        let module = Module::acquire(&path).unwrap();
        let found = Wanted::new(&selector)
            .unwrap()
            .find(&module.library().context)
            .unwrap();
        let line = Line::open(module.library(), found.slot, Arc::new(Watch::default())).unwrap();
        let token = Self {
            module,
            line,
            so_pin,
            user_pin,
        };
        token.log_in(UserType::User);
        token
    }

    fn log_in(&self, user: UserType) {
        let _ = self.line.session().logout();
        let pin = match user {
            UserType::So => &self.so_pin,
            _ => &self.user_pin,
        };
        self.line
            .session()
            .login_with_raw(user, &pin.raw())
            .unwrap();
    }

    /// (public, private): a 2048-bit pair whose private half unwraps by that template.
    fn pair(
        &self,
        label: &'static [u8],
        modifiable: bool,
        template: &'static [Rule],
    ) -> (ObjectHandle, ObjectHandle) {
        let public: &[Rule] = rules! {
            CKA_CLASS = Value::Ulong(CKO_PUBLIC_KEY);
            CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
            CKA_LABEL = Value::Bytes(label);
            CKA_TOKEN = YES;
            CKA_PRIVATE = NO;
            CKA_WRAP = YES;
            CKA_ENCRYPT = NO;
            CKA_PUBLIC_EXPONENT = Value::Bytes(&[1, 0, 1]);
            CKA_MODULUS_BITS = Value::Ulong(2048);
            CKA_MODIFIABLE = Value::Bool(modifiable);
        };
        let private: &[Rule] = rules! {
            CKA_CLASS = Value::Ulong(CKO_PRIVATE_KEY);
            CKA_KEY_TYPE = Value::Ulong(CKK_RSA);
            CKA_LABEL = Value::Bytes(label);
            CKA_TOKEN = YES;
            CKA_PRIVATE = YES;
            CKA_SENSITIVE = YES;
            CKA_EXTRACTABLE = NO;
            CKA_UNWRAP = YES;
            CKA_DECRYPT = NO;
            CKA_SIGN = NO;
            CKA_UNWRAP_TEMPLATE = Value::Template(template);
        };
        self.line
            .raw()
            .generate_key_pair(
                self.line.session(),
                CKM_RSA_PKCS_KEY_PAIR_GEN,
                public.iter(),
                private.iter(),
            )
            .unwrap()
    }

    /// The public key's numbers as a new object.
    fn public_copy(
        &self,
        public: ObjectHandle,
        extra: &[Attribute],
    ) -> Result<ObjectHandle, Error> {
        let number = |name| {
            self.line
                .raw()
                .attribute(self.line.session(), public, name)
                .unwrap()
                .unwrap()
        };
        let mut template = vec![
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Wrap(true),
            Attribute::Encrypt(false),
            Attribute::Modulus(number(CKA_MODULUS)),
            Attribute::PublicExponent(number(CKA_PUBLIC_EXPONENT)),
        ];
        template.extend_from_slice(extra);
        self.line.session().create_object(&template)
    }

    /// A KEK as the product makes it, extractable for the moment of its wrapping; `trusted`: under trusted keys only.
    fn kek(&self, trusted: bool) -> ObjectHandle {
        self.line
            .session()
            .generate_key(
                &Mechanism::AesKeyGen,
                &[
                    Attribute::Token(false),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(true),
                    Attribute::WrapWithTrusted(trusted),
                    Attribute::ValueLen(32.into()),
                ],
            )
            .unwrap()
    }

    fn wrap(&self, by: ObjectHandle, key: ObjectHandle) -> Result<Vec<u8>, Error> {
        self.line.session().wrap_key(&oaep(), by, key)
    }

    fn unwrap(
        &self,
        by: ObjectHandle,
        blob: &[u8],
        template: &[Attribute],
    ) -> Result<ObjectHandle, Error> {
        self.line.session().unwrap_key(&oaep(), by, blob, template)
    }

    fn answer(&self, key: ObjectHandle) -> Result<Vec<u8>, Error> {
        let mut output = Vec::new();
        self.line
            .raw()
            .gcm_encrypt(
                self.line.session(),
                key,
                &[0; 12],
                &[],
                &[0; 16],
                &mut output,
            )
            .map(|()| output)
    }

    fn trusted(&self, key: ObjectHandle) -> bool {
        let value = self
            .line
            .raw()
            .attribute(self.line.session(), key, CKA_TRUSTED);
        value.unwrap() == Some(vec![1])
    }
}

fn oaep() -> Mechanism<'static> {
    session_key::oaep(OaepHash::Sha1)
}

/// What the transfer template wants repeated in the call.
fn transfer() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
    ]
}

/// What the master key wants.
fn strict() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

fn refusal<T>(result: Result<T, Error>, what: &str) -> RvError {
    let code = match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(error) => panic!("{what}: {error}"),
        Ok(_) => panic!("{what} succeeded"),
    };
    println!("{what}: {code:?}");
    code
}

#[test]
#[allow(clippy::too_many_lines, reason = "one token and its keys serve all")]
fn a_kek_moves_to_another_master_through_the_transfer_key_and_nowhere_else() {
    let token = Token::new();
    let session = || token.line.session();
    let (old, _) = token.pair(b"old master", false, MASTER_UNWRAP_TEMPLATE);
    let (new, _) = token.pair(b"new master", false, MASTER_UNWRAP_TEMPLATE);
    let (transfer_public, transfer_private) = token.pair(b"transfer", false, TRANSFER);
    let (loose_public, loose_private) = token.pair(b"loose", true, TRANSFER_LOOSE);

    // Birth: the KEK is wrapped twice.
    let original = token.kek(false);
    let expected = token.answer(original).unwrap();
    let by_old = token.wrap(old, original).unwrap();
    let by_transfer = token.wrap(transfer_public, original).unwrap();
    let by_loose = token.wrap(loose_public, original).unwrap();
    session().destroy_object(original).unwrap();

    // Each attribute of the template must be repeated, and can't be another.
    for attribute in transfer() {
        let kind = attribute.attribute_type();
        let without: Vec<_> = transfer()
            .into_iter()
            .filter(|other| other.attribute_type() != kind)
            .collect();
        let result = token.unwrap(transfer_private, &by_transfer, &without);
        match kind {
            // Mandatory in the call, or with a default that agrees.
            cryptoki::object::AttributeType::Class | cryptoki::object::AttributeType::KeyType => {
                refusal(result, &format!("transfer without {kind:?}"));
            }
            cryptoki::object::AttributeType::Token | cryptoki::object::AttributeType::Private => {
                session().destroy_object(result.unwrap()).unwrap();
            }
            _ => {
                let code = refusal(result, &format!("transfer without {kind:?}"));
                assert_eq!(code, RvError::TemplateInconsistent);
            }
        }
        let other = match attribute {
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
            _ => continue,
        };
        let mut changed = without;
        changed.insert(2, other.clone());
        let result = token.unwrap(transfer_private, &by_transfer, &changed);
        let code = refusal(result, &format!("transfer with {other:?}"));
        assert_eq!(code, RvError::TemplateInconsistent);
    }

    // What comes through it is good for nothing, and goes under no key that is not trusted.
    let moved = token
        .unwrap(transfer_private, &by_transfer, &transfer())
        .unwrap();
    refusal(token.answer(moved), "encrypting with the moved KEK");
    let value = token
        .line
        .raw()
        .attribute(session(), moved, cryptoki_sys::CKA_VALUE)
        .unwrap();
    assert_eq!(value, None, "the moved KEK tells its value");
    let own = session()
        .generate_key(
            &Mechanism::AesKeyGen,
            &[
                Attribute::Token(false),
                Attribute::Wrap(true),
                Attribute::Decrypt(true),
                Attribute::ValueLen(32.into()),
            ],
        )
        .unwrap();
    for (by, name) in [
        (old, "old master"),
        (new, "new master"),
        (transfer_public, "transfer key"),
    ] {
        let code = refusal(
            token.wrap(by, moved),
            &format!("wrapping it under the untrusted {name}"),
        );
        assert_eq!(code, RvError::KeyNotWrappable);
    }
    for mechanism in [Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad] {
        let result = session().wrap_key(&mechanism, own, moved);
        assert_eq!(
            refusal(result, "wrapping it under an AES key"),
            RvError::KeyNotWrappable
        );
    }
    for weaker in [
        Attribute::WrapWithTrusted(false),
        Attribute::Decrypt(true),
        Attribute::Sensitive(false),
        Attribute::Derive(true),
    ] {
        let set = session().update_attributes(moved, std::slice::from_ref(&weaker));
        refusal(set, &format!("setting {weaker:?}"));
        let copy = session().copy_object(moved, std::slice::from_ref(&weaker));
        refusal(copy, &format!("copying with {weaker:?}"));
    }

    // CKA_WRAP_WITH_TRUSTED by itself, without CKA_COPYABLE and CKA_MODIFIABLE.
    let loose_template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::WrapWithTrusted(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
    ];
    let loose = token
        .unwrap(loose_private, &by_loose, &loose_template)
        .unwrap();
    let off = [Attribute::WrapWithTrusted(false)];
    let code = refusal(
        session().update_attributes(loose, &off),
        "loose: setting it to false",
    );
    assert_eq!(code, RvError::AttributeReadOnly);
    refusal(
        session().copy_object(loose, &off),
        "loose: copying with it false",
    );
    let copy = session().copy_object(loose, &[Attribute::Encrypt(true)]);
    println!("loose: copying with CKA_ENCRYPT=true: {:?}", copy.is_ok());
    if let Ok(copy) = copy {
        assert_eq!(
            refusal(token.wrap(old, copy), "loose: wrapping the copy"),
            RvError::KeyNotWrappable
        );
    }
    let derive = session().update_attributes(loose, &[Attribute::Derive(true)]);
    println!("loose: setting CKA_DERIVE=true: {:?}", derive.is_ok());

    // The user can't make a key trusted: not by setting, importing, generating or copying.
    let yes = [Attribute::Trusted(true)];
    for (key, name) in [(new, "fixed"), (loose_public, "modifiable")] {
        refusal(
            session().update_attributes(key, &yes),
            &format!("user: CKA_TRUSTED on a {name} key"),
        );
        refusal(
            session().copy_object(key, &yes),
            &format!("user: copying a {name} key as trusted"),
        );
        assert!(!token.trusted(key));
    }
    refusal(
        token.public_copy(new, &yes),
        "user: importing a trusted key",
    );
    let wrapping = [
        Attribute::Token(false),
        Attribute::Wrap(true),
        Attribute::Trusted(true),
        Attribute::ValueLen(32.into()),
    ];
    refusal(
        session().generate_key(&Mechanism::AesKeyGen, &wrapping),
        "user: generating a trusted AES key",
    );

    // The SO can: on a modifiable public key, or by importing the public numbers. Session objects die with the login.
    token.log_in(UserType::So);
    let fixed = session().update_attributes(new, &yes);
    refusal(fixed, "SO: CKA_TRUSTED on a key with CKA_MODIFIABLE=false");
    let set = session().update_attributes(loose_public, &yes);
    let code = refusal(set, "SO: CKA_TRUSTED on a modifiable key");
    assert_eq!(
        code,
        RvError::AttributeReadOnly,
        "SoftHSM lets it be given at an object's creation only"
    );
    let trusted_modifiable = token.public_copy(old, &yes).unwrap();
    let trusted_new = token
        .public_copy(
            new,
            &[
                Attribute::Label("new master, trusted".into()),
                Attribute::Trusted(true),
                Attribute::Copyable(false),
                Attribute::Modifiable(false),
            ],
        )
        .unwrap();
    token.log_in(UserType::User);
    assert!(token.trusted(trusted_new) && token.trusted(trusted_modifiable));

    // A logout takes the handles of private objects with it.
    let again = |label| token.line.find(CKO_PRIVATE_KEY, label).unwrap()[0];
    let (old_private, new_private) = (again("old master"), again("new master"));
    let transfer_private = again("transfer");

    // A trusted key that stays modifiable: can the user make it another key?
    let modulus = token
        .line
        .raw()
        .attribute(session(), transfer_public, CKA_MODULUS)
        .unwrap()
        .unwrap();
    let other = [Attribute::Modulus(modulus)];
    refusal(
        session().update_attributes(trusted_modifiable, &other),
        "user: another modulus in a trusted key",
    );
    refusal(
        session().copy_object(trusted_modifiable, &other),
        "user: copying a trusted key with another modulus",
    );
    let copy = session().copy_object(trusted_modifiable, &[Attribute::Token(false)]);
    println!(
        "user: a copy of a trusted key is trusted: {:?}",
        copy.ok().map(|copy| token.trusted(copy))
    );
    refusal(
        session().copy_object(trusted_new, &[Attribute::Token(false)]),
        "user: copying a trusted key with CKA_COPYABLE=false",
    );

    // Rotation: the KEK goes under the new master key, inside, and is the same.
    let moved = token
        .unwrap(transfer_private, &by_transfer, &transfer())
        .unwrap();
    let by_new = token.wrap(trusted_new, moved).unwrap();
    session().destroy_object(moved).unwrap();
    let kek = token.unwrap(new_private, &by_new, &strict()).unwrap();
    assert_eq!(token.answer(kek).unwrap(), expected);
    let kek = token.unwrap(old_private, &by_old, &strict()).unwrap();
    assert_eq!(token.answer(kek).unwrap(), expected);
    refusal(
        token.wrap(trusted_new, kek),
        "wrapping what a master key unwrapped",
    );

    // Harder still: KEKs that are born so that only trusted keys wrap them.
    let born = token.kek(true);
    assert_eq!(
        refusal(token.wrap(old, born), "birth under an untrusted key"),
        RvError::KeyNotWrappable
    );
    token.wrap(trusted_new, born).unwrap();

    // The user can take trust away, or the key: a nuisance, no leak.
    let no = [Attribute::Trusted(false)];
    println!(
        "user: taking trust away: {:?}",
        session().update_attributes(trusted_modifiable, &no).is_ok()
    );
    println!(
        "user: destroying a trusted key: {:?}",
        session().destroy_object(trusted_new).is_ok()
    );
    token.line.close();
    token.module.release(false);
}
