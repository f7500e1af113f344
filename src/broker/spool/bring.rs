//! Bringing what was kept to its store.
//!
//! The rules are those of any upload: it takes the place of the version that it lies over, and of no other. If there is another,
//! what was kept is stored beside it; if that other one has the very bytes, the upload of the last run had reached the
//! store after all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::Spool;
use super::entry::{Description, Entry, Range, Unusable};
use crate::broker::mounts::{Mounts, Slot};
use crate::broker::serve::Mount;
use crate::store::beside::beside;
use crate::store::{Base, Condition, Kind, Meta, Op, Pool, Reply, Slice, StoreError, StoreErrorKind};

/// How long after a store did not take it a file is tried again, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);

/// Bytes that are compared at once.
const CHUNK: u32 = 1 << 20;

/// What became of a file.
enum Brought {
    /// It is in the store, under this name.
    As(String),
    /// It never will be.
    Never(String),
    /// It may be later.
    Later(String),
}

/// Brings all that was kept to the stores of `mounts` that it is for, oldest first, however long that takes.
pub(in crate::broker) async fn bring_all(spool: Arc<Spool>, mounts: Arc<Mounts>) {
    let listing = Arc::clone(&spool);
    let files = match spawn_blocking(move || listing.files()).await {
        Ok(Ok(files)) => files,
        Ok(Err(e)) => return log::error!("what was kept in {} cannot be seen: {e}", spool.dir.display()),
        Err(_) => return,
    };
    for file in files {
        let opening = file.clone();
        let entry = spawn_blocking(move || Entry::open(&opening)).await;
        let entry = match entry {
            Ok(Ok(entry)) => entry,
            Ok(Err(Unusable::Taken)) => continue,
            Ok(Err(e)) => {
                log::error!("{} is left as it is: {e}", file.display());
                continue;
            }
            Err(_) => return,
        };
        let of_store = |slot: &Arc<Slot>| slot.shows_as() == entry.description.store;
        let mut all: Vec<Arc<Slot>> = mounts.staying().into_iter().map(|(_, slot)| slot).filter(of_store).collect();
        all.sort_by_key(|slot| slot.path != entry.description.mount);
        match all.into_iter().next() {
            Some(slot) => drop(tokio::spawn(bring(Arc::clone(&spool), slot, entry, file))),
            None => log::warn!(
                "{} is left as it is: it is of {}, which is not served here",
                file.display(),
                entry.description.store
            ),
        }
    }
}

async fn bring(spool: Arc<Spool>, slot: Arc<Slot>, mut entry: Entry, file: PathBuf) {
    let description = entry.description.clone();
    // Behind its bytes is room for what it is compared with.
    let len = usize::try_from(description.data).ok().and_then(|len| len.checked_add(CHUNK as usize));
    let pool = len.ok_or(Unusable::Damaged("it is too long")).and_then(|len| Ok(Pool::new(len)?));
    let loaded = spawn_blocking(move || {
        let pool = pool?;
        entry.load(&pool)?;
        // Kept open: it is nobody else's until it is gone.
        Ok::<_, Unusable>((Arc::new(pool), entry))
    });
    let (pool, _entry) = match loaded.await {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(e)) => return log::error!("{} is left as it is: {e}", file.display()),
        Err(_) => return,
    };
    let mut pause = AGAIN;
    let mut said = false;
    let path = slot.path_of(&description.path);
    loop {
        let brought = match slot.beside(&pool) {
            Ok(mount) => store(&mount, &description, &pool).await,
            Err(error) => Brought::Later(error.to_string()),
        };
        match brought {
            Brought::As(name) => return done(&spool, &file, &path, &name, &description).await,
            Brought::Never(why) => {
                return log::error!("'{path}': what the last run kept is left in {}: {why}", file.display());
            }
            Brought::Later(why) => {
                let level = if said { log::Level::Debug } else { log::Level::Warn };
                log::log!(level, "'{path}': what the last run kept is not stored yet, and is tried again: {why}");
                said = true;
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(AGAIN_MAX);
    }
}

async fn done(spool: &Arc<Spool>, file: &Path, path: &str, name: &str, description: &Description) {
    let size = description.size;
    match name == description.path {
        true => log::info!("'{path}': {size} bytes that the last run kept are stored"),
        false => log::warn!(
            "'{path}' was changed by somebody else; the guest's version ({size} bytes), which the last run kept, is stored as '{name}'"
        ),
    }
    let (spool, file) = (Arc::clone(spool), file.to_owned());
    let removed = spawn_blocking(move || spool.remove(&file).map_err(|e| (file, e))).await;
    if let Ok(Err((file, e))) = removed {
        log::error!("{}: its store has it, but it cannot be taken away: {e}", file.display());
    }
}

async fn store(mount: &Mount, what: &Description, pool: &Pool) -> Brought {
    let when = what.base.clone().map_or(Condition::IfAbsent, Condition::IfVersion);
    let error = match compose(mount, what, &what.path, when).await {
        Ok(_) => return Brought::As(what.path.clone()),
        Err(error) => error,
    };
    match error.kind {
        StoreErrorKind::VersionMismatch | StoreErrorKind::Exists | StoreErrorKind::NotFound => {}
        StoreErrorKind::IsDir
        | StoreErrorKind::NotDir
        | StoreErrorKind::InvalidName
        | StoreErrorKind::TooLarge
        | StoreErrorKind::AttributesTooLarge
        | StoreErrorKind::Unsupported
        | StoreErrorKind::Protocol
        | StoreErrorKind::ReadOnly => return Brought::Never(error.text),
        _ => return Brought::Later(error.text),
    }
    if !what.is_whole() {
        return Brought::Never(format!("the version that it lies over is gone from the store ({})", error.text));
    }
    match is_there(mount, what, pool).await {
        Ok(true) => return Brought::As(what.path.clone()),
        Ok(false) => {}
        Err(error) => return Brought::Later(error.text),
    }
    let name = beside(&what.path);
    match compose(mount, what, &name, Condition::IfAbsent).await {
        Ok(_) => Brought::As(name),
        Err(error) => Brought::Later(error.text),
    }
}

async fn compose(mount: &Mount, what: &Description, path: &str, when: Condition) -> Result<(), StoreError> {
    let base = what.base.clone().filter(|_| !what.is_whole());
    let bases = base.map(|version| Base { path: what.path.clone(), version }).into_iter().collect();
    let (segments, attributes) = (what.segments(), what.attributes.clone());
    match mount.serve(Op::Compose { path: path.to_owned(), bases, when, segments, attributes }).await? {
        Reply::Meta(Meta { kind: Kind::File, size, .. }) if size == what.size => Ok(()),
        other => {
            let text = format!("the store has something else than was sent: {other:?}");
            Err(StoreError { kind: StoreErrorKind::Io, text })
        }
    }
}

/// Whether the very bytes are in the store already.
async fn is_there(mount: &Mount, what: &Description, pool: &Pool) -> Result<bool, StoreError> {
    let found = match mount.serve(Op::Stat { path: what.path.clone() }).await {
        Ok(Reply::Meta(meta)) => meta,
        Ok(_) => return Ok(false),
        Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if found.kind != Kind::File || found.size != what.size {
        return Ok(false);
    }
    let (mut offset, mut data) = (0, 0);
    for range in &what.ranges {
        let end = offset + range.len();
        while offset < end {
            // No more than a chunk, so it fits.
            let len = u32::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
            let dest = Slice { offset: what.data, len };
            let path = what.path.clone();
            match mount.serve(Op::Read { path, version: Some(found.version()), offset, dest }).await {
                Ok(_) => {}
                Err(error) if matches!(error.kind, StoreErrorKind::VersionMismatch | StoreErrorKind::NotFound) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            let (mut theirs, mut ours) = (vec![0; len as usize], vec![0; len as usize]);
            let mut read = pool.read(dest.offset, &mut theirs);
            if let Range::Data { .. } = range {
                read &= pool.read(data, &mut ours);
                data += u64::from(len);
            }
            if !read || theirs != ours {
                return Ok(false);
            }
            offset += u64::from(len);
        }
    }
    Ok(true)
}
