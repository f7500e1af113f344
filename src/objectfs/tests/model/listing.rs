//! Reading directories: a name that is there from the beginning of a listing to its end is told exactly once, one that was
//! never there never; a cookie goes on at the same place, whatever came and went.

use std::collections::BTreeSet;

use super::contract::{Contract, Expected, Kind, Taken, Verdict, below};
use super::run::Runner;
use super::system::{Listed, System};

/// Most open directories.
const DIRS_MAX: usize = 4;

/// An open directory.
#[derive(Debug)]
pub struct OpenDir {
    pub node: u64,
    pub handle: u64,
    path: String,
    /// Names that were there all the time since the listing began, and names that were there at some time.
    always: Option<BTreeSet<String>>,
    ever: BTreeSet<String>,
    got: Vec<Listed>,
    ended: bool,
    /// Nothing was read yet: the listing begins with the opening or with the first reading.
    fresh: bool,
    /// The directory went away, or others played with its name.
    lost: bool,
}

impl OpenDir {
    fn new(node: u64, handle: u64, path: &str, lost: bool) -> OpenDir {
        let path = path.to_owned();
        OpenDir {
            node,
            handle,
            path,
            always: None,
            ever: BTreeSet::new(),
            got: Vec::new(),
            ended: false,
            fresh: false,
            lost,
        }
    }

    /// Takes in what is there now.
    pub fn note(&mut self, contract: &Contract) {
        self.lost |= contract.kind(&self.path) != Kind::Dir || !contract.certain_above(&self.path);
        if let Some(always) = &mut self.always {
            let (must, may) = contract.names(&self.path);
            always.retain(|name| must.contains(name));
            self.ever.extend(may);
        }
    }

    fn rewind(&mut self, contract: &Contract) {
        let (must, may) = contract.names(&self.path);
        self.always = Some(must);
        self.ever = may;
        self.got.clear();
        self.ended = false;
    }

    /// Takes entries that came after the first `at` ones.
    fn take(&mut self, at: usize, entries: Vec<Listed>) -> Verdict {
        self.ended = entries.is_empty();
        for (index, entry) in entries.into_iter().enumerate() {
            match self.got.get(at + index) {
                Some(known) if known.name == entry.name && known.next == entry.next => {}
                Some(known) => return Err(format!("cookie gives {:?} where it gave {:?}", entry.name, known.name)),
                None => self.got.push(entry),
            }
        }
        let names: Vec<&str> = self.got.iter().map(|entry| entry.name.as_str()).collect();
        let unique: BTreeSet<&str> = names.iter().copied().collect();
        if unique.len() != names.len() {
            return Err(format!("a name comes twice: {names:?}"));
        }
        let dots = |name: &str| name == "." || name == "..";
        if let Some(alien) = names.iter().find(|name| !dots(name) && !self.ever.contains(**name)) {
            return Err(format!("{alien:?} was never there"));
        }
        let missing = self.always.iter().flatten().find(|name| !unique.contains(name.as_str()));
        match missing.filter(|_| self.ended) {
            Some(name) => Err(format!("{name:?} is missing from {names:?}")),
            None => Ok(()),
        }
    }
}

impl<S: System> Runner<S> {
    pub(super) fn opendir(&mut self, path: &str) -> Verdict {
        if self.dirs.len() >= DIRS_MAX {
            return Ok(());
        }
        let result = self.twice(|this| {
            let node = this.walk(path)?;
            Ok((node, this.system.opendir(node)?))
        });
        let outcome = self.outcome(result);
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(Kind::File) => Err(vec![libc::ENOTDIR]),
            Ok(Kind::Dir) => Ok(()),
        };
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| Expected::new())?;
        if taken == Taken::Loosely {
            self.contract.settle(&outcome.after, &Expected::new())?;
        }
        if let (Ok((node, handle)), true) = (outcome.result, taken != Taken::Refused) {
            let mut dir = OpenDir::new(node, handle, path, taken == Taken::Loosely);
            dir.rewind(&self.contract);
            dir.fresh = true;
            self.dirs.push(dir);
        }
        Ok(())
    }

    pub(super) fn readdir(&mut self, dir: usize, count: usize, back: usize, plus: bool) -> Verdict {
        if self.dirs.is_empty() {
            return Ok(());
        }
        let dir = dir % self.dirs.len();
        let at = self.dirs[dir].got.len().saturating_sub(back);
        let offset = if at == 0 { 0 } else { self.dirs[dir].got[at - 1].next };
        if at == 0 && !std::mem::take(&mut self.dirs[dir].fresh) {
            self.dirs[dir].rewind(&self.contract);
        }
        let (node, handle) = (self.dirs[dir].node, self.dirs[dir].handle);
        let result = self.system.readdir(node, handle, offset, count, plus);
        let outcome = self.outcome(result);
        let path = self.dirs[dir].path.clone();
        self.contract.settle(&outcome.after, &Expected::new())?;
        let lost = self.dirs[dir].lost;
        match outcome.result {
            Ok(entries) => {
                self.learn(&path, &entries, lost)?;
                if lost { Ok(()) } else { self.dirs[dir].take(at, entries) }
            }
            // Asked again, it may begin anew.
            Err(_) if outcome.failed && at == 0 => {
                self.dirs[dir].always = None;
                Ok(())
            }
            Err(_) if outcome.failed || lost => Ok(()),
            Err(errno) => Err(format!("answers {errno}")),
        }
    }

    pub(super) fn closedir(&mut self, dir: usize) -> Verdict {
        if self.dirs.is_empty() {
            return Ok(());
        }
        let dir = self.dirs.swap_remove(dir % self.dirs.len());
        self.system.releasedir(dir.node, dir.handle).map_err(|errno| format!("releasedir answers {errno}"))
    }

    /// READDIRPLUS looks names up: their kinds and lengths must be right, as far as nobody else plays with them.
    fn learn(&mut self, path: &str, entries: &[Listed], lost: bool) -> Verdict {
        for entry in entries {
            let Some(found) = entry.found.filter(|found| found.node != 0) else { continue };
            self.learnt(found);
            let child = if path.is_empty() { entry.name.clone() } else { format!("{path}/{}", entry.name) };
            let kind = self.contract.kind(&child);
            if !lost && kind != Kind::Absent && self.contract.certain(&child) && self.dirs_are_fresh() {
                self.check(&child, kind, &found)?;
            }
        }
        Ok(())
    }

    /// Entries of a listing that began before others changed something tell of then.
    fn dirs_are_fresh(&self) -> bool {
        self.dirs.is_empty()
    }

    /// All of a directory at once: what is there now, nothing else.
    pub(super) fn list(&mut self, path: &str, plus: bool, count: usize) -> Verdict {
        let before = self.dirs.len();
        if before >= DIRS_MAX {
            return Ok(());
        }
        self.opendir(path)?;
        if self.dirs.len() == before {
            return Ok(());
        }
        while !self.dirs[before].ended && !self.dirs[before].lost {
            if self.dirs[before].got.len() > 100 {
                return Err("a listing does not end".into());
            }
            let known = self.dirs[before].got.len();
            self.readdir(before, count, 0, plus)?;
            if self.dirs[before].got.len() == known && !self.dirs[before].ended {
                break;
            }
        }
        self.closedir(before)
    }

    /// A directory was renamed: open ones follow.
    pub(super) fn dirs_move(&mut self, from: &str, to: &str) {
        for dir in &mut self.dirs {
            if dir.path == from || below(&dir.path, from) {
                dir.path = format!("{to}{}", &dir.path[from.len()..]);
            } else if dir.path == to || below(&dir.path, to) {
                dir.lost = true;
            }
        }
    }
}
