//! The broker: the process that talks to stores, through OpenDAL.

mod cursors;
mod error;
mod operator;
mod remote;
mod services;
mod url;

pub use url::{Backend, BackendError, mask_secrets};
