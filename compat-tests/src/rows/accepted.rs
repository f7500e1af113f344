//! `accepted-rows.toml`: where ovfs differs from virtiofsd on purpose, and why.

use std::sync::OnceLock;

use toml_edit::{DocumentMut, Item, Table};

/// One accepted difference.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The rows that show it.
    pub rows: Vec<String>,
    /// The fact that differs.
    pub fact: String,
    /// virtiofsd's value, exactly.
    pub virtiofsd: String,
    /// ovfs's value, exactly.
    pub ovfs: String,
    /// Why it is better so, or harmless.
    pub reason: String,
}

impl Accepted {
    /// Whether it speaks of this row.
    pub fn applies_to(&self, row: &str) -> bool {
        self.rows.iter().any(|id| id == row)
    }
}

/// The list that is compiled in.
///
/// # Panics
/// When the file is malformed: the text says where.
pub fn list() -> &'static [Accepted] {
    static LIST: OnceLock<Vec<Accepted>> = OnceLock::new();
    LIST.get_or_init(|| {
        parse(include_str!("../../accepted-rows.toml")).unwrap_or_else(|error| panic!("accepted-rows.toml: {error}"))
    })
}

/// Reads a list.
///
/// # Errors
/// What is missing or malformed, and in which entry.
pub fn parse(text: &str) -> Result<Vec<Accepted>, String> {
    let document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    let Some(entries) = document.get("accepted") else {
        return Ok(Vec::new());
    };
    let entries = entries.as_array_of_tables().ok_or("`accepted` has to be [[accepted]]")?;
    entries.iter().enumerate().map(|(index, table)| entry(table).map_err(|e| format!("entry {index}: {e}"))).collect()
}

fn entry(table: &Table) -> Result<Accepted, String> {
    const KEYS: [&str; 5] = ["rows", "fact", "virtiofsd", "ovfs", "reason"];
    if let Some((key, _)) = table.iter().find(|(key, _)| !KEYS.contains(key)) {
        return Err(format!("unknown key `{key}`"));
    }
    let word = |key: &str| {
        let value = table.get(key).and_then(Item::as_str).filter(|value| !value.is_empty() || key != "reason");
        value.map(str::to_owned).ok_or(format!("`{key}` is missing"))
    };
    let rows = table.get("rows").and_then(Item::as_array).ok_or("`rows` is missing")?;
    let rows =
        rows.iter().map(|id| id.as_str().map(str::to_owned).ok_or("`rows` holds row ids")).collect::<Result<_, _>>()?;
    Ok(Accepted {
        rows,
        fact: word("fact")?,
        virtiofsd: word("virtiofsd")?,
        ovfs: word("ovfs")?,
        reason: word("reason")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_well_formed_and_every_entry_has_a_reason() {
        for entry in list() {
            assert!(!entry.rows.is_empty(), "{entry:?} names no row");
            assert_ne!(entry.virtiofsd, entry.ovfs, "{entry:?} is no difference");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = parse("[[accepted]]\nrow = \"A01\"\n").expect_err("no such key");
        assert!(error.contains("unknown key `row`"), "{error}");
    }

    #[test]
    fn a_missing_reason_is_refused() {
        let text = "[[accepted]]\nrows = [\"A01\"]\nfact = \"rc\"\nvirtiofsd = \"1\"\novfs = \"2\"\nreason = \"\"\n";
        assert!(parse(text).expect_err("no reason").contains("reason"));
    }
}
