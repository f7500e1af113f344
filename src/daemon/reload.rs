//! The files of settings while the daemon runs: what the broker asks of them. The device process never gets here.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use log::warn;

use super::backend::{MountSettings, broker_options, config};
use super::{ROOT, complete};
use crate::broker::{Backend, Configuration, Wanted};
use crate::cli::{BackendShare, Given, Line, Plan, Share};
use crate::config::{self, Settings, Sources};
use crate::process::log::TARGET;
use crate::process::secrets::SecretUrl;

/// What can change while the daemon runs, beside the stores themselves.
const CHANGES: &str = "request-timeout";

/// What the daemon was started with, and where that stands.
#[derive(Debug)]
pub(super) struct Reload {
    sources: Sources,
    given: Given,
    /// As at the start: flags, and each mount's own, as text.
    started: BTreeMap<String, Vec<String>>,
    /// Files beside those of settings that were read: of secrets.
    secrets: Vec<PathBuf>,
    /// Where there are mounts.
    mounts: BTreeSet<String>,
    /// What the log has last said of what cannot change.
    said: BTreeSet<String>,
}

impl Reload {
    /// For a daemon that was started as `line` says, which came of `given` and `settings`. `None`: there are no files that could
    /// be read again. (What comes through a pipe cannot.)
    pub fn new(sources: Sources, given: Given, settings: &Settings, line: &Line) -> Option<Reload> {
        let lasts = |file: &PathBuf| fs::metadata(file).is_ok_and(|meta| meta.is_file());
        if settings.files.is_empty() || !settings.files.iter().all(lasts) {
            return None;
        }
        let (started, secrets) = (texts(line, settings), secrets(settings));
        let mounts = line.options.mounts.iter().map(|mount| mount.path.clone()).collect();
        Some(Reload { sources, given, started, secrets, mounts, said: BTreeSet::new() })
    }

    /// Says, once, what has changed and cannot. What is said of mounts that come is in force with them.
    fn complain(&mut self, now: &BTreeMap<String, Vec<String>>, mounts: &BTreeSet<String>) {
        let of = |name: &str| name.rsplit_once(" of mount ").map(|(_, path)| path.to_owned());
        let before = std::mem::replace(&mut self.mounts, mounts.clone());
        let stays = |path: &String| before.contains(path) && mounts.contains(path);
        self.started.retain(|name, _| of(name).is_none_or(|path| stays(&path)));
        let come = now.iter().filter(|(name, _)| of(name).is_some_and(|path| !before.contains(&path)));
        self.started.extend(come.map(|(name, values)| (name.clone(), values.clone())));
        let names: BTreeSet<&String> = self.started.keys().chain(now.keys()).collect();
        let changed = names.into_iter().filter(|name| self.started.get(*name) != now.get(*name)).cloned();
        let changed: BTreeSet<String> = changed.collect();
        if !changed.is_empty() && changed != self.said {
            let names: Vec<&str> = changed.iter().map(String::as_str).collect();
            warn!(target: TARGET, "changed settings that take a restart to be in force: {}", names.join(", "));
        }
        self.said = changed;
    }
}

impl Configuration for Reload {
    fn look(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut files: Vec<PathBuf> = match self.sources.files() {
            Ok(files) => files.iter().map(Path::to_path_buf).collect(),
            Err(error) => {
                error.to_string().hash(&mut hasher);
                Vec::new()
            }
        };
        files.extend(self.secrets.iter().cloned());
        for file in files {
            let looks = fs::metadata(&file).map(|meta| {
                (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
            });
            (file, looks.map_err(|error| error.raw_os_error())).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn read(&mut self) -> Result<Vec<Wanted>, String> {
        let settings = config::load(&self.sources).map_err(|error| error.to_string())?;
        let first_line = |error: clap::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let line = complete(self.given.clone(), &settings).map_err(first_line)?;
        self.secrets = secrets(&settings);
        let now = texts(&line, &settings);
        let mounts = line.options.mounts.iter().map(|mount| mount.path.clone()).collect();
        let plan = Plan::new(line.options)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        let Share::Backend(stores) = plan.share else {
            return Err("a running daemon cannot share a directory instead of a store".to_owned());
        };
        self.complain(&now, &mounts);
        let mut urls: BTreeMap<&str, &SecretUrl> = BTreeMap::new();
        urls.extend(settings.store.as_ref().map(|store| (ROOT, &store.url)));
        urls.extend(settings.mounts.iter().map(|mount| (mount.path.as_str(), &mount.store.url)));
        let root = (ROOT, &stores.root);
        let all = std::iter::once(root).chain(stores.mounts.iter().map(|(path, share)| (path.as_str(), share)));
        let stores = all.filter(|(_, share)| share.url.is_some());
        stores.map(|(path, share)| wanted(path, share, urls.get(path).copied())).collect()
    }
}

/// What is said of one store; a store of the command line has no URL here, and stays what it is.
fn wanted(path: &str, share: &BackendShare, url: Option<&SecretUrl>) -> Result<Wanted, String> {
    let parse = |url: &SecretUrl| {
        let text = url.expose().ok_or_else(|| format!("{path}: the URL is not UTF-8"))?;
        Backend::parse(text).map_err(|error| format!("{path}: {error}"))
    };
    let backend = url.map(parse).transpose()?;
    if let Some(backend) = backend.as_ref().filter(|_| share.posix_metadata) {
        backend.check_attributes().map_err(|error| format!("{path}: {error}"))?;
    }
    let settings = postcard::to_stdvec(&MountSettings::of(path, share)).map_err(|error| format!("{path}: {error}"))?;
    Ok(Wanted {
        path: path.to_owned(),
        backend,
        options: broker_options(path, share, None, None),
        expiration: config(share).timeout(),
        settings,
    })
}

/// All that was said and cannot change, by name; of mounts, that they are there and what is said of them.
fn texts(line: &Line, settings: &Settings) -> BTreeMap<String, Vec<String>> {
    let mut texts = line.texts.clone();
    // Its URL may: whether it is the same store is for the broker to say.
    texts.remove("backend");
    texts.remove(CHANGES);
    let root = line.options.backend.iter().map(|_| (ROOT.to_owned(), Vec::new()));
    texts.extend(root.map(|(path, none)| (format!("mount {path}"), none)));
    for mount in &line.options.mounts {
        for own in mount.own.iter().filter(|own| own.name != CHANGES) {
            texts.insert(format!("{} of mount {}", own.name, mount.path), own.values.clone());
        }
    }
    if let Some(share) = &settings.share {
        texts.insert("shared_dir of [[shares]]".to_owned(), vec![share.shared_dir.display().to_string()]);
    }
    texts
}

/// The files that secrets were looked up in.
fn secrets(settings: &Settings) -> Vec<PathBuf> {
    let credentials = env::var_os("CREDENTIALS_DIRECTORY");
    let stores = settings.store.iter().chain(settings.mounts.iter().map(|mount| &mount.store));
    let sources = stores.flat_map(|store| store.shown.iter());
    let file = |(_, shown): &(String, String)| match shown.split_once(':') {
        Some(("file", path)) => Some(PathBuf::from(path)),
        Some(("credential", name)) => Some(Path::new(credentials.as_ref()?).join(name)),
        _ => None,
    };
    sources.filter_map(file).collect()
}
