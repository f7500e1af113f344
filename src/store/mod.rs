//! The narrow interface between the device process (`objectfs`, `cache`) and the broker: messages, the pool they
//! point into, the client end, and [`Remote`] over it. Neither end's insides are known here.

pub mod beside;
pub mod client;
mod exchange;
pub mod frame;
pub mod path;
pub mod pool;
pub mod protocol;
mod remote;

pub use client::{Keep, StoreClient};
pub use pool::Pool;
pub use protocol::*;
pub use remote::{Page, Remote};

/// Something that carries out store operations: the [`StoreClient`], or a double in tests.
pub trait Store: Send + Sync + 'static {
    /// Carries out `op` on `mount`. Always ends: in the reply that `op` calls for or in an error. `keep` owns the slices
    /// that `op` names, and lives until nobody works with them any more, even if that is after the future's end.
    ///
    /// # Errors
    /// See [`StoreErrorKind`].
    fn perform(
        &self,
        mount: MountId,
        op: Op,
        keep: Keep,
    ) -> impl std::future::Future<Output = Result<Reply, StoreError>> + Send;
}

impl Store for std::sync::Arc<StoreClient> {
    async fn perform(&self, mount: MountId, op: Op, keep: Keep) -> Result<Reply, StoreError> {
        self.call_keeping(mount, op, keep).await
    }
}
