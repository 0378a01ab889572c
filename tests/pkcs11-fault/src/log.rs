//! The log: one line an event, appended to the file that `PKCS11_FAULT_LOG` names:
//! `seconds.milliseconds pid event`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends one line. Never fails: without a log file, or with a full disk, the event is lost, and a
/// test that counts events fails.
pub(crate) fn line(event: &str) {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let path = std::env::var_os("PKCS11_FAULT_LOG")?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    if let Some(mut file) = file.as_ref() {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let line = format!(
            "{}.{:03} {} {event}\n",
            now.as_secs(),
            now.subsec_millis(),
            std::process::id()
        );
        // One write(2) with O_APPEND: lines of several threads and processes don't mix.
        let _ = file.write_all(line.as_bytes());
    }
}
