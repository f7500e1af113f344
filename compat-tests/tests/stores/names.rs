//! Names: made exclusively, renamed, and those that nobody can show.

use ovfs_compat_tests::error::errno_name;
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::stores::Kind;

use crate::stage::{
    NO_OUTSIDE, Outcome, Race, Stage, demand, emulated, errno, full, full_but, not_applicable, pattern,
};

const EXCLUSIVE: i32 = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;

pub fn exclusive_create_refuses_what_is_there(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, b"first")?;
    let answer = s.guest().create(ROOT, path.as_bytes(), EXCLUSIVE, 0o644);
    let got = errno(answer, "creating it again")?;
    demand(got == libc::EEXIST, errno_name(got))?;
    if s.kind().has_outside() {
        let path = s.path("outside");
        demand(!s.guest().exists(&path)?, "it exists before it is made")?;
        s.store.put(&path, b"theirs");
        let got = errno(s.guest().create(ROOT, path.as_bytes(), EXCLUSIVE, 0o644), "creating what is there")?;
        demand(got == libc::EEXIST, errno_name(got))?;
        s.expect(&path, b"theirs")?;
    }
    full()
}

/// Somebody makes the same name between create and close.
pub fn exclusive_create_notices_a_writer_outside(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let path = s.path("f");
    let (entry, file) = s.guest().create(ROOT, path.as_bytes(), EXCLUSIVE, 0o644)?;
    s.guest().write(entry.nodeid, file.fh, 0, b"ours")?;
    s.store.put(&path, b"theirs");
    let got = errno(s.guest().flush(entry.nodeid, file.fh), "the close")?;
    // Nobody hears what a release says.
    s.guest().release(entry.nodeid, file.fh).ok();
    s.conflict(&path, b"theirs", b"ours", got)
}

/// Somebody makes the same name while the upload is on its way.
pub fn exclusive_create_is_atomic_against_a_writer_outside(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let path = s.path("f");
    let (entry, file) = s.guest().create(ROOT, path.as_bytes(), EXCLUSIVE, 0o644)?;
    s.guest().write(entry.nodeid, file.fh, 0, b"ours")?;
    let race = s.race_flush(entry.nodeid, file.fh, |store| store.put(&path, b"theirs"))?;
    s.guest().release(entry.nodeid, file.fh).ok();
    let Race::Answered(answer) = race else { return not_applicable("the moment cannot be met from outside") };
    match answer {
        Ok(()) => {
            s.expect_outside(&path, Some(b"ours"))?;
            emulated("looked for before the upload: who comes in between is overwritten")
        }
        answer => {
            let got = errno(answer, "the close")?;
            s.conflict(&path, b"theirs", b"ours", got)
        }
    }
}

pub fn a_file_is_renamed(s: &mut Stage) -> Outcome {
    let (from, to, data) = (s.path("from"), s.path("to"), pattern(100_000, 1));
    s.guest().write_file(&from, &data)?;
    let before = s.before(&from);
    s.guest().rename_path(&from, &to)?;
    let verdict = s.how_renamed(before, &to);
    demand(!s.guest().exists(&from)?, "the old name is still there")?;
    s.expect_outside(&from, None)?;
    s.expect(&to, &data)?;
    verdict
}

pub fn a_file_is_renamed_over_another(s: &mut Stage) -> Outcome {
    let (from, to) = (s.path("from"), s.path("to"));
    s.guest().write_file(&from, b"new content")?;
    s.guest().write_file(&to, b"old")?;
    let before = s.before(&from);
    s.guest().rename_path(&from, &to)?;
    let verdict = s.how_renamed(before, &to);
    s.expect_outside(&from, None)?;
    s.expect(&to, b"new content")?;
    verdict
}

pub fn an_open_dirty_file_is_renamed(s: &mut Stage) -> Outcome {
    const LEN: usize = 1 << 20;
    let (from, to, data) = (s.path("from"), s.path("to"), pattern(LEN, 2));
    let (entry, file) = s.guest().create(ROOT, from.as_bytes(), libc::O_RDWR, 0o644)?;
    s.guest().write_all(entry.nodeid, file.fh, 0, &data)?;
    let before = s.before(&from);
    s.guest().rename_path(&from, &to)?;
    let moved = s.sent(before);
    s.guest().write(entry.nodeid, file.fh, 0, b"after the rename")?;
    s.guest().flush(entry.nodeid, file.fh)?;
    s.guest().release(entry.nodeid, file.fh)?;
    let mut data = data;
    data[..16].copy_from_slice(b"after the rename");
    s.expect(&to, &data)?;
    demand(!s.guest().exists(&from)?, "the old name is there")?;
    s.expect_outside(&from, None)?;
    if moved > LEN as u64 / 2 { emulated("uploaded first, then renamed") } else { full() }
}

pub fn a_directory_of_50_is_renamed(s: &mut Stage) -> Outcome {
    let (from, to) = (s.path("from"), s.path("to"));
    if s.kind().keeps_empty_dirs() {
        s.guest().mkdir(ROOT, from.as_bytes(), 0o755)?;
        s.guest().make_dirs(&format!("{from}/sub"))?;
    } else {
        s.store.put(&format!("{from}/sub/f00"), b"here to make the directories");
    }
    let name = |i: usize| if i.is_multiple_of(10) { format!("sub/f{i:02}") } else { format!("f{i:02}") };
    for i in 0..50 {
        s.guest().write_file(&format!("{from}/{}", name(i)), format!("file {i}").as_bytes())?;
    }
    let before = s.before(&format!("{from}/f01"));
    s.guest().rename_path(&from, &to)?;
    let verdict = s.how_renamed(before, &format!("{to}/f01"));
    demand(!s.guest().exists(&from)?, "the old name is still there")?;
    demand(s.guest().list(&to)?.len() == 46 && s.guest().list(&format!("{to}/sub"))?.len() == 5, "entries are lost")?;
    for i in 0..50 {
        s.expect(&format!("{to}/{}", name(i)), format!("file {i}").as_bytes())?;
        s.expect_outside(&format!("{from}/{}", name(i)), None)?;
    }
    verdict
}

/// Whatever is listed can be opened and is what it is called; the rest is hidden.
pub fn names_that_no_file_system_can_hold_are_hidden(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let dir = s.path("d");
    let long = "n".repeat(300);
    let names = [
        ("a plain one", "plain"),
        ("an ending blank", "blank "),
        ("a leading blank", " blank"),
        ("a control character", "bell\u{7}"),
        ("a double slash", "/under"),
        ("..", "../up"),
        ("300 bytes", long.as_str()),
        ("a backslash", "back\\slash"),
        ("a question mark", "what?"),
        ("a percent sign", "100%25"),
        ("not ASCII", "größe"),
    ];
    let (mut shown, mut hidden, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    for (what, name) in names {
        // On disks these are paths, and lead elsewhere.
        let leads_away = s.kind().is_files() && name.contains('/');
        // Azurite cannot list what it has once there is a control character, and takes a backslash for a slash.
        let breaks_the_server = s.kind() == Kind::Azurite && name.contains(['\u{7}', '\\']);
        let key = format!("{dir}/{name}");
        let skip = leads_away || breaks_the_server;
        if skip || s.store.try_put(&key, what.as_bytes()).is_err() || !s.store.keys().contains(&key) {
            refused.push(what);
        }
    }
    let listed = s.guest().list(&dir)?;
    for (what, name) in names {
        if refused.contains(&what) {
            continue;
        }
        if listed.iter().any(|l| l == name) {
            let got = s.guest().read_file(&format!("{dir}/{name}"));
            demand(got.is_ok_and(|data| data == what.as_bytes()), format!("{what} is listed, but not what it holds"))?;
            shown.push(what);
        } else {
            hidden.push(what);
        }
    }
    let strange: Vec<&String> = listed.iter().filter(|l| !names.iter().any(|(_, name)| l == name)).collect();
    demand(strange.is_empty(), format!("names are listed that nobody put there: {strange:?}"))?;
    demand(shown.contains(&"a plain one") && shown.contains(&"not ASCII"), "ordinary names are not shown")?;
    match hidden.as_slice() {
        [] => full_but("all that the store takes are shown"),
        hidden => emulated(format!("hidden: {}", hidden.join(", "))),
    }
}

pub fn a_directory_and_an_object_of_one_name(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    if s.kind().is_files() {
        return not_applicable(match s.kind() {
            Kind::S3sFs => "the server keeps objects as files, and cannot have both",
            _ => "a file system cannot have both",
        });
    }
    let path = s.path("x");
    s.store.put(&path, b"the object");
    s.store.put(&format!("{path}/below"), b"below");
    let attr = s.guest().stat(&path)?;
    demand(attr.is_dir(), "the directory is hidden by the object")?;
    let listed = s.guest().list("")?;
    demand(listed.iter().filter(|name| **name == path).count() == 1, "the name is listed more than once")?;
    s.expect(&format!("{path}/below"), b"below")?;
    s.expect_outside(&path, Some(b"the object"))?;
    emulated("the directory shows, the object is hidden and stays")
}
