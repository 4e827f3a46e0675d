//! Time zones by the names that the IANA database has for them.
//!
//! Invariant: the database is part of the binary, so that all nodes of one build give the same answer.

use std::sync::OnceLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};

/// The time zone called `name`, in the words of Go's `time.LoadLocation` if there is none.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    static BUNDLED: OnceLock<TimeZoneDatabase> = OnceLock::new();
    if name.is_empty() || name == "UTC" {
        return Ok(TimeZone::UTC);
    }
    let found = BUNDLED.get_or_init(TimeZoneDatabase::bundled).get(name).ok();
    // The database does not mind upper and lower case, which files do.
    found.filter(|zone| zone.iana_name() == Some(name)).ok_or_else(|| format!("unknown time zone {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_exact_names() {
        for known in ["", "UTC", "Etc/UTC", "Europe/Paris", "America/Argentina/Buenos_Aires", "Asia/Calcutta"] {
            assert!(zone(known).is_ok(), "{known}");
        }
        for unknown in ["europe/paris", "Europe", "Mars/Base", "../etc/passwd", "/etc/localtime", "EST8EST"] {
            assert_eq!(zone(unknown).unwrap_err(), format!("unknown time zone {unknown}"));
        }
    }
}
