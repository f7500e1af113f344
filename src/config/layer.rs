//! What one file says, or one directory of files: sections and keys, read and checked, nothing looked up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml_edit::Item;

use super::diagnostic::{Diagnostic, Place};
use super::file::{File, Section};
use super::store::Described;
use super::{Setting, schema, value};
use crate::cli::flags::{self, Flag};

/// What a setting is kept under that no flag has.
pub(super) const EXPIRATION: &str = "cache-expiration-time";

const CACHE: &str = "cache";
const WRITE_BACK: &str = "writeback-delay";

/// For how long `enabled_cache_write_back` lets a closed file wait, in milliseconds.
const WRITE_BACK_MS: &str = "1000";

const TWICE: &str = "the store is described twice: one of [storage_settings], backend and the mount \"/\" is enough";

/// Settings by the names of their flags.
pub(super) type Options = BTreeMap<String, Setting>;

/// One `[[shares]]` entry.
#[derive(Debug)]
pub(super) struct ShareEntry {
    pub shared_dir: PathBuf,
    pub place: Place,
    pub options: Options,
    pub store: Described,
}

/// One `[[mounts]]` entry.
#[derive(Debug)]
pub(super) struct MountEntry {
    /// Begins with a slash, has no other at its end.
    pub path: String,
    pub place: Place,
    pub options: Options,
    pub store: Described,
}

/// What one source says.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub files: Vec<PathBuf>,
    pub options: Options,
    pub store: Option<Described>,
    pub mounts: Vec<MountEntry>,
    pub shares: Vec<ShareEntry>,
    /// Files in which everybody can read secrets.
    pub exposed: Vec<PathBuf>,
}

impl Layer {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Layer, Diagnostic> {
        let file = File::read(path)?;
        let document = file.parse()?;
        let root = Section::root(&file, &document);
        let mut layer = Layer { files: vec![path.to_owned()], ..Layer::default() };
        let flags = flags::all();
        for (name, item) in root.items() {
            let one = || root.below(name, item, false).map(|sections| sections.into_iter().next());
            match name {
                "socket_settings" => one()?.map_or(Ok(()), |section| layer.socket(&section, flags))?,
                "cache_settings" => {}
                "storage_settings" => one()?.map_or(Ok(()), |section| layer.storage(&section))?,
                "options" => one()?.map_or(Ok(()), |section| layer.options(&section, flags))?,
                "shares" => root.below(name, item, true)?.iter().try_for_each(|section| layer.share(section, flags))?,
                "mounts" => root.below(name, item, true)?.iter().try_for_each(|section| layer.mount(section, flags))?,
                _ => return Err(unknown_section(&root, name, flags)),
            }
        }
        // Last, because it depends on what [options] says of the cache.
        if let Some(item) = root.get("cache_settings") {
            root.below("cache_settings", item, false)?.iter().try_for_each(|section| layer.cache(section))?;
        }
        if file.is_public && layer.has_plain_secret() {
            layer.exposed.push(path.to_owned());
        }
        Ok(layer)
    }

    /// Puts `upper` over this: what it says wins, of what it does not speak of this stays.
    ///
    /// # Errors
    /// A directory or path that both describe, if they are `equals`.
    pub fn cover(&mut self, upper: Layer, equals: bool) -> Result<(), Diagnostic> {
        let Layer { files, options, store, mounts, shares, exposed } = upper;
        self.files.extend(files);
        self.exposed.extend(exposed);
        cover(&mut self.options, options);
        if store.is_some() {
            self.store = store;
        }
        if !mounts.is_empty() {
            self.mounts = mounts;
        }
        for share in shares {
            match self.shares.iter().position(|known| known.shared_dir == share.shared_dir) {
                Some(at) if equals => return Err(share.twice(&self.shares[at].place)),
                Some(at) => self.shares[at] = share,
                None => self.shares.push(share),
            }
        }
        Ok(())
    }

    fn has_plain_secret(&self) -> bool {
        let shares = self.shares.iter().map(|share| &share.store);
        let mut all = self.store.iter().chain(self.mounts.iter().map(|mount| &mount.store)).chain(shares);
        all.any(Described::has_plain_secret)
    }

    fn socket(&mut self, section: &Section<'_>, flags: &[Flag]) -> Result<(), Diagnostic> {
        for (key, item) in section.items() {
            match flags.iter().find(|flag| flag.key() == key && schema::is_of_socket(flag)) {
                Some(flag) => set(&mut self.options, section, flag, key, item)?,
                None => return Err(unknown_key(section, key, schema::socket_keys(flags))),
            }
        }
        Ok(())
    }

    fn options(&mut self, section: &Section<'_>, flags: &[Flag]) -> Result<(), Diagnostic> {
        for (key, item) in section.items() {
            let flag = flags.iter().find(|flag| flag.key() == key);
            match flag.filter(|flag| !schema::is_of_socket(flag)) {
                Some(flag) if flag.name == "backend" => {
                    let url = value::text(item).map_err(|problem| section.error(key, problem))?;
                    self.take_store(section, key, Described::by_url(section.place(key), section.name, key, url), &[])?;
                }
                Some(flag) => set(&mut self.options, section, flag, key, item)?,
                None if flag.is_some() => return Err(section.error(key, "stands in [socket_settings]")),
                None => return Err(unknown_key(section, key, schema::option_keys(flags))),
            }
        }
        Ok(())
    }

    fn cache(&mut self, section: &Section<'_>) -> Result<(), Diagnostic> {
        for (key, _) in section.items() {
            if !schema::CACHE_KEYS.contains(&key) {
                return Err(unknown_key(section, key, schema::CACHE_KEYS.map(str::to_owned)));
            }
        }
        let switch = |key: &str| {
            let on = section.get(key).map(value::switch).transpose();
            on.map_err(|problem| section.error(key, problem))
        };
        let time = section.get("cache_expiration_time").map(value::duration);
        let time = time.transpose().map_err(|problem| section.error("cache_expiration_time", problem))?;
        let (enabled, expires) = (switch("enabled_cache")?, switch("enabled_cache_expiration")?);
        if let Some(on) = switch("enabled_cache_write_back")? {
            self.write_back(section, on)?;
        }
        let (policy, key) = match (enabled, expires, time.is_some()) {
            (Some(false), ..) => ("never", "enabled_cache"),
            (_, Some(false), _) => ("always", "enabled_cache_expiration"),
            (_, Some(true), _) => ("auto", "enabled_cache_expiration"),
            (_, None, true) => ("auto", "cache_expiration_time"),
            // Anything but never, if something else is said.
            (Some(true), None, false) => match self.options.get(CACHE) {
                Some(other) if !other.is("never") => return Ok(()),
                _ => ("auto", "enabled_cache"),
            },
            (None, None, false) => return Ok(()),
        };
        if let Some(other) = self.options.get(CACHE).filter(|other| !other.is(policy)) {
            let said = other.values.concat();
            return Err(section.error(key, format!("means cache = \"{policy}\", but [options] says \"{said}\"")));
        }
        self.options.insert(CACHE.to_owned(), Setting::new(CACHE, policy, section.place(key)));
        if let Some(time) = time.filter(|_| policy == "auto") {
            let place = section.place("cache_expiration_time");
            self.options.insert(EXPIRATION.to_owned(), Setting::new(EXPIRATION, value::show_duration(time), place));
        }
        Ok(())
    }

    fn write_back(&mut self, section: &Section<'_>, on: bool) -> Result<(), Diagnostic> {
        let key = "enabled_cache_write_back";
        let said = self.options.get(WRITE_BACK).map(|setting| setting.values.concat());
        match said.as_deref() {
            Some(said) if on == (said == "0") => {
                Err(section.error(key, format!("says {on}, but [options] says writeback_delay = {said}")))
            }
            Some(_) => Ok(()),
            None => {
                let delay = if on { WRITE_BACK_MS } else { "0" };
                self.options.insert(WRITE_BACK.to_owned(), Setting::new(WRITE_BACK, delay, section.place(key)));
                Ok(())
            }
        }
    }

    fn storage(&mut self, section: &Section<'_>) -> Result<(), Diagnostic> {
        let store = describe(section, "type", |_, _| Ok(false))?;
        self.take_store(section, "type", store, &[])
    }

    fn take_store(
        &mut self,
        section: &Section<'_>,
        key: &str,
        store: Described,
        keys: &[String],
    ) -> Result<(), Diagnostic> {
        store.check(keys)?;
        let root = self.mounts.iter().any(|mount| mount.path == "/");
        if self.store.is_some() || root {
            return Err(section.error(key, TWICE));
        }
        self.store = Some(store);
        Ok(())
    }

    fn share(&mut self, section: &Section<'_>, flags: &[Flag]) -> Result<(), Diagnostic> {
        let allowed: Vec<Flag> = flags.iter().filter(|flag| schema::is_of_share(flag)).cloned().collect();
        let keys = schema::share_keys(flags);
        let (options, store) = entry(section, &allowed, "shared_dir")?;
        store.check(&keys)?;
        let dir = required(section, "shared_dir")?;
        if !dir.starts_with('/') {
            return Err(section.error("shared_dir", format!("'{dir}' is not an absolute path")));
        }
        let place = section.place("shared_dir");
        let share = ShareEntry { shared_dir: dir.into(), place, options, store };
        if let Some(known) = self.shares.iter().find(|known| known.shared_dir == share.shared_dir) {
            return Err(share.twice(&known.place));
        }
        self.shares.push(share);
        Ok(())
    }

    fn mount(&mut self, section: &Section<'_>, flags: &[Flag]) -> Result<(), Diagnostic> {
        let allowed: Vec<Flag> = flags.iter().filter(|flag| schema::is_of_mount(flag)).cloned().collect();
        let keys = schema::mount_keys(flags);
        let (options, store) = entry(section, &allowed, "path")?;
        store.check(&keys)?;
        let path = required(section, "path")?;
        let bad = |why: &str| Err(section.error("path", format!("'{path}' {why}")));
        if !path.starts_with('/') {
            return bad("does not begin with a slash");
        }
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        if names.iter().any(|name| matches!(*name, "." | "..") || name.contains('\0') || name.len() > 255) {
            return bad("has a name in it that no directory can have");
        }
        let path = format!("/{}", names.join("/"));
        if let Some(known) = self.mounts.iter().find(|known| known.path == path) {
            return Err(section.error("path", format!("'{path}' is described twice, first at {}", known.place)));
        }
        if path == "/" && self.store.is_some() {
            return Err(section.error("path", TWICE));
        }
        self.mounts.push(MountEntry { path, place: section.place("path"), options, store });
        Ok(())
    }
}

impl ShareEntry {
    fn twice(&self, first: &Place) -> Diagnostic {
        let problem = format!("'{}' is described twice, first at {first}", self.shared_dir.display());
        Diagnostic::new(self.place.clone(), "shares.shared_dir", problem)
    }
}

/// Puts the settings of `upper` over those of `lower`, of which those that contradict them go.
pub(super) fn cover(lower: &mut Options, upper: Options) {
    for (name, setting) in upper {
        lower.retain(|known, _| !flags::exclude_each_other(known, &name));
        if name == CACHE {
            lower.remove(EXPIRATION);
        }
        lower.insert(name, setting);
    }
}

/// The options and the store of an entry of `[[shares]]` or `[[mounts]]`, whose `own` key names what it is for.
fn entry(section: &Section<'_>, allowed: &[Flag], own: &str) -> Result<(Options, Described), Diagnostic> {
    let mut options = Options::new();
    let mut time = None;
    let store = describe(section, "type", |key, item| {
        if key == own {
            return Ok(true);
        }
        if key == "cache_expiration_time" {
            let duration = value::duration(item).map_err(|problem| section.error(key, problem))?;
            time = Some(duration);
            return Ok(true);
        }
        let Some(flag) = allowed.iter().find(|flag| flag.key() == key) else { return Ok(false) };
        set(&mut options, section, flag, key, item).map(|()| true)
    })?;
    if let Some(time) = time {
        let (key, place) = ("cache_expiration_time", section.place("cache_expiration_time"));
        if let Some(cache) = options.get(CACHE).filter(|cache| !cache.is("auto")) {
            return Err(section.error(key, format!("means cache = \"auto\", not \"{}\"", cache.values.concat())));
        }
        options.insert(CACHE.to_owned(), Setting::new(CACHE, "auto", place.clone()));
        options.insert(EXPIRATION.to_owned(), Setting::new(EXPIRATION, value::show_duration(time), place));
    }
    Ok((options, store))
}

/// The store that a section describes by `type_key` and the keys that `is_other` does not take.
fn describe<'a>(
    section: &Section<'a>,
    type_key: &str,
    mut is_other: impl FnMut(&str, &'a Item) -> Result<bool, Diagnostic>,
) -> Result<Described, Diagnostic> {
    let name = required(section, type_key);
    let mut keys = Vec::new();
    for (key, item) in section.items() {
        if key == type_key {
            name.clone()?;
        } else if !is_other(key, item)? {
            keys.push((key, item));
        }
    }
    let mut store = Described::by_type(section.place(""), section.name, &name?, section.place(type_key));
    for (key, item) in keys {
        let value = value::of_store(item).map_err(|problem| section.error(key, problem))?;
        store.add(key, value, section.place(key));
    }
    Ok(store)
}

/// A string that must be there.
fn required(section: &Section<'_>, key: &str) -> Result<String, Diagnostic> {
    let item = section.get(key).ok_or_else(|| section.error(key, "is missing"))?;
    value::text(item).map(str::to_owned).map_err(|problem| section.error(key, problem))
}

fn set(options: &mut Options, section: &Section<'_>, flag: &Flag, key: &str, item: &Item) -> Result<(), Diagnostic> {
    let values = value::of_flag(flag, item).map_err(|problem| section.error(key, problem))?;
    if let Some(other) = options.keys().find(|known| flags::exclude_each_other(known, &flag.name)) {
        return Err(section.error(key, format!("cannot stand beside {}", other.replace('-', "_"))));
    }
    options.insert(flag.name.clone(), Setting { name: flag.name.clone(), values, place: section.place(key) });
    Ok(())
}

fn unknown_key(section: &Section<'_>, key: &str, known: impl IntoIterator<Item = String>) -> Diagnostic {
    let flag = key.replace('_', "-");
    if let Some((_, why)) = flags::WITHOUT_KEY.iter().find(|(without, _)| *without == flag) {
        return section.error(key, *why);
    }
    let known: Vec<String> = known.into_iter().collect();
    section.error(key, "unknown key").or_rather(key, known.iter().map(String::as_str))
}

fn unknown_section(root: &Section<'_>, name: &str, flags: &[Flag]) -> Diagnostic {
    if flags.iter().any(|flag| flag.key() == name) {
        return root.error(name, "stands outside of all sections: put it into [options]");
    }
    root.error(name, "unknown section").or_rather(name, schema::SECTIONS)
}
