//! One file in the spool directory: a line of JSON that says what it is, then the bytes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::{Attributes, Pool, Segment, Slice, Version};

/// What this program writes and understands.
pub const FORMAT: u32 = 1;

/// Longest description, in bytes.
const DESCRIPTION_MAX: u64 = 16 << 20;

/// Bytes that are moved at once.
const PIECE: usize = 1 << 20;

/// What a kept file is to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// [`FORMAT`]
    pub format: u32,
    /// The store, as [`super::super::Backend`] shows itself.
    pub store: String,
    /// Where it was in the share.
    pub mount: String,
    /// Path in the store.
    pub path: String,
    /// Length of the whole, in bytes.
    pub size: u64,
    /// The version in the store that it lies over; `None`: nothing was there.
    pub base: Option<Version>,
    /// What is set of its attributes.
    pub attributes: Option<Box<Attributes>>,
    /// What it is made of, in order.
    pub ranges: Vec<Range>,
    /// Bytes behind this description.
    pub data: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
}

/// A piece of a kept file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Range {
    /// The next bytes behind the description.
    Data {
        /// How many.
        len: u32,
    },
    /// Zeros.
    Zero {
        /// How many.
        len: u64,
    },
    /// Bytes of the version that it lies over.
    Base {
        /// The first.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Range {
    /// Length in bytes.
    pub fn len(self) -> u64 {
        match self {
            Range::Data { len } => len.into(),
            Range::Zero { len } | Range::Base { len, .. } => len,
        }
    }
}

impl Description {
    /// Whether all of it is behind the description: nothing of the base is needed.
    pub fn is_whole(&self) -> bool {
        !self.ranges.iter().any(|range| matches!(range, Range::Base { .. }))
    }

    /// What to compose it of, with its bytes at the start of a pool.
    pub fn segments(&self) -> Vec<Segment> {
        let mut at = 0;
        let segment = |range: &Range| match *range {
            Range::Data { len } => {
                let slice = Slice { offset: at, len };
                at += u64::from(len);
                Segment::Data(slice)
            }
            Range::Zero { len } => Segment::Zero { len },
            Range::Base { offset, len } => Segment::Copy { base: 0, offset, len },
        };
        self.ranges.iter().map(segment).collect()
    }

    fn is_sound(&self) -> bool {
        let add = |sum: u64, range: &Range| (range.len() > 0).then(|| sum.checked_add(range.len())).flatten();
        let data = |range: &&Range| matches!(range, Range::Data { .. });
        self.format == FORMAT
            && self.ranges.iter().try_fold(0, add) == Some(self.size)
            && self.ranges.iter().filter(data).try_fold(0, add) == Some(self.data)
            && (self.is_whole() || self.base.is_some())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The ranges of `segments`, and the length and checksum of their bytes in `pool`.
///
/// # Errors
/// A slice that lies outside.
pub fn summary(segments: &[Segment], pool: &Pool) -> io::Result<(Vec<Range>, u64, String)> {
    let (mut sum, mut data) = (Sha256::new(), 0);
    let mut ranges = Vec::new();
    for segment in segments {
        ranges.push(match *segment {
            Segment::Data(slice) => {
                each_piece(pool, slice, |bytes| {
                    sum.update(bytes);
                    Ok(())
                })?;
                data += u64::from(slice.len);
                Range::Data { len: slice.len }
            }
            Segment::Zero { len } => Range::Zero { len },
            Segment::Copy { offset, len, .. } => Range::Base { offset, len },
        });
    }
    Ok((ranges, data, hex(&sum.finalize())))
}

fn each_piece(pool: &Pool, slice: Slice, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE.min(slice.len as usize)];
    let (mut at, end) = (slice.offset, slice.offset + u64::from(slice.len));
    while at < end {
        let n = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
        if !pool.read(at, &mut buffer[..n]) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        take(&buffer[..n])?;
        at += n as u64;
    }
    Ok(())
}

/// Writes a file that only its owner can read, and has the disk have it.
///
/// # Errors
/// The file system's.
pub fn write(file: &Path, description: &Description, segments: &[Segment], pool: &Pool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let mut head = serde_json::to_vec(description)?;
    head.push(b'\n');
    file.write_all(&head)?;
    for segment in segments {
        if let Segment::Data(slice) = segment {
            each_piece(pool, *slice, |bytes| file.write_all(bytes))?;
        }
    }
    file.sync_all()
}

/// Why a kept file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Somebody else works with it.
    #[error("another daemon works with it")]
    Taken,
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The file system's word.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A kept file, open, and nobody else's as long as it is.
#[derive(Debug)]
pub struct Entry {
    /// What it says.
    pub description: Description,
    reader: BufReader<File>,
}

impl Entry {
    /// Opens a kept file and reads its description.
    ///
    /// # Errors
    /// [`Unusable`]
    pub fn open(file: &Path) -> Result<Entry, Unusable> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(file)?;
        file.try_lock().map_err(|_| Unusable::Taken)?;
        let len = file.metadata()?.len();
        let mut reader = BufReader::new(file);
        let mut head = Vec::new();
        reader.by_ref().take(DESCRIPTION_MAX).read_until(b'\n', &mut head)?;
        let description: Description =
            serde_json::from_slice(&head).map_err(|_| Unusable::Damaged("nobody can read its description"))?;
        if !description.is_sound() {
            return Err(Unusable::Damaged("its description contradicts itself"));
        }
        if len.checked_sub(head.len() as u64) != Some(description.data) {
            return Err(Unusable::Damaged("it has another length than it says"));
        }
        Ok(Entry { description, reader })
    }

    /// Puts its bytes at the start of `pool`. Once.
    ///
    /// # Errors
    /// [`Unusable`]
    pub fn load(&mut self, pool: &Pool) -> Result<(), Unusable> {
        let mut buffer = vec![0; PIECE];
        let (mut at, mut sum) = (0, Sha256::new());
        loop {
            let n = self.reader.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            sum.update(&buffer[..n]);
            if !pool.write(at, &buffer[..n]) {
                return Err(Unusable::Damaged("it is longer than it says"));
            }
            at += n as u64;
        }
        match hex(&sum.finalize()) == self.description.sha256 && at == self.description.data {
            true => Ok(()),
            false => Err(Unusable::Damaged("its checksum is another")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(pool: &Pool, segments: &[Segment]) -> Description {
        let (ranges, data, sha256) = summary(segments, pool).unwrap();
        Description {
            format: FORMAT,
            store: "s".into(),
            mount: "/".into(),
            path: "p".into(),
            size: ranges.iter().map(|range| range.len()).sum(),
            base: Some(Version { etag: Some("\"e\"".into()), size: 9, mtime_ns: None }),
            attributes: Some(Box::new(Attributes { mode: Some(0o100_644), ..Attributes::default() })),
            ranges,
            data,
            sha256,
        }
    }

    #[test]
    fn what_is_written_comes_back_and_what_is_damaged_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let pool = Pool::new(8 << 20).unwrap();
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n * 7) as u8).collect();
        assert!(pool.write(4096, &bytes));
        let segments = [
            Segment::Copy { base: 0, offset: 2, len: 7 },
            Segment::Data(Slice { offset: 4096, len: 2_000_000 }),
            Segment::Zero { len: 5 },
            Segment::Data(Slice { offset: 4096 + 2_000_000, len: 1_000_000 }),
        ];
        let description = described(&pool, &segments);
        assert!(!description.is_whole());
        write(&file, &description, &segments, &pool).unwrap();
        assert!(write(&file, &description, &segments, &pool).is_err(), "nothing is overwritten");
        let other = Pool::new(4 << 20).unwrap();
        let mut entry = Entry::open(&file).unwrap();
        assert!(matches!(Entry::open(&file), Err(Unusable::Taken)));
        assert_eq!(entry.description, description);
        entry.load(&other).unwrap();
        let mut got = vec![0; bytes.len()];
        assert!(other.read(0, &mut got) && got == bytes);
        assert_eq!(entry.description.segments()[3], Segment::Data(Slice { offset: 2_000_000, len: 1_000_000 }));
        drop(entry);

        let good = std::fs::read(&file).unwrap();
        let check = |bad: &[u8]| {
            std::fs::write(&file, bad).unwrap();
            Entry::open(&file).and_then(|mut entry| entry.load(&other))
        };
        assert!(matches!(check(&good[..good.len() - 1]), Err(Unusable::Damaged(_))));
        assert!(matches!(check(b"{}\n"), Err(Unusable::Damaged(_))));
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(matches!(check(&bad), Err(Unusable::Damaged("its checksum is another"))));
        assert!(check(&good).is_ok());
    }

    #[test]
    fn descriptions_that_contradict_themselves_are_not_sound() {
        let pool = Pool::new(4096).unwrap();
        let good = described(&pool, &[Segment::Zero { len: 3 }, Segment::Copy { base: 0, offset: 0, len: 9 }]);
        assert!(good.is_sound());
        for bad in [
            Description { size: 11, ..good.clone() },
            Description { base: None, ..good.clone() },
            Description { data: 1, ..good.clone() },
            Description { format: 2, ..good.clone() },
            Description { ranges: vec![Range::Zero { len: 0 }, Range::Zero { len: 12 }], ..good.clone() },
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }
}
