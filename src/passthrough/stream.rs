//! Guest buffers under the names that the `virtiofsd` crate gives them.

use std::fs::File;
use std::io;

use virtiofsd::filesystem::{ZeroCopyReader, ZeroCopyWriter};
use virtiofsd::oslib::{ReadvFlags, WritevFlags};

use crate::fs::{Sink, Source};

/// Where the crate's WRITE takes its data from.
pub(super) struct SourceReader<'a, S>(pub(super) &'a mut S);

impl<S: Source> ZeroCopyReader for SourceReader<'_, S> {
    fn write_to_file_at(
        &mut self,
        file: &File,
        count: usize,
        offset: u64,
        flags: Option<WritevFlags>,
    ) -> io::Result<usize> {
        self.0.take_to_file(file, count, offset, flags.map_or(0, |flags| flags.bits()))
    }
}

/// Where the crate's READ puts its data.
pub(super) struct SinkWriter<'a, S>(pub(super) &'a mut S);

impl<S: Sink> ZeroCopyWriter for SinkWriter<'_, S> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        count: usize,
        offset: u64,
        flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        self.0.put_from_file(file, count, offset, flags.map_or(0, |flags| flags.bits()))
    }
}
