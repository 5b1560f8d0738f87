//! What targets share: a guest whose driver is the fuzzer.

pub mod guest;
