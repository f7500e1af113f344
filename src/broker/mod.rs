//! The broker: the process that talks to stores, through OpenDAL.

mod services;
mod url;

pub use url::{Backend, BackendError, mask_secrets};
