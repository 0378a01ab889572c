//! The ceremony on a terminal: 80 columns, plain ASCII, no colour, so that a serial line does.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use indicatif::ProgressBar;
use zeroize::Zeroizing;

use super::ui::{Question, Screen, Ui, UiError, WIDTH, ascii, wrap};

/// Goes home and clears the screen, for the next step.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Also clears what was scrolled away, after a screen that showed a secret. No other control
/// sequence is sent.
const CLEAR_ALL: &str = "\x1b[H\x1b[2J\x1b[3J";

/// Standard input and output.
pub struct Terminal {
    clears: bool,
    spinner: Option<ProgressBar>,
}

impl Terminal {
    /// # Errors
    /// [`UiError::NoTerminal`] if nobody sits there.
    pub fn new() -> Result<Self, UiError> {
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(UiError::NoTerminal);
        }
        let clears = std::env::var_os("TERM").is_some_and(|term| term != "dumb");
        Ok(Self {
            clears,
            spinner: None,
        })
    }
}

fn print(first: &str, rest: &str, text: &str) -> Result<(), UiError> {
    let mut out = io::stdout().lock();
    for (index, line) in wrap(&ascii(text), WIDTH - first.len())
        .into_iter()
        .enumerate()
    {
        let lead = if index == 0 { first } else { rest };
        writeln!(out, "{}", format!("{lead}{line}").trim_end())?;
    }
    Ok(out.flush()?)
}

fn ask(prompt: &str) -> Result<String, UiError> {
    let mut out = io::stdout().lock();
    write!(out, "{prompt}> ")?;
    out.flush()?;
    drop(out);
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(UiError::Declined("the terminal was closed".to_owned()));
    }
    Ok(line.trim().to_owned())
}

impl Ui for Terminal {
    fn screen(&mut self, screen: &Screen<'_>) -> Result<(), UiError> {
        let mut out = io::stdout().lock();
        if self.clears {
            write!(out, "{CLEAR}")?;
        } else {
            writeln!(out, "\n")?;
        }
        let rule = "-".repeat(WIDTH);
        let head = format!(
            "STRONGROOM KEY CEREMONY{}",
            if screen.rehearsal {
                "   *** REHEARSAL ***"
            } else {
                ""
            }
        );
        let step = format!("step {} of {}", screen.number, screen.of);
        writeln!(out, "{rule}")?;
        writeln!(out, "{head}{step:>width$}", width = WIDTH - head.len())?;
        writeln!(out, "{}", ascii(screen.title).to_uppercase())?;
        writeln!(out, "{rule}")?;
        drop(out);
        print("What:  ", "       ", screen.what)?;
        print("Why:   ", "       ", screen.why)?;
        print("Who:   ", "       ", &screen.who)?;
        print("", "", "")
    }

    fn say(&mut self, text: &str) -> Result<(), UiError> {
        print("", "", text)
    }

    fn refuse(&mut self, text: &str) -> Result<(), UiError> {
        print("!! ", "   ", text)
    }

    fn confirm(&mut self, text: &str) -> Result<(), UiError> {
        print("", "", text)?;
        loop {
            match ask("yes, or stop to end here")?
                .to_ascii_lowercase()
                .as_str()
            {
                "yes" | "y" => return Ok(()),
                "stop" | "no" => {
                    return Err(UiError::Declined("the room said stop".to_owned()));
                }
                _ => {}
            }
        }
    }

    fn present(&mut self, text: &str, _name: &str) -> Result<bool, UiError> {
        print("", "", text)?;
        loop {
            match ask("yes or no, or stop to end here")?
                .to_ascii_lowercase()
                .as_str()
            {
                "yes" | "y" => return Ok(true),
                "no" | "n" => return Ok(false),
                "stop" => {
                    return Err(UiError::Declined("the room said stop".to_owned()));
                }
                _ => {}
            }
        }
    }

    fn typed(&mut self, _id: &str, text: &str) -> Result<String, UiError> {
        print("", "", text)?;
        match ask("or stop to end here")? {
            stop if stop == "stop" => Err(UiError::Declined("the room said stop".to_owned())),
            typed => Ok(typed),
        }
    }

    fn file(&mut self, question: &Question<'_>) -> Result<Option<PathBuf>, UiError> {
        print("", "", question.text)?;
        loop {
            match ask("path of the file, or later")?.as_str() {
                "" => {}
                "later" | "stop" => return Ok(None),
                path => return Ok(Some(path.into())),
            }
        }
    }

    fn person(&mut self, text: &str, names: &[String]) -> Result<Option<String>, UiError> {
        print("", "", text)?;
        for (index, name) in names.iter().enumerate() {
            print(&format!("  {}. ", index + 1), "     ", name)?;
        }
        loop {
            let answer = ask("number or name, or stop")?;
            if answer == "stop" {
                return Ok(None);
            }
            let by_number = answer
                .parse::<usize>()
                .ok()
                .and_then(|number| names.get(number.checked_sub(1)?));
            if let Some(name) = by_number.or_else(|| names.iter().find(|name| **name == answer)) {
                return Ok(Some(name.clone()));
            }
        }
    }

    fn words(&mut self, name: &str) -> Result<Option<Zeroizing<String>>, UiError> {
        let text = format!("{name}: your key, or the words on your page?");
        print("", "", &text)?;
        loop {
            match ask("key or words")?.as_str() {
                "key" => return Ok(None),
                "words" => break,
                _ => {}
            }
        }
        print(
            "",
            "",
            "Type the words as they are on the page, then an empty line. The screen is cleared afterwards.",
        )?;
        let mut words = Zeroizing::new(String::with_capacity(4096));
        let mut line = Zeroizing::new(String::with_capacity(1024));
        loop {
            line.clear();
            if io::stdin().lock().read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            words.push_str(&line);
        }
        // They are a secret, and were on the screen: also where it cannot be known whether the
        // terminal understands this.
        let mut out = io::stdout().lock();
        write!(out, "{CLEAR_ALL}")?;
        out.flush()?;
        Ok(Some(words))
    }

    fn passphrase(&mut self, _name: &str, text: &str) -> Result<Zeroizing<String>, UiError> {
        print("", "", text)?;
        print!("without echo> ");
        io::stdout().flush()?;
        Ok(Zeroizing::new(rpassword::read_password()?))
    }

    fn another_try(&self) -> bool {
        true
    }

    fn working(&mut self, what: Option<&str>) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        if let Some(what) = what {
            // The line itself stays for the record; the spinner after it only shows that there is
            // life.
            let _ = print("", "", &format!("working: {what} ..."));
            if self.clears {
                let spinner = ProgressBar::new_spinner();
                spinner.set_style(indicatif::ProgressStyle::default_spinner().tick_chars("|/-\\ "));
                spinner.enable_steady_tick(std::time::Duration::from_millis(200));
                self.spinner = Some(spinner);
            }
        }
    }

    fn pause(&mut self) -> Result<(), UiError> {
        ask("\nEnter for the next step").map(drop)
    }

    fn farewell(&mut self, text: &str) -> Result<(), UiError> {
        print("", "", text)?;
        ask("Enter to leave").map(drop)
    }
}
