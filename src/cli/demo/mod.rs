//! `strongroom demo`: the whole appliance on a throwaway token, sealed and unsealed against, in one
//! command.

mod people;
mod site;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use strongroom_client::Client;

use self::site::Site;
use super::audit;
use super::child;
use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::{Remote, block_on};
use super::seal;

/// The key that Vault's `seal "transit"` names in its documentation's example.
const SEAL_KEY: &str = "vault-unseal";
const SEAL_MOUNT: &str = "transit";
/// Names the executable of Vault's own seal client; `tests/interop/build.sh seal` makes one.
const SEAL_CLIENT_VARIABLE: &str = "STRONGROOM_SEAL_CLIENT";

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Work in this directory, created if it does not exist, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep token, configuration and certificates, and print how to start the appliance again
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(args: &DemoArgs, format: Format) -> Result<(), Failure> {
    let mut story = StepTimes::new(format);
    let site = Site::new(args.dir.as_deref())?;
    // Ctrl-C must not leave a token or a server behind: it ends the work, and the drops below clean
    // up.
    let told = block_on(async {
        tokio::select! {
            told = tell(&site, args.keep, &mut story) => told,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(Exit::Failed, "interrupted")),
        }
    });
    let after = if args.keep {
        let start = site.path("start.sh");
        let folder = site.keep();
        format!(
            "Everything is kept in {}; start the appliance again with: sh {}",
            folder.display(),
            start.display()
        )
    } else {
        "Its files go away with the demo; `strongroom demo --keep` keeps them.".to_owned()
    };
    let stanza = told?;
    story.end(&stanza, &after)
}

async fn tell(site: &Site, keep: bool, story: &mut StepTimes) -> Result<String, Failure> {
    site.write_certificates()?;
    story.step("certificates", "a client CA and a client certificate")?;
    site.write_plan(keep)?;
    story.step(
        "plan",
        "three custodians, a security officer and an auditor have keys, and have signed a plan: 2 of 3",
    )?;
    site.rehearse().await?;
    story.step(
        "ceremony",
        "rehearsed on a throwaway SoftHSM2 token: PINs split, master key RSA-4096, store, TLS identity",
    )?;
    story.step("verify", &site.verify().await?)?;
    site.run(&["check-config"]).await?;
    story.step("configuration", &site.configuration().display().to_string())?;

    let mut server = site.serve().await?;
    let remote = site.remote(&server.address);
    let client = remote.client()?;
    server.wait_until_healthy(&client).await?;
    story.step("serve", &server.address)?;

    create(&client).await?;
    story.step("key", &format!("{SEAL_KEY}, version 1"))?;
    let old = seal_round_trip(site, &remote, &client, story).await?;
    story.step("audit", &last_line(&site.audit_log())?)?;
    rotate(&remote, &client, &old, story).await?;

    server.stop().await?;
    // With the key that the ceremony's transcript is sealed with.
    let found = audit::verify(
        &site.audit_log(),
        &audit::read_key(&site.audit_key())?,
        None,
    )?;
    if !found.problems.is_empty() {
        return Err(Failure::new(Exit::Audit, found.problems.join("\n")));
    }
    story.step("audit verify", &audit::summary(&found))?;
    Ok(seal::stanza(&remote, SEAL_KEY))
}

async fn create(client: &Client) -> Result<(), Failure> {
    let path = format!("{SEAL_MOUNT}/keys/{SEAL_KEY}");
    client.call("POST", &path, Some(&json!({}))).await?;
    Ok(())
}

/// By the real seal client where there is one; the ciphertext that comes back is for after the
/// rotation.
async fn seal_round_trip(
    site: &Site,
    remote: &Remote,
    client: &Client,
    story: &mut StepTimes,
) -> Result<String, Failure> {
    let executable = std::env::var_os(SEAL_CLIENT_VARIABLE).filter(|path| !path.is_empty());
    if let Some(executable) = executable {
        real_seal_client(Path::new(&executable), site, remote).await?;
        story.seal_client = "the seal client of Vault and OpenBao";
        story.step(
            "seal",
            "sealed and unsealed by the real transit seal client (go-kms-wrapping)",
        )?;
    }
    let trip = seal::round_trip(client, remote, SEAL_KEY).await?;
    let by = "sealed and unsealed by `strongroom client seal`, which sends the same requests";
    story.step(
        "seal",
        &format!("{by}, {:.1} ms", trip.took.as_secs_f64() * 1e3),
    )?;
    Ok(trip.ciphertext)
}

async fn real_seal_client(executable: &Path, site: &Site, remote: &Remote) -> Result<(), Failure> {
    let mut command = Command::new(executable);
    command
        .arg("roundtrip")
        .env("STRONGROOM_ADDR", remote.addr())
        .env("STRONGROOM_CA", site.ca())
        .env("STRONGROOM_CERT", site.client_certificate())
        .env("STRONGROOM_KEY", site.client_key())
        .env("STRONGROOM_MOUNT", SEAL_MOUNT)
        .env("STRONGROOM_KEY_NAME", SEAL_KEY);
    child::output(command).await.map(drop)
}

async fn rotate(
    remote: &Remote,
    client: &Client,
    old: &str,
    story: &mut StepTimes,
) -> Result<(), Failure> {
    client
        .call(
            "POST",
            &format!("{SEAL_MOUNT}/keys/{SEAL_KEY}/rotate"),
            Some(&json!({})),
        )
        .await?;
    let new = seal::round_trip(client, remote, SEAL_KEY).await?;
    seal::unseal(client, remote, SEAL_KEY, old).await?;
    let text = format!(
        "new seals use version {}, and what version 1 sealed still unseals",
        new.key_version()
    );
    story.step("rotate", &text)
}

fn last_line(log: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(log).map_err(|error| Failure::file(log, &error))?;
    let line = text
        .lines()
        .rfind(|line| line.contains("\"decrypt\""))
        .ok_or_else(|| Failure::new(Exit::Failed, "the decryption is not in the audit log"))?;
    Ok(line.to_owned())
}

/// What was done, and how long each step took.
struct StepTimes {
    format: Format,
    begun: Instant,
    last: Instant,
    steps: Vec<Value>,
    seal_client: &'static str,
}

impl StepTimes {
    fn new(format: Format) -> Self {
        let now = Instant::now();
        Self {
            format,
            begun: now,
            last: now,
            steps: Vec::new(),
            seal_client: "strongroom client seal",
        }
    }

    /// Tells a step that is done.
    fn step(&mut self, name: &str, detail: &str) -> Result<(), Failure> {
        let now = Instant::now();
        let seconds = now.duration_since(self.last).as_secs_f64();
        self.last = now;
        self.steps
            .push(json!({"step": name, "seconds": seconds, "detail": detail}));
        if self.format == Format::Json {
            return Ok(());
        }
        let (green, dim) = (
            anstyle::AnsiColor::Green.on_default(),
            anstyle::Style::new().dimmed(),
        );
        let text = format!("{green}ok{green:#} {dim}{seconds:6.2} s{dim:#}  {name:13} {detail}");
        self.format.either(&text, &Value::Null)
    }

    fn end(&self, stanza: &str, after: &str) -> Result<(), Failure> {
        let seconds = self.begun.elapsed().as_secs_f64();
        let text = format!(
            "\nDone in {seconds:.1} s; the seal was made by {}.\n\
             A Vault or OpenBao with this in its configuration unseals by itself:\n\n{stanza}\n\n{after}",
            self.seal_client
        );
        let value = json!({
            "seconds": seconds,
            "seal_client": self.seal_client,
            "steps": self.steps,
            "stanza": stanza,
        });
        self.format.either(&text, &value)
    }
}
