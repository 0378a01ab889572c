//! The health tests of NIST SP 800-90B (4.4.1, 4.4.2), on bytes that should have eight bits of
//! entropy each.
//!
//! They find a generator that is stuck or grossly biased; no test finds one that is merely known to
//! somebody else.

/// Chance of a false alarm for each sample: 2^-40, since one stops a ceremony with a roomful of
/// people.
const FALSE_ALARM_PROBABILITY: f64 = 1.0 / 1_099_511_627_776.0;
/// Samples in a window of the adaptive proportion test, for samples that are not binary.
const WINDOW_SAMPLES: usize = 512;
/// Bits of entropy claimed for each sample.
const CLAIMED_BITS_PER_SAMPLE: f64 = 8.0;

/// For the transcript.
pub(super) const TESTS: [&str; 2] = [
    "SP 800-90B 4.4.1 repetition count",
    "SP 800-90B 4.4.2 adaptive proportion",
];

/// A generator that must not be used, and why.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unhealthy {
    #[error(
        "the byte {byte:#04x} came {run} times in a row (SP 800-90B, repetition count test: {cutoff} are too many)"
    )]
    Repetition { byte: u8, run: usize, cutoff: usize },
    #[error(
        "the byte {byte:#04x} came {count} times in {WINDOW_SAMPLES} (SP 800-90B, adaptive proportion test: {cutoff} are too many)"
    )]
    Proportion {
        byte: u8,
        count: usize,
        cutoff: usize,
    },
    #[error("only {0} bytes came")]
    Short(usize),
}

/// Both tests over all samples.
pub(super) fn check(samples: &[u8]) -> Result<(), Unhealthy> {
    if samples.len() < WINDOW_SAMPLES {
        return Err(Unhealthy::Short(samples.len()));
    }
    repetition(
        samples,
        repetition_cutoff(CLAIMED_BITS_PER_SAMPLE, FALSE_ALARM_PROBABILITY),
    )?;
    proportion(
        samples,
        proportion_cutoff(CLAIMED_BITS_PER_SAMPLE, FALSE_ALARM_PROBABILITY),
    )
}

fn repetition(samples: &[u8], cutoff: usize) -> Result<(), Unhealthy> {
    for run in samples.chunk_by(|one, next| one == next) {
        if run.len() >= cutoff {
            return Err(Unhealthy::Repetition {
                byte: run[0],
                run: run.len(),
                cutoff,
            });
        }
    }
    Ok(())
}

#[allow(clippy::naive_bytecount, reason = "512 bytes at a time, once")]
fn proportion(samples: &[u8], cutoff: usize) -> Result<(), Unhealthy> {
    for window in samples.chunks_exact(WINDOW_SAMPLES) {
        let byte = window[0];
        let count = window.iter().filter(|sample| **sample == byte).count();
        if count >= cutoff {
            return Err(Unhealthy::Proportion {
                byte,
                count,
                cutoff,
            });
        }
    }
    Ok(())
}

/// 1 + ceil(-log2(alarm) / claim).
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn repetition_cutoff(claim: f64, alarm: f64) -> usize {
    1 + (-alarm.log2() / claim).ceil() as usize
}

/// 1 + the smallest count whose upper tail is at most `alarm`, of a binomial distribution of
/// `WINDOW_SAMPLES` with probability 2^-claim.
#[allow(clippy::cast_precision_loss)]
fn proportion_cutoff(claim: f64, alarm: f64) -> usize {
    let p = (-claim).exp2();
    // From the far end, where the terms are small, so that nothing is lost by rounding.
    let mut tail = 0.0;
    let mut count = WINDOW_SAMPLES;
    while count > 0 {
        tail += term(count, p);
        if tail > alarm {
            // P(X >= count) > alarm: count itself is the critical value.
            return 1 + count;
        }
        count -= 1;
    }
    1
}

/// P(X = count), by logarithms.
#[allow(clippy::cast_precision_loss)]
fn term(count: usize, p: f64) -> f64 {
    let choose: f64 = (1..=count)
        .map(|k| ((WINDOW_SAMPLES - count + k) as f64 / k as f64).ln())
        .sum();
    (choose + count as f64 * p.ln() + (WINDOW_SAMPLES - count) as f64 * (-p).ln_1p()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SP 800-90B, table 2, is for a false alarm of 2^-30 in the drafts and 2^-20 in the final
    /// text.
    #[test]
    fn cutoffs_are_those_of_the_standard() {
        let alarm = (-20.0_f64).exp2();
        for (claim, cutoff) in [(0.5, 410), (1.0, 311), (2.0, 177), (4.0, 62), (8.0, 13)] {
            assert_eq!(proportion_cutoff(claim, alarm), cutoff, "{claim}");
        }
        assert_eq!(repetition_cutoff(8.0, alarm), 4);
        assert_eq!(repetition_cutoff(1.0, alarm), 21);
    }

    #[test]
    fn a_stuck_or_biased_generator_is_found() {
        let mut sound = vec![0_u8; 1 << 16];
        getrandom::fill(&mut sound).unwrap_or_default();
        assert_eq!(check(&sound), Ok(()));

        let mut stuck = sound.clone();
        stuck[1000..1010].fill(7);
        assert!(matches!(check(&stuck), Err(Unhealthy::Repetition { .. })));

        let mut biased = sound;
        biased[512..1024]
            .iter_mut()
            .step_by(8)
            .for_each(|byte| *byte = 9);
        assert!(matches!(
            check(&biased),
            Err(Unhealthy::Proportion { byte: 9, .. })
        ));
        assert_eq!(check(&[1; 10]), Err(Unhealthy::Short(10)));
    }
}
