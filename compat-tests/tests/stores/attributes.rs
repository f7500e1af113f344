//! Times, modes, and what an object is not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ovfs_compat_tests::error::{Answer, errno_name};
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::guest::SetAttr;
use ovfs_compat_tests::launch::{EXIT_TIMEOUT, READY, START_TIMEOUT, Scratch};
use ovfs_compat_tests::mounted::{Mounted, launch};
use ovfs_compat_tests::stores::Kind;

use crate::stage::{Outcome, Stage, demand, emulated, errno, full, full_but, refused};

/// Seconds that a busy machine may take between a write and a look at its time.
const ABOUT: i64 = 60;

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

pub fn mtime_of_a_written_file_is_about_now(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, b"now")?;
    let written = s.guest().stat(&path)?.mtime;
    demand((now() - written).abs() <= ABOUT, "it is another time after the close")?;
    if s.kind() != Kind::Memory {
        s.remount();
        let stored = s.guest().stat(&path)?.mtime;
        demand((stored - written).abs() <= ABOUT, "it is another time after a remount")?;
    }
    full()
}

pub fn utimens_sets_the_mtime(s: &mut Stage) -> Outcome {
    const THEN: i64 = 1_000_000_001;
    let path = s.path("f");
    s.guest().write_file(&path, b"then")?;
    let node = s.guest().resolve(&path)?;
    let attr = s.guest().setattr(node, &SetAttr::times((THEN - 1, 0), (THEN, 0)))?.attr;
    demand(attr.mtime == THEN && s.guest().stat(&path)?.mtime == THEN, "it is not what was set")?;
    if s.kind() == Kind::Memory {
        return full();
    }
    s.remount();
    match s.guest().stat(&path)?.mtime {
        THEN => full(),
        _ => emulated("kept while the daemon knows the file; after a remount the time of the last upload"),
    }
}

pub fn chmod_and_chown_do_no_harm(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, b"mine")?;
    let node = s.guest().resolve(&path)?;
    s.guest().setattr(node, &SetAttr::mode(0o600))?;
    s.guest().setattr(node, &SetAttr::owner(12, 34))?;
    s.expect(&path, b"mine")?;
    let attr = s.guest().stat(&path)?;
    if (attr.mode & 0o777, attr.uid, attr.gid) == (0o600, 12, 34) {
        full()
    } else {
        emulated("they succeed and change nothing")
    }
}

pub fn statfs_has_room(s: &mut Stage) -> Outcome {
    let statfs = s.guest().statfs(ROOT)?;
    let free = u128::from(statfs.bavail) * u128::from(statfs.frsize);
    demand(free >= 1 << 40, "there is less than 1 TiB")?;
    demand(statfs.ffree > 1 << 20 && statfs.namelen >= 255, "there are few or short names")?;
    full_but("what --capacity says, all of it free")
}

fn special<T>(answer: Answer<T>) -> Outcome {
    match answer {
        Ok(_) => full(),
        answer => errno(answer, "it").and_then(|errno| refused(errno_name(errno))),
    }
}

pub fn symbolic_links(s: &mut Stage) -> Outcome {
    let path = s.path("l");
    special(s.guest().symlink(ROOT, path.as_bytes(), b"target"))
}

pub fn hard_links(s: &mut Stage) -> Outcome {
    let (path, other) = (s.path("f"), s.path("l"));
    s.guest().write_file(&path, b"one")?;
    let node = s.guest().resolve(&path)?;
    special(s.guest().link(node, ROOT, other.as_bytes()))
}

pub fn fifos(s: &mut Stage) -> Outcome {
    let path = s.path("p");
    special(s.guest().mknod(ROOT, path.as_bytes(), libc::S_IFIFO | 0o644, 0, 0))
}

pub fn device_nodes(s: &mut Stage) -> Outcome {
    let path = s.path("null");
    special(s.guest().mknod(ROOT, path.as_bytes(), libc::S_IFCHR | 0o644, 0x103, 0))
}

pub fn user_xattrs(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, b"x")?;
    let node = s.guest().resolve(&path)?;
    special(s.guest().setxattr(node, b"user.a", b"1", 0))
}

/// With `--posix-metadata`, what a disk keeps about a file is still there after a remount.
pub fn posix_metadata_is_kept(s: &mut Stage) -> Outcome {
    const THEN: i64 = 1_000_000_001;
    const ARGS: [&str; 1] = ["--posix-metadata"];
    let scratch = Scratch::new();
    let mut trial = launch(&s.store, &scratch, &ARGS).start();
    while trial.try_exit().is_none() && !trial.stderr().contains(READY) {
        demand(trial.age() < START_TIMEOUT, "the daemon neither starts nor ends")?;
        std::thread::sleep(Duration::from_millis(20));
    }
    if trial.try_exit().is_some() {
        let text = trial.finish().stderr;
        // As the daemon's log has it, or as its command line's errors are.
        let said = text.lines().find_map(|line| line.split_once("ERROR ovfs] ").or_else(|| line.split_once("error: ")));
        return refused(format!("at start: {}", said.map_or("it ends without a word", |(_, said)| said.trim())));
    }
    trial.signal(libc::SIGTERM);
    trial.wait_exit(EXIT_TIMEOUT).ok();

    let (file, link) = (s.path("f"), s.path("l"));
    let mut mount = Mounted::new(&s.store, &ARGS);
    let guest = &mut mount.guest;
    guest.write_file(&file, b"with attributes")?;
    let node = guest.resolve(&file)?;
    guest.setattr(node, &SetAttr::mode(0o640))?;
    guest.setattr(node, &SetAttr::owner(12, 34))?;
    guest.setattr(node, &SetAttr::times((THEN, 0), (THEN, 0)))?;
    guest.setxattr(node, b"user.colour", b"blue", 0)?;
    guest.symlink(ROOT, link.as_bytes(), b"where/it/leads")?;
    mount.end();
    if s.kind() == Kind::Memory {
        return emulated("until the daemon ends");
    }
    let mut mount = Mounted::new(&s.store, &ARGS);
    let guest = &mut mount.guest;
    let attr = guest.stat(&file)?;
    demand(attr.mode & 0o7777 == 0o640, "the mode is lost")?;
    demand((attr.uid, attr.gid) == (12, 34), "the owner is lost")?;
    demand(attr.mtime == THEN, "the time is lost")?;
    let node = guest.resolve(&file)?;
    demand(guest.getxattr(node, b"user.colour", 100)? == b"blue", "the extended attribute is lost")?;
    let node = guest.resolve(&link)?;
    demand(guest.readlink(node)? == b"where/it/leads", "the symbolic link is lost")?;
    demand(guest.read_file(&file)? == b"with attributes", "the content is lost")?;
    mount.end();
    full()
}
