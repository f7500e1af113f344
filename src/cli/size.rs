//! Sizes on the command line: a number of bytes, with an optional binary suffix.

/// Bytes of `text`: digits, then nothing or one of K, M, G, T, P (powers of 1024, either case, optionally with `iB`).
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("'{text}' does not start with a number of bytes"))?;
    let suffix = suffix.to_ascii_lowercase();
    let shift = match suffix.strip_suffix("ib").unwrap_or(&suffix) {
        "" if suffix.is_empty() => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(format!("unknown suffix in '{text}', expected: K, M, G, T, P")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_with_and_without_suffix() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("16M", 16 << 20),
            ("3k", 3072),
            ("2GiB", 2 << 30),
            ("1t", 1 << 40),
            ("1P", 1 << 50),
            ("1mib", 1 << 20),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1X", "1iB", "1MB", "99999999999999999999", "99999999T", "16384P", "1 M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
