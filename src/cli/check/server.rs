//! The running server: its health, and keys whose rotation is overdue.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use hyper::StatusCode;
use serde_json::Value;
use strongroom_client::Client;
use strongroom_core::tls::ClientCertificate;

use super::{Finding, date, now};
use crate::cli::exit::Failure;
use crate::cli::remote::{Remote, block_on};

/// The server looks once a minute; an hour later something is wrong.
const MAX_RELOAD_DELAY_SECONDS: i64 = 60 * 60;
/// The configuration of the units.
const UNIT_CONFIG: &str = "/etc/strongroom/strongroom.toml";

/// `days`: so long before its end a client's certificate should be renewed.
pub(super) fn look(remote: &Remote, days: u32) -> Vec<Finding> {
    if remote.cacert.is_none() {
        let why = "the server is not asked: it needs --cacert, --client-cert and --client-key";
        return vec![
            Finding::skipped("server", why),
            Finding::skipped("rotation", why),
            Finding::skipped("clients", why),
        ];
    }
    let found = remote.client().and_then(|client| {
        block_on(async {
            let health = health(&client).await;
            let rotation = rotation(&client, remote).await;
            Ok((health, rotation, clients(&client, days).await))
        })
    });
    match found {
        Err(failure) => vec![Finding::new("server", Err(failure.message().to_owned()))],
        Ok((health, rotation, clients)) => vec![
            Finding::new("server", health),
            Finding::new("rotation", rotation),
            clients,
        ],
    }
}

/// Where a client on this machine finds the server. The units' server has its socket from the
/// socket unit, whatever `listen` says.
pub(super) fn address(config: &Path, listen: SocketAddr) -> String {
    let unit = config == Path::new(UNIT_CONFIG);
    let listen = unit.then(socket_unit).flatten().unwrap_or(listen);
    url(listen)
}

/// An address that stands for all of the machine's is asked at the loopback one.
fn url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // Of both families, unless the machine has only the one.
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("https://{}", SocketAddr::new(ip, listen.port()))
}

/// Where the socket unit listens, if it does.
fn socket_unit() -> Option<SocketAddr> {
    let shown = Command::new("systemctl")
        .args(["show", "--property=ActiveState,Listen", "strongroom.socket"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    listens(&String::from_utf8_lossy(&shown.stdout))
}

/// `systemctl show`: `Listen=[::]:8200 (Stream)` and `ActiveState=active`.
fn listens(shown: &str) -> Option<SocketAddr> {
    let value = |name: &str| {
        let mut lines = shown.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let address = value("Listen")?.strip_suffix(" (Stream)")?;
    let active = value("ActiveState")? == "active";
    active.then(|| address.parse().ok()).flatten()
}

async fn health(client: &Client) -> Result<String, String> {
    let answer = client
        .request("GET", "sys/health", None)
        .await
        .map_err(|error| Failure::from(error).message().to_owned())?;
    if answer.status.is_success() {
        return Ok(format!("{} is healthy", client.address()));
    }
    let reason = answer
        .json()
        .ok()
        .and_then(|body| Some(body["reason"].as_str()?.to_owned()));
    Err(reason.unwrap_or_else(|| format!("it answers {}", answer.status)))
}

async fn rotation(client: &Client, remote: &Remote) -> Result<String, String> {
    let told = |error| Failure::from(error).message().to_owned();
    let answer = client
        .request("LIST", &remote.path("keys"), None)
        .await
        .map_err(told)?;
    // Vault answers an empty list with 404 and no error.
    let empty = answer.status == StatusCode::NOT_FOUND && answer.errors().is_empty();
    if !answer.status.is_success() && !empty {
        let errors = answer.errors().join("; ");
        return Err(format!(
            "the keys can't be listed: {} {errors}",
            answer.status
        ));
    }
    let list: Value = answer.json().unwrap_or_default();
    let names: Vec<&str> = list["data"]["keys"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut late = Vec::new();
    for name in &names {
        let path = remote.path(&format!("keys/{name}"));
        let key: Value = client.call("GET", &path, None).await.map_err(told)?;
        late.extend(overdue(&key["data"]).map(|since| format!("{name} since {}", date(since))));
    }
    if late.is_empty() {
        Ok(format!("none of {} keys is overdue", names.len()))
    } else {
        Err(format!(
            "overdue, the server's log says why: {}",
            late.join(", ")
        ))
    }
}

/// The certificates of the clients that were here since the server's start.
async fn clients(client: &Client, days: u32) -> Finding {
    let answer = match client.request("GET", "sys/lifecycle", None).await {
        Ok(answer) => answer,
        Err(error) => {
            let problem = Failure::from(error).message().to_owned();
            return Finding::new("clients", Err(problem));
        }
    };
    if answer.status == StatusCode::FORBIDDEN {
        return Finding::skipped("clients", "the policy must allow `metrics` for that");
    }
    if !answer.status.is_success() {
        return Finding::new("clients", Err(format!("it answers {}", answer.status)));
    }
    let body: Value = answer.json().unwrap_or_default();
    let seen: Vec<ClientCertificate> =
        serde_json::from_value(body["client_certificates"].clone()).unwrap_or_default();
    let late: Vec<String> = seen
        .iter()
        .filter(|one| now() >= one.renewal_due(days))
        .map(|one| format!("{} until {}", one.identity, date(one.not_after)))
        .collect();
    Finding::new(
        "clients",
        if late.is_empty() {
            Ok(format!(
                "none of {} certificates seen ends soon",
                seen.len()
            ))
        } else {
            Err(format!(
                "a client that is not renewed stays outside, and a Vault sealed: {}",
                late.join(", ")
            ))
        },
    )
}

/// When a key should have been rotated and was not.
fn overdue(key: &Value) -> Option<i64> {
    let period = key["auto_rotate_period"]
        .as_i64()
        .filter(|period| *period > 0)?;
    let latest = key["keys"]
        .as_object()?
        .values()
        .filter_map(Value::as_i64)
        .max()?;
    let due = latest.saturating_add(period);
    (now() > due.saturating_add(MAX_RELOAD_DELAY_SECONDS)).then_some(due)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_server_is_asked_where_it_listens() {
        for (listen, expected) in [
            ("0.0.0.0:8201", "https://127.0.0.1:8201"),
            ("[::]:8201", "https://[::1]:8201"),
            ("192.0.2.7:443", "https://192.0.2.7:443"),
            ("[2001:db8::7]:8200", "https://[2001:db8::7]:8200"),
        ] {
            assert_eq!(url(listen.parse().unwrap()), expected);
        }
        let active = "Listen=[::]:8202 (Stream)\nActiveState=active\n";
        assert_eq!(listens(active), "[::]:8202".parse().ok());
        for other in [
            "",
            "ActiveState=active\n",
            "Listen=[::]:8202 (Stream)\nActiveState=inactive\n",
            "Listen=/run/x (Stream)\nActiveState=active\n",
        ] {
            assert_eq!(listens(other), None, "{other}");
        }
        let by_hand = address(
            Path::new("/srv/strongroom.toml"),
            "0.0.0.0:1".parse().unwrap(),
        );
        assert_eq!(by_hand, "https://127.0.0.1:1");
    }

    #[test]
    fn a_key_is_overdue_an_hour_after_its_period() {
        let key = |age: i64, period: i64| json!({"auto_rotate_period": period, "keys": {"1": 0, "2": now() - age}});
        assert_eq!(overdue(&key(100_000, 0)), None);
        assert_eq!(overdue(&key(3_700, 3_600)), None);
        assert!(overdue(&key(7_300, 3_600)).is_some());
        assert_eq!(overdue(&json!({})), None);
    }
}
