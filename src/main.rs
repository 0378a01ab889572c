//! The `strongroom` program: parses the command line, calls one module.

fn main() -> std::process::ExitCode {
    strongroom::cli::main()
}
