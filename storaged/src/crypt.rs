//! XTS-AES-256 (IEEE 1619) over logical blocks of 4,096 bytes.
//!
//! The tweak is the block's number. A block of ciphertext that is all zeros is a
//! hole of the sparse file and reads as zeros: real ciphertext is all zeros with
//! probability 2⁻³²⁷⁶⁸.
//!
//! AES is RustCrypto's (AES-NI). The mode is composed here, 256 cipher blocks at
//! once, because that keeps the AES units' pipelines full; `xts-mode`, which goes
//! block by block, is its reference in the tests.

use crate::locked::{Locked, wipe_stack};
use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use ocs_storaged_api::erasure::{HALF_BYTES, Trace};
use std::sync::Arc;
use zeroize::Zeroize;

/// Bytes of one logical block, the unit of the tweak.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of an XTS-AES-256 key: one AES-256 key for data, one for tweaks.
pub const KEY_BYTES: usize = 64;
/// Bytes of a [`Key::check`] value.
pub const CHECK_BYTES: usize = 16;

const LANES: usize = BLOCK_BYTES / 16;
type Lane = Array<u8, aes::cipher::consts::U16>;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No entropy.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// `RLIMIT_MEMLOCK` or the like.
    #[error("a key's memory cannot be locked: {0}")]
    Lock(#[from] std::io::Error),
}

struct Schedule {
    raw: [u8; KEY_BYTES],
    data: Aes256,
    tweak: Aes256,
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.raw.zeroize();
    }
}

/// A volume's key with its round keys, in locked memory; gone with its last clone.
#[derive(Clone)]
pub struct Key(Arc<Locked<Schedule>>);

impl Key {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let mut raw = Locked::new([0u8; KEY_BYTES])?;
        getrandom::fill(&mut *raw).map_err(KeyError::Random)?;
        Self::new(&raw)
    }

    /// The key with these bytes.
    pub fn new(raw: &[u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let key = Self::expand(raw);
        // Round keys are made on the stack, and moved from there.
        wipe_stack();
        key
    }

    #[inline(never)]
    fn expand(raw: &[u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let aes = |half: &[u8]| {
            let mut key = Array::default();
            key.copy_from_slice(half);
            let aes = Aes256::new(&key);
            key.as_mut_slice().zeroize();
            aes
        };
        Ok(Self(Arc::new(Locked::new(Schedule {
            raw: *raw,
            data: aes(&raw[..32]),
            tweak: aes(&raw[32..]),
        })?)))
    }

    /// The key itself, for the one page that outlives storaged.
    #[must_use]
    pub fn raw(&self) -> &[u8; KEY_BYTES] {
        &self.0.raw
    }

    /// What its halves can be told by once it is gone.
    #[must_use]
    pub fn traces(&self) -> Vec<Trace> {
        let traces = self.hashes();
        // A hash is made of a copy.
        wipe_stack();
        traces
    }

    #[inline(never)]
    fn hashes(&self) -> Vec<Trace> {
        let halves = self.0.raw.chunks_exact(HALF_BYTES);
        halves.map(Trace::of).collect()
    }

    /// A value that tells this key from others and says nothing else about it: a
    /// block that no tweak equals, encrypted under the tweak key.
    #[must_use]
    pub fn check(&self) -> [u8; CHECK_BYTES] {
        let mut lane: Lane = Array(*b"ocs key check \xff\xff");
        self.0.tweak.encrypt_block(&mut lane);
        lane.0
    }

    /// Encrypts whole blocks in place, the first of them being `block`.
    ///
    /// # Panics
    /// If `bytes` is no whole number of blocks.
    pub fn encrypt(&self, bytes: &mut [u8], block: u64) {
        self.each(bytes, block, |lanes| self.0.data.encrypt_blocks(lanes));
    }

    /// Decrypts whole blocks in place, leaving blocks of zeros (holes) as they are.
    ///
    /// # Panics
    /// If `bytes` is no whole number of blocks.
    pub fn decrypt(&self, bytes: &mut [u8], block: u64) {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        for (bytes, block) in bytes.chunks_exact_mut(BLOCK_BYTES).zip(block..) {
            if !is_zero(bytes) {
                self.each(bytes, block, |lanes| self.0.data.decrypt_blocks(lanes));
            }
        }
    }

    fn each(&self, bytes: &mut [u8], block: u64, crypt: impl Fn(&mut [Lane])) {
        assert!(bytes.len().is_multiple_of(BLOCK_BYTES));
        for (bytes, block) in bytes.chunks_exact_mut(BLOCK_BYTES).zip(block..) {
            let mut first: Lane = Array(u128::from(block).to_le_bytes());
            self.0.tweak.encrypt_block(&mut first);
            let mut tweak = u128::from_le_bytes(first.0);
            let mut tweaks = [0u128; LANES];
            for slot in &mut tweaks {
                *slot = tweak;
                tweak = double(tweak);
            }
            let (lanes, _) = Lane::slice_as_chunks_mut(bytes);
            mask(lanes, &tweaks);
            crypt(lanes);
            mask(lanes, &tweaks);
        }
    }
}

/// Multiplies by x in GF(2¹²⁸) with the polynomial x¹²⁸ + x⁷ + x² + x + 1.
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ ((tweak >> 127) * 0x87)
}

fn mask(lanes: &mut [Lane], tweaks: &[u128; LANES]) {
    for (lane, tweak) in lanes.iter_mut().zip(tweaks) {
        lane.0 = (u128::from_le_bytes(lane.0) ^ tweak).to_le_bytes();
    }
}

/// Are all bytes zero?
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // SAFETY: any bytes are valid u128s.
    let (head, body, tail) = unsafe { bytes.align_to::<u128>() };
    head.iter().chain(tail).all(|b| *b == 0) && body.iter().all(|w| *w == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reference(raw: &[u8; KEY_BYTES]) -> xts_mode::Xts128<Aes256> {
        let half = |h: &[u8]| Aes256::new_from_slice(h).unwrap();
        xts_mode::Xts128::new(half(&raw[..32]), half(&raw[32..]))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_mode_equals_xts_mode(seed: u64, block in 0u64..1 << 40, blocks in 1usize..4) {
            let mut raw = [0u8; KEY_BYTES];
            for (n, byte) in raw.iter_mut().enumerate() {
                *byte = (seed.rotate_left(n as u32) >> 3) as u8;
            }
            let plain: Vec<u8> = (0..blocks * BLOCK_BYTES).map(|n| (n as u64 ^ seed) as u8).collect();
            let mut theirs = plain.clone();
            reference(&raw).encrypt_area(&mut theirs, BLOCK_BYTES, u128::from(block), xts_mode::get_tweak_default);
            let key = Key::new(&raw).unwrap();
            let mut ours = plain.clone();
            key.encrypt(&mut ours, block);
            prop_assert_eq!(&ours, &theirs);
            key.decrypt(&mut ours, block);
            prop_assert_eq!(&ours, &plain);
        }
    }

    #[test]
    fn a_hole_reads_as_zeros_and_keys_differ() {
        let (a, b) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert_ne!(a.raw(), b.raw());
        assert_ne!(a.check(), b.check());
        assert_eq!(a.check(), Key::new(a.raw()).unwrap().check());
        let mut bytes = vec![0u8; 3 * BLOCK_BYTES];
        a.encrypt(&mut bytes[BLOCK_BYTES..2 * BLOCK_BYTES], 1);
        assert!(!is_zero(&bytes));
        a.decrypt(&mut bytes, 0);
        assert!(is_zero(&bytes));
    }
}
