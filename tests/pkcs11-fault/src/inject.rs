//! What happens to a call before it is forwarded.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki_sys::{CK_FUNCTION_LIST, CK_RV, CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR};

use crate::control::Control;
use crate::functions::Function;
use crate::watch::{self, Version};
use crate::{codes, log, real};

/// What a function does while the token is absent.
#[derive(Clone, Copy)]
pub(crate) enum WhenAbsent {
    Forward,
    Return(CK_RV),
}

/// What a call returns.
pub(crate) struct Outcome {
    pub(crate) value: CK_RV,
    /// Whether it is a fault's value. If not, it is the real module's.
    pub(crate) injected: bool,
}

/// Makes one call: waits, fails or forwards as the control file says at that moment.
///
/// `forward` calls the real module's function, `None` when it has none; its second argument is what
/// the file says.
pub(crate) fn call(
    function: Function,
    when_absent: WhenAbsent,
    forward: impl Fn(&CK_FUNCTION_LIST, &Control) -> Option<CK_RV>,
) -> Outcome {
    let (mut counted, mut hung, mut delayed) = (false, false, false);
    // Every wait gives the file time to change: then ask it again.
    loop {
        let version = watch::version();
        let Some(control) = &version.control else {
            return injected(CKR_GENERAL_ERROR);
        };
        if !counted
            && control.count
            && let Some(count) = COUNTS.get(function as usize)
        {
            count.fetch_add(1, Relaxed);
        }
        counted = true;
        if !hung && let Some(limit) = control.hang(function) {
            hung = hang(function, limit);
            continue;
        }
        if !delayed && let Some(delay) = control.delay(function) {
            log::line(&format!("fault slow {}", function.name()));
            thread::sleep(delay);
            delayed = true;
            continue;
        }
        if let Some(value) = control.failure(function) {
            log::line(&format!(
                "fault fail {} {}",
                function.name(),
                codes::name(value)
            ));
            return injected(value);
        }
        if control.token_absent
            && let WhenAbsent::Return(value) = when_absent
        {
            log::line(&format!(
                "fault token-absent {} {}",
                function.name(),
                codes::name(value)
            ));
            return injected(value);
        }
        if let Some(_inside) = watch::enter(&version) {
            let Some(real) = real::functions() else {
                return injected(CKR_GENERAL_ERROR);
            };
            let value = forward(real, control).unwrap_or(CKR_FUNCTION_NOT_SUPPORTED);
            return match control.recoded(function, value) {
                Some(other) => injected(other),
                None => Outcome {
                    value,
                    injected: false,
                },
            };
        }
    }
}

/// The calls of each function since the last time, as `C_Decrypt=12 C_Sign=3`, and starts from
/// zero.
pub(crate) fn take_counts() -> String {
    let calls = Function::ALL
        .iter()
        .zip(&COUNTS)
        .map(|((name, _), count)| (name, count.swap(0, Relaxed)));
    calls
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name}={count}"))
        .collect::<Vec<_>>()
        .join(" ")
}

static COUNTS: [AtomicU64; Function::ALL.len()] =
    [const { AtomicU64::new(0) }; Function::ALL.len()];

/// Blocks until the command is gone from the file, or for `limit`; whether it was that long.
fn hang(function: Function, limit: Duration) -> bool {
    let started = Instant::now();
    let still_asked = |version: &Version| {
        version
            .control
            .as_ref()
            .is_some_and(|control| control.hang(function).is_some())
    };
    let expired = || started.elapsed() >= limit;
    log::line(&format!("fault hang {}", function.name()));
    while !expired() && still_asked(&watch::version()) {
        thread::sleep(Duration::from_millis(1));
    }
    log::line(&format!("fault hang {} over", function.name()));
    expired()
}

fn injected(value: CK_RV) -> Outcome {
    Outcome {
        value,
        injected: true,
    }
}
