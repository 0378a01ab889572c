//! The serving process's memory is searched for keys whose value the test knows: in `hsm` residency
//! they are not there, and the same search finds those in `memory` residency.
//!
//! SoftHSM runs inside the process that loads it, so here it sits in another one, behind
//! `p11-kit server` (`tests/p11kit`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod support;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aes_kw::KwpAes256;
use aes_kw::cipher::KeyInit as _;
use getrandom::SysRng;
use memchr::memmem::Finder;
use rsa::pkcs8::DecodePublicKey as _;
use rsa::{Oaep, PublicKey};
use serde_json::{Value, json};
use sha1::Sha1;
use strongroom_client::Client;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use support::{Appliance, Who, base64, decrypt, encrypt, expect, fault_module, skip};

const NAME: &str = "a_key_in_hsm_residency_is_nowhere_in_the_servers_memory";

/// Searches of the serving process under load.
const SEARCHES: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_hsm_residency_is_nowhere_in_the_servers_memory() {
    let tree = match p11kit_tree() {
        Ok(tree) => tree,
        Err(why) => return skip(NAME, &why),
    };
    let mut appliance = Appliance::builder()
        .memory_master()
        .env("PKCS11_FAULT_MODULE", tree.join("p11-kit-client.so"))
        // The module's libraries are in the tree, not in the system's directories.
        .section(
            "hardening",
            &format!("read = [{:?}]", tree.display().to_string()),
        )
        .start()
        .await;
    let (in_hsm, in_memory) = (random_key(), random_key());
    // SoftHSM in the server's own process: p11-kit's RPC refuses AES-KWP, by which keys are
    // imported.
    import(&appliance, "in-hsm", &in_hsm, "hsm").await;
    import(&appliance, "in-memory", &in_memory, "memory").await;
    let client = appliance.client(Who::Operator);
    let kept = encrypt(&client, "in-hsm", b"before").await;
    appliance.stop();

    let token = TokenProcess::start(&tree, &appliance.softhsm_conf());
    move_token(&mut appliance, &tree, &token);
    appliance.launch().await;
    let client = appliance.client(Who::Operator);
    let pid = appliance.pid();
    if let Err(why) = may_read(pid) {
        return skip(NAME, &why);
    }
    assert!(
        token.is_in_use(),
        "the server does not use the token through p11-kit"
    );
    assert!(
        !maps(pid).contains("libsofthsm"),
        "SoftHSM is loaded into the server"
    );

    // The first use unwraps the key.
    assert_eq!(decrypt(&client, "in-hsm", &kept).await, b"before");
    assert_eq!(
        find(pid, &in_hsm),
        Vec::<String>::new(),
        "right after the first use"
    );

    let load = Load::start(&appliance, &["in-hsm", "in-memory"]).await;
    let mut found_in_memory = 0;
    for search in 0..SEARCHES {
        let served = load.served();
        assert_eq!(
            find(pid, &in_hsm),
            Vec::<String>::new(),
            "search {search} under load"
        );
        found_in_memory += usize::from(!find(pid, &in_memory).is_empty());
        load.wait_beyond(served).await;
    }
    assert_eq!(
        found_in_memory, SEARCHES,
        "the search does not find what must be there: it proves nothing"
    );

    expect(&client, "GET", "transit/keys/in-hsm", Value::Null, 200).await;
    assert_eq!(
        find(pid, &in_hsm),
        Vec::<String>::new(),
        "after it was read"
    );
    expect(
        &client,
        "POST",
        "transit/keys/in-hsm/rotate",
        Value::Null,
        200,
    )
    .await;
    assert_eq!(decrypt(&client, "in-hsm", &kept).await, b"before");
    assert_eq!(find(pid, &in_hsm), Vec::<String>::new(), "after a rotation");
    load.finish().await;
    assert_eq!(
        find(pid, &random_key()),
        Vec::<String>::new(),
        "a key that was never made is found"
    );
}

/// A token of SoftHSM in a process of its own, served on a socket.
struct TokenProcess {
    server: Child,
    // The socket's directory: short, since a socket's path has at most 107 bytes.
    folder: TempDir,
}

impl TokenProcess {
    fn start(tree: &Path, softhsm_conf: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sr-p11-")
            .tempdir_in("/tmp")
            .unwrap();
        let mut server = Command::new(scripts().join("run-server.sh"))
            .arg(tree)
            .arg(folder.path().join("socket"))
            .env(strongroom_softhsm::CONF_VARIABLE, softhsm_conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !folder.path().join("socket").exists() {
            assert!(server.try_wait().unwrap().is_none(), "p11-kit server ended");
            assert!(Instant::now() < deadline, "p11-kit server made no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { server, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Whether a client is connected: each has a child of the server.
    fn is_in_use(&self) -> bool {
        let id = self.server.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        !children.trim().is_empty()
    }
}

impl Drop for TokenProcess {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Clients that keep keys in use, and know the plaintexts.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    async fn start(appliance: &Appliance, keys: &[&'static str]) -> Self {
        let load = Self {
            stop: Arc::default(),
            served: Arc::default(),
            clients: Vec::new(),
        };
        let clients = keys.iter().flat_map(|key| [*key, *key]).map(|key| {
            let (client, stop, served) = (
                appliance.client(Who::Operator),
                load.stop.clone(),
                load.served.clone(),
            );
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let ciphertext = encrypt(&client, key, b"load").await;
                    assert_eq!(decrypt(&client, key, &ciphertext).await, b"load");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let clients = clients.collect();
        let load = Self { clients, ..load };
        load.wait_beyond(20).await;
        load
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    async fn wait_beyond(&self, served: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.served() <= served {
            assert!(Instant::now() < deadline, "the load stands still");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/p11kit")
}

fn p11kit_tree() -> Result<PathBuf, String> {
    let made = Command::new(scripts().join("trixie-tree.sh"))
        .output()
        .map_err(|error| error.to_string())?;
    if made.status.success() {
        return Ok(String::from_utf8_lossy(&made.stdout).trim().into());
    }
    Err(format!(
        "no p11-kit 0.25 could be had: {}",
        String::from_utf8_lossy(&made.stderr).trim()
    ))
}

/// As TOML wants it: quoted by `{:?}` afterwards.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// From its next start the server reaches the token through p11-kit.
fn move_token(appliance: &mut Appliance, tree: &Path, token: &TokenProcess) {
    let config = fs::read_to_string(appliance.config()).unwrap();
    let module = format!(
        "module = {:?}",
        text(&strongroom_softhsm::module_path().unwrap())
    );
    assert!(config.contains(&module), "{config}");
    // Each C_GetFunctionList of p11-kit's client makes another connection, with sessions of its
    // own. The server asks twice; the module between asks once.
    let other = format!("module = {:?}", text(&fault_module()));
    fs::write(appliance.config(), config.replacen(&module, &other, 1)).unwrap();
    let script = scripts().join("run-client.sh");
    appliance.wrap([
        script.as_os_str(),
        tree.as_os_str(),
        token.socket().as_os_str(),
        "--".as_ref(),
    ]);
}

fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    getrandom::fill(&mut key).unwrap();
    key
}

/// BYOK, as Vault documents it.
async fn import(appliance: &Appliance, name: &str, key: &[u8; 32], residency: &str) {
    let client: Client = appliance.client(Who::Operator);
    let wrapping = expect(&client, "GET", "transit/wrapping_key", Value::Null, 200).await;
    let wrapping =
        PublicKey::from_public_key_pem(wrapping["data"]["public_key"].as_str().unwrap().trim())
            .unwrap();
    let ephemeral = random_key();
    let mut ciphertext = wrapping
        .encrypt(&mut SysRng, Oaep::<Sha1>::new(), &ephemeral)
        .unwrap();
    let mut buffer = [0; 40];
    ciphertext.extend_from_slice(
        KwpAes256::new(&ephemeral.into())
            .wrap_key(key, &mut buffer)
            .unwrap(),
    );
    let body = json!({
        "ciphertext": base64(&ciphertext),
        "hash_function": "SHA1",
        "type": "aes256-gcm96",
        "residency": residency,
        "allow_rotation": true,
    });
    // Vault answers 204 to an import.
    let answer = client
        .request("POST", &format!("transit/keys/{name}/import"), Some(&body))
        .await
        .unwrap();
    assert!(
        answer.status.is_success(),
        "{}: {}",
        answer.status,
        String::from_utf8_lossy(answer.bytes())
    );
}

fn maps(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
}

/// The server is not dumpable, so that only root may read its memory.
fn may_read(pid: u32) -> Result<(), String> {
    match File::open(format!("/proc/{pid}/mem")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(format!(
            "reading another process's memory: {error}; run it as root"
        )),
        Err(error) => panic!("/proc/{pid}/mem: {error}"),
        Ok(_) => Ok(()),
    }
}

/// Where the key is in a process's memory: whole, or either half of it.
///
/// Every mapping that has a page in memory or in swap is read, whatever its permissions are. An
/// AES-256 key schedule begins with the key itself, so an expanded key is found too.
fn find(pid: u32, key: &[u8; 32]) -> Vec<String> {
    const CHUNK: usize = 1 << 20;
    const OVERLAP: usize = 31;
    let needles = [
        ("the key", Finder::new(&key[..])),
        ("its first half", Finder::new(&key[..16])),
        ("its second half", Finder::new(&key[16..])),
    ];
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = Vec::new();
    let mut searched = 0;
    let mut buffer = vec![0_u8; CHUNK + OVERLAP];
    for (from, to, name) in mappings_in_use(pid) {
        let mut at = from;
        while at < to {
            let length = usize::try_from(to - at).unwrap().min(buffer.len());
            // A mapping may be gone by now, and a few of the kernel's own ([vvar]) can't be read.
            let Ok(length) = memory.read_at(&mut buffer[..length], at) else {
                break;
            };
            if length == 0 {
                break;
            }
            searched += length;
            for (what, needle) in &needles {
                if let Some(offset) = needle.find(&buffer[..length]) {
                    found.push(format!("{what} at {:#x} in {name}", at + offset as u64));
                }
            }
            at += length.min(CHUNK) as u64;
        }
    }
    assert!(
        searched > 4 << 20,
        "only {searched} bytes of the server could be read"
    );
    found
}

/// Mappings with at least one page of their own: from, to, name.
fn mappings_in_use(pid: u32) -> Vec<(u64, u64, String)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut mappings: Vec<(u64, u64, String)> = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let range = line
            .split_once(' ')
            .and_then(|(range, _)| range.split_once('-'));
        if let Some((from, to)) = range
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            current = Some((from, to, line.to_owned()));
        } else if (line.starts_with("Rss:") || line.starts_with("Swap:"))
            && !line.ends_with(" 0 kB")
        {
            mappings.extend(current.take());
        }
    }
    mappings
}
