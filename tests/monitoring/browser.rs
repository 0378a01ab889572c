//! A headless Chromium with a certificate database of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::support::{Appliance, Who};

/// Where Debian's Chromium looks for what the administrator decides.
const POLICIES: &str = "/etc/chromium/policies/managed";

/// A browser; what it leaves on the machine is removed when it is dropped.
pub struct Browser {
    home: TempDir,
    policy: PathBuf,
    /// Of two policies that name certificates, Chromium takes one: one browser at a time, on the
    /// whole machine.
    _turn: fs::File,
}

impl Browser {
    /// One that trusts the appliance's CA, and shows `who`'s certificate to whoever asks. `None`
    /// where there is no Chromium, or no right to set its policy.
    pub fn new(appliance: &Appliance, who: Option<Who>) -> Option<Self> {
        for program in ["chromium", "certutil", "pk12util", "openssl"] {
            let found = Command::new("sh")
                .args(["-c", &format!("command -v {program}")])
                .output()
                .unwrap();
            if !found.status.success() {
                return None;
            }
        }
        let home = tempfile::Builder::new()
            .prefix("sr-browser-")
            .tempdir()
            .unwrap();
        let database = home.path().join(".pki/nssdb");
        fs::create_dir_all(&database).unwrap();
        let database = format!("sql:{}", database.display());
        let pki = &appliance.pki;
        run("certutil", &["-N", "-d", &database, "--empty-password"]);
        let ca = pki.ca();
        run(
            "certutil",
            &[
                "-A",
                "-d",
                &database,
                "-n",
                "ca",
                "-t",
                "C,,",
                "-i",
                text(&ca),
            ],
        );
        if let Some(who) = who {
            let bundle = home.path().join("client.p12");
            let (certificate, key) = (pki.certificate(who), pki.key(who));
            run(
                "openssl",
                &[
                    "pkcs12",
                    "-export",
                    "-in",
                    text(&certificate),
                    "-inkey",
                    text(&key),
                    "-out",
                    text(&bundle),
                    "-passout",
                    "pass:",
                    "-name",
                    "client",
                ],
            );
            run(
                "pk12util",
                &["-i", text(&bundle), "-d", &database, "-W", "", "-K", ""],
            );
        }
        let policy = Path::new(POLICIES).join(format!(
            "strongroom-test-{}.json",
            appliance.address().port()
        ));
        fs::create_dir_all(POLICIES).ok()?;
        let turn = fs::File::create(std::env::temp_dir().join("strongroom-browser.lock")).ok()?;
        turn.lock().ok()?;
        // What a test that was killed left behind.
        for left in fs::read_dir(POLICIES).ok()?.flatten() {
            if left
                .file_name()
                .to_string_lossy()
                .starts_with("strongroom-test-")
            {
                let _ = fs::remove_file(left.path());
            }
        }
        let pattern = format!(
            "{{\"pattern\":\"{}\",\"filter\":{{}}}}",
            Self::origin(appliance)
        );
        fs::write(
            &policy,
            serde_json::json!({ "AutoSelectCertificateForUrls": [pattern] }).to_string(),
        )
        .ok()?;
        Some(Self {
            home,
            policy,
            _turn: turn,
        })
    }

    /// What the appliance is called in its certificate.
    pub fn origin(appliance: &Appliance) -> String {
        format!("https://localhost:{}", appliance.address().port())
    }

    /// The page's document after everything was loaded, and what the console said.
    pub fn document(&self, url: &str) -> (String, String) {
        let output = self.chromium(&["--dump-dom", url]);
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// A picture of the page, PNG.
    pub fn screenshot(&self, url: &str, to: &Path) {
        let to = format!("--screenshot={}", to.display());
        self.chromium(&[&to, "--window-size=1120,1220", "--hide-scrollbars", url]);
    }

    fn chromium(&self, arguments: &[&str]) -> Output {
        // A browser that never ends its loading ends the test all the same.
        Command::new("timeout")
            .args([
                "--kill-after=5",
                "60",
                "chromium",
                "--headless=new",
                "--timeout=20000",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--enable-logging=stderr",
                "--no-first-run",
            ])
            .arg(format!(
                "--user-data-dir={}",
                self.home.path().join("profile").display()
            ))
            .args(arguments)
            .env("HOME", self.home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.policy);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
