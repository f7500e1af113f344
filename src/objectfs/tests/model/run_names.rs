//! The steps that change names.

use std::rc::Rc;

use super::contract::{Contract, Dirty, Expected, Kind, Taken, Verdict, below, parent};
use super::run::Runner;
use super::system::System;

impl<S: System> Runner<S> {
    pub(super) fn mkdir(&mut self, path: &str) -> Verdict {
        let result = self.twice(|this| {
            let (node, name) = this.place(path)?;
            let found = this.system.mkdir(node, name)?;
            Ok(this.learnt(found))
        });
        let outcome = self.outcome(result);
        let wanted = self.must_be_absent(path);
        let marker = format!("{path}/");
        let taken =
            self.contract.judge(&[path], wanted, &outcome, |_| Self::expect(&[(&marker, Some(Rc::default()))]))?;
        if taken == Taken::Loosely {
            self.contract.settle_loosely(&outcome.after, &[path])?;
        }
        Ok(())
    }

    pub(super) fn mknod(&mut self, path: &str) -> Verdict {
        let result = self.twice(|this| {
            let (node, name) = this.place(path)?;
            let found = this.system.mknod(node, name)?;
            Ok(this.learnt(found))
        });
        let outcome = self.outcome(result);
        let wanted = self.must_be_absent(path);
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| Self::expect(&[(path, Some(Rc::default()))]))?;
        if taken == Taken::Loosely {
            self.contract.settle_loosely(&outcome.after, &[path])?;
        }
        Ok(())
    }

    fn must_be_absent(&self, path: &str) -> Result<(), Vec<i32>> {
        match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Ok(()),
            Ok(_) => Err(vec![libc::EEXIST]),
        }
    }

    pub(super) fn unlink(&mut self, path: &str) -> Verdict {
        let result = self.twice(|this| {
            let (node, name) = this.place(path)?;
            this.system.unlink(node, name)
        });
        let outcome = self.outcome(result);
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(Kind::Dir) => Err(vec![libc::EISDIR]),
            Ok(Kind::File) => Ok(()),
        };
        // A file that was never stored hides what another program put there; both are this name.
        let theirs = self.contract.bucket.get(path).cloned().filter(|_| self.contract.hides_foreign(path));
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| {
            let mut expected = Self::expect(&[(path, None)]);
            if theirs.is_some() {
                expected.entry(path.to_owned()).or_default().push(theirs.clone());
            }
            expected
        })?;
        match taken {
            Taken::Refused => return Ok(()),
            Taken::Loosely => self.contract.settle_loosely(&outcome.after, &[path])?,
            Taken::Done => self.dir_stays(parent(path))?,
        }
        self.contract.removed(path);
        Ok(())
    }

    fn dir_stays(&self, dir: &str) -> Verdict {
        let there = self.contract.kind(dir) == Kind::Dir;
        if there { Ok(()) } else { Err(format!("directory {dir:?} vanished with its last entry")) }
    }

    pub(super) fn rmdir(&mut self, path: &str) -> Verdict {
        let result = self.twice(|this| {
            let (node, name) = this.place(path)?;
            this.system.rmdir(node, name)
        });
        let outcome = self.outcome(result);
        let marker = format!("{path}/");
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(Kind::File) => Err(vec![libc::ENOTDIR]),
            Ok(Kind::Dir) if !self.contract.names(path).0.is_empty() => Err(vec![libc::ENOTEMPTY]),
            Ok(Kind::Dir) => Ok(()),
        };
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| Self::expect(&[(&marker, None)]))?;
        match taken {
            Taken::Refused => Ok(()),
            Taken::Loosely => self.contract.settle_loosely(&outcome.after, &[path]),
            Taken::Done => self.dir_stays(parent(path)),
        }
    }

    pub(super) fn rename(&mut self, from: &str, to: &str, noreplace: bool) -> Verdict {
        let result = self.twice(|this| {
            let (old, old_name) = this.place(from)?;
            let (new, new_name) = this.place(to)?;
            this.system.rename((old, old_name), (new, new_name), noreplace)
        });
        let outcome = self.outcome(result);
        let (source, target) = (self.contract.resolve(from), self.contract.resolve(to));
        let wanted = self.rename_wanted((from, source), (to, target), noreplace);
        // A conflict is told now, or at the next sync.
        if outcome.result == Err(libc::ESTALE) && self.hides_below(from) {
            return self.contract.settle(&outcome.after, &Expected::new());
        }
        let hides = self.hides_below(from) || self.contract.hides_foreign(to);
        let loose_dir = source == Ok(Kind::Dir)
            && self
                .contract
                .files
                .values()
                .any(|file| file.foreign && file.place.as_deref().is_some_and(|place| below(place, from)));
        let before = self.contract.bucket.clone();
        let shadow = self.contract.object_of(from).is_none();
        let taken = if wanted.is_ok() && outcome.result.is_ok() && (hides || loose_dir) {
            Taken::Loosely
        } else {
            self.contract.judge(&[from, to], wanted, &outcome, |contract| match source {
                _ if from == to => Expected::new(),
                Ok(Kind::Dir) => rename_dir_expected(contract, from, to),
                _ => {
                    let there = if shadow { before.get(to).cloned() } else { before.get(from).cloned() };
                    let mut expected = Self::expect(&[(from, None), (to, there)]);
                    // It may as well be brought to the store first.
                    let whole = contract.content(from).map(Rc::new);
                    expected.entry(to.to_owned()).or_default().push(whole);
                    expected
                }
            })?
        };
        match taken {
            _ if taken == Taken::Refused || from == to => return Ok(()),
            Taken::Loosely => self.contract.settle_loosely(&outcome.after, &[from, to])?,
            _ => {}
        }
        self.contract.removed(to);
        self.contract.moved(from, to, taken == Taken::Loosely, &before);
        self.dirs_move(from, to);
        if taken == Taken::Done { self.dir_stays(parent(from)) } else { Ok(()) }
    }

    /// Whether something of the guest at `path` or below hides what another program put there.
    fn hides_below(&self, path: &str) -> bool {
        self.contract.files.values().any(|file| {
            file.foreign
                && file.dirty != Dirty::No
                && file.place.as_deref().is_some_and(|place| place == path || below(place, path))
        })
    }

    fn rename_wanted(
        &self,
        (from, source): (&str, Result<Kind, i32>),
        (to, target): (&str, Result<Kind, i32>),
        noreplace: bool,
    ) -> Result<(), Vec<i32>> {
        let mut errnos = Vec::new();
        errnos.extend(source.err());
        errnos.extend(target.err());
        if source == Ok(Kind::Absent) {
            errnos.push(libc::ENOENT);
        }
        if !errnos.is_empty() {
            return Err(errnos);
        }
        let (Ok(source), Ok(target)) = (source, target) else { return Ok(()) };
        if below(to, from) {
            errnos.push(libc::EINVAL);
        }
        if noreplace && target != Kind::Absent {
            errnos.push(libc::EEXIST);
        }
        if from != to {
            match (source, target) {
                (Kind::File, Kind::Dir) => errnos.push(libc::EISDIR),
                (Kind::Dir, Kind::File) => errnos.push(libc::ENOTDIR),
                (Kind::Dir, Kind::Dir) if !self.contract.names(to).0.is_empty() => errnos.push(libc::ENOTEMPTY),
                _ => {}
            }
        }
        if errnos.is_empty() { Ok(()) } else { Err(errnos) }
    }
}

/// Everything below `from` is below `to`, and nothing else is.
fn rename_dir_expected(contract: &Contract, from: &str, to: &str) -> Expected {
    let mut expected = Expected::new();
    let (old_marker, new_marker) = (format!("{from}/"), format!("{to}/"));
    let keys = contract.bucket.iter().filter(|(key, _)| below(key, from));
    for (key, bytes) in keys {
        let moved = format!("{to}{}", &key[from.len()..]);
        expected.insert(key.clone(), vec![None]);
        expected.insert(moved, vec![Some(Rc::clone(bytes))]);
    }
    // What is being sent in pieces is brought to the store first.
    for file in contract.files.values().filter(|file| file.dirty != Dirty::No) {
        let Some(place) = file.place.as_deref().filter(|place| below(place, from)) else { continue };
        expected.entry(place.to_owned()).or_insert_with(|| vec![None]);
        let moved = expected.entry(format!("{to}{}", &place[from.len()..])).or_insert_with(|| vec![None]);
        moved.push(Some(Rc::new(file.bytes.clone())));
    }
    let marker = contract.bucket.contains_key(&old_marker);
    let mut allowed = vec![Some(Rc::default())];
    if !marker {
        allowed.push(None);
    }
    expected.insert(new_marker, allowed);
    expected
}
