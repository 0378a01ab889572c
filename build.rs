//! How the program is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The relocations of a position-independent program in 30 KiB instead of 680, which the loader
    // reads and leaves resident. glibc 2.36.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
}
