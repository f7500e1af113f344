//! A file system that does nothing but tell what it was asked.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fs::{
    Attr, Context, DirEntry, DirSink, Entry, Errno, Extensions, FileAt, FileSystem, Handle, NodeId, Opened, Read,
    Result, SetAttr, Sink, Source, StatFs, Write, XattrReply,
};

/// Answers every request with fixed values, or all of them with one error.
#[derive(Default)]
pub(super) struct Probe {
    calls: Mutex<Vec<String>>,
    /// What every request fails with.
    pub(super) error: Mutex<Option<Errno>>,
    /// Every request waits once before it is done.
    pub(super) is_slow: AtomicBool,
    wanted: u64,
}

pub(super) const ATTR: Attr = Attr {
    ino: 1,
    size: 2,
    blocks: 3,
    atime: -4,
    mtime: 5,
    ctime: 6,
    atimensec: 7,
    mtimensec: 8,
    ctimensec: 9,
    mode: 10,
    nlink: 11,
    uid: 12,
    gid: 13,
    rdev: 14,
    blksize: 15,
    flags: 16,
};

pub(super) const ENTRY: Entry = Entry {
    nodeid: NodeId(42),
    generation: 0,
    attr: ATTR,
    entry_timeout: Duration::from_millis(1001),
    attr_timeout: Duration::from_millis(2002),
};

pub(super) const OPENED: Opened = Opened { handle: Some(Handle(77)), flags: 2 };

impl Probe {
    /// Asks for these INIT flags.
    pub(super) fn wanting(wanted: u64) -> Probe {
        Probe { wanted, ..Probe::default() }
    }

    /// What was asked since the last call of this.
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    async fn told<T>(&self, call: String, answer: T) -> Result<T> {
        self.note(call);
        if self.is_slow.load(Ordering::Relaxed) {
            let mut is_polled = false;
            std::future::poll_fn(|task| {
                task.waker().wake_by_ref();
                if std::mem::replace(&mut is_polled, true) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
        let error = *self.error.lock().unwrap();
        error.map_or(Ok(answer), Err)
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

impl FileSystem for Probe {
    async fn init(&self, offered: u64) -> Result<u64> {
        self.told(format!("init {offered:#x}"), self.wanted).await
    }
    async fn destroy(&self) {
        self.note("destroy".into());
    }
    async fn lookup(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.told(format!("lookup {} {}", parent.0, text(name)), ENTRY).await
    }
    fn forget(&self, nodeid: NodeId, nlookup: u64) {
        self.note(format!("forget {} {nlookup}", nodeid.0));
    }
    async fn getattr(&self, _: Context, nodeid: NodeId, handle: Option<Handle>) -> Result<(Attr, Duration)> {
        self.told(format!("getattr {} {handle:?}", nodeid.0), (ATTR, Duration::from_millis(3003))).await
    }
    async fn setattr(&self, _: Context, nodeid: NodeId, change: SetAttr) -> Result<(Attr, Duration)> {
        self.told(format!("setattr {} {change:?}", nodeid.0), (ATTR, Duration::ZERO)).await
    }
    async fn readlink(&self, _: Context, nodeid: NodeId) -> Result<Vec<u8>> {
        self.told(format!("readlink {}", nodeid.0), b"target".to_vec()).await
    }
    async fn symlink(&self, _: Context, parent: NodeId, name: &[u8], to: &[u8], ext: Extensions) -> Result<Entry> {
        self.told(format!("symlink {} {} -> {} {ext:?}", parent.0, text(name), text(to)), ENTRY).await
    }
    async fn mknod(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        ext: Extensions,
    ) -> Result<Entry> {
        let call =
            format!("mknod {}:{} {} {} {mode:o} {rdev} {umask:o} {ext:?}", ctx.uid, ctx.gid, parent.0, text(name));
        self.told(call, ENTRY).await
    }
    async fn mkdir(
        &self,
        _: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        ext: Extensions,
    ) -> Result<Entry> {
        self.told(format!("mkdir {} {} {mode:o} {umask:o} {ext:?}", parent.0, text(name)), ENTRY).await
    }
    async fn unlink(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        self.told(format!("unlink {} {}", parent.0, text(name)), ()).await
    }
    async fn rmdir(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        self.told(format!("rmdir {} {}", parent.0, text(name)), ()).await
    }
    async fn rename(
        &self,
        _: Context,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let call = format!("rename {} {} -> {} {} {flags}", parent.0, text(name), new_parent.0, text(new_name));
        self.told(call, ()).await
    }
    async fn link(&self, _: Context, nodeid: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        self.told(format!("link {} -> {} {}", nodeid.0, new_parent.0, text(new_name)), ENTRY).await
    }
    async fn open(&self, _: Context, nodeid: NodeId, flags: u32, kill_priv: bool) -> Result<Opened> {
        self.told(format!("open {} {flags:#o} {kill_priv}", nodeid.0), OPENED).await
    }
    async fn create(
        &self,
        _: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        umask: u32,
        kill_priv: bool,
        ext: Extensions,
    ) -> Result<(Entry, Opened)> {
        let call = format!("create {} {} {mode:o} {flags:#o} {umask:o} {kill_priv} {ext:?}", parent.0, text(name));
        self.told(call, (ENTRY, OPENED)).await
    }
    async fn read(&self, _: Context, op: Read, out: &mut impl Sink) -> Result<usize> {
        let count = (op.size as usize).min(5);
        out.put(&b"hello"[..count])?;
        self.told(format!("{op:?}"), count).await
    }
    async fn write(&self, _: Context, op: Write, data: &mut impl Source) -> Result<usize> {
        let mut bytes = vec![0; op.size as usize];
        data.take(&mut bytes)?;
        self.told(format!("{op:?} {}", text(&bytes)), bytes.len()).await
    }
    async fn flush(&self, _: Context, nodeid: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        self.told(format!("flush {} {} {lock_owner}", nodeid.0, handle.0), ()).await
    }
    async fn fsync(&self, _: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        self.told(format!("fsync {} {} {datasync}", nodeid.0, handle.0), ()).await
    }
    async fn release(
        &self,
        _: Context,
        nodeid: NodeId,
        handle: Handle,
        flags: u32,
        lock_owner: Option<u64>,
        flock_unlock: bool,
    ) -> Result<()> {
        let call = format!("release {} {} {flags} {lock_owner:?} {flock_unlock}", nodeid.0, handle.0);
        self.told(call, ()).await
    }
    async fn statfs(&self, _: Context, nodeid: NodeId) -> Result<StatFs> {
        let stat = StatFs { blocks: 1, bfree: 2, bavail: 3, files: 4, ffree: 5, bsize: 6, namelen: 7, frsize: 8 };
        self.told(format!("statfs {}", nodeid.0), stat).await
    }
    async fn setxattr(
        &self,
        _: Context,
        nodeid: NodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        extra: u32,
    ) -> Result<()> {
        self.told(format!("setxattr {} {}={} {flags} {extra}", nodeid.0, text(name), text(value)), ()).await
    }
    async fn getxattr(&self, _: Context, nodeid: NodeId, name: &[u8], size: u32) -> Result<XattrReply> {
        let reply = if size == 0 { XattrReply::Size(5) } else { XattrReply::Data(b"value".to_vec()) };
        self.told(format!("getxattr {} {} {size}", nodeid.0, text(name)), reply).await
    }
    async fn listxattr(&self, _: Context, nodeid: NodeId, size: u32) -> Result<XattrReply> {
        let reply = if size == 0 { XattrReply::Size(7) } else { XattrReply::Data(b"user.a\0".to_vec()) };
        self.told(format!("listxattr {} {size}", nodeid.0), reply).await
    }
    async fn removexattr(&self, _: Context, nodeid: NodeId, name: &[u8]) -> Result<()> {
        self.told(format!("removexattr {} {}", nodeid.0, text(name)), ()).await
    }
    async fn opendir(&self, _: Context, nodeid: NodeId, flags: u32) -> Result<Opened> {
        self.told(format!("opendir {} {flags:#o}", nodeid.0), OPENED).await
    }
    async fn readdir(&self, _: Context, dir: NodeId, fh: Handle, offset: u64, out: &mut impl DirSink) -> Result<()> {
        let room = out.room();
        for index in 0..100 {
            if !out.add(&DirEntry { ino: index, next_offset: index + 1, kind: 8, name: b"name" }) {
                break;
            }
        }
        self.told(format!("readdir {} {} {offset} {room}", dir.0, fh.0), ()).await
    }
    async fn readdirplus(
        &self,
        _: Context,
        dir: NodeId,
        fh: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        let room = out.room();
        for index in 0..100 {
            let entry = DirEntry { ino: index, next_offset: index + 1, kind: 8, name: b"name" };
            if !out.fits_plus(entry.name.len()) || !out.add_plus(&entry, &ENTRY) {
                break;
            }
        }
        self.told(format!("readdirplus {} {} {offset} {room}", dir.0, fh.0), ()).await
    }
    async fn fsyncdir(&self, _: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        self.told(format!("fsyncdir {} {} {datasync}", nodeid.0, handle.0), ()).await
    }
    async fn releasedir(&self, _: Context, nodeid: NodeId, handle: Handle, flags: u32) -> Result<()> {
        self.told(format!("releasedir {} {} {flags}", nodeid.0, handle.0), ()).await
    }
    async fn access(&self, _: Context, nodeid: NodeId, mask: u32) -> Result<()> {
        self.told(format!("access {} {mask}", nodeid.0), ()).await
    }
    async fn lseek(&self, _: Context, at: FileAt, whence: u32) -> Result<u64> {
        self.told(format!("lseek {at:?} {whence}"), 99).await
    }
    async fn fallocate(&self, _: Context, at: FileAt, length: u64, mode: u32) -> Result<()> {
        self.told(format!("fallocate {at:?} {length} {mode}"), ()).await
    }
    async fn copy_file_range(&self, _: Context, from: FileAt, to: FileAt, len: u64, flags: u64) -> Result<usize> {
        self.told(format!("copy {from:?} {to:?} {len} {flags}"), 88).await
    }
    async fn syncfs(&self, _: Context, nodeid: NodeId) -> Result<()> {
        self.told(format!("syncfs {}", nodeid.0), ()).await
    }
}
