//! Files of settings: what `--config-file` and `--config-dir` say.
//!
//! [`load`] reads them all and answers with [`Settings`], or with one [`Diagnostic`] that names file, line and key. It can
//! be called again at any time; settings that say the same are equal. Nothing is decided here: options come out as what
//! the command line would have said ([`Settings::presets`]), a store as the URL that `--backend` would have had.
//!
//! Precedence: the command line, then the `[[shares]]` entry that applies, then `--config-file`, then the directory's
//! files (the last of them in the order of names first), then what is built in. Secrets are looked up only for what is
//! going to be served; all else is checked for form alone.
//!
//! What is read may contain secrets. A process that forks the device process must not call [`load`] itself, but
//! `daemon::configuration`, which lets a process of its own do it.

mod diagnostic;
mod file;
mod layer;
mod print;
pub mod schema;
mod store;
#[cfg(test)]
mod tests;
mod value;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::{Preset, flags};
pub use diagnostic::{Diagnostic, Place};
use layer::{EXPIRATION, Layer, MountEntry, Options, ShareEntry};
pub use print::print;
use store::Described;
pub use store::{MASK, Store};

/// Where the settings of the host are, unless `--config-dir` says otherwise.
pub const DEFAULT_DIR: &str = "/etc/ovfs";

/// Which files to read, and what the command line has settled already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `--config-file`.
    pub config_file: Option<PathBuf>,
    /// `--config-dir`; `None`: the default, which may be missing.
    pub config_dir: Option<PathBuf>,
    /// The directory to share, by which `[[shares]]` entries are chosen. None is, if `has_backend`.
    pub shared_dir: Option<PathBuf>,
    /// The command line names a store: files have none to add.
    pub has_backend: bool,
}

/// A setting of one flag, or of something that has no flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The flag's long name, without dashes.
    pub name: String,
    /// One text, several for a list, `true` or `false` for a switch.
    pub values: Vec<String>,
    /// Where it stands.
    pub place: Place,
}

impl Setting {
    fn new(name: &str, value: impl Into<String>, place: Place) -> Setting {
        Setting { name: name.to_owned(), values: vec![value.into()], place }
    }

    fn is(&self, value: &str) -> bool {
        matches!(self.values.as_slice(), [one] if one.eq_ignore_ascii_case(value))
    }
}

/// A store below the root of the share.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Where in the share: begins with a slash, has none at its end, and is not the root.
    pub path: String,
    /// Where it is described.
    pub place: Place,
    /// Its own options: those of [`schema::mount_keys`].
    pub options: Vec<Setting>,
    /// How long its names and attributes are trusted under `cache = "auto"`, if not for the built-in time.
    pub cache_expiration: Option<Duration>,
    /// The store.
    pub store: Store,
}

/// The `[[shares]]` entry that applies.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// As the entry has it.
    pub shared_dir: PathBuf,
    /// Where it stands.
    pub place: Place,
}

/// All that files say, for one start.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The files that were read, lowest precedence first.
    pub files: Vec<PathBuf>,
    /// Options.
    pub options: Vec<Setting>,
    /// How long names and attributes are trusted under `cache = "auto"`, if not for the built-in time.
    pub cache_expiration: Option<Duration>,
    /// The store that is the root of the share; its options are among `options`.
    pub store: Option<Store>,
    /// The other stores.
    pub mounts: Vec<Mount>,
    /// Where the store comes from, if from a `[[shares]]` entry.
    pub share: Option<Share>,
    /// Files with secrets that everybody on this host can read.
    pub exposed: Vec<PathBuf>,
}

impl Settings {
    /// The options, for the command line.
    pub fn presets(&self) -> Vec<Preset> {
        self.options
            .iter()
            .map(|setting| Preset { name: setting.name.clone(), values: setting.values.clone() })
            .collect()
    }
}

impl Sources {
    /// The files that there are: those of the directory in the order in which they are read, and the other one.
    ///
    /// # Errors
    /// A directory that was named and is not there, or that cannot be read.
    pub fn files(&self) -> Result<Files, Diagnostic> {
        let dir = match &self.config_dir {
            Some(dir) => {
                let unreadable = |error| Diagnostic::new(Place::of_file(dir), "", format!("cannot be read: {error}"));
                fs::read_dir(dir).map_err(unreadable)?;
                dir.as_path()
            }
            None => Path::new(DEFAULT_DIR),
        };
        let main = dir.join("ovfs.toml");
        let mut of_dir = parts(&dir.join("conf.d"))?;
        if main.symlink_metadata().map_or_else(|error| !is_absence(&error), |_| true) {
            of_dir.insert(0, main);
        }
        Ok(Files { of_dir, single: self.config_file.clone() })
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The files `*.toml` of a directory in the order of their names; none, if it is not there.
fn parts(dir: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let unreadable = |error: io::Error| Diagnostic::new(Place::of_file(dir), "", format!("cannot be read: {error}"));
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Files of settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Of the directory.
    of_dir: Vec<PathBuf>,
    /// `--config-file`.
    single: Option<PathBuf>,
}

impl Files {
    /// There is nothing to load.
    pub fn is_empty(&self) -> bool {
        self.of_dir.is_empty() && self.single.is_none()
    }
}

/// Reads all files, and looks up the secrets of the store that they name for this start.
///
/// # Errors
/// The first thing that is wrong.
pub fn load(sources: &Sources) -> Result<Settings, Diagnostic> {
    let files = sources.files()?;
    let mut dir = Layer::default();
    for file in &files.of_dir {
        dir.cover(Layer::read(file)?, true)?;
    }
    let file = files.single.as_deref().map(Layer::read).transpose()?.unwrap_or_default();
    let chosen = choose(sources, &mut dir, file)?;
    let Layer { files, mut options, mut exposed, .. } = dir;
    let (mut store, mut share) = (None, None);
    let mut mounts = Vec::new();
    match chosen {
        Chosen::Nothing => {}
        Chosen::Share(entry) => {
            store = Some(entry.store.resolve(&schema::share_keys(flags::all()), &mut exposed)?);
            layer::cover(&mut options, entry.options);
            share = Some(Share { shared_dir: entry.shared_dir, place: entry.place });
        }
        Chosen::Stores(root, entries) => {
            store = root.map(|root| root.resolve(&[], &mut exposed)).transpose()?;
            for MountEntry { path, place, options: own, store: described } in entries {
                let resolved = described.resolve(&schema::mount_keys(flags::all()), &mut exposed)?;
                if path == "/" {
                    layer::cover(&mut options, own);
                    store = Some(resolved);
                    continue;
                }
                let (options, cache_expiration) = split(own);
                mounts.push(Mount { path, place, options, cache_expiration, store: resolved });
            }
        }
    }
    let (options, cache_expiration) = split(options);
    Ok(Settings { files, options, cache_expiration, store, mounts, share, exposed })
}

/// What of the files is to be served.
enum Chosen {
    Nothing,
    Share(ShareEntry),
    Stores(Option<Described>, Vec<MountEntry>),
}

/// Finds what is to be served, and puts what else `file` says over `dir`.
fn choose(sources: &Sources, dir: &mut Layer, mut file: Layer) -> Result<Chosen, Diagnostic> {
    let option = |layer: &Layer| layer.options.get("shared-dir").map(|setting| PathBuf::from(setting.values.concat()));
    let shared_dir = sources.shared_dir.clone().or_else(|| option(&file)).or_else(|| option(dir));
    let take = |layer: &mut Layer| {
        let at = shared_dir.as_deref().and_then(|shared_dir| find(&layer.shares, shared_dir))?;
        Some(layer.shares.swap_remove(at))
    };
    let has_stores = |layer: &Layer| layer.store.is_some() || !layer.mounts.is_empty();
    let chosen = if sources.has_backend {
        Chosen::Nothing
    } else if let Some(share) = take(&mut file) {
        Chosen::Share(share)
    } else if has_stores(&file) {
        Chosen::Stores(file.store.take(), std::mem::take(&mut file.mounts))
    } else if let Some(share) = take(dir) {
        Chosen::Share(share)
    } else if shared_dir.is_none() && has_stores(dir) {
        // Settings of the whole host do not turn directories that are asked for by name into something else.
        Chosen::Stores(dir.store.take(), std::mem::take(&mut dir.mounts))
    } else {
        Chosen::Nothing
    };
    dir.cover(file, false)?;
    Ok(chosen)
}

/// The entry for a directory: by its name, else by the directory that the name leads to.
fn find(shares: &[ShareEntry], shared_dir: &Path) -> Option<usize> {
    let by_name = shares.iter().position(|share| share.shared_dir == shared_dir);
    by_name.or_else(|| {
        let real = shared_dir.canonicalize().ok()?;
        shares.iter().position(|share| share.shared_dir.canonicalize().is_ok_and(|dir| dir == real))
    })
}

/// Takes what has no flag out of the settings.
fn split(mut options: Options) -> (Vec<Setting>, Option<Duration>) {
    let expiration = options.remove(EXPIRATION).and_then(|setting| value::duration_of(&setting.values.concat()).ok());
    (options.into_values().collect(), expiration)
}
