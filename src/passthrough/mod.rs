//! A host directory, served by the `virtiofsd` crate's own file system.
