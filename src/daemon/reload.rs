//! The files of settings while the daemon runs: what the broker asks of them. The device process never gets here.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use log::warn;

use super::{ROOT, complete};
use crate::broker::{Backend, Configuration, Wanted};
use crate::cli::{BackendShare, Given, Line, Plan, Share, Stores};
use crate::config::{self, Settings, Sources};
use crate::process::log::TARGET;
use crate::process::secrets::SecretUrl;
use crate::store::MountId;

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
        Some(Reload { sources, given, started, secrets, said: BTreeSet::new() })
    }

    /// For the broker that serves `stores`.
    pub fn of(self, stores: &Stores) -> Box<dyn Configuration> {
        let root = stores.root.url.as_ref().map(|_| (ROOT.to_owned(), 0));
        let paths = stores.mounts.iter().map(|(path, _)| path.clone());
        let numbers = root.into_iter().chain(paths.zip(1..)).collect();
        Box::new(Follower { reload: self, numbers })
    }

    /// Says, once, what has changed and cannot.
    fn complain(&mut self, now: &BTreeMap<String, Vec<String>>) {
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

/// With the numbers that the stores have.
#[derive(Debug)]
struct Follower {
    reload: Reload,
    numbers: BTreeMap<String, MountId>,
}

impl Configuration for Follower {
    fn look(&mut self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut files: Vec<PathBuf> = match self.reload.sources.files() {
            Ok(files) => files.iter().map(Path::to_path_buf).collect(),
            Err(error) => {
                error.to_string().hash(&mut hasher);
                Vec::new()
            }
        };
        files.extend(self.reload.secrets.iter().cloned());
        for file in files {
            let looks = fs::metadata(&file).map(|meta| {
                (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
            });
            (file, looks.map_err(|error| error.raw_os_error())).hash(&mut hasher);
        }
        hasher.finish()
    }

    fn read(&mut self) -> Result<Vec<Wanted>, String> {
        let settings = config::load(&self.reload.sources).map_err(|error| error.to_string())?;
        let first_line = |error: clap::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let line = complete(self.reload.given.clone(), &settings).map_err(first_line)?;
        self.reload.secrets = secrets(&settings);
        let now = texts(&line, &settings);
        let plan = Plan::new(line.options)
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
        let Share::Backend(stores) = plan.share else {
            return Err("a running daemon cannot share a directory instead of a store".to_owned());
        };
        self.reload.complain(&now);
        let mut urls: BTreeMap<&str, &SecretUrl> = BTreeMap::new();
        urls.extend(settings.store.as_ref().map(|store| (ROOT, &store.url)));
        urls.extend(settings.mounts.iter().map(|mount| (mount.path.as_str(), &mount.store.url)));
        let root = (ROOT, &stores.root);
        let all = std::iter::once(root).chain(stores.mounts.iter().map(|(path, share)| (path.as_str(), share)));
        let known = all.filter_map(|(path, share)| Some((*self.numbers.get(path)?, path, share)));
        known.map(|(id, path, share)| wanted(id, path, share, urls.get(path).copied())).collect()
    }
}

/// What is said of one store; a store of the command line has no URL here, and stays what it is.
fn wanted(id: MountId, path: &str, share: &BackendShare, url: Option<&SecretUrl>) -> Result<Wanted, String> {
    let parse = |url: &SecretUrl| {
        let text = url.expose().ok_or_else(|| format!("{path}: the URL is not UTF-8"))?;
        Backend::parse(text).map_err(|error| format!("{path}: {error}"))
    };
    Ok(Wanted { id, backend: url.map(parse).transpose()?, request_timeout: share.request_timeout })
}

/// All that was said and cannot change, by name; of mounts, that they are there and what is said of them.
fn texts(line: &Line, settings: &Settings) -> BTreeMap<String, Vec<String>> {
    let mut texts = line.texts.clone();
    // Its URL may: whether it is the same store is for the broker to say.
    texts.remove("backend");
    texts.remove(CHANGES);
    let time = |time: Option<std::time::Duration>| time.map(|time| vec![format!("{time:?}")]);
    texts.extend(time(line.options.cache_expiration).map(|time| ("cache_expiration_time".to_owned(), time)));
    let root = line.options.backend.iter().map(|_| (ROOT.to_owned(), Vec::new()));
    texts.extend(root.map(|(path, none)| (format!("mount {path}"), none)));
    for mount in &line.options.mounts {
        texts.insert(format!("mount {}", mount.path), Vec::new());
        for own in mount.own.iter().filter(|own| own.name != CHANGES) {
            texts.insert(format!("{} of mount {}", own.name, mount.path), own.values.clone());
        }
        let expiration = time(mount.cache_expiration);
        texts.extend(expiration.map(|time| (format!("cache_expiration_time of mount {}", mount.path), time)));
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
