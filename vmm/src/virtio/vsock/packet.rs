//! Packet headers (§5.10.6): pure functions over bytes.

/// The host's address.
pub const HOST_CID: u64 = 2;
/// Bytes of `struct virtio_vsock_hdr`.
pub const HEADER_BYTES: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const STREAM: u16 = 1;
/// The largest payload of one packet: what Linux sends at most.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub const NO_MORE_RECEIVED: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub const NO_MORE_SENT: u32 = 2;

/// `op` of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Opens a connection.
    Request = 1,
    /// Accepts it.
    Response = 2,
    /// Ends it, or says that there is none.
    Reset = 3,
    /// Will send or receive no more.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Says how much may be sent.
    CreditUpdate = 6,
    /// Asks for that.
    CreditRequest = 7,
}

impl Operation {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sender's address.
    pub source_cid: u64,
    /// Receiver's address.
    pub destination_cid: u64,
    /// Sender's port.
    pub source_port: u32,
    /// Receiver's port.
    pub destination_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Socket type: [`STREAM`] or nothing that is served.
    pub kind: u16,
    /// What it says; none where the number means nothing.
    pub operation: Option<Operation>,
    /// Of [`Operation::Shutdown`].
    pub flags: u32,
    /// The sender's receive buffer in bytes.
    pub buffer_bytes: u32,
    /// Bytes that it has taken out of that since the start, modulo 2³².
    pub forwarded: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
        let double = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Self {
            source_cid: double(0),
            destination_cid: double(8),
            source_port: word(16),
            destination_port: word(20),
            len: word(24),
            kind: half(28),
            operation: Operation::from_number(half(30)),
            flags: word(32),
            buffer_bytes: word(36),
            forwarded: word(40),
        }
    }

    /// Writes it.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let operation = self.operation.map_or(0, |operation| operation as u16);
        let mut at = 0;
        let mut put = |value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        for word in [self.source_port, self.destination_port, self.len] {
            put(&word.to_le_bytes());
        }
        put(&self.kind.to_le_bytes());
        put(&operation.to_le_bytes());
        for word in [self.flags, self.buffer_bytes, self.forwarded] {
            put(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_has_its_fields_where_the_specification_says() {
        let bytes: Vec<u8> = (0..44).collect();
        let header = Header::parse(&bytes.try_into().unwrap());
        assert_eq!(header.source_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.destination_port, 0x1716_1514);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.operation, None);
        assert_eq!(header.forwarded, 0x2b2a_2928);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Every header reads, and writes back to the same bytes but for an unknown operation.
        #[test]
        fn fuzz_headers(bytes in proptest::array::uniform32(any::<u8>()), rest in any::<[u8; 12]>()) {
            let mut all = [0; HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&rest);
            let header = Header::parse(&all);
            if header.operation.is_none() {
                all[30..32].fill(0);
            }
            prop_assert_eq!(header.to_bytes(), all);
        }
    }
}
