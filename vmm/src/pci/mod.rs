//! PCI: one root bus, no bridges, one function per device.
//!
//! ```text
//!  vCPU ─ ECAM or 0xcf8/0xcfc ─▶ root.rs ─▶ Function::config_*   config.rs (256 bytes)
//!  vCPU ─ load/store in a BAR ─▶ root.rs ─▶ Function::bar_*      msix.rs   (vectors)
//! ```

pub mod config;
pub mod msix;
pub mod root;
