//! A second version by a medium: it comes up, falls back, or is refused.

use std::fs;
use std::path::Path;
use std::process::Command;

use uuid::Uuid;

use crate::arsenal::{ATTACKER, Attacker};
use crate::ceremony::{born, born_with, make_key, seal, seal_client, wait_until_healthy};
use crate::machine::{Image, Machine, Medium, built, run};
use crate::rig::Room;

/// Newer than any version that is built elsewhere.
const NEXT: &str = "1000.0.0";
const BROKEN: &str = "1000.1.0";

/// Three starts on trial, and that of the old version.
const FALL_BACK: u32 = 4;

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn an_update_comes_up_unseals_what_was_sealed_before_and_has_no_way_back() {
    let Some(image) = built() else { return };
    let Some(client) = seal_client() else { return };
    let next = next(&image);
    let mut machine = Machine::new(&image);
    let (room, kept) = in_use(&image, &mut machine, &client).await;

    let medium = with_update(room.path(), &next);
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&[&format!(
        "strongroom: version {NEXT} is installed; starting it"
    )]);
    machine.wait_for(&[&format!("strongroom: version     {NEXT}")]);
    machine.wait_for(&[&format!(
        "no version before {NEXT} runs on this state from now on"
    )]);
    still_opens(&machine, &room, &client, &kept).await;
    // With the medium still in it: it is not installed twice.
    machine.wait_for(&[&format!("the update on the medium is what runs: {NEXT}")]);
    machine.stop();
    let kernels = machine.kernels();
    assert!(
        kernels.contains(&format!("strongroom_{NEXT}.efi")),
        "not blessed: {kernels:?}"
    );
    assert_eq!(kernels.len(), 2, "{kernels:?}");

    // The old version is in the other slot and rightly signed. Whoever has the disk makes the boot
    // loader take it.
    run(Command::new("mdel")
        .args(["-i", &machine.boot_partition()])
        .arg(format!("::EFI/Linux/strongroom_{NEXT}.efi")));
    machine.eject();
    machine.start();
    machine.wait_for(&["FAILED: this version is older than the state allows"]);
    let console = machine.console();
    assert!(
        console.contains(&format!(
            "must not run on this state: its minimum is {NEXT}"
        )),
        "{console}"
    );
    assert!(!console.contains("serving ("), "{console}");
}

#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn an_update_whose_server_crashes_falls_back_with_the_state_intact() {
    let Some(image) = built() else { return };
    let Some(client) = seal_client() else { return };
    let broken = broken(&image);
    let mut machine = Machine::new(&image);
    let (room, kept) = in_use(&image, &mut machine, &client).await;

    let medium = with_update(room.path(), &broken);
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&[&format!("strongroom: version     {BROKEN}")]);
    machine.wait_through_starts(
        FALL_BACK,
        &[&format!(
            "strongroom: version {BROKEN} did not come up healthy and was given up"
        )],
    );
    still_opens(&machine, &room, &client, &kept).await;
    // The medium is still in it.
    machine.wait_for(&[&format!(
        "the update is refused: version {BROKEN} was tried here"
    )]);
    let console = machine.console();
    let starts = console
        .matches("this version is not healthy: the server crashes again and again")
        .count();
    assert_eq!(starts, 3, "{console}");
}

#[test]
#[ignore = "needs make image, and minutes"]
fn what_must_not_be_installed_is_refused_and_a_machine_without_keys_updates_too() {
    let Some(image) = built() else { return };
    let next = next(&image);
    let mut machine = Machine::new(&image);
    let folder = tempfile::tempdir().unwrap();

    // Not signed.
    let medium = with_update(folder.path(), &next);
    let uki = next.uki();
    let mut bytes = fs::read(&uki).unwrap();
    crate::tamper::remove_signature(&mut bytes);
    let unsigned = folder.path().join(uki.file_name().unwrap());
    fs::write(&unsigned, bytes).unwrap();
    medium.put(&unsigned, "update");
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&["the update is refused: the kernel image has no signature by a key of this machine's firmware"]);
    machine.wait_for(&["waiting for the key ceremony"]);
    machine.stop();
    assert_eq!(machine.kernels().len(), 1);

    // Older.
    let old = image.other("old", &[("STRONGROOM_VERSION", "0.0.1")]);
    let medium = with_update(folder.path(), &old);
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&["the update is refused: version 0.0.1 is not newer than"]);
    machine.stop();
    assert_eq!(machine.kernels().len(), 1);

    let medium = with_update(folder.path(), &next);
    machine.insert(medium.path());
    machine.start();
    machine.wait_for(&[&format!("strongroom: version     {NEXT}")]);
    machine.wait_for(&[&format!(
        "no version before {NEXT} runs on this state from now on"
    )]);
    machine.wait_for(&[&format!("the update on the medium is what runs: {NEXT}")]);
    machine.stop();
    let kernels = machine.kernels();
    assert!(
        kernels.contains(&format!("strongroom_{NEXT}.efi")),
        "not blessed: {kernels:?}"
    );
}

#[test]
#[ignore = "needs make image, and minutes"]
fn an_altered_root_panics_and_falls_back() {
    let Some(image) = built() else { return };
    let next = next(&image);
    let mut machine = Machine::new(&image);
    let folder = tempfile::tempdir().unwrap();
    let medium = with_update(folder.path(), &next);
    let [_, root, _] = &next.update_files()[..] else {
        panic!("three files")
    };
    let mut bytes = fs::read(root).unwrap();
    // In the superblock, which is read first.
    bytes[1024 + 16] ^= 1;
    let altered = folder.path().join(root.file_name().unwrap());
    fs::write(&altered, bytes).unwrap();
    medium.put(&altered, "update");
    machine.insert(medium.path());
    machine.start();
    machine.wait_through_starts(
        FALL_BACK,
        &[&format!(
            "strongroom: version {NEXT} did not come up healthy and was given up"
        )],
    );
    let console = machine.console();
    assert_eq!(console.matches("Kernel panic").count(), 3, "{console}");
    assert!(
        !console.contains(&format!("strongroom: version     {NEXT}")),
        "{console}"
    );
}

/// The ceremony and the update each mount the medium, again and again.
#[tokio::test]
#[ignore = "needs make image, and minutes"]
async fn an_update_on_the_ceremony_s_medium_is_installed_once_the_ceremony_is_closed() {
    let Some(image) = built() else { return };
    let next = next(&image);
    let mut machine = Machine::new(&image);
    let room = born_with(&image, &mut machine, |_, medium| put_update(medium, &next)).await;
    machine.wait_for(&[&format!(
        "strongroom: version {NEXT} is installed; starting it"
    )]);
    machine.wait_for(&[&format!("strongroom: version     {NEXT}")]);
    wait_until_healthy(&machine, &room.pki).await;
    let console = machine.console();
    assert!(!console.contains("can't be"), "{console}");
    let closed = console.find("the ceremony is closed").unwrap();
    let begun = console.find("installing version").unwrap();
    assert!(closed < begun, "{console}");
}

#[test]
#[ignore = "needs make image, and minutes"]
fn a_boot_partition_of_another_disk_gets_no_update_and_hinders_none() {
    let Some(image) = built() else { return };
    let Some(attacker) = Attacker::new() else {
        return;
    };
    let next = next(&image);
    let mut machine = Machine::new(&image);
    let folder = tempfile::tempdir().unwrap();
    let medium = with_update(folder.path(), &next);
    machine.insert(medium.path());

    // By what it holds, some version was given up, and what runs is on trial: nothing would be
    // installed.
    let uki = image.uki();
    let running = uki.file_name().unwrap().to_str().unwrap();
    let on_trial = format!("EFI/Linux/{}+3.efi", running.strip_suffix(".efi").unwrap());
    let given_up = format!("EFI/Linux/strongroom_{ATTACKER}+0-3.efi");
    let look_alike = attacker.boot_look_alike(
        machine.boot_identity(),
        &[(&uki, &on_trial), (&uki, &given_up)],
    );
    start_with(&mut machine, &look_alike);
    machine.wait_for(&[&format!("strongroom: version     {NEXT}")]);
    machine.wait_for(&[&format!("the update on the medium is what runs: {NEXT}")]);
    let console = machine.console();
    assert!(!console.contains(ATTACKER), "{console}");
    machine.stop();
    let kernels = machine.kernels();
    assert!(
        kernels.contains(&format!("strongroom_{NEXT}.efi")),
        "not blessed: {kernels:?}"
    );

    // Started from the other disk it can't end the trial there: the way back stays open.
    let mut machine = Machine::new(&next);
    let loader = folder.path().join("loader");
    run(Command::new("mcopy")
        .args(["-i", &machine.boot_partition()])
        .arg("::EFI/BOOT/BOOTX64.EFI")
        .arg(&loader));
    let next_uki = next.uki();
    let mut other = attacker.boot_look_alike(
        Uuid::new_v4(),
        &[
            (&loader, "EFI/BOOT/BOOTX64.EFI"),
            (&next_uki, &format!("EFI/Linux/strongroom_{NEXT}+3.efi")),
        ],
    );
    other.last_mut().unwrap().push_str(",bootindex=0");
    start_with(&mut machine, &other);
    machine.wait_for(&["the boot partition is not mounted: the machine was started from another disk than the root is on"]);
    machine.wait_for(&["waiting for the key ceremony"]);
    // Of a long line systemd shows both ends.
    machine.wait_for(&["Dependency failed for raise-minimu"]);
    let console = machine.console();
    assert!(!console.contains("no version before"), "{console}");
}

fn start_with(machine: &mut Machine, options: &[String]) {
    machine.start_with(&options.iter().map(String::as_str).collect::<Vec<_>>());
}

const SEALED: &[u8] = b"sealed before";

/// Holds the ceremony; what the seal client then made of [`SEALED`].
async fn in_use(image: &Image, machine: &mut Machine, client: &Path) -> (Room, Vec<u8>) {
    let room = born(image, machine).await;
    make_key(machine, &room.pki).await;
    let kept = seal(machine, &room.pki, client, "keep", SEALED);
    (room, kept)
}

async fn still_opens(machine: &Machine, room: &Room, client: &Path, kept: &[u8]) {
    wait_until_healthy(machine, &room.pki).await;
    assert_eq!(seal(machine, &room.pki, client, "open", kept), SEALED);
}

fn next(image: &Image) -> Image {
    image.other(
        "next",
        &[("STRONGROOM_VERSION", NEXT), ("STRONGROOM_MINIMUM", NEXT)],
    )
}

/// As `next`, but that the server gets no memory to start with.
fn broken(image: &Image) -> Image {
    let extra = tempfile::tempdir().unwrap();
    let folder = extra
        .path()
        .join("usr/lib/systemd/system/strongroom.service.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("crash.conf"), "[Service]\nLimitAS=16M\n").unwrap();
    image.other(
        "broken",
        &[
            ("STRONGROOM_VERSION", BROKEN),
            ("STRONGROOM_MINIMUM", BROKEN),
            ("STRONGROOM_EXTRA", extra.path().to_str().unwrap()),
        ],
    )
}

fn with_update(folder: &Path, image: &Image) -> Medium {
    let medium = Medium::new(folder.join("update-medium"));
    put_update(&medium, image);
    medium
}

fn put_update(medium: &Medium, image: &Image) {
    medium.folder("update");
    for file in image.update_files() {
        medium.put(&file, "update");
    }
}
