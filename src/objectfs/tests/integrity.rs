//! A file far larger than the memory, read and written at random by two while calls of the store fail all the time.
//!
//! `OVFS_INTEGRITY_MIB=256 cargo test --release --lib a_file_beyond_the_memory` for the full size.

use std::sync::atomic::Ordering;

use super::*;
use crate::objectfs::testing::Faults;

const MEMORY: usize = 8 << 20;

/// The file is cut into regions of this length; each of the two uses every other one, so that it knows what is there.
const REGION: usize = 1 << 20;

/// Of so many calls of the store one fails.
const ONE_IN: u64 = 5;

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

/// Tries until the store plays along. What the guest is told meanwhile must be the store's trouble and nothing else.
fn insist<T>(mut work: impl FnMut() -> Result<T>) -> T {
    for _ in 0..1000 {
        match work() {
            Ok(done) => return done,
            Err(error) => assert!(matches!(error, Errno::EIO | Errno::ETIMEDOUT), "{error:?}"),
        }
    }
    panic!("the store fails one call in {ONE_IN}, not all");
}

/// One of the two, and what its regions hold.
struct User<'a> {
    fs: &'a Fs,
    file: (NodeId, Handle),
    /// Numbers of its regions, and their bytes.
    regions: Vec<(usize, Vec<u8>)>,
    random: u64,
}

impl User<'_> {
    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            let at = next(&mut self.random) as usize % self.regions.len();
            let start = next(&mut self.random) as usize % REGION;
            let len = 1 + next(&mut self.random) as usize % (128 << 10).min(REGION - start);
            match next(&mut self.random) % 32 {
                0 => insist(|| block_on(self.fs.fs.fsync(CTX, self.file.0, self.file.1, true))),
                1 => self.read(at, 0, REGION, 64 << 10),
                2..14 => self.write(at, start, len),
                _ => self.read(at, start, len, len),
            }
            let used =
                self.fs.fs.core.meter().used_bytes.iter().map(|class| class.load(Ordering::Relaxed)).sum::<u64>();
            assert!(used <= MEMORY as u64, "{used} bytes in use");
        }
    }

    fn write(&mut self, at: usize, start: usize, len: usize) {
        let byte = next(&mut self.random) as u8;
        let (region, bytes) = &mut self.regions[at];
        bytes[start..start + len].iter_mut().enumerate().for_each(|(n, to)| *to = byte.wrapping_add((n % 251) as u8));
        let offset = (*region * REGION + start) as u64;
        let data = &bytes[start..start + len];
        assert_eq!(insist(|| self.fs.write_at(self.file, offset, data)), len);
    }

    /// Reads `len` bytes in pieces.
    fn read(&self, at: usize, start: usize, len: usize, piece: usize) {
        let (region, bytes) = &self.regions[at];
        for from in (start..start + len).step_by(piece) {
            let size = piece.min(start + len - from);
            let read = insist(|| self.fs.read_at(self.file, (region * REGION + from) as u64, size as u32));
            assert!(read == bytes[from..from + size], "region {region} from {from}, {size} bytes");
        }
    }
}

#[test]
fn a_file_beyond_the_memory_keeps_every_byte_though_any_call_may_fail() {
    let mib = std::env::var("OVFS_INTEGRITY_MIB").map_or(64, |mib| mib.parse().expect("a number"));
    let fs = Fs::with_pool(MEMORY);
    let bytes: Vec<u8> = (0..mib * REGION).map(|n| (n / 8).to_le_bytes()[n % 8]).collect();
    fs.bucket().put("file", &bytes);
    fs.bucket().faults = Some(Faults::new(ONE_IN));
    let file = insist(|| fs.open("file", RDWR));
    let mut users: Vec<User<'_>> = (0..2)
        .map(|who| {
            let own = bytes.chunks(REGION).map(<[u8]>::to_vec).enumerate().filter(|(region, _)| region % 2 == who);
            User { fs: &fs, file: insist(|| fs.open("file", RDWR)), regions: own.collect(), random: who as u64 }
        })
        .collect();
    std::thread::scope(|scope| {
        users.iter_mut().for_each(|user| drop(scope.spawn(|| user.run(mib * 8))));
    });
    for user in &users {
        (0..user.regions.len()).for_each(|at| user.read(at, 0, REGION, REGION));
        insist(|| fs.flush(user.file));
        fs.close(user.file).ok();
    }
    insist(|| fs.flush(file));
    fs.close(file).ok();
    let object = fs.object("file").expect("there");
    for (region, bytes) in users.iter().flat_map(|user| &user.regions) {
        assert!(object[region * REGION..][..REGION] == bytes[..], "region {region} in the store");
    }
    let failed = fs.bucket().faults.take().expect("still there").failed;
    assert!(["tell", "read", "compose"].iter().all(|op| failed.contains_key(op)), "{failed:?}");
    // Requests for what was to be read ahead may still be under way.
    while !fs.fs.retire() {
        std::thread::yield_now();
    }
}
