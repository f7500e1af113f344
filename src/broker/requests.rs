//! Telling the kinds of requests apart, for whoever counts them.

use http::{Method, Request, StatusCode};
use opendal::raw::{Operation, ServiceOperation};

use crate::metrics::Kind;
use crate::store::{Op, StoreErrorKind};

/// The kind of an HTTP request: by the name that OpenDAL's service has for it, else by its method.
pub(super) fn kind_of<B>(request: &Request<B>) -> Kind {
    let name = request.extensions().get::<ServiceOperation>().map_or("", |operation| operation.0);
    match (name, request.method()) {
        // A question about one thing has the method of a listing there.
        ("Propfind", _) => match request.headers().get("depth").map(|depth| depth.as_bytes()) {
            Some(b"0") => Kind::Head,
            _ => Kind::List,
        },
        (name, method) => named(name).unwrap_or_else(|| by_method(method)),
    }
}

fn named(name: &str) -> Option<Kind> {
    let begins = |words: &[&str]| words.iter().any(|word| name.starts_with(word));
    let is_one_of = |words: &[&str]| words.contains(&name);
    let kind = if name.contains("Copy") || begins(&["Rewrite", "Compose", "PutBlockFromUrl"]) {
        Kind::Copy
    } else if begins(&["List"]) {
        Kind::List
    } else if begins(&["Delete", "Abort", "RecursiveDelete", "HideFile"]) {
        Kind::Delete
    } else if begins(&["Head", "GetBlobProperties", "GetPathProperties", "ShowObjectMetadata", "GetFileInfo"]) {
        Kind::Head
    } else if is_one_of(&["Get", "GetObject", "GetBlob", "ReadFile", "DownloadFile"]) {
        Kind::Get
    } else if begins(&["UploadPart", "UploadSegment", "UploadResumableChunk", "Append"]) || is_one_of(&["PutBlock"]) {
        Kind::Part
    } else if begins(&["Initiate", "CreateMultipart", "CompleteMultipart", "StartLargeFile", "FinishLargeFile"])
        || is_one_of(&["PutBlockList", "UploadManifest", "FlushData"])
    {
        Kind::Multipart
    } else if begins(&["PutObject", "PutBlob", "InsertObject", "UploadFile", "CreateDirectory", "Mkcol"])
        || is_one_of(&["Put"])
    {
        Kind::Put
    } else {
        return None;
    };
    Some(kind)
}

fn by_method(method: &Method) -> Kind {
    match *method {
        Method::GET => Kind::Get,
        Method::HEAD => Kind::Head,
        Method::PUT => Kind::Put,
        Method::DELETE => Kind::Delete,
        _ => Kind::Other,
    }
}

/// Whether the status is none that a store in good health gives to a question of ours: "not found" and "not so" are answers.
pub(super) fn says_no(status: StatusCode) -> bool {
    const ANSWERS: [StatusCode; 4] = [
        StatusCode::NOT_FOUND,
        StatusCode::CONFLICT,
        StatusCode::PRECONDITION_FAILED,
        StatusCode::RANGE_NOT_SATISFIABLE,
    ];
    (status.is_client_error() || status.is_server_error()) && !ANSWERS.contains(&status)
}

/// The kind of request that OpenDAL makes once more.
pub(super) fn kind_of_retry(operation: Operation) -> Kind {
    match operation {
        Operation::Read => Kind::Get,
        Operation::Stat => Kind::Head,
        Operation::List => Kind::List,
        Operation::Write | Operation::CreateDir => Kind::Put,
        Operation::Copy | Operation::Compose => Kind::Copy,
        Operation::Delete => Kind::Delete,
        _ => Kind::Other,
    }
}

/// What an operation counts as where there are no requests to count. `None`: it is none.
pub(super) fn kind_of_op(op: &Op) -> Option<Kind> {
    Some(match op {
        Op::ListEnd { .. } | Op::Spool { .. } => return None,
        Op::Probe | Op::List { .. } => Kind::List,
        Op::Stat { .. } | Op::Look { .. } | Op::Tell { .. } => Kind::Head,
        Op::Read { .. } => Kind::Get,
        Op::Compose { .. } | Op::CreateDir { .. } => Kind::Put,
        Op::FlowBegin { .. } | Op::FlowEnd { .. } => Kind::Multipart,
        Op::FlowSend { .. } => Kind::Part,
        Op::Copy { .. } => Kind::Copy,
        Op::Delete { .. } | Op::DeleteMany { .. } | Op::RemoveDir { .. } | Op::FlowAbort { .. } => Kind::Delete,
        Op::RenameFile { .. } | Op::RenameDir { .. } => Kind::Other,
    })
}

/// What an error says of the store's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answers; what was asked for cannot be.
    Well,
    /// It does not do what it is there for.
    Ill,
    /// Nothing: it was not asked.
    Unasked,
}

/// What an error of this kind says.
pub(super) fn verdict(kind: StoreErrorKind) -> Verdict {
    match kind {
        StoreErrorKind::NotFound
        | StoreErrorKind::Exists
        | StoreErrorKind::IsDir
        | StoreErrorKind::NotDir
        | StoreErrorKind::NotEmpty
        | StoreErrorKind::VersionMismatch
        | StoreErrorKind::Archived
        | StoreErrorKind::TooLarge => Verdict::Well,
        StoreErrorKind::Unavailable
        | StoreErrorKind::Io
        | StoreErrorKind::PermissionDenied
        | StoreErrorKind::NoSpace => Verdict::Ill,
        _ => Verdict::Unasked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &'static str, method: Method) -> Kind {
        let mut request = Request::builder().method(method).body(()).expect("a request");
        if !name.is_empty() {
            request.extensions_mut().insert(ServiceOperation(name));
        }
        kind_of(&request)
    }

    #[test]
    fn names_go_before_methods() {
        for (name, method, expected) in [
            ("GetObject", Method::GET, Kind::Get),
            ("HeadObject", Method::GET, Kind::Head),
            ("ListObjectsV2", Method::GET, Kind::List),
            ("ListBlobs", Method::GET, Kind::List),
            ("PutObject", Method::PUT, Kind::Put),
            ("UploadPart", Method::PUT, Kind::Part),
            ("UploadPartCopy", Method::PUT, Kind::Copy),
            ("PutBlock", Method::PUT, Kind::Part),
            ("PutBlockList", Method::PUT, Kind::Multipart),
            ("PutBlob", Method::PUT, Kind::Put),
            ("CopyObject", Method::PUT, Kind::Copy),
            ("CreateMultipartUpload", Method::POST, Kind::Multipart),
            ("CompleteMultipartUpload", Method::POST, Kind::Multipart),
            ("AbortMultipartUpload", Method::DELETE, Kind::Delete),
            ("DeleteObjects", Method::POST, Kind::Delete),
            ("", Method::GET, Kind::Get),
            ("", Method::POST, Kind::Other),
            ("Move", Method::from_bytes(b"MOVE").expect("a method"), Kind::Other),
        ] {
            assert_eq!(kind(name, method), expected, "{name}");
        }
        let depth = |depth: &str| {
            let request = Request::builder().method("PROPFIND").header("Depth", depth).body(());
            let mut request = request.expect("a request");
            request.extensions_mut().insert(ServiceOperation("Propfind"));
            kind_of(&request)
        };
        assert_eq!((depth("0"), depth("1")), (Kind::Head, Kind::List));
    }

    #[test]
    fn no_is_an_answer() {
        for (status, expected) in [(200, false), (304, false), (404, false), (412, false), (403, true), (503, true)] {
            assert_eq!(says_no(StatusCode::from_u16(status).expect("a status")), expected, "{status}");
        }
    }
}
