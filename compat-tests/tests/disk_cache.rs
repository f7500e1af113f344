//! `--cache-dir`: what one daemon fetched, another need not, and nobody sees anything but the newest version for it.

use std::path::Path;

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::launch::{Exit, Launch, Scratch, Which, binary};
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::{Kind, TestStore};

const LEN: usize = 9 << 20;

fn mount(store: &TestStore, dir: &Path) -> Mounted {
    let dir = dir.to_str().expect("a path of letters");
    Mounted::new(store, &["--cache=never", "--cache-dir", dir])
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 3 * seed + at / 4099) as u8).collect()
}

#[test]
fn what_one_daemon_read_another_does_not_fetch() {
    let store = TestStore::start_metered(Kind::Moto);
    let meter = store.meter().expect("asked for");
    let scratch = Scratch::new();
    let dir = scratch.join("cache");
    let content = pattern(7, LEN);
    store.put("model", &content);
    let gets = |mount: &mut Mounted, expected: &[u8]| {
        let mark = meter.mark();
        assert!(mount.guest.read_file("model").expect("it can be read") == expected, "it is what was put");
        meter.since(mark).methods.iter().filter(|method| **method == "GET").count()
    };
    let mut one = mount(&store, &dir);
    // Of listings there are some, too.
    let first = gets(&mut one, &content);
    let mut other = mount(&store, &dir);
    let again = gets(&mut other, &content);
    assert!(first >= again + 3, "{first} GETs, then {again}");
    // Another version is fetched, by whoever asks first.
    let content = pattern(11, LEN);
    store.put("model", &content);
    assert!(gets(&mut other, &content) >= again + 3);
    assert!(gets(&mut one, &content) <= again);
    // It may go at any time.
    std::fs::remove_dir_all(&dir).expect("it can be removed");
    let mut third = mount(&store, &dir);
    assert!(gets(&mut third, &content) >= again + 3);
}

#[test]
fn a_directory_that_cannot_be_used_is_refused_at_the_start() {
    let scratch = Scratch::new();
    let file = scratch.join("file");
    std::fs::write(&file, b"").expect("a file");
    let launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(scratch.join("run/s"));
    let mut daemon = launch.args(["--backend", "memory:///"]).arg("--cache-dir").arg(&file).start();
    let code = daemon.wait_exit(patience()).expect("it ends");
    assert_eq!(code, Exit::Code(1));
    let said = daemon.stderr();
    assert!(said.contains("--cache-dir") && said.contains("file"), "{said}");
}
