//! How many requests questions take.

use super::s3::{moto, put_raw, url};
use super::*;
use crate::metrics::{Kind as Request, StoreMeter};

/// A share whose requests are counted.
struct Counted {
    bed: Bed,
    meter: Arc<StoreMeter>,
}

impl Counted {
    fn new(url: &str) -> Counted {
        let meter = Arc::<StoreMeter>::default();
        let options = BrokerOptions { meter: Arc::clone(&meter), ..Bed::options(Duration::from_secs(60)) };
        Counted { bed: Bed::with_options(url, options, |_| 0), meter }
    }

    /// Requests so far, by kind.
    fn now(&self) -> Vec<u64> {
        self.meter.counts().kinds.iter().map(|kind| kind.took.count()).collect()
    }

    /// What `ask` gives, and the requests that it takes.
    fn ask<T>(&self, ask: impl FnOnce(&Bed) -> T) -> (T, Vec<(Request, u64)>) {
        let before = self.now();
        let answer = ask(&self.bed);
        let after = self.now();
        let counts = Request::ALL.iter().zip(before.iter().zip(&after));
        (
            answer,
            counts.map(|(kind, (before, after))| (*kind, after - before)).filter(|(_, count)| *count > 0).collect(),
        )
    }
}

fn put_many(bed: &Bed, dir: &str, count: usize) {
    let puts = (0..count).map(|n| {
        let segments = vec![bed.data(b"x")];
        bed.remote.compose(format!("{dir}/{n:05}"), Vec::new(), Condition::Any, segments, None, ())
    });
    block_on(futures::future::join_all(puts)).into_iter().for_each(|done| drop(done.unwrap()));
}

#[test]
fn a_page_is_a_request_and_the_end_of_a_full_one_is_seen_without_another() {
    let server = moto();
    let counted = Counted::new(&url(&server, ""));
    put_many(&counted.bed, "d", LIST_PAGE_MAX);
    let (page, requests) = counted.ask(|bed| block_on(bed.remote.page("d", 0, None)).unwrap());
    assert_eq!((page.entries.len(), page.cursor, page.after), (LIST_PAGE_MAX, None, None));
    assert_eq!(requests, [(Request::List, 1)]);
    put_raw(&server, "/d/99999", b"1");
    let (page, requests) = counted.ask(|bed| block_on(bed.remote.page("d", 0, None)).unwrap());
    assert_eq!((page.entries.len(), page.after.as_deref()), (LIST_PAGE_MAX, Some("00999")));
    assert_eq!(requests, [(Request::List, 1)]);
    let (rest, requests) = counted.ask(|bed| block_on(bed.remote.page("d", page.cursor.unwrap(), None)).unwrap());
    assert_eq!((rest.entries.len(), rest.cursor), (1, None));
    assert_eq!(requests, [(Request::List, 1)]);
    // A request that is kept back is not tried again.
    assert!(counted.meter.counts().kinds.iter().all(|kind| (kind.errors, kind.retries) == (0, 0)));
}

#[test]
fn a_listing_goes_on_after_any_name() {
    let server = moto();
    for key in ["a", "b/1", "b/2", "b-", "b0", "c"] {
        put_raw(&server, &format!("/d/{key}"), b"1");
    }
    let counted = Counted::new(&url(&server, ""));
    let after = |after: &str| {
        let page = block_on(counted.bed.remote.page("d", 0, Some(after.to_owned()))).unwrap();
        let mut names: Vec<String> = page.entries.into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    };
    assert_eq!(after("a"), ["b", "b-", "b0", "c"]);
    assert_eq!(after("b-"), ["b", "b0", "c"]);
    assert_eq!(after("b/"), ["b0", "c"]);
    assert_eq!(after("c"), [""; 0]);
    for wrong in ["", "/", "..", "x/y", "x//"] {
        let refused = block_on(counted.bed.remote.page("d", 0, Some(wrong.to_owned()))).unwrap_err();
        assert_eq!(refused.kind, StoreErrorKind::Protocol, "{wrong:?}");
    }
}

#[test]
fn a_name_is_one_request() {
    let server = moto();
    for key in ["file", "both", "both/below", "dir/x", "marked/", "marked/x", "many", "many/below", "names"] {
        put_raw(&server, &format!("/{key}"), b"12345");
    }
    for n in 0..30 {
        put_raw(&server, &format!("/many-{n}"), b"1");
        put_raw(&server, &format!("/names.{n}"), b"1");
    }
    let counted = Counted::new(&url(&server, ""));
    let stat = |path: &str| {
        let (meta, requests) = counted.ask(|bed| bed.stat(path));
        let found = meta.map(|meta| (meta.kind, meta.size, meta.marker)).map_err(|e| e.kind);
        (found, requests)
    };
    let one = || vec![(Request::List, 1)];
    assert_eq!(stat("file"), (Ok((Kind::File, 5, None)), one()));
    assert_eq!(stat("fil"), (Err(StoreErrorKind::NotFound), one()));
    assert_eq!(stat("both"), (Ok((Kind::Dir, 0, Some(false))), one()));
    assert_eq!(stat("dir"), (Ok((Kind::Dir, 0, Some(false))), one()));
    assert_eq!(stat("marked"), (Ok((Kind::Dir, 0, Some(true))), one()));
    // So many others stand between that the directory is asked for by itself.
    assert_eq!(stat("many"), (Ok((Kind::Dir, 0, Some(false))), vec![(Request::List, 2)]));
    assert_eq!(stat("names"), (Ok((Kind::File, 5, None)), vec![(Request::List, 2)]));
    // What it tells is what a question for the object tells.
    let (told, requests) = counted.ask(|bed| block_on(bed.remote.tell("file", Kind::File)).unwrap());
    assert_eq!(requests, [(Request::Head, 1)]);
    let stated = counted.bed.stat("file").unwrap();
    assert_eq!((stated.details.is_none(), told.details.is_some()), (true, true));
    assert_eq!(Meta { details: None, ..told }, stated);
}

#[test]
fn a_small_directory_comes_along_with_what_it_is() {
    let server = moto();
    for key in ["d/", "d/both", "d/both/below", "d/f", "d/marked/", "d/sub/a/b", "d/sub/c", "d-1", "d.2", "f", "d/%20x"]
    {
        put_raw(&server, &format!("/{key}"), b"12345");
    }
    let counted = Counted::new(&url(&server, ""));
    let look = |path: &str| {
        let (looked, requests) = counted.ask(|bed| block_on(bed.remote.look(path)));
        let (meta, below) = looked.unwrap();
        (meta, below, requests)
    };
    let (dir, below, requests) = look("d");
    assert_eq!((dir.kind, dir.marker, requests), (Kind::Dir, Some(true), vec![(Request::List, 1)]));
    let mut below = below.unwrap();
    below.sort_by(|a, b| a.name.cmp(&b.name));
    let told: Vec<_> = below.iter().map(|e| (e.name.as_str(), e.meta.kind, e.meta.marker)).collect();
    let (file, sub) = (Kind::File, Kind::Dir);
    let want = [
        (" x", file, None),
        ("both", sub, Some(false)),
        ("f", file, None),
        ("marked", sub, Some(true)),
        ("sub", sub, Some(false)),
    ];
    assert_eq!(told, want);
    // As a listing tells it.
    let (listed, _) = block_on(counted.bed.remote.list("d", 0)).unwrap();
    let listed = listed.into_iter().find(|entry| entry.name == "f").unwrap();
    assert_eq!(below[2], listed);
    let (meta, below, requests) = look("f");
    assert_eq!((meta.kind, below, requests), (Kind::File, None, vec![(Request::List, 1)]));
    let (missing, requests) = counted.ask(|bed| block_on(bed.remote.look("nothing")).unwrap_err().kind);
    assert_eq!((missing, requests), (StoreErrorKind::NotFound, vec![(Request::List, 1)]));
}

#[test]
fn what_was_of_no_use_is_not_asked_for_again_soon() {
    let server = moto();
    let counted = Counted::new(&url(&server, ""));
    put_many(&counted.bed, "many", LIST_PAGE_MAX + 1);
    put_raw(&server, "/few/f", b"1");
    let look = |path: &str| {
        let (looked, requests) = counted.ask(|bed| block_on(bed.remote.look(path)).unwrap());
        assert_eq!((looked.0.kind, requests), (Kind::Dir, vec![(Request::List, 1)]), "{path}");
        looked.1.map(|below| below.len())
    };
    assert_eq!(look("few"), Some(1));
    assert_eq!(look("many"), None);
    assert_eq!(look("few"), None);
}
