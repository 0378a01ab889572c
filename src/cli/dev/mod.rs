//! `strongroom dev`: an appliance on a SoftHSM2 token of its own, in the foreground, for
//! development and CI.

mod certificates;
mod ready;
mod site;
mod stop;
mod token;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use strongroom_core::identity::Identity;
use strongroom_core::keyring::KeyName;

use self::certificates::DOMAIN;
use self::ready::Ready;
use self::site::Site;
use self::stop::Stop;
use super::child::{self, Server};
use super::exit::{Exit, Failure};
use super::output::Format;
use super::remote::{Remote, block_on};
use super::server;

/// The key of the stanza, as in Vault's documentation.
const KEY: &str = "vault-unseal";
/// The client of the stanza.
const CLIENT: &str = "vault";
const MOUNT: &str = "transit";
/// How long the server of a start before, killed with its parent, may still have the port.
const MAX_PORT_WAIT: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(super) struct DevArgs {
    /// Work in this directory and keep it, created if it does not exist, instead of a temporary one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Listen on this port; 0: any that is free
    #[arg(long, default_value_t = 8220)]
    port: u16,
    /// Listen on this address; with any but a loopback one other machines can connect
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    listen: IpAddr,
    /// Also put this host name or IP address into the server's certificate; the first one is what
    /// clients are told; may be repeated
    #[arg(long, value_name = "HOST", value_parser = host_name)]
    host: Vec<String>,
    /// Also create this key, beside vault-unseal; may be repeated
    #[arg(long, value_name = "NAME")]
    key: Vec<KeyName>,
    /// Also make a certificate for this client, beside vault; may be repeated
    #[arg(long, value_name = "NAME", value_parser = client_name)]
    client: Vec<String>,
    /// SoftHSM2's PKCS#11 module, if it is not in one of its usual places
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// The process that has the token: this configuration's
    #[arg(long, hide = true, value_name = "FILE")]
    make_token: Option<PathBuf>,
}

/// It becomes a file's name and a part of a DNS name.
fn client_name(text: &str) -> Result<String, String> {
    dns_name(&format!("{text}.{DOMAIN}"))?;
    Ok(text.to_ascii_lowercase())
}

fn host_name(text: &str) -> Result<String, String> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) => dns_name(text),
    }
}

fn dns_name(text: &str) -> Result<String, String> {
    format!("dns:{text}")
        .parse::<Identity>()
        .map_err(|error| error.to_string())?;
    Ok(text.to_ascii_lowercase())
}

pub(super) fn run(args: &DevArgs, format: Format) -> Result<(), Failure> {
    if let Some(config) = &args.make_token {
        child::end_with_stdin();
        return token::make(config);
    }
    server::private_files();
    block_on(async {
        // From here on the site is removed however this ends, but by SIGKILL.
        let mut stop = Stop::new()?;
        let module = match &args.module {
            Some(module) => module
                .canonicalize()
                .map_err(|error| Failure::file(module, &error))?,
            None => strongroom_softhsm::module_path()
                .map_err(|error| Failure::caused(Exit::Hsm, &error))?,
        };
        let site = Site::open(args.dir.as_deref(), &module)?;
        develop(args, &site, &mut stop, format).await
    })
}

async fn develop(
    args: &DevArgs,
    site: &Site,
    stop: &mut Stop,
    format: Format,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let listen = SocketAddr::new(args.listen, args.port);
    wait_for_port(listen).await?;
    let certificates = site.certificates();
    let keys = with(KEY, args.key.iter().map(ToString::to_string));
    let known = certificates.known_clients()?;
    let clients = with(CLIENT, args.client.iter().cloned().chain(known));
    let mut hosts = args.host.clone();
    if !args.listen.is_unspecified() {
        hosts.push(args.listen.to_string());
    }
    let made_again = certificates.complete(&hosts, &clients)?;
    for file in &made_again {
        format.note(&format!("made again: {file}"));
    }
    site.write_policy()?;
    let state = make_state(site, listen, stop, format).await?;

    let serve = site.command(&state, &["serve", "--config"])?;
    let mut server = Server::spawn(serve, site.path("server.log"), site.path("address"))?;
    let come_up = async {
        let remote = create_keys(&mut server, site, &keys).await?;
        let ready = Ready {
            site,
            remote: as_told(remote, args.host.first()),
            keys: &keys,
            clients: &clients,
            made_again: &made_again,
            is_open: !args.listen.is_loopback(),
            seconds: begun.elapsed().as_secs_f64(),
        };
        ready.tell(format)
    };
    let up = tokio::select! {
        up = come_up => up,
        () = stop.told() => Err(child::interrupted()),
    };
    if let Err(failure) = up {
        // It may have ended already; what is worth telling is why.
        let _ = server.stop().await;
        return Err(failure);
    }
    tell_service_manager(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        failure = server.ended() => return Err(failure),
        () = stop.told() => {}
    }
    tell_service_manager(&[sd_notify::NotifyState::Stopping]);
    server.stop().await
}

/// Where this is a service of systemd's, its server is not the process that systemd knows.
fn tell_service_manager(state: &[sd_notify::NotifyState<'_>]) {
    // Nobody is there to be told of that.
    let _ = sd_notify::notify(state);
}

/// Whether the server will be able to listen: asked before work that takes seconds.
async fn wait_for_port(listen: SocketAddr) -> Result<(), Failure> {
    let deadline = Instant::now() + MAX_PORT_WAIT;
    loop {
        let Err(error) = TcpListener::bind(listen) else {
            return Ok(());
        };
        if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let failure = Failure::new(
            Exit::Usage,
            format!("{listen} can't be listened on: {error}"),
        );
        return Err(match error.kind() {
            ErrorKind::AddrInUse => failure
                .next("stop what listens there, or choose another --port; 0 is any that is free"),
            ErrorKind::PermissionDenied => failure.next("choose a --port of 1024 or above"),
            _ => failure.next("choose a --listen of this machine's addresses"),
        });
    }
}

/// Token, keys and store, which take seconds where they are not there; their directory.
async fn make_state(
    site: &Site,
    listen: SocketAddr,
    stop: &mut Stop,
    format: Format,
) -> Result<PathBuf, Failure> {
    let (place, is_new) = site.place_of_state()?;
    site.configure(&place, listen)?;
    if is_new {
        format.note("making a token and its RSA-4096 master key, which takes some seconds");
    }
    child::run(site.command(&place, &["dev", "--make-token"])?, stop.told()).await?;
    if !is_new {
        return Ok(place);
    }
    site.keep_state(&place)?;
    let (state, _) = site.place_of_state()?;
    site.configure(&state, listen)?;
    Ok(state)
}

async fn create_keys(server: &mut Server, site: &Site, keys: &[String]) -> Result<Remote, Failure> {
    server.wait_until_listening().await?;
    let certificates = site.certificates();
    let client = certificates.client(CLIENT);
    let remote = Remote {
        addr: Some(on_this_machine(&server.address)),
        cacert: Some(certificates.ca()),
        client_cert: Some(client.certificate),
        client_key: Some(client.key),
        token_file: None,
        mount: MOUNT.to_owned(),
        timeout: 30,
    };
    let client = remote.client()?;
    server.wait_until_healthy(&client).await?;
    for name in keys {
        // One that exists is left as it is.
        let path = remote.path(&format!("keys/{name}"));
        client.call("POST", &path, Some(&json!({}))).await?;
    }
    Ok(remote)
}

/// The address of a listener, `https://…`, as one that can be connected to.
fn on_this_machine(address: &str) -> String {
    match address.trim_start_matches("https://").parse::<SocketAddr>() {
        Ok(mut listener) if listener.ip().is_unspecified() => {
            listener.set_ip(match listener {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
            format!("https://{listener}")
        }
        _ => address.to_owned(),
    }
}

/// By that name, if there is one.
fn as_told(mut remote: Remote, host: Option<&String>) -> Remote {
    if let Some(host) = host
        && let Some((_, port)) = remote.addr().rsplit_once(':')
    {
        let host = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.clone(),
        };
        remote.addr = Some(format!("https://{host}:{port}"));
    }
    remote
}

/// The first one and then the others, each once.
fn with(first: &str, others: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut all = vec![first.to_owned()];
    for other in others {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    all
}
