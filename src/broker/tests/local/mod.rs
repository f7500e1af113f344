mod attributes;
mod hostile;
mod special;

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::broker::Eyes;
use crate::metrics::Board;

fn url(dir: &Path) -> String {
    format!("fs://{}", dir.display())
}

/// A broker that keeps POSIX attributes.
fn posix(dir: &Path) -> Bed {
    let options = BrokerOptions { posix_metadata: true, ..Bed::options(Duration::from_secs(10)) };
    Bed::with_options(&url(dir), options, |_| 0)
}

/// Whether owners can be given away; without root they cannot.
fn is_root() -> bool {
    // SAFETY: it only asks.
    unsafe { libc::geteuid() == 0 }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn mkfifo(path: &Path) {
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(c_path(path).as_ptr(), 0o600) }, 0);
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    let name = CString::new(name).unwrap();
    // SAFETY: C strings and so many bytes.
    let set = unsafe { libc::lsetxattr(c_path(path).as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let name = CString::new(name).unwrap();
    // SAFETY: C strings and a buffer of the given length.
    let len = unsafe { libc::lgetxattr(c_path(path).as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

fn told(meta: &Meta) -> &Attributes {
    &meta.details.as_ref().expect("details are told").attributes
}

fn attributes(mode: u32) -> Attributes {
    Attributes { mode: Some(mode), ..Attributes::default() }
}

impl Bed {
    /// A new object with attributes, from bytes.
    fn make(&self, path: &str, bytes: &[u8], when: Condition, attributes: &Attributes) -> Result<Meta, StoreError> {
        let segments = if bytes.is_empty() { vec![] } else { vec![self.data(bytes)] };
        block_on(self.remote.compose(path, Vec::new(), when, segments, Some(Box::new(attributes.clone())), ()))
    }

    /// Other attributes for what is of the version `old`.
    fn change(&self, path: &str, old: &Meta, attributes: &Attributes) -> Result<Meta, StoreError> {
        let version = old.version();
        let whole = (old.size > 0).then_some(Segment::Copy { base: 0, offset: 0, len: old.size });
        let base = Base { path: path.into(), version: version.clone() };
        let attributes = Some(Box::new(attributes.clone()));
        let when = Condition::IfVersion(version);
        block_on(self.remote.compose(path, vec![base], when, whole.into_iter().collect(), attributes, ()))
    }

    fn mkdir_with(&self, path: &str, attributes: &Attributes) -> Result<(), StoreErrorKind> {
        block_on(self.remote.create_dir(path, Some(Box::new(attributes.clone())))).map_err(|e| e.kind)
    }

    fn pages(&self, path: &str) -> Vec<ListEntry> {
        let (mut all, mut cursor) = (Vec::new(), 0);
        loop {
            let (entries, next) = block_on(self.remote.list(path, cursor)).unwrap();
            all.extend(entries);
            match next {
                Some(next) => cursor = next,
                None => return all,
            }
        }
    }
}

#[test]
fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::new(&url(dir.path()));
    let can = block_on(bed.remote.probe()).unwrap();
    assert_eq!((can.scheme.as_str(), can.write, can.rename, can.real_dirs), ("fs", true, true, true));
    contract(&bed, Corners { real_dirs: true, parents_needed: true, ..Corners::default() });
    many(&bed, 5000);
    drop(bed);
    assert_eq!(fs::read(dir.path().join("many/04999")).unwrap(), b"x");
}

#[test]
fn nothing_leads_out_and_special_files_do_not_exist() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "canary").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink(outside.path(), at("out")).unwrap();
    symlink(outside.path().join("canary"), at("file")).unwrap();
    symlink("real", at("inside")).unwrap();
    fs::create_dir(at("real")).unwrap();
    fs::write(at("real/f"), "f").unwrap();
    mkfifo(&at("fifo"));
    let bed = Bed::with_timeout(&url(dir.path()), Duration::from_secs(5));
    assert_eq!(bed.names(""), ["real"]);
    for path in ["out", "out/canary", "file", "inside", "inside/f", "fifo"] {
        assert_eq!(bed.kind(path), Err(StoreErrorKind::NotFound), "{path}");
        assert_eq!(bed.read(path, None, 0, 1).unwrap_err().kind, StoreErrorKind::NotFound, "{path}");
    }
    for path in ["out/new", "inside/new"] {
        assert!(bed.put_when(path, b"x", Condition::Any).is_err(), "{path}");
        assert!(bed.mkdir(path).is_err(), "{path}");
        assert!(bed.rename("real/f", path, Condition::Any).is_err(), "{path}");
    }
    assert_eq!(bed.put_when("file", b"x", Condition::Any).unwrap_err().kind, StoreErrorKind::Exists);
    bed.delete("out/canary").unwrap();
    bed.delete("file").unwrap();
    assert_eq!(bed.rmdir("out"), Err(StoreErrorKind::NotFound));
    assert!(bed.rename_dir("out", "elsewhere").is_err());
    assert_eq!(fs::read_to_string(outside.path().join("canary")).unwrap(), "canary");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(at("file").symlink_metadata().is_ok());
    assert_eq!(bed.get("real/f"), b"f");
}

#[test]
fn a_link_swapped_under_way_never_shows_the_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("d")).unwrap();
    fs::write(outside.path().join("d/f"), "CANARY").unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("d/f"), "inside").unwrap();
    let root = dir.path().to_owned();
    let target = outside.path().join("d");
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let racer = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            fs::rename(root.join("d"), root.join("aside")).unwrap();
            symlink(&target, root.join("d")).unwrap();
            fs::remove_file(root.join("d")).unwrap();
            fs::rename(root.join("aside"), root.join("d")).unwrap();
        }
    });
    let bed = Bed::new(&url(dir.path()));
    let dest = bed.room(6);
    let mut seen = 0;
    for _ in 0..3000 {
        if block_on(bed.remote.read("d/f", None, 0, dest, ())).is_ok() {
            let mut bytes = [0; 6];
            bed.pool.read(dest.offset, &mut bytes);
            assert_eq!(&bytes, b"inside");
            seen += 1;
        }
        let _ = bed.put_when("d/new", b"", Condition::Any);
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    assert!(seen > 0);
    assert_eq!(fs::read_dir(outside.path().join("d")).unwrap().count(), 1, "something was written outside");
}

#[test]
fn a_rewrite_keeps_mode_and_attributes_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    fs::write(&path, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    fs::create_dir_all(dir.path().join(".ovfs-tmp/left-behind")).unwrap();
    fs::write(dir.path().join(".ovfs-tmp/left-behind/x"), "x").unwrap();
    let bed = Bed::new(&url(dir.path()));
    let old = bed.stat("script").unwrap();
    bed.rewrite("script", &old, vec![Segment::Copy { base: 0, offset: 0, len: 10 }, bed.data(b"echo\n")]).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\necho\n");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o750);
    assert!(!dir.path().join(".ovfs-tmp/left-behind").exists());
    assert_eq!(bed.names(""), ["script"]);
    assert_eq!(bed.kind(".ovfs-tmp"), Err(StoreErrorKind::NotFound));
    assert_eq!(bed.mkdir(".ovfs-tmp"), Err(StoreErrorKind::InvalidName));
    // Somebody else writes in place: the version tells.
    let now = bed.stat("script").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&path, "#!/bin/sh\nECHO\n").unwrap();
    let refused = bed.rewrite("script", &now, vec![bed.data(b"lost")]).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch);
    assert_eq!(fs::read_dir(dir.path().join(".ovfs-tmp")).unwrap().count(), 1);
    assert_eq!(bed.finish(0), 0);
    assert_eq!(fs::read_dir(dir.path().join(".ovfs-tmp")).map_or(0, Iterator::count), 0);
}

#[test]
fn names_that_are_not_text_are_hidden() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    for name in [&b"\xff\xfe"[..], b"trailing ", b"fine"] {
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    let bed = Bed::new(&url(dir.path()));
    assert_eq!(bed.names(""), ["fine"]);
}

#[test]
fn a_missing_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let e = Backend::parse(&url(&gone)).unwrap_err().to_string();
    assert_eq!(e, format!("fs: bad value for 'root': '{}': No such file or directory (os error 2)", gone.display()));
    fs::write(&gone, "").unwrap();
    assert!(Backend::parse(&url(&gone)).unwrap_err().to_string().ends_with("it is not a directory"));
    // Gone between the check and the start.
    fs::remove_file(&gone).unwrap();
    fs::create_dir(&gone).unwrap();
    let backend = Backend::parse(&url(&gone)).unwrap();
    fs::remove_dir(&gone).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let pool = Arc::new(Pool::new(4096).unwrap());
    let options = Bed::options(Duration::from_secs(1));
    let stores = vec![Mounted { id: 0, path: "/".into(), backend, options }];
    let eyes = Eyes { board: Arc::new(Board::new(1).unwrap()), device_pid: 0, metrics: None };
    assert_eq!(run(stores, pool, theirs.into(), Duration::from_secs(1), None, eyes, || (), || 0), 1);
}
