//! What the server can't do any more: shown by the kernel of the running one, and by children that
//! take the same measures and then try.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, chown, geteuid, getppid};
use serde_json::{Value, json};
use strongroom_core::config::Hardening;
use strongroom_server::harden::{Filters, Group, Paths, process};
use support::{Appliance, Who, decrypt, encrypt, expect};

/// `/proc/PID/task/TID/status` of every thread, by name and number.
fn threads(pid: u32) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        // A thread may end meanwhile.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let fields: BTreeMap<String, String> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        threads.insert(format!("{} {}", fields["Name"], fields["Pid"]), fields);
    }
    threads
}

/// Everything that a server does which might need another system call.
async fn live(appliance: &Appliance) {
    appliance.create_key("app-k", json!({})).await;
    let client = appliance.client(Who::Operator);
    let sealed = encrypt(&client, "app-k", b"hello").await;
    expect(&client, "POST", "transit/keys/app-k/rotate", json!({}), 200).await;
    appliance.signal(Signal::SIGHUP);
    fs::rename(appliance.audit(), appliance.path().join("audit.log.1")).unwrap();
    appliance.signal(Signal::SIGUSR1);
    until("the new audit log", || appliance.audit().exists()).await;
    until("the reload", || appliance.has_read_again()).await;
    assert_eq!(decrypt(&client, "app-k", &sealed).await, b"hello");
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_of_the_running_server_is_confined_and_has_no_capability() {
    let mut appliance = Appliance::start().await;
    live(&appliance).await;
    let threads = threads(appliance.pid());
    for group in ["strongroom", "hsm-supervisor", "hsm-worker"] {
        assert!(
            threads.keys().any(|name| name.starts_with(group)),
            "{group}: {:?}",
            threads.keys()
        );
    }
    for (name, status) in &threads {
        assert_eq!(status["Seccomp"], "2", "{name}");
        // What all share, and the group's own.
        assert_eq!(status["Seccomp_filters"], "2", "{name}");
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set].trim_matches('0'), "", "{name}: {set}");
        }
        if geteuid().is_root() {
            assert_eq!(status["CapBnd"].trim_matches('0'), "", "{name}");
        }
    }
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_started_as_root_becomes_the_owner_of_its_store() {
    const OWNER: u32 = 4242;
    if !geteuid().is_root() {
        support::skip(
            "a_server_started_as_root_becomes_the_owner_of_its_store",
            "only root can become somebody else",
        );
        return;
    }
    let mut appliance = Appliance::builder().prepare();
    give(appliance.path(), OWNER);
    appliance.launch().await;
    live(&appliance).await;
    for (name, status) in threads(appliance.pid()) {
        for ids in ["Uid", "Gid"] {
            let ids: Vec<_> = status[ids].split_whitespace().collect();
            assert_eq!(ids, ["4242"; 4], "{name}");
        }
        assert_eq!(status["Groups"], "4242", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[set].trim_matches('0'), "", "{name}: {set}");
        }
    }
    // Not dumpable: what is its owner's in any other process is root's here.
    let memory = fs::metadata(format!("/proc/{}/mem", appliance.pid())).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&memory), 0);
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
}

fn give(path: &Path, owner: u32) {
    chown(path, Some(owner.into()), Some(owner.into())).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), owner);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_does_not_exist_stops_the_start_with_its_name() {
    if !geteuid().is_root() {
        support::skip(
            "a_user_that_does_not_exist_stops_the_start_with_its_name",
            "anybody but root stays who they are",
        );
        return;
    }
    let appliance = Appliance::builder()
        .section("hardening", "user = \"nobody-of-that-name\"")
        .prepare();
    let output = appliance.cli(["serve"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("nobody-of-that-name"), "{errors}");
}

/// OpenSSL opens its settings as a stream, and libc asks of each device whether it is a terminal.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_whose_openssl_has_a_device_for_settings_serves() {
    let mut appliance = Appliance::builder()
        .env("OPENSSL_CONF", "/dev/null")
        .start()
        .await;
    live(&appliance).await;
    assert_eq!(appliance.stop(), Some(0), "{}", appliance.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_done_is_said_and_ends_the_start_if_it_is_required() {
    let mut appliance = Appliance::builder()
        .section("hardening", "seccomp = \"log\"")
        .start()
        .await;
    let metrics = appliance
        .client(Who::Operator)
        .request("GET", "sys/metrics", None)
        .await
        .unwrap();
    let metrics = String::from_utf8_lossy(metrics.bytes()).into_owned();
    for line in [
        "strongroom_hardening{measure=\"seccomp\"} 0",
        "strongroom_hardening{measure=\"landlock\"} 1",
        "strongroom_hardening{measure=\"capabilities\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(appliance.log().contains("not hardened"));
    appliance.stop();

    let config = fs::read_to_string(appliance.config()).unwrap();
    let stricter = config.replace("seccomp = \"log\"", "seccomp = \"log\"\nrequire = true");
    fs::write(appliance.config(), stricter).unwrap();
    let output = appliance.cli(["serve"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{errors}");
    assert!(errors.contains("hardening.require"), "{errors}");
    assert!(errors.contains("seccomp: "), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_handed_over_is_served_and_none_is_bound() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = format!(
        "exec 3<&{}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"",
        listener.as_raw_fd()
    );
    let mut appliance = Appliance::builder().prepare();
    // An address that nobody here has: to bind it would fail.
    let config = fs::read_to_string(appliance.config()).unwrap();
    fs::write(
        appliance.config(),
        config.replace("127.0.0.1:0", "192.0.2.1:1"),
    )
    .unwrap();
    appliance.wrap(["bash", "-c", &script, "bash"]);
    appliance.launch().await;
    assert_eq!(appliance.address(), listener.local_addr().unwrap());
    expect(
        &appliance.client(Who::Operator),
        "GET",
        "sys/seal-status",
        Value::Null,
        200,
    )
    .await;
    assert!(appliance.log().contains("192.0.2.1:1"), "it says so");
}

/// Runs [`child`] in a process of its own, and tells how that ended.
fn in_a_child(what: &str, folder: &Path) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--test-threads=1", "child"])
        .env("STRONGROOM_TEST_TRY", what)
        .env("STRONGROOM_TEST_FOLDER", folder)
        .status()
        .unwrap()
}

#[test]
fn a_system_call_that_is_not_on_the_list_ends_the_process() {
    let folder = tempfile::tempdir().unwrap();
    for what in [
        "main makes a directory",
        "main makes a socket",
        "server starts a program",
        "server connects",
        "server makes a link",
        "server loads code",
        "hsm starts a program",
        "hsm connects",
        "hsm accepts",
    ] {
        let status = in_a_child(what, folder.path());
        assert_eq!(
            status.signal(),
            Some(Signal::SIGSYS as i32),
            "{what}: {status}"
        );
    }
    // The same means, where they are allowed: it is not the child that fails.
    for what in [
        "main waits",
        "server opens a file",
        "hsm opens a file",
        "hsm loads code",
        "main asks for a terminal",
        "hsm asks for a terminal",
    ] {
        let status = in_a_child(what, folder.path());
        assert!(status.success(), "{what}: {status}");
    }
}

#[test]
fn a_path_a_port_and_a_process_that_are_not_ours_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["read", "write", "other"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("file"), "text").unwrap();
    }
    let status = in_a_child("reaches out", folder.path());
    assert!(status.success(), "{status}");
    assert!(folder.path().join("write/new").exists());
    assert!(folder.path().join("other/file").exists());
}

#[test]
#[ignore = "run by the tests above, each time in a process of its own"]
fn child() {
    let folder = PathBuf::from(std::env::var_os("STRONGROOM_TEST_FOLDER").unwrap());
    let what = std::env::var("STRONGROOM_TEST_TRY").unwrap();
    if what == "reaches out" {
        return reach_out(&folder);
    }
    let (group, what) = what.split_once(' ').unwrap();
    let group = match group {
        "main" => Group::Main,
        "server" => Group::Server,
        _ => Group::Hsm,
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let device = File::open("/dev/null").unwrap();
    Filters::new(&Hardening::default())
        .unwrap()
        .confine(group)
        .unwrap();
    // What comes back from these was not forbidden; then the test above sees no signal.
    match what {
        "opens a file" => drop(File::open(&folder)),
        "makes a directory" => drop(fs::create_dir(folder.join("new"))),
        "makes a socket" | "connects" => drop(TcpStream::connect(address)),
        "starts a program" => drop(Command::new("/bin/true").status()),
        "makes a link" => drop(std::os::unix::fs::symlink("a", folder.join("b"))),
        "loads code" => drop(cryptoki::context::Pkcs11::new(
            strongroom_softhsm::module_path().unwrap(),
        )),
        "accepts" => drop(listener.accept()),
        "asks for a terminal" => assert!(!device.is_terminal()),
        "waits" => std::thread::sleep(Duration::from_millis(1)),
        other => panic!("{other}?"),
    }
}

fn reach_out(folder: &Path) {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let path = |name: &str| folder.join(name);
    let paths = Paths {
        state: path("write"),
        read: [path("read")].into(),
        write: [path("write")].into(),
    };
    // The child of a test has more than one thread: what follows concerns this one.
    let (report, _) = process(&Hardening::default(), &paths).unwrap();
    assert!(!report.missing().contains(&"landlock"), "{report:?}");

    fs::read(path("read/file")).unwrap();
    fs::write(path("write/new"), "text").unwrap();
    fs::rename(path("write/new"), path("write/newer")).unwrap();
    fs::rename(path("write/newer"), path("write/new")).unwrap();
    let refused = |what: &str, result: std::io::Result<()>| {
        let kind = result.err().map(|error| error.kind());
        assert_eq!(kind, Some(ErrorKind::PermissionDenied), "{what}");
    };
    refused("read another", fs::read(path("other/file")).map(drop));
    refused("list another", fs::read_dir(path("other")).map(drop));
    refused(
        "a way round",
        fs::read(path("read/../other/file")).map(drop),
    );
    refused("read the system's", fs::read("/etc/passwd").map(drop));
    refused(
        "write what is only read",
        fs::write(path("read/file"), "new"),
    );
    refused("make what is only read", fs::write(path("read/new"), "new"));
    refused("remove another", fs::remove_file(path("other/file")));
    refused("run", Command::new("/bin/true").status().map(drop));
    refused("connect", TcpStream::connect(address).map(drop));
    refused("listen", TcpListener::bind("127.0.0.1:0").map(drop));
    let parent: Pid = getppid();
    assert_eq!(kill(parent, None), Err(nix::Error::EPERM), "signal another");
    assert_eq!(kill(Pid::this(), None), Ok(()));
}
