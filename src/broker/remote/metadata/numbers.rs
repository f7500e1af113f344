//! Numbers and times as text. Whatever is no number, or none that fits, is `None`.

use opendal::raw::Timestamp;

const SECOND: i64 = 1_000_000_000;

/// As C's strtoul with base 0 reads it: `0x` for hexadecimal, a leading zero for octal, decimal otherwise.
pub(super) fn any_base(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if text.starts_with('0') => octal(text),
        None => text.parse().ok(),
    }
}

pub(super) fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim(), 8).ok()
}

/// An owner or a group: all ones stand for "nobody in particular" in the kernel's interfaces, and own nothing.
pub(super) fn id(text: &str) -> Option<u32> {
    any_base(text).filter(|&id| id != u32::MAX)
}

/// Nanoseconds since the epoch from `sec` or `sec.fraction`, where the fraction counts forwards even before the epoch (as
/// s3fs has it).
pub(super) fn seconds(text: &str) -> Option<i64> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanoseconds = 0;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).map_or(0, |b| i64::from(b - b'0'));
        nanoseconds = nanoseconds * 10 + digit;
    }
    whole.parse::<i64>().ok()?.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// What [`seconds`] reads; without a fraction when it is none, for programs that know only whole seconds.
pub(super) fn seconds_text(ns: i64) -> String {
    match (ns.div_euclid(SECOND), ns.rem_euclid(SECOND)) {
        (whole, 0) => whole.to_string(),
        (whole, fraction) => format!("{whole}.{fraction:09}"),
    }
}

/// `sec#nsec`, as mc writes.
pub(super) fn seconds_and_nanoseconds(text: &str) -> Option<i64> {
    let (whole, nanoseconds) = text.trim().split_once('#').unwrap_or((text, "0"));
    let nanoseconds = nanoseconds.parse::<i64>().ok().filter(|n| (0..SECOND).contains(n))?;
    whole.parse::<i64>().ok()?.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// `1700000000123456789ns`, and milliseconds without the unit, as FSx for Lustre has it.
pub(super) fn with_unit(text: &str) -> Option<i64> {
    match text.trim().strip_suffix("ns") {
        Some(ns) => ns.parse().ok(),
        None => text.trim().parse::<i64>().ok()?.checked_mul(1_000_000),
    }
}

/// RFC 3339 with any number of digits.
pub(super) fn rfc3339(text: &str) -> Option<i64> {
    i64::try_from(text.trim().parse::<Timestamp>().ok()?.into_inner().as_nanosecond()).ok()
}

/// What [`rfc3339`] reads, in UTC.
pub(super) fn rfc3339_text(ns: i64) -> Option<String> {
    let whole = Timestamp::from_second(ns.div_euclid(SECOND)).ok()?.to_string();
    let at = whole.strip_suffix('Z')?;
    Some(match ns.rem_euclid(SECOND) {
        0 => whole,
        fraction => format!("{at}.{fraction:09}Z"),
    })
}

/// `2006-01-02 15:04:05 -0700`, as AzCopy writes for Azure Managed Lustre.
pub(super) fn spelt_out(text: &str) -> Option<i64> {
    let mut words = text.split_whitespace();
    let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
    let (hours, minutes) = zone.split_at_checked(3)?;
    rfc3339(&format!("{date}T{time}{hours}:{minutes}")).filter(|_| words.next().is_none())
}
