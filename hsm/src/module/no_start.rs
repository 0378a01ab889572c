//! Why a PKCS#11 module does not start, as far as its files can tell.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::HsmError;
use crate::fault::Fault;

/// A module that does not start says no more than `CKR_GENERAL_ERROR`; nearly always it can't read
/// what belongs to it.
pub(super) fn why(path: &Path, fault: &Fault) -> Fault {
    let place = |name| {
        std::env::var(name).map_or_else(|_| "not set".to_owned(), |value| format!("{value:?}"))
    };
    let trouble = SoftHsm::of(path).and_then(|of| of.trouble());
    let trouble = trouble.map_or_else(String::new, |text| format!("{text}. Otherwise, "));
    HsmError::Config(format!(
        "the PKCS#11 module {} did not start ({fault}): {trouble}look whether {} may read the module's own settings and tokens. For SoftHSM these are the file of SOFTHSM2_CONF \
         ({}), or else ~/.config/softhsm2/softhsm2.conf (HOME is {}), or else /etc/softhsm/softhsm2.conf, and the directory that directories.tokendir names there. The server \
         reaches these by itself; what another module needs is set in [hardening] read and write",
        path.display(),
        this_user(),
        place("SOFTHSM2_CONF"),
        place("HOME"),
    ))
    .into()
}

/// Whom files are asked for as.
fn this_user() -> String {
    fs::metadata("/proc/self").map_or_else(
        |_| "this user".to_owned(),
        |own| format!("the user {}", own.uid()),
    )
}

/// Where `SoftHSM` looks for its settings, and why there.
struct SoftHsm {
    settings: PathBuf,
    because: &'static str,
}

impl SoftHsm {
    /// `None`: nothing says that the module is `SoftHSM`, or has it behind it.
    fn of(module: &Path) -> Option<Self> {
        if let Some(settings) = std::env::var_os("SOFTHSM2_CONF") {
            return Some(Self {
                settings: settings.into(),
                because: "SOFTHSM2_CONF names it",
            });
        }
        let is_softhsm = module.to_string_lossy().contains("softhsm");
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let of_user = home.map(|home| home.join(".config/softhsm2/softhsm2.conf"));
        is_softhsm.then(|| match of_user.filter(|file| file.exists()) {
            Some(settings) => Self {
                settings,
                because: "SOFTHSM2_CONF is not set, and HOME has it",
            },
            None => Self {
                settings: "/etc/softhsm/softhsm2.conf".into(),
                because: "SOFTHSM2_CONF is not set",
            },
        })
    }

    /// What keeps it from starting, and what to do.
    fn trouble(&self) -> Option<String> {
        const MAX_SETTINGS_BYTES: u64 = 1 << 20;
        let (user, at) = (this_user(), self.settings.display());
        let because = self.because;
        let mut text = String::new();
        let read = fs::metadata(&self.settings).and_then(|found| {
            if !found.is_file() {
                return Err(io::Error::other("not a regular file"));
            }
            File::open(&self.settings)?
                .take(MAX_SETTINGS_BYTES)
                .read_to_string(&mut text)
        });
        if let Err(error) = read {
            return Some(format!(
                "{user} can't read SoftHSM's settings {at} ({because}): {error}. Give that user the right to, or set SOFTHSM2_CONF to another file, for the service in /etc/default/strongroom"
            ));
        }
        let tokens = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == "directories.tokendir").then(|| PathBuf::from(value.trim()))
        })?;
        let error = fs::read_dir(&tokens).err()?;
        let tokens = tokens.display();
        Some(format!(
            "{user} can't use {tokens}, where directories.tokendir of {at} ({because}) has the tokens: {error}. Make that directory, and give it to the user that the server runs as, or name another there"
        ))
    }
}
