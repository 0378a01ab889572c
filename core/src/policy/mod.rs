//! Who may do what with which key: identities × key globs × operations; what is not allowed is
//! denied.
//!
//! `docs/policy.md` describes the file. A rule that denies wins over any that allow, so the order
//! of rules has no meaning.
//!
//! A rule that allows is read narrowly, and what a rule takes away (it denies, or asks for a token)
//! is read widely: there `*` in an identity is as wide as `**`, so that no kind of identity slips
//! past a pattern that looks like everybody.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod glob;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use self::glob::Glob;
use crate::files;
use crate::identity::{Identity, IdentityError};
use crate::parse_error;

/// What a request asks to do; the names in the policy file are these in kebab case.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Operation {
    Create,
    Read,
    List,
    Rotate,
    Configure,
    Trim,
    Delete,
    Import,
    WrappingKey,
    Encrypt,
    Decrypt,
    Rewrap,
    DatakeyPlaintext,
    DatakeyWrapped,
    Random,
    Hash,
    Hmac,
    Verify,
    Sign,
    Jwt,
    Metrics,
    RotateMaster,
    StatusPage,
}

impl Operation {
    /// Every operation, in the order of the documentation.
    pub const ALL: [Self; 23] = [
        Self::Create,
        Self::Read,
        Self::List,
        Self::Rotate,
        Self::Configure,
        Self::Trim,
        Self::Delete,
        Self::Import,
        Self::WrappingKey,
        Self::Encrypt,
        Self::Decrypt,
        Self::Rewrap,
        Self::DatakeyPlaintext,
        Self::DatakeyWrapped,
        Self::Random,
        Self::Hash,
        Self::Hmac,
        Self::Verify,
        Self::Sign,
        Self::Jwt,
        Self::Metrics,
        Self::RotateMaster,
        Self::StatusPage,
    ];

    /// Its name in the policy file.
    pub fn name(self) -> String {
        let value = serde_json::to_value(self).ok();
        let name = value.as_ref().and_then(serde_json::Value::as_str);
        name.unwrap_or_default().to_owned()
    }

    /// Whether it concerns the appliance as a whole and no key in particular.
    pub const fn is_global(self) -> bool {
        matches!(
            self,
            Self::List
                | Self::WrappingKey
                | Self::Random
                | Self::Hash
                | Self::Metrics
                | Self::RotateMaster
                | Self::StatusPage
        )
    }
}

/// What a policy says to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No rule allows it, or one denies it.
    Denied,
    /// It is allowed.
    Allowed,
    /// It is allowed to whoever also presents a token.
    AllowedWithToken,
}

/// Why something is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// No rule allows it.
    NoRule,
    /// A rule denies it.
    Rule {
        /// Which of the file, from 1.
        number: usize,
        /// Another one would allow it.
        allowed: bool,
    },
}

/// A whole policy, parsed and validated.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    /// The rules that name an identity literally: found without looking at the others, however
    /// many tenants there are.
    by_identity: HashMap<String, Vec<usize>>,
    /// The rules with an identity pattern, and the pattern.
    by_pattern: Vec<(IdentityPattern, usize)>,
}

/// Why a policy file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Can't be read.
    #[error("the policy file {path} can't be read: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Can't be understood.
    #[error("the policy file {path} is not valid: {problem}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What and where.
        problem: String,
    },
}

impl Policy {
    /// Reads and validates the whole file, or says what is wrong with it.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = files::read_to_string(path, files::MAX_GENERATED_LIST).map_err(|source| {
            PolicyError::Read {
                path: path.to_owned(),
                source,
            }
        })?;
        Self::parse(&text).map_err(|problem| PolicyError::Invalid {
            path: path.to_owned(),
            problem,
        })
    }

    /// As [`Policy::load`], from the file's text; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| parse_error::toml(text, &error))?;
        let mut by_identity: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_pattern = Vec::new();
        for (index, rule) in file.rules.iter().enumerate() {
            for pattern in &rule.identities {
                match pattern.narrow.literal() {
                    Some(identity) => by_identity
                        .entry(identity.to_owned())
                        .or_default()
                        .push(index),
                    None => by_pattern.push((pattern.clone(), index)),
                }
            }
        }
        Ok(Self {
            rules: file.rules,
            by_identity,
            by_pattern,
        })
    }

    /// Everything the policy says to `identity` doing `operation` with `key`. For an operation on
    /// the appliance as a whole ([`Operation::is_global`]) the key is not looked at; any other
    /// without a key is denied.
    pub fn decide(&self, identity: &Identity, operation: Operation, key: Option<&str>) -> Decision {
        let (mut allowed, mut needs_token) = (false, false);
        for (_, rule, fit) in self.fitting(identity, operation, key) {
            match rule.effect {
                Effect::Deny => return Decision::Denied,
                Effect::AllowWithToken => needs_token = true,
                Effect::Allow => {}
            }
            allowed |= fit == Match::Narrow;
        }
        match (allowed, needs_token) {
            (false, _) => Decision::Denied,
            (true, true) => Decision::AllowedWithToken,
            (true, false) => Decision::Allowed,
        }
    }

    /// Why [`Policy::decide`] denied it.
    pub fn why_denied(
        &self,
        identity: &Identity,
        operation: Operation,
        key: Option<&str>,
    ) -> Denial {
        let (mut denies, mut allowed) = (None, false);
        for (index, rule, fit) in self.fitting(identity, operation, key) {
            match rule.effect {
                // The first of the file, in whatever order they are found.
                Effect::Deny => {
                    let number = index + 1;
                    denies = Some(denies.map_or(number, |first: usize| first.min(number)));
                }
                _ => allowed |= fit == Match::Narrow,
            }
        }
        denies.map_or(Denial::NoRule, |number| Denial::Rule { number, allowed })
    }

    /// The rules that speak of it, each with its index in the file.
    fn fitting<'a>(
        &'a self,
        identity: &'a Identity,
        operation: Operation,
        key: Option<&'a str>,
    ) -> impl Iterator<Item = (usize, &'a Rule, Match)> {
        // Without a key nothing is allowed that needs one.
        let speaks = operation.is_global() || key.is_some();
        let key = key.filter(|_| !operation.is_global());
        let literal = self
            .by_identity
            .get(identity.as_str())
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .map(|index| (*index, Match::Narrow));
        let operation = Operations::only(operation);
        // The cheap questions first: the operation is one bit, patterns cost more.
        let patterns = self.by_pattern.iter().filter_map(move |(pattern, index)| {
            let rule = self.rules.get(*index)?;
            if !rule.operations.overlaps(operation) {
                return None;
            }
            let fit = pattern.fit(identity.as_str(), rule.effect != Effect::Allow)?;
            Some((*index, fit))
        });
        literal
            .chain(patterns)
            .filter(move |_| speaks)
            .filter_map(|(index, fit)| Some((index, self.rules.get(index)?, fit)))
            .filter(move |(_, rule, _)| rule.operations.overlaps(operation))
            .filter(move |(_, rule, _)| {
                key.is_none_or(|key| rule.keys.iter().any(|KeyGlob(glob)| glob.matches(key)))
            })
    }

    /// Whether `identity` may do `operation` with `key` (`None` for operations without a key).
    pub fn allows(&self, identity: &Identity, operation: Operation, key: Option<&str>) -> bool {
        self.decide(identity, operation, key) != Decision::Denied
    }

    /// Whether any rule that allows it for this identity also asks for a token.
    pub fn needs_token(
        &self,
        identity: &Identity,
        operation: Operation,
        key: Option<&str>,
    ) -> bool {
        self.decide(identity, operation, key) == Decision::AllowedWithToken
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "rule", default)]
    rules: Vec<Rule>,
}

/// A rule as the file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    identities: Vec<IdentityPattern>,
    #[serde(default)]
    keys: Vec<KeyGlob>,
    operations: Vec<OperationName>,
    #[serde(default)]
    deny: bool,
    #[serde(default)]
    require_token: bool,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "RawRule")]
struct Rule {
    identities: Vec<IdentityPattern>,
    keys: Vec<KeyGlob>,
    operations: Operations,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Allow,
    AllowWithToken,
    Deny,
}

impl TryFrom<RawRule> for Rule {
    type Error = String;

    fn try_from(raw: RawRule) -> Result<Self, String> {
        if raw.identities.is_empty() {
            return Err("`identities` is empty: a rule for nobody has no meaning".into());
        }
        let mut operations = raw
            .operations
            .iter()
            .fold(Operations(0), |all, OperationName(some)| all.with(*some));
        if operations == Operations(0) {
            return Err("`operations` is empty: a rule for nothing has no meaning".into());
        }
        if raw.keys.is_empty() && operations.overlaps(Operations::on_keys()) {
            return Err(
                "`keys` is missing or empty, and an operation of this rule needs a key: write keys = [\"*\"] for all keys"
                    .into(),
            );
        }
        let effect = match (raw.deny, raw.require_token) {
            (true, true) => {
                return Err("`deny` and `require_token` exclude each other: remove one".into());
            }
            (true, false) => Effect::Deny,
            (false, true) => Effect::AllowWithToken,
            (false, false) => Effect::Allow,
        };
        // Whoever denies everything on every key means everything.
        let all_on_all_keys = raw
            .operations
            .iter()
            .any(|OperationName(some)| *some == Operations::on_keys())
            && raw.keys.iter().any(|KeyGlob(glob)| glob.is_everything());
        if effect == Effect::Deny && all_on_all_keys {
            operations = Operations::all_that(|_| true);
        }
        if effect != Effect::Deny
            && raw
                .identities
                .iter()
                .any(IdentityPattern::stops_at_the_domain)
        {
            return Err(
                "an identity is never met: a SPIFFE ID has a path; write spiffe://DOMAIN/**".into(),
            );
        }
        Ok(Self {
            identities: raw.identities,
            keys: raw.keys,
            operations,
            effect,
        })
    }
}

/// A pattern that at least can be met by an identity.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct IdentityPattern {
    text: String,
    narrow: Glob,
    /// The same with `*` as wide as `**`.
    wide: Glob,
}

/// How an identity meets a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    /// As it is written.
    Narrow,
    /// Only if `*` is as wide as `**`.
    Wide,
}

impl IdentityPattern {
    /// Whether it stands for this identity.
    pub fn matches(&self, identity: &Identity) -> bool {
        self.narrow.matches(identity.as_str())
    }

    fn fit(&self, identity: &str, widely: bool) -> Option<Match> {
        if self.narrow.matches(identity) {
            Some(Match::Narrow)
        } else if widely && self.wide.matches(identity) {
            Some(Match::Wide)
        } else {
            None
        }
    }

    /// A SPIFFE ID has a path; only `**` could reach into it from here.
    pub(crate) fn stops_at_the_domain(&self) -> bool {
        self.text
            .strip_prefix(SPIFFE_PREFIX)
            .is_some_and(|rest| !rest.contains('/') && !rest.contains("**"))
    }
}

const SPIFFE_PREFIX: &str = "spiffe://";
const DNS_PREFIX: &str = "dns:";
const SPKI_PREFIX: &str = "spki:sha256:";

impl TryFrom<String> for IdentityPattern {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        Self::new(&pattern)
    }
}

impl IdentityPattern {
    fn new(pattern: &str) -> Result<Self, String> {
        let narrow = Glob::new(pattern)?;
        if let Some(literal) = narrow.literal() {
            let identity: Identity = literal.parse().map_err(|error: IdentityError| {
                format!("this is not an identity: {}", error.problem())
            })?;
            if identity.as_str() != literal {
                return Err("this pattern is never met: identities are in lower case".to_owned());
            }
        } else {
            can_be_met(pattern)
                .map_err(|problem| format!("this pattern is never met: {problem}"))?;
        }
        Ok(Self {
            wide: narrow.widened(),
            narrow,
            text: pattern.to_owned(),
        })
    }
}

/// A pattern that stands for nobody would deny nobody.
fn can_be_met(pattern: &str) -> Result<(), &'static str> {
    let only = |text: &str, others: &[u8]| {
        text.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || others.contains(&byte)
        })
    };
    if let Some(name) = pattern.strip_prefix(DNS_PREFIX) {
        if !only(name, b".-_*?") {
            return Err("a DNS name here holds only a-z, 0-9, '-', '_' and '.'");
        }
        if name.starts_with('.') || name.ends_with('.') || name.contains("..") {
            return Err("a DNS name here has no empty label, and no dot at its end");
        }
    } else if let Some(hex) = pattern.strip_prefix(SPKI_PREFIX) {
        let digits = hex.bytes().filter(|byte| *byte != b'*').count();
        let hex_only = hex
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"abcdef*?".contains(&byte));
        if !hex_only || digits > 64 || (digits < 64 && !hex.contains('*')) {
            return Err("a key is 64 hexadecimal digits in lower case");
        }
    } else if let Some(id) = pattern.strip_prefix(SPIFFE_PREFIX) {
        let (domain, path) = id
            .split_once('/')
            .map_or((id, None), |(domain, path)| (domain, Some(path)));
        if domain.is_empty() || !only(domain, b".-_*?") {
            return Err("a trust domain holds only a-z, 0-9, '.', '-' and '_'");
        }
        let bad = |segment: &str| matches!(segment, "" | "." | "..");
        if path.is_some_and(|path| path.split('/').any(bad)) {
            return Err(
                "a SPIFFE ID has no empty segment, no '.' and no '..' in its path, and no '/' at its end",
            );
        }
        let visible = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_*?".contains(&byte);
        if !id.bytes().all(visible) {
            return Err(
                "the path of a SPIFFE ID holds only letters, digits, '.', '-', '_' and '/'",
            );
        }
    } else if !pattern.starts_with('*') {
        return Err("an identity begins with spiffe://, dns: or spki:sha256:");
    } else if !only(pattern, b"/.-_*?:") {
        return Err(
            "it begins with a wildcard, and then only a-z, 0-9, '.', '-', '_', ':' and '/' are of every kind of identity: write the kind before it, as in spiffe://DOMAIN/**",
        );
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct KeyGlob(Glob);

impl TryFrom<String> for KeyGlob {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        Self::new(&pattern)
    }
}

impl KeyGlob {
    fn new(pattern: &str) -> Result<Self, String> {
        let glob = Glob::new(pattern)?;
        let of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-*?".contains(&byte);
        let end = |byte: Option<u8>| byte.is_some_and(|byte| b".-".contains(&byte));
        if !pattern.bytes().all(of_names)
            || end(pattern.bytes().next())
            || end(pattern.bytes().next_back())
        {
            return Err(
                "this pattern is never met: names of keys hold only letters, digits, '_', '.' and '-', with neither '.' nor '-' at either end".to_owned()
            );
        }
        Ok(Self(glob))
    }
}

/// A set of operations, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operations(u32);

impl Operations {
    fn only(operation: Operation) -> Self {
        Self(1 << operation as u32)
    }

    fn all_that(wanted: impl Fn(Operation) -> bool) -> Self {
        Operation::ALL
            .into_iter()
            .filter(|operation| wanted(*operation))
            .fold(Self(0), |all, operation| all.with(Self::only(operation)))
    }

    fn on_keys() -> Self {
        Self::all_that(|operation| !operation.is_global())
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// An operation's name, or a group's.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct OperationName(Operations);

impl TryFrom<String> for OperationName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let operations = match name.as_str() {
            "*" => Operations::on_keys(),
            "seal" => {
                Operations::only(Operation::Encrypt).with(Operations::only(Operation::Decrypt))
            }
            "global" => Operations::all_that(Operation::is_global),
            name => {
                let name: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
                    serde::de::IntoDeserializer::into_deserializer(name);
                Operations::only(Operation::deserialize(name).map_err(|error| {
                    format!("{error}, or one of the groups `*`, `seal`, `global`")
                })?)
            }
        };
        Ok(Self(operations))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SEAL: &str = r#"
        [[rule]]
        identities = ["spiffe://example.org/vault/*"]
        keys = ["vault-*"]
        operations = ["seal"]
    "#;

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        let policy = Policy::parse("").unwrap();
        for operation in Operation::ALL {
            assert!(!policy.allows(&identity("dns:a.example"), operation, Some("k")));
            assert!(!policy.allows(&identity("dns:a.example"), operation, None));
        }
    }

    #[test]
    fn a_rule_allows_exactly_what_it_names() {
        let policy = Policy::parse(SEAL).unwrap();
        let vault = identity("spiffe://example.org/vault/0");
        for operation in Operation::ALL {
            let expected = matches!(operation, Operation::Encrypt | Operation::Decrypt);
            assert_eq!(policy.allows(&vault, operation, Some("vault-eu")), expected);
            assert!(!policy.allows(&vault, operation, Some("other")));
            assert!(!policy.allows(&vault, operation, None));
            for other in [
                "spiffe://example.org/vault/0/x",
                "spiffe://example.org/v",
                "dns:vault",
            ] {
                assert!(!policy.allows(&identity(other), operation, Some("vault-eu")));
            }
        }
    }

    #[test]
    fn deny_wins_wherever_it_stands() {
        let deny = r#"
            [[rule]]
            identities = ["spiffe://example.org/vault/7"]
            keys = ["**"]
            operations = ["*"]
            deny = true
        "#;
        for text in [format!("{SEAL}{deny}"), format!("{deny}{SEAL}")] {
            let policy = Policy::parse(&text).unwrap();
            let allows = |name| policy.allows(&identity(name), Operation::Decrypt, Some("vault-a"));
            assert!(allows("spiffe://example.org/vault/0"));
            assert!(!allows("spiffe://example.org/vault/7"));
        }
    }

    const EVERYBODY: [&str; 4] = [
        "spiffe://example.org/vault/0",
        "spiffe://example.org/a/b/c/D",
        "dns:a.example",
        "spki:sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a",
    ];

    #[test]
    fn a_star_that_denies_is_everybody() {
        let allow = "[[rule]]\nidentities=['**']\nkeys=['*']\noperations=['*','global']\n";
        for (pattern, met) in [
            ("*", &EVERYBODY[..]),
            ("**", &EVERYBODY[..]),
            ("*?", &EVERYBODY[..]),
            ("spiffe://*", &EVERYBODY[..2]),
            ("spiffe://example.org*", &EVERYBODY[..2]),
            ("spiffe://example.org/*", &EVERYBODY[..2]),
            ("*example.org*", &EVERYBODY[..2]),
            ("*/vault/*", &EVERYBODY[..1]),
            ("*vault*", &EVERYBODY[..1]),
            ("dns:*", &EVERYBODY[2..3]),
            ("*.example", &EVERYBODY[2..3]),
            ("spki:*", &EVERYBODY[..0]),
        ] {
            for effect in ["deny", "require_token"] {
                let text = format!(
                    "{allow}[[rule]]\nidentities=['{pattern}']\nkeys=['*']\noperations=['*']\n{effect}=true\n"
                );
                let Ok(policy) = Policy::parse(&text) else {
                    let never_met = pattern == "spki:*" || pattern.starts_with("spiffe://");
                    assert!(
                        never_met && (effect != "deny" || pattern == "spki:*"),
                        "{text}"
                    );
                    continue;
                };
                for who in EVERYBODY {
                    let decided = policy.decide(&identity(who), Operation::Decrypt, Some("k"));
                    let expected = match (met.contains(&who), effect) {
                        (false, _) => Decision::Allowed,
                        (true, "deny") => Decision::Denied,
                        (true, _) => Decision::AllowedWithToken,
                    };
                    assert_eq!(decided, expected, "{pattern} {effect} {who}");
                }
            }
        }
    }

    #[test]
    fn a_star_that_allows_stops_at_a_slash() {
        let policy = Policy::parse(
            "[[rule]]\nidentities=['*']\nkeys=['*']\noperations=['*']\nrequire_token=true\n",
        )
        .unwrap();
        for (who, allowed) in EVERYBODY.into_iter().zip([false, false, true, true]) {
            let decided = policy.allows(&identity(who), Operation::Decrypt, Some("k"));
            assert_eq!(decided, allowed, "{who}");
        }
    }

    #[test]
    fn whoever_denies_everything_on_every_key_means_the_appliance_too() {
        let allow = "[[rule]]\nidentities=['**']\nkeys=['*']\noperations=['*','global']\n";
        for (keys, everything) in [("*", true), ("**", true), ("vault-*", false)] {
            let text = format!(
                "{allow}[[rule]]\nidentities=['dns:a.example']\nkeys=['{keys}']\noperations=['*']\ndeny=true\n"
            );
            let policy = Policy::parse(&text).unwrap();
            for operation in Operation::ALL {
                let decided = policy.allows(&identity("dns:a.example"), operation, Some("vault-1"));
                let expected = operation.is_global() && !everything;
                assert_eq!(decided, expected, "{keys} {operation:?}");
                assert!(policy.allows(&identity("dns:b.example"), operation, Some("vault-1")));
            }
        }
    }

    #[test]
    fn a_pattern_that_nobody_meets_is_refused() {
        let rule = |identity: &str, key: &str| {
            Policy::parse(&format!(
                "[[rule]]\nidentities=['{identity}']\nkeys=['{key}']\noperations=['decrypt']\ndeny=true\n"
            ))
        };
        for identity in [
            "dns:*.Example.org",
            "dns:*.example.org.",
            "dns:.*",
            "dns:*..org",
            "dns:*/a",
            "spki:sha256:0A*",
            "spki:sha256:0a?",
            "spki:sha256:zz*",
            "spiffe://Example.org/*",
            "spiffe:///*",
            "spiffe://example.org//*",
            "spiffe://example.org/a*/",
            "spiffe://example.org/*/../b",
            "SPIFFE://example.org/*",
            "*.Example.org",
            "* ",
            "**ä",
            "spiffe*",
            "?piffe://example.org/a",
        ] {
            assert!(rule(identity, "*").is_err(), "{identity}");
        }
        for key in ["a/*", "*:b", "-*", "*.", "ä*"] {
            assert!(rule("**", key).is_err(), "{key}");
        }
        for identity in [
            "**",
            "*",
            "dns:*",
            "spki:sha256:*",
            "spiffe://**",
            "*/vault",
        ] {
            rule(identity, "a?-*").unwrap();
        }
    }

    #[test]
    fn a_token_is_needed_if_any_matching_rule_asks_for_it() {
        let text = format!(
            r#"{SEAL}
            [[rule]]
            identities = ["**"]
            keys = ["vault-eu"]
            operations = ["decrypt"]
            require_token = true
            "#
        );
        let policy = Policy::parse(&text).unwrap();
        let vault = identity("spiffe://example.org/vault/0");
        assert!(policy.needs_token(&vault, Operation::Decrypt, Some("vault-eu")));
        assert!(!policy.needs_token(&vault, Operation::Encrypt, Some("vault-eu")));
        assert!(!policy.needs_token(&vault, Operation::Decrypt, Some("vault-us")));
        assert!(!policy.needs_token(&vault, Operation::Rotate, Some("vault-eu")));
    }

    #[test]
    fn star_does_not_reveal_other_tenants_key_names() {
        let policy = Policy::parse(
            r#"
            [[rule]]
            identities = ["dns:a.example"]
            keys = ["tenant-a-*"]
            operations = ["*"]
            [[rule]]
            identities = ["dns:b.example"]
            operations = ["global"]
            "#,
        )
        .unwrap();
        for operation in Operation::ALL {
            let key = (!operation.is_global()).then_some("tenant-a-1");
            let global = operation.is_global();
            assert_eq!(
                policy.allows(&identity("dns:a.example"), operation, key),
                !global
            );
            assert_eq!(
                policy.allows(&identity("dns:b.example"), operation, key),
                global
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (line, broken) in [
            (
                2,
                "[[rule]]\nidentites = [\"**\"]\nkeys = [\"*\"]\noperations = [\"*\"]",
            ),
            (
                4,
                "[[rule]]\nidentities = [\"**\"]\nkeys = [\"*\"]\noperations = [\"decript\"]",
            ),
            (
                3,
                "[[rule]]\nidentities = [\"**\"]\nkeys = [\"a[0-9]\"]\noperations = [\"*\"]",
            ),
            (
                2,
                "[[rule]]\nidentities = [\"vault\"]\nkeys = [\"*\"]\noperations = [\"*\"]",
            ),
            (
                2,
                "[[rule]]\nidentities = [\"dns:A.example\"]\nkeys = [\"*\"]\noperations = [\"*\"]",
            ),
            (
                2,
                "[[rule]]\nidentities = [\"a.example*\"]\nkeys = [\"*\"]\noperations = [\"*\"]",
            ),
            (
                1,
                "[[rule]]\nidentities = [\"**\"]\noperations = [\"decrypt\"]",
            ),
            (1, "[[rule]]\nidentities = []\noperations = [\"list\"]"),
            (1, "[[rule]]\nidentities = [\"**\"]\noperations = []"),
            (
                1,
                "[[rule]]\nidentities = [\"**\"]\noperations = [\"list\"]\ndeny = true\nrequire_token = true",
            ),
            (1, "[[rules]]\n"),
            (2, "[[rule]]\nidentities = [\"**\""),
        ] {
            let error = Policy::parse(broken).unwrap_err();
            assert!(
                error.contains(&format!("line {line},")),
                "{broken}\n{error}"
            );
        }
    }

    #[test]
    fn a_token_in_the_file_is_never_told_of() {
        let token = format!("srt.{}", "aB".repeat(21));
        for rule in [
            format!("identities = ['{token}']"),
            format!("identities = ['{token}*']"),
            format!("identities = [' {token}']"),
            format!("identities = ['Bearer {token}']"),
            format!("identities = ['dns:{token}']"),
            format!("identities = ['spiffe://{token}/']"),
            format!("identities = ['DNS:{token}*']"),
            format!("identities = ['***{token}']"),
            format!("keys = ['a/{token}']"),
            format!("keys = ['Bearer {token}']"),
            format!("keys = ['-{token}']"),
            format!("keys = ['{token}/']"),
            format!("operations = ['{token}']"),
            format!("{token} = 1"),
            token.clone(),
            format!("deny = '{token}'"),
        ] {
            let told = Policy::parse(&format!("[[rule]]\n{rule}\n")).unwrap_err();
            assert!(told.starts_with("line 2,"), "{told}");
            assert!(!told.contains(&token[4..20]), "{rule}: {told}");
        }
    }

    #[test]
    fn a_misspelt_operation_is_answered_with_the_list() {
        let error =
            Policy::parse("[[rule]]\nidentities=['**']\nkeys=['*']\noperations=['decript']")
                .unwrap_err();
        assert!(
            error.starts_with("line 4, column 12: ") && error.contains("`datakey-plaintext`"),
            "{error}"
        );
        assert!(error.contains("`seal`"), "{error}");
    }

    #[test]
    fn the_shipped_example_is_valid() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy.toml");
        let policy = Policy::load(&path).unwrap();
        let vault = identity("spiffe://example.org/vault/0");
        assert!(policy.allows(&vault, Operation::Decrypt, Some("vault-unseal")));
        assert!(!policy.allows(&vault, Operation::Delete, Some("vault-unseal")));
    }
}
