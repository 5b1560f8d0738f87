//! Lets this host give guests' memory, which VMMs and storaged share, in pages of 2 MiB.
//!
//! A distribution's kernel keeps them from shared memory (`never`), and each page of 4 KiB that a
//! guest touches first then costs an exit: 26 times as many in a stock kernel's boot. `advise`
//! concerns memory alone whose owner asks for them, as VMMs do (Linux,
//! `Documentation/admin-guide/mm/transhuge.rst`). It stays until the host boots again: taken back
//! at Ctrl-C it would be taken from a second installation.

use std::path::Path;
use tracing::{info, warn};

/// The host's setting.
const SETTING: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Says `advise` where the host says `never`; all else is an operator's own choice.
pub fn allow_huge_pages() {
    match change(Path::new(SETTING)) {
        Ok(true) => info!("{SETTING} was never, and is advise until the next boot"),
        Ok(false) => {}
        // A kernel without huge pages, or a container: guests run all the same.
        Err(error) => warn!("guests' memory comes in pages of 4 KiB: {SETTING}: {error}"),
    }
}

fn change(setting: &Path) -> std::io::Result<bool> {
    // As in `always within_size advise [never] deny force`.
    let never = std::fs::read_to_string(setting)?.contains("[never]");
    if never {
        std::fs::write(setting, "advise")?;
    }
    Ok(never)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_alone_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let setting = dir.path().join("shmem_enabled");
        for (before, after) in [
            ("always within_size advise [never] deny force\n", "advise"),
            ("always within_size [advise] never deny force\n", ""),
            ("always within_size advise never [deny] force\n", ""),
        ] {
            std::fs::write(&setting, before).unwrap();
            assert_eq!(change(&setting).unwrap(), !after.is_empty());
            let now = std::fs::read_to_string(&setting).unwrap();
            assert_eq!(now, if after.is_empty() { before } else { after });
        }
        assert!(change(&dir.path().join("none")).is_err());
    }
}
