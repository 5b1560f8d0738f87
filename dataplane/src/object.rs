//! The BPF object, embedded.

/// Copies the object to an alignment that an ELF reader may rely on.
#[cfg(has_bpf_object)]
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

/// The object file, or `None` if it was not there at build time.
#[cfg(has_bpf_object)]
pub(crate) fn bytes() -> Option<&'static [u8]> {
    static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("OCS_BPF_OBJECT")));
    Some(&OBJECT.0)
}

/// The object file, or `None` if it was not there at build time.
#[cfg(not(has_bpf_object))]
pub(crate) fn bytes() -> Option<&'static [u8]> {
    None
}
