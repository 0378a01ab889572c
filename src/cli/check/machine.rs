//! What the appliance stands on: disk, clock, backups.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;
use serde_json::Value;
use strongroom_core::config::Config;
use strongroom_core::files;
use strongroom_core::owner::acting;

use super::{Finding, date, now};

/// With less the server would soon refuse requests, since it can't write its audit log.
const MIN_FREE_BYTES: u64 = 256 << 20;

/// More than one line of the audit log.
const TAIL_BYTES: u64 = 64 * 1024;

/// Clocks are compared to the second, and set back a little by NTP now and then.
const MAX_CLOCK_STEP_SECONDS: i64 = 5;

pub(super) fn disk(config: &Config) -> Finding {
    let folder = config.audit.path.parent().unwrap_or(&config.store);
    let Ok(found) = statvfs(folder) else {
        return Finding::new(
            "disk",
            Err(format!("{} can't be looked at", folder.display())),
        );
    };
    let free = found.blocks_available() * found.fragment_size();
    let text = format!("{} MiB free for {}", free >> 20, folder.display());
    Finding::new(
        "disk",
        if free < MIN_FREE_BYTES {
            Err(format!("make room: {text}"))
        } else {
            Ok(text)
        },
    )
}

/// Whether it went backwards since the last line of the audit log, and whether somebody keeps it
/// right.
pub(super) fn clock(config: &Config) -> Finding {
    let last = last_line_time(&config.audit.path);
    let found = match last {
        Some(last) if last > now() + MAX_CLOCK_STEP_SECONDS => Err(format!(
            "it shows {}, but the audit log's last line is of {}: it was set back, or was wrong then",
            date(now()),
            date(last)
        )),
        _ if synchronised() == Some(false) => {
            Err("it is not synchronised: `timedatectl timesync-status`".to_owned())
        }
        _ => Ok(date(now())),
    };
    Finding::new("clock", found)
}

/// systemd-timesyncd leaves a file when it has set the clock; without that service somebody else
/// does, or nobody.
fn synchronised() -> Option<bool> {
    let folder = Path::new("/run/systemd/timesync");
    folder
        .is_dir()
        .then(|| folder.join("synchronized").exists())
}

fn last_line_time(log: &Path) -> Option<i64> {
    let mut file = acting(log, || files::open(log)).flatten().ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    // The last line that is whole; the very last may be on its way.
    tail.split(|byte| *byte == b'\n')
        .rev()
        .find_map(|line| serde_json::from_slice::<Value>(line).ok())
        .and_then(|line| line["time"].as_str()?.parse::<jiff::Timestamp>().ok())
        .map(jiff::Timestamp::as_second)
}

pub(super) fn backups(folder: Option<&Path>, days: u16) -> Finding {
    let Some(folder) = folder else {
        return Finding::skipped(
            "backups",
            "no directory of backups is named: --backups, or STRONGROOM_CHECK_BACKUPS",
        );
    };
    let newest = fs::read_dir(folder).map(|entries| {
        entries
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                Some((metadata.modified().ok()?, entry.path()))
            })
            .max()
    });
    Finding::new(
        "backups",
        match newest {
            Err(error) => Err(format!("{} can't be read: {error}", folder.display())),
            Ok(None) => Err(format!("there is none in {}", folder.display())),
            Ok(Some((time, path))) => {
                let age = SystemTime::now().duration_since(time).unwrap_or_default();
                let text = format!("{}, {} hours old", path.display(), age.as_secs() / 3600);
                if age > Duration::from_secs(u64::from(days) * 24 * 60 * 60) {
                    Err(format!("the newest is too old: {text}"))
                } else {
                    Ok(text)
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_pipe_in_the_logs_place_tells_no_time_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("audit.log");
        fs::write(&log, "{\"time\": \"1970-01-01T00:00:07Z\"}\n").unwrap();
        assert_eq!(last_line_time(&log), Some(7));
        fs::remove_file(&log).unwrap();
        mkfifo(&log, Mode::S_IRWXU).unwrap();
        assert_eq!(last_line_time(&log), None);
    }
}
