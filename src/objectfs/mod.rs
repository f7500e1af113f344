//! A store as a file system: nodeids, names, handles, directories, attributes.
