//! Lines of the server's own log that whoever can connect can cause, as often as they like: so many
//! a second are written, of the others the number.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

/// One such line's bound.
pub struct LogLimit {
    /// A second.
    lines: u32,
    window: Mutex<Window>,
}

struct Window {
    /// `None`: nothing was written yet.
    began: Option<Duration>,
    written: u32,
    /// Since the last line that was written.
    left_out: u64,
}

/// To be written.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// How many of its kind were not written since the last one that was, if any.
    pub left_out: Option<u64>,
}

impl LogLimit {
    /// So many lines a second.
    pub const fn new(lines: u32) -> Self {
        let window = Window {
            began: None,
            written: 0,
            left_out: 0,
        };
        Self {
            lines,
            window: Mutex::new(window),
        }
    }

    /// Whether one more line may be written; if not, it is counted.
    pub fn due(&self) -> Option<Due> {
        self.due_at(clock::uptime())
    }

    fn due_at(&self, now: Duration) -> Option<Due> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window
            .began
            .is_none_or(|began| now.saturating_sub(began) >= SECOND)
        {
            window.began = Some(now);
            window.written = 0;
        }
        if window.written == self.lines {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        let left_out = Some(std::mem::take(&mut window.left_out)).filter(|&count| count > 0);
        Some(Due { left_out })
    }
}

/// `seldom!(1, error, %error, "text")`: as `tracing::error!`, once a second at most, with
/// `left_out`.
#[doc(hidden)]
#[macro_export]
macro_rules! __seldom {
    ($lines:literal, $level:ident, $($line:tt)+) => {{
        static LINE: $crate::seldom::LogLimit = $crate::seldom::LogLimit::new($lines);
        if let Some(due) = LINE.due() {
            tracing::$level!(left_out = due.left_out, $($line)+);
        }
    }};
}
pub use __seldom as seldom;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    #[test]
    fn so_many_lines_a_second_and_the_number_of_the_others() {
        let seldom = LogLimit::new(2);
        let at = |millis| seldom.due_at(Duration::from_millis(millis));
        let due = |left_out| Some(Due { left_out });
        assert_eq!(at(5000), due(None));
        assert_eq!(at(5000), due(None));
        for millis in 5000..6000 {
            assert_eq!(at(millis), None);
        }
        assert_eq!(at(6000), due(Some(1000)));
        assert_eq!(at(6999), due(None));
        assert_eq!(at(6999), None);
        assert_eq!(at(9000), due(Some(1)));
    }

    #[test]
    fn a_thousand_requests_that_fail_alike_write_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Mutex::new(file.reopen().unwrap()))
            .finish();
        tracing::subscriber::with_default(log, || {
            for _ in 0..1000 {
                seldom!(1, error, why = "full", "refusing");
            }
        });
        let lines = fs::read_to_string(file.path()).unwrap();
        // Two, if a second begins meanwhile.
        assert!((1..=2).contains(&lines.lines().count()), "{lines}");
    }

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    /// Where requests and connections are answered every line of the log is bounded.
    #[test]
    fn no_request_writes_as_many_lines_as_it_likes() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src");
        let mut files = vec![src.join("serve/connection.rs")];
        for folder in ["api", "serve/connection"] {
            sources(&src.join(folder), &mut files);
        }
        assert!(files.len() > 20, "{files:?}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (n, line) in text.lines().enumerate() {
                let unbounded = ["error!(", "warn!(", "info!("]
                    .iter()
                    .any(|level| line.contains(&format!("tracing::{level}")));
                // A server that drains says so once.
                let once = text
                    .lines()
                    .nth(n + 2)
                    .is_some_and(|l| l.contains("are cut off"));
                assert!(!unbounded || once, "{}:{}", file.display(), n + 1);
            }
        }
    }
}
