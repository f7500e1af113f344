//! What a host directory looks like, as text that can be compared.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use md5::{Digest, Md5};

/// One line per object below `root`, sorted: path, type, mode, owner, links, size, and what it holds.
pub fn snapshot(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    walk(root, "", &mut lines).unwrap_or_else(|error| lines.push(format!("! {error}")));
    lines.sort();
    lines
}

fn walk(dir: &Path, prefix: &str, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().as_encoded_bytes().escape_ascii().to_string();
        let path = format!("{prefix}{name}");
        let meta = entry.path().symlink_metadata()?;
        let kind = meta.file_type();
        let mut line =
            format!("{path} {:o} {}:{} nlink={}", meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.nlink());
        if kind.is_dir() {
            line += " dir";
            walk(&entry.path(), &format!("{path}/"), lines)?;
        } else if kind.is_symlink() {
            let _ = write!(line, " symlink to {}", fs::read_link(entry.path())?.display());
        } else if kind.is_file() {
            let sum = Md5::digest(fs::read(entry.path())?);
            let _ = write!(line, " file size={} md5={}", meta.len(), hex(&sum));
        } else if kind.is_fifo() {
            line += " fifo";
        } else if kind.is_socket() {
            line += " socket";
        } else {
            let _ = write!(line, " device {:#x}", meta.rdev());
        }
        lines.push(line);
    }
    Ok(())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
