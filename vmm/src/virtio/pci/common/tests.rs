use super::*;

const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | 1 << 5;

fn registers() -> CommonConfig {
    CommonConfig::new(&[256, 256], 3).unwrap()
}

fn accept(config: &mut CommonConfig, features: u64) {
    for select in 0..2u32 {
        config.write(DRIVER_FEATURE_SELECT, &select.to_le_bytes(), OFFERED);
        config.write(
            DRIVER_FEATURE,
            &half(features, select).to_le_bytes(),
            OFFERED,
        );
    }
}

fn read16(config: &CommonConfig, offset: u64) -> u16 {
    let mut data = [0; 2];
    config.read(offset, &mut data, OFFERED);
    u16::from_le_bytes(data)
}

#[test]
fn features_are_read_in_halves_and_only_offered_ones_accepted() {
    let mut config = registers();
    let mut word = [0; 4];
    config.write(DEVICE_FEATURE_SELECT, &1u32.to_le_bytes(), OFFERED);
    config.read(DEVICE_FEATURE, &mut word, OFFERED);
    assert_eq!(u32::from_le_bytes(word), 1);
    config.write(DEVICE_FEATURE_SELECT, &9u32.to_le_bytes(), OFFERED);
    config.read(DEVICE_FEATURE, &mut word, OFFERED);
    assert_eq!(word, [0; 4]);

    for (features, ok) in [
        (OFFERED, true),
        (F_VERSION_1, true),
        (1 << 5, false),
        (OFFERED | 1 << 33, false),
    ] {
        let mut config = registers();
        accept(&mut config, features);
        config.write(DEVICE_STATUS, &[0xb], OFFERED);
        let status = config.status.load(Ordering::SeqCst);
        assert_eq!(status & STATUS_FEATURES_OK != 0, ok, "{features:#x}");
        let action = config.write(DEVICE_STATUS, &[0xf & !8 | status & 8], OFFERED);
        assert_eq!(action == Action::Activate, ok, "{features:#x}");
    }
}

#[test]
fn features_and_queues_are_frozen_once_agreed() {
    let mut config = registers();
    accept(&mut config, OFFERED);
    config.write(DEVICE_STATUS, &[0xb], OFFERED);
    assert_eq!(config.write(DRIVER_FEATURE, &[0; 4], OFFERED), Action::Bad);
    config.write(DEVICE_STATUS, &[0xf], OFFERED);
    assert_eq!(config.write(QUEUE_SIZE, &[8, 0], OFFERED), Action::Bad);
    assert_eq!(config.write(DEVICE_STATUS, &[0xf], OFFERED), Action::None);
    assert_eq!(config.write(DEVICE_STATUS, &[0], OFFERED), Action::Reset);
}

#[test]
fn queue_registers_reject_what_the_specification_forbids() {
    let mut config = registers();
    for bad in [0u16, 3, 512, 0xffff] {
        assert_eq!(
            config.write(QUEUE_SIZE, &bad.to_le_bytes(), OFFERED),
            Action::Bad
        );
        assert_eq!(read16(&config, QUEUE_SIZE), 256);
    }
    config.write(QUEUE_SIZE, &64u16.to_le_bytes(), OFFERED);
    assert_eq!(read16(&config, QUEUE_SIZE), 64);
    config.write(QUEUE_VECTOR, &2u16.to_le_bytes(), OFFERED);
    assert_eq!(read16(&config, QUEUE_VECTOR), 2);
    config.write(QUEUE_VECTOR, &3u16.to_le_bytes(), OFFERED);
    assert_eq!(read16(&config, QUEUE_VECTOR), NO_VECTOR);
    config.write(QUEUE_SELECT, &7u16.to_le_bytes(), OFFERED);
    assert_eq!(read16(&config, QUEUE_SIZE), 0);
    assert_eq!(config.write(QUEUE_ENABLE, &[1, 0], OFFERED), Action::Bad);
}

#[test]
fn wide_accesses_split_and_odd_ones_do_nothing() {
    let mut config = registers();
    let address = 0x1_2345_6000u64;
    config.write(QUEUE_DESC_LOW, &address.to_le_bytes(), OFFERED);
    let mut wide = [0; 8];
    config.read(QUEUE_DESC_LOW, &mut wide, OFFERED);
    assert_eq!(u64::from_le_bytes(wide), address);
    assert_eq!(config.write(0x21, &[1, 2, 3, 4], OFFERED), Action::Bad);
    assert_eq!(config.write(0x38, &[1; 8], OFFERED), Action::Bad);
    assert_eq!(config.write(0, &[1; 3], OFFERED), Action::Bad);
}
