//! Deterministic bytes for disks and HTTP bodies: any offset can be made or checked
//! without making what lies before it.

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): every bit of the input moves
/// half of the output's.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The eight bytes at word `index` of the stream that `seed` names.
fn word(seed: u64, index: u64) -> [u8; 8] {
    mix(mix(seed).wrapping_add(index)).to_le_bytes()
}

/// Writes the stream's bytes from `offset_bytes` (a multiple of 8) on.
pub fn fill(buffer: &mut [u8], seed: u64, offset_bytes: u64) {
    let mut index = offset_bytes / 8;
    for chunk in buffer.chunks_mut(8) {
        chunk.copy_from_slice(&word(seed, index)[..chunk.len()]);
        index = index.wrapping_add(1);
    }
}

/// The place, counted from the stream's start, of the first byte that differs.
#[must_use]
pub fn first_mismatch(buffer: &[u8], seed: u64, offset_bytes: u64) -> Option<u64> {
    let mut at = offset_bytes;
    for chunk in buffer.chunks(8) {
        let want = word(seed, at / 8);
        if chunk != &want[..chunk.len()] {
            let inside = chunk.iter().zip(want).position(|(a, b)| *a != b)?;
            return Some(at + inside as u64);
        }
        at = at.wrapping_add(chunk.len() as u64);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn any_piece_equals_the_same_piece_of_the_whole() {
        let mut whole = vec![0; 8192 + 5];
        fill(&mut whole, 7, 0);
        let mut piece = vec![0; 4096 + 5];
        fill(&mut piece, 7, 4096);
        assert_eq!(piece, whole[4096..]);
        assert_eq!(first_mismatch(&whole, 7, 0), None);
        assert_eq!(first_mismatch(&piece, 7, 4096), None);
    }

    #[test]
    fn every_flipped_byte_is_found_where_it_is() {
        let mut buffer = vec![0; 64];
        for at in 0..64 {
            fill(&mut buffer, 1, 512);
            buffer[at] ^= 0x10;
            assert_eq!(first_mismatch(&buffer, 1, 512), Some(512 + at as u64));
        }
    }

    #[test]
    fn seeds_and_zeros_differ() {
        let mut buffer = vec![0; 4096];
        assert_eq!(first_mismatch(&buffer, 0, 0), Some(0));
        fill(&mut buffer, 0, 0);
        assert_eq!(first_mismatch(&buffer, 1, 0), Some(0));
        assert!(first_mismatch(&buffer, 0, 8).is_some());
    }
}
