//! The command line: what each command is called, and which module does it.

// The doc comments of arguments are help texts, where backticks would be noise.
#![allow(clippy::doc_markdown)]

mod appliance;
mod audit;
mod ceremony;
mod check;
mod child;
mod crypt;
mod demo;
mod dev;
mod exit;
mod files;
mod generate;
mod import;
mod key;
mod output;
mod pki;
mod remote;
mod rewrap;
mod seal;
mod server;
mod status;
mod store;
mod token;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use exit::{Exit, Failure};
use output::Format;

/// An HSM-backed key appliance: a stock Vault or OpenBao unseals against it
#[derive(Parser, Debug)]
#[command(
    name = "strongroom",
    version,
    max_term_width = 100,
    after_help = "Start here:\n  strongroom demo                  see it work, on a throwaway token\n  \
        strongroom dev                   an appliance for development and CI\n  \
        strongroom init                  make the keys on your token\n  \
        strongroom serve                 run the appliance\n  \
        strongroom client seal NAME      do what a Vault that unseals does\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 HSM, 5 store, 6 denied, 7 unavailable,\n  \
        8 audit log or transcript does not verify, 9 the HSM refused for good (wrong PIN, unacceptable key): don't restart,\n  \
        10 a ceremony waits for something: put it there and run it again"
)]
struct Cli {
    /// Set the output format: text, or one JSON value (errors too, on standard error)
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "text",
        hide_possible_values = true,
        value_name = "text|json"
    )]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the server in the foreground
    #[command(
        after_help = "Examples:\n  strongroom serve --config /etc/strongroom/strongroom.toml\n  \
        strongroom serve --log-format json --log strongroom=debug\n\n\
        SIGTERM stops it in order; SIGHUP reloads TLS files, policy and API tokens; SIGUSR1 continues the audit log in a new file."
    )]
    Serve(server::ServeArgs),
    /// Check configuration, policy, API tokens and TLS files, without using the HSM
    #[command(
        after_help = "Example:\n  strongroom check-config --config strongroom.toml && systemctl reload strongroom"
    )]
    CheckConfig(server::CheckConfigArgs),
    /// Check certificates, rotation, backups, audit log, disk and clock; exit with 1 if something
    /// needs attention
    #[command(
        after_help = "Examples:\n  strongroom check\n  strongroom check --backups /var/backups/strongroom --backup-days 2\n\n\
        strongroom-check.timer runs it daily. While no server has the store open, the token is asked whether one would start with it, as `strongroom store status` does. With --cacert, --client-cert and --client-key it also asks the running server."
    )]
    Check(check::CheckArgs),
    /// Create the appliance's keys on an empty PKCS#11 token, and an empty store
    #[command(
        after_help = "Example:\n  strongroom init --config strongroom.toml --memory-master\n\n\
        Takes some seconds: an RSA-4096 key is made in the token."
    )]
    Init(server::InitArgs),
    /// Show whether a running appliance is healthy, and if not, why
    #[command(
        after_help = "Example:\n  strongroom status --addr https://keys.example:8200 --cacert ca.pem --client-cert me.pem --client-key me.key"
    )]
    Status(status::StatusArgs),
    /// Manage keys: create, import, show, rotate, configure, destroy
    Key(key::KeyArgs),
    /// Use a key: encrypt, decrypt, rewrap, generate data keys, test the seal
    Client(crypt::ClientArgs),
    /// Manage the sealed store: verify, create, export, import, accept a restored backup
    Store(store::StoreArgs),
    /// Manage the audit log: verify it, show its end, accept a changed one
    Audit(audit::AuditArgs),
    /// Hold a key ceremony: plan, sign, rehearse, run, verify and report it
    Ceremony(ceremony::CeremonyArgs),
    /// Run the parts of the bootable image: its console, ceremony and updates
    Appliance(appliance::ApplianceArgs),
    /// Create API tokens, for policy rules that require one
    Token(token::TokenArgs),
    /// Seal and unseal on a throwaway SoftHSM2 token and server, leaving nothing behind
    #[command(
        after_help = "Examples:\n  strongroom demo\n  strongroom demo --dir /tmp/strongroom --keep\n\n\
        Needs SoftHSM2. The seal is made by Vault's own seal client if STRONGROOM_SEAL_CLIENT names its executable."
    )]
    Demo(demo::DemoArgs),
    /// Run an appliance for development and CI, on a SoftHSM2 token of its own
    #[command(
        after_help = "Examples:\n  strongroom dev\n  strongroom dev --dir dev --key tenant-a --client billing\n  \
        strongroom dev --port 0 --output json\n\n\
        NOT FOR PRODUCTION. Needs SoftHSM2 and no rights; anything but SoftHSM's tokens is refused. Makes token, keys, certificates, policy and configuration, serves in the foreground, \
        and prints what clients and a Vault need; the last line is `ready URL`, or the whole is one JSON document."
    )]
    Dev(dev::DevArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  strongroom completions bash > /usr/share/bash-completion/completions/strongroom"
    )]
    Completions(generate::CompletionsArgs),
    /// Write manual pages into a directory
    #[command(after_help = "Example:\n  strongroom man /usr/local/share/man/man1")]
    Man(generate::ManArgs),
}

/// Parses the arguments, runs the command, and gives the exit code.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json(&arguments) => {
            let text = error.render().to_string();
            return Failure::new(Exit::Usage, text.trim()).report(true);
        }
        Err(error) => error.exit(),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(cli.output == Format::Json),
    }
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let format = cli.output;
    match &cli.command {
        Command::Serve(args) => server::serve(args),
        Command::CheckConfig(args) => server::check_config(args, format),
        Command::Check(args) => check::run(args, format),
        Command::Init(args) => server::init(args, format),
        Command::Status(args) => status::run(args, format),
        Command::Key(args) => key::run(args, format),
        Command::Client(args) => crypt::run(args, format),
        Command::Store(args) => store::run(args, format),
        Command::Audit(args) => audit::run(args, format),
        Command::Ceremony(args) => ceremony::run(args, format),
        Command::Appliance(args) => appliance::run(args),
        Command::Token(args) => token::run(args, format),
        Command::Demo(args) => demo::run(args, format),
        Command::Dev(args) => dev::run(args, format),
        Command::Completions(args) => generate::completions(args, Cli::command()),
        Command::Man(args) => generate::man(args, Cli::command()),
    }
}

/// Whether `--output json` was asked for on a command line that does not parse.
fn wants_json(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == "--output=json")
        || arguments
            .windows(2)
            .any(|pair| matches!(pair, [name, value] if name == "--output" && value == "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }
}
