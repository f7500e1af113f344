//! From OpenDAL's errors, and the operating system's, to the store's. What is not understood is an I/O error, never "not
//! found": an outage must not look like an empty store. The texts are cleaned of secrets and of query strings, which
//! may hold signatures.

use std::error::Error as _;
use std::io;

use opendal::ErrorKind;

use super::operator;
use crate::store::{StoreError, StoreErrorKind};

/// Longest text of an error, in bytes; some servers answer with whole web pages.
const TEXT_MAX: usize = 700;

/// A [`StoreError`] of our own.
pub(super) fn error(kind: StoreErrorKind, text: impl Into<String>) -> StoreError {
    StoreError { kind, text: text.into() }
}

/// Takes secrets out of texts.
#[derive(Debug, Default)]
pub(super) struct Cleaner {
    secrets: Vec<String>,
}

impl Cleaner {
    /// Shorter ones than this would make every text unreadable, and are no secrets.
    const SHORTEST: usize = 4;

    pub fn new(secrets: Vec<String>) -> Cleaner {
        Cleaner { secrets: secrets.into_iter().filter(|s| s.len() >= Cleaner::SHORTEST).collect() }
    }

    /// `text` on one line, without secrets, without the queries of URLs, not too long.
    pub fn clean(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            match word.split_once("://").and_then(|_| word.split_once('?')) {
                Some((place, query)) => {
                    out.push_str(place);
                    out.extend(query.chars().rev().take_while(|c| matches!(c, ',' | ')' | '}' | '"')));
                }
                None => out.push_str(word),
            }
            if words.peek().is_some() {
                out.push(' ');
            }
        }
        for secret in &self.secrets {
            if out.contains(secret.as_str()) {
                out = out.replace(secret.as_str(), "***");
            }
        }
        if out.len() > TEXT_MAX {
            let end = (0..=TEXT_MAX).rev().find(|&n| out.is_char_boundary(n)).unwrap_or(0);
            out.truncate(end);
            out.push('…');
        }
        out
    }

    /// What `what` (an operation and its path) failed with.
    pub fn convert(&self, what: &str, e: &opendal::Error) -> StoreError {
        let kind = kind_of(e);
        let why = match (kind, storage_class(&e.to_string())) {
            (StoreErrorKind::Archived, Some(class)) => {
                format!("it is archived (storage class {class}) and must be restored before its content can be read: ")
            }
            (StoreErrorKind::Archived, None) => {
                "it is archived and must be restored before its content can be read: ".to_owned()
            }
            _ => String::new(),
        };
        error(kind, self.told(&format!("{what}: {why}{e}")))
    }

    /// An error's own words, without secrets.
    pub fn clean_error(&self, e: &opendal::Error) -> String {
        self.told(&e.to_string())
    }

    /// `text`, cleaned; the store's name for the request, which its operator can look up, is not lost where that is long.
    fn told(&self, text: &str) -> String {
        let short = self.clean(text);
        match request_id(text).filter(|id| !short.contains(id)) {
            Some(id) => format!("{short} [request id {}]", self.clean(id)),
            None => short,
        }
    }
}

/// The class of an error of OpenDAL's.
pub(super) fn kind_of(e: &opendal::Error) -> StoreErrorKind {
    match e.kind() {
        ErrorKind::PermissionDenied | ErrorKind::Conflict | ErrorKind::Unexpected if is_archived(&e.to_string()) => {
            StoreErrorKind::Archived
        }
        ErrorKind::NotFound => StoreErrorKind::NotFound,
        ErrorKind::PermissionDenied => StoreErrorKind::PermissionDenied,
        ErrorKind::IsADirectory => StoreErrorKind::IsDir,
        ErrorKind::NotADirectory => StoreErrorKind::NotDir,
        ErrorKind::AlreadyExists => StoreErrorKind::Exists,
        ErrorKind::ConditionNotMatch => StoreErrorKind::VersionMismatch,
        ErrorKind::Unsupported => StoreErrorKind::Unsupported,
        ErrorKind::RateLimited => StoreErrorKind::Unavailable,
        _ => match os_error(e).map(kind_of_os) {
            Some(kind) if kind != StoreErrorKind::Io => kind,
            _ if e.kind() == ErrorKind::Unexpected && was_temporary(e) => StoreErrorKind::Unavailable,
            _ if e.kind() == ErrorKind::Conflict => StoreErrorKind::VersionMismatch,
            _ => StoreErrorKind::Io,
        },
    }
}

/// S3's word for objects that are in an archive, which its likes use, too, and Azure's.
fn is_archived(text: &str) -> bool {
    ["InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"].iter().any(|code| text.contains(code))
}

/// The storage class that an answer names, in a header or in its text.
fn storage_class(text: &str) -> Option<&str> {
    let word = |at: &str| -> Option<usize> {
        let len = at.bytes().take_while(|b| b.is_ascii_uppercase() || *b == b'_').count();
        (3..40).contains(&len).then_some(len)
    };
    ["x-amz-storage-class\": \"", "<StorageClass>", "storage class "].iter().find_map(|before| {
        let at = text.split_once(before)?.1;
        Some(&at[..word(at)?])
    })
}

/// The store's name for the request, from the headers of its answer as OpenDAL shows them.
fn request_id(text: &str) -> Option<&str> {
    const HEADERS: [&str; 8] = [
        "x-amz-request-id",
        "x-ms-request-id",
        "x-guploader-uploadid",
        "x-oss-request-id",
        "x-cos-request-id",
        "x-obs-request-id",
        "x-trans-id",
        "x-request-id",
    ];
    HEADERS.iter().find_map(|header| {
        let rest = text.split_once(&format!("\"{header}\": \""))?.1;
        let (id, _) = rest.split_once('"')?;
        let is_id = |c: char| c.is_ascii_alphanumeric() || "-_=+/.:".contains(c);
        ((1..=128).contains(&id.len()) && id.chars().all(is_id)).then_some(id)
    })
}

/// Whether trying again later may help. OpenDAL's retries call every error "persistent" that they let pass, so what it was
/// before is told by whether they tried at all, and for work in tasks of OpenDAL's own by the cause.
fn was_temporary(e: &opendal::Error) -> bool {
    if e.is_temporary() || operator::was_retried() {
        return true;
    }
    let mut at = e.source();
    while let Some(source) = at {
        if source.downcast_ref::<reqwest::Error>().is_some_and(|e| e.is_connect() || e.is_timeout() || e.is_body()) {
            return true;
        }
        at = source.source();
    }
    let text = e.to_string();
    ["operation timeout reached", "{ status: 5", "{ status: 429"].iter().any(|sign| text.contains(sign))
}

/// The operating system's error at the bottom of `e`, if there is one.
fn os_error(e: &opendal::Error) -> Option<&io::Error> {
    let mut at = e.source();
    while let Some(source) = at {
        if let Some(io) = source.downcast_ref::<io::Error>().filter(|io| io.raw_os_error().is_some()) {
            return Some(io);
        }
        at = source.source();
    }
    None
}

/// The class of an error of the operating system's.
pub(super) fn kind_of_os(e: &io::Error) -> StoreErrorKind {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ELOOP) => StoreErrorKind::NotFound,
        Some(libc::EEXIST) => StoreErrorKind::Exists,
        Some(libc::EISDIR) => StoreErrorKind::IsDir,
        Some(libc::ENOTDIR) => StoreErrorKind::NotDir,
        Some(libc::ENOTEMPTY) => StoreErrorKind::NotEmpty,
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => StoreErrorKind::PermissionDenied,
        Some(libc::ENOSPC | libc::EDQUOT) => StoreErrorKind::NoSpace,
        Some(libc::EFBIG) => StoreErrorKind::TooLarge,
        Some(libc::ENAMETOOLONG | libc::EILSEQ) => StoreErrorKind::InvalidName,
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => StoreErrorKind::Unsupported,
        Some(libc::ETIMEDOUT | libc::ECONNREFUSED | libc::ECONNRESET | libc::EHOSTUNREACH | libc::ENETUNREACH) => {
            StoreErrorKind::Unavailable
        }
        _ => StoreErrorKind::Io,
    }
}

/// What `what` failed with in the operating system.
pub(super) fn os(what: &str, e: &io::Error) -> StoreError {
    error(kind_of_os(e), format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_clean() {
        let cleaner = Cleaner::new(vec!["CANARY".into(), "x".into()]);
        assert_eq!(
            cleaner.clean(
                "stat a: url: https://h/b?X-Amz-Signature=abc&y=1, response: \"http://h?sig=z\" }\n  key CANARY x"
            ),
            "stat a: url: https://h/b, response: \"http://h\" } key *** x"
        );
        assert!(cleaner.clean(&"ä".repeat(TEXT_MAX)).len() <= TEXT_MAX + 3);
    }

    #[test]
    fn request_id_is_told_where_the_text_is_cut() {
        let cleaner = Cleaner::new(vec!["CANARY".into()]);
        let long = "x".repeat(2 * TEXT_MAX);
        let text =
            |id: &str| format!("{long} headers: {{\"x-amz-request-id\": \"{id}\", \"x-request-id\": \"other\"}}");
        let told = cleaner.told(&text("tx0001-AB"));
        assert!(told.ends_with("… [request id tx0001-AB]"), "{told}");
        assert!(cleaner.told(&text("tx CANARY\u{1b}")).ends_with("… [request id other]"));
        assert!(cleaner.told(&text("a-CANARY")).ends_with("… [request id a-***]"));
        assert!(!cleaner.told("\"x-amz-request-id\": \"7\"").contains("[request id"), "it is there anyway");
    }

    #[test]
    fn the_unknown_is_an_io_error_and_what_was_retried_unavailable() {
        let e = opendal::Error::new(ErrorKind::Unexpected, "?");
        assert_eq!(kind_of(&e), StoreErrorKind::Io);
        assert_eq!(kind_of(&e.set_temporary()), StoreErrorKind::Unavailable);
        let e = opendal::Error::new(ErrorKind::ConfigInvalid, "NoSuchBucket").set_persistent();
        assert_eq!(kind_of(&e), StoreErrorKind::Io);
        let e = opendal::Error::new(ErrorKind::Unexpected, "io operation timeout reached").set_persistent();
        assert_eq!(kind_of(&e), StoreErrorKind::Unavailable);
        let e = opendal::Error::new(ErrorKind::Unexpected, "something else").set_persistent();
        assert_eq!(kind_of(&e), StoreErrorKind::Io);
    }

    #[test]
    fn an_archived_object_says_so() {
        let text = "S3Error { code: \"InvalidObjectState\", message: \"The operation is not valid for the object's storage class\" }";
        for (kind, text, want) in [
            (ErrorKind::PermissionDenied, text.to_owned(), "it is archived and must"),
            (
                ErrorKind::PermissionDenied,
                format!("{text}, \"x-amz-storage-class\": \"DEEP_ARCHIVE\""),
                "class DEEP_ARCHIVE)",
            ),
            (
                ErrorKind::PermissionDenied,
                "<Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass>".into(),
                "class GLACIER)",
            ),
            (ErrorKind::Unexpected, "AzblobError { code: \"BlobArchived\" }".into(), "it is archived and must"),
        ] {
            let converted = Cleaner::default().convert("read 'a'", &opendal::Error::new(kind, &text));
            assert_eq!(converted.kind, StoreErrorKind::Archived);
            assert!(converted.text.contains(want), "{converted}");
        }
        let denied = opendal::Error::new(ErrorKind::PermissionDenied, "AccessDenied");
        assert_eq!(kind_of(&denied), StoreErrorKind::PermissionDenied);
    }

    #[test]
    fn the_operating_systems_error_is_found_below() {
        for (errno, want) in [
            (libc::ENOSPC, StoreErrorKind::NoSpace),
            (libc::ENOTDIR, StoreErrorKind::NotDir),
            (libc::EISDIR, StoreErrorKind::IsDir),
            (libc::ENOTEMPTY, StoreErrorKind::NotEmpty),
        ] {
            let e = opendal::Error::new(ErrorKind::Unexpected, "?")
                .set_source(io::Error::from_raw_os_error(errno))
                .set_temporary();
            assert_eq!(kind_of(&e), want);
        }
    }
}
