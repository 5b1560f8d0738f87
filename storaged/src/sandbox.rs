//! What storaged gives up before it meets a guest: new privileges, core dumps, and
//! every file but its own folder and the images.
//!
//! Landlock does not reach connects to sockets by path; there the sockets' own
//! permissions decide.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::path::Path;

/// Enters the sandbox; for this thread and all that it starts. `control` is the
/// folder of the control socket, which is removed at the end.
pub fn enter(state: &Path, images: &Path, control: &Path) -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let abi = ABI::V5;
    let own = AccessFs::from_all(abi) & !AccessFs::Execute;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(state)?, own))?
        .add_rule(PathBeneath::new(
            PathFd::new(images)?,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .add_rule(PathBeneath::new(
            PathFd::new(control)?,
            AccessFs::RemoveFile,
        ))?
        .restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!("this kernel has no Landlock: the file system stays visible");
    }
    Ok(())
}
