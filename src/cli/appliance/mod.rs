//! `strongroom appliance …`: what runs on the bootable image in place of a shell: its console, and
//! the ceremony and updates by a medium.

mod birth;
mod boot_partition;
mod ceremony;
mod console;
mod health;
mod kernel_image;
mod logs;
mod luks;
mod medium;
mod root_disk;
mod signature;
mod slots;
mod state;
mod status;
mod tpm;
mod update;
mod version;

use clap::{Args, Subcommand};

use super::exit::Failure;

#[derive(Args, Debug)]
pub(super) struct ApplianceArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show version, fingerprint, health and addresses whenever they change; offer the ceremony
    /// where none was held
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance console"
    )]
    Console,
    /// Hold the ceremony that a medium with the label STRONGROOM asks for, once it is there
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance ceremony"
    )]
    Ceremony,
    /// Open the state partition of the root's disk with this machine's TPM, if it is as this image
    /// makes it
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance open-state"
    )]
    OpenState,
    /// Fail unless the root's disk has no state partition yet
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance state-is-missing"
    )]
    StateIsMissing,
    /// Find the boot loader's partition on the root's disk, for efi.mount
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance boot-partition"
    )]
    BootPartition,
    /// Refuse to go on if this version is older than the state allows
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance check-version"
    )]
    CheckVersion,
    /// Let no version older than this one's minimum run on this state any more
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance raise-minimum"
    )]
    RaiseMinimum,
    /// Wait until the server serves; fail where it does not
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance healthy"
    )]
    Healthy,
    /// Install the version that a medium with the label STRONGROOM brings, once it is there, and
    /// start it
    #[command(after_help = "Example, as the image's units have it:\n  strongroom appliance update")]
    Update,
    /// Send the journal to the log server that the medium of the ceremony or a credential names
    #[command(
        after_help = "Example, as the image's units have it:\n  strongroom appliance forward-logs"
    )]
    ForwardLogs,
}

pub(super) fn run(args: &ApplianceArgs) -> Result<(), Failure> {
    match &args.action {
        Action::Console => console::run(),
        Action::Ceremony => ceremony::run(),
        Action::OpenState => state::open(),
        Action::StateIsMissing => state::is_missing(),
        Action::BootPartition => boot_partition::find(),
        Action::CheckVersion => version::check(),
        Action::RaiseMinimum => version::raise(),
        Action::Healthy => health::wait(),
        Action::Update => update::run(),
        Action::ForwardLogs => logs::forward(),
    }
}
