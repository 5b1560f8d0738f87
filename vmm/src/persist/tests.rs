use super::*;
use proptest::prelude::*;

fn two() -> Vec<u8> {
    let mut writer = Writer::default();
    for (name, version) in [("rtc", 1), ("cpu.0", 3)] {
        let state = State::encode(version, &(7u8, "x".repeat(300))).unwrap();
        writer.add(name, &state);
    }
    writer.finish()
}

#[test]
fn what_was_written_is_read() {
    let mut sections = Sections::parse(&two()).unwrap();
    let (number, text): (u8, String) = sections.decode("rtc", 1).unwrap();
    assert_eq!((number, text.len()), (7, 300));
    assert_eq!(
        sections
            .decode::<(u8, String)>("cpu.0", 2)
            .unwrap_err()
            .to_string(),
        "section cpu.0 of the state has version 3, and this VMM reads 2"
    );
    assert_eq!(
        sections.take("pci").unwrap_err().to_string(),
        "the state has no section pci: it is of another machine"
    );
    sections.finish().unwrap();
    let whole = Sections::parse(&two()).unwrap();
    assert_eq!(
        whole.finish().unwrap_err(),
        PersistError::Unknown("cpu.0".to_owned())
    );
}

#[test]
fn a_newer_format_is_refused_by_number() {
    let mut bytes = two();
    bytes[8] = 2;
    assert_eq!(
        Sections::parse(&bytes).unwrap_err().to_string(),
        "the state has format 2, and this VMM reads 1"
    );
    assert_eq!(Sections::parse(b"{}").unwrap_err(), PersistError::NotState);
}

#[test]
fn every_changed_bit_and_every_cut_is_noticed() {
    let good = two();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(Sections::parse(&bad).is_err(), "byte {at} bit {bit}");
        }
        assert!(Sections::parse(&good[..at]).is_err(), "cut at {at}");
    }
    let mut long = good;
    long.push(0);
    assert!(Sections::parse(&long).is_err());
}

#[test]
fn values_must_use_all_their_bytes() {
    let state = State::encode(1, &(1u8, 2u8)).unwrap();
    assert_eq!(state.decode::<u8>(1).unwrap_err(), "has 1 bytes too many");
    assert!(state.decode::<(u8, u8, u8)>(1).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_fail_otherwise(
        tail in proptest::collection::vec(any::<u8>(), 0..200),
        count in 0u32..4,
    ) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&checksum(&[&bytes]).to_le_bytes());
        bytes.extend_from_slice(&tail);
        let _ = Sections::parse(&bytes);
    }
}
