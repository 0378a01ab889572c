//! Marks the module as one that `dlclose(3)` leaves in memory: a thread that hangs in it, on
//! command, would otherwise wake up in unmapped code.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
