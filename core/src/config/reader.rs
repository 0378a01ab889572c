//! Takes values out of a TOML table and collects what is wrong, so that one run shows every
//! problem.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use crate::duration;
use crate::parse_error;

/// The whole file.
pub(super) struct Reader {
    file: PathBuf,
    folder: PathBuf,
    table: Table,
    problems: Vec<String>,
}

/// One `[section]`; what is left in it at [`Reader::close`] is unknown.
pub(super) struct Section {
    name: &'static str,
    folder: PathBuf,
    table: Table,
    problems: Vec<String>,
}

impl Reader {
    /// Fails only if the text is not TOML at all.
    pub(super) fn new(text: &str, file: &Path) -> Result<Self, String> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            format!("{}: {}", file.display(), parse_error::toml(text, &error))
        })?;
        let folder = file.parent().map(Path::to_owned).unwrap_or_default();
        Ok(Self {
            file: file.to_owned(),
            folder,
            table,
            problems: Vec::new(),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// A section that is missing is empty: the values it must have are reported one by one.
    pub(super) fn section(&mut self, name: &'static str) -> Section {
        let mut section = Section {
            name,
            folder: self.folder.clone(),
            table: Table::new(),
            problems: Vec::new(),
        };
        match self.table.remove(name) {
            None => {}
            Some(Value::Table(table)) => section.table = table,
            Some(_) => section
                .problems
                .push(format!("{name} must be a section, [{name}]")),
        }
        section
    }

    pub(super) fn close(&mut self, section: Section) {
        self.problems.extend(section.problems);
        let name = section.name;
        self.problems.extend(section.table.keys().map(|key| {
            format!(
                "{name}.{} is not a setting: see docs/configuration.md",
                named(key)
            )
        }));
    }

    /// Every problem, with the file's name before it.
    pub(super) fn finish(mut self) -> Result<(), Vec<String>> {
        self.problems.extend(self.table.keys().map(|name| {
            format!(
                "[{}] is not a section: see docs/configuration.md",
                named(name)
            )
        }));
        if self.problems.is_empty() {
            return Ok(());
        }
        let file = self.file.display();
        Err(self
            .problems
            .iter()
            .map(|problem| format!("{file}: {problem}"))
            .collect())
    }
}

impl Section {
    /// Records what is wrong with a setting.
    pub(super) fn problem(&mut self, key: &str, problem: &str) {
        self.problems
            .push(format!("{}.{key}: {problem}", self.name));
    }

    pub(super) fn string(&mut self, key: &str) -> Option<String> {
        match self.table.remove(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            other => {
                self.problem(
                    key,
                    // Not what it says: it may be a PIN.
                    &format!("expected a text that is not empty, found {}", kind(&other)),
                );
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, key: &str, default: bool) -> bool {
        match self.table.remove(key) {
            None => default,
            Some(Value::Boolean(value)) => value,
            Some(other) => {
                self.problem(
                    key,
                    &format!("expected true or false, found {}", kind(&other)),
                );
                default
            }
        }
    }

    /// A required value that is written as text.
    pub(super) fn parsed<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        let text = self.required(key, expected)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.problem(key, &format!("expected {expected}, found another text"));
        }
        value
    }

    pub(super) fn size(
        &mut self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let Some(value) = self.table.remove(key) else {
            return default;
        };
        let size = value
            .as_integer()
            .and_then(|number| usize::try_from(number).ok());
        match size {
            Some(size) if range.contains(&size) => size,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.problem(
                    key,
                    &format!(
                        "expected a whole number from {low} to {high}, found {}",
                        shown(&value)
                    ),
                );
                default
            }
        }
    }

    /// `"250ms"`, `"10s"`, `"5m"`, `"2h"`, `"30d"`, or a number of seconds.
    pub(super) fn duration(&mut self, key: &str, default: Duration, least: Duration) -> Duration {
        let Some(value) = self.table.remove(key) else {
            return default;
        };
        let duration = match &value {
            Value::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
            Value::String(text) => parse_duration(text),
            _ => None,
        };
        match duration {
            Some(duration) if duration >= least => duration,
            Some(_) => {
                self.problem(
                    key,
                    &format!("expected at least {least:?}, found {}", shown(&value)),
                );
                default
            }
            None => {
                self.problem(
                    key,
                    &format!("expected a duration like \"250ms\", \"10s\", \"1h30m\" or \"30d\", found {}", shown(&value)),
                );
                default
            }
        }
    }

    /// A duration that the environment may give too, under a name that operators know from
    /// elsewhere; it wins.
    pub(super) fn duration_or_env(
        &mut self,
        key: &str,
        env: (&str, Option<String>),
        default: Duration,
        least: Duration,
    ) -> Duration {
        let (name, given) = env;
        let in_file = self.duration(key, default, least);
        let Some(text) = given.filter(|text| !text.is_empty()) else {
            return in_file;
        };
        match parse_duration(&text) {
            Some(duration) if duration >= least => duration,
            _ => {
                let problem = format!(
                    "{name} in the environment: expected seconds, or a duration like \"15m\", of at least {least:?}"
                );
                self.problem(key, &problem);
                in_file
            }
        }
    }

    /// A required path.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.required(key, "a path")?;
        self.place(key, &text)
    }

    pub(super) fn paths(&mut self, key: &str) -> Vec<PathBuf> {
        let texts = self.strings(key);
        texts
            .iter()
            .filter_map(|text| self.place(key, text))
            .collect()
    }

    /// TCP ports.
    pub(super) fn ports(&mut self, key: &str) -> Vec<u16> {
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let port = |item: &Value| {
            let port = u16::try_from(item.as_integer()?).ok()?;
            (port != 0).then_some(port)
        };
        let ports: Option<Vec<u16>> = value
            .as_array()
            .and_then(|array| array.iter().map(port).collect());
        ports.unwrap_or_else(|| {
            self.problem(
                key,
                &format!("expected a list of ports, found {}", instead(&value)),
            );
            Vec::new()
        })
    }

    pub(super) fn strings(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let texts: Option<Vec<String>> = value.as_array().and_then(|array| {
            array
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect()
        });
        texts.unwrap_or_else(|| {
            self.problem(
                key,
                &format!("expected a list of texts, found {}", instead(&value)),
            );
            Vec::new()
        })
    }

    /// `[[section.key]]`: each a section of its own, called `name` in messages.
    pub(super) fn tables(&mut self, key: &str, name: &'static str) -> Vec<Self> {
        let Some(value) = self.table.remove(key) else {
            return Vec::new();
        };
        let tables: Option<Vec<Table>> = value
            .as_array()
            .and_then(|array| array.iter().map(|item| item.as_table().cloned()).collect());
        let Some(tables) = tables else {
            self.problem(key, &format!("expected tables, [[{name}]]"));
            return Vec::new();
        };
        let section = |table| Self {
            name,
            folder: self.folder.clone(),
            table,
            problems: Vec::new(),
        };
        tables.into_iter().map(section).collect()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Exactly one of these settings: which, and its value.
    pub(super) fn one_of(&mut self, keys: &[&'static str]) -> Option<(&'static str, String)> {
        let given: Vec<&'static str> = keys
            .iter()
            .copied()
            .filter(|key| self.table.contains_key(*key))
            .collect();
        let values: Vec<Option<String>> = given.iter().map(|key| self.string(key)).collect();
        if let ([key], [value]) = (given.as_slice(), values.as_slice()) {
            return value.clone().map(|value| (*key, value));
        }
        let all = keys.join(", ");
        self.problem(
            keys.first().copied().unwrap_or_default(),
            &format!("exactly one of {all} is needed"),
        );
        None
    }

    /// A path as the file means it: a relative one stands beside the file. What is meant to be in
    /// that file is not taken for its path: it would stand in each message about it.
    pub(super) fn place(&mut self, key: &str, text: &str) -> Option<PathBuf> {
        if parse_error::may_be_content(text) {
            self.problem(
                key,
                "expected the path of a file, found what may be the content of one: put that into a file, and write its path here, from / if it is long",
            );
            return None;
        }
        Some(self.folder.join(text))
    }

    fn required(&mut self, key: &str, expected: &str) -> Option<String> {
        if !self.table.contains_key(key) {
            self.problem(key, &format!("is missing: expected {expected}"));
            return None;
        }
        self.string(key)
    }
}

/// What is there, where a number belongs: no text, since it may be a PIN or a token.
fn shown(value: &Value) -> String {
    match value {
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
        other => kind(other).to_owned(),
    }
}

/// A name that nobody knows, unless by its form it may be something else: a PIN, a token or a key.
fn named(name: &str) -> &str {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'_' || byte == b'-';
    if name.len() <= 40 && name.bytes().all(is_word) {
        name
    } else {
        "…"
    }
}

/// What stands where a list of one kind of values belongs.
fn instead(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list with something else in it",
        value => kind(value),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(text) if text.is_empty() => "an empty one",
        Value::String(_) => "another text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date or time",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

/// An empty text is not a duration here: whoever has left it out would not know what holds.
fn parse_duration(text: &str) -> Option<Duration> {
    duration::parse(text)
        .ok()
        .filter(|_| !text.trim().is_empty())
}
