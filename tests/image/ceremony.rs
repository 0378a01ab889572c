//! First boot, a ceremony by a medium, unsealing, the plug pulled, unsealing again.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use strongroom_ceremony::{Plan, PlanSignature};
use strongroom_client::{Client, ClientOptions};

use crate::doors::words_of_the_firmware_start_nothing;
use crate::machine::{Image, Machine, Medium, built, patience, run};
use crate::rig::{People, Room, program_sha256};
use crate::support::{Pki, Who};

/// Addresses of a machine with a network of its own, as the certificate names them.
pub const DHCP: &str = "192.0.2.2";
pub const STATIC: &str = "192.0.2.77";

const KEY: &str = "vault-unseal";

const POLICY: &str = "[[rule]]\nidentities = [\"dns:operator.test\"]\nkeys = [\"*\"]\noperations = [\"*\", \"global\"]\n";

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn short_born_by_a_ceremony_it_unseals_also_after_the_plug_was_pulled_and_obeys_no_words_of_the_firmware()
 {
    let Some(image) = built() else { return };
    let Some(seal) = seal_client() else { return };
    let mut machine = Machine::new(&image);
    let begun = Instant::now();
    let room = born(&image, &mut machine).await;

    make_key(&machine, &room.pki).await;
    unseal(&machine, &room.pki, &seal, "check");
    println!(
        "first boot to first unseal, the ceremony and its CA between: {:?}",
        begun.elapsed()
    );

    // Written just now: the key must survive.
    machine.eject();
    let begun = Instant::now();
    machine.start();
    wait_until_healthy(&machine, &room.pki).await;
    unseal(&machine, &room.pki, &seal, "roundtrip");
    report(begun.elapsed(), machine.processor_time());
    let console = machine.console();
    assert!(!console.contains("FAILED"), "{console}");

    machine.stop();
    words_of_the_firmware_start_nothing(&mut machine);
}

/// The configuration is written before the end: what is there then is not an appliance yet.
#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn a_ceremony_without_its_end_is_gone_on_with_when_the_machine_starts_again() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    let room = room(&image);
    // Whoever signs last can't: the plan's signatures were made, the key is asked for at the end.
    let last = People::names().last().unwrap();
    let key = format!("keys/{last}.key");
    let waits = format!("the ceremony waits: next: bring {last}'s key");
    fs::write(
        room.answers().join("present"),
        People::names().collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    fs::remove_file(room.answers().join(&key)).unwrap();
    let medium = medium(&room);
    machine.insert(medium.path());
    machine.start();
    certify(&mut machine, &room, &medium);
    machine.wait_for(&[waits.as_str()]);
    // Pulled where it stands.
    machine.stop();

    machine.start();
    machine.wait_for(&[waits.as_str()]);
    let console = machine.console();
    assert!(
        console.contains("waiting for the key ceremony"),
        "{console}"
    );
    assert!(!console.contains("serving"), "{console}");
    machine.stop();

    medium.put(&People::all().file(last), &format!("answers/{key}"));
    machine.start();
    closed(&mut machine, &room, &medium).await;
    make_key(&machine, &room.pki).await;

    // And nothing is held a second time.
    machine.stop();
    machine.start();
    wait_until_healthy(&machine, &room.pki).await;
    assert!(
        !machine.console().contains("holding the ceremony"),
        "{}",
        machine.console()
    );
}

/// The image's program has no reason to lose its log: here another image, rightly signed, takes it
/// away at each start.
#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn a_lost_audit_log_stops_the_server_until_somebody_at_the_console_accepts_it() {
    let Some(image) = built() else { return };
    let Some(seal) = seal_client() else { return };
    let extra = tempfile::tempdir().unwrap();
    let folder = extra.path().join("usr/lib/tmpfiles.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(
        folder.join("lost.conf"),
        "r /var/lib/strongroom/audit.log\n",
    )
    .unwrap();
    let image = image.other(
        "lost-log",
        &[("STRONGROOM_EXTRA", extra.path().to_str().unwrap())],
    );
    let mut machine = Machine::new(&image);
    let room = born(&image, &mut machine).await;
    make_key(&machine, &room.pki).await;
    machine.eject();
    machine.start();
    machine.wait_for(&["to go on with the log as it is type accept and press Enter"]);
    let console = machine.console();
    assert!(
        console.contains("FAILED: the server ended with 8"),
        "{console}"
    );
    // Enter alone, which starts a ceremony where one is offered, is not enough.
    machine.type_line("");
    machine.type_line("yes");
    std::thread::sleep(Duration::from_secs(10));
    let console = machine.console();
    assert!(!console.contains("accepted: "), "{console}");
    machine.type_line("accept");
    machine.wait_for(&["the audit log goes on as it is; what was wrong with it is written there"]);
    println!("{}", machine.console());
    wait_until_healthy(&machine, &room.pki).await;
    unseal(&machine, &room.pki, &seal, "check");
}

/// A figure, not a promise of the test: how long it takes depends on what else the host does.
fn report(elapsed: Duration, processor: Duration) {
    let text = format!(
        "second boot, from QEMU's start to the first unseal: {:.1} s ({:.1} s of the host's processors)",
        elapsed.as_secs_f64(),
        processor.as_secs_f64()
    );
    println!("{text}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/image-figures");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("boot"), text + "\n").unwrap();
}

/// Boots it, and holds the ceremony by a medium.
pub async fn born(image: &Image, machine: &mut Machine) -> Room {
    born_with(image, machine, |_, _| {}).await
}

/// The same, with something more on the medium.
pub async fn born_with(
    image: &Image,
    machine: &mut Machine,
    more: impl FnOnce(&Room, &Medium),
) -> Room {
    let room = room(image);
    let medium = medium(&room);
    more(&room, &medium);
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&["waiting for the key ceremony"]);
    certify(machine, &room, &medium);
    closed(machine, &room, &medium).await;
    room
}

/// What the ceremony needs to be held by it alone, but the certificate.
fn medium(room: &Room) -> Medium {
    let medium = Medium::new(room.path().join("medium"));
    let policy = room.path().join("policy.toml");
    fs::write(&policy, POLICY).unwrap();
    for file in [room.plan_path(), signatures(room), policy] {
        medium.put(&file, "");
    }
    medium.put(&room.answers(), "");
    medium
}

fn certify(machine: &mut Machine, room: &Room, medium: &Medium) {
    machine.wait_for(&["the ceremony waits: certificate-request.pem"]);
    fs::create_dir_all(room.dir()).unwrap();
    let request = medium.get("certificate-request.pem").unwrap();
    fs::write(room.dir().join("certificate-request.pem"), request).unwrap();
    medium.put(&room.sign_certificate(), "answers/certificate.pem");
}

async fn closed(machine: &mut Machine, room: &Room, medium: &Medium) {
    machine.wait_for(&["its record is on the medium"]);
    wait_until_healthy(machine, &room.pki).await;
    let transcript = medium.get("record/transcript.jsonl").unwrap();
    assert!(String::from_utf8(transcript).unwrap().contains("\"seal\""));
}

/// The rig's room, with a plan for the image: its program, its paths.
fn room(image: &Image) -> Room {
    let room = Room::with_credential();
    let text = fs::read_to_string(room.plan_path()).unwrap();
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    let module = strongroom_softhsm::module_path().unwrap();
    let text = text
        .replace(program_sha256(), &image.program_sha256())
        .replace(&quoted(&module), "\"/usr/lib/softhsm/libsofthsm2.so\"")
        .replace(&quoted(&room.appliance()), "\"/etc/strongroom\"")
        .replace(&quoted(&room.state()), "\"/var/lib/strongroom\"")
        .replace("127.0.0.1:0", "0.0.0.0:8200")
        .replace(
            "\"127.0.0.1\"]",
            &format!("\"127.0.0.1\", {DHCP:?}, {STATIC:?}]"),
        );
    fs::write(room.plan_path(), text).unwrap();
    fs::remove_file(signatures(&room)).unwrap();
    let plan = Plan::load(&room.plan_path()).unwrap();
    for name in People::names() {
        PlanSignature::make(&plan, &People::all().key(name))
            .unwrap()
            .append(&room.plan_path())
            .unwrap();
    }
    room
}

fn signatures(room: &Room) -> PathBuf {
    let mut name = room.plan_path().into_os_string();
    name.push(".signatures");
    name.into()
}

/// The key that the seal client uses.
pub async fn make_key(machine: &Machine, pki: &Pki) {
    client(machine, pki)
        .request("POST", &format!("transit/keys/{KEY}"), Some(&json!({})))
        .await
        .unwrap();
}

fn client(machine: &Machine, pki: &Pki) -> Client {
    let options = ClientOptions::new(machine.url(), pki.ca())
        .identity(pki.certificate(Who::Operator), pki.key(Who::Operator));
    Client::new(&options).unwrap()
}

pub async fn wait_until_healthy(machine: &Machine, pki: &Pki) {
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < patience() {
        match client(machine, pki)
            .request("GET", "sys/health", None)
            .await
        {
            Ok(answer) if answer.status.is_success() => return,
            Ok(answer) => last = answer.status.to_string(),
            Err(error) => last = strongroom_core::causes::causes(&error),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    panic!("never healthy ({last}):\n{}", machine.console());
}

/// Vault's own seal client, through the forwarded port.
pub fn unseal(machine: &Machine, pki: &Pki, program: &Path, what: &str) {
    run(&mut seal_command(machine, pki, program, what));
}

/// The same as a filter: `keep` seals, `open` unseals.
pub fn seal(machine: &Machine, pki: &Pki, program: &Path, what: &str, input: &[u8]) -> Vec<u8> {
    let mut child = seal_command(machine, pki, program, what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn seal_command(machine: &Machine, pki: &Pki, program: &Path, what: &str) -> Command {
    let mut command = Command::new(program);
    command
        .arg(what)
        .env("STRONGROOM_ADDR", machine.url())
        .env("STRONGROOM_CA", pki.ca())
        .env("STRONGROOM_CERT", pki.certificate(Who::Operator))
        .env("STRONGROOM_KEY", pki.key(Who::Operator))
        .env("STRONGROOM_MOUNT", "transit")
        .env("STRONGROOM_KEY_NAME", KEY)
        .env_remove("STRONGROOM_TOKEN");
    command
}

pub fn seal_client() -> Option<PathBuf> {
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/build.sh"))
        .arg("seal")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.code() == Some(77) {
        crate::support::skip("the image unseals", "needs Go");
        return None;
    }
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    Some(PathBuf::from(
        said.trim().strip_prefix("seal").unwrap().trim_start(),
    ))
}
