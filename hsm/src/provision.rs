//! Making the appliance's keys on an empty token.

use std::sync::Arc;

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;

use crate::config::{HsmConfig, KeyShape};
use crate::epoch;
use crate::error::HsmError;
use crate::fault::Fault;
use crate::keys::{self, Keys};
use crate::line::{Access, Line, Watch};
use crate::module::Module;
use crate::selector::Wanted;
use crate::template::{KeySpec, MEMORY_MASTER, REQUIRED};

/// See [`crate::Hsm::provision`].
pub(crate) fn provision(
    config: &HsmConfig,
    memory_master: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<(), HsmError> {
    let wanted = Wanted::new(&config.token)?;
    let module = Module::acquire(&config.module).map_err(Fault::into_error)?;
    let result = on_token(&module, config, &wanted, memory_master, progress);
    module.release(false);
    result.map_err(Fault::into_error)
}

fn on_token(
    module: &Module,
    config: &HsmConfig,
    wanted: &Wanted,
    memory_master: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    let library = module.library();
    let found = wanted.find(&library.context)?;
    let line = Line::open(library, found.slot, Arc::new(Watch::default()))?;
    let result = Access::new(config.pin.clone())
        .login(&line)
        .and_then(|()| make_all(&line, config.shape, memory_master, progress));
    line.close();
    result
}

fn make_all(
    line: &Line,
    shape: KeyShape,
    memory_master: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    if let Some(name) = keys::existing(line, true)? {
        return Err(HsmError::KeyExists(name.to_owned()).into());
    }
    if epoch::exists(line)? {
        return Err(HsmError::KeyExists("epoch object".to_owned()).into());
    }
    let mut made = Vec::new();
    let result = make_each(line, shape, memory_master, progress, &mut made);
    if result.is_err() {
        // A half-made set would make the next attempt say that keys exist.
        for object in made {
            if let Err(error) = line.session().destroy_object(object) {
                tracing::warn!(%error, "an object of the failed key generation is left on the token");
            }
        }
    }
    result
}

fn make_each(
    line: &Line,
    shape: KeyShape,
    memory_master: bool,
    progress: &mut dyn FnMut(&str),
    made: &mut Vec<ObjectHandle>,
) -> Result<(), Fault> {
    let optional = memory_master.then_some(&MEMORY_MASTER);
    for spec in REQUIRED.into_iter().chain(optional) {
        progress(spec.making);
        made.extend(make(line, spec, shape)?);
    }
    progress("epoch object");
    made.push(epoch::create(line)?);
    // What the token made of the templates, not what they asked for.
    progress("check of all attributes");
    Keys::check(line, shape)?;
    Ok(())
}

pub(crate) fn make(
    line: &Line,
    spec: &KeySpec,
    shape: KeyShape,
) -> Result<Vec<ObjectHandle>, Fault> {
    let rules = spec.private_rules(shape);
    let attempt = |with_optional: bool| -> Result<Vec<ObjectHandle>, Fault> {
        let private = rules.iter().filter(|rule| rule.asked(with_optional));
        if let Some(public) = spec.public {
            let public = public.iter().filter(|rule| rule.asked(with_optional));
            let (public, private) =
                line.raw()
                    .generate_key_pair(line.session(), spec.mechanism, public, private)?;
            Ok(vec![public, private])
        } else {
            Ok(vec![line.raw().generate_key(
                line.session(),
                spec.mechanism,
                private,
            )?])
        }
    };
    match attempt(true) {
        Err(fault)
            if matches!(
                fault.code(),
                Some(
                    RvError::AttributeTypeInvalid
                        | RvError::AttributeValueInvalid
                        | RvError::AttributeReadOnly
                        | RvError::TemplateInconsistent
                )
            ) =>
        {
            attempt(false)
        }
        other => other,
    }
}
