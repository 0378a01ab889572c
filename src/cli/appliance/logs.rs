//! Sends the journal to the operator's log server: finds out which that is, and becomes systemd's
//! own sender.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::exit::{Exit, Failure};

const JOURNAL_UPLOAD_PROGRAM: &str = "/usr/lib/systemd/systemd-journal-upload";

/// Returns only with an error.
pub(super) fn forward() -> Result<(), Failure> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(PathBuf::from)
        .ok_or_else(|| {
            Failure::new(Exit::Failed, "there are no credentials")
                .next("this command is for strongroom-logs.service of the bootable image")
        })?;
    let url = url(&credentials)?;
    let trust = first(&credentials, ["strongroom.logs.ca", "logs-ca"]).ok_or_else(|| {
        Failure::new(
            Exit::Failed,
            format!("nothing says which CA the log server {url} must have its certificate from"),
        )
        .next("give it as logs/ca.pem on the ceremony's medium, or as the credential strongroom.logs.ca")
    })?;
    let error = Command::new(JOURNAL_UPLOAD_PROGRAM)
        .arg("--save-state")
        .arg(format!("--url={url}"))
        .arg(option("--trust", &trust))
        .arg(option("--key", &credentials.join("tls-key")))
        .arg(option("--cert", &credentials.join("tls-certificate")))
        .exec();
    Err(Failure::new(
        Exit::Failed,
        format!("{JOURNAL_UPLOAD_PROGRAM} does not start: {error}"),
    ))
}

fn url(credentials: &Path) -> Result<String, Failure> {
    let path = first(credentials, ["strongroom.logs.url", "logs-url"])
        .ok_or_else(|| Failure::new(Exit::Failed, "nothing says where the log server is"))?;
    let text = fs::read_to_string(&path).map_err(|error| Failure::file(&path, &error))?;
    let url = text.trim();
    // In clear it could be read, and be anybody's.
    if !url.starts_with("https://") {
        return Err(Failure::new(
            Exit::Failed,
            format!("the log server's address {url:?} does not begin with https://"),
        ));
    }
    Ok(url.to_owned())
}

/// The first of these credentials that is there; an empty one stands for one that is not.
fn first(credentials: &Path, names: [&str; 2]) -> Option<PathBuf> {
    names
        .into_iter()
        .map(|name| credentials.join(name))
        .find(|path| fs::read(path).is_ok_and(|content| !content.trim_ascii().is_empty()))
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn smbios_goes_before_the_medium_and_nothing_is_sent_in_clear() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        // What the unit sets where there is no file.
        put("logs-url", "\n");
        assert!(url(folder.path()).is_err());
        put("logs-url", "https://medium:1\n");
        assert_eq!(url(folder.path()).unwrap(), "https://medium:1");
        put("strongroom.logs.url", "https://smbios:2");
        assert_eq!(url(folder.path()).unwrap(), "https://smbios:2");
        put("strongroom.logs.url", "http://smbios:2");
        assert!(url(folder.path()).is_err());
    }
}
