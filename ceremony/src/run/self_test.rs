//! This machine computes rightly, and its random numbers show no fault.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::outputs::{Entropy, Outputs};
use super::{Act, Ceremony, Found, RunError, entropy, known_answers};

pub(super) const ACT: Act = Act {
    title: "Self-tests",
    what: "Known answers for each algorithm that this machine computes, and the health tests of NIST SP 800-90B on the kernel's random numbers, \
           which the PINs and their shares are made of. The token is tested later, once it has its PINs.",
    why: "A machine that computes wrongly, or a generator that is stuck, would spoil everything after it without anybody noticing.",
    who: |_| "the machine; all watch".to_owned(),
    actors: super::everyone,
    ready: "Shall the tests run?",
    needs_pins: false,
    inputs: |_| Ok(json!({"random_bytes": SAMPLES})),
    recover: |_| {
        Ok(Found {
            text: "self-tests change nothing: they are run once more".to_owned(),
            data: Value::Null,
        })
    },
    run,
};

const SAMPLES: usize = 1 << 16;

fn run(ceremony: &mut Ceremony<'_>) -> Result<Outputs, RunError> {
    let passed = known_answers::check().map_err(|name| {
        RunError::refused(format!(
            "this machine computes {name} wrongly: it must not be used; take another one"
        ))
    })?;
    let mut samples = Zeroizing::new(vec![0; SAMPLES]);
    getrandom::fill(&mut samples).map_err(|_| RunError::random())?;
    healthy(&samples, "kernel")?;
    ceremony.ui.say(&format!(
        "{} known answers are right; {SAMPLES} random bytes of the kernel pass the repetition count test and the adaptive proportion test.",
        passed.len()
    ))?;
    Ok(Outputs::SelfTest {
        known_answers: passed,
        entropy: Entropy::of("kernel", SAMPLES),
    })
}

/// Runs the health tests on what came from that source.
pub(super) fn healthy(samples: &[u8], source: &str) -> Result<(), RunError> {
    entropy::check(samples).map_err(|problem| {
        RunError::refused(format!(
            "the random numbers of the {source} are not fit for keys: {problem}; take another machine or token"
        ))
    })
}
