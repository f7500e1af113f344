//! A file of settings: read, parsed, and asked for the lines that things stand in.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike};

use super::diagnostic::{Diagnostic, Place};

/// The most that is read of one file.
const SIZE_MAX: u64 = 1 << 20;

/// Permission of everybody to read.
const OTHERS_READ: u32 = 0o004;

/// Whether everybody on this host can read an open file.
pub(super) fn is_public(file: &fs::File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & OTHERS_READ != 0)
}

/// A file of settings.
pub(super) struct File {
    pub path: PathBuf,
    text: String,
    /// Everybody on this host can read it.
    pub is_public: bool,
}

impl File {
    /// Reads it.
    pub fn read(path: &Path) -> Result<File, Diagnostic> {
        let wrong = |problem: String| Diagnostic::new(Place::of_file(path), "", problem);
        let unreadable = |error: io::Error| wrong(format!("cannot be read: {error}"));
        let file = fs::File::open(path).map_err(unreadable)?;
        let is_public = is_public(&file).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(SIZE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > SIZE_MAX {
            return Err(wrong(format!("is larger than {} MiB", SIZE_MAX >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
            let place = Place { file: path.to_owned(), line: Some(line) };
            Diagnostic::new(place, "", "is not UTF-8")
        })?;
        Ok(File { path: path.to_owned(), text, is_public })
    }

    /// Parses it.
    pub fn parse(&self) -> Result<Document<&str>, Diagnostic> {
        Document::parse(self.text.as_str()).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let place = self.place(span.start);
            // The parser's words contain nothing of the file, which may be a secret; a key is none.
            let key = self.key_at(span.start);
            Diagnostic::new(place, key, error.message().to_owned())
        })
    }

    /// The line of a byte.
    pub fn place(&self, offset: usize) -> Place {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place { file: self.path.clone(), line: Some(line) }
    }

    /// The key or the section's header that stands in the line of a byte, if that has the form of one.
    fn key_at(&self, offset: usize) -> &str {
        let offset = (0..=offset.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0);
        let start = self.text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let (key, rest) = line.split_once('=').unwrap_or((line, ""));
        let header = key.trim().starts_with('[');
        let key = key.trim().trim_matches(['[', ']']).trim();
        let is_key = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if is_key && (header || !rest.is_empty()) { key } else { "" }
    }
}

/// A table of a file.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub file: &'a File,
    /// Its name; empty for the file's own.
    pub name: &'a str,
    table: &'a dyn TableLike,
    /// Where it begins, in bytes.
    start: usize,
}

impl<'a> Section<'a> {
    /// What stands outside of all sections: the sections themselves.
    pub fn root(file: &'a File, document: &'a Document<&str>) -> Section<'a> {
        Section { file, name: "", table: document.as_table(), start: 0 }
    }

    /// The tables that the item `name` of this one is.
    pub fn below(&self, name: &'a str, item: &'a Item, many: bool) -> Result<Vec<Section<'a>>, Diagnostic> {
        let start = self.offset_of(name);
        let section = |table: &'a dyn TableLike, span: Option<std::ops::Range<usize>>| Section {
            file: self.file,
            name,
            table,
            start: span.map_or(start, |span| span.start),
        };
        let tables = match (item, many) {
            (Item::ArrayOfTables(tables), true) => {
                Some(tables.iter().map(|table| section(table, table.span())).collect::<Vec<_>>())
            }
            (item, true) => item.as_array().and_then(|array| {
                let tables =
                    array.iter().map(|value| value.as_inline_table().map(|table| section(table, table.span())));
                tables.collect()
            }),
            (item, false) => item.as_table_like().map(|table| vec![section(table, item.span())]),
        };
        let form = if many { format!("[[{name}]]") } else { format!("[{name}]") };
        tables.ok_or_else(|| self.error(name, super::value::wrong_type(&format!("sections {form}"), item)))
    }

    /// Its keys and values, in the order of the file.
    pub fn items(&self) -> Vec<(&'a str, &'a Item)> {
        let mut items: Vec<_> = self.table.iter().collect();
        items.sort_by_key(|(key, _)| self.offset_of(key));
        items
    }

    /// The item of this key.
    pub fn get(&self, key: &str) -> Option<&'a Item> {
        self.table.get(key)
    }

    fn offset_of(&self, key: &str) -> usize {
        let span = self.table.get_key_value(key).and_then(|(key, item)| key.span().or_else(|| item.span()));
        span.map_or(self.start, |span| span.start)
    }

    /// Where a key stands, or the section if it is not there.
    pub fn place(&self, key: &str) -> Place {
        self.file.place(self.offset_of(key))
    }

    /// What is wrong with a key.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> Diagnostic {
        let dot = if self.name.is_empty() { "" } else { "." };
        Diagnostic::new(self.place(key), format!("{}{dot}{key}", self.name), problem)
    }
}
