//! A throwaway PostgreSQL.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User};
use tempfile::TempDir;

use super::support::Pki;

/// The superuser's password.
pub const PASSWORD: &str = "correct horse";

/// A server with TLS, that takes passwords only; stopped and removed when it is dropped.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Postgres {
    /// `None` where PostgreSQL is not installed.
    pub fn start(pki: &Pki) -> Option<Self> {
        let bin = programs()?;
        let folder = tempfile::Builder::new().prefix("sr-pg-").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("password"), PASSWORD).unwrap();
        fs::copy(pki.server_certificate(), at("server.pem")).unwrap();
        fs::copy(pki.server_key(), at("server.key")).unwrap();
        fs::set_permissions(at("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let user = unprivileged();
        if let Some(user) = &user {
            for path in [
                folder.path().to_owned(),
                at("password"),
                at("server.pem"),
                at("server.key"),
            ] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        let run = |program: &str| {
            let mut command = Command::new(bin.join(program));
            if let Some(user) = &user {
                command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
            }
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .current_dir(folder.path());
            command
        };
        let made = run("initdb")
            .args([
                "-D",
                "data",
                "-U",
                "admin",
                "-A",
                "scram-sha-256",
                "--pwfile",
                "password",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ])
            .status()
            .unwrap();
        assert!(made.success(), "initdb");
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = run("postgres")
            .args([
                "-D",
                "data",
                "-p",
                &port.to_string(),
                "-k",
                folder.path().to_str().unwrap(),
            ])
            .args([
                "-c",
                "fsync=off",
                "-c",
                "listen_addresses=127.0.0.1",
                "-c",
                "ssl=on",
            ])
            .args([
                "-c",
                "ssl_cert_file=../server.pem",
                "-c",
                "ssl_key_file=../server.key",
            ])
            .stderr(fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let mut server = Self {
            folder,
            port,
            child,
        };
        server.wait();
        Some(server)
    }

    /// For `--database`.
    pub fn connection(&self) -> String {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=admin dbname=postgres",
            self.port
        )
    }

    /// For `--password-file`.
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// A client of the test itself.
    pub async fn client(&self) -> tokio_postgres::Client {
        let connection = format!(
            "{} password='{PASSWORD}' sslmode=disable",
            self.connection()
        );
        let (client, connection) = tokio_postgres::connect(&connection, tokio_postgres::NoTls)
            .await
            .unwrap();
        tokio::spawn(connection);
        client
    }

    fn wait(&mut self) {
        let start = Instant::now();
        let log = self.folder.path().join("log");
        while !fs::read_to_string(&log)
            .unwrap()
            .contains("ready to accept connections")
        {
            assert!(
                start.elapsed() < Duration::from_mins(1)
                    && self.child.try_wait().unwrap().is_none(),
                "PostgreSQL did not start: {}",
                fs::read_to_string(&log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian keeps the server's programs off the PATH.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| Path::exists(&bin.join("initdb")))
        .collect();
    found.sort();
    found.pop()
}

/// PostgreSQL refuses to run as root.
fn unprivileged() -> Option<User> {
    Uid::effective().is_root().then(|| {
        User::from_name("postgres")
            .unwrap()
            .expect("Debian's package makes this user")
    })
}
