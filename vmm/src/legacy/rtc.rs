//! The MC146818 clock at ports 0x70/0x71: time of day in UTC, BCD, 24 hours.
//!
//! Without one a stock kernel spends up to 26 s probing for it. Alarms and
//! periodic interrupts are not offered; writes of the time are ignored.

use crate::lifecycle::Lifecycle;
use crate::persist::State;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Index register; data is at the next port.
pub const INDEX_PORT: u16 = 0x70;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// 32.768 kHz time base, 1,024 Hz rate, no update in progress.
const STATUS_A_VALUE: u8 = 0x26;
/// 24-hour mode.
const STATUS_B_VALUE: u8 = 0x02;
/// "Valid RAM and time".
const STATUS_D_VALUE: u8 = 0x80;

/// The clock.
#[derive(Debug, Default)]
pub struct Rtc {
    index: AtomicU8,
}

impl Rtc {
    /// A write to the index (`offset` 0) or the data port (1).
    pub fn write(&self, offset: u16, value: u8) {
        if offset == 0 {
            self.index.store(value & 0x7f, Ordering::Relaxed);
        }
    }

    /// A read of either port.
    pub fn read(&self, offset: u16) -> u8 {
        let index = self.index.load(Ordering::Relaxed);
        if offset == 0 {
            return index;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |elapsed| elapsed.as_secs());
        register(index, now)
    }
}

/// The index register; the time is the host's.
const STATE_VERSION: u16 = 1;

impl Lifecycle for Rtc {
    fn save(&self) -> Result<State, String> {
        State::encode(STATE_VERSION, &self.index.load(Ordering::Relaxed))
    }

    fn load(&self, state: &State) -> Result<(), String> {
        self.write(0, state.decode(STATE_VERSION)?);
        Ok(())
    }
}

/// Register `index` at `now` seconds since 1970.
fn register(index: u8, now: u64) -> u8 {
    let date = civil(now / 86_400);
    let value = match index {
        0x00 => now % 60,
        0x02 => now / 60 % 60,
        0x04 => now / 3600 % 24,
        0x06 => (now / 86_400 + 4) % 7 + 1,
        0x07 => date.day,
        0x08 => date.month,
        0x09 => date.year % 100,
        CENTURY => date.year / 100,
        STATUS_A => return STATUS_A_VALUE,
        STATUS_B => return STATUS_B_VALUE,
        STATUS_D => return STATUS_D_VALUE,
        _ => return 0,
    };
    bcd(value)
}

struct Date {
    year: u64,
    month: u64,
    day: u64,
}

/// The Gregorian date of a day number since 1970-01-01, counted in 400-year eras
/// of years that begin in March.
fn civil(days: u64) -> Date {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    Date {
        year: year_of_era + era * 400 + u64::from(month <= 2),
        month,
        day,
    }
}

fn bcd(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(now: u64) -> String {
        [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00]
            .map(|index| format!("{:02x}", register(index, now)))
            .join(" ")
    }

    #[test]
    fn known_moments_read_back_in_bcd() {
        assert_eq!(clock(0), "19 70 01 01 00 00 00");
        assert_eq!(clock(951_827_696), "20 00 02 29 12 34 56");
        assert_eq!(clock(1_798_761_599), "20 26 12 31 23 59 59");
        assert_eq!(register(0x06, 0), 5, "1 January 1970 was a Thursday");
    }

    #[test]
    fn its_state_round_trips() {
        let rtc = Rtc::default();
        rtc.write(0, STATUS_B);
        crate::lifecycle::assert_round_trip(&rtc, &Rtc::default());
    }

    #[test]
    fn a_kernel_finds_a_working_clock() {
        let rtc = Rtc::default();
        rtc.write(0, STATUS_D);
        assert_eq!(rtc.read(1), STATUS_D_VALUE);
        rtc.write(0, 0x80 | STATUS_A);
        assert_eq!(rtc.read(1) & 0x80, 0, "no update in progress");
    }
}
