//! Serving a directory of the host: virtiofsd's process model. With the namespace sandbox the parent waits, without
//! any capability, and ends as its child ends; otherwise there is one process.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use virtiofsd::passthrough;
use virtiofsd::sandbox::SandboxMode;

use super::{StartError, device_config};
use crate::cli::{Device, HostDir, Setup};
use crate::device;
use crate::fuse::{Server, ServerOptions};
use crate::passthrough::Passthrough;
use crate::process::memory::release_code;
use crate::process::sandbox::{self, Confined, Role};
use crate::process::socket::Endpoint;
use crate::process::{caps, limits, seccomp};

/// Serves until the client has gone; returns the exit code.
pub(super) fn run(dir: HostDir, setup: &Setup) -> Result<i32, StartError> {
    let (listener, place) = Endpoint::open(&setup.endpoint)?.split();
    let guest_fd_limit = limits::set_nofile(setup.rlimit_nofile, setup.device.thread_pool_size)?;
    let confined = match sandbox::enter(&setup.sandbox, caps::drop_in_waiting_parent).inspect_err(|_| place.remove())? {
        Role::Worker(confined) => confined,
        Role::Parent(child) => {
            drop(listener);
            return Ok(child.wait());
        }
    };
    // Of two processes the parent holds the pid file.
    let place = (setup.sandbox.mode != SandboxMode::Namespace).then_some(place);
    seccomp::enable(setup.seccomp, setup.log.syslog)?;
    caps::keep_for_host_dir(dir.config.inode_file_handles, dir.modcaps.as_deref())?;
    serve_passthrough(complete(dir.config, confined, guest_fd_limit), dir.readonly, &listener, &setup.device)?;
    // In a sandbox the socket's path means something else, or nothing.
    if let Some(place) = place.filter(|_| setup.sandbox.mode == SandboxMode::None) {
        place.remove();
    }
    Ok(0)
}

/// Adds to the flags' part of the file system's configuration what only the start could tell.
fn complete(config: passthrough::Config, confined: Confined, guest_fd_limit: u64) -> passthrough::Config {
    passthrough::Config {
        root_dir: confined.root_dir,
        mountinfo_prefix: confined.mountinfo_prefix,
        proc_sfd_rawfd: confined.proc_self_fd,
        proc_mountinfo_rawfd: confined.mountinfo,
        guest_fd_limit,
        ..config
    }
}

/// Creates the file system, says that we are ready, accepts one client and serves it until it disconnects.
fn serve_passthrough(
    config: passthrough::Config,
    readonly: bool,
    listener: &UnixListener,
    device: &Device,
) -> Result<(), StartError> {
    let fs = Arc::new(Passthrough::new(config, readonly).map_err(StartError::FileSystem)?);
    let server = Arc::new(Server::new(fs, ServerOptions { readonly }));
    let migrate = Arc::clone(&server);
    release_code();
    device::serve(&device_config(device), server, Some(migrate), listener).map_err(StartError::Device)
}
