//! What a guest, another program and fate can do, one step at a time.

use proptest::prelude::*;

/// All names that steps are about: few, so that steps meet; some files, some directories, some either.
pub const PATHS: [&str; 12] = ["a", "b", "d", "e", "d/a", "d/b", "d/s", "e/a", "e/s", "d/s/a", "d/s/b", "e/s/a"];

/// A store operation that can be made to fail, by its name in the store double.
pub const STORE_OPERATIONS: [&str; 10] =
    ["stat", "list", "read", "compose", "delete", "create_dir", "remove_dir", "copy", "rename_file", "rename_dir"];

/// Access modes of open(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    WriteOnly,
    ReadWrite,
}

/// Modes of fallocate(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// At least so long.
    Extend,
    /// Nothing to be seen.
    KeepSize,
    /// Zeros, within the file.
    Punch,
    /// Zeros, and at least so long.
    Zero,
    /// Zeros, within the file.
    ZeroKeepSize,
}

/// When a store operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It did nothing.
    Before,
    /// It did its work, and the answer was lost.
    After,
}

/// One thing that happens. `path`, `from`, `to` are indices of [`PATHS`]; `file` and `dir` pick one of the open files or directories.
#[allow(missing_docs, reason = "the fields are the operations' arguments")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Create {
        path: usize,
        access: Access,
        exclusive: bool,
        truncate: bool,
        append: bool,
    },
    Open {
        path: usize,
        access: Access,
        truncate: bool,
        append: bool,
    },
    Read {
        file: usize,
        offset: u64,
        len: usize,
    },
    Write {
        file: usize,
        offset: u64,
        len: usize,
        sync: bool,
    },
    Truncate {
        file: usize,
        size: u64,
    },
    TruncatePath {
        path: usize,
        size: u64,
    },
    Allocate {
        file: usize,
        mode: Allocate,
        offset: u64,
        len: u64,
    },
    Copy {
        from: usize,
        from_offset: u64,
        to: usize,
        to_offset: u64,
        len: u64,
    },
    CopyWhole {
        from: usize,
        to: usize,
    },
    Seek {
        file: usize,
        offset: u64,
        hole: bool,
    },
    Flush {
        file: usize,
    },
    Fsync {
        file: usize,
    },
    Close {
        file: usize,
    },
    StatOpen {
        file: usize,
    },
    Rename {
        from: usize,
        to: usize,
        noreplace: bool,
    },
    Unlink {
        path: usize,
    },
    Mkdir {
        path: usize,
    },
    Rmdir {
        path: usize,
    },
    Mknod {
        path: usize,
    },
    Stat {
        path: usize,
    },
    SetTimes {
        path: usize,
        seconds: i64,
    },
    /// All of a directory, from a fresh handle.
    List {
        path: usize,
        plus: bool,
    },
    OpenDir {
        path: usize,
    },
    /// The next `count` entries, after going `back` so many.
    ReadDir {
        dir: usize,
        count: usize,
        back: usize,
        plus: bool,
    },
    CloseDir {
        dir: usize,
    },
    SyncFs,
    /// The guest drops from its caches every name that it does not have open.
    Forget,
    /// Every name, kind and content, compared.
    LookAtEverything,
    /// Another program puts an object, whatever is there.
    Put {
        path: usize,
        len: usize,
    },
    /// Another program deletes an object.
    Delete {
        path: usize,
    },
    /// Another program makes the marker of a directory, as the S3 console does.
    PutMarker {
        path: usize,
    },
    /// Another program deletes the marker of a directory.
    DeleteMarker {
        path: usize,
    },
    /// The time of the cache policy passes.
    Expire,
    /// The time after which failed uploads are tried again passes.
    Retry,
    /// Unmounted and mounted again, in order.
    Remount,
    /// The daemon is gone without a word, and a new one is started.
    Crash,
    /// During the next operation of the guest, the store fails once.
    Fail {
        operation: usize,
        when: When,
        kind: usize,
    },
}

fn path() -> impl Strategy<Value = usize> {
    0..PATHS.len()
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![1 => Just(Access::ReadOnly), 1 => Just(Access::WriteOnly), 4 => Just(Access::ReadWrite)]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.2)
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![2 => 1usize..20, 4 => 1usize..2_000, 1 => 1usize..12_000]
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0u64), 4 => 0u64..3_000, 1 => 0u64..12_000]
}

fn open() -> impl Strategy<Value = Step> {
    prop_oneof![
        (path(), access(), rarely(), rarely(), rarely()).prop_map(|(path, access, exclusive, truncate, append)| {
            Step::Create { path, access, exclusive, truncate, append }
        }),
        (path(), access(), rarely(), rarely()).prop_map(|(path, access, truncate, append)| Step::Open {
            path,
            access,
            truncate,
            append
        }),
    ]
}

fn on_handles() -> impl Strategy<Value = Step> {
    let file = || 0usize..12;
    let mode = prop_oneof![
        Just(Allocate::Extend),
        Just(Allocate::KeepSize),
        Just(Allocate::Punch),
        Just(Allocate::Zero),
        Just(Allocate::ZeroKeepSize),
    ];
    prop_oneof![
        10 => (file(), offset(), len()).prop_map(|(file, offset, len)| Step::Read { file, offset, len }),
        12 => (file(), offset(), len(), rarely())
            .prop_map(|(file, offset, len, sync)| Step::Write { file, offset, len, sync }),
        2 => (file(), offset()).prop_map(|(file, size)| Step::Truncate { file, size }),
        2 => (file(), mode, offset(), 1u64..3_000)
            .prop_map(|(file, mode, offset, len)| Step::Allocate { file, mode, offset, len }),
        2 => (file(), offset(), file(), offset(), 1u64..3_000)
            .prop_map(|(from, from_offset, to, to_offset, len)| Step::Copy { from, from_offset, to, to_offset, len }),
        1 => (file(), file()).prop_map(|(from, to)| Step::CopyWhole { from, to }),
        1 => (file(), offset(), any::<bool>()).prop_map(|(file, offset, hole)| Step::Seek { file, offset, hole }),
        2 => file().prop_map(|file| Step::Flush { file }),
        2 => file().prop_map(|file| Step::Fsync { file }),
        6 => file().prop_map(|file| Step::Close { file }),
        1 => file().prop_map(|file| Step::StatOpen { file }),
    ]
}

fn on_names() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (path(), path(), rarely()).prop_map(|(from, to, noreplace)| Step::Rename { from, to, noreplace }),
        3 => path().prop_map(|path| Step::Unlink { path }),
        3 => path().prop_map(|path| Step::Mkdir { path }),
        2 => path().prop_map(|path| Step::Rmdir { path }),
        1 => path().prop_map(|path| Step::Mknod { path }),
        3 => path().prop_map(|path| Step::Stat { path }),
        1 => (path(), 1i64..4_000_000_000).prop_map(|(path, seconds)| Step::SetTimes { path, seconds }),
        1 => (path(), offset()).prop_map(|(path, size)| Step::TruncatePath { path, size }),
        2 => (path(), any::<bool>()).prop_map(|(path, plus)| Step::List { path, plus }),
        2 => path().prop_map(|path| Step::OpenDir { path }),
        3 => (0usize..4, 1usize..6, 0usize..3, any::<bool>())
            .prop_map(|(dir, count, back, plus)| Step::ReadDir { dir, count, back, plus }),
        1 => (0usize..4).prop_map(|dir| Step::CloseDir { dir }),
    ]
}

fn others() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (path(), 0usize..3_000).prop_map(|(path, len)| Step::Put { path, len }),
        3 => path().prop_map(|path| Step::Delete { path }),
        1 => path().prop_map(|path| Step::PutMarker { path }),
        1 => path().prop_map(|path| Step::DeleteMarker { path }),
    ]
}

fn fate() -> impl Strategy<Value = Step> {
    let when = prop_oneof![Just(When::Before), Just(When::After)];
    prop_oneof![
        4 => Just(Step::Expire),
        1 => Just(Step::Retry),
        1 => Just(Step::Remount),
        1 => Just(Step::Crash),
        2 => Just(Step::SyncFs),
        2 => Just(Step::Forget),
        3 => Just(Step::LookAtEverything),
        6 => (0..STORE_OPERATIONS.len(), when, 0usize..4)
            .prop_map(|(operation, when, kind)| Step::Fail { operation, when, kind }),
    ]
}

/// Steps of a guest that is alone with its store.
pub fn alone() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![4 => open(), 12 => on_handles(), 7 => on_names(), 2 => Just(Step::SyncFs),
        2 => Just(Step::LookAtEverything), 1 => Just(Step::Forget), 1 => Just(Step::Remount)];
    prop::collection::vec(step, 1..200)
}

/// Steps of everybody.
pub fn everybody() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![5 => open(), 12 => on_handles(), 7 => on_names(), 3 => others(), 3 => fate()];
    prop::collection::vec(step, 1..200)
}
