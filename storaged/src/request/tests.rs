//! The parser against a naive reading of the same bytes.

use super::*;
use proptest::prelude::*;

/// Byte addresses of a part, one by one.
fn addresses(part: &[Descriptor]) -> Vec<u64> {
    part.iter()
        .flat_map(|d| (0..u64::from(d.len)).map(move |n| d.addr.wrapping_add(n)))
        .collect()
}

/// The naive reading: byte lists, no segments, no sums.
fn naive(chain: &[Descriptor], limits: &Limits, memory: &[u8]) -> Option<(Kind, u64, Vec<u64>)> {
    let readable: Vec<_> = chain.iter().take_while(|d| !d.writable).copied().collect();
    let writable: Vec<_> = chain[readable.len()..].to_vec();
    if writable.iter().any(|d| !d.writable) {
        return None;
    }
    let mut input = addresses(&writable);
    let status = input.pop()?;
    let output = addresses(&readable);
    let refuse = |status_code| Some((Kind::Refuse(status_code), status, vec![]));
    let read = |n: usize| -> Option<Vec<u8>> {
        let byte = |a: &u64| memory.get(usize::try_from(*a).ok()?).copied();
        output.get(..n)?.iter().map(byte).collect()
    };
    let Some(head) = read(16) else {
        return refuse(STATUS_IOERR);
    };
    let kind = u32::from_le_bytes(head[..4].try_into().unwrap());
    let sector = u128::from(u64::from_le_bytes(head[8..16].try_into().unwrap()));
    let fits = |bytes: u128| sector * 512 + bytes <= u128::from(limits.size_bytes);
    let data_out = output[16..].to_vec();
    match kind {
        0 if data_out.is_empty()
            && input.len().is_multiple_of(512)
            && fits(input.len() as u128) =>
        {
            Some((Kind::Read((sector * 512) as u64), status, input))
        }
        1 if input.is_empty()
            && !limits.read_only
            && data_out.len().is_multiple_of(512)
            && fits(data_out.len() as u128) =>
        {
            Some((Kind::Write((sector * 512) as u64), status, data_out))
        }
        0 | 1 => refuse(STATUS_IOERR),
        4 => Some((Kind::Flush, status, vec![])),
        8 if input.len() >= 20 => Some((Kind::GetId, status, input[..20].to_vec())),
        8 => refuse(STATUS_IOERR),
        11 | 13 if !limits.zeroes => refuse(STATUS_UNSUPP),
        11 | 13 if limits.read_only || data_out.len() != 16 => refuse(STATUS_IOERR),
        11 | 13 => {
            let Some(dwz) = read(32) else {
                return refuse(STATUS_IOERR);
            };
            let sector = u128::from(u64::from_le_bytes(dwz[16..24].try_into().unwrap()));
            let sectors = u32::from_le_bytes(dwz[24..28].try_into().unwrap());
            let flags = u32::from_le_bytes(dwz[28..].try_into().unwrap());
            let (offset, len) = (sector * 512, u128::from(sectors) * 512);
            if flags > 1 || (kind == 11 && flags == 1) {
                return refuse(STATUS_UNSUPP);
            }
            if offset + len > u128::from(limits.size_bytes) || sectors > 1 << 21 {
                return refuse(STATUS_IOERR);
            }
            let (offset, len) = (offset as u64, len as u64);
            let kind = match kind {
                11 => Kind::Discard { offset, len },
                _ => Kind::WriteZeroes {
                    offset,
                    len,
                    unmap: flags == 1,
                },
            };
            Some((kind, status, vec![]))
        }
        _ => refuse(STATUS_UNSUPP),
    }
}

fn chains() -> impl Strategy<Value = Vec<Descriptor>> {
    let len = prop_oneof![3 => 0u32..20, 3 => Just(16u32), 2 => Just(512), 1 => Just(1), 1 => 500u32..2000];
    let addr = prop_oneof![9 => 0u64..3000, 1 => 4000u64..4200];
    let one = (addr, len, any::<bool>()).prop_map(|(addr, len, writable)| Descriptor {
        addr,
        len,
        writable,
    });
    (prop::collection::vec(one, 0..6), any::<bool>()).prop_map(|(mut chain, sorted)| {
        if sorted {
            chain.sort_by_key(|d| d.writable);
        }
        chain
    })
}

proptest! {
    #[test]
    fn fuzz_parse_equals_the_naive_reading(
        chain in chains(),
        kind in prop_oneof![Just(0u32), Just(1), Just(4), Just(8), Just(11), Just(13), 0u32..20],
        sector in prop_oneof![0u64..40, any::<u64>()],
        dwz in (0u64..40, prop_oneof![0u32..40, any::<u32>()], 0u32..4),
        read_only: bool,
        zeroes: bool,
    ) {
        let mut memory = vec![0u8; 4096];
        let frame: Vec<u8> = [
            kind.to_le_bytes().to_vec(), vec![0; 4], sector.to_le_bytes().to_vec(),
            dwz.0.to_le_bytes().to_vec(), dwz.1.to_le_bytes().to_vec(), dwz.2.to_le_bytes().to_vec(),
        ].concat();
        // The frame lies wherever the chain begins to read.
        let readable: Vec<_> = chain.iter().take_while(|d| !d.writable).copied().collect();
        for (addr, byte) in addresses(&readable).into_iter().zip(frame) {
            if let Some(place) = memory.get_mut(addr as usize) {
                *place = byte;
            }
        }
        let limits = Limits { size_bytes: 16 * 1024, read_only, zeroes };
        let mut segments = Vec::new();
        let parsed = parse(&chain, &limits, &mut segments, |addr, into| {
            let from = usize::try_from(addr).ok().and_then(|a| memory.get(a..a.checked_add(into.len())?));
            from.map(|from| into.copy_from_slice(from)).is_some()
        });
        let got = parsed.ok().map(|p| {
            let data = segments.iter().flat_map(|s| (0..u64::from(s.len)).map(|n| s.addr + n)).collect();
            (p.kind, p.status, data)
        });
        prop_assert_eq!(got, naive(&chain, &limits, &memory));
    }
}
