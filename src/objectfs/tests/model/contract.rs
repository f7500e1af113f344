//! The contract between ovfs, the guest and everybody else who uses the store, as a program that says of every answer
//! whether it may be given. It reads no code of the file system; what it knows is here:
//!
//! 1. **The bucket is the file system.** What no file of the guest hides is as the store has it: objects are files, names with
//!    something below them are directories, a directory hides an object of its name ([`Contract::kind`]).
//! 2. **What the guest wrote and the store does not have yet is there for the guest** ([`Dirty::Yes`]): under its name,
//!    in listings, through every handle, and it keeps the directories above it alive.
//! 3. **fsync, close and syncfs say Ok only if the store has every byte** ([`Contract::synced`]). A daemon that is gone
//!    without a word loses at most what was never synced; nothing in the store is ever a mix ([`Contract::settle`]).
//! 4. **A name changes in the store only by the operation that says so**; a directory that the guest empties stays.
//! 5. **Opening shows the newest version** (close-to-open). Names may be trusted for the time of the cache policy, and
//!    no longer ([`Contract::certain`]); opening never is from trust alone.
//! 6. **A handle shows one version.** Once another program replaced or deleted what it has open (`foreign`), it gives
//!    those bytes or ESTALE, never others.
//! 7. **Nobody's update is lost silently.** Where another program changed a file under what the guest wrote, syncing says ESTALE (or
//!    EEXIST to who asked for O_EXCL) and theirs stays; only one that owes theirs nothing, having written every byte itself, may
//!    replace it: whole files are exchanged, the last close wins.
//! 8. **An operation that fails because the store failed did all or nothing** of what it says, or what a crash of another program in
//!    the middle of the same would have left; nobody was told that it is done.
//!
//! Where another program or a failure is involved, several answers are right. The contract then takes the one that was given
//! and holds the file system to it, or, where that cannot be told from outside, asks less from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::system::{Answer, Bucket};

/// Ok, or what is wrong.
pub type Verdict<T = ()> = std::result::Result<T, String>;

/// Errors that trust in names may bring while others change them.
const TRUSTED_TOO_LONG: [i32; 7] =
    [libc::ENOENT, libc::ENOTDIR, libc::EISDIR, libc::EEXIST, libc::ENOTEMPTY, libc::ESTALE, libc::EINVAL];
/// What syncing says of a conflict.
const CONFLICT: [i32; 5] = [libc::ESTALE, libc::EEXIST, libc::EISDIR, libc::ENOTDIR, libc::ENOENT];

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Absent,
    File,
    Dir,
}

/// Whether a file has something that the store lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dirty {
    No,
    /// It cannot be told from outside: the same bytes are there, or a conflict may have ended it.
    Maybe,
    Yes,
}

/// A file that is open, or that the store does not have in full.
#[derive(Debug, Clone)]
pub struct File {
    /// As the guest sees it.
    pub bytes: Vec<u8>,
    /// Which of these came from the version in the store that the file lies over.
    owed: Vec<bool>,
    /// Its name; `None` when it has none any more.
    pub place: Option<String>,
    pub dirty: Dirty,
    /// Another program changed what is at its name, or a failure leaves open what is there.
    pub foreign: bool,
    /// Another program did.
    theirs: bool,
    /// It came with O_EXCL and is not in the store yet.
    exclusive: bool,
    /// What is in the store at its name is this file's.
    pub stored: bool,
    /// And the daemon was told so: until then the file is new to it.
    acknowledged: bool,
    /// The contract has lost track of its bytes.
    pub wild: bool,
    pub handles: usize,
    pub writers: usize,
}

impl File {
    fn new(bytes: Vec<u8>, place: &str, stored: bool) -> File {
        File {
            owed: vec![stored; bytes.len()],
            bytes,
            place: Some(place.into()),
            dirty: if stored { Dirty::No } else { Dirty::Yes },
            foreign: false,
            theirs: false,
            exclusive: false,
            stored,
            acknowledged: stored,
            wild: false,
            handles: 0,
            writers: 0,
        }
    }

    /// Whether it is stored by whoever closes it.
    pub fn is_new(&self) -> bool {
        !self.acknowledged
    }

    /// Whether it may replace what another program put at its name.
    fn may_replace(&self) -> bool {
        !self.theirs || self.wild || (!self.exclusive && !self.owed.contains(&true))
    }

    fn change(&mut self, bytes: Vec<u8>, own: Range<usize>) {
        self.bytes = bytes;
        self.owed.resize(self.bytes.len(), false);
        if let Some(own) = self.owed.get_mut(own) {
            own.fill(false);
        }
        // Written through a handle that may have lost its name: nobody can tell whether it still has it.
        self.dirty = if self.foreign && self.dirty != Dirty::Yes { Dirty::Maybe } else { Dirty::Yes };
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Outcome<T> {
    pub result: Answer<T>,
    /// The store was made to fail during it.
    pub failed: bool,
    /// The bucket after it.
    pub after: Bucket,
}

/// How an operation was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It failed and should have, or was allowed to.
    Refused,
    /// It did what it says.
    Done,
    /// It succeeded on names that others changed lately.
    Loosely,
}

/// What the store must hold after an operation: one of these.
pub type Expected = BTreeMap<String, Vec<Option<Rc<Vec<u8>>>>>;

#[derive(Debug, Default)]
pub struct Contract {
    pub bucket: Bucket,
    pub files: BTreeMap<usize, File>,
    next: usize,
    /// Names are trusted for a while.
    cached: bool,
    /// A directory that others delete takes with it the place of what is not in the store yet.
    pub real_dirs: bool,
    /// Keys that others changed within that while.
    changed: BTreeSet<String>,
    /// A file whose change is under way, as it was before, and which bytes the change is about.
    changing: Option<(usize, File, Range<usize>)>,
}

/// Whether `path` lies below `dir`.
pub fn below(path: &str, dir: &str) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// The directory of a path.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Contract {
    pub fn new(bucket: Bucket, cached: bool) -> Contract {
        Contract { bucket, cached, ..Contract::default() }
    }

    /// The file that holds `path` against what the store has there.
    fn local(&self, path: &str) -> Option<usize> {
        let holds = |file: &File| file.place.as_deref() == Some(path) && file.dirty == Dirty::Yes;
        self.files.iter().find(|(_, file)| holds(file)).map(|(id, _)| *id)
    }

    /// Whether a file of the guest holds `path` against what the store has there.
    pub fn is_local(&self, path: &str) -> bool {
        self.local(path).is_some()
    }

    fn may_be_local(file: &File) -> bool {
        file.dirty == Dirty::Maybe && file.foreign && file.place.is_some()
    }

    /// What is at `path`.
    pub fn kind(&self, path: &str) -> Kind {
        if path.is_empty() {
            return Kind::Dir;
        }
        if self.local(path).is_some() {
            return Kind::File;
        }
        let local_below = self
            .files
            .values()
            .any(|file| file.dirty == Dirty::Yes && file.place.as_deref().is_some_and(|place| below(place, path)));
        if local_below { Kind::Dir } else { self.stored_kind(path) }
    }

    /// What the store has at `path`.
    fn stored_kind(&self, path: &str) -> Kind {
        if self.bucket.keys().any(|key| below(key, path)) {
            Kind::Dir
        } else if self.bucket.contains_key(path) {
            Kind::File
        } else {
            Kind::Absent
        }
    }

    /// The bytes of the file at `path`.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        match self.local(path) {
            Some(id) => Some(self.files[&id].bytes.clone()),
            None => self.bucket.get(path).map(|bytes| bytes.to_vec()),
        }
    }

    /// Whether it can be told what the guest must see at `path`.
    pub fn certain(&self, path: &str) -> bool {
        let near = |other: &str| other == path || below(path, other) || below(other, path);
        !self.changed.iter().any(|key| near(key.trim_end_matches('/')))
            && !self.files.values().any(|f| Self::may_be_local(f) && f.place.as_deref().is_some_and(near))
            && !self.may_be_kept(path)
    }

    /// Whether a directory on the way to `path` may be there for what the guest wrote alone.
    fn may_be_kept(&self, path: &str) -> bool {
        let above = |dir: &str| {
            self.kind(dir) != Kind::Dir
                && self.files.values().any(|file| {
                    Self::may_be_local(file) && file.place.as_deref().is_some_and(|place| below(place, dir))
                })
        };
        path.match_indices('/').any(|(at, _)| above(&path[..at]))
    }

    /// Whether nobody plays with the name `path` or with a directory above it.
    pub fn certain_above(&self, path: &str) -> bool {
        let above = |other: &str| other == path || below(path, other);
        !self.changed.iter().any(|key| above(key.trim_end_matches('/')))
            && !self.files.values().any(|f| Self::may_be_local(f) && f.place.as_deref().is_some_and(above))
            && !self.may_be_kept(path)
    }

    /// Errors that naming `path` may end in, before its last component is looked at.
    fn walk(&self, path: &str) -> Answer<()> {
        for (at, _) in path.match_indices('/') {
            match self.kind(&path[..at]) {
                Kind::Absent => return Err(libc::ENOENT),
                Kind::File => return Err(libc::ENOTDIR),
                Kind::Dir => {}
            }
        }
        Ok(())
    }

    /// What naming `path` finds.
    pub fn resolve(&self, path: &str) -> Answer<Kind> {
        self.walk(path).map(|()| self.kind(path))
    }

    /// Names below `dir`: those that must be there, and those that may.
    pub fn names(&self, dir: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut must, mut may) = (BTreeSet::new(), BTreeSet::new());
        let first = |path: &str| {
            let rest = if dir.is_empty() { path } else { path.strip_prefix(dir)?.strip_prefix('/')? };
            rest.split('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
        };
        must.extend(self.bucket.keys().filter_map(|key| first(key)));
        for file in self.files.values().filter(|file| file.dirty != Dirty::No) {
            let Some(name) = file.place.as_deref().and_then(first) else { continue };
            if Self::may_be_local(file) {
                may.insert(name)
            } else {
                must.insert(name)
            };
        }
        may.extend(must.iter().cloned());
        (must, may)
    }

    /// Another program changed the store at `key`; the same bytes again are a change, too.
    pub fn outside(&mut self, key: &str, after: Bucket) {
        let mut changed = differences(&self.bucket, &after);
        if after.contains_key(key) && changed.is_empty() {
            changed.push(key.to_owned());
        }
        let kinds = self.kinds_above(&changed);
        self.bucket = after;
        for key in &changed {
            self.foreign(key, true);
        }
        self.note_kinds(kinds);
        let gone = |key: &&String| self.real_dirs && key.ends_with('/') && !self.bucket.contains_key(*key);
        let gone: Vec<&String> = changed.iter().filter(gone).collect();
        for file in self.files.values_mut() {
            let place = file.place.as_deref();
            file.foreign |= place.is_some_and(|at| gone.iter().any(|dir| below(at, dir.trim_end_matches('/'))));
        }
    }

    /// What is at the directories of `keys`, for the guest and in the store. Where a file of the guest makes a directory of
    /// what is a file in the store, what was asked of the store counts again once that file is given up.
    fn kinds_above(&self, keys: &[String]) -> BTreeMap<String, (Kind, Kind)> {
        let above = keys.iter().flat_map(|key| key.match_indices('/').map(|(at, _)| key[..at].to_owned()));
        above.map(|dir| (dir.clone(), (self.kind(&dir), self.stored_kind(&dir)))).collect()
    }

    /// Names that are of another kind than they were have changed too.
    fn note_kinds(&mut self, before: BTreeMap<String, (Kind, Kind)>) {
        let now = |path: &str| (self.kind(path), self.stored_kind(path));
        let others = before.into_iter().filter(|(path, kinds)| self.cached && now(path) != *kinds);
        let others: Vec<String> = others.map(|(path, _)| path).collect();
        self.changed.extend(others);
    }

    fn foreign(&mut self, key: &str, theirs: bool) {
        for file in self.files.values_mut() {
            if file.place.as_deref().is_some_and(|place| place == key || below(key, place)) {
                file.foreign = true;
                file.theirs |= theirs && file.place.as_deref() == Some(key);
                if file.writers == 0 && file.dirty == Dirty::Yes {
                    // Nobody waits for its bytes any more: they are given up when the store has been asked.
                    file.dirty = Dirty::Maybe;
                }
            }
        }
        if self.cached {
            self.changed.insert(key.to_owned());
        }
    }

    /// The time for which names are trusted has passed.
    pub fn expire(&mut self) {
        self.changed.clear();
    }

    /// Takes what the store holds after an operation that succeeded, or that failed without a reason to change anything:
    /// every change must be one of `expected`, the upload of a file with all that it has, or the marker of a
    /// directory that was there.
    pub fn settle(&mut self, after: &Bucket, expected: &Expected) -> Verdict {
        for (key, values) in expected {
            let there = after.get(key);
            if !values.iter().any(|value| value.as_ref() == there) {
                let lens: Vec<_> = values.iter().map(|v| v.as_ref().map(|v| v.len())).collect();
                return Err(format!("{key:?} is {:?} bytes in the store, not {lens:?}", there.map(|b| b.len())));
            }
        }
        let kept: Vec<String> = differences(&self.bucket, after)
            .into_iter()
            .filter(|key| !expected.contains_key(key))
            .filter(|key| !(key.ends_with('/') && self.keeps_dir(key, after)))
            .collect();
        for key in kept {
            self.uploaded(&key, after, true)?;
        }
        self.accept(after);
        Ok(())
    }

    fn keeps_dir(&self, key: &str, after: &Bucket) -> bool {
        let dir = key.trim_end_matches('/');
        let kept = |file: &File| file.place.as_deref().is_some_and(|place| below(place, dir));
        // Of an object and a directory of one name, the directory is what others see.
        let there = self.kind(dir) == Kind::Dir || self.bucket.keys().any(|other| below(other, dir));
        after.contains_key(key) && (there || self.cached || self.files.values().any(kept))
    }

    /// Takes over the bucket, and finds out who is in step with it.
    fn accept(&mut self, after: &Bucket) {
        self.bucket.clone_from(after);
        for file in self.files.values_mut() {
            let there = file.place.as_ref().and_then(|place| self.bucket.get(place));
            let same = there.is_some_and(|there| **there == file.bytes);
            // What nobody can tell may be the same.
            let may_be_same = same || (file.wild && there.is_some());
            match file.dirty {
                Dirty::Yes if may_be_same => file.dirty = Dirty::Maybe,
                // The same bytes were there by chance.
                Dirty::Maybe if !same && !file.stored && !file.foreign => file.dirty = Dirty::Yes,
                _ => {}
            }
        }
    }

    /// A change at `key` that no operation asked for must be the upload of the file there, known to whoever sent it or not.
    fn uploaded(&mut self, key: &str, after: &Bucket, known: bool) -> Verdict {
        let there = after.get(key);
        let replaces = self.bucket.contains_key(key);
        let changing = self.changing.as_ref();
        let found = self.files.iter_mut().find(|(id, file)| {
            let whole = there.is_some_and(|there| **there == file.bytes || file.wild);
            let halfway = || match (there, changing) {
                (Some(there), Some((at, old, _))) if at == *id => between(there, &old.bytes, &file.bytes),
                _ => false,
            };
            file.place.as_deref() == Some(key) && file.dirty != Dirty::No && (whole || halfway())
        });
        let Some((id, file)) = found else {
            return Err(format!("{key:?} became {:?} bytes in the store, of no file", there.map(|b| b.len())));
        };
        if replaces && !file.may_replace() {
            return Err(format!("{key:?} replaced what another program put there"));
        }
        file.stored = true;
        file.theirs = false;
        if known {
            file.acknowledged = true;
            file.exclusive = false;
            file.owed.fill(true);
            if let Some((_, _, own)) =
                changing.filter(|(at, ..)| at == id && there.is_none_or(|there| **there != file.bytes))
            {
                // Sent halfway: what the change wrote after that, the guest has written itself.
                let len = there.map_or(0, |there| there.len());
                file.owed.iter_mut().enumerate().for_each(|(at, owed)| *owed = at < len && !own.contains(&at));
            }
        }
        if there.is_some_and(|there| **there == file.bytes || file.wild) {
            file.dirty = Dirty::Maybe;
            // A directory of its name hides it, and the guest may be told of either while names are trusted.
            file.foreign = after.keys().any(|other| below(other, key));
            if file.foreign && self.cached {
                self.changed.insert(key.to_owned());
            }
        }
        Ok(())
    }

    /// Takes what the store holds after an operation on `touched` that failed with the store, or that met names which others changed:
    /// as if another program had done whatever was done, but nothing that makes a mix.
    pub fn settle_loosely(&mut self, after: &Bucket, touched: &[&str]) -> Verdict {
        let mut values: BTreeSet<Rc<Vec<u8>>> = self.bucket.values().cloned().collect();
        // What is being sent in pieces may be brought to the store first.
        let dirty = self.files.values().filter(|file| file.dirty != Dirty::No);
        let about = |file: &&File| {
            let place = file.place.as_deref();
            place.is_some_and(|place| touched.iter().any(|path| place == *path || below(place, path)))
        };
        values.extend(dirty.filter(about).map(|file| Rc::new(file.bytes.clone())));
        let changed = differences(&self.bucket, after);
        let kinds = self.kinds_above(&changed);
        for key in changed {
            let name = key.trim_end_matches('/');
            let about = touched.iter().any(|path| name == *path || below(name, path));
            let moved = after.get(&key).is_none_or(|there| values.contains(there) || there.is_empty());
            if (about && moved) || (key.ends_with('/') && self.keeps_dir(&key, after)) {
                self.foreign(&key, false);
                continue;
            }
            // Who sent it may not know that it arrived.
            self.uploaded(&key, after, false)?;
            self.foreign(&key, false);
        }
        // An upload of the bytes that were there already changes nothing but the version, which others do not know either.
        for file in self.files.values_mut().filter(|file| file.dirty != Dirty::No) {
            let there = file.place.as_ref().and_then(|place| after.get(place));
            file.foreign |= there.is_some_and(|there| **there == file.bytes || file.wild);
        }
        self.accept(after);
        self.note_kinds(kinds);
        Ok(())
    }

    /// Judges an operation on names: `wanted` says whether it must succeed or with what it may fail, `expected` what the
    /// store holds then.
    pub fn judge<T: std::fmt::Debug>(
        &mut self,
        touched: &[&str],
        wanted: Result<(), Vec<i32>>,
        outcome: &Outcome<T>,
        expected: impl FnOnce(&mut Contract) -> Expected,
    ) -> Verdict<Taken> {
        let certain = touched.iter().all(|path| self.certain(path));
        match (&outcome.result, wanted) {
            (Err(_), _) if outcome.failed => {
                self.settle_loosely(&outcome.after, touched)?;
                // It may have been done, with the same bytes as before.
                touched.iter().for_each(|path| self.foreign(path, false));
                Ok(Taken::Refused)
            }
            (Err(errno), _) if !certain && TRUSTED_TOO_LONG.contains(errno) => {
                self.settle_loosely(&outcome.after, touched)?;
                Ok(Taken::Refused)
            }
            (Ok(_), _) if !certain => Ok(Taken::Loosely),
            (Err(errno), Err(errnos)) if errnos.contains(errno) => {
                self.settle(&outcome.after, &Expected::new())?;
                Ok(Taken::Refused)
            }
            (Ok(_), Ok(())) => {
                let expected = expected(self);
                self.settle(&outcome.after, &expected)?;
                Ok(Taken::Done)
            }
            (result, wanted) => Err(format!("answers {result:?}, wanted {wanted:?}")),
        }
    }

    /// The file that opening `path` opens; `seen` is what it shows where that cannot be told.
    pub fn opened(&mut self, path: &str, seen: Option<&[u8]>) -> Verdict<usize> {
        if let Some(id) = self.local(path) {
            return Ok(id);
        }
        let placed = |file: &File| file.place.as_deref() == Some(path);
        if let Some(seen) = seen {
            let theirs = self.bucket.get(path).is_some_and(|there| **there == seen);
            let mine = self.files.iter_mut().find(|(_, file)| placed(file) && (file.bytes == seen || file.wild));
            return match mine {
                Some((id, file)) => {
                    file.wild |= theirs;
                    Ok(*id)
                }
                None if theirs => {
                    self.lose_name(path);
                    let file = File::new(seen.to_vec(), path, true);
                    Ok(self.add(file))
                }
                None => Err(format!("{path:?} shows {} bytes that nobody closed", seen.len())),
            };
        }
        let known = self.files.iter().find(|(_, file)| placed(file) && !file.foreign);
        if let Some((id, _)) = known {
            return Ok(*id);
        }
        // It may still be the file that it was before somebody may have changed it.
        let there = self.bucket.get(path);
        let unsure =
            |file: &&mut File| placed(file) && !file.theirs && there.is_some_and(|there| **there == file.bytes);
        if let Some((id, file)) = self.files.iter_mut().find(|(_, file)| unsure(file)) {
            file.wild = true;
            return Ok(*id);
        }
        self.lose_name(path);
        let Some(bytes) = self.bucket.get(path) else { return Err(format!("{path:?} opens and is not there")) };
        let file = File::new(bytes.to_vec(), path, true);
        Ok(self.add(file))
    }

    /// Whether a file at `path` has no bytes.
    pub fn is_empty_at(&self, id: usize, path: &str) -> bool {
        self.files.get(&id).is_some_and(|file| file.place.as_deref() == Some(path) && file.bytes.is_empty())
    }

    /// A new file, made by the guest.
    pub fn created(&mut self, path: &str, exclusive: bool) -> usize {
        self.lose_name(path);
        let mut file = File::new(Vec::new(), path, false);
        file.exclusive = exclusive;
        self.add(file)
    }

    /// A new file, made by the guest where it need not have seen what others made there.
    pub fn created_unseen(&mut self, path: &str, exclusive: bool) -> usize {
        let id = self.created(path, exclusive);
        let hides = self.bucket.keys().any(|key| key == path || below(key, path));
        if let Some(file) = self.files.get_mut(&id).filter(|_| hides) {
            file.foreign = true;
            file.theirs = true;
            // Whoever looked at it and closed it may have been told, and that was its end.
            file.dirty = Dirty::Maybe;
        }
        id
    }

    fn add(&mut self, mut file: File) -> usize {
        // Opened by a name that was trusted while a directory hid it already: whoever asks for the name takes it away.
        let hidden = file.place.as_deref().is_some_and(|place| self.stored_kind(place) == Kind::Dir);
        file.foreign |= hidden && file.stored;
        self.next += 1;
        self.files.insert(self.next, file);
        self.next
    }

    /// Files at `path` lose that name to another program.
    fn lose_name(&mut self, path: &str) {
        for file in self.files.values_mut().filter(|file| file.place.as_deref() == Some(path)) {
            file.place = None;
            file.foreign = true;
        }
        self.files.retain(|_, file| file.handles > 0 || file.place.is_some());
    }

    /// The guest took away the name `path`.
    pub fn removed(&mut self, path: &str) {
        for file in self.files.values_mut().filter(|file| file.place.as_deref() == Some(path)) {
            file.place = None;
        }
        self.files.retain(|_, file| file.handles > 0 || file.place.is_some());
    }

    /// Whether renaming the file at `from` moves an object, and which.
    pub fn object_of(&self, from: &str) -> Option<Rc<Vec<u8>>> {
        let unstored = |file: &File| file.place.as_deref() == Some(from) && file.dirty != Dirty::No && !file.stored;
        if self.files.values().any(unstored) { None } else { self.bucket.get(from).cloned() }
    }

    /// Whether the file at `path` hides what another program put there.
    pub fn hides_foreign(&self, path: &str) -> bool {
        self.local(path).is_some_and(|id| self.files[&id].foreign)
    }

    /// What was at `from` and below is at `to` now. `before` is the bucket before that.
    pub fn moved(&mut self, from: &str, to: &str, loosely: bool, before: &Bucket) {
        for file in self.files.values_mut() {
            let Some(place) = &file.place else { continue };
            if place == from || below(place, from) {
                let new = format!("{to}{}", &place[from.len()..]);
                // What another program put there may have been left behind.
                file.theirs &= self.bucket.get(&new) == before.get(place);
                let there = self.bucket.get(&new).filter(|there| ***there == file.bytes);
                if file.dirty == Dirty::Yes && there.is_some() && there != before.get(&new) {
                    // What was being sent in pieces was brought to the store first.
                    file.dirty = Dirty::Maybe;
                    file.stored = true;
                }
                file.place = Some(new);
                file.foreign |= loosely;
                file.exclusive = false;
            }
        }
        // A directory of its name hides it, and the guest may be told of either while names are trusted.
        if self.cached && self.bucket.contains_key(to) && self.bucket.keys().any(|key| below(key, to)) {
            self.changed.insert(to.to_owned());
        }
    }

    /// A change of a file, whose bytes in `own` are the guest's, is about to be judged: it may reach the store halfway.
    pub fn change(&mut self, id: usize, bytes: Vec<u8>, own: Range<usize>) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let old = file.clone();
        file.change(bytes, own.clone());
        self.changing = Some((id, old, own));
    }

    /// A change was judged.
    pub fn change_over(&mut self) {
        self.changing = None;
    }

    /// A change that failed came so far; `None`: nobody can tell.
    pub fn came_so_far(&mut self, id: usize, seen: Option<Vec<u8>>) -> Verdict {
        let old = self.changing.take().filter(|(at, ..)| *at == id).map(|(_, old, _)| old);
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let Some(seen) = seen else {
            file.wild = true;
            if file.stored && file.dirty == Dirty::Yes {
                // It may not have come to anything.
                file.dirty = Dirty::Maybe;
            }
            if old.is_some_and(|old| old.dirty != Dirty::Yes) {
                // It may not even have begun.
                file.dirty = Dirty::Maybe;
            }
            return Ok(());
        };
        let old = old.map_or_else(|| file.bytes.clone(), |old| old.bytes);
        if !file.wild && !between(&seen, &old, &file.bytes) {
            return Err("a change that failed left what is neither before nor after".into());
        }
        file.bytes = seen;
        file.owed.resize(file.bytes.len(), false);
        let bucket = file.place.as_ref().and_then(|place| self.bucket.get(place));
        if bucket.is_some_and(|there| **there == file.bytes) {
            file.dirty = Dirty::Maybe;
        }
        Ok(())
    }

    /// Judges a sync of one file.
    pub fn synced(&mut self, id: usize, outcome: &Outcome<()>) -> Verdict {
        let Some(file) = self.files.get(&id).cloned() else {
            return self.settle(&outcome.after, &Expected::new());
        };
        match outcome.result {
            Err(_) if outcome.failed => self.settle_loosely(&outcome.after, &[]),
            Err(errno) if file.foreign && CONFLICT.contains(&errno) => self.settle(&outcome.after, &Expected::new()),
            Err(errno) => Err(format!("sync of {:?} answers {errno}", file.place)),
            Ok(()) => {
                self.settle(&outcome.after, &Expected::new())?;
                self.must_be_stored(id)
            }
        }
    }

    /// The guest was told that the store has a file.
    pub fn must_be_stored(&mut self, id: usize) -> Verdict {
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let Some(place) = &file.place else { return Ok(()) };
        let there = self.bucket.get(place).is_some_and(|there| **there == file.bytes || file.wild);
        match (there, file.dirty) {
            (true, _) => {
                // Of one that may be two, this one is.
                file.dirty = if file.foreign || file.wild { Dirty::Maybe } else { Dirty::No };
                file.stored = true;
                file.acknowledged = true;
                file.owed.fill(true);
                file.exclusive = false;
                Ok(())
            }
            (false, Dirty::No | Dirty::Maybe) if file.foreign => Ok(()),
            (false, _) => Err(format!("{place:?} is not in the store as the guest was told")),
        }
    }

    /// Everything was synced, with or without success, by whoever.
    pub fn all_synced(&mut self, after: &Bucket, failed: bool) -> Verdict {
        if failed {
            return self.settle_loosely(after, &[]);
        }
        self.settle(after, &Expected::new())?;
        let ids: Vec<usize> = self.files.iter().filter(|(_, f)| !f.foreign).map(|(id, _)| *id).collect();
        ids.into_iter().try_for_each(|id| self.must_be_stored(id))
    }

    /// Whether a sync of everything may fail: a conflict is known.
    pub fn in_conflict(&self) -> bool {
        self.files.values().any(|file| file.foreign && file.dirty != Dirty::No && file.place.is_some())
    }

    /// Whether files in conflict may hold memory, those without a name as well.
    pub fn memory_is_held(&self) -> bool {
        self.files.values().any(|file| file.foreign && file.dirty != Dirty::No)
    }

    /// A handle is closed.
    pub fn closed(&mut self, id: usize, writable: bool) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.handles -= 1;
        file.writers -= usize::from(writable);
        if file.writers == 0 && file.foreign && file.dirty == Dirty::Yes {
            // The end of a conflict: what the guest wrote is gone, now or soon.
            file.dirty = Dirty::Maybe;
        }
        let all_stored = file.dirty == Dirty::No || (file.dirty == Dirty::Maybe && file.wild && !file.foreign);
        if file.handles == 0 && (file.place.is_none() || all_stored) {
            self.files.remove(&id);
        }
    }

    /// Files that nobody has open and that the store has are no files of ours any more.
    pub fn tidy(&mut self) {
        self.files.retain(|_, file| file.handles > 0 || (file.place.is_some() && file.dirty != Dirty::No));
    }

    /// The daemon that knew the files is no more.
    pub fn forget_all(&mut self) {
        self.files.clear();
        self.changed.clear();
        self.changing = None;
    }
}

/// Keys whose objects differ.
fn differences(before: &Bucket, after: &Bucket) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

/// Whether `seen` is `old` on its way to `new`: every byte of one or of the other.
fn between(seen: &[u8], old: &[u8], new: &[u8]) -> bool {
    let lens = [old.len().min(new.len()), old.len().max(new.len())];
    (lens[0]..=lens[1]).contains(&seen.len())
        && seen.iter().enumerate().all(|(at, byte)| {
            let (old, new) = (old.get(at), new.get(at));
            old == Some(byte) || new == Some(byte) || (*byte == 0 && old.is_none())
        })
}
