//! The `strongroom` program: parses the command line, calls one module.
//!
//! May know everything below it but PKCS#11 and sled. `tests/specification.rs` holds it to its
//! `Cargo.toml`.

mod cli;

/// Also the PKCS#11 module's, since its C symbols take the place of libc's: see
/// docs/code-structure.md. Its settings are in .cargo/config.toml.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
