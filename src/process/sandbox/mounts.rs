//! The worker's view of files in its own mount namespace: the shared directory, or nothing at all.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use virtiofsd::oslib;
use virtiofsd::passthrough::stat::statx;
use virtiofsd::sandbox::Error as Cause;

use super::{Confined, SandboxError};

/// Makes `dir`, with all that is mounted below it, the root of everything.
///
/// Mounts that the host makes below it later still arrive, but none of ours leaves. Of /proc only one's own
/// descriptors stay in reach, through a descriptor; that is what virtiofsd's file system reopens inodes by.
pub(super) fn enter_shared_dir(dir: &CStr) -> Result<Confined, SandboxError> {
    // Its mountinfo is opened last, when it shows the mounts made here; and it must be this /proc, which is about to be
    // covered.
    let proc_self = open_path("/proc/self").map_err(Cause::OpenProcSelf)?;
    oslib::mount(None, "/", None, libc::MS_SLAVE | libc::MS_REC).map_err(Cause::CleanMount)?;
    let proc_flags = libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOSUID | libc::MS_RELATIME;
    oslib::mount(Some("proc"), "/proc", Some("proc"), proc_flags).map_err(Cause::MountProc)?;
    oslib::mount(Some("/proc/self/fd"), "/proc", None, libc::MS_BIND).map_err(Cause::BindMountProcSelfFd)?;
    let proc_self_fd = open_path("/proc").map_err(Cause::OpenProcSelfFd)?;

    let new_root = clone_mount(dir).map_err(Cause::OpenNewRoot)?;
    oslib::move_mount(Some(&new_root), c"", None, dir, oslib::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Cause::BindMountSharedDir)?;
    let old_root =
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open("/").map_err(Cause::OpenOldRoot)?;
    oslib::fchdir(new_root.as_raw_fd()).map_err(Cause::ChdirNewRoot)?;
    if !same_mount_point(&old_root, &new_root)? {
        pivot_root_here().map_err(Cause::PivotRoot)?;
        oslib::fchdir(old_root.as_raw_fd()).map_err(Cause::ChdirOldRoot)?;
        oslib::mount(None, ".", None, libc::MS_SLAVE | libc::MS_REC).map_err(Cause::CleanMount)?;
        oslib::umount2(".", libc::MNT_DETACH).map_err(Cause::UmountOldRoot)?;
        oslib::fchdir(new_root.as_raw_fd()).map_err(Cause::ChdirNewRoot)?;
    }
    let mountinfo = oslib::openat(&proc_self, c"mountinfo", libc::O_RDONLY | libc::O_CLOEXEC, None)
        // SAFETY: openat just gave us this descriptor.
        .map(|fd| unsafe { File::from_raw_fd(fd) })
        .map_err(Cause::OpenMountinfo)?;
    Ok(Confined {
        proc_self_fd: Some(proc_self_fd),
        mountinfo: Some(mountinfo),
        root_dir: "/".to_owned(),
        mountinfo_prefix: None,
    })
}

/// Leaves nothing: the root becomes an empty tmpfs that cannot be written to.
pub(super) fn enter_empty_root() -> Result<Confined, SandboxError> {
    let step = |step| move |error| SandboxError::EmptyRoot { step, error };
    // Private, not slave: nothing that the host mounts later has any business here.
    oslib::mount(None, "/", None, libc::MS_PRIVATE | libc::MS_REC).map_err(step("unsharing mounts"))?;
    let flags = libc::MS_RDONLY | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOSUID;
    oslib::mount(Some("ovfs"), "/proc", Some("tmpfs"), flags).map_err(step("mounting an empty root"))?;
    std::env::set_current_dir("/proc").map_err(step("changing to the empty root"))?;
    pivot_root_here().map_err(step("pivot_root"))?;
    // Both roots are at "." now, the old one on top.
    oslib::umount2(".", libc::MNT_DETACH).map_err(step("unmounting the old root"))?;
    std::env::set_current_dir("/").map_err(step("changing to the new root"))?;
    Ok(Confined::default())
}

fn open_path(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

/// A detached copy of the mounts at and below `dir`.
fn clone_mount(dir: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::AT_RECURSIVE as libc::c_uint | libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let fd = oslib::open_tree(None, dir, flags)?;
    // SAFETY: open_tree just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the shared directory is `/` itself, which is the root already.
fn same_mount_point(old: &File, new: &OwnedFd) -> Result<bool, Cause> {
    let old = statx(old, None).map_err(Cause::StatOldRoot)?;
    let new = statx(new, None).map_err(Cause::StatNewRoot)?;
    Ok(old.mnt_id == new.mnt_id && old.st.st_dev == new.st.st_dev && old.st.st_ino == new.st.st_ino)
}

/// pivot_root(".", "."): the working directory becomes the root, with the old root mounted over it.
fn pivot_root_here() -> io::Result<()> {
    // SAFETY: two C strings.
    if unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
