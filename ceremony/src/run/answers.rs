//! A directory of answers in place of people: for tests, automation, and a rehearsal at one's desk.
//!
//! `docs/ceremony.md` lists the files. What is not there is an error that names it; nothing is
//! asked twice.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use strongroom_core::files;
use zeroize::Zeroizing;

use super::ui::{Question, Screen, Ui, UiError, ascii};

/// A passphrase, or a share's words, are shorter.
const MAX_SECRET_BYTES: u64 = 4096;

/// One file for each question.
pub struct Answers {
    folder: PathBuf,
    /// What is left of the file `recover`, once it was read.
    people: Option<VecDeque<String>>,
    quiet: bool,
}

impl Answers {
    /// `quiet`: nothing is printed.
    pub fn new(folder: PathBuf, quiet: bool) -> Self {
        Self {
            folder,
            people: None,
            quiet,
        }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            // Nobody need read it.
            let _ = writeln!(std::io::stderr(), "{}", ascii(text));
        }
    }
}

impl Ui for Answers {
    fn screen(&mut self, screen: &Screen<'_>) -> Result<(), UiError> {
        let mode = if screen.rehearsal { "REHEARSAL " } else { "" };
        self.line(&format!(
            "{mode}step {} of {}: {}",
            screen.number, screen.of, screen.title
        ));
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<(), UiError> {
        self.line(&format!("  {}", text.replace('\n', "\n  ")));
        Ok(())
    }

    fn refuse(&mut self, text: &str) -> Result<(), UiError> {
        self.say(text)
    }

    fn confirm(&mut self, text: &str) -> Result<(), UiError> {
        let path = self.folder.join("confirm");
        if read_text(&path)?.trim() == "yes" {
            return Ok(());
        }
        Err(UiError::Answer {
            path,
            problem: format!("does not hold the word yes, which answers: {text}"),
        })
    }

    /// Those whom the file `present` lists; without it, everyone who has a key there.
    fn present(&mut self, _text: &str, name: &str) -> Result<bool, UiError> {
        let path = self.folder.join("present");
        if path.exists() {
            return Ok(read_text(&path)?.lines().any(|line| line.trim() == name));
        }
        Ok(self
            .folder
            .join("keys")
            .join(format!("{name}.key"))
            .exists())
    }

    fn typed(&mut self, id: &str, _text: &str) -> Result<String, UiError> {
        Ok(read_text(&self.folder.join(id))?.trim().to_owned())
    }

    fn file(&mut self, question: &Question<'_>) -> Result<Option<PathBuf>, UiError> {
        Ok(self.offered(question.id))
    }

    fn offered(&mut self, id: &str) -> Option<PathBuf> {
        Some(self.folder.join(id)).filter(|path| path.exists())
    }

    fn person(&mut self, _text: &str, names: &[String]) -> Result<Option<String>, UiError> {
        if self.people.is_none() {
            let path = self.folder.join("recover");
            let people = match read_text(&path) {
                Ok(text) => text.lines().map(|line| line.trim().to_owned()).collect(),
                Err(_) if !path.exists() => names
                    .iter()
                    .filter(|name| {
                        self.folder
                            .join("keys")
                            .join(format!("{name}.key"))
                            .exists()
                    })
                    .cloned()
                    .collect(),
                Err(error) => return Err(error),
            };
            self.people = Some(people);
        }
        Ok(self
            .people
            .as_mut()
            .and_then(VecDeque::pop_front)
            .filter(|name| !name.is_empty()))
    }

    fn new_round(&mut self) {
        self.people = None;
    }

    fn words(&mut self, name: &str) -> Result<Option<Zeroizing<String>>, UiError> {
        let path = self.folder.join("words").join(name);
        if path.exists() {
            return secret(&path).map(Some);
        }
        Ok(None)
    }

    fn passphrase(&mut self, name: &str, _text: &str) -> Result<Zeroizing<String>, UiError> {
        secret(&self.folder.join("passphrases").join(name))
    }

    fn another_try(&self) -> bool {
        false
    }

    fn working(&mut self, what: Option<&str>) {
        if let Some(what) = what {
            self.line(&format!("  {what}"));
        }
    }

    fn farewell(&mut self, text: &str) -> Result<(), UiError> {
        self.say(text)
    }
}

fn read_text(path: &Path) -> Result<String, UiError> {
    files::read_to_string(path, files::MAX_WRITTEN_BY_HAND)
        .map(|mut text| std::mem::take(&mut *text))
        .map_err(|error| unread(path, &error))
}

fn unread(path: &Path, error: &std::io::Error) -> UiError {
    UiError::Answer {
        path: path.to_owned(),
        problem: if error.kind() == ErrorKind::NotFound {
            "is not there: make it, and run the same command again".to_owned()
        } else {
            format!("can't be read: {error}")
        },
    }
}

/// A file's text without the newline at its end.
fn secret(path: &Path) -> Result<Zeroizing<String>, UiError> {
    let text =
        files::read_to_string(path, MAX_SECRET_BYTES).map_err(|error| unread(path, &error))?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\n', '\r']).to_owned(),
    ))
}
