//! Ages, sizes and durations the way people say them; ages as `kubectl` prints them.

use flotilla_api::columns;
use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// How long ago an RFC 3339 time was: `5m3s`, `2d`; `-` if it is none.
pub fn age_of(rfc3339: &str, now: Timestamp) -> String {
    rfc3339.parse::<Timestamp>().map_or_else(|_| "-".into(), |then| age(now.as_second() - then.as_second()))
}

/// A span of seconds in at most two units, coarser the longer it is; clocks that disagree make no age negative.
pub fn age(seconds: i64) -> String {
    columns::duration(seconds.max(0))
}

/// A size in binary units: `312Mi`, `1.5Gi`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    if count < 1024 {
        return format!("{count}B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (tenths / 10, tenths % 10) {
        (whole @ 0..10, tenth @ 1..) => format!("{whole}.{tenth}{}", UNITS[unit]),
        (whole, _) => format!("{whole}{}", UNITS[unit]),
    }
}

/// Cores out of thousandths: `0.12`, `4`.
pub fn cores(millis: i64) -> String {
    if millis % 1000 == 0 {
        return (millis / 1000).to_string();
    }
    let text = format!("{:.2}", millis as f64 / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Seconds out of `90`, `30s`, `1h30m`, `7d`.
///
/// # Errors
/// If it is none of these, or beyond a hundred years.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a duration: write 30s, 15m, 1h30m or 7d");
    const MAX_SECONDS: u64 = 100 * YEAR as u64;
    let too_long = || format!("{text:?} is too long: at most {}d", MAX_SECONDS / DAY as u64);
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| if digits == 0 { bad() } else { too_long() })?;
        let mut chars = rest[digits..].chars();
        let unit_seconds = match chars.next() {
            None if digits == text.len() => 1,
            Some('s') => 1,
            Some('m') => MINUTE as u64,
            Some('h') => HOUR as u64,
            Some('d') => DAY as u64,
            _ => return Err(bad()),
        };
        total = number
            .checked_mul(unit_seconds)
            .and_then(|seconds| total.checked_add(seconds))
            .filter(|seconds| *seconds <= MAX_SECONDS)
            .ok_or_else(too_long)?;
        rest = chars.as_str();
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// For how long something is to be good, in seconds: nothing is made that is worth nothing.
///
/// # Errors
/// As [`parse_duration`], or if it is zero.
pub fn parse_lifetime(text: &str) -> Result<u64, String> {
    match parse_duration(text)? {
        0 => Err("must be longer than zero: what has ended already is of no use".into()),
        seconds => Ok(seconds),
    }
}

/// For clap: a duration in whole seconds that fits 32 bits.
///
/// # Errors
/// As [`parse_duration`].
pub fn duration_seconds(text: &str) -> Result<u32, String> {
    parse_duration(text)?.try_into().map_err(|_| format!("{text:?} is too long"))
}

/// Text with its control characters shown instead of obeyed.
pub fn plain(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_of_times_that_are_none() {
        let now: Timestamp = "2026-11-23T14:05:03Z".parse().unwrap();
        assert_eq!(age_of("2026-11-23T14:00:00Z", now), "5m3s");
        assert_eq!(age_of("2026-11-23T16:00:00+02:00", now), "5m3s");
        assert_eq!(age_of("2026-11-23T15:00:00Z", now), "0s");
        assert_eq!(age_of("", now), "-");
    }

    #[test]
    fn sizes_and_cores() {
        for (count, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1Ki"),
            (1536, "1.5Ki"),
            (312 << 20, "312Mi"),
            (3 << 29, "1.5Gi"),
            (1 << 40, "1Ti"),
            (1_048_575, "1023Ki"),
            (u64::MAX, "15Ei"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
        assert_eq!([cores(0), cores(4000), cores(120), cores(1500), cores(3)], ["0", "4", "0.12", "1.5", "0"]);
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90", 90), ("30s", 30), ("1h30m", 5_400), ("7d", 604_800), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(seconds), "{text}");
            assert_eq!(parse_lifetime(text).ok(), (seconds > 0).then_some(seconds), "{text}");
        }
        for bad in ["", "h", "1x", "1h30", "-1", "1.5h", "99999999999999999999d", "40000d"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
            assert!(parse_lifetime(bad).is_err(), "{bad}");
        }
        for long in ["99999999999999999999d", "40000d", "36500d1s"] {
            assert_eq!(parse_duration(long), Err(format!("{long:?} is too long: at most 36500d")));
        }
    }
}
