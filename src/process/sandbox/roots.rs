//! chroot(2): the shared directory, or nothing, as the root of a process without namespaces of its own.

use std::env;
use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use virtiofsd::sandbox::Error as Cause;

use super::{Confined, SandboxError};

/// Makes `dir` the root, keeping what virtiofsd's file system needs of /proc.
pub(super) fn chroot_into(dir: &CStr, mountinfo_prefix: Option<String>) -> Result<Confined, SandboxError> {
    let open_path = |path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    let proc_self_fd = open_path("/proc/self/fd").map_err(Cause::OpenProcSelfFd)?;
    let mountinfo = fs::File::open("/proc/self/mountinfo").map_err(Cause::OpenMountinfo)?;
    chroot(dir).map_err(Cause::Chroot)?;
    env::set_current_dir("/").map_err(Cause::ChrootChdir)?;
    Ok(Confined {
        proc_self_fd: Some(proc_self_fd),
        mountinfo: Some(mountinfo),
        root_dir: "/".to_owned(),
        mountinfo_prefix,
    })
}

/// Makes a directory the root that is empty and stays so: it has been deleted, and the kernel creates nothing in deleted
/// directories.
pub(super) fn chroot_into_nothing() -> Result<Confined, SandboxError> {
    let step = |step| move |error| SandboxError::EmptyRoot { step, error };
    let dir = create_private_dir().map_err(step("creating an empty directory"))?;
    let entered = env::set_current_dir(&dir);
    fs::remove_dir(&dir).map_err(step("deleting the empty directory"))?;
    entered.map_err(step("entering the empty directory"))?;
    chroot(c".").map_err(step("chroot"))?;
    Ok(Confined::default())
}

/// A new directory that nobody else can enter, wherever one can be made.
fn create_private_dir() -> io::Result<PathBuf> {
    let mut result = Err(io::ErrorKind::NotFound.into());
    for parent in [env::temp_dir().as_path(), Path::new("/run"), Path::new("/dev/shm")] {
        for attempt in 0..100 {
            let dir = parent.join(format!("ovfs-{}-{attempt}", process::id()));
            result = fs::DirBuilder::new().mode(0o700).create(&dir).map(|()| dir);
            match &result {
                Ok(_) => return result,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => break,
            }
        }
    }
    result
}

fn chroot(dir: &CStr) -> io::Result<()> {
    // SAFETY: a C string.
    if unsafe { libc::chroot(dir.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
