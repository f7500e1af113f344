//! Changes of how a store is reached, while requests are under way.

use std::sync::Mutex;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};

use super::super::mounts::{Changed, Mounts};
use super::super::reload::{Configuration, Wanted, follow};
use super::*;

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn mounts(urls: &[&str]) -> Mounts {
    let pool = Arc::new(Pool::new(1 << 20).unwrap());
    let store = |(id, url): (u16, &&str)| Mounted {
        id,
        path: format!("/{id}"),
        backend: Backend::parse(url).unwrap(),
        options: Bed::options(Duration::from_secs(30)),
    };
    Mounts::new((0..).zip(urls).map(store).collect(), &pool).unwrap()
}

fn url(dir: &tempfile::TempDir) -> String {
    format!("fs://{}", dir.path().display())
}

#[test]
fn listing_goes_on_across_a_change() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..LIST_PAGE_MAX + 5 {
        std::fs::write(dir.path().join(n.to_string()), "").unwrap();
    }
    let mounts = mounts(&[&url(&dir)]);
    let slot = mounts.get(0).unwrap();
    runtime().block_on(async {
        let first = slot.mount().serve(Op::List { path: String::new(), cursor: 0, after: None }).await.unwrap();
        let Reply::Entries { entries, cursor: Some(cursor), .. } = first else { panic!("{first:?}") };
        assert_eq!(entries.len(), LIST_PAGE_MAX);
        assert_eq!(slot.change(None, Duration::from_secs(7)).await, Changed::Applied);
        let second = slot.mount().serve(Op::List { path: String::new(), cursor, after: None }).await.unwrap();
        let Reply::Entries { entries, .. } = second else { panic!("{second:?}") };
        assert_eq!(entries.len(), 5);
        assert_eq!(slot.change(None, Duration::from_secs(7)).await, Changed::Nothing);
    });
}

#[test]
fn change_that_the_store_does_not_bear_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let s3 = |key: &str| format!("s3://b?region=r&endpoint=http://127.0.0.1:9&access_key_id={key}&secret_access_key=s");
    let mounts = mounts(&[&url(&dir), "memory://", &s3("a")]);
    let timeout = Duration::from_secs(30);
    runtime().block_on(async {
        let change = async |id: u16, url: &str| {
            let backend = Backend::parse(url).unwrap();
            mounts.get(id).unwrap().change(Some(&backend), timeout).await
        };
        assert_eq!(change(0, &url(&other)).await, Changed::OtherStore);
        assert_eq!(change(1, "memory://").await, Changed::Nothing);
        assert_eq!(change(1, "memory:///x").await, Changed::OtherStore);
        assert_eq!(change(2, &s3("a")).await, Changed::Nothing);
        assert!(matches!(change(2, &s3("b")).await, Changed::Refused(why) if !why.is_empty()));
        assert_eq!(change(2, "s3://c?region=r&endpoint=http://127.0.0.1:9").await, Changed::OtherStore);
    });
}

/// A file that a test writes.
struct Script {
    looks: u64,
    /// Seconds of the timeout.
    says: Result<u64, String>,
    reads: usize,
}

impl Script {
    fn new(looks: u64, says: Result<u64, String>) -> Script {
        Script { looks, says, reads: 0 }
    }
}

struct Scripted(Arc<Mutex<Script>>);

impl Configuration for Scripted {
    fn look(&mut self) -> u64 {
        self.0.lock().unwrap().looks
    }

    fn read(&mut self) -> Result<Vec<Wanted>, String> {
        let mut script = self.0.lock().unwrap();
        script.reads += 1;
        let request_timeout = Duration::from_secs(script.says.clone()?);
        Ok(vec![wanted("/0", None, request_timeout)])
    }
}

fn wanted(path: &str, url: Option<&str>, request_timeout: Duration) -> Wanted {
    Wanted {
        path: path.into(),
        backend: url.map(|url| Backend::parse(url).unwrap()),
        options: Bed::options(request_timeout),
        expiration: Duration::from_secs(1),
        settings: b"for the device".to_vec(),
    }
}

/// Says the same until told otherwise.
struct Said(Arc<Mutex<(u64, Entries)>>);

/// Paths and URLs.
type Entries = Vec<(&'static str, String)>;

impl Configuration for Said {
    fn look(&mut self) -> u64 {
        self.0.lock().unwrap().0
    }

    fn read(&mut self) -> Result<Vec<Wanted>, String> {
        let said = self.0.lock().unwrap();
        Ok(said.1.iter().map(|(path, url)| wanted(path, Some(url), Duration::from_secs(5))).collect())
    }
}

#[test]
fn mounts_come_if_their_stores_answer_and_go_when_the_device_has_let_go() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mounts = Arc::new(mounts(&[&url(&dirs[0])]));
    let dead = "s3://b?region=r&endpoint=http://127.0.0.1:9&access_key_id=k&secret_access_key=s".to_owned();
    let first = ("/0", url(&dirs[0]));
    let said = Arc::new(Mutex::new((1, vec![first.clone(), ("/new", url(&dirs[1])), ("/dead", dead)])));
    let (_ask, asked) = watch::channel(());
    let (to_device, mut frames) = mpsc::channel(64);
    let runtime = runtime();
    let news = Arc::default();
    let configuration = Box::new(Said(Arc::clone(&said)));
    runtime.spawn(follow(configuration, Arc::clone(&mounts), asked, to_device, Arc::clone(&news)));
    runtime.block_on(news.settled());
    let mut changes = || {
        let mut changes = Vec::new();
        while let Ok(frame) = frames.try_recv() {
            if let ToDevice::Change(change) = frame::decode(&frame[frame::HEADER..]).unwrap()
                && !matches!(change, Change::Expiration { .. })
            {
                changes.push(change);
            }
        }
        changes
    };
    let settings = b"for the device".to_vec();
    assert_eq!(changes(), [Change::Mount { mount: 1, area: 0, settings: settings.clone() }]);
    let new = mounts.get(1).expect("it is served");
    runtime.block_on(new.mount().serve(Op::Probe)).expect("it answers");
    *said.lock().unwrap() = (2, vec![first.clone()]);
    runtime.block_on(news.settled());
    assert_eq!(changes(), [Change::Unmount { mount: 1 }]);
    assert!(mounts.get(1).is_some(), "what is dirty is still to be stored");
    *said.lock().unwrap() = (3, vec![first, ("/new", url(&dirs[1]))]);
    runtime.block_on(news.settled());
    assert_eq!(changes(), [Change::Mount { mount: 2, area: 1, settings }], "no number is used twice");
    mounts.left(0);
    mounts.left(1);
    assert!(mounts.get(0).is_some(), "nobody has asked it to go");
    assert!(mounts.get(1).is_none() && mounts.get(2).is_some());
}

#[test]
fn file_is_read_when_it_looks_other_and_has_settled_and_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mounts = Arc::new(mounts(&[&url(&dir)]));
    let script = Arc::new(Mutex::new(Script::new(1, Ok(30))));
    let runtime = runtime();
    let (ask, asked) = watch::channel(());
    let (to_device, mut frames) = mpsc::channel(64);
    let configuration = Box::new(Scripted(Arc::clone(&script)));
    runtime.spawn(follow(configuration, Arc::clone(&mounts), asked, to_device, Arc::default()));
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait("read at the start", &|| script.lock().unwrap().reads == 1);
    *script.lock().unwrap() = Script::new(2, Ok(9));
    wait("changed", &|| mounts.request_timeout() == Duration::from_secs(9));
    assert_eq!(script.lock().unwrap().reads, 1, "once");
    *script.lock().unwrap() = Script::new(3, Err("as told".into()));
    wait("read", &|| script.lock().unwrap().reads == 1);
    assert_eq!(mounts.request_timeout(), Duration::from_secs(9));
    script.lock().unwrap().says = Ok(11);
    ask.send(()).unwrap();
    wait("asked", &|| mounts.request_timeout() == Duration::from_secs(11));
    let mut told = Vec::new();
    while let Ok(frame) = frames.try_recv() {
        match frame::decode(&frame[frame::HEADER..]).unwrap() {
            ToDevice::RequestTimeout { ms } => told.push(ms / 1000),
            ToDevice::Change(Change::Expiration { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(told, [30, 30, 30, 9, 11, 11], "never less than what is in force");
}
