//! Store operations with typed answers. A reply of the wrong kind is an error of the broker, not of the guest.

use crate::store::{
    Base, Capabilities, Condition, Keep, ListEntry, Meta, MountId, Op, Reply, Segment, Slice, Store, StoreError,
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
        self.unit_keeping(op, Box::new(())).await
    }

    async fn unit_keeping(&self, op: Op, keep: Keep) -> Result<(), StoreError> {
        match self.store.perform(self.mount, op, keep).await? {
            Reply::Unit => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn meta(&self, op: Op) -> Result<Meta, StoreError> {
        self.meta_keeping(op, Box::new(())).await
    }

    async fn meta_keeping(&self, op: Op, keep: Keep) -> Result<Meta, StoreError> {
        match self.store.perform(self.mount, op, keep).await? {
            Reply::Meta(meta) => Ok(meta),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Probe`].
    pub async fn probe(&self) -> Result<Capabilities, StoreError> {
        match self.store.perform(self.mount, Op::Probe, Box::new(())).await? {
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
        match self.store.perform(self.mount, Op::List { path, cursor }, Box::new(())).await? {
            Reply::Entries { entries, cursor } => Ok((entries, cursor)),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::ListEnd`].
    pub async fn list_end(&self, cursor: u64) -> Result<(), StoreError> {
        self.unit(Op::ListEnd { cursor }).await
    }

    /// [`Op::Read`]; `keep` owns `dest`.
    pub async fn read(
        &self,
        path: String,
        version: Version,
        offset: u64,
        dest: Slice,
        keep: Keep,
    ) -> Result<(), StoreError> {
        self.unit_keeping(Op::Read { path, version: Some(version), offset, dest }, keep).await
    }

    /// [`Op::Compose`]; `keep` owns the slices in `segments`.
    pub async fn compose(
        &self,
        path: String,
        base: Option<Base>,
        when: Condition,
        segments: Vec<Segment>,
        keep: Keep,
    ) -> Result<Meta, StoreError> {
        self.meta_keeping(Op::Compose { path, base, when, segments }, keep).await
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
