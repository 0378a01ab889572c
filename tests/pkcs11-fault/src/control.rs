//! The control file: one command a line, `#` starts a comment. `README.md` describes each command.

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use cryptoki_sys::{CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE, CK_RV, CK_ULONG, CKR_OK};

use crate::{codes, functions::Function};

/// What one version of the control file asks for. Empty: no fault.
#[derive(Clone, Default)]
pub(crate) struct Control {
    rules: Vec<Rule>,
    pub(crate) token_absent: bool,
    pub(crate) forget_sessions: bool,
    pub(crate) count: bool,
    /// The token writes an IV of its own for AES-GCM.
    pub(crate) own_iv: bool,
    /// Left out of `CKA_UNWRAP_TEMPLATE` where it forbids to extract.
    pub(crate) unforced: Vec<CK_ATTRIBUTE_TYPE>,
    /// It writes to all that it is given, also where it should only read.
    pub(crate) touch: bool,
    /// No search finds an object.
    pub(crate) blind: bool,
    /// RFC 5649 is `CKM_AES_KEY_WRAP_KWP` here.
    pub(crate) kwp: bool,
    /// Who made the token, as it says.
    pub(crate) manufacturer: Option<String>,
}

impl Control {
    /// Reads the file's text.
    ///
    /// # Errors
    /// The first line that is no command, and what is wrong with it. A typo must not pass for "no
    /// fault", or a test of a recovery would pass without one.
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

    /// What it asks for of one call: the commands for some calls only, `where` it is one of them.
    pub(crate) fn about(&self, facts: impl FnOnce() -> Facts) -> Cow<'_, Self> {
        if self.rules.iter().all(|rule| rule.conditions.is_empty()) {
            return Cow::Borrowed(self);
        }
        let facts = facts();
        let rules = self.rules.iter().filter_map(|rule| {
            let met = rule.conditions.iter().all(|one| one.is_met(&facts));
            met.then(|| Rule {
                narrow: rule.narrow || !rule.conditions.is_empty(),
                conditions: Vec::new(),
                ..rule.clone()
            })
        });
        Cow::Owned(Self {
            rules: rules.collect(),
            ..self.clone()
        })
    }

    /// How long a call of `function` hangs, when it does; `Duration::MAX` is until the command is
    /// removed.
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

    /// What a call of `function` returns instead of being forwarded. Takes one from the rule's
    /// count.
    pub(crate) fn failure(&self, function: Function) -> Option<CK_RV> {
        self.rules.iter().find_map(|rule| match &rule.action {
            Action::Fail(value, left) if rule.matches(function) => left
                .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                .is_ok()
                .then_some(*value),
            _ => None,
        })
    }

    /// What a call of `function` returns instead of the real module's `value`.
    pub(crate) fn recoded(&self, function: Function, value: CK_RV) -> Option<CK_RV> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Recode(from, to) if rule.matches(function) && value != CKR_OK => {
                from.is_none_or(|from| from == value).then_some(to)
            }
            _ => None,
        })
    }

    /// Whether the token takes that attribute from anybody in a template of `function`, and, if so,
    /// whether it obeys.
    pub(crate) fn takes(&self, function: Function, attribute: CK_ATTRIBUTE_TYPE) -> Option<bool> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Take(taken, obeyed) if rule.matches(function) && taken == attribute => {
                Some(obeyed)
            }
            _ => None,
        })
    }

    /// Whether the token overlooks that attribute in a template of `function`.
    pub(crate) fn drops(&self, function: Function, attribute: CK_ATTRIBUTE_TYPE) -> bool {
        self.rules.iter().any(|rule| {
            matches!(rule.action, Action::Drop(dropped) if dropped == attribute)
                && rule.matches(function)
        })
    }

    /// What objects that `function` made say of themselves, whatever they are.
    pub(crate) fn claims(
        &self,
        function: Function,
    ) -> impl Iterator<Item = (CK_ATTRIBUTE_TYPE, Option<Vec<u8>>)> {
        self.said(function, |action| match action {
            Action::Claim(attribute, value) => Some((*attribute, value)),
            _ => None,
        })
    }

    /// Whether the token claims more output than there is room for.
    pub(crate) fn is_overlong(&self, function: Function) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.action, Action::Overlong) && rule.matches(function))
    }

    /// What an object of `function` says of attributes that its template does not have.
    pub(crate) fn silent(
        &self,
        function: Function,
    ) -> impl Iterator<Item = (CK_ATTRIBUTE_TYPE, Option<Vec<u8>>)> {
        self.said(function, |action| match action {
            Action::Silent(attribute, value) => Some((*attribute, value)),
            _ => None,
        })
    }

    fn said(
        &self,
        function: Function,
        of: impl Fn(&Action) -> Option<(CK_ATTRIBUTE_TYPE, &Option<Vec<u8>>)>,
    ) -> impl Iterator<Item = (CK_ATTRIBUTE_TYPE, Option<Vec<u8>>)> {
        let rules = self.rules.iter().filter(move |rule| rule.matches(function));
        rules.filter_map(move |rule| {
            of(&rule.action).map(|(attribute, value)| (attribute, value.clone()))
        })
    }

    /// Whether `function` makes a key by its template, whatever it was to do by that mechanism.
    pub(crate) fn makes(
        &self,
        function: Function,
        mechanism: CK_MECHANISM_TYPE,
        template: &[CK_ATTRIBUTE],
    ) -> bool {
        self.rules.iter().any(|rule| match rule.action {
            Action::Make(MadeFor::Mechanism(made)) => rule.matches(function) && made == mechanism,
            Action::Make(MadeFor::Attribute(made)) => {
                rule.matches(function) && template.iter().any(|one| one.type_ == made)
            }
            Action::Make(MadeFor::Without(missing)) => {
                rule.matches(function) && template.iter().all(|one| one.type_ != missing)
            }
            _ => false,
        })
    }

    /// The mechanisms that the token says it has besides its own.
    pub(crate) fn offered(&self) -> impl Iterator<Item = CK_MECHANISM_TYPE> {
        self.rules.iter().filter_map(|rule| {
            let condition = rule.conditions.iter().find_map(|one| match one {
                Condition::Mechanism(mechanism) => Some(*mechanism),
                _ => None,
            });
            match rule.action {
                Action::Make(MadeFor::Mechanism(made)) => Some(made),
                Action::Shortest(mechanism, _) => Some(mechanism),
                _ => condition,
            }
        })
    }

    /// The shortest key that the token says it makes by that mechanism.
    pub(crate) fn shortest(&self, mechanism: CK_MECHANISM_TYPE) -> Option<CK_ULONG> {
        self.rules.iter().find_map(|rule| match rule.action {
            Action::Shortest(of, length) if of == mechanism => Some(length),
            _ => None,
        })
    }

    /// Whether the token refuses what it could do.
    pub(crate) fn refuses(&self, function: Function) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.action, Action::Refuse) && rule.matches(function))
    }

    /// Whether it does what it should refuse, for whatever reason it refuses.
    pub(crate) fn allows_all(&self, function: Function) -> bool {
        self.rules.iter().any(|rule| {
            rule.narrow && matches!(rule.action, Action::Allow) && rule.matches(function)
        })
    }

    /// Whether the token does what it should refuse.
    pub(crate) fn allows(&self, function: Function) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.action, Action::Allow) && rule.matches(function))
    }

    fn command(&mut self, words: &[&str]) -> Result<(), String> {
        match *words {
            [] => {}
            ["where", ref rest @ ..] => {
                let count = rest.iter().take_while(|word| word.contains('=')).count();
                let (conditions, command) = rest.split_at(count);
                let known = self.rules.len();
                self.command(command)?;
                let [rule] = self.rules.get_mut(known..).unwrap_or_default() else {
                    return Err("`where` can't stand before that command".to_owned());
                };
                if !rule.action.knows_the_call() {
                    return Err("`where` can't stand before that command".to_owned());
                }
                let conditions = conditions.iter().map(|one| condition(one));
                rule.conditions = conditions.collect::<Result<_, _>>()?;
            }
            ["refuse", target] => self.rule(target, Action::Refuse)?,
            ["shortest", name, bytes] => {
                let mechanism = codes::mechanism(name)
                    .ok_or_else(|| format!("`{name}` is no mechanism that is known here"))?;
                self.rule("*", Action::Shortest(mechanism, number(bytes)?))?;
            }
            ["token-absent"] => self.token_absent = true,
            ["forget-sessions"] => self.forget_sessions = true,
            ["count"] => self.count = true,
            ["fail", target, value] => {
                self.rule(
                    target,
                    Action::Fail(code(value)?, Arc::new(AtomicU64::new(u64::MAX))),
                )?;
            }
            ["fail", target, value, count] => self.rule(
                target,
                Action::Fail(code(value)?, Arc::new(AtomicU64::new(number(count)?))),
            )?,
            ["hang", target] => self.rule(target, Action::Hang(Duration::MAX))?,
            ["hang", target, ms] => {
                self.rule(target, Action::Hang(Duration::from_millis(number(ms)?)))?;
            }
            ["slow", target, ms] => {
                self.rule(target, Action::Slow(Duration::from_millis(number(ms)?)))?;
            }
            ["recode", target, "*", to] => self.rule(target, Action::Recode(None, code(to)?))?,
            ["recode", target, from, to] => {
                self.rule(target, Action::Recode(Some(code(from)?), code(to)?))?;
            }
            ["accept", target, name] => self.rule(target, Action::Take(attribute(name)?, true))?,
            ["ignore", target, name] => self.rule(target, Action::Take(attribute(name)?, false))?,
            ["claim", target, name, value] => {
                self.rule(target, Action::Claim(attribute(name)?, claimed(value)?))?;
            }
            ["drop", target, name] => self.rule(target, Action::Drop(attribute(name)?))?,
            ["drop-forced", name] => self.unforced.push(attribute(name)?),
            ["own-iv"] => self.own_iv = true,
            ["touch"] => self.touch = true,
            ["blind"] => self.blind = true,
            ["overlong", target] => self.rule(target, Action::Overlong)?,
            ["kwp-by-its-name"] => self.kwp = true,
            ["manufacturer", name] => self.manufacturer = Some(name.to_owned()),
            ["allow", target] => self.rule(target, Action::Allow)?,
            ["make", target, what] => {
                let what = made_for(what)?;
                self.rule(target, Action::Make(what))?;
            }
            ["silent", target, name, value] => {
                self.rule(target, Action::Silent(attribute(name)?, claimed(value)?))?;
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
        self.rules.push(Rule {
            target,
            action,
            conditions: Vec::new(),
            narrow: false,
        });
        Ok(())
    }
}

#[derive(Clone)]
struct Rule {
    /// `None` is `*`.
    target: Option<Function>,
    action: Action,
    /// Of the calls that are meant; none are left where they are met.
    conditions: Vec<Condition>,
    /// Whether there were any.
    narrow: bool,
}

/// What is known of a call.
#[derive(Default)]
pub(crate) struct Facts {
    /// `CKA_LABEL` of the key that it is done with, empty if there is none, ...
    pub(crate) key: Vec<u8>,
    /// ... and of the key that it is done to.
    pub(crate) of: Vec<u8>,
    pub(crate) mechanism: Option<CK_MECHANISM_TYPE>,
    pub(crate) template: Vec<(CK_ATTRIBUTE_TYPE, Vec<u8>)>,
}

#[derive(Clone)]
enum Condition {
    Key(Vec<u8>),
    Of(Vec<u8>),
    Mechanism(CK_MECHANISM_TYPE),
    With(CK_ATTRIBUTE_TYPE),
    Without(CK_ATTRIBUTE_TYPE),
    Asks(CK_ATTRIBUTE_TYPE, Vec<u8>),
}

impl Condition {
    fn is_met(&self, facts: &Facts) -> bool {
        let has = |attribute: &CK_ATTRIBUTE_TYPE| {
            let mut template = facts.template.iter();
            template.any(|(one, _)| one == attribute)
        };
        match self {
            Self::Key(label) => *label == facts.key,
            Self::Of(label) => *label == facts.of,
            Self::Mechanism(mechanism) => Some(*mechanism) == facts.mechanism,
            Self::With(attribute) => has(attribute),
            Self::Without(attribute) => !has(attribute),
            Self::Asks(attribute, value) => facts
                .template
                .iter()
                .any(|(one, asked)| one == attribute && asked == value),
        }
    }
}

#[derive(Clone)]
enum Action {
    /// The return value, and how often it is still returned.
    Fail(CK_RV, Arc<AtomicU64>),
    Hang(Duration),
    Slow(Duration),
    /// The real module's value, none for any but `CKR_OK`, and what is returned for it.
    Recode(Option<CK_RV>, CK_RV),
    /// An attribute that is taken from anybody, and whether it is obeyed.
    Take(CK_ATTRIBUTE_TYPE, bool),
    /// An attribute that the token does not see.
    Drop(CK_ATTRIBUTE_TYPE),
    /// An attribute and its value; none: it is not told.
    Claim(CK_ATTRIBUTE_TYPE, Option<Vec<u8>>),
    /// What an object says of that attribute where the template does not ask for it.
    Silent(CK_ATTRIBUTE_TYPE, Option<Vec<u8>>),
    /// A key by the template, in place of what was to be done.
    Make(MadeFor),
    Allow,
    Refuse,
    Overlong,
    /// A mechanism, and bytes.
    Shortest(CK_MECHANISM_TYPE, CK_ULONG),
}

impl Action {
    /// Whether it is looked up where arguments are known.
    fn knows_the_call(&self) -> bool {
        matches!(
            self,
            Self::Take(..)
                | Self::Drop(_)
                | Self::Claim(..)
                | Self::Silent(..)
                | Self::Make(_)
                | Self::Allow
                | Self::Refuse
        )
    }
}

/// For which calls a key is made.
#[derive(Clone, Copy)]
enum MadeFor {
    Mechanism(CK_MECHANISM_TYPE),
    /// Whose template has this.
    Attribute(CK_ATTRIBUTE_TYPE),
    /// Whose template does not.
    Without(CK_ATTRIBUTE_TYPE),
}

impl Rule {
    fn matches(&self, function: Function) -> bool {
        let meant = self
            .target
            .map_or(!function.is_general(), |target| target == function);
        meant && self.conditions.is_empty()
    }
}

fn code(text: &str) -> Result<CK_RV, String> {
    codes::parse(text).ok_or_else(|| format!("`{text}` is no return value; write a name like CKR_DEVICE_ERROR, or 0x and hexadecimal digits"))
}

fn attribute(text: &str) -> Result<CK_ATTRIBUTE_TYPE, String> {
    codes::attribute(text).ok_or_else(|| format!("`{text}` is no attribute that is known here"))
}

fn claimed(text: &str) -> Result<Option<Vec<u8>>, String> {
    match text {
        "none" => Ok(None),
        "true" => Ok(Some(vec![1])),
        "false" => Ok(Some(vec![0])),
        ulong if ulong.starts_with(':') => {
            let value: CK_ULONG = number(ulong.trim_start_matches(':'))?;
            Ok(Some(value.to_ne_bytes().to_vec()))
        }
        hex => hex
            .as_bytes()
            .chunks(2)
            .map(|digits| {
                std::str::from_utf8(digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            })
            .collect::<Option<Vec<_>>>()
            .map(Some)
            .ok_or_else(|| {
                format!("`{text}` is neither true, false, none, :number nor hexadecimal")
            }),
    }
}

fn made_for(text: &str) -> Result<MadeFor, String> {
    match (codes::mechanism(text), text.strip_prefix('-')) {
        (Some(mechanism), _) => Ok(MadeFor::Mechanism(mechanism)),
        (None, Some(missing)) => attribute(missing).map(MadeFor::Without),
        (None, None) => attribute(text).map(MadeFor::Attribute),
    }
}

fn condition(text: &str) -> Result<Condition, String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    Ok(match name {
        "key" => Condition::Key(value.into()),
        "of" => Condition::Of(value.into()),
        "mechanism" => Condition::Mechanism(
            codes::mechanism(value)
                .ok_or_else(|| format!("`{value}` is no mechanism that is known here"))?,
        ),
        "with" => Condition::With(attribute(value)?),
        "without" => Condition::Without(attribute(value)?),
        name => Condition::Asks(attribute(name)?, claimed(value)?.unwrap_or_default()),
    })
}

fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is no whole number"))
}
