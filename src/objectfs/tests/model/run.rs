//! Takes steps on a system, as a guest kernel without caches would, and has the contract judge every answer.

use std::collections::HashMap;
use std::rc::Rc;

use super::contract::{Contract, Expected, Kind, Outcome, Taken, Verdict, below, parent};
use super::listing::OpenDir;
use super::step::{Access, PATHS, STORE_OPERATIONS, Step};
use super::system::{Answer, Found, ROOT, System};

/// Most open files, and most open directories: few, so that steps meet.
const HANDLES_MAX: usize = 12;
/// Entries that a listing asks for at once.
const LIST_AT_ONCE: usize = 4;

/// An open file.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    pub node: u64,
    pub handle: u64,
    /// Which file, in the contract.
    pub file: usize,
    pub readable: bool,
    pub writable: bool,
    pub append: bool,
}

/// A guest, others, and fate.
pub struct Runner<S> {
    pub system: S,
    pub contract: Contract,
    pub open: Vec<Open>,
    pub dirs: Vec<OpenDir>,
    /// How often the guest looked up which node.
    lookups: HashMap<u64, u64>,
    /// Makes the bytes of every write differ.
    tick: usize,
}

impl<S: System> Runner<S> {
    pub fn new(mut system: S) -> Runner<S> {
        let mut contract = Contract::new(system.bucket(), system.traits().cached);
        contract.real_dirs = !system.traits().flat;
        Runner { system, contract, open: Vec::new(), dirs: Vec::new(), lookups: HashMap::new(), tick: 0 }
    }

    /// Takes all steps, and then looks at everything before and after a remount.
    pub fn run(mut self, steps: &[Step]) -> Verdict {
        for (at, step) in steps.iter().enumerate() {
            self.step(step).map_err(|why| format!("step {at} {step:?}: {why}"))?;
        }
        self.system.failed();
        self.contract.expire();
        self.system.expire();
        while !self.open.is_empty() {
            self.close(0).map_err(|why| format!("closing at the end: {why}"))?;
        }
        for step in [Step::LookAtEverything, Step::Remount, Step::LookAtEverything] {
            self.step(&step).map_err(|why| format!("{step:?} at the end: {why}"))?;
        }
        Ok(())
    }

    /// Takes one step.
    pub fn step(&mut self, step: &Step) -> Verdict {
        self.tick += 1;
        match *step {
            Step::Put { path, len } => {
                let bytes = self.pattern(len);
                self.others(|system| system.put(PATHS[path], &bytes), PATHS[path]);
            }
            Step::Delete { path } => self.others(|system| system.delete(PATHS[path]), PATHS[path]),
            Step::PutMarker { path } => {
                let key = format!("{}/", PATHS[path]);
                self.others(|system| system.put(&key, b""), &key);
            }
            Step::DeleteMarker { path } => {
                let key = format!("{}/", PATHS[path]);
                self.others(|system| system.delete(&key), &key);
            }
            Step::Expire => {
                self.system.expire();
                self.contract.expire();
            }
            Step::Fail { operation, when, kind } => {
                if self.system.traits().faults {
                    self.system.fail(STORE_OPERATIONS[operation], when, kind);
                }
            }
            Step::Retry => self.retry()?,
            Step::Crash => self.end(false)?,
            Step::Remount => self.end(true)?,
            Step::Forget => self.forget(),
            Step::LookAtEverything => {
                self.system.failed();
                PATHS.iter().try_for_each(|path| self.look_at(path).map_err(|why| format!("{path:?}: {why}")))?;
            }
            _ => self.guest(step)?,
        }
        self.note_names();
        Ok(())
    }

    fn guest(&mut self, step: &Step) -> Verdict {
        match *step {
            Step::Create { path, access, exclusive, truncate, append } => {
                self.create(PATHS[path], access, exclusive, truncate, append)
            }
            Step::Open { path, access, truncate, append } => self.open(PATHS[path], access, truncate, append),
            Step::SyncFs => self.syncfs(),
            Step::Rename { from, to, noreplace } => self.rename(PATHS[from], PATHS[to], noreplace),
            Step::Unlink { path } => self.unlink(PATHS[path]),
            Step::Mkdir { path } => self.mkdir(PATHS[path]),
            Step::Rmdir { path } => self.rmdir(PATHS[path]),
            Step::Mknod { path } => self.mknod(PATHS[path]),
            Step::Stat { path } => self.stat(PATHS[path]).map(drop),
            Step::SetTimes { path, seconds } => self.set_times(PATHS[path], seconds),
            Step::TruncatePath { path, size } => self.truncate_path(PATHS[path], size),
            Step::List { path, plus } => self.list(PATHS[path], plus, LIST_AT_ONCE),
            Step::OpenDir { path } => self.opendir(PATHS[path]),
            Step::ReadDir { dir, count, back, plus } => self.readdir(dir, count, back, plus),
            Step::CloseDir { dir } => self.closedir(dir),
            _ => self.on_handle(step),
        }
    }

    /// Bytes that no other write has, at least not in this order.
    pub fn pattern(&self, len: usize) -> Vec<u8> {
        (0..len).map(|at| (self.tick * 37 + at / 5 + at % 3) as u8).collect()
    }

    /// What became of an operation.
    pub fn outcome<T>(&mut self, result: Answer<T>) -> Outcome<T> {
        let failed = self.system.failed();
        Outcome { result, failed, after: self.system.bucket() }
    }

    fn others(&mut self, act: impl FnOnce(&mut S), key: &str) {
        if !self.system.traits().flat && self.impossible(key) {
            return;
        }
        act(&mut self.system);
        let after = self.system.bucket();
        self.contract.outside(key, after);
    }

    /// Whether a store with real directories cannot have `key` beside what it has.
    fn impossible(&self, key: &str) -> bool {
        let bucket = &self.contract.bucket;
        let path = key.trim_end_matches('/');
        let below_file = path.match_indices('/').any(|(at, _)| bucket.contains_key(&path[..at]));
        let has_below = bucket.keys().any(|other| other != key && below(other, path));
        below_file || has_below || (key.ends_with('/') && bucket.contains_key(path))
    }

    fn retry(&mut self) -> Verdict {
        self.system.failed();
        self.system.retry();
        let after = self.system.bucket();
        self.contract.settle(&after, &Expected::new())
    }

    fn syncfs(&mut self) -> Verdict {
        let result = self.system.syncfs();
        let outcome = self.outcome(result);
        match outcome.result {
            Ok(()) => self.contract.all_synced(&outcome.after, false),
            Err(_) if outcome.failed => self.contract.all_synced(&outcome.after, true),
            Err(_) if self.contract.in_conflict() => self.contract.all_synced(&outcome.after, false),
            Err(errno) => Err(format!("syncfs answers {errno}")),
        }
    }

    /// The daemon ends, in order or not, and another takes its place.
    fn end(&mut self, in_order: bool) -> Verdict {
        self.system.failed();
        if in_order {
            let lost = self.system.remount();
            if lost > 0 && !self.contract.in_conflict() {
                return Err(format!("{lost} bytes could not be stored"));
            }
            let after = self.system.bucket();
            self.contract.all_synced(&after, false)?;
        } else {
            self.system.crash();
            let after = self.system.bucket();
            self.contract.settle(&after, &Expected::new())?;
        }
        self.open.clear();
        self.dirs.clear();
        self.lookups.clear();
        self.contract.forget_all();
        Ok(())
    }

    fn forget(&mut self) {
        let open = &self.open;
        let dirs = &self.dirs;
        let held = |node: u64| open.iter().any(|f| f.node == node) || dirs.iter().any(|d| d.node == node);
        let gone: Vec<(u64, u64)> = self.lookups.iter().map(|(n, c)| (*n, *c)).filter(|(n, _)| !held(*n)).collect();
        for (node, lookups) in gone {
            self.system.forget(node, lookups);
            self.lookups.remove(&node);
        }
    }

    /// A node was looked up.
    pub fn learnt(&mut self, found: Found) -> Found {
        *self.lookups.entry(found.node).or_insert(0) += 1;
        found
    }

    /// The node of a directory.
    pub fn walk(&mut self, dir: &str) -> Answer<u64> {
        let mut node = ROOT;
        for name in dir.split('/').filter(|name| !name.is_empty()) {
            let found = self.system.lookup(node, name)?;
            node = self.learnt(found).node;
        }
        Ok(node)
    }

    /// The node of the directory of `path`, and its last name.
    pub fn place<'p>(&mut self, path: &'p str) -> Answer<(u64, &'p str)> {
        let dir = parent(path);
        let node = self.walk(dir)?;
        Ok((node, path[dir.len()..].trim_start_matches('/')))
    }

    /// What is at `path`.
    pub fn lookup(&mut self, path: &str) -> Answer<Found> {
        let (node, name) = self.place(path)?;
        let found = self.system.lookup(node, name)?;
        Ok(self.learnt(found))
    }

    /// As Linux does: a path that went stale on the way is walked once more.
    pub fn twice<T>(&mut self, mut act: impl FnMut(&mut Self) -> Answer<T>) -> Answer<T> {
        match act(self) {
            Err(libc::ESTALE) => act(self),
            other => other,
        }
    }

    /// Kind, length and content of one name, seen by lookup and by open.
    fn look_at(&mut self, path: &str) -> Verdict {
        let kind = self.stat(path)?;
        if kind == Some(Kind::File) && self.contract.certain(path) {
            self.open(path, Access::ReadOnly, false, false)?;
            let last = self.open.len() - 1;
            let size = self.contract.files.get(&self.open[last].file).map_or(0, |file| file.bytes.len());
            self.read(last, 0, size + 10)?;
            self.close(last)?;
        }
        Ok(())
    }

    fn stat(&mut self, path: &str) -> Verdict<Option<Kind>> {
        let result = self.twice(|this| this.lookup(path));
        let outcome = self.outcome(result);
        let wanted = self.contract.resolve(path);
        let refusal = match wanted {
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Err(errno) => Err(vec![errno]),
            Ok(_) => Ok(()),
        };
        let taken = self.contract.judge(&[path], refusal, &outcome, |_| Expected::new())?;
        if taken == Taken::Loosely {
            self.contract.settle(&outcome.after, &Expected::new())?;
        }
        let (Taken::Done, Ok(found), Ok(kind)) = (taken, outcome.result, wanted) else { return Ok(None) };
        self.check(path, kind, &found)?;
        Ok(Some(kind))
    }

    /// Whether what was said of `path` is so.
    pub fn check(&self, path: &str, kind: Kind, found: &Found) -> Verdict {
        if found.dir != (kind == Kind::Dir) {
            return Err(format!("{path:?} should be a {kind:?}"));
        }
        let size = if kind == Kind::File { self.contract.content(path).map_or(0, |bytes| bytes.len()) } else { 0 };
        let wild = self.contract.files.values().any(|file| file.wild && file.place.as_deref() == Some(path));
        if found.size == size as u64 || wild {
            Ok(())
        } else {
            Err(format!("{path:?} has {} bytes, not {size}", found.size))
        }
    }

    fn set_times(&mut self, path: &str, seconds: i64) -> Verdict {
        let result = self.twice(|this| {
            let node = this.lookup(path)?.node;
            let set = this.system.set_mtime(node, seconds)?;
            Ok((set, this.system.getattr(node)?))
        });
        let outcome = self.outcome(result);
        let wanted = self.must_exist(path);
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| Expected::new())?;
        match outcome.result {
            Ok((set, got)) if taken == Taken::Done && (set.mtime, got.mtime) != (seconds, seconds) => {
                Err(format!("times set to {seconds} are {} and {}", set.mtime, got.mtime))
            }
            _ if taken == Taken::Loosely => self.contract.settle(&outcome.after, &Expected::new()),
            _ => Ok(()),
        }
    }

    fn must_exist(&self, path: &str) -> Result<(), Vec<i32>> {
        match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(_) => Ok(()),
        }
    }

    fn create(&mut self, path: &str, access: Access, exclusive: bool, truncate: bool, append: bool) -> Verdict {
        if self.open.len() >= HANDLES_MAX {
            return Ok(());
        }
        let sure = self.contract.certain(path);
        let flags = flags(access, truncate && sure, append) | if exclusive { libc::O_EXCL } else { 0 };
        let result = self.twice(|this| {
            let (node, name) = this.place(path)?;
            // As Linux does.
            if let Ok(found) = this.system.lookup(node, name) {
                this.learnt(found);
            }
            let (found, handle) = this.system.create(node, name, flags)?;
            Ok((this.learnt(found).node, handle))
        });
        let outcome = self.outcome(result);
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Ok(()),
            Ok(_) if exclusive => Err(vec![libc::EEXIST]),
            Ok(Kind::Dir) => Err(vec![libc::EISDIR]),
            Ok(Kind::File) => Ok(()),
        };
        self.bind(path, access, (truncate && sure, append), Some(exclusive), wanted, outcome)
    }

    fn open(&mut self, path: &str, access: Access, truncate: bool, append: bool) -> Verdict {
        if self.open.len() > HANDLES_MAX {
            return Ok(());
        }
        let sure = self.contract.certain(path);
        let result = self.twice(|this| {
            let node = this.lookup(path)?.node;
            Ok((node, this.system.open(node, flags(access, truncate && sure, append))?))
        });
        let outcome = self.outcome(result);
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(Kind::Dir) => Err(vec![libc::EISDIR]),
            Ok(Kind::File) => Ok(()),
        };
        self.bind(path, access, (truncate && sure, append), None, wanted, outcome)
    }

    /// Judges an open, and notes the new handle. `creates` says whether it may make the file, and that with O_EXCL.
    fn bind(
        &mut self,
        path: &str,
        access: Access,
        (truncate, append): (bool, bool),
        creates: Option<bool>,
        wanted: Result<(), Vec<i32>>,
        outcome: Outcome<(u64, u64)>,
    ) -> Verdict {
        let taken = self.contract.judge(&[path], wanted, &outcome, |_| Expected::new())?;
        let (Ok((node, handle)), true) = (outcome.result, taken != Taken::Refused) else { return Ok(()) };
        if taken == Taken::Loosely {
            self.contract.settle(&outcome.after, &Expected::new())?;
        }
        let unsure = self.contract.files.values().any(|file| {
            file.place.as_deref() == Some(path) && file.foreign && file.dirty == super::contract::Dirty::Maybe
        });
        // What others made there lately need not be seen yet.
        let known = self.contract.is_local(path) || self.open.iter().any(|open| open.node == node);
        let same = creates != Some(true) && self.contract.bucket.get(path).is_some_and(|there| there.is_empty());
        let overlooked = creates.is_some() && taken == Taken::Loosely && !unsure && !known && !same;
        let unsure = unsure || overlooked;
        let file = if unsure {
            let Some(seen) = self.peek(node) else {
                // It is gone, or the next version is there already.
                self.system.release(node, handle).ok();
                return Ok(());
            };
            let absent = !self.contract.bucket.contains_key(path);
            // With O_EXCL it is new, or it would have been refused.
            match creates.filter(|exclusive| seen.is_empty() && (absent || overlooked || *exclusive)) {
                Some(exclusive) if overlooked || !absent => self.contract.created_unseen(path, exclusive),
                // A file that was emptied after another program deleted it needs nothing of that, and is there all along.
                Some(exclusive) => match self.open.iter().find(|open| open.node == node).map(|open| open.file) {
                    Some(known) if !exclusive && self.contract.is_empty_at(known, path) => known,
                    _ => self.contract.created(path, exclusive),
                },
                None => self.contract.opened(path, Some(&seen))?,
            }
        } else if self.contract.kind(path) == Kind::Absent {
            self.contract.created(path, creates.unwrap_or(false))
        } else {
            self.contract.opened(path, None)?
        };
        if unsure {
            // Who looks at a new file and closes it has stored it.
            let after = self.system.bucket();
            self.contract.settle(&after, &Expected::new())?;
        }
        let (readable, writable) = (access != Access::WriteOnly, access != Access::ReadOnly);
        if let Some(file) = self.contract.files.get_mut(&file) {
            file.handles += 1;
            file.writers += usize::from(writable);
        }
        if truncate && writable {
            self.contract.change(file, Vec::new(), 0..0);
            self.contract.change_over();
        }
        self.open.push(Open { node, handle, file, readable, writable, append });
        Ok(())
    }

    /// All bytes of a node, if it gives them.
    pub fn peek(&mut self, node: u64) -> Option<Vec<u8>> {
        let handle = self.system.open(node, libc::O_RDONLY).ok()?;
        let bytes = self.system.read(node, handle, 0, 1 << 20);
        self.system.release(node, handle).ok();
        bytes.ok()
    }

    /// An open directory is read as it is when the entries come; the names that were there meanwhile are noted.
    fn note_names(&mut self) {
        for dir in &mut self.dirs {
            dir.note(&self.contract);
        }
    }

    /// What the store holds when the object at `path` is gone, or there with `bytes`.
    pub fn expect(pairs: &[(&str, Option<Rc<Vec<u8>>>)]) -> Expected {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), vec![value.clone()])).collect()
    }
}

/// Flags of open(2).
fn flags(access: Access, truncate: bool, append: bool) -> i32 {
    let access = match access {
        Access::ReadOnly => libc::O_RDONLY,
        Access::WriteOnly => libc::O_WRONLY,
        Access::ReadWrite => libc::O_RDWR,
    };
    access | if truncate { libc::O_TRUNC } else { 0 } | if append { libc::O_APPEND } else { 0 }
}
