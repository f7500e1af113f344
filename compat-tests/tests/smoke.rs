use ovfs_compat_tests::daemon::*;
use ovfs_compat_tests::guest::*;
#[test]
fn smoke() {
    let d = tempfile::tempdir().unwrap();
    let dm = Daemon::spawn(&virtiofsd_bin(), &["--shared-dir", d.path().to_str().unwrap(), "--tag", "x"]).unwrap();
    let mut g = Guest::mount(&dm.socket());
    println!("{:x}", g.negotiated());
    g.write_file("a", &vec![7; 3_000_000]).unwrap();
    assert_eq!(g.read_file("a").unwrap(), vec![7; 3_000_000]);
    println!("{:?} {:?}", g.tree("").unwrap(), g.frontend.queue(1).notifications());
    println!("{}", dm.log());
}
