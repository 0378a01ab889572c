//! Patterns as text again.

use super::{Glob, Part};

impl Glob {
    /// The pattern with these texts for `*`, `**` and `?`.
    pub(in super::super) fn spelt(&self, star: &str, star_star: &str, one: &str) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Byte(byte) => text.push(char::from(*byte)),
                Part::One => text.push_str(one),
                Part::Star => text.push_str(star),
                Part::StarStar => text.push_str(star_star),
            }
        }
        text
    }
}
