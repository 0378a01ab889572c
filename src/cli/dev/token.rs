//! The token of `strongroom dev`, in a process of its own: SoftHSM finds its configuration by that
//! process's environment.

use std::path::Path;

use strongroom_core::config::Config;
use strongroom_core::hex;
use strongroom_hsm::ceremony::{self, SlotState};
use strongroom_hsm::{Hsm, HsmError, OptionalKeys, PinSource, SecretPin, TokenSelector};
use zeroize::Zeroizing;

use crate::cli::exit::{Exit, Failure};
use crate::cli::files;
use crate::cli::server::{ConfigFile, create_store, private_files};

/// `CK_TOKEN_INFO.manufacturerID` of SoftHSM's tokens, initialized or not.
const SOFTHSM: &str = "SoftHSM project";

/// Sees that the configured module has SoftHSM's tokens and no others; makes token, keys and store
/// if they are not there.
pub(super) fn make(config: &Path) -> Result<(), Failure> {
    private_files();
    let config = ConfigFile::of(config).load()?;
    let slots = ceremony::slots(&config.hsm.module)?;
    refuse_real(&config.hsm.module, &slots)?;
    let (PinSource::File(pin_file), TokenSelector::Label(label)) =
        (&config.hsm.pin, &config.hsm.token)
    else {
        return Err(Failure::new(
            Exit::Config,
            "the configuration is not one of `strongroom dev`",
        ));
    };
    if pin_file.exists() {
        return Ok(());
    }
    initialize(&config, &slots, label, pin_file)?;
    // No transfer key: that is another RSA-4096 pair, and nothing here outlives its token.
    Hsm::provision(&config.hsm, OptionalKeys::default(), &mut |_| ())?;
    create_store(&config, "cli:init")?;
    Ok(())
}

/// A module may show several tokens, as p11-kit's does: one that is not SoftHSM's is enough.
fn refuse_real(module: &Path, slots: &[SlotState]) -> Result<(), Failure> {
    let refused = |what: String| {
        Failure::new(Exit::Hsm, format!("{}: {what}", module.display())).next(
            "name SoftHSM2's own module with --module; for a real token use `strongroom init` or a key ceremony",
        )
    };
    if slots.is_empty() {
        return Err(refused("this module shows no SoftHSM token".to_owned()));
    }
    match slots.iter().find(|slot| slot.token.manufacturer != SOFTHSM) {
        Some(real) => Err(refused(format!(
            "a token of {:?} is behind this module, and `strongroom dev` works with SoftHSM's only",
            real.token.manufacturer
        ))),
        None => Ok(()),
    }
}

/// With random PINs. The security officer's is known to nobody afterwards.
fn initialize(
    config: &Config,
    slots: &[SlotState],
    label: &str,
    pin_file: &Path,
) -> Result<(), Failure> {
    let blank = slots
        .iter()
        .find(|slot| !slot.initialized)
        .ok_or_else(|| HsmError::Unavailable("SoftHSM shows no free slot".to_owned()))?;
    let (so_pin, user_pin) = (random_pin()?, random_pin()?);
    let module = &config.hsm.module;
    ceremony::initialize_token(module, blank.slot, label, &so_pin)?;
    ceremony::set_user_pin(module, &config.hsm.token, &so_pin, &user_pin)?;
    files::write_secret(pin_file, user_pin.expose())
}

fn random_pin() -> Result<SecretPin, Failure> {
    let mut bytes = Zeroizing::new([0; 16]);
    getrandom::fill(&mut *bytes)
        .map_err(|_| Failure::new(Exit::Failed, "no random bytes from the kernel"))?;
    let text = Zeroizing::new(hex::encode(&*bytes));
    Ok(SecretPin::new(Zeroizing::new(text.as_bytes().to_vec())))
}
