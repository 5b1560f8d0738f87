//! The few devices of a PC that stock kernels expect at fixed ports.
//!
//! ```text
//!  0x3f8–0x3ff serial.rs ─▶ ring.rs   0x70/0x71 rtc.rs   0x64 i8042 (reset only, power.rs)
//!  0x600–0x603 power.rs    0xcf8–0xcff ../pci/root.rs
//! ```

pub mod power;
pub mod ring;
pub mod rtc;
pub mod serial;
