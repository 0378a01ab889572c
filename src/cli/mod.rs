//! The command line: what each command is called, and which module does it.

// The doc comments of arguments are help texts, where backticks would be noise.
#![allow(clippy::doc_markdown)]

mod appliance;
mod audit;
mod ceremony;
mod check;
mod crypt;
mod demo;
mod exit;
mod files;
mod generate;
mod import;
mod key;
mod output;
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
        strongroom init                  make the keys on your token\n  \
        strongroom serve                 run the appliance\n  \
        strongroom client seal NAME      do what a Vault that unseals does\n\n\
        Exit codes: 0 done, 1 failed, 2 usage, 3 configuration, 4 HSM, 5 store, 6 denied, 7 unavailable,\n  \
        8 audit log or transcript does not verify, 9 the HSM refused for good (wrong PIN, unacceptable key): don't restart,\n  \
        10 a ceremony waits for something: put it there and run it again"
)]
struct Cli {
    /// What is printed: text, or one JSON value (an error is one too, on standard error)
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
    /// Run the appliance until SIGTERM; SIGHUP reads TLS files, policy and tokens again
    #[command(
        after_help = "Examples:\n  strongroom serve --config /etc/strongroom/strongroom.toml\n  \
        strongroom serve --log-format json --log strongroom=debug"
    )]
    Serve(server::ServeArgs),
    /// Check configuration, policy, tokens and TLS files, without touching the token
    #[command(
        after_help = "Example:\n  strongroom check-config --config strongroom.toml && systemctl reload strongroom"
    )]
    CheckConfig(server::CheckConfigArgs),
    /// Look after the appliance: certificates, rotation, backups, audit log, disk, clock; exit code
    /// 1 if something is not well
    #[command(
        after_help = "Examples:\n  strongroom check\n  strongroom check --backups /var/backups/strongroom --backup-days 2\n\n\
        strongroom-check.timer runs it daily. While no server has the store open, the token is asked whether one would start with it, as `strongroom store status` does. With --cacert, --client-cert and --client-key it also asks the running server."
    )]
    Check(check::CheckArgs),
    /// Make the appliance's keys on an empty token, and an empty store
    #[command(
        after_help = "Example:\n  strongroom init --config strongroom.toml --memory-master\n\n\
        Takes some seconds: an RSA-4096 key is made in the token."
    )]
    Init(server::InitArgs),
    /// Show whether an appliance is healthy
    #[command(
        after_help = "Example:\n  strongroom status --addr https://keys.example:8200 --cacert ca.pem --client-cert me.pem --client-key me.key"
    )]
    Status(status::StatusArgs),
    /// Create, show, rotate, change, destroy, import keys
    Key(key::KeyArgs),
    /// Encrypt, decrypt, rewrap, get data keys, try the seal
    Client(crypt::ClientArgs),
    /// Verify or make the sealed store, or accept a restored backup
    Store(store::StoreArgs),
    /// Verify the audit log
    Audit(audit::AuditArgs),
    /// The key ceremony: plan it, make participants' keys, sign, rehearse, run, verify the record,
    /// print it
    Ceremony(ceremony::CeremonyArgs),
    /// What runs on the bootable image: its console, a ceremony by a medium, the minimum version
    Appliance(appliance::ApplianceArgs),
    /// Make tokens, for rules of the policy that ask for one
    Token(token::TokenArgs),
    /// See it all work: a throwaway token, a server, a seal, an unseal; nothing is left behind
    #[command(
        after_help = "Examples:\n  strongroom demo\n  strongroom demo --dir /tmp/strongroom --keep\n\n\
        Needs SoftHSM2. The seal is made by Vault's own seal client if STRONGROOM_SEAL_CLIENT names its executable."
    )]
    Demo(demo::DemoArgs),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  strongroom completions bash > /usr/share/bash-completion/completions/strongroom"
    )]
    Completions(generate::CompletionsArgs),
    /// Write manual pages into a folder
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
