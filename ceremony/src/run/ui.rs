//! How the ceremony speaks with the people in the room, or with a directory of answers in their
//! place.

use std::path::PathBuf;

use zeroize::Zeroizing;

/// Lines and columns of the smallest terminal; text is wrapped to fit.
pub(super) const WIDTH: usize = 78;

/// The head of a step's screen.
pub struct Screen<'a> {
    /// From 1.
    pub number: usize,
    /// How many steps there are.
    pub of: usize,
    /// A few words.
    pub title: &'a str,
    /// What happens.
    pub what: &'a str,
    /// Why.
    pub why: &'a str,
    /// Who must act.
    pub who: String,
    /// Nothing here is for real.
    pub rehearsal: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UiError {
    /// The answers directory lacks a file, or holds one that is no answer.
    #[error("the answer {path} {problem}")]
    Answer {
        /// Which file.
        path: PathBuf,
        /// "is not there", …
        problem: String,
    },
    /// Somebody said no, or closed the terminal.
    #[error("{0}")]
    Declined(String),
    /// The terminal failed.
    #[error("the terminal: {0}")]
    Terminal(#[from] std::io::Error),
    /// There is nobody to ask.
    #[error("standard input is not a terminal")]
    NoTerminal,
}

/// One thing to be told by people.
pub struct Question<'a> {
    /// The name of its file in a directory of answers.
    pub id: &'a str,
    /// What is asked, in a line or two.
    pub text: &'a str,
}

/// A conversation. Nothing secret is ever shown through it.
pub trait Ui {
    /// Begins a step's screen.
    fn screen(&mut self, screen: &Screen<'_>) -> Result<(), UiError>;

    /// A paragraph on the step's screen.
    fn say(&mut self, text: &str) -> Result<(), UiError>;

    /// An answer that was refused, and why.
    fn refuse(&mut self, text: &str) -> Result<(), UiError>;

    /// Waits for "yes"; anything else ends the run with [`UiError::Declined`].
    fn confirm(&mut self, text: &str) -> Result<(), UiError>;

    /// Whether this person is here.
    fn present(&mut self, text: &str, name: &str) -> Result<bool, UiError>;

    /// A line that is no secret; in a directory of answers, that of the file with this name.
    fn typed(&mut self, id: &str, text: &str) -> Result<String, UiError>;

    /// The path of a file; `None` where there is none yet ("later").
    fn file(&mut self, question: &Question<'_>) -> Result<Option<PathBuf>, UiError>;

    /// A file that is there without asking for it.
    fn offered(&mut self, _id: &str) -> Option<PathBuf> {
        None
    }

    /// Which of these people (their names) acts next; `None` if nobody is left to act.
    fn person(&mut self, text: &str, names: &[String]) -> Result<Option<String>, UiError>;

    /// Shares are asked for, by [`Ui::person`], from the beginning.
    fn new_round(&mut self) {}

    /// The words on a custodian's page, if they would rather type those than use their key.
    fn words(&mut self, _name: &str) -> Result<Option<Zeroizing<String>>, UiError> {
        Ok(None)
    }

    /// A passphrase or PIN, typed without echo.
    fn passphrase(&mut self, name: &str, text: &str) -> Result<Zeroizing<String>, UiError>;

    /// Whether a refused answer may be given again: a directory of answers says the same each time.
    fn another_try(&self) -> bool;

    /// Long work begins: `None` ends it.
    fn working(&mut self, what: Option<&str>);

    /// The end of a step's screen: waits until it was read, where people read.
    fn pause(&mut self) -> Result<(), UiError> {
        Ok(())
    }

    /// The last screen: waits until it was read, where people read.
    fn farewell(&mut self, text: &str) -> Result<(), UiError>;
}

/// Breaks paragraphs into lines of at most `width` characters; a word that is longer stands alone.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let indent: String = paragraph
            .chars()
            .take_while(|letter| *letter == ' ')
            .collect();
        let mut line = indent.clone();
        for word in paragraph.split_whitespace() {
            let empty = line.len() == indent.len();
            if !empty && line.chars().count() + 1 + word.chars().count() > width {
                lines.push(std::mem::replace(&mut line, indent.clone()));
                line.push_str(word);
                continue;
            }
            if !empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

/// Printable ASCII only: what comes from files and tokens must not steer a terminal, and a serial
/// line has no more.
pub(super) fn ascii(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\n' | ' '..='~' => letter,
            _ => '?',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_wrapped_to_the_width_and_keeps_its_indent() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("  a bb\n\nccccc", 4), ["  a", "  bb", "", "ccccc"]);
        assert_eq!(wrap("", 10), [""]);
    }

    #[test]
    fn nothing_but_ascii_is_shown() {
        assert_eq!(ascii("a\u{1b}[2Jb\u{e9}\n"), "a?[2Jb?\n");
    }
}
