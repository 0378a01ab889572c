//! `strongroom ceremony …`: plan it, make participants' keys, sign, and years later verify and
//! print the record.

mod custodian;
mod later;
mod passphrase;
mod plan;
mod revise;
mod run;
mod sign;
mod verify;

use clap::{Args, Subcommand};

use super::exit::Failure;
use super::output::Format;

pub(super) use passphrase::{PinOptions, unlock_with};

#[derive(Args, Debug)]
pub(super) struct CeremonyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Write a plan from options and participants' .pub files
    #[command(
        after_help = "Example:\n  strongroom ceremony plan --out plan.toml --name vault-keys-1 --module /usr/lib/softhsm/libsofthsm2.so \\\n    \
        --threshold 3 --custodian a.key.pub --custodian b.key.pub --custodian c.key.pub --custodian d.key.pub --custodian e.key.pub \\\n    \
        --security-officer so.key.pub --auditor auditor.key.pub --listen 0.0.0.0:8200 --host keys.example\n\n\
        Read the plan together, then everyone in it signs it: strongroom ceremony sign plan.toml --key FILE"
    )]
    Plan(plan::PlanArgs),
    /// Make a participant's keys: for a custodian, a security officer or an auditor
    Custodian(custodian::CustodianArgs),
    /// Sign a plan with a participant's key
    #[command(
        after_help = "Example:\n  strongroom ceremony sign plan.toml --key alice.key\n\n\
        Appends a line to plan.toml.signatures. Compare the plan's SHA-256 that is shown with what the others see."
    )]
    Sign(sign::SignArgs),
    /// Carry a signed plan out, step by step, with everyone in the room
    #[command(
        after_help = "Example:\n  strongroom ceremony run plan.toml --dir /var/lib/strongroom-ceremony\n\n\
        After a power cut, or when it waits for something (exit code 10), run the same command again: it goes on where it stopped.\n\
        docs/ceremony.md is the script to read aloud, and lists the files of --answers."
    )]
    Run(run::RunArgs),
    /// The same on a throwaway SoftHSM2 token in DIR: REHEARSAL on every line, nothing counts
    #[command(
        after_help = "Example:\n  strongroom ceremony rehearse plan.toml --dir rehearsal\n\n\
        Nothing outside DIR is touched. A throwaway CA signs the TLS certificate."
    )]
    Rehearse(run::RunArgs),
    /// Write a plan with other people in it, that takes the place of one in force
    #[command(
        after_help = "Example:\n  strongroom ceremony revise plan.toml --out plan-2.toml --remove \"Bob Bell\" --add frank.key.pub\n\n\
        Everyone in the new plan signs it; then: strongroom ceremony replace-custodian plan-2.toml --after DIR --dir DIR2"
    )]
    Revise(revise::ReviseArgs),
    /// Share the same PINs again, among the custodians of a revised plan
    #[command(
        after_help = "Example:\n  strongroom ceremony replace-custodian plan-2.toml --after /var/lib/strongroom-ceremony --dir /var/lib/strongroom-ceremony-2\n\n\
        The PINs stay what they are: M old shares would still give them. Have the old shares destroyed."
    )]
    ReplaceCustodian(later::ReplaceCustodianArgs),
    /// Wrap the keys that a second token needs under a transport key that the custodians share;
    /// only where the plan chose it in their initial ceremony
    #[command(
        after_help = "Example:\n  strongroom ceremony backup --after /var/lib/strongroom-ceremony --dir /media/stick/backup-1\n\n\
        DIR/backup.jsonl and DIR/transport-shares/ are the backup. Back up the store too, and keep it apart."
    )]
    Backup(later::BackupArgs),
    /// Copy the keys to a second token of the same kind, with the same PINs and nothing left on a
    /// disk
    #[command(
        after_help = "Example:\n  strongroom ceremony add-token --after /var/lib/strongroom-ceremony --dir /var/lib/strongroom-ceremony-2\n\n\
        docs/ceremony.md says how the second token takes over when the first is lost."
    )]
    AddToken(later::LaterArgs),
    /// Bring a backup's keys into another token of the same kind, which takes the place of the one
    /// that is lost
    #[command(
        after_help = "Example:\n  strongroom ceremony restore /media/stick/backup-1 --after /media/stick/backup-1 --dir /var/lib/strongroom-ceremony-3\n\n\
        --after is the directory of the last ceremony, the backup's own or a later one. The newest copy of the store must be in its place."
    )]
    Restore(later::RestoreArgs),
    /// Put another master key in the place of the one in force, and move every key to it while the
    /// appliance serves
    #[command(
        after_help = "Example:\n  strongroom ceremony rotate-master --after /var/lib/strongroom-ceremony --dir /var/lib/strongroom-ceremony-4 \\\n    \
        --addr https://127.0.0.1:8200 --cacert ca.pem --client-cert operator.pem --client-key operator.key\n\n\
        Without --addr the appliance must be stopped. Ciphertexts stay as they are. A store from before it can't be used afterwards."
    )]
    RotateMaster(later::RotateMasterArgs),
    /// Destroy every object on the token, with evidence; nothing can be decrypted afterwards
    #[command(
        after_help = "Example:\n  strongroom ceremony destroy --after /var/lib/strongroom-ceremony --dir /var/lib/strongroom-ceremony-end\n\n\
        The appliance's name has to be typed (in a directory of answers: the file `appliance`)."
    )]
    Destroy(later::LaterArgs),
    /// Check a transcript, anywhere, without the HSM
    #[command(
        after_help = "Example:\n  strongroom ceremony verify transcript.jsonl --plan plan.toml --audit-key audit.pem --token-serial 0123abcd\n  \
        strongroom ceremony verify later/transcript.jsonl --previous later/chain\n\n\
        Exit code 8 if anything is wrong, or if it is a rehearsal and --rehearsal was not given. Without an anchor\n\
        (--plan, --audit-key, --token-serial) it shows only that the transcript is whole and signed by the people that its own plan names."
    )]
    Verify(verify::VerifyArgs),
    /// Print a transcript as one HTML page for the auditor's file
    #[command(
        after_help = "Example:\n  strongroom ceremony report transcript.jsonl --out report.html\n\n\
        As PDF: chromium --headless --no-pdf-header-footer --print-to-pdf=report.pdf report.html"
    )]
    Report(verify::ReportArgs),
}

pub(super) fn run(args: &CeremonyArgs, format: Format) -> Result<(), Failure> {
    match &args.action {
        Action::Plan(args) => plan::run(args, format),
        Action::Custodian(args) => custodian::run(args, format),
        Action::Sign(args) => sign::run(args, format),
        Action::Run(args) => run::run(args, format),
        Action::Rehearse(args) => run::rehearse(args, format),
        Action::Revise(args) => revise::run(args, format),
        Action::ReplaceCustodian(args) => later::replace_custodian(args, format),
        Action::Backup(args) => later::backup(args, format),
        Action::AddToken(args) => later::add_token(args, format),
        Action::Restore(args) => later::restore(args, format),
        Action::RotateMaster(args) => later::rotate_master(args, format),
        Action::Destroy(args) => later::destroy(args, format),
        Action::Verify(args) => verify::run(args, format),
        Action::Report(args) => verify::report(args, format),
    }
}
