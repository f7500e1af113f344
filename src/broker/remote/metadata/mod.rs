//! What POSIX programs know of a file, as user metadata of an object: pairs of text that a store keeps beside the bytes.
//!
//! Written is the convention of s3fs, which the most other programs read: `mode` (decimal, with the file type), `uid`, `gid`,
//! `mtime`, `atime`, `ctime` (seconds, with nine digits of a second if there is a fraction) and `xattr` (percent-encoded
//! JSON of base64). Read are the conventions of other programs, too (`foreign`). Where they are at variance, the first one of
//! the list tells, field by field.
//!
//! Everything here is foreign text and may be hostile: decoding is total, and what makes no sense is as good as absent. What
//! nobody here understands stays where it is.

mod foreign;
mod numbers;
#[cfg(test)]
mod tests;
mod xattrs;

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::store::{Attributes, Kind};

pub(super) use self::foreign::Twins;

/// Keys of s3fs.
const MODE: &str = "mode";
const UID: &str = "uid";
const GID: &str = "gid";
const ATIME: &str = "atime";
const MTIME: &str = "mtime";
const CTIME: &str = "ctime";
const XATTR: &str = "xattr";

/// Room in an object's metadata that is not for extended attributes: the keys above with their longest values, and the marks
/// of [`Twins`].
pub(super) const ROOM_BESIDE_XATTRS: usize = 192;

/// The digest of the content that rclone leaves with objects in parts.
const RCLONE_DIGEST: &str = "md5chksum";

/// The pairs of one object. Keys are compared without regard to case, as in HTTP headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UserMetadata(BTreeMap<String, String>);

impl UserMetadata {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, value)| value.as_str())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives `key` this value, or none.
    fn set(&mut self, key: &str, value: Option<String>) {
        self.0.retain(|k, _| !k.eq_ignore_ascii_case(key));
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value);
        }
    }

    /// Bytes of names and values, by which stores limit them.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(key, value)| key.len() + value.len()).sum()
    }

    /// Bytes of the longest value.
    pub fn longest(&self) -> usize {
        self.0.values().map(String::len).max().unwrap_or(0)
    }

    pub fn into_pairs(self) -> impl Iterator<Item = (String, String)> {
        self.0.into_iter()
    }

    /// As HTTP headers can carry it, for pairs that came as JSON: values of visible ASCII, keys that are tokens. Keys
    /// that are none are left out.
    pub fn for_headers(self) -> UserMetadata {
        const VISIBLE: &AsciiSet = CONTROLS;
        let token = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.!#$&'*+^`|~".contains(&b));
        let fits = self.0.into_iter().filter(|(key, _)| !key.is_empty() && token(key));
        UserMetadata(fits.map(|(key, value)| (key, utf8_percent_encode(&value, VISIBLE).to_string())).collect())
    }

    /// On one line of visible ASCII, for [`UserMetadata::from_line`].
    pub fn to_line(&self) -> String {
        let coded = |text: &str| utf8_percent_encode(text, xattrs::CODED).to_string();
        let pairs: Vec<_> = self.0.iter().map(|(k, v)| format!("{}={}", coded(k), coded(v))).collect();
        pairs.join("&")
    }

    /// What [`UserMetadata::to_line`] made a line of.
    pub fn from_line(line: &str) -> UserMetadata {
        let decoded = |text| percent_decode_str(text).decode_utf8().ok().map(|t| t.into_owned());
        let pairs = line.split('&').filter_map(|pair| pair.split_once('='));
        UserMetadata(pairs.filter_map(|(k, v)| Some((decoded(k)?, decoded(v)?))).collect())
    }

    /// Without the digests of a content that is no more: rclone's, and the one among s3cmd's attributes.
    pub fn without_digests(mut self) -> UserMetadata {
        self.set(RCLONE_DIGEST, None);
        if let Some(attributes) = self.get(foreign::S3CMD).map(foreign::without_digest) {
            self.set(foreign::S3CMD, Some(attributes));
        }
        self
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for UserMetadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        UserMetadata(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// What `user`, of an object or marker of this kind and length, says.
pub(super) fn decode(user: &UserMetadata, kind: Kind, size: u64) -> Attributes {
    let told = foreign::told(user);
    Attributes {
        mode: told.mode(kind, size),
        uid: told.uid,
        gid: told.gid,
        atime_ns: told.atime,
        mtime_ns: told.mtime,
        ctime_ns: told.ctime,
        xattrs: Some(user.get(XATTR).map(xattrs::decode).unwrap_or_default()),
    }
}

/// `user`, changed so that it says `attributes` and nothing to the contrary.
pub(super) fn encode(mut user: UserMetadata, attributes: &Attributes, twins: Twins) -> UserMetadata {
    twins.apply(&mut user, attributes);
    user.set(MODE, attributes.mode.map(|mode| mode.to_string()));
    user.set(UID, attributes.uid.map(|uid| uid.to_string()));
    user.set(GID, attributes.gid.map(|gid| gid.to_string()));
    user.set(ATIME, attributes.atime_ns.map(numbers::seconds_text));
    user.set(MTIME, attributes.mtime_ns.map(numbers::seconds_text));
    user.set(CTIME, attributes.ctime_ns.map(numbers::seconds_text));
    if let Some(xattrs) = &attributes.xattrs {
        let value = xattrs::encode(user.get(XATTR), xattrs);
        user.set(XATTR, value);
    }
    user
}
