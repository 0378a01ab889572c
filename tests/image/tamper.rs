//! What was changed does not run, and the console says so.

use crate::machine::{Machine, Partition, built};

#[test]
#[ignore = "needs make image, and minutes"]
fn short_a_flipped_byte_in_the_root_stops_the_boot() {
    let Some(image) = built() else { return };
    let mut machine = Machine::new(&image);
    // In the superblock, which is read first.
    machine.flip(Partition::Root, 1024 + 16);
    machine.start();
    machine.wait_for(&["is corrupted"]);
    let console = machine.console();
    println!("{console}");
    assert!(!console.contains("health"), "{console}");
}
