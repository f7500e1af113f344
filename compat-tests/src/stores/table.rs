//! What each store turned out to do, case by case: the table in `expected/stores.toml`.
//!
//! One section per case, in it one line per store: `full`, or another [`Level`] and why.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use toml_edit::{DocumentMut, TomlError};

/// How well a store does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// As on a disk.
    Full,
    /// The guest sees what it would see on a disk, or nearly; the reason says how it comes about and what it costs.
    Emulated,
    /// The guest gets an errno, or the daemon does not start.
    Refused,
    /// The question does not arise.
    None,
    /// Something else than the contract says.
    Wrong,
}

impl Level {
    /// All of them.
    pub const ALL: [Level; 5] = [Level::Full, Level::Emulated, Level::Refused, Level::None, Level::Wrong];

    /// Its word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Level::Full => "full",
            Level::Emulated => "emulated",
            Level::Refused => "refused",
            Level::None => "n/a",
            Level::Wrong => "wrong",
        }
    }
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How well.
    pub level: Level,
    /// One line; may be empty.
    pub reason: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason.as_str() {
            "" => f.write_str(self.level.word()),
            reason => write!(f, "{}: {reason}", self.level.word()),
        }
    }
}

/// The text of a table is not one.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Not TOML.
    #[error(transparent)]
    Toml(#[from] TomlError),
    /// A section or a value of a wrong type, or an unknown level.
    #[error("[{case}] {store}: not a verdict")]
    Cell {
        /// The section.
        case: String,
        /// The key.
        store: String,
    },
}

/// The table: by case, then by store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    cases: Vec<String>,
    cells: BTreeMap<(String, String), Verdict>,
}

impl Table {
    /// Where the committed table is.
    pub fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("expected/stores.toml")
    }

    /// Reads a table.
    ///
    /// # Errors
    /// When `text` is none.
    pub fn parse(text: &str) -> Result<Table, TableError> {
        let document: DocumentMut = text.parse()?;
        let mut table = Table::default();
        for (case, section) in document.iter() {
            let bad = |store: &str| TableError::Cell { case: case.to_owned(), store: store.to_owned() };
            for (store, value) in section.as_table().ok_or_else(|| bad(""))? {
                let cell = value.as_str().ok_or_else(|| bad(store))?;
                let (word, reason) = cell.split_once(": ").unwrap_or((cell, ""));
                let level = Level::ALL.into_iter().find(|level| level.word() == word).ok_or_else(|| bad(store))?;
                table.set(case, store, Verdict { level, reason: reason.to_owned() });
            }
        }
        Ok(table)
    }

    /// Cases, in order.
    pub fn cases(&self) -> &[String] {
        &self.cases
    }

    /// A cell.
    pub fn get(&self, case: &str, store: &str) -> Option<&Verdict> {
        self.cells.get(&(case.to_owned(), store.to_owned()))
    }

    /// Puts a cell; a case that is new comes last.
    pub fn set(&mut self, case: &str, store: &str, verdict: Verdict) {
        if !self.cases.iter().any(|known| known == case) {
            self.cases.push(case.to_owned());
        }
        self.cells.insert((case.to_owned(), store.to_owned()), verdict);
    }

    /// The table as text; `stores` gives the order of the lines, `head` is a comment before it.
    pub fn render(&self, head: &str, stores: &[&str]) -> String {
        let mut text: String = head.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
        for case in &self.cases {
            text += &format!("\n[{case}]\n");
            for store in stores {
                if let Some(verdict) = self.get(case, store) {
                    let cell = verdict.to_string().replace('\\', "\\\\").replace('"', "\\\"");
                    text += &format!("{store} = \"{cell}\"\n");
                }
            }
        }
        text
    }

    /// One line for each cell of the columns `stores` that is not the same in `found`.
    pub fn differences(&self, found: &Table, stores: &[&str]) -> Vec<String> {
        let keys = self.cells.keys().chain(found.cells.keys().filter(|key| !self.cells.contains_key(key)));
        let show = |verdict: Option<&Verdict>| verdict.map_or_else(|| "nothing".to_owned(), Verdict::to_string);
        keys.filter(|(_, store)| stores.contains(&store.as_str()))
            .filter(|key| self.cells.get(key) != found.cells.get(key))
            .map(|key| {
                let (expected, got) = (show(self.cells.get(key)), show(found.cells.get(key)));
                format!("[{}] {}\n    expected {expected}\n    found    {got}", key.0, key.1)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(level: Level, reason: &str) -> Verdict {
        Verdict { level, reason: reason.to_owned() }
    }

    #[test]
    fn a_table_survives_being_written() {
        let mut table = Table::default();
        table.set("b", "x", verdict(Level::Full, ""));
        table.set("a", "x", verdict(Level::Emulated, "the name \"q\": \\ is odd"));
        let text = table.render("head\n\nmore", &["x"]);
        assert!(text.starts_with("# head\n#\n# more\n\n[b]\nx = \"full\"\n"), "{text}");
        assert_eq!(Table::parse(&text).unwrap(), table);
        assert!(Table::parse("[a]\nx = \"splendid\"").is_err());
    }

    #[test]
    fn better_and_worse_and_missing_cells_are_differences() {
        let mut expected = Table::default();
        expected.set("a", "x", verdict(Level::Wrong, "bug"));
        expected.set("a", "y", verdict(Level::Full, ""));
        expected.set("b", "x", verdict(Level::Full, ""));
        let mut found = expected.clone();
        found.set("a", "x", verdict(Level::Full, ""));
        found.set("c", "x", verdict(Level::Full, ""));
        found.set("a", "y", verdict(Level::Refused, "EPERM"));
        assert_eq!(expected.differences(&found, &["x"]).len(), 2);
        assert_eq!(expected.differences(&found, &["x", "y"]).len(), 3);
        assert!(expected.differences(&expected, &["x", "y"]).is_empty());
    }
}
