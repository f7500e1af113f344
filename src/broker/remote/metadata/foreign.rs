//! The conventions of other programs: what each tells, and how what they left is kept from contradicting ours.
//!
//! | who | keys |
//! |---|---|
//! | s3fs, geesefs, rclone | `mode` (base 0, so that rclone's octal is read, too), `uid`, `gid`, `mtime` `atime` `ctime` (seconds with fraction, or RFC 3339) |
//! | FSx for Lustre, DataSync | `file-permissions` (octal), `file-owner`, `file-group`, `file-mtime` `file-atime` (`…ns`, or ms) |
//! | Google's tools, gcsfuse | `goog-reserved-posix-{uid,gid,mode}` (mode octal), `goog-reserved-file-{mtime,atime}` (seconds), `gcsfuse_mtime` (RFC 3339), `goog-reserved-file-is-symlink` |
//! | MinIO's mc | `mc-attrs`: `mode:33188/uid:0/mtime:SEC#NSEC/…` |
//! | s3cmd | `s3cmd-attrs`: the same with plain seconds |
//! | AzCopy, blobfuse2 | `permissions`, `posix_owner`, `posix_group`, `modtime` `posix_atime` `posix_ctime` (ns), `is_symlink` `is_fifo` `is_socket` |
//! | AzCopy for Lustre, s3sync | `permissions`, `owner`, `group`, `modtime` spelt out |
//!
//! gcsfuse before 3.9 and geesefs keep a link's target in metadata and no content; such a link is shown as the empty file
//! that it is to everybody else.

use super::numbers::{self, any_base, id, octal, rfc3339, seconds, with_unit};
use super::{ATIME, CTIME, GID, MODE, MTIME, UID, UserMetadata};
use crate::store::{Attributes, Kind};

pub(super) const S3CMD: &str = "s3cmd-attrs";
const MC: &str = "mc-attrs";
const GOOGLE_LINK: &str = "goog-reserved-file-is-symlink";
const AZURE_LINK: &str = "is_symlink";
const AZURE_FIFO: &str = "is_fifo";
const AZURE_SOCKET: &str = "is_socket";

/// A key beside s3fs's; whether a value of it is understood; and how it is brought up to date, or `None` where it is taken
/// away instead.
type Key = (&'static str, fn(&str) -> bool, Option<Renew>);
type Renew = fn(&Attributes) -> Option<String>;

const KEYS: &[Key] = &[
    ("file-permissions", |v| octal(v).is_some(), Some(|a| a.mode.map(|m| format!("0{m:o}")))),
    ("file-owner", |v| id(v).is_some(), Some(|a| a.uid.map(|n| n.to_string()))),
    ("file-group", |v| id(v).is_some(), Some(|a| a.gid.map(|n| n.to_string()))),
    ("file-mtime", |v| with_unit(v).is_some(), Some(|a| a.mtime_ns.map(|t| format!("{t}ns")))),
    ("file-atime", |v| with_unit(v).is_some(), Some(|a| a.atime_ns.map(|t| format!("{t}ns")))),
    ("goog-reserved-posix-mode", |v| octal(v).is_some(), Some(|a| a.mode.map(|m| format!("{:o}", m & 0o7777)))),
    ("goog-reserved-posix-uid", |v| id(v).is_some(), Some(|a| a.uid.map(|n| n.to_string()))),
    ("goog-reserved-posix-gid", |v| id(v).is_some(), Some(|a| a.gid.map(|n| n.to_string()))),
    ("goog-reserved-file-mtime", |v| seconds(v).is_some(), Some(|a| a.mtime_ns.map(whole_seconds))),
    ("goog-reserved-file-atime", |v| seconds(v).is_some(), Some(|a| a.atime_ns.map(whole_seconds))),
    ("gcsfuse_mtime", |v| rfc3339(v).is_some(), Some(|a| a.mtime_ns.and_then(numbers::rfc3339_text))),
    (MC, |_| true, None),
    (S3CMD, |_| true, None),
    ("permissions", |v| any_base(v).is_some(), None),
    ("posix_owner", |v| id(v).is_some(), None),
    ("posix_group", |v| id(v).is_some(), None),
    ("posix_atime", |v| v.parse::<i64>().is_ok(), None),
    ("posix_ctime", |v| v.parse::<i64>().is_ok(), None),
    ("modtime", |v| modtime(v).is_some(), None),
    ("owner", |v| id(v).is_some(), None),
    ("group", |v| id(v).is_some(), None),
    (GOOGLE_LINK, |_| true, None),
    (AZURE_LINK, |_| true, None),
    (AZURE_FIFO, |_| true, None),
    (AZURE_SOCKET, |_| true, None),
];

fn whole_seconds(ns: i64) -> String {
    ns.div_euclid(1_000_000_000).to_string()
}

fn modtime(text: &str) -> Option<i64> {
    text.trim().parse().ok().or_else(|| numbers::spelt_out(text))
}

/// What one convention, or several, tell of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// With or without a type.
    permissions: Option<u32>,
    /// One of `S_IFMT`'s.
    file_type: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<i64>,
    pub mtime: Option<i64>,
    pub ctime: Option<i64>,
}

impl Told {
    fn with_mode(mode: Option<u32>) -> Told {
        let mode = mode.filter(|&mode| mode <= libc::S_IFMT | 0o7777);
        let file_type = mode.map(|mode| mode & libc::S_IFMT).filter(|&t| t != 0);
        Told { permissions: mode.map(|mode| mode & 0o7777), file_type, ..Told::default() }
    }

    fn or(self, other: Told) -> Told {
        Told {
            permissions: self.permissions.or(other.permissions),
            file_type: self.file_type.or(other.file_type),
            uid: self.uid.or(other.uid),
            gid: self.gid.or(other.gid),
            atime: self.atime.or(other.atime),
            mtime: self.mtime.or(other.mtime),
            ctime: self.ctime.or(other.ctime),
        }
    }

    /// The mode of an object or a marker, with a type that it can have.
    pub fn mode(&self, kind: Kind, size: u64) -> Option<u32> {
        let file_type = match (kind, self.file_type) {
            (Kind::Dir, _) => libc::S_IFDIR,
            (Kind::File, Some(t @ (libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK))) => t,
            // A link without a target is none.
            (Kind::File, Some(libc::S_IFLNK)) if size > 0 => libc::S_IFLNK,
            (Kind::File, Some(libc::S_IFBLK | libc::S_IFCHR)) => libc::S_IFREG,
            (Kind::File, _) => 0,
        };
        let links_mode = (file_type == libc::S_IFLNK).then_some(0o777);
        let typed = matches!(file_type, libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK);
        match self.permissions.or(links_mode) {
            Some(permissions) => Some(file_type | permissions),
            // The type alone is worth telling; the permissions are then those of a file that everybody may use.
            None if typed => Some(file_type | 0o666),
            None => None,
        }
    }
}

/// What all conventions tell together.
pub(super) fn told(user: &UserMetadata) -> Told {
    if user.is_empty() {
        return Told::default();
    }
    [s3fs, fsx, google, mc, s3cmd, azcopy, s3sync].iter().fold(Told::default(), |told, next| told.or(next(user)))
}

fn s3fs(user: &UserMetadata) -> Told {
    let time = |key| user.get(key).and_then(|v| seconds(v).or_else(|| rfc3339(v)));
    Told {
        uid: user.get(UID).and_then(id),
        gid: user.get(GID).and_then(id),
        atime: time(ATIME),
        mtime: time(MTIME),
        ctime: time(CTIME),
        ..Told::with_mode(user.get(MODE).and_then(any_base))
    }
}

fn fsx(user: &UserMetadata) -> Told {
    Told {
        uid: user.get("file-owner").and_then(id),
        gid: user.get("file-group").and_then(id),
        atime: user.get("file-atime").and_then(with_unit),
        mtime: user.get("file-mtime").and_then(with_unit),
        ..Told::with_mode(user.get("file-permissions").and_then(octal))
    }
}

fn google(user: &UserMetadata) -> Told {
    let exact = user.get("gcsfuse_mtime").and_then(rfc3339);
    let mode = Told::with_mode(user.get("goog-reserved-posix-mode").and_then(octal));
    Told {
        file_type: mode.file_type.or(user.get(GOOGLE_LINK).filter(|v| is_true(v)).map(|_| libc::S_IFLNK)),
        uid: user.get("goog-reserved-posix-uid").and_then(id),
        gid: user.get("goog-reserved-posix-gid").and_then(id),
        atime: user.get("goog-reserved-file-atime").and_then(seconds),
        mtime: exact.or_else(|| user.get("goog-reserved-file-mtime").and_then(seconds)),
        ..mode
    }
}

fn mc(user: &UserMetadata) -> Told {
    pairs(user.get(MC), numbers::seconds_and_nanoseconds)
}

fn s3cmd(user: &UserMetadata) -> Told {
    pairs(user.get(S3CMD), seconds)
}

/// `name:value/name:value/…`
fn pairs(text: Option<&str>, time: fn(&str) -> Option<i64>) -> Told {
    let mut told = Told::default();
    for (name, value) in text.unwrap_or_default().split('/').filter_map(|pair| pair.split_once(':')) {
        told = told.or(match name {
            "mode" => Told::with_mode(any_base(value)),
            "uid" => Told { uid: id(value), ..Told::default() },
            "gid" => Told { gid: id(value), ..Told::default() },
            "atime" => Told { atime: time(value), ..Told::default() },
            "mtime" => Told { mtime: time(value), ..Told::default() },
            "ctime" => Told { ctime: time(value), ..Told::default() },
            _ => Told::default(),
        });
    }
    told
}

/// s3cmd's attributes but its digest.
pub(super) fn without_digest(attributes: &str) -> String {
    attributes.split('/').filter(|pair| !pair.starts_with("md5:")).collect::<Vec<_>>().join("/")
}

fn azcopy(user: &UserMetadata) -> Told {
    let nanoseconds = |key| user.get(key).and_then(|v: &str| v.trim().parse().ok());
    let flags = [(AZURE_LINK, libc::S_IFLNK), (AZURE_FIFO, libc::S_IFIFO), (AZURE_SOCKET, libc::S_IFSOCK)];
    let flag = flags.iter().find(|(key, _)| user.get(key).is_some_and(is_true)).map(|(_, t)| *t);
    let mode = Told::with_mode(user.get("permissions").and_then(any_base));
    Told {
        file_type: flag.or(mode.file_type),
        uid: user.get("posix_owner").and_then(id),
        gid: user.get("posix_group").and_then(id),
        atime: nanoseconds("posix_atime"),
        mtime: user.get("modtime").and_then(modtime),
        ctime: nanoseconds("posix_ctime"),
        ..mode
    }
}

/// AzCopy's other form has the same.
fn s3sync(user: &UserMetadata) -> Told {
    Told { uid: user.get("owner").and_then(id), gid: user.get("group").and_then(id), ..Told::default() }
}

fn is_true(value: &str) -> bool {
    value.trim().eq_ignore_ascii_case("true")
}

/// Marks of a kind of file that the programs of one store look for, written beside s3fs's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::broker::remote) enum Twins {
    None,
    Google,
    Azure,
}

impl Twins {
    /// The marks of the service of this scheme.
    pub fn of(scheme: &str) -> Twins {
        match scheme {
            "gcs" => Twins::Google,
            "azblob" => Twins::Azure,
            _ => Twins::None,
        }
    }

    /// Brings what other conventions say in line with `attributes`, or takes it away.
    pub(super) fn apply(self, user: &mut UserMetadata, attributes: &Attributes) {
        for (key, understood, renew) in KEYS {
            if user.get(key).is_some_and(understood) {
                user.set(key, renew.and_then(|renew| renew(attributes)));
            }
        }
        let file_type = attributes.mode.map(|mode| mode & libc::S_IFMT);
        let mark = match (self, file_type) {
            (Twins::Google, Some(libc::S_IFLNK)) => GOOGLE_LINK,
            (Twins::Azure, Some(libc::S_IFLNK)) => AZURE_LINK,
            (Twins::Azure, Some(libc::S_IFIFO)) => AZURE_FIFO,
            (Twins::Azure, Some(libc::S_IFSOCK)) => AZURE_SOCKET,
            (Twins::Azure, Some(libc::S_IFDIR)) => "hdi_isfolder",
            _ => return,
        };
        user.set(mark, Some("true".into()));
    }
}
