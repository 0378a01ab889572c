//! The control file: one command a line, `#` starts a comment. `README.md` describes each command.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::{codes, functions::Function};

/// What one version of the control file asks for. Empty: no fault.
#[derive(Default)]
pub(crate) struct Control {
    rules: Vec<Rule>,
    pub(crate) token_absent: bool,
    pub(crate) forget_sessions: bool,
    pub(crate) count: bool,
}

impl Control {
    /// Reads the file's text.
    ///
    /// # Errors
    /// The first line that is no command, and what is wrong with it. A typo must not pass for "no fault", or a test of a recovery would
    /// pass without one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut control = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            control
                .command(&words)
                .map_err(|reason| format!("line {}: {reason}", index + 1))?;
        }
        Ok(control)
    }

    /// How long a call of `function` hangs, when it does; `Duration::MAX` is until the command is removed.
    pub(crate) fn hang(&self, function: Function) -> Option<Duration> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Hang(limit) if rule.matches(function) => Some(limit),
            _ => None,
        })
    }

    /// How much later than usual a call of `function` is forwarded.
    pub(crate) fn delay(&self, function: Function) -> Option<Duration> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Slow(delay) if rule.matches(function) => Some(delay),
            _ => None,
        })
    }

    /// What a call of `function` returns instead of being forwarded. Takes one from the rule's count.
    pub(crate) fn failure(&self, function: Function) -> Option<CK_RV> {
        self.rules.iter().find_map(|rule| match &rule.action {
            Action::Fail(value, left) if rule.matches(function) => left
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_ok()
                .then_some(*value),
            _ => None,
        })
    }

    fn command(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            [] => {}
            ["token-absent"] => self.token_absent = true,
            ["forget-sessions"] => self.forget_sessions = true,
            ["count"] => self.count = true,
            ["fail", target, value] => {
                self.rule(target, Action::Fail(code(value)?, AtomicU64::new(u64::MAX)))?;
            }
            ["fail", target, value, count] => self.rule(
                target,
                Action::Fail(code(value)?, AtomicU64::new(number(count)?)),
            )?,
            ["hang", target] => self.rule(target, Action::Hang(Duration::MAX))?,
            ["hang", target, ms] => {
                self.rule(target, Action::Hang(Duration::from_millis(number(ms)?)))?;
            }
            ["slow", target, ms] => {
                self.rule(target, Action::Slow(Duration::from_millis(number(ms)?)))?;
            }
            [name, ..] => {
                return Err(format!(
                    "`{name}` with {} words after it is no command",
                    words.len() - 1
                ));
            }
        }
        Ok(())
    }

    fn rule(&mut self, target: &str, action: Action) -> Result<(), String> {
        let target = match target {
            "*" => None,
            name => Some(
                Function::from_name(name)
                    .ok_or_else(|| format!("`{name}` is no function that can be made to fail"))?,
            ),
        };
        self.rules.push(Rule { target, action });
        Ok(())
    }
}

struct Rule {
    /// `None` is `*`.
    target: Option<Function>,
    action: Action,
}

enum Action {
    /// The return value, and how often it is still returned.
    Fail(CK_RV, AtomicU64),
    Hang(Duration),
    Slow(Duration),
}

impl Rule {
    fn matches(&self, function: Function) -> bool {
        self.target
            .map_or(!function.is_general(), |target| target == function)
    }
}

fn code(text: &str) -> Result<CK_RV, String> {
    codes::parse(text).ok_or_else(|| format!("`{text}` is no return value; write a name like CKR_DEVICE_ERROR, or 0x and hexadecimal digits"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is no whole number"))
}
