//! `sys/rotate-master`: a ceremony tells the server that another master key is in force, and asks
//! how far the keys are.

use serde::Serialize;
use strongroom_hsm::Hsm;

use super::call::Call;
use super::error::ApiError;
use super::request::{Needed, request};
use super::sys;
use crate::api::App;
use crate::api::pipeline::answer::Answer;
use strongroom_core::hex::encode as hex;

request! {
    /// `POST sys/rotate-master`.
    RotateMaster<'p> {
        /// SHA-256 of the new master key's public half (SubjectPublicKeyInfo, DER), hexadecimal: it
        /// must be the one in force.
        master_sha256: Needed<'p>,
    }
    ; strict
}

/// `GET sys/rotate-master`.
pub(in crate::api) async fn read(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    Ok(answer(call.app))
}

/// `POST sys/rotate-master`: looks for the keys on the token again, also by starting the PKCS#11
/// module again, and moves every key to the master key with that SHA-256, which the security
/// officer must have marked as trusted.
pub(in crate::api) async fn update(call: &mut Call<'_>) -> Result<Answer, ApiError> {
    let wanted = RotateMaster::read(&call.params)?
        .master_sha256
        .0
        .map(|text| text.to_ascii_lowercase())
        .filter(|text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .ok_or_else(|| {
            ApiError::bad_request(
                "master_sha256 must be the SHA-256 of the new master key's public half (SubjectPublicKeyInfo, DER), 64 hexadecimal digits",
            )
        })?;
    let hsm = &call.app.hsm;
    let mut here = master_in_force(hsm).await?;
    if here.as_deref() != Some(&wanted) {
        hsm.restart_module().await;
        here = master_in_force(hsm).await?;
    }
    if here.as_deref() != Some(&wanted) {
        return Err(ApiError::bad_request(format!(
            "the master key in force on the token is {}, not {wanted}: nothing was moved. A new one is in force when the security officer has marked it as trusted",
            here.as_deref().unwrap_or("none")
        )));
    }
    // A version that is just being made by the old master key must be among those that are counted,
    // or the ceremony destroys that too early.
    call.app.keyring.settle().await;
    call.app.rotation.wake();
    Ok(answer(call.app))
}

/// Its SHA-256, after a look at the token.
async fn master_in_force(hsm: &Hsm) -> Result<Option<String>, ApiError> {
    let generations = hsm
        .refresh_keys()
        .await
        .map_err(|error| ApiError::unavailable(error.to_string()))?;
    let in_force = generations.iter().find(|generation| generation.in_force);
    Ok(in_force.map(|generation| hex(&generation.master)))
}

/// What `sys/health` adds while more than one master key is on the token.
#[derive(Serialize)]
pub(in crate::api) struct Progress {
    /// `moving`, `waiting`, `incomplete` or `complete`.
    rotate_master: &'static str,
    master_generation: u32,
    versions: usize,
    moved: usize,
    unmovable: usize,
}

/// `None`: no rotation is under way.
pub(in crate::api) fn progress(app: &App) -> Option<Progress> {
    let generations = app.hsm.generations();
    if generations.len() < 2 {
        return None;
    }
    let standing = app.keyring.standing();
    Some(Progress {
        rotate_master: word(app, standing.is_complete()),
        master_generation: generations
            .iter()
            .find(|generation| generation.in_force)
            .map_or(0, |generation| generation.number),
        versions: standing.versions,
        moved: standing.moved,
        unmovable: standing.unmovable.len(),
    })
}

fn word(app: &App, complete: bool) -> &'static str {
    let state = app.rotation.state();
    match (complete, state.working, state.waiting_for) {
        (true, _, _) => "complete",
        (false, true, Some(_)) => "waiting",
        (false, true, None) => "moving",
        (false, false, _) => "incomplete",
    }
}

fn answer(app: &App) -> Answer {
    #[derive(Serialize)]
    struct Generation {
        number: u32,
        master_sha256: String,
        trusted: bool,
        in_force: bool,
    }
    #[derive(Serialize)]
    struct UnmovableVersion {
        name: String,
        version: u32,
        reason: String,
    }
    #[derive(Serialize)]
    struct Body {
        state: &'static str,
        waiting_for: Option<String>,
        versions: usize,
        moved: usize,
        unmovable: Vec<UnmovableVersion>,
        generations: Vec<Generation>,
    }
    let standing = app.keyring.standing();
    let state = app.rotation.state();
    let mut unmovable: Vec<_> = standing
        .unmovable
        .iter()
        .map(|(name, version)| UnmovableVersion {
            name: name.to_string(),
            version: *version,
            reason: "it was made without a transfer key: rotate it, re-encrypt what it protects, and trim its old versions".to_owned(),
        })
        .collect();
    unmovable.extend(
        state
            .failed
            .into_iter()
            .map(|((name, version), reason)| UnmovableVersion {
                name: name.to_string(),
                version,
                reason,
            }),
    );
    let generations = app.hsm.generations().into_iter();
    let body = Body {
        state: word(app, standing.is_complete()),
        waiting_for: state.waiting_for,
        versions: standing.versions,
        moved: standing.moved,
        unmovable,
        generations: generations
            .map(|generation| Generation {
                number: generation.number,
                master_sha256: hex(&generation.master),
                trusted: generation.trusted,
                in_force: generation.in_force,
            })
            .collect(),
    };
    sys::json(200, &body)
}
