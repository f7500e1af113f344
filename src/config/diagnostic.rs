//! Where something stands in a file, and what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A line of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// Counted from one; `None`: the file as a whole.
    pub line: Option<usize>,
}

/// Where something stands is no part of what it says: settings that moved are the same settings.
impl PartialEq for Place {
    fn eq(&self, _: &Place) -> bool {
        true
    }
}

impl Eq for Place {}

impl Place {
    /// The file as a whole.
    pub(super) fn of_file(file: &Path) -> Place {
        Place { file: file.to_owned(), line: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// Why files of settings are refused. One line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Where.
    pub place: Place,
    /// The key, with its section; empty if none is to blame.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// The key or word that was probably meant.
    pub nearest: Option<String>,
}

impl Diagnostic {
    pub(super) fn new(place: Place, key: impl Into<String>, problem: impl Into<String>) -> Diagnostic {
        Diagnostic { place, key: key.into(), problem: problem.into(), nearest: None }
    }

    /// Adds the candidate nearest to `word`, if there is one that is near.
    pub(super) fn or_rather<'a>(mut self, word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Diagnostic {
        self.nearest = nearest(word, candidates).map(str::to_owned);
        self
    }
}

impl std::error::Error for Diagnostic {}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.place.to_string();
        for part in [&self.key, &self.problem] {
            if !part.is_empty() {
                text.push_str(": ");
                text.push_str(part);
            }
        }
        if let Some(nearest) = &self.nearest {
            text.push_str(&format!("; did you mean `{nearest}`?"));
        }
        // Names of files and keys may contain anything, and this is one line.
        f.write_str(&text.replace(|c: char| c.is_control(), " "))
    }
}

/// The candidate with the fewest edits from `word`, if these are at most half of it.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.chars().count() / 2).min(6);
    let word = word.to_ascii_lowercase();
    let edits = candidates.into_iter().map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate));
    edits.filter(|(edits, _)| *edits <= most).min_by_key(|(edits, _)| *edits).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diagnostic_is_one_line() {
        let place = Place { file: "a\nb".into(), line: Some(3) };
        let diagnostic =
            Diagnostic::new(place, "options.ca\u{1b}che", "unknown key").or_rather("cahce", ["cache", "uid"]);
        assert_eq!(diagnostic.to_string(), "a b:3: options.ca che: unknown key; did you mean `cache`?");
        assert_eq!(Diagnostic::new(Place::of_file(Path::new("f")), "", "no").to_string(), "f: no");
    }

    #[test]
    fn nearest_is_near() {
        assert_eq!(nearest("Buket", ["root", "bucket"]), Some("bucket"));
        assert_eq!(nearest("zzz", ["root", "bucket"]), None);
        assert_eq!(nearest("", ["root"]), None);
    }
}
