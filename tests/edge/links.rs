//! Links that certificate managers turn: the real, confined server follows each, twice.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use strongroom_client::Client;

use crate::support::{Appliance, Pki, Who, skip};
use crate::wire::{Wire, until};

/// How somebody lays files out, in the directory `site`: where the configuration finds them, and
/// how version `n` comes into force.
struct Layout {
    name: &'static str,
    /// The files' directory as the configuration has it.
    configured: &'static str,
    /// Where the files of a version are.
    version: fn(usize) -> String,
    /// Turns the links to that version.
    turn: fn(&Path, usize),
}

/// Every file that can be read again.
const FILES: [&str; 6] = [
    "server.pem",
    "server.key",
    "ca.pem",
    "crl.pem",
    "policy.toml",
    "tokens.toml",
];

const LAYOUTS: [Layout; 7] = [
    Layout {
        name: "a link to a directory beside",
        configured: "tls",
        version: |n| format!("certs/v{n}"),
        turn: |site, n| {
            for file in FILES {
                if n == 1 {
                    link(
                        &format!("../certs/current/{file}"),
                        &site.join("tls").join(file),
                    );
                }
            }
            link(&format!("v{n}"), &site.join("certs/current"));
        },
    },
    Layout {
        name: "certbot",
        configured: "live/host",
        version: |n| format!("archive/host/{n}"),
        turn: |site, n| {
            for file in FILES {
                // archive/host/server1.pem, server2.pem
                let numbered = format!("{n}-{file}");
                let archive = site.join("archive/host");
                fs::copy(
                    archive.join(n.to_string()).join(file),
                    archive.join(&numbered),
                )
                .unwrap();
                link(
                    &format!("../../archive/host/{numbered}"),
                    &site.join("live/host").join(file),
                );
            }
        },
    },
    Layout {
        name: "Kubernetes and cert-manager",
        configured: "mount",
        version: |n| format!("mount/..2026_0{n}"),
        turn: |site, n| {
            link(&format!("..2026_0{n}"), &site.join("mount/..data"));
            for file in FILES {
                if n == 1 {
                    link(&format!("..data/{file}"), &site.join("mount").join(file));
                }
            }
            if n > 2 {
                fs::remove_dir_all(site.join(format!("mount/..2026_0{}", n - 1))).unwrap();
            }
        },
    },
    Layout {
        name: "the whole directory is a link",
        configured: "etc/tls",
        version: |n| format!("releases/{n}"),
        turn: |site, n| {
            let target = site.join(format!("releases/{n}"));
            link(target.to_str().unwrap(), &site.join("etc/tls"));
        },
    },
    Layout {
        name: "a chain of links, absolute and relative, of which the last is turned",
        configured: "tls",
        version: |n| format!("disk/releases/{n}"),
        turn: |site, n| {
            if n == 1 {
                fs::create_dir_all(site.join("host")).unwrap();
                let current = site.join("host/current");
                for file in FILES {
                    let target = current.join(file);
                    link(target.to_str().unwrap(), &site.join("tls").join(file));
                }
                link("../disk/current", &current);
            }
            let release = site.join(format!("disk/releases/{n}"));
            link(release.to_str().unwrap(), &site.join("disk/current"));
        },
    },
    Layout {
        name: "each version is a link to a directory that appears later beside it",
        configured: "tls",
        version: |n| format!("store/hash-{n}/etc"),
        turn: |site, n| {
            link(
                &format!("hash-{n}"),
                &site.join(format!("store/version-{n}")),
            );
            link(&format!("version-{n}/etc"), &site.join("store/now"));
            for file in FILES {
                if n == 1 {
                    link(
                        &format!("../store/now/{file}"),
                        &site.join("tls").join(file),
                    );
                }
            }
            if n > 1 {
                fs::remove_dir_all(site.join(format!("store/hash-{}", n - 1))).unwrap();
            }
        },
    },
    Layout {
        name: "a SPIFFE helper writes aside and renames",
        configured: "svid",
        version: |n| format!("fetched/{n}"),
        turn: |site, n| {
            for file in FILES {
                let aside = site.join("svid").join(format!("{file}.tmp"));
                fs::copy(site.join(format!("fetched/{n}")).join(file), &aside).unwrap();
                fs::rename(aside, site.join("svid").join(file)).unwrap();
            }
        },
    },
];

/// In the place of what is there, in one step.
fn link(target: &str, at: &Path) {
    let aside = at.with_file_name("turned");
    symlink(target, &aside).unwrap();
    fs::rename(aside, at).unwrap();
}

/// What the stranger has to show in a version.
fn token(n: usize) -> String {
    format!("srt.{n}")
}

/// One version of all files: another server certificate, the same clients, another token; from the
/// second on [`Who::Vault`] is revoked, and the stranger has rights.
fn lay(layout: &Layout, site: &Path, pki: &Pki, n: usize) {
    let folder = site.join((layout.version)(n));
    fs::create_dir_all(&folder).unwrap();
    pki.renew_server();
    let mut revoked = vec![Who::Revoked];
    if n > 1 {
        revoked.push(Who::Vault);
    }
    pki.revoke(&revoked);
    for file in [
        pki.server_certificate(),
        pki.server_key(),
        pki.ca(),
        pki.crl(),
    ] {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let who = if n > 1 {
        "dns:stranger.test"
    } else {
        "dns:operator.test"
    };
    let policy = format!(
        "[[rule]]\nidentities=['{who}']\nkeys=['*']\noperations=['*','global']\nrequire_token=true\n"
    );
    fs::write(folder.join("policy.toml"), policy).unwrap();
    let sha256 = base16ct::lower::encode_string(&Sha256::digest(token(n)));
    let tokens = format!(
        "[[token]]\nid='version-{n}'\nsha256='{sha256}'\nidentity='dns:stranger.test'\ncreated=2026-01-31T12:00:00Z\n"
    );
    fs::write(folder.join("tokens.toml"), tokens).unwrap();
    (layout.turn)(site, n);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_confined_server_follows_links_that_are_turned_twice() {
    for layout in &LAYOUTS {
        let mut appliance = Appliance::builder().tokens("").prepare();
        let site = appliance.path().join("site");
        fs::create_dir_all(site.join(layout.configured).parent().unwrap()).unwrap();
        if layout.name != "the whole directory is a link" {
            fs::create_dir_all(site.join(layout.configured)).unwrap();
        }
        lay(layout, &site, &appliance.pki, 1);
        let folder = format!("site/{}", layout.configured);
        let config = fs::read_to_string(appliance.config())
            .unwrap()
            .replace("\"pki/", &format!("\"{folder}/"))
            .replace("\"policy.toml", &format!("\"{folder}/policy.toml"))
            .replace("\"tokens.toml", &format!("\"{folder}/tokens.toml"));
        fs::write(appliance.config(), config).unwrap();
        appliance.launch().await;
        let unconfined = |line: &str| line.contains("not hardened") && line.contains("landlock");
        if appliance.log().lines().any(unconfined) {
            skip(
                "the_confined_server_follows_links_that_are_turned_twice",
                "no landlock",
            );
            return;
        }
        for n in [2, 3] {
            lay(layout, &site, &appliance.pki, n);
            let new = CertificateDer::from_pem_file(appliance.pki.server_certificate()).unwrap();
            until(layout.name, async || {
                let wire = Wire::open(&appliance, Who::Stranger).await.unwrap();
                wire.stream.get_ref().1.peer_certificates().unwrap()[0] == new
            })
            .await;
            until(layout.name, async || {
                let mut options = appliance.client_options(Who::Stranger);
                let shown = appliance.path().join("shown");
                fs::write(&shown, token(n)).unwrap();
                options.token_file = Some(shown);
                let client = Client::new(&options).unwrap();
                let answer = client.request("LIST", "transit/keys", None).await.unwrap();
                answer.status == 404
            })
            .await;
            until(layout.name, async || {
                let vault = Wire::open(&appliance, Who::Vault).await;
                match vault {
                    Ok(mut wire) => wire.ask("GET", "/v1/sys/health", b"").await.is_err(),
                    Err(_) => true,
                }
            })
            .await;
            assert!(
                !appliance.log().contains("the old one stays in force"),
                "{}: {}",
                layout.name,
                appliance.log()
            );
        }
    }
}
