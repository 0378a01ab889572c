//! The epoch data object: a small value on the token that tells a rolled-back store from the current one.
//!
//! A token need not let `CKA_VALUE` be set (`SoftHSM` does not), so a new object is made before the old one is destroyed. Each value begins
//! with a sequence number, 8 bytes big-endian; of two objects, after a crash between the two steps, the higher number counts.

use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki_sys::{CKA_VALUE, CKO_DATA};

use crate::error::HsmError;
use crate::fault::Fault;
use crate::line::Line;
use crate::template::EPOCH_LABEL;

/// The value with the highest sequence number, without that number.
pub(crate) fn read(line: &Line) -> Result<Vec<u8>, Fault> {
    Ok(latest(&all(line)?)?.value.clone())
}

/// Makes the value the current one; durable when this returns, as far as the token is.
pub(crate) fn write(line: &Line, value: &[u8]) -> Result<(), Fault> {
    let old = all(line)?;
    let sequence = latest(&old)?
        .sequence
        .checked_add(1)
        .ok_or_else(|| broken("CKA_VALUE", "has reached the last sequence number"))?;
    make(line, sequence, value)?;
    for object in old {
        line.session().destroy_object(object.handle)?;
    }
    Ok(())
}

/// The first, empty value.
pub(crate) fn create(line: &Line) -> Result<ObjectHandle, Fault> {
    make(line, 1, &[])
}

pub(crate) fn exists(line: &Line) -> Result<bool, Fault> {
    Ok(!line.find(CKO_DATA, EPOCH_LABEL)?.is_empty())
}

struct Epoch {
    handle: ObjectHandle,
    sequence: u64,
    value: Vec<u8>,
}

fn all(line: &Line) -> Result<Vec<Epoch>, Fault> {
    line.find(CKO_DATA, EPOCH_LABEL)?
        .into_iter()
        .map(|handle| {
            let bytes = line.raw().attribute(line.session(), handle, CKA_VALUE)?;
            let (sequence, value) = bytes
                .as_deref()
                .and_then(<[u8]>::split_first_chunk)
                .ok_or_else(|| broken("CKA_VALUE", "holds no sequence number"))?;
            Ok(Epoch {
                handle,
                sequence: u64::from_be_bytes(*sequence),
                value: value.to_vec(),
            })
        })
        .collect()
}

fn latest(objects: &[Epoch]) -> Result<&Epoch, Fault> {
    objects
        .iter()
        .max_by_key(|object| object.sequence)
        .ok_or_else(|| broken("CKA_LABEL", "is on no data object: make the keys first").into())
}

fn make(line: &Line, sequence: u64, value: &[u8]) -> Result<ObjectHandle, Fault> {
    let mut bytes = sequence.to_be_bytes().to_vec();
    bytes.extend_from_slice(value);
    Ok(line.session().create_object(&[
        Attribute::Class(ObjectClass::DATA),
        Attribute::Label(EPOCH_LABEL.into()),
        Attribute::Application(EPOCH_LABEL.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Modifiable(false),
        Attribute::Value(bytes),
    ])?)
}

fn broken(attribute: &str, problem: &str) -> HsmError {
    HsmError::KeyPolicy {
        key: "epoch object".to_owned(),
        attribute: attribute.to_owned(),
        problem: problem.to_owned(),
    }
}
