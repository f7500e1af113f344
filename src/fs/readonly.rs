//! CREATE where nothing can be changed: a file that exists is opened, as open(2) with O_CREAT does on a read-only mount.

use super::flags::{CREATION_FLAGS, refused_readonly};
use super::{Context, Entry, Errno, FileSystem, NodeId, Opened, Result};

/// Opens `name` below `parent`.
///
/// # Errors
/// EROFS: it does not exist, or `flags` ask for a change; what looking it up and opening it say.
pub async fn create<F: FileSystem>(
    fs: &F,
    ctx: Context,
    parent: NodeId,
    name: &[u8],
    flags: u32,
    kill_priv: bool,
) -> Result<(Entry, Opened)> {
    let missing = |errno| if errno == Errno::ENOENT { Errno::EROFS } else { errno };
    let entry = fs.lookup(ctx, parent, name).await.map_err(missing)?;
    if entry.nodeid == NodeId(0) {
        return Err(Errno::EROFS);
    }
    let opened = match refused_readonly(flags) {
        Some(errno) => Err(errno),
        None => fs.open(ctx, entry.nodeid, flags & !CREATION_FLAGS, kill_priv).await,
    };
    if opened.is_err() {
        fs.forget(entry.nodeid, 1);
    }
    Ok((entry, opened?))
}
