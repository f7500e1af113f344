//! Serving a directory with the `virtiofsd` crate's own device, until ours is merged.

use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use log::{error, info};
use vhost_user_backend022::Error::HandleRequest;
use vhost_user_backend022::VhostUserDaemon;
use vhost016::vhost_user::Error::Disconnected;
use vhost016::vhost_user::Listener;
use virtiofsd::filesystem::{FileSystem, SerializableFileSystem};
use virtiofsd::passthrough::{Config, PassthroughFs, read_only::PassthroughFsRo};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory017::{GuestMemoryAtomic, GuestMemoryMmap};

use super::StartError;
use crate::cli::Device;
use crate::process::log::TARGET;

pub(super) fn serve(config: Config, readonly: bool, listener: UnixListener, device: &Device) -> Result<(), StartError> {
    if readonly {
        serve_fs(PassthroughFsRo::new(config).map_err(StartError::FileSystem)?, listener, device)
    } else {
        serve_fs(PassthroughFs::new(config).map_err(StartError::FileSystem)?, listener, device)
    }
}

fn serve_fs<F: FileSystem + SerializableFileSystem + Send + Sync + 'static>(
    fs: F,
    listener: UnixListener,
    device: &Device,
) -> Result<(), StartError> {
    let backend = VhostUserFsBackendBuilder::default()
        .set_thread_pool_size(device.thread_pool_size)
        .set_tag(device.tag.clone())
        .build(fs)
        .map_err(|error| StartError::Device(format!("Error creating vhost-user backend: {error}")))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("virtiofsd-backend".to_owned(), Arc::new(backend), memory)
        .map_err(|error| StartError::Device(error.to_string()))?;
    info!(target: TARGET, "Waiting for vhost-user socket connection...");
    // SAFETY: the descriptor was just given up by its owner.
    let mut listener = unsafe { Listener::from_raw_fd(listener.into_raw_fd()) };
    daemon.start(&mut listener).map_err(|error| StartError::Device(format!("Failed to start daemon: {error:?}")))?;
    info!(target: TARGET, "Client connected, servicing requests");
    match daemon.wait() {
        Ok(()) => {}
        Err(HandleRequest(Disconnected)) => info!(target: TARGET, "Client disconnected, shutting down"),
        Err(error) => error!(target: TARGET, "Waiting for daemon failed: {error:?}"),
    }
    Ok(())
}
