//! Instants on the wire, and as RFC 3339 text in a [`super::Value`].

use super::shapes::Instant;
use time::OffsetDateTime;
use time::format_description::well_known::{Rfc2822, Rfc3339};

/// RFC 3339 text for what a request carries; nothing for what is no instant.
pub fn read(format: Instant, text: &str) -> Option<String> {
    let time = match format {
        // Kept as it came: it may be compared with what was answered.
        Instant::Iso8601 => {
            return OffsetDateTime::parse(text, &Rfc3339)
                .is_ok()
                .then(|| text.to_owned());
        }
        Instant::UnixSeconds => OffsetDateTime::from_unix_timestamp(text.parse().ok()?).ok()?,
        Instant::HttpDate => OffsetDateTime::parse(text, &Rfc2822).ok()?,
    };
    time.format(&Rfc3339).ok()
}

/// What an answer carries for RFC 3339 text; the text itself where it is no instant.
pub fn write(format: Instant, text: &str) -> String {
    let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) else {
        return text.to_owned();
    };
    match format {
        Instant::Iso8601 => text.to_owned(),
        Instant::UnixSeconds => time.unix_timestamp().to_string(),
        Instant::HttpDate => time
            .to_offset(time::UtcOffset::UTC)
            .format(&Rfc2822)
            .map_or_else(|_| text.to_owned(), |text| text.replace("+0000", "GMT")),
    }
}
