//! Whether an unwrap template decides, whatever a call asks for and whatever it leaves out: the
//! call is refused, or the key comes as the template says.

use cryptoki::object::ObjectHandle;

use super::{Result, Trial};
use crate::template::Rule;

/// The first attribute of `forced` that can be had otherwise. `call`: a template by which the key
/// is unwrapped, of which the first `kind` rules say what kind of key it is; `unwrap`: the call,
/// `None` if it is refused.
pub(super) fn otherwise(
    trial: &Trial<'_>,
    call: &[Rule],
    kind: usize,
    forced: &[Rule],
    unwrap: impl Fn(&[Rule]) -> Result<Option<ObjectHandle>>,
) -> Result<Option<&'static str>> {
    for rule in forced {
        let Some(opposite) = rule.opposite() else {
            continue;
        };
        let asked: Vec<_> = call
            .iter()
            .map(|other| {
                if other.attribute == rule.attribute {
                    opposite.clone()
                } else {
                    other.clone()
                }
            })
            .collect();
        let Some(object) = unwrap(&asked)? else {
            continue;
        };
        // Taken and ignored is no harm.
        let other = other_than(trial, object, std::slice::from_ref(rule));
        trial.destroy(object)?;
        if let Some(name) = other? {
            return Ok(Some(name));
        }
    }
    // A call that says nothing but what kind of key it is.
    let silent: Vec<_> = call.iter().take(kind).cloned().collect();
    let Some(object) = unwrap(&silent)? else {
        return Ok(None);
    };
    let other = other_than(trial, object, forced);
    trial.destroy(object)?;
    other
}

fn other_than(
    trial: &Trial<'_>,
    object: ObjectHandle,
    forced: &[Rule],
) -> Result<Option<&'static str>> {
    for rule in forced {
        let told = trial.told(object, rule)?;
        if !told.is_some_and(|told| rule.admits(&[u8::from(told)])) {
            return Ok(Some(rule.name));
        }
    }
    Ok(None)
}
