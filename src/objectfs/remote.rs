//! Store operations with typed answers. A reply of the wrong kind is an error of the broker, not of the guest.

use crate::store::{
    Base, Capabilities, Condition, ListEntry, Meta, MountId, Op, Reply, Segment, Slice, Store, StoreError,
    StoreErrorKind, Version,
};

/// One mount of a store.
#[derive(Debug)]
pub struct Remote<S> {
    store: S,
    mount: MountId,
}

fn unexpected(reply: &Reply) -> StoreError {
    StoreError { kind: StoreErrorKind::Protocol, text: format!("unexpected reply {reply:?}") }
}

impl<S: Store> Remote<S> {
    /// The mount number `mount` of `store`.
    pub fn new(store: S, mount: MountId) -> Remote<S> {
        Remote { store, mount }
    }

    async fn unit(&self, op: Op) -> Result<(), StoreError> {
        match self.store.call(self.mount, op).await? {
            Reply::Unit => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn meta(&self, op: Op) -> Result<Meta, StoreError> {
        match self.store.call(self.mount, op).await? {
            Reply::Meta(meta) => Ok(meta),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Probe`].
    pub async fn probe(&self) -> Result<Capabilities, StoreError> {
        match self.store.call(self.mount, Op::Probe).await? {
            Reply::Capabilities(capabilities) => Ok(capabilities),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Stat`].
    pub async fn stat(&self, path: String) -> Result<Meta, StoreError> {
        self.meta(Op::Stat { path }).await
    }

    /// [`Op::List`]: a page and the cursor of the next.
    pub async fn list(&self, path: String, cursor: u64) -> Result<(Vec<ListEntry>, Option<u64>), StoreError> {
        match self.store.call(self.mount, Op::List { path, cursor }).await? {
            Reply::Entries { entries, cursor } => Ok((entries, cursor)),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::ListEnd`].
    pub async fn list_end(&self, cursor: u64) -> Result<(), StoreError> {
        self.unit(Op::ListEnd { cursor }).await
    }

    /// [`Op::Read`].
    pub async fn read(&self, path: String, version: Version, offset: u64, dest: Slice) -> Result<(), StoreError> {
        self.unit(Op::Read { path, version: Some(version), offset, dest }).await
    }

    /// [`Op::Compose`].
    pub async fn compose(
        &self,
        path: String,
        base: Option<Base>,
        when: Condition,
        segments: Vec<Segment>,
    ) -> Result<Meta, StoreError> {
        self.meta(Op::Compose { path, base, when, segments }).await
    }

    /// [`Op::Delete`].
    pub async fn delete(&self, path: String) -> Result<(), StoreError> {
        self.unit(Op::Delete { path }).await
    }

    /// [`Op::CreateDir`].
    pub async fn create_dir(&self, path: String) -> Result<(), StoreError> {
        self.unit(Op::CreateDir { path }).await
    }

    /// [`Op::RemoveDir`].
    pub async fn remove_dir(&self, path: String) -> Result<(), StoreError> {
        self.unit(Op::RemoveDir { path }).await
    }

    /// [`Op::Copy`].
    pub async fn copy(&self, from: String, to: String) -> Result<Meta, StoreError> {
        self.meta(Op::Copy { from, to }).await
    }

    /// [`Op::RenameFile`].
    pub async fn rename_file(&self, from: String, to: String, when: Condition) -> Result<Meta, StoreError> {
        self.meta(Op::RenameFile { from, to, when }).await
    }

    /// [`Op::RenameDir`].
    pub async fn rename_dir(&self, from: String, to: String) -> Result<(), StoreError> {
        self.unit(Op::RenameDir { from, to }).await
    }
}
