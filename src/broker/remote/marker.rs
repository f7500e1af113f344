//! Markers: the empty objects `dir/` that make directories stay, and that carry what is known of them.
//!
//! OpenDAL's own operations take a name with a slash at its end for a directory and tell or write nothing of the object, so
//! these go to the service itself.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use opendal::options::WriteOptions;
use opendal::raw::{OpStat, OpWrite};
use opendal::{ErrorKind, Metadata};

use super::super::services::Upload;
use super::compose::keep_headers;
use super::metadata::UserMetadata;
use super::{Remote, dir_path, to_remember};
use crate::store::{Attributes, StoreError};

/// What marks a directory for programs that look beyond its name.
const CONTENT_TYPE: &str = "application/x-directory";

impl Remote {
    /// What the store says of the marker of the directory `path`.
    pub(super) async fn head_marker(&self, path: &str) -> Result<Option<Metadata>, StoreError> {
        let raw = &self.ops.raw;
        match raw.service().stat_dyn(raw.context(), &dir_path(path), OpStat::new()).await {
            Ok(answer) => {
                let metadata = answer.into_metadata();
                // OpenDAL makes one up for this service.
                let made_up = self.service.scheme == "obs" && metadata.last_modified().is_none();
                Ok((!made_up).then_some(metadata))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == ErrorKind::Unexpected && self.is_not_listed(&dir_path(path)).await => Ok(None),
            Err(e) => Err(self.fail("stat directory", path, &e)),
        }
    }

    /// Writes the marker of `path` so that it says `attributes`, and what it said beside.
    pub(super) async fn write_marker(&self, path: &str, attributes: &Attributes) -> Result<(), StoreError> {
        let before = self.head_marker(path).await?;
        let mut options = WriteOptions::default();
        let user = match &before {
            Some(metadata) => {
                keep_headers(&mut options, metadata);
                self.user_metadata(metadata)
            }
            None => UserMetadata::default(),
        };
        let mut attributes = attributes.clone();
        attributes.mode = attributes.mode.map(|mode| libc::S_IFDIR | mode & 0o7777);
        let user = self.with_attributes(user, &attributes, path)?;
        options.content_type = Some(CONTENT_TYPE.to_owned());
        self.put_marker(path, options, user).await
    }

    /// Makes the marker of `to` like the one of `from`, which need not have any.
    pub(super) async fn copy_marker(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let from = from.trim_end_matches('/');
        let to = to.trim_end_matches('/');
        let mut options = WriteOptions::default();
        match self.head_marker(from).await? {
            Some(metadata) => {
                keep_headers(&mut options, &metadata);
                self.put_marker(to, options, self.user_metadata(&metadata)).await
            }
            None => self.put_marker(to, options, UserMetadata::default()).await,
        }
    }

    async fn put_marker(&self, path: &str, mut options: WriteOptions, user: UserMetadata) -> Result<(), StoreError> {
        if self.service.upload == Upload::Memory {
            options.cache_control = Some(to_remember(self.generation.fetch_add(1, Ordering::Relaxed), &user));
        }
        let pairs: HashMap<_, _> = user.into_pairs().collect();
        options.user_metadata = (!pairs.is_empty()).then_some(pairs);
        let raw = &self.ops.raw;
        let put = async {
            let (args, _) = OpWrite::from_options(&raw.service().capability_dyn(), options)?;
            let mut writer = raw.service().write_dyn(raw.context(), &dir_path(path), args)?;
            writer.close_dyn().await
        };
        put.await.map(drop).map_err(|e| self.fail("create directory", path, &e))
    }
}
