//! Why rows miss their targets: read from a file beside the report, and printed beside the rows.
//!
//! An explanation says where the time goes, from a profile or from counts. It is refused as stale when its row is met or
//! is gone, so that none outlives what it explains.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, Document, Table};

use crate::record::{Comparison, Group, Row};

/// What a file of explanations has wrong.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// It is not TOML.
    #[error("{path}: {cause}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: Box<toml_edit::TomlError>,
    },
    /// An entry lacks something, or has something that nobody reads.
    #[error("{path}: entry {number}: {what}")]
    Entry {
        /// The file.
        path: PathBuf,
        /// From 1.
        number: usize,
        /// What is wrong.
        what: String,
    },
}

/// One explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    row: String,
    of: Option<String>,
    beside: Option<String>,
    why: String,
}

/// All explanations.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    entries: Vec<Entry>,
}

impl Explained {
    /// Reads a file of `[[missed]]` tables with `row`, `why`, and `of` and `beside` where only one comparison of the row
    /// is meant. No file: no explanations.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn load(path: &Path) -> Result<Explained, Refused> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Explained::default()),
            Err(cause) => return Err(Refused::Unreadable { path: path.into(), cause }),
        };
        Explained::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Explained, Refused> {
        let syntax = |cause| Refused::Syntax { path: path.into(), cause: Box::new(cause) };
        let document = Document::parse(text).map_err(syntax)?;
        let refused = |number, what: &str| Refused::Entry { path: path.into(), number, what: what.to_owned() };
        if let Some((key, _)) = document.as_table().iter().find(|(key, _)| *key != "missed") {
            return Err(refused(0, &format!("unknown key {key}")));
        }
        let none = ArrayOfTables::new();
        let tables = match document.get("missed") {
            None => &none,
            Some(item) => item.as_array_of_tables().ok_or_else(|| refused(0, "missed is no array of tables"))?,
        };
        let mut entries = Vec::new();
        for (n, table) in tables.iter().enumerate() {
            entries.push(entry(table).map_err(|what| refused(n + 1, &what))?);
        }
        Ok(Explained { entries })
    }

    /// What was said of a comparison of a row.
    pub fn why(&self, row: &Row, comparison: &Comparison) -> Option<&str> {
        self.entries.iter().find(|entry| entry.is_about(row, comparison)).map(|entry| entry.why.as_str())
    }

    /// The explanations that explain nothing in these groups: nothing that they name is missed.
    pub fn stale(&self, groups: &[Group]) -> Vec<String> {
        let explains = |entry: &&Entry| {
            groups
                .iter()
                .flat_map(|group| &group.rows)
                .any(|row| row.comparisons.iter().any(|one| entry.is_about(row, one) && row.is_met(one) == Some(false)))
        };
        self.entries.iter().filter(|entry| !explains(entry)).map(|entry| entry.row.clone()).collect()
    }
}

impl Entry {
    fn is_about(&self, row: &Row, comparison: &Comparison) -> bool {
        self.row == row.name
            && self.of.as_ref().is_none_or(|of| *of == comparison.of)
            && self.beside.as_ref().is_none_or(|beside| comparison.against.contains(beside))
    }
}

fn entry(table: &Table) -> Result<Entry, String> {
    if let Some((key, _)) = table.iter().find(|(key, _)| !["row", "of", "beside", "why"].contains(key)) {
        return Err(format!("unknown key {key}"));
    }
    let text = |key: &str| match table.get(key) {
        None => Ok(None),
        Some(item) => match item.as_str().map(|text| text.split_whitespace().collect::<Vec<_>>().join(" ")) {
            Some(text) if !text.is_empty() => Ok(Some(text)),
            _ => Err(format!("{key} is no text")),
        },
    };
    let needed = |key: &str| text(key)?.ok_or_else(|| format!("{key} is missing"));
    Ok(Entry { row: needed("row")?, of: text("of")?, beside: text("beside")?, why: needed("why")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Sample, Unit};

    fn group() -> Group {
        let mut row =
            Row::new("time", Unit::Seconds).compare("ovfs", &["b"], Some(2.0)).compare("ovfs", &["c"], Some(2.0));
        for (label, value) in [("ovfs", 2.0), ("b", 3.0), ("c", 5.0)] {
            row.add(label, Sample::of(value));
        }
        let text = String::new;
        Group {
            title: text(),
            about: text(),
            command: text(),
            taken: 0,
            load: (0.0, 0.0),
            took_s: 0.0,
            rows: vec![row],
        }
    }

    fn parse(text: &str) -> Result<Explained, Refused> {
        Explained::parse(text, Path::new("explained.toml"))
    }

    #[test]
    fn explanations_of_missed_comparisons_are_found() {
        let explained = parse("[[missed]]\nrow = 'time'\nbeside = 'b'\nwhy = '''\nlong\n  story'''\n").unwrap();
        let groups = [group()];
        let row = &groups[0].rows[0];
        assert_eq!(explained.why(row, &row.comparisons[0]), Some("long story"));
        assert_eq!(explained.why(row, &row.comparisons[1]), None);
        assert!(explained.stale(&groups).is_empty());
    }

    #[test]
    fn explanations_of_what_is_met_or_gone_are_stale() {
        let met = "[[missed]]\nrow = 'time'\nbeside = 'c'\nwhy = 'x'\n";
        let gone = "[[missed]]\nrow = 'gone'\nwhy = 'x'\n";
        let any = "[[missed]]\nrow = 'time'\nwhy = 'one of two is missed'\n";
        let explained = parse(&format!("{met}{gone}{any}")).unwrap();
        assert_eq!(explained.stale(&[group()]), ["time", "gone"]);
    }

    #[test]
    fn entries_that_say_too_little_or_too_much_are_refused() {
        for wrong in [
            "[[missed]]\nrow = 'a'\n",
            "[[missed]]\nrow = 'a'\nwhy = 1\n",
            "[[row]]\n",
            "missed = 1\n",
            "[[missed]]\nrow = 'a'\nwhy = 'b'\nwhen = 'c'\n",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
