//! The name of a file that is kept beside another one, because two have written it.

use std::time::{SystemTime, UNIX_EPOCH};

use super::path::NAME_MAX;

/// Bytes of a name that a conflict's name adds.
const SUFFIX_MAX: usize = 64;

/// The name under which a guest's version of `path` is kept: in the same directory, with the time (UTC) and a random part.
pub fn beside(path: &str) -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::hash::RandomState::new().build_hasher().finish() & 0xffff;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (dir, name) = path.rsplit_once('/').map_or((None, path), |(dir, name)| (Some(dir), name));
    let name = &name[..name.floor_char_boundary(NAME_MAX - SUFFIX_MAX)];
    let name = format!("{}.conflict-{}-{random:04x}", name.trim_end(), utc(now));
    dir.map_or(name.clone(), |dir| format!("{dir}/{name}"))
}

/// Seconds since the epoch as `20261121T145500Z` (ISO 8601, basic format).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, counted from 1 March of the year 0: leap days then come last in their years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_iso_8601_does() {
        assert_eq!(utc(0), "19700101T000000Z");
        assert_eq!(utc(951_782_399), "20000228T235959Z");
        assert_eq!(utc(951_782_400), "20000229T000000Z");
        assert_eq!(utc(1_795_272_900), "20261121T145500Z");
        assert_eq!(utc(4_107_542_400), "21000301T000000Z");
    }

    #[test]
    fn the_name_beside_is_a_name_in_the_same_directory() {
        let name = beside("a/b/report.txt");
        assert!(name.starts_with("a/b/report.txt.conflict-2"), "{name}");
        let long = beside(&"ü".repeat(127));
        assert!(long.len() <= NAME_MAX && long.contains(".conflict-"), "{long}");
        assert!(!beside("x").contains('/'));
    }
}
