//! Sizes (`64MiB`) and times (`100ms`) as orders write them.

/// Reads `4096`, `4KiB`, `64MiB` or `1GiB`.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads `100ms` or `5s` as milliseconds.
#[must_use]
pub fn parse_millis(text: &str) -> Option<u32> {
    if let Some(number) = text.strip_suffix("ms") {
        number.parse().ok()
    } else {
        text.strip_suffix('s')?
            .parse::<u32>()
            .ok()?
            .checked_mul(1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("64MiB"), Some(64 << 20));
        assert_eq!(parse_bytes("4KiB"), Some(4096));
        assert_eq!(parse_bytes("512"), Some(512));
        assert_eq!(parse_bytes("1GiB"), Some(1 << 30));
        for bad in ["", "MiB", "-1", "1MB", "1.5KiB", "99999999999GiB", "1 KiB"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_millis("100ms"), Some(100));
        assert_eq!(parse_millis("2s"), Some(2000));
        for bad in ["", "s", "ms", "1m", "-1s", "4294968s", "1.5s"] {
            assert_eq!(parse_millis(bad), None, "{bad:?}");
        }
    }
}
