//! Extended attributes as s3fs keeps them: one value, the percent-encoded JSON object of names to base64.
//!
//! Only `user.*` is shown. Names of other kinds (`system.posix_acl_access`) and values that are no base64 stay as they are.

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What is percent-encoded: all but RFC 3986's unreserved characters.
pub(super) const CODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Longest name, as everywhere in Linux.
const NAME_MAX: usize = 255;

fn parse(text: &str) -> BTreeMap<String, String> {
    let decoded = percent_decode_str(text).decode_utf8().ok();
    decoded.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default()
}

fn shown(name: &str, coded: &str) -> Option<Vec<u8>> {
    let fine = name.starts_with("user.") && name.len() > 5 && name.len() <= NAME_MAX && !name.contains('\0');
    fine.then(|| BASE64.decode(coded).ok()).flatten()
}

/// The attributes in `text` that can be shown.
pub(super) fn decode(text: &str) -> BTreeMap<String, Vec<u8>> {
    let shown = parse(text).into_iter().filter_map(|(name, coded)| {
        let value = shown(&name, &coded)?;
        Some((name, value))
    });
    shown.collect()
}

/// The text for `xattrs`, and for what `before` holds that is not shown; `None` for none at all.
pub(super) fn encode(before: Option<&str>, xattrs: &BTreeMap<String, Vec<u8>>) -> Option<String> {
    let mut all = before.map(parse).unwrap_or_default();
    all.retain(|name, coded| shown(name, coded).is_none());
    all.extend(xattrs.iter().map(|(name, value)| (name.clone(), BASE64.encode(value))));
    if all.is_empty() {
        return None;
    }
    // A map of strings always is JSON.
    serde_json::to_string(&all).ok().map(|json| utf8_percent_encode(&json, CODED).to_string())
}
