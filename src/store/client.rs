//! The device process's end of the store socket.
/// The device process's end of the store socket.
#[derive(Debug)]
pub struct StoreClient;
