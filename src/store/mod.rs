//! The narrow interface between the device process (`objectfs`, `cache`) and the broker: messages, the pool they
//! point into, and the client end. Neither end's insides are known here.

pub mod client;
pub mod frame;
pub mod path;
pub mod pool;
pub mod protocol;

pub use client::StoreClient;
pub use pool::Pool;
pub use protocol::*;

/// Something that carries out store operations: the [`StoreClient`], or a double in tests.
pub trait Store: Send + Sync + 'static {
    /// Carries out `op` on `mount`. Always ends: in the reply that `op` calls for or in an error. Slices named in `op`
    /// belong to the operation until then, even if the future is dropped.
    ///
    /// # Errors
    /// See [`StoreErrorKind`].
    fn call(&self, mount: MountId, op: Op) -> impl std::future::Future<Output = Result<Reply, StoreError>> + Send;
}
