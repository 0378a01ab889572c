//! landlock: which files and ports the process can still reach. It needs no rights to give rights
//! up.

use std::env;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, make_bitflags,
    path_beneath_rules,
};
use strongroom_core::config::Hardening;

use super::Paths;

/// What is asked for; an older kernel gives what it has.
const NEWEST_ABI: ABI = ABI::V7;

/// Confines the calling thread and all that it starts. In which form, or why not.
pub(super) fn confine(options: &Hardening, paths: &Paths) -> Result<String, String> {
    let status = restrict(options, paths).map_err(|error| error.to_string())?;
    let version = match status.landlock {
        LandlockStatus::NotImplemented => return Err("the kernel has no landlock".to_owned()),
        LandlockStatus::NotEnabled => {
            return Err("the kernel has landlock, but it is turned off (lsm=)".to_owned());
        }
        LandlockStatus::Available { effective_abi, .. } => effective_abi as u8,
    };
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(format!("files, ports, signals; version {version}")),
        RulesetStatus::PartiallyEnforced => Ok(format!(
            "as far as this kernel can: version {version} of {}",
            NEWEST_ABI as u8
        )),
        RulesetStatus::NotEnforced => Err("the kernel did not enforce it".to_owned()),
    }
}

fn restrict(
    options: &Hardening,
    paths: &Paths,
) -> Result<landlock::RestrictionStatus, RulesetError> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = read
        | make_bitflags!(AccessFs::{WriteFile | Truncate | IoctlDev | MakeReg | MakeDir | RemoveFile | RemoveDir});
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST_ABI))?
        .handle_access(AccessNet::from_all(NEWEST_ABI))?
        .scope(scopes())?
        .create()?
        .add_rules(path_beneath_rules(&paths.read, read))?
        .add_rules(path_beneath_rules(&paths.write, write))?;
    for port in &options.hsm_connect {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    ruleset.restrict_self()
}

/// Signals, and sockets without a file, reach nobody outside; but a service manager in a container
/// may listen on such a socket.
fn scopes() -> BitFlags<Scope> {
    let manager = env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
    if manager.is_some_and(|path| path.to_string_lossy().starts_with('@')) {
        return Scope::Signal.into();
    }
    Scope::from_all(NEWEST_ABI)
}
