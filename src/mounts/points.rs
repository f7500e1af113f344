//! The directories that mounts begin in, and those on the way to them. When mounts come and go, this is made anew; what stays
//! keeps its number.

use std::collections::BTreeMap;

use super::numbers::{self, NOWHERE, inner, mount_of};
use crate::fs::NodeId;
use crate::store::MountId;

/// One such directory.
#[derive(Debug)]
pub(super) struct Point {
    /// What the guest calls it.
    pub nodeid: NodeId,
    /// The mount whose root it is; `None`: it only leads to others.
    pub mount: Option<MountId>,
    /// What the guest calls the directory above; the root is above itself.
    pub above: NodeId,
    /// Names below it, which hide those of its store.
    children: BTreeMap<Box<[u8]>, usize>,
}

impl Point {
    /// The names below it, in order.
    pub fn children(&self) -> impl ExactSizeIterator<Item = (&[u8], usize)> {
        self.children.iter().map(|(name, &at)| (&**name, at))
    }

    /// Whether a name is one of those.
    pub fn hides(&self, name: &[u8]) -> bool {
        self.children.contains_key(name)
    }

    fn new(mount: Option<MountId>, way: u64, above: NodeId) -> Point {
        Point { nodeid: nodeid(mount, way), mount, above, children: BTreeMap::new() }
    }
}

/// The numbers of directories that only lead to others, by their paths: from 1, and none is used for another path.
pub(super) type Ways = BTreeMap<Vec<String>, u64>;

/// All of them. The first is the root.
#[derive(Debug)]
pub(super) struct Points {
    all: Vec<Point>,
    /// Those that only lead to others, by number.
    ways: BTreeMap<u64, usize>,
    /// Where each mount begins.
    of_mount: BTreeMap<MountId, usize>,
}

/// The root of a mount is number 1 of its own; others are numbered here.
fn nodeid(mount: Option<MountId>, way: u64) -> NodeId {
    match mount {
        Some(mount) => NodeId(numbers::outer(mount, NodeId::ROOT.0)),
        None if way == 0 => NodeId::ROOT,
        None => NodeId(numbers::outer(NOWHERE, way)),
    }
}

impl Points {
    /// For mounts at these paths; `/` is the root, which may be missing.
    pub fn new<'a>(mounts: impl IntoIterator<Item = (&'a str, MountId)>, ways: &mut Ways) -> Points {
        let mut mounts: Vec<(Vec<&str>, MountId)> = mounts
            .into_iter()
            .map(|(path, mount)| (path.split('/').filter(|name| !name.is_empty()).collect(), mount))
            .collect();
        // Those above come first, so that each is numbered when something below names it.
        mounts.sort();
        let root = mounts.first().filter(|(names, _)| names.is_empty()).map(|(_, mount)| *mount);
        let mut points =
            Points { all: vec![Point::new(root, 0, NodeId::ROOT)], ways: BTreeMap::new(), of_mount: BTreeMap::new() };
        for (names, mount) in mounts {
            let mut at = 0;
            for (depth, name) in names.iter().enumerate() {
                let last = depth + 1 == names.len();
                at = match points.all[at].children.get(name.as_bytes()) {
                    Some(&known) => known,
                    None if last => points.add(at, name, Point::new(Some(mount), 0, points.all[at].nodeid)),
                    None => {
                        let next = ways.len() as u64 + 1;
                        let path = names[..=depth].iter().map(|name| (*name).to_owned()).collect();
                        let way = *ways.entry(path).or_insert(next);
                        let index = points.add(at, name, Point::new(None, way, points.all[at].nodeid));
                        points.ways.insert(way, index);
                        index
                    }
                };
            }
            points.of_mount.insert(mount, at);
        }
        points
    }

    fn add(&mut self, above: usize, name: &str, point: Point) -> usize {
        let at = self.all.len();
        self.all.push(point);
        self.all[above].children.insert(name.as_bytes().into(), at);
        at
    }

    /// The directory of this number.
    pub fn by_index(&self, at: usize) -> Option<&Point> {
        self.all.get(at)
    }

    /// The directory that the guest calls so; `None`: it is something inside a mount, or nothing at all.
    pub fn get(&self, nodeid: NodeId) -> Option<&Point> {
        if nodeid == NodeId::ROOT {
            return self.all.first();
        }
        match mount_of(nodeid.0) {
            NOWHERE => self.all.get(*self.ways.get(&inner(nodeid.0))?),
            mount if inner(nodeid.0) == NodeId::ROOT.0 => self.all.get(*self.of_mount.get(&mount)?),
            _ => None,
        }
    }

    /// The directory called `name` in that which the guest calls `parent`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<&Point> {
        let &at = self.get(parent)?.children.get(name)?;
        self.all.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_directories_each_once() {
        let points = Points::new([("/data/models", 2), ("/data/sets", 3), ("/a", 1), ("/a/b/c", 4)], &mut Ways::new());
        let root = points.get(NodeId::ROOT).expect("there is a root");
        assert_eq!((root.mount, root.above), (None, NodeId::ROOT));
        let names: Vec<&[u8]> = root.children().map(|(name, _)| name).collect();
        assert_eq!(names, [&b"a"[..], b"data"]);
        let data = points.child(NodeId::ROOT, b"data").expect("on the way");
        assert_eq!((data.mount, data.children().len(), mount_of(data.nodeid.0)), (None, 2, NOWHERE));
        let models = points.child(data.nodeid, b"models").expect("a mount");
        assert_eq!((models.mount, models.above), (Some(2), data.nodeid));
        let a = points.child(NodeId::ROOT, b"a").expect("a mount");
        assert_eq!(a.mount, Some(1));
        let b = points.child(a.nodeid, b"b").expect("on the way inside a mount");
        assert_eq!((b.mount, b.above), (None, a.nodeid));
        assert_eq!(points.child(b.nodeid, b"c").and_then(|c| c.mount), Some(4));
        for point in [data, models, a, b] {
            assert_eq!(points.get(point.nodeid).map(|found| found.nodeid), Some(point.nodeid));
        }
        assert!(points.get(NodeId(2)).is_none() && points.get(NodeId(numbers::outer(NOWHERE, 99))).is_none());
        assert!(points.get(NodeId(numbers::outer(NOWHERE, 0))).is_none(), "the root has one number");
    }

    #[test]
    fn what_stays_keeps_its_number() {
        let mut ways = Ways::new();
        let before = Points::new([("/a/one", 1), ("/z/two", 2)], &mut ways);
        let z = before.child(NodeId::ROOT, b"z").expect("a way").nodeid;
        let after = Points::new([("/z/two", 2), ("/b/c/three", 3)], &mut ways);
        assert_eq!(after.child(NodeId::ROOT, b"z").map(|point| point.nodeid), Some(z));
        assert!(after.child(NodeId::ROOT, b"a").is_none(), "it leads nowhere any more");
        let old = before.child(NodeId::ROOT, b"a").expect("a way").nodeid;
        assert!(after.get(old).is_none() && after.get(z).is_some());
        let again = Points::new([("/a/one", 4), ("/b/c/three", 3)], &mut ways);
        assert_eq!(again.child(NodeId::ROOT, b"a").map(|point| point.nodeid), Some(old));
    }

    #[test]
    fn root_can_be_a_store() {
        let points = Points::new([("/m", 1), ("/", 0)], &mut Ways::new());
        assert_eq!(points.get(NodeId::ROOT).and_then(|root| root.mount), Some(0));
        assert!(points.get(NodeId::ROOT).is_some_and(|root| root.hides(b"m") && !root.hides(b"n")));
    }
}
