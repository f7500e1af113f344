//! Several stores in one share, through the whole daemon: what lies side by side stays apart, whatever befalls one of them.

mod coming;
mod outage;
mod reload;
mod rotation;
mod share;
mod speed;
mod spool;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ovfs_compat_tests::error::Fault;
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::launch::{Daemon, Launch, Scratch, Which, binary};
use ovfs_compat_tests::mounted::guest;
use ovfs_compat_tests::stores::{ACCESS_KEY, SECRET_KEY, TestStore};

/// ovfs with a file of settings, and a guest.
struct Share {
    guest: Guest,
    daemon: Daemon,
    _scratch: Scratch,
}

/// Writes a file that only its owner can read.
fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("write the file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set its mode");
}

/// An entry of `[[mounts]]` for an S3 server at `port`, with more keys.
fn s3(path: &str, port: u16, more: &str) -> String {
    format!(
        "[[mounts]]\npath = \"{path}\"\ntype = \"s3\"\nbucket = \"bucket\"\nregion = \"us-east-1\"\n\
         endpoint = \"http://127.0.0.1:{port}\"\naccess_key_id = \"{ACCESS_KEY}\"\n\
         secret_access_key = \"{SECRET_KEY}\"\n{more}\n"
    )
}

/// An entry for a store that is a directory.
fn local(path: &str, store: &TestStore, more: &str) -> String {
    let root = store.url().trim_start_matches("fs://").to_owned();
    format!("[[mounts]]\npath = \"{path}\"\ntype = \"fs\"\nroot = \"{root}\"\n{more}\n")
}

fn launch(file: &Path, socket: &Path) -> Launch {
    Launch::new(binary(Which::Ovfs)).arg("--config-file").arg(file).arg("--socket-path").arg(socket)
}

/// A share that a file of these sections describes.
fn share(sections: &[String]) -> Share {
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &sections.concat());
    let mut daemon = launch(&file, &socket).start();
    let guest = guest(&mut daemon, &socket);
    Share { guest, daemon, _scratch: scratch }
}

fn errno<T: std::fmt::Debug>(answer: Result<T, Fault>) -> i32 {
    match answer {
        Err(Fault::Errno(errno)) => errno,
        other => panic!("expected an errno, got {other:?}"),
    }
}
