//! Keys that are taken out of use while one large file is being written.

use std::fs;
use std::io::Read;

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::launch::{Exit, Scratch};
use ovfs_compat_tests::switch::Switch;
use sha2::{Digest, Sha256};
use std::time::Instant;

use super::reload::{IN_FORCE, ROTATIONS, Server, Settings, count};
use super::{guest, launch};

/// Bytes of the file, in MiB: this environment variable, or these.
const MEBIBYTES: (&str, u64) = ("OVFS_ROTATION_MIB", 128);

/// Bytes of one write.
const PIECE: u64 = 256 << 10;

fn piece(n: u64) -> Vec<u8> {
    let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..PIECE / 8).flat_map(|_| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.to_le_bytes()
    });
    words.collect()
}

/// Each server takes one secret and no other, and all serve one bucket; the daemon reaches whichever is in charge. In the moment
/// in which another secret is written down, the one before is refused: nothing is left to chance as to who notices first. The
/// access key is the same, because these servers let nobody go on with an upload but the key that began it.
#[test]
fn keys_rotate_during_one_large_write() {
    let scratch = Scratch::new();
    let objects = scratch.join("objects");
    fs::create_dir_all(objects.join("bucket")).expect("make the bucket");
    let servers: Vec<Server> =
        (0..3).map(|n| Server::with_keys(&objects, "access".into(), format!("secret-{n}-{n}"))).collect();
    let switch = Switch::to(servers[0].port);
    let etc = scratch.join("etc");
    fs::create_dir(&etc).expect("make a directory");
    let mut settings = Settings { dir: &etc, generation: 0 };
    let mebibytes = std::env::var(MEBIBYTES.0).ok().and_then(|text| text.parse().ok()).unwrap_or(MEBIBYTES.1);
    // Most of the file does not fit, so that it is uploaded while it is being written.
    let options = format!("[options]\ncache_size = \"{}M\"\n", (mebibytes / 4).max(32));
    settings.put(0, &format!("{options}{}", servers[0].section_through(switch.port())));
    let socket = scratch.join("run/s");
    let mut daemon = launch(&settings.file(), &socket).start();
    let mut guest = guest(&mut daemon, &socket);

    let pieces = (mebibytes << 20) / PIECE;
    let (entry, opened) = guest.create(ROOT, b"large", libc::O_WRONLY, 0o644).expect("create");
    let mut sum = Sha256::new();
    let mut written = 0;
    for rotation in 1..=ROTATIONS {
        let server = &servers[rotation % servers.len()];
        switch.turn(server.port);
        settings.put(rotation, &format!("{options}{}", server.section_through(switch.port())));
        let until = pieces * rotation as u64 / ROTATIONS as u64;
        let end = Instant::now() + patience();
        while written < until {
            let bytes = piece(written);
            sum.update(&bytes);
            guest.write_all(entry.nodeid, opened.fh, written * PIECE, &bytes).expect("write");
            written += 1;
        }
        // What else is done meanwhile; the last of it once the new keys are in force.
        loop {
            let in_force = count(&daemon, IN_FORCE) >= rotation;
            let name = format!("small-{rotation}");
            guest.write_file(&name, name.as_bytes()).expect("write");
            assert_eq!(guest.read_file(&name).expect("read"), name.as_bytes());
            assert!(guest.list("").expect("list").contains(&name));
            if in_force {
                break;
            }
            assert!(Instant::now() < end, "rotation {rotation}: {}", daemon.stderr());
        }
    }
    guest.fsync(entry.nodeid, opened.fh, false).expect("fsync");
    guest.flush(entry.nodeid, opened.fh).expect("flush");
    guest.release(entry.nodeid, opened.fh).expect("release");
    let mut stored = Sha256::new();
    let mut file = fs::File::open(objects.join("bucket/large")).expect("it is stored");
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).expect("read");
        if n == 0 {
            break;
        }
        size += n as u64;
        stored.update(&buffer[..n]);
    }
    assert_eq!(size, pieces * PIECE);
    assert_eq!(stored.finalize(), sum.finalize(), "the object is what was written");
    drop(guest);
    let finished = daemon.finish();
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
    let stderr = &finished.stderr;
    println!("{}", stderr.lines().filter(|line| line.contains("could not")).collect::<Vec<_>>().join("\n"));
    assert!(!stderr.contains("could not be written") && !stderr.contains("secret-"), "{stderr}");
}
