//! A store: what `type` and the service's own keys say, as the URL that `--backend` would have.
//!
//! The broker's check of a URL is the only list of services and keys; here its complaints get the lines that they are
//! about.

use std::env;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, Place};
use super::file::is_public;
use crate::broker::{Backend, BackendError};
use crate::process::secrets::{SecretUrl, has_secrets, is_secret, visible};

/// Longest secret in a file of its own: a service account's key is some kilobytes.
const SECRET_MAX: u64 = 64 << 10;

/// What a value of a URL's query may contain as it is.
const IN_QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');

/// Stands for values that are not looked up. Of all services' keys, those that check their values take some such word.
const UNKNOWN: &str = "unknown";

/// A store to be served.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Where it is described.
    pub place: Place,
    /// What `--backend` would say.
    pub url: SecretUrl,
    /// What of that may be seen.
    pub visible: String,
    /// `type` and the keys, as they may be shown: secrets masked. Empty if the file has a URL.
    pub shown: Vec<(String, String)>,
}

/// Shown in place of a secret.
pub const MASK: &str = "********";

/// A value, or where it is to be found.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Plain(String),
    Environment(String),
    File(String),
    Credential(String),
}

/// One key of a service.
#[derive(Debug)]
struct Key {
    name: String,
    source: Source,
    place: Place,
}

/// A store as it is described, not looked up and not believed yet.
#[derive(Debug)]
pub(super) struct Described {
    place: Place,
    /// The section, for errors.
    section: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Url { key: String, url: String },
    Service { name: String, place: Place, keys: Vec<Key> },
}

impl Described {
    /// By a URL, the value of `key`.
    pub fn by_url(place: Place, section: &str, key: &str, url: &str) -> Described {
        let what = What::Url { key: key.to_owned(), url: url.to_owned() };
        Described { place, section: section.to_owned(), what }
    }

    /// By the name of its service, which stands at `type_place`; keys follow.
    pub fn by_type(place: Place, section: &str, name: &str, type_place: Place) -> Described {
        let what = What::Service { name: name.to_owned(), place: type_place, keys: Vec::new() };
        Described { place, section: section.to_owned(), what }
    }

    /// Adds a key of the service.
    pub fn add(&mut self, name: &str, value: String, place: Place) {
        let source = match value.split_once(':') {
            Some(("env", name)) => Source::Environment(name.to_owned()),
            Some(("file", path)) => Source::File(path.to_owned()),
            Some(("credential", name)) => Source::Credential(name.to_owned()),
            _ => Source::Plain(value),
        };
        if let What::Service { keys, .. } = &mut self.what {
            keys.push(Key { name: name.to_owned(), source, place });
        }
    }

    /// Whether a secret stands in the file itself.
    pub fn has_plain_secret(&self) -> bool {
        match &self.what {
            What::Url { url, .. } => has_secrets(url),
            What::Service { keys, .. } => {
                keys.iter().any(|key| is_secret(&key.name) && matches!(key.source, Source::Plain(_)))
            }
        }
    }

    /// Refuses what is wrong in itself, whatever this host has. `options` are the keys of the section that are none of the
    /// service's.
    pub fn check(&self, options: &[String]) -> Result<(), Diagnostic> {
        let url = match &self.what {
            What::Url { url, .. } => url.clone(),
            What::Service { name, keys, .. } => {
                let value = |key: &Key| match &key.source {
                    Source::Plain(value) => value.clone(),
                    _ => UNKNOWN.to_owned(),
                };
                url(name, keys.iter().map(|key| (key.name.as_str(), value(key))))
            }
        };
        match Backend::parse(&url) {
            Ok(_) => Ok(()),
            Err(BackendError::BadValue { key, .. }) if key == "root" || self.is_looked_up(&key) => Ok(()),
            Err(error) => Err(self.diagnose(&error, options)),
        }
    }

    /// Looks up the values that stand elsewhere, and refuses a store that could not be served. Adds to `exposed` the files
    /// with secrets that everybody can read.
    pub fn resolve(self, options: &[String], exposed: &mut Vec<PathBuf>) -> Result<Store, Diagnostic> {
        let mut shown = Vec::new();
        let url = match &self.what {
            What::Url { url, .. } => url.clone(),
            What::Service { name, keys, .. } => {
                shown.push(("type".to_owned(), name.clone()));
                let mut pairs = Vec::new();
                for key in keys {
                    let (value, public) = key.source.look_up().map_err(|problem| self.error(key, problem))?;
                    exposed.extend(public.filter(|_| is_secret(&key.name)));
                    pairs.push((key.name.as_str(), value));
                    shown.push((key.name.clone(), key.shown()));
                }
                url(name, pairs)
            }
        };
        Backend::parse(&url).map_err(|error| self.diagnose(&error, options))?;
        let visible = visible(&url);
        Ok(Store { place: self.place, url: SecretUrl::from(url), visible, shown })
    }

    fn error(&self, key: &Key, problem: String) -> Diagnostic {
        Diagnostic::new(key.place.clone(), format!("{}.{}", self.section, key.name), problem)
    }

    fn is_looked_up(&self, name: &str) -> bool {
        match &self.what {
            What::Url { .. } => false,
            What::Service { keys, .. } => {
                keys.iter().any(|key| key.name.eq_ignore_ascii_case(name) && !matches!(key.source, Source::Plain(_)))
            }
        }
    }

    /// The broker's complaint, about the key that it is about.
    fn diagnose(&self, error: &BackendError, options: &[String]) -> Diagnostic {
        let What::Service { name, place, keys } = &self.what else {
            let key = if let What::Url { key, .. } = &self.what { key } else { "type" };
            return Diagnostic::new(self.place.clone(), format!("{}.{key}", self.section), error.to_string());
        };
        let at = |key: &str, problem: String| {
            let place = keys.iter().rfind(|k| k.name.eq_ignore_ascii_case(key)).map_or(&self.place, |k| &k.place);
            Diagnostic::new(place.clone(), format!("{}.{key}", self.section), problem)
        };
        let of_type = |problem: String| Diagnostic::new(place.clone(), format!("{}.type", self.section), problem);
        let text = error.to_string();
        match error {
            BackendError::UnknownScheme { nearest, .. } => {
                let built = text.rfind(" (built in: ").map_or("", |at| &text[at..]);
                Diagnostic {
                    nearest: nearest.map(str::to_owned),
                    ..of_type(format!("unknown service '{name}'{built}"))
                }
            }
            BackendError::NotAUrl => of_type(format!("'{name}' is no name of a service")),
            BackendError::UnknownKey { scheme, key, nearest } => {
                let candidates = nearest.iter().copied().chain(options.iter().map(String::as_str));
                at(key, format!("unknown key of {scheme}")).or_rather(key, candidates)
            }
            BackendError::Twice { key, .. } => at(key, "is given twice".to_owned()),
            BackendError::Missing { scheme, key, .. } => {
                let other = match *key {
                    "region" => ", or AWS_REGION in the environment",
                    "access_key_id" => " beside secret_access_key",
                    "secret_access_key" => " beside access_key_id",
                    _ => "",
                };
                at(key, format!("is missing: {scheme} needs it{other}"))
            }
            BackendError::BadValue { key, why, .. } => at(key, format!("bad value: {why}")),
            _ => of_type(text),
        }
    }
}

impl Key {
    /// The value as it may be shown.
    fn shown(&self) -> String {
        match &self.source {
            Source::Plain(_) if is_secret(&self.name) => MASK.to_owned(),
            Source::Plain(value) => value.clone(),
            Source::Environment(name) => format!("env:{name}"),
            Source::File(path) => format!("file:{path}"),
            Source::Credential(name) => format!("credential:{name}"),
        }
    }
}

impl Source {
    /// The value, and the file that it stands in if everybody can read that.
    fn look_up(&self) -> Result<(String, Option<PathBuf>), String> {
        match self {
            Source::Plain(value) => Ok((value.clone(), None)),
            Source::Environment(name) => env::var(name).map(|value| (value, None)).map_err(|error| match error {
                env::VarError::NotPresent => format!("the environment variable '{name}' is not set"),
                env::VarError::NotUnicode(_) => format!("the environment variable '{name}' is not UTF-8"),
            }),
            Source::File(path) if !path.starts_with('/') => Err(format!("'{path}' is not an absolute path")),
            Source::File(path) => read(Path::new(path)),
            Source::Credential(name) => {
                let Some(dir) = env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()) else {
                    let problem = "there are no credentials: systemd has not set CREDENTIALS_DIRECTORY";
                    return Err(problem.to_owned());
                };
                if name.is_empty() || name.contains('/') || matches!(name.as_str(), "." | "..") {
                    return Err(format!("'{name}' is no name of a credential"));
                }
                read(&Path::new(&dir).join(name))
            }
        }
    }
}

/// The text of a file, without the newline at its end, and the file's name if everybody can read it.
fn read(path: &Path) -> Result<(String, Option<PathBuf>), String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| {
        let public = is_public(&file)?;
        file.take(SECRET_MAX + 1).read_to_string(&mut text)?;
        Ok(public.then(|| path.to_owned()))
    });
    let public = read.map_err(|error| format!("{}: {error}", path.display()))?;
    if text.len() as u64 > SECRET_MAX {
        return Err(format!("{}: it is larger than {} KiB", path.display(), SECRET_MAX >> 10));
    }
    if text.ends_with('\n') {
        text.pop();
    }
    Ok((text, public))
}

fn url<'a>(service: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let query: Vec<String> = pairs
        .into_iter()
        .map(|(key, value)| format!("{}={}", utf8_percent_encode(key, IN_QUERY), utf8_percent_encode(&value, IN_QUERY)))
        .collect();
    format!("{service}://?{}", query.join("&"))
}
