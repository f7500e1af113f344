//! What needs a thread with other rights than the process has; everything else is tested through both ends of the socket.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::broker::tests::Bed;
use crate::store::{Base, Segment};

/// Nobody's number, on most machines.
const NOBODY: u32 = 65_534;

fn local(path: &Path) -> (Local, Arc<Pool>) {
    let backend = Backend::parse(&format!("fs://{}", path.display())).unwrap();
    let pool = Arc::new(Pool::new(1 << 20).unwrap());
    let options = BrokerOptions { posix_metadata: true, ..Bed::options(Duration::from_secs(10)) };
    (Local::new(&backend, &pool, &options).unwrap(), pool)
}

/// Runs `work` on a thread without any rights but those of the owner of `dir`.
fn unprivileged(dir: &Path, work: impl FnOnce() + Send) {
    // SAFETY: it only asks.
    let is_root = unsafe { libc::geteuid() == 0 };
    if is_root {
        chown(dir, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_root {
                // The system calls themselves change this thread alone; the C library's functions change all.
                // SAFETY: plain numbers.
                unsafe {
                    assert_eq!(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()), 0);
                    assert_eq!(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
                    assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
                }
            }
            work();
        });
    });
}

fn wanted(mode: u32) -> Attributes {
    Attributes { mode: Some(mode), uid: Some(1), gid: Some(1), ..Attributes::default() }
}

#[test]
fn an_owner_that_cannot_be_given_takes_the_special_bits_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (local, _pool) = local(dir.path());
    unprivileged(dir.path(), || {
        let made = local.compose("f", &[], &Condition::IfAbsent, &[], Some(&wanted(libc::S_IFREG | 0o6751))).unwrap();
        let host = fs::metadata(dir.path().join("f")).unwrap();
        assert_eq!(host.mode(), libc::S_IFREG | 0o751, "no set-user-ID for somebody else");
        assert_eq!(made.details.unwrap().attributes.uid, Some(host.uid()), "the truth is told");
        assert_ne!(host.uid(), 1);
        assert!(local.owner_refused.load(Ordering::Relaxed));
        let base = Base { path: "f".into(), version: local.stat("f").unwrap().version() };
        local.compose("f", &[base], &Condition::Any, &[], Some(&wanted(libc::S_IFREG | 0o6711))).unwrap();
        assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode(), libc::S_IFREG | 0o711);
        // What is one's own may have them.
        let own = Attributes { uid: None, gid: None, ..wanted(libc::S_IFREG | 0o4711) };
        local.compose("g", &[], &Condition::IfAbsent, &[], Some(&own)).unwrap();
        assert_eq!(fs::metadata(dir.path().join("g")).unwrap().mode(), libc::S_IFREG | 0o4711);
        local.create_dir("d", Some(&wanted(libc::S_IFDIR | 0o755))).unwrap();
    });
}

#[test]
fn files_that_their_owner_may_not_read_are_changed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (local, pool) = local(dir.path());
    assert!(pool.write(0, b"data"));
    unprivileged(dir.path(), || {
        let segments = [Segment::Data(Slice { offset: 0, len: 4 })];
        let own = |mode| Attributes { uid: None, gid: None, ..wanted(mode) };
        for mode in [0o0, 0o200, 0o400] {
            let xattrs = Some([("user.a".to_owned(), b"1".to_vec())].into());
            let set = Attributes { xattrs: xattrs.clone(), ..own(libc::S_IFREG | mode) };
            let made = local.compose("f", &[], &Condition::Any, &segments, Some(&set)).unwrap();
            assert_eq!(made, local.stat("f").unwrap(), "{mode:o}");
            let told = made.details.as_ref().unwrap().attributes.xattrs.clone();
            assert_eq!(told, if mode == 0o400 { xattrs.clone() } else { None }, "{mode:o}");
            let base = Base { path: "f".into(), version: made.version() };
            let whole = [Segment::Copy { base: 0, offset: 0, len: 4 }];
            local.compose("f", &[base], &Condition::Any, &whole, Some(&own(0o640))).unwrap();
            assert_eq!(local.stat("f").unwrap().details.unwrap().attributes.xattrs, xattrs);
            assert_eq!(fs::metadata(dir.path().join("f")).unwrap().mode(), libc::S_IFREG | 0o640);
            local.create_dir("d", Some(&own(libc::S_IFDIR | mode))).unwrap();
            assert_eq!(fs::metadata(dir.path().join("d")).unwrap().permissions().mode() & 0o777, mode);
        }
        // One change that first makes the file writable.
        let set = own(libc::S_IFREG | 0o400);
        let made = local.compose("f", &[], &Condition::Any, &segments, Some(&set)).unwrap();
        let base = Base { path: "f".into(), version: made.version() };
        let set = Attributes { xattrs: Some([("user.b".to_owned(), vec![2])].into()), ..own(0o600) };
        let whole = [Segment::Copy { base: 0, offset: 0, len: 4 }];
        local.compose("f", &[base], &Condition::Any, &whole, Some(&set)).unwrap();
        assert_eq!(local.stat("f").unwrap().details.unwrap().attributes.xattrs, set.xattrs);
    });
}
