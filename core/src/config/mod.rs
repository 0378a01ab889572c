//! `/etc/strongroom/strongroom.toml`: typed, and validated whole before anything starts.
//!
//! Every setting is in `docs/configuration.md`, and with its default in `examples/strongroom.toml`.

mod check;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod hardening;
pub mod module;
mod reader;
pub(crate) mod trust;
pub mod walk;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_hsm::{HsmConfig, KeyShape, PinSource, TokenSelector};

use crate::audit::AuditOptions;
use crate::files;
use crate::keyring::{JwtOptions, KeyName, KeyringOptions, Residency};
use crate::lifecycle::Limits;
use crate::policy::IdentityPattern;
use crate::tls::{ClientCa, TlsFiles};
pub use hardening::Hardening;
use reader::{Reader, Section};

/// Where systemd keeps the credentials of the unit that the package brings.
const CREDENTIALS: &str = "/run/credentials/strongroom.service";

/// The whole configuration, after validation.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Serve no request body larger than this, bytes.
    pub max_body: usize,
    /// Requests in flight at once; one more is answered 503.
    pub max_requests: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// TLS.
    pub tls: TlsFiles,
    /// The token.
    pub hsm: HsmConfig,
    /// The store's directory.
    pub store: PathBuf,
    /// The policy file.
    pub policy: PathBuf,
    /// The tokens file, if tokens are used.
    pub tokens: Option<PathBuf>,
    /// The audit log.
    pub audit: AuditOptions,
    /// The keyring.
    pub keyring: KeyringOptions,
    /// What the process gives up, and what its PKCS#11 module needs beside the usual.
    pub hardening: Hardening,
    /// Mount paths under which Transit is spoken (none: any).
    pub mounts: Vec<String>,
    /// Create a key on `encrypt` of an unknown name, as Vault does for a token with the `create`
    /// capability (also needs the policy's `create`).
    pub upsert: bool,
}

/// Everything that is wrong with a configuration, at once.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads and validates the whole file; every problem is reported, not the first alone.
    ///
    /// Relative paths are taken from the file's own directory. Nobody but root, whoever runs this,
    /// and the server's own user may be able to change the file or one that it names.
    ///
    /// # Errors
    /// Each problem names the file and the setting, and says what is expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = files::read_to_string(path, files::MAX_WRITTEN_BY_HAND).map_err(|error| {
            ConfigError(vec![format!(
                "the configuration {} can't be read: {error}; name another with --config",
                path.display()
            )])
        })?;
        let config = Self::parse_with(&text, path, &|name| std::env::var(name).ok())?;
        let settings = module::settings(&config.hsm.module);
        let settings = settings.iter().map(PathBuf::as_path);
        config.trust([path].into_iter().chain(config.obeyed()).chain(settings))?;
        Ok(config)
    }

    /// As [`Config::load`], from its text; `path` is for messages and relative paths.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::parse_with(text, path, &|_| None)
    }

    fn parse_with(
        text: &str,
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(text, path).map_err(|problem| ConfigError(vec![problem]))?;

        let mut server = reader.section("server");
        let listen = server.parsed("listen", "an address and port like \"0.0.0.0:8200\"");
        let max_body = server.size("max_body", 4 << 20, 1 << 10..=256 << 20);
        let max_requests = server.size("max_requests", 1024, 1..=1 << 20);
        let max_connections = server.size("max_connections", 1024, 1..=1 << 20);
        let mounts = mounts(&mut server);
        let upsert = server.boolean("upsert", false);
        reader.close(server);

        let tls = tls(&mut reader);
        let hsm = hsm(&mut reader);
        let store = store(&mut reader);
        let policy = one_path(&mut reader, "policy");
        let tokens = reader
            .has("tokens")
            .then(|| one_path(&mut reader, "tokens"));
        let audit = audit(&mut reader);
        let keyring = KeyringOptions {
            jwt: jwt(&mut reader, env),
            ..keyring(&mut reader, env)
        };
        let hardening = hardening::read(&mut reader);

        reader.finish().map_err(ConfigError)?;
        // Every required value is there: what a reader could not find is among the problems that
        // just ended this.
        let missing = || ConfigError(vec![format!("{}: a value is missing", path.display())]);
        Ok(Self {
            listen: listen.ok_or_else(missing)?,
            max_body,
            max_requests,
            max_connections,
            tls: tls.ok_or_else(missing)?,
            hsm: hsm.ok_or_else(missing)?,
            store: store.ok_or_else(missing)?,
            policy: policy.ok_or_else(missing)?,
            tokens: tokens.flatten(),
            audit: audit.ok_or_else(missing)?,
            keyring,
            hardening,
            mounts,
            upsert,
        })
    }
}

fn mounts(server: &mut Section) -> Vec<String> {
    let mounts = server.strings("mounts");
    for mount in &mounts {
        if mount.trim_matches('/').is_empty() {
            server.problem("mounts", "a mount is a path like \"transit\", not empty");
        }
    }
    mounts
        .iter()
        .map(|mount| mount.trim_matches('/').to_owned())
        .collect()
}

fn tls(reader: &mut Reader) -> Option<TlsFiles> {
    let mut section = reader.section("tls");
    let certificate = section.path("certificate");
    let private_key = section
        .one_of(&["private_key", "private_key_credential"])
        .and_then(|(name, value)| {
            let file = section.place(name, &value)?;
            Some(match name {
                "private_key" => file,
                _ => credential(&mut section, name, &value),
            })
        });
    let bound = section.tables("client_cas", "tls.client_cas");
    let anybody = if section.has("client_ca") || bound.is_empty() {
        section.path("client_ca").map(ClientCa::for_anybody)
    } else {
        None
    };
    let crls = section.paths("crls");
    reader.close(section);
    let mut client_cas: Vec<ClientCa> = anybody.into_iter().collect();
    for mut ca in bound {
        let file = ca.path("path");
        let identities = identities(&mut ca);
        reader.close(ca);
        client_cas.extend(file.map(|file| ClientCa { file, identities }));
    }
    Some(TlsFiles {
        certificate: certificate?,
        private_key: private_key?,
        client_cas,
        crls,
    })
}

/// What a CA may name: there is no default, since one that is forgotten would be everybody.
fn identities(ca: &mut Section) -> Vec<IdentityPattern> {
    let texts = ca.strings("identities");
    if texts.is_empty() {
        ca.problem(
            "identities",
            "expected what these CAs may name, as [\"spiffe://example.org/**\"], [\"dns:*.example.org\"], [\"spki:sha256:*\"]; for everybody set tls.client_ca",
        );
    }
    let mut patterns = Vec::new();
    for text in texts {
        match IdentityPattern::try_from(text) {
            Ok(pattern) if pattern.stops_at_the_domain() => ca.problem(
                "identities",
                "a SPIFFE ID has a path: write spiffe://DOMAIN/**",
            ),
            Ok(pattern) => patterns.push(pattern),
            Err(problem) => ca.problem("identities", &problem),
        }
    }
    patterns
}

/// The file of a systemd credential. Outside the service: where systemd has the service's, for root
/// to look at.
fn credential(section: &mut Section, setting: &str, name: &str) -> PathBuf {
    if name.contains('/') || name == "." || name == ".." {
        section.problem(
            setting,
            "expected the name of a systemd credential, a plain file name",
        );
    }
    std::env::var_os("CREDENTIALS_DIRECTORY")
        .map_or_else(|| PathBuf::from(CREDENTIALS), PathBuf::from)
        .join(name)
}

fn hsm(reader: &mut Reader) -> Option<HsmConfig> {
    let mut section = reader.section("hsm");
    let module = section.path("module");
    let token = section
        .one_of(&["label", "serial", "uri"])
        .map(|(name, value)| match name {
            "label" => TokenSelector::Label(value),
            "serial" => TokenSelector::Serial(value),
            _ => TokenSelector::Uri(value),
        });
    if let Some(Err(error)) = token.as_ref().map(TokenSelector::check) {
        section.problem("uri", &error.to_string());
    }
    let pin = section
        .one_of(&["pin_file", "pin_credential"])
        .and_then(|(name, value)| {
            let file = section.place(name, &value)?;
            Some(match name {
                "pin_file" => PinSource::File(file),
                _ => PinSource::Credential(value),
            })
        });
    let sessions = section.size("sessions", 1, 1..=64);
    let queue = section.size("queue", 1024, 1..=1 << 16);
    let call_deadline = section.duration(
        "call_deadline",
        Duration::from_secs(10),
        Duration::from_millis(100),
    );
    let key_generation_deadline = section.duration(
        "key_generation_deadline",
        Duration::from_mins(5),
        Duration::from_millis(100),
    );
    let session_keys = section.size("session_keys", 1024, 4..=1 << 20);
    let shape = match section.string("keys").as_deref() {
        None | Some("fixed") => KeyShape::Fixed,
        Some("movable") => KeyShape::Movable,
        Some("moved") => KeyShape::Moved,
        Some(_) => {
            let expected = "expected \"fixed\", \"movable\" or \"moved\", as the ceremony wrote it";
            section.problem("keys", expected);
            KeyShape::Fixed
        }
    };
    reader.close(section);
    Some(HsmConfig {
        module: module?,
        token: token?,
        pin: pin?,
        sessions,
        queue,
        call_deadline,
        key_generation_deadline,
        session_keys,
        shape,
    })
}

fn one_path(reader: &mut Reader, name: &'static str) -> Option<PathBuf> {
    let mut section = reader.section(name);
    let path = section.path("path");
    reader.close(section);
    path
}

fn store(reader: &mut Reader) -> Option<PathBuf> {
    let mut section = reader.section("store");
    let path = section.path("path");
    // Tests have one in memory. Chosen here it would lose every key with the process, and the HSM
    // would refuse what comes after it.
    if section
        .string("engine")
        .is_some_and(|engine| engine != "sled")
    {
        section.problem("engine", "expected \"sled\", which is the only one");
    }
    reader.close(section);
    path
}

fn audit(reader: &mut Reader) -> Option<AuditOptions> {
    let mut section = reader.section("audit");
    let path = section.path("path");
    let checkpoint_lines = section.size("checkpoint_lines", 1000, 1..=1 << 30);
    let checkpoint_interval = section.duration(
        "checkpoint_interval",
        Duration::from_secs(10),
        Duration::from_millis(100),
    );
    reader.close(section);
    Some(AuditOptions {
        path: path?,
        checkpoint_lines: checkpoint_lines as u64,
        checkpoint_interval,
    })
}

/// Most that a `KEK` may be used for without rotation, where nothing else is said.
const DEFAULT_ROTATION_PERIOD: Duration = Duration::from_hours(90 * 24);

fn jwt(reader: &mut Reader, env: &dyn Fn(&str) -> Option<String>) -> JwtOptions {
    let defaults = JwtOptions::default();
    let mut section = reader.section("jwt");
    let mut keys: Vec<KeyName> = Vec::new();
    for name in section.strings("keys") {
        match KeyName::parse(&name).map(KeyName::to_owned) {
            None => section.problem(
                "keys",
                "a name in it is not a key's: those hold letters, digits, '_', '.' and '-', with neither '.' nor '-' at either end",
            ),
            Some(key) if keys.contains(&key) => section.problem("keys", "a name is there twice"),
            Some(key) => keys.push(key),
        }
    }
    let issuer = section.string("issuer");
    let second = Duration::from_secs(1);
    let overlap = section.duration_or_env(
        "access_token_ttl",
        ("JWT_ACCESS_TOKEN_TTL", env("JWT_ACCESS_TOKEN_TTL")),
        defaults.limits.overlap,
        second,
    );
    let cache = section.duration("jwks_max_age", defaults.limits.cache, second);
    let publish_before = section.duration("publish_before", cache.saturating_mul(2), second);
    if publish_before <= cache {
        section.problem(
            "publish_before",
            "must be longer than jwt.jwks_max_age: who has just fetched the keys must have the new one before it signs",
        );
    }
    let key_max_age = section.duration_or_env(
        "key_max_age",
        ("KEY_MAX_AGE", env("KEY_MAX_AGE")),
        defaults.limits.key_max_age,
        second,
    );
    reader.close(section);
    JwtOptions {
        keys,
        issuer,
        limits: Limits {
            publish_before,
            overlap,
            cache: Duration::from_secs(cache.as_secs()),
            key_max_age,
        },
    }
}

fn keyring(reader: &mut Reader, env: &dyn Fn(&str) -> Option<String>) -> KeyringOptions {
    let defaults = KeyringOptions::default();
    let mut section = reader.section("keyring");
    let default_residency = match section.string("residency").as_deref() {
        None | Some("hsm") => Residency::Hsm,
        Some("memory") => Residency::Memory,
        Some(_) => {
            section.problem("residency", "expected \"hsm\" or \"memory\"");
            Residency::Hsm
        }
    };
    let memory_idle = section.duration("memory_idle", defaults.memory_idle, Duration::from_secs(1));
    let fips = section.boolean("fips", false);
    if fips && default_residency == Residency::Memory {
        section.problem(
            "residency",
            "\"memory\" is refused with fips = true: remove one of the two",
        );
    }
    let rotation_period = section.duration_or_env(
        "rotation_period",
        ("VAULT_ROTATION_PERIOD", env("VAULT_ROTATION_PERIOD")),
        DEFAULT_ROTATION_PERIOD,
        Duration::ZERO,
    );
    if !rotation_period.is_zero() && rotation_period < Duration::from_hours(1) {
        section.problem(
            "rotation_period",
            "expected 0 for none, or at least an hour",
        );
    }
    reader.close(section);
    KeyringOptions {
        default_residency,
        memory_idle,
        fips,
        rotation_period,
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
[server]
listen = "127.0.0.1:8200"
[tls]
certificate = "server.pem"
private_key = "/keys/server.key"
client_ca = "ca.pem"
[hsm]
module = "/usr/lib/softhsm/libsofthsm2.so"
label = "strongroom"
pin_file = "pin"
call_deadline = "2m"
[store]
path = "store"
[policy]
path = "policy.toml"
[audit]
path = "audit.log"
checkpoint_interval = 5
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/strongroom/strongroom.toml"))
    }

    #[test]
    fn a_plain_file_gets_defaults_and_whole_paths() {
        let config = parse(GOOD).unwrap();
        assert_eq!(
            config.tls.certificate,
            Path::new("/etc/strongroom/server.pem")
        );
        assert_eq!(config.tls.private_key, Path::new("/keys/server.key"));
        assert_eq!(
            config.hsm.pin,
            PinSource::File("/etc/strongroom/pin".into())
        );
        assert_eq!(config.hsm.call_deadline, Duration::from_mins(2));
        assert_eq!(config.audit.checkpoint_interval, Duration::from_secs(5));
        assert_eq!(
            (config.max_body, config.hsm.sessions, config.upsert),
            (4 << 20, 1, false)
        );
        assert_eq!(config.tokens, None);
    }

    #[test]
    fn the_store_has_an_engine_that_keeps_it() {
        let with = |engine: &str| parse(&GOOD.replace("[store]", &format!("[store]\n{engine}")));
        with("engine = \"sled\"").unwrap();
        for engine in ["\"memory\"", "\"etcd\"", "\"\"", "1"] {
            let error = with(&format!("engine = {engine}")).unwrap_err().to_string();
            assert!(error.contains("store.engine"), "{engine}: {error}");
        }
    }

    #[test]
    fn client_cas_can_be_bound_to_what_they_may_name() {
        let bound = "\n[[tls.client_cas]]\npath = \"spire.pem\"\nidentities = [\"spiffe://example.org/**\", \"dns:*.example.org\"]\n";
        let alone = GOOD.replace("client_ca = \"ca.pem\"\n", "");
        for (text, cas) in [
            (format!("{GOOD}{bound}"), 2),
            (format!("{alone}{bound}{bound}"), 2),
            (format!("{alone}{bound}"), 1),
        ] {
            let config = parse(&text).unwrap();
            assert_eq!(config.tls.client_cas.len(), cas, "{text}");
            let last = config.tls.client_cas.last().unwrap();
            assert_eq!(last.file, Path::new("/etc/strongroom/spire.pem"));
            assert_eq!(last.identities.len(), 2);
        }
        for (from, to, says) in [
            ("identities", "identites", "tls.client_cas.identit"),
            ("path", "file", "tls.client_cas.path"),
            ("dns:*.example.org", "dns:*.Example.org", "never met"),
            ("dns:*.example.org", "spiffe://example.org", "has no path"),
            ("spiffe://example.org/**", "spiffe://*", "has a path"),
        ] {
            let text = format!("{alone}{}", bound.replacen(from, to, 1));
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(says), "{to}: {error}");
        }
        assert!(
            parse(&alone)
                .unwrap_err()
                .to_string()
                .contains("tls.client_ca")
        );
    }

    #[test]
    fn a_uri_that_names_no_token_is_refused_before_there_is_one() {
        let with = |uri: &str| {
            let named = format!("uri = {uri:?}");
            parse(&GOOD.replace("label = \"strongroom\"", &named))
        };
        with("pkcs11:token=strongroom;slot-id=1").unwrap();
        for uri in [
            "nonsense",
            "pkcs11:",
            "pkcs11:token",
            "pkcs11:slot-id=one",
            "pkcs11:token=a;token=b",
            "pkcs11:token=%zz",
            "pkcs11:token=a?pin-value=87654321",
            "pkcs11:token=a;pin-value=87654321",
        ] {
            let said = with(uri).unwrap_err().to_string();
            assert!(said.contains("hsm.uri: "), "{uri}: {said}");
            assert!(!said.contains("87654321"), "{said}");
        }
    }

    #[test]
    fn nothing_that_may_be_a_secret_is_repeated() {
        let key = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n";
        let toml = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let (broken, inline) = (key.replace('\n', "\\n"), toml(key));
        for (from, to) in [
            ("\"/keys/server.key\"", inline.clone()),
            ("\"/keys/server.key\"", toml(&broken)),
            ("\"/keys/server.key\"", key.to_owned()),
            ("\"server.pem\"", inline.clone()),
            ("\"ca.pem\"", inline.clone()),
            ("\"pin\"", "87654321".to_owned()),
            ("\"pin\"", "\"87654321\"".to_owned()),
            ("\"pin\"", "87654321x".to_owned()),
            ("\"pin\"", "[87654321]".to_owned()),
            ("pin_file = \"pin\"", "pin = 87654321".to_owned()),
            (
                "pin_file = \"pin\"",
                "pin_credential = \"87654321\"".to_owned(),
            ),
            ("pin_file = \"pin\"", "pin_credential = 87654321".to_owned()),
            ("pin_file = \"pin\"", "87654321".to_owned()),
            // A key without its armour, a token behind something.
            ("\"/keys/server.key\"", toml(&"MIGHAgEA".repeat(8))),
            ("\"server.pem\"", toml(&"MIGHAgEA/".repeat(8))),
            ("\"ca.pem\"", toml("Bearer srt.87654321")),
            ("\"127.0.0.1:8200\"", toml("Bearer srt.87654321")),
            ("[store]", "[store]\nengine = \"87654321\"".to_owned()),
            ("[store]", "[store]\n\"srt.87654321\" = 1".to_owned()),
            ("[store]", "[\"srt.87654321\"]\n[store]".to_owned()),
            (
                "[store]",
                "[jwt]\nkeys = [\"a/87654321\"]\n[store]".to_owned(),
            ),
            (
                "[store]",
                "[jwt]\njwks_max_age = \"87654321x\"\n[store]".to_owned(),
            ),
        ] {
            let text = GOOD.replacen(from, &to, 1);
            assert_ne!(text, GOOD, "{from}");
            let said = parse(&text).unwrap_err().to_string();
            assert!(
                !said.contains("87654321") && !said.contains("MIGHAgEA"),
                "{to}: {said}"
            );
        }
    }

    #[test]
    fn the_shipped_example_is_good() {
        parse(include_str!("../../../examples/strongroom.toml")).unwrap();
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let text = GOOD
            .replace(
                "listen = \"127.0.0.1:8200\"",
                "listen = \"nowhere\"\nmax_body = \"big\"\ntypo = 1",
            )
            .replace("label = \"strongroom\"", "label = \"a\"\nserial = \"b\"")
            .replace(
                "call_deadline = \"2m\"",
                "call_deadline = \"2 fortnights\"\nsessions = 0",
            )
            .replace("[policy]\npath = \"policy.toml\"", "[tokens]\n[unheard]");
        let ConfigError(problems) = parse(&text).unwrap_err();
        for expected in [
            "server.listen",
            "server.max_body",
            "server.typo",
            "hsm.label",
            "hsm.call_deadline",
            "hsm.sessions",
            "policy.path",
            "tokens.path",
            "[unheard]",
        ] {
            assert!(
                problems.iter().any(|problem| problem.contains(expected)),
                "{expected} is not in {problems:#?}"
            );
        }
        assert_eq!(problems.len(), 9, "{problems:#?}");
    }

    #[test]
    fn durations_are_written_as_for_the_api() {
        let period = |value: &str| {
            let text = format!("{GOOD}\n[keyring]\nrotation_period = {value}\n");
            parse(&text).map(|config| config.keyring.rotation_period)
        };
        for (value, hours) in [
            ("\"768h\"", 768),
            ("\"768h0m0s\"", 768),
            ("\"1.5d\"", 36),
            ("\"7200\"", 2),
            ("7200", 2),
        ] {
            assert_eq!(
                period(value).unwrap(),
                Duration::from_hours(hours),
                "{value}"
            );
        }
        for value in ["\"\"", "\" \"", "\"-2h\"", "\"2 hours\"", "-7200"] {
            let problem = period(value).unwrap_err().to_string();
            assert!(
                problem.contains("expected a duration like"),
                "{value}: {problem}"
            );
        }
    }

    #[test]
    fn the_names_of_the_platform_are_honoured_in_the_environment() {
        let path = Path::new("/etc/strongroom/strongroom.toml");
        let text = format!(
            "{GOOD}\n[keyring]\nrotation_period = \"30d\"\n[jwt]\nkeys = [\"users\"]\naccess_token_ttl = 60\n"
        );
        let plain = Config::parse(&text, path).unwrap().keyring;
        assert_eq!(plain.rotation_period, Duration::from_hours(30 * 24));
        assert_eq!(plain.jwt.limits.overlap, Duration::from_mins(1));
        assert_eq!(plain.jwt.limits.key_max_age, Duration::from_hours(168));
        assert_eq!(
            parse(GOOD).unwrap().keyring.rotation_period,
            Duration::from_hours(2160)
        );
        assert_eq!(
            parse(GOOD).unwrap().keyring.jwt.limits.overlap,
            Duration::from_mins(15)
        );
        let env = |name: &str| match name {
            "VAULT_ROTATION_PERIOD" => Some("7200".to_owned()),
            "KEY_MAX_AGE" => Some("2h".to_owned()),
            "JWT_ACCESS_TOKEN_TTL" => Some("300".to_owned()),
            _ => None,
        };
        let keyring = Config::parse_with(&text, path, &env).unwrap().keyring;
        assert_eq!(keyring.rotation_period, Duration::from_hours(2));
        assert_eq!(keyring.jwt.limits.key_max_age, Duration::from_hours(2));
        assert_eq!(keyring.jwt.limits.overlap, Duration::from_mins(5));
        let problems = Config::parse_with(&text, path, &|_| Some("soon".to_owned())).unwrap_err();
        for name in [
            "VAULT_ROTATION_PERIOD",
            "KEY_MAX_AGE",
            "JWT_ACCESS_TOKEN_TTL",
        ] {
            assert!(problems.to_string().contains(name), "{problems}");
        }
    }

    #[test]
    fn a_new_key_is_published_for_longer_than_it_is_cached() {
        let text = format!("{GOOD}\n[jwt]\njwks_max_age = \"5m\"\npublish_before = \"5m\"\n");
        assert!(
            parse(&text)
                .unwrap_err()
                .to_string()
                .contains("jwt.publish_before")
        );
    }

    #[test]
    fn fips_mode_refuses_memory_residency() {
        let text = format!("{GOOD}\n[keyring]\nfips = true\nresidency = \"memory\"\n");
        assert!(
            parse(&text)
                .unwrap_err()
                .to_string()
                .contains("keyring.residency")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s).{0,200}") {
            let _ = parse(&text);
        }
    }
}
