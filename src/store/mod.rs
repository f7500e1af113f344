//! The narrow interface between the device process (`objectfs`, `cache`) and the broker: messages, the pool they
//! point into, and the client end. Neither end's insides are known here.

pub mod client;
mod exchange;
pub mod frame;
pub mod path;
pub mod pool;
pub mod protocol;

pub use client::StoreClient;
pub use pool::Pool;
pub use protocol::*;
