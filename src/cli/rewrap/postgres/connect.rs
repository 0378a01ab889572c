//! The connection: a password from a file only, TLS for every other machine.

use std::net::IpAddr;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use strongroom_core::causes::causes;
use strongroom_core::parse_error;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresArgs;
use crate::cli::exit::{Exit, Failure};
use crate::cli::files;

pub(super) async fn connect(args: &PostgresArgs) -> Result<Client, Failure> {
    let mut config: Config = args.database.parse().map_err(|error| {
        Failure::caused(Exit::Usage, &error)
            .next("write it as psql takes it: 'host=db.example dbname=app user=app'")
    })?;
    if config.get_password().is_some() {
        return Err(Failure::new(
            Exit::Usage,
            "a password on the command line can be read by everyone on this machine",
        )
        .next("put it into a file and name that with --password-file"));
    }
    if let Some(path) = &args.password_file {
        config.password(files::read_text(path)?);
    }
    config.application_name("strongroom key rewrap-postgres");
    let Some(path) = &args.database_cacert else {
        if config.get_ssl_mode() != SslMode::Disable && !config.get_hosts().iter().all(is_here) {
            return Err(Failure::new(
                Exit::Usage,
                "the database is on another machine, and the CA of its certificate is not given",
            )
            .next("give it with --database-cacert, or say sslmode=disable in the connection"));
        }
        let (client, connection) = config.connect(NoTls).await.map_err(|error| lost(&error))?;
        tokio::spawn(connection);
        return Ok(client);
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&files::read(path)?) {
        let bad =
            |problem: String| Failure::new(Exit::Usage, format!("{}: {problem}", path.display()));
        let certificate = certificate.map_err(|error| bad(parse_error::pem(&error).to_owned()))?;
        roots
            .add(certificate)
            .map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            format!("{} has no certificate in it", path.display()),
        ));
    }
    // With a CA given, an unencrypted connection is not what was asked for.
    config.ssl_mode(SslMode::Require);
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (client, connection) = config
        .connect(MakeRustlsConnect::new(tls))
        .await
        .map_err(|error| lost(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

pub(super) fn lost(error: &tokio_postgres::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the database: {}", causes(error)))
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost"
                || name
                    .parse::<IpAddr>()
                    .is_ok_and(|address| address.is_loopback())
        }
    }
}
