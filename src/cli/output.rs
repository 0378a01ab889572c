//! What a command prints: for people, or JSON for programs.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::exit::{Exit, Failure};

/// `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// One JSON value on standard output; an error is one on standard error.
    Json,
}

impl Format {
    /// Prints a command's result. As text: `name  value` lines, and a list of words one a line.
    pub(super) fn result(self, value: &Value) -> Result<(), Failure> {
        match self {
            Self::Json => self.line(&value.to_string()),
            Self::Text => self.line(render(value).trim_end()),
        }
    }

    /// Prints `text` if people read, else `value`.
    pub(super) fn either(self, text: &str, value: &Value) -> Result<(), Failure> {
        match self {
            Self::Json => self.line(&value.to_string()),
            Self::Text => self.line(text),
        }
    }

    /// Prints a line that only people want, on standard error.
    pub(super) fn note(self, text: &str) {
        if self == Self::Text {
            // A note that nobody can read is no reason to fail.
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// A bar of `length` steps on standard error, if that is a terminal and people read.
    pub(super) fn bar(self, length: u64, what: &str) -> ProgressBar {
        if !self.draws() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(length);
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}")
        {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar
    }

    /// A spinner on standard error, if that is a terminal and people read.
    pub(super) fn spinner(self) -> ProgressBar {
        if !self.draws() {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner();
        spinner.enable_steady_tick(std::time::Duration::from_millis(100));
        spinner
    }

    fn draws(self) -> bool {
        self == Self::Text && io::stderr().is_terminal()
    }

    #[allow(clippy::unused_self)]
    fn line(self, text: &str) -> Result<(), Failure> {
        match writeln!(anstream::stdout(), "{text}") {
            // `strongroom … | head -1` is not a failure.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::new(
                Exit::Failed,
                format!("standard output: {error}"),
            )),
            Ok(()) => Ok(()),
        }
    }
}

fn render(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let width = fields.keys().map(String::len).max().unwrap_or(0);
            fields.iter().fold(String::new(), |text, (name, value)| {
                format!("{text}{name:width$}  {}\n", word(value))
            })
        }
        Value::Array(items) => items
            .iter()
            .fold(String::new(), |text, item| text + &word(item) + "\n"),
        scalar => word(scalar),
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", word(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_aligned_and_lists_are_lines() {
        assert_eq!(
            render(&json!({"a": "x", "long": [1, 2], "n": null})),
            "a     x\nlong  1, 2\nn     -\n"
        );
        assert_eq!(render(&json!(["k1", "k2"])), "k1\nk2\n");
    }
}
