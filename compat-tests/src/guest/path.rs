//! Helpers that walk paths, for tests that care about files and not about requests.
//!
//! Paths are relative to the root, components separated by `/`; the empty path is the root.

use super::{Guest, SetAttr};
use crate::error::{Answer, Error, Fault};
use crate::fuse::{Attr, DirEntry, Entry, ROOT};

/// Data per READ and WRITE request of the helpers.
const CHUNK: usize = 128 << 10;

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Guest {
    /// The node at `path`.
    pub fn resolve(&mut self, path: &str) -> Answer<u64> {
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT, |node, name| self.lookup(node, name.as_bytes()).map(|entry| entry.nodeid))
    }

    /// The attributes at `path`.
    pub fn stat(&mut self, path: &str) -> Answer<Attr> {
        let node = self.resolve(path)?;
        Ok(self.getattr(node, None)?.attr)
    }

    /// Whether `path` exists.
    pub fn exists(&mut self, path: &str) -> Answer<bool> {
        match self.resolve(path) {
            Ok(_) => Ok(true),
            Err(Fault::Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }

    /// Writes a file, replacing what it held, and closes it.
    pub fn write_file(&mut self, path: &str, data: &[u8]) -> Answer<Entry> {
        let (dir, name) = split(path);
        let parent = self.resolve(dir)?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let (entry, file) = self.create(parent, name.as_bytes(), flags, 0o644)?;
        self.write_all(entry.nodeid, file.fh, 0, data)?;
        self.flush(entry.nodeid, file.fh)?;
        self.release(entry.nodeid, file.fh)?;
        Ok(entry)
    }

    /// Writes all of `data` at `offset` of an open file, in chunks.
    pub fn write_all(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<()> {
        let mut done = 0;
        while done < data.len() {
            let chunk = &data[done..data.len().min(done + CHUNK)];
            let n = self.write(nodeid, fh, offset + done as u64, chunk)?;
            if n == 0 {
                return Err(Fault::Device(Error::BadReply("WRITE took nothing".into())));
            }
            done += n as usize;
        }
        Ok(())
    }

    /// Reads a whole file.
    pub fn read_file(&mut self, path: &str) -> Answer<Vec<u8>> {
        let node = self.resolve(path)?;
        let file = self.open(node, libc::O_RDONLY)?;
        let data = self.read_to_end(node, file.fh);
        self.flush(node, file.fh)?;
        self.release(node, file.fh)?;
        data
    }

    /// Reads an open file from its start until a READ comes back empty.
    pub fn read_to_end(&mut self, nodeid: u64, fh: u64) -> Answer<Vec<u8>> {
        let mut data = Vec::new();
        loop {
            let chunk = self.read(nodeid, fh, data.len() as u64, CHUNK as u32)?;
            if chunk.is_empty() {
                return Ok(data);
            }
            data.extend(chunk);
        }
    }

    /// All entries of a directory but `.` and `..`, in the daemon's order, read `size` bytes at a time.
    pub fn entries(&mut self, nodeid: u64, plus: bool, size: u32) -> Answer<Vec<DirEntry>> {
        let dir = self.opendir(nodeid)?;
        let mut all: Vec<DirEntry> = Vec::new();
        let result = loop {
            let offset = all.last().map_or(0, |entry| entry.offset);
            let page = if plus {
                self.readdirplus(nodeid, dir.fh, offset, size)
            } else {
                self.readdir(nodeid, dir.fh, offset, size)
            };
            match page {
                Ok(page) if page.is_empty() => break Ok(()),
                Ok(page) => all.extend(page),
                Err(fault) => break Err(fault),
            }
        };
        self.releasedir(nodeid, dir.fh)?;
        result?;
        all.retain(|entry| entry.name != b"." && entry.name != b"..");
        Ok(all)
    }

    /// The names in a directory, sorted.
    pub fn list(&mut self, path: &str) -> Answer<Vec<String>> {
        let node = self.resolve(path)?;
        let mut names: Vec<_> = self
            .entries(node, false, 4096)?
            .into_iter()
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Every path below `path` with its attributes, depth first, sorted in each directory.
    pub fn tree(&mut self, path: &str) -> Answer<Vec<(String, Attr)>> {
        let mut found = Vec::new();
        for name in self.list(path)? {
            let child = if path.is_empty() { name } else { format!("{path}/{name}") };
            let attr = self.stat(&child)?;
            found.push((child.clone(), attr));
            if attr.is_dir() {
                found.extend(self.tree(&child)?);
            }
        }
        Ok(found)
    }

    /// Makes a directory and those above it that are missing; the node.
    pub fn make_dirs(&mut self, path: &str) -> Answer<u64> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |node, name| {
            match self.lookup(node, name.as_bytes()) {
                Err(Fault::Errno(libc::ENOENT)) => Ok(self.mkdir(node, name.as_bytes(), 0o755)?.nodeid),
                other => other.map(|entry| entry.nodeid),
            }
        })
    }

    /// Removes a file.
    pub fn remove_file(&mut self, path: &str) -> Answer<()> {
        let (dir, name) = split(path);
        let parent = self.resolve(dir)?;
        self.unlink(parent, name.as_bytes())
    }

    /// Removes an empty directory.
    pub fn remove_dir(&mut self, path: &str) -> Answer<()> {
        let (dir, name) = split(path);
        let parent = self.resolve(dir)?;
        self.rmdir(parent, name.as_bytes())
    }

    /// Renames.
    pub fn rename_path(&mut self, from: &str, to: &str) -> Answer<()> {
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        let (from_node, to_node) = (self.resolve(from_dir)?, self.resolve(to_dir)?);
        self.rename(from_node, from_name.as_bytes(), to_node, to_name.as_bytes())
    }

    /// Sets a file's length.
    pub fn truncate(&mut self, path: &str, size: u64) -> Answer<()> {
        let node = self.resolve(path)?;
        self.setattr(node, &SetAttr::size(size)).map(drop)
    }
}
