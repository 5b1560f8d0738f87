//! What the emulated host boots from.

use super::kernels::Kernel;
use super::tree::Tree;
use anyhow::Result;

/// What `ocs up` needs of a host that Debian's kernel does not have built in, and
/// what shares this machine's files with it.
pub const MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "overlay",
    "virtio_net",
    "kvm-amd",
    "tun",
    "veth",
    "vxlan",
    "loop",
    "ext4",
];

/// Its first process.
pub const INIT: &str = include_str!("l1-init.sh");

/// Packs the initramfs for `kernel`.
pub fn build(kernel: &Kernel) -> Result<Vec<u8>> {
    let tree = Tree::new(&["dev", "proc", "sys", "host", "memory", "new"])?;
    tree.modules(kernel, MODULES)?;
    tree.script("init", INIT)?;
    tree.archive()
}
