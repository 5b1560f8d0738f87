//! PCI: one root bus, no bridges, one function per device.
//!
//! ```text
//!  vCPU ─ ECAM or 0xcf8/0xcfc ─▶ root.rs ─▶ Function::config_*   config.rs (256 bytes)
//!  vCPU ─ load/store in a BAR ─▶ root.rs ─▶ Function::bar_*      msix.rs   (vectors)
//!  vCPU ─ ports 0x608–0x613 ───▶ hotplug.rs: what came, what shall go, what was let go
//! ```

pub mod config;
pub mod hotplug;
pub mod msix;
pub mod root;
