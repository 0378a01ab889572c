//! What was changed does not run, and the console says so.

use std::fs;
use std::process::Command;

use crate::machine::{Image, Machine, Partition, built, run};

/// What the initrd's own program prints last: the appliance is up.
const UP: &str = "strongroom: health";

#[test]
#[ignore = "needs make image, and minutes"]
fn short_a_flipped_byte_in_the_root_stops_the_boot() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    // In the superblock, which is read first.
    machine.flip(Partition::Root, 1024 + 16);
    machine.start();
    machine.wait_for(&["is corrupted"]);
    assert!(!machine.console().contains(UP), "{}", machine.console());
}

#[test]
#[ignore = "needs make image, and minutes"]
fn an_edited_command_line_stops_the_boot() {
    refused(|uki| {
        let at = find(uki, b" quiet loglevel=4 ");
        uki[at..at + 18].copy_from_slice(b" debug loglevel=7 ");
    });
}

#[test]
#[ignore = "needs make image, and minutes"]
fn an_unsigned_kernel_image_stops_the_boot() {
    refused(|uki| remove_signature(uki));
}

#[test]
#[ignore = "needs make image, and minutes"]
fn a_boot_loader_signed_by_others_stops_the_boot() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    // To a machine that trusts other keys the whole image is signed by others.
    machine.trust_others(&image);
    machine.start();
    machine.wait_for(&["Access Denied", "Security Violation"]);
    assert!(!machine.console().contains(UP), "{}", machine.console());
}

#[test]
#[ignore = "needs make image, and minutes"]
fn the_state_does_not_open_with_another_tpm() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    machine.start();
    machine.wait_for(&["waiting for the key ceremony"]);
    machine.stop();
    machine.new_tpm();
    machine.start();
    machine.wait_for(&["FAILED: the state partition does not open with this machine's TPM"]);
}

#[test]
#[ignore = "needs make image, and minutes"]
fn the_state_does_not_open_with_secure_boot_off() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    machine.start();
    machine.wait_for(&["waiting for the key ceremony"]);
    machine.stop();
    machine.secure_boot_off(&image);
    machine.start();
    machine.wait_for(&["FAILED: the state partition does not open with this machine's TPM"]);
}

pub fn remove_signature(uki: &mut [u8]) {
    // The certificate table, fifth data directory of a 64-bit image's optional header: nothing
    // there, nothing signed.
    let header = usize::try_from(u32::from_le_bytes(uki[0x3c..0x40].try_into().unwrap())).unwrap();
    let at = header + 24 + 112 + 4 * 8;
    assert_ne!(uki[at..at + 8], [0; 8], "there was no signature");
    uki[at..at + 8].fill(0);
}

/// Changes the kernel image on the boot partition; the boot must end there.
fn refused(change: impl FnOnce(&mut Vec<u8>)) {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    let mut uki = fs::read(image.uki()).unwrap();
    change(&mut uki);
    replace_kernel(&machine, &image, &uki);
    machine.start();
    machine.wait_for(&["Access denied", "Access Denied", "Security Violation"]);
    assert!(!machine.console().contains(UP), "{}", machine.console());
}

fn replace_kernel(machine: &Machine, image: &Image, uki: &[u8]) {
    let changed = tempfile::NamedTempFile::new().unwrap();
    fs::write(changed.path(), uki).unwrap();
    let name = image.uki();
    let name = name.file_name().unwrap().to_str().unwrap();
    run(Command::new("mcopy")
        .args(["-o", "-i", &machine.boot_partition()])
        .arg(changed.path())
        .arg(format!("::EFI/Linux/{name}")));
}

fn find(bytes: &[u8], text: &[u8]) -> usize {
    memchr::memmem::find(bytes, text).unwrap()
}
