//! The store protocol with typed answers, for whatever carries it out.
//!
//! Every operation ends in what its [`Op`] calls for or in an error. The errors are those of [`Store::perform`], and
//! Protocol for a reply of the wrong kind: that is the store's fault, never the caller's.

use std::any::Any;

use super::exchange::error;
use super::{
    Attributes, Base, Capabilities, Condition, Keep, Kind, ListEntry, Meta, MountId, Op, Reply, Segment, Slice, Store,
    StoreError, StoreErrorKind, Version,
};

/// How much of a reply of the wrong kind an error tells, in characters.
const REPLY_TEXT_MAX: usize = 200;

/// A page of a listing.
#[derive(Debug)]
pub struct Page {
    /// Names, in no order.
    pub entries: Vec<ListEntry>,
    /// Where the next page is, if there is one.
    pub cursor: Option<u64>,
    /// The name that all that was told does not follow, and all that was not does; `None`: the store cannot go on from a name.
    pub after: Option<String>,
}

/// One mount of a store.
#[derive(Debug)]
pub struct Remote<S> {
    store: S,
    mount: MountId,
}

impl<S: Store> Remote<S> {
    /// The mount number `mount` of `store`.
    pub fn new(store: S, mount: MountId) -> Remote<S> {
        Remote { store, mount }
    }

    async fn perform(&self, op: Op) -> Result<Reply, StoreError> {
        self.store.perform(self.mount, op, Box::new(())).await
    }

    async fn unit(&self, op: Op, keep: Keep) -> Result<(), StoreError> {
        match self.store.perform(self.mount, op, keep).await? {
            Reply::Unit => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn meta(&self, op: Op, keep: Keep) -> Result<Meta, StoreError> {
        match self.store.perform(self.mount, op, keep).await? {
            Reply::Meta(meta) => Ok(meta),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Probe`]: what the store can do.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn probe(&self) -> Result<Capabilities, StoreError> {
        match self.perform(Op::Probe).await? {
            Reply::Capabilities(capabilities) => Ok(capabilities),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Stat`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn stat(&self, path: impl Into<String>) -> Result<Meta, StoreError> {
        self.meta(Op::Stat { path: path.into() }, Box::new(())).await
    }

    /// [`Op::Look`]: what is there, and all that is below it if that has come along.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn look(&self, path: impl Into<String>) -> Result<(Meta, Option<Vec<ListEntry>>), StoreError> {
        match self.perform(Op::Look { path: path.into() }).await? {
            Reply::Looked { meta, below } => Ok((meta, below)),
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::Tell`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn tell(&self, path: impl Into<String>, kind: Kind) -> Result<Meta, StoreError> {
        self.meta(Op::Tell { path: path.into(), kind }, Box::new(())).await
    }

    /// [`Op::List`]: a page, and the cursor of the next one.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn list(
        &self,
        path: impl Into<String>,
        cursor: u64,
    ) -> Result<(Vec<ListEntry>, Option<u64>), StoreError> {
        let page = self.page(path, cursor, None).await?;
        Ok((page.entries, page.cursor))
    }

    /// [`Op::List`]: the page at `cursor`, or the one that follows the name `after`.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn page(&self, path: impl Into<String>, cursor: u64, after: Option<String>) -> Result<Page, StoreError> {
        match self.perform(Op::List { path: path.into(), cursor, after }).await? {
            Reply::Entries { entries, cursor, after } => {
                Ok(Page { entries, cursor: cursor.filter(|&cursor| cursor != 0), after })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// [`Op::ListEnd`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn list_end(&self, cursor: u64) -> Result<(), StoreError> {
        self.unit(Op::ListEnd { cursor }, Box::new(())).await
    }

    /// [`Op::Read`]; `keep` owns `dest`.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn read(
        &self,
        path: impl Into<String>,
        version: Option<Version>,
        offset: u64,
        dest: Slice,
        keep: impl Any + Send,
    ) -> Result<(), StoreError> {
        self.unit(Op::Read { path: path.into(), version, offset, dest }, Box::new(keep)).await
    }

    /// [`Op::Compose`]; `keep` owns the slices of [`Segment::Data`].
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn compose(
        &self,
        path: impl Into<String>,
        bases: Vec<Base>,
        when: Condition,
        segments: Vec<Segment>,
        attributes: Option<Box<Attributes>>,
        keep: impl Any + Send,
    ) -> Result<Meta, StoreError> {
        self.meta(Op::Compose { path: path.into(), bases, when, segments, attributes }, Box::new(keep)).await
    }

    /// [`Op::Spool`]; `keep` owns the slices of [`Segment::Data`].
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn spool(
        &self,
        path: impl Into<String>,
        base: Option<Version>,
        segments: Vec<Segment>,
        attributes: Option<Box<Attributes>>,
        keep: impl Any + Send,
    ) -> Result<(), StoreError> {
        self.unit(Op::Spool { path: path.into(), base, segments, attributes }, Box::new(keep)).await
    }

    /// [`Op::FlowBegin`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn flow_begin(
        &self,
        flow: u64,
        path: impl Into<String>,
        base: Option<Base>,
        when: Condition,
        attributes: Option<Box<Attributes>>,
    ) -> Result<(), StoreError> {
        self.unit(Op::FlowBegin { flow, path: path.into(), base, when, attributes }, Box::new(())).await
    }

    /// [`Op::FlowSend`]; `keep` owns the slices.
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn flow_send(
        &self,
        flow: u64,
        number: u32,
        data: Vec<Slice>,
        keep: impl Any + Send,
    ) -> Result<(), StoreError> {
        self.unit(Op::FlowSend { flow, number, data }, Box::new(keep)).await
    }

    /// [`Op::FlowEnd`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn flow_end(&self, flow: u64, pieces: u32) -> Result<Meta, StoreError> {
        self.meta(Op::FlowEnd { flow, pieces }, Box::new(())).await
    }

    /// [`Op::FlowAbort`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn flow_abort(&self, flow: u64) -> Result<(), StoreError> {
        self.unit(Op::FlowAbort { flow }, Box::new(())).await
    }

    /// [`Op::Delete`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn delete(&self, path: impl Into<String>) -> Result<(), StoreError> {
        self.unit(Op::Delete { path: path.into() }, Box::new(())).await
    }

    /// [`Op::DeleteMany`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn delete_many(&self, paths: Vec<String>) -> Result<(), StoreError> {
        self.unit(Op::DeleteMany { paths }, Box::new(())).await
    }

    /// [`Op::CreateDir`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn create_dir(
        &self,
        path: impl Into<String>,
        attributes: Option<Box<Attributes>>,
    ) -> Result<(), StoreError> {
        self.unit(Op::CreateDir { path: path.into(), attributes }, Box::new(())).await
    }

    /// [`Op::RemoveDir`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn remove_dir(&self, path: impl Into<String>) -> Result<(), StoreError> {
        self.unit(Op::RemoveDir { path: path.into() }, Box::new(())).await
    }

    /// [`Op::Copy`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn copy(
        &self,
        from: impl Into<String>,
        to: impl Into<String>,
        version: Option<Version>,
    ) -> Result<Meta, StoreError> {
        self.meta(Op::Copy { from: from.into(), to: to.into(), version }, Box::new(())).await
    }

    /// [`Op::RenameFile`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn rename_file(
        &self,
        from: impl Into<String>,
        to: impl Into<String>,
        when: Condition,
        version: Option<Version>,
    ) -> Result<Meta, StoreError> {
        self.meta(Op::RenameFile { from: from.into(), to: to.into(), when, version }, Box::new(())).await
    }

    /// [`Op::RenameDir`]
    ///
    /// # Errors
    /// As [`Store::perform`]'s.
    pub async fn rename_dir(&self, from: impl Into<String>, to: impl Into<String>) -> Result<(), StoreError> {
        self.unit(Op::RenameDir { from: from.into(), to: to.into() }, Box::new(())).await
    }
}

fn unexpected(reply: &Reply) -> StoreError {
    let text = format!("a reply of another kind: {reply:?}").chars().take(REPLY_TEXT_MAX).collect::<String>();
    error(StoreErrorKind::Protocol, text)
}
