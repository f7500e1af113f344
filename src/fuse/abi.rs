//! The wire structures of the FUSE protocol, version 7.38 (`include/uapi/linux/fuse.h`).
//!
//! Each structure is read and written field by field, so no byte pattern and no alignment matters and nothing here
//! is `unsafe`. The size that the kernel's header gives a structure stands beside it and is checked at compile time.
//! Integers are in the machine's own order: guest and daemon run on one machine.

/// Major version of the protocol that the server speaks.
pub const KERNEL_VERSION: u32 = 7;
/// Minor version of the protocol that the server speaks.
pub const KERNEL_MINOR_VERSION: u32 = 38;
/// The oldest minor version that a guest may ask for.
pub const MIN_KERNEL_MINOR_VERSION: u32 = 27;

/// A value with a fixed place on the wire.
pub trait Field: Sized + Copy {
    /// Bytes on the wire.
    const SIZE: usize;

    /// Takes the value off the front of `bytes`; `None` when they are too few.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// Stores the value at the front of `room` and shortens it. Does nothing when there is too little.
    fn put(self, room: &mut &mut [u8]);
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Field for $type {
            const SIZE: usize = size_of::<$type>();

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (head, tail) = bytes.split_first_chunk()?;
                *bytes = tail;
                Some(<$type>::from_ne_bytes(*head))
            }

            fn put(self, room: &mut &mut [u8]) {
                if let Some((head, tail)) = std::mem::take(room).split_first_chunk_mut() {
                    *head = self.to_ne_bytes();
                    *room = tail;
                }
            }
        }
    )*};
}

integers!(u16, u32, u64, i32, i64);

impl<const N: usize> Field for [u32; N] {
    const SIZE: usize = 4 * N;

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let mut values = [0; N];
        for value in &mut values {
            *value = u32::take(bytes)?;
        }
        Some(values)
    }

    fn put(self, room: &mut &mut [u8]) {
        for value in self {
            value.put(room);
        }
    }
}

macro_rules! wire {
    ($($(#[$meta:meta])* $name:ident[$size:literal] { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[doc = concat!("Wire field `", stringify!($field), "`.")]
                pub $field: $type,
            )*
        }

        impl $name {
            /// The structure as it goes over the wire.
            pub fn to_bytes(self) -> [u8; $size] {
                let mut bytes = [0; $size];
                self.put(&mut bytes.as_mut_slice());
                bytes
            }
        }

        impl Field for $name {
            const SIZE: usize = 0 $(+ <$type as Field>::SIZE)*;

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                Some($name { $($field: Field::take(bytes)?),* })
            }

            fn put(self, room: &mut &mut [u8]) {
                $(self.$field.put(room);)*
            }
        }

        const _: () = assert!(<$name as Field>::SIZE == $size);
    )*};
}

wire! {
    /// `fuse_in_header`: what every request begins with.
    InHeader[40] {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        total_extlen: u16,
        padding: u16,
    }

    /// `fuse_out_header`: what every reply begins with; `error` is 0 or a negated errno.
    OutHeader[16] { len: u32, error: i32, unique: u64 }

    /// `fuse_attr`.
    AttrWire[88] {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }

    /// `fuse_entry_out`: the reply to LOOKUP and to everything that makes a name.
    EntryOut[128] {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: AttrWire,
    }

    /// `fuse_attr_out`: the reply to GETATTR and SETATTR.
    AttrOut[104] { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: AttrWire }

    /// `fuse_open_out`: the reply to OPEN and OPENDIR, and the second half of CREATE's.
    OpenOut[16] { fh: u64, open_flags: u32, padding: u32 }

    /// `fuse_write_out`: the reply to WRITE and COPY_FILE_RANGE.
    WriteOut[8] { size: u32, padding: u32 }

    /// `fuse_kstatfs`: the reply to STATFS.
    Kstatfs[80] {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }

    /// `fuse_getxattr_out`: the reply to GETXATTR and LISTXATTR with size 0.
    GetxattrOut[8] { size: u32, padding: u32 }

    /// `fuse_lseek_out`.
    LseekOut[8] { offset: u64 }

    /// `fuse_dirent`, followed by the name and zeros up to a multiple of 8.
    Dirent[24] { ino: u64, off: u64, namelen: u32, kind: u32 }

    /// `fuse_init_in` up to 7.35.
    InitIn[16] { major: u32, minor: u32, max_readahead: u32, flags: u32 }

    /// `fuse_init_out`.
    InitOut[64] {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        unused: [u32; 7],
    }

    /// `fuse_forget_in`.
    ForgetIn[8] { nlookup: u64 }

    /// `fuse_batch_forget_in`, followed by `count` times [`ForgetOne`].
    BatchForgetIn[8] { count: u32, dummy: u32 }

    /// `fuse_forget_one`.
    ForgetOne[16] { nodeid: u64, nlookup: u64 }

    /// `fuse_getattr_in`.
    GetattrIn[16] { getattr_flags: u32, dummy: u32, fh: u64 }

    /// `fuse_setattr_in`.
    SetattrIn[88] {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: i64,
        mtime: i64,
        ctime: i64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }

    /// `fuse_mknod_in`, followed by the name.
    MknodIn[16] { mode: u32, rdev: u32, umask: u32, padding: u32 }

    /// `fuse_mkdir_in`, followed by the name.
    MkdirIn[8] { mode: u32, umask: u32 }

    /// `fuse_rename_in`, followed by both names.
    RenameIn[8] { newdir: u64 }

    /// `fuse_rename2_in`, followed by both names.
    Rename2In[16] { newdir: u64, flags: u32, padding: u32 }

    /// `fuse_link_in`, followed by the name.
    LinkIn[8] { oldnodeid: u64 }

    /// `fuse_open_in`, of OPEN and OPENDIR.
    OpenIn[8] { flags: u32, open_flags: u32 }

    /// `fuse_create_in`, followed by the name.
    CreateIn[16] { flags: u32, mode: u32, umask: u32, open_flags: u32 }

    /// `fuse_release_in`, of RELEASE and RELEASEDIR.
    ReleaseIn[24] { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }

    /// `fuse_flush_in`.
    FlushIn[24] { fh: u64, unused: u32, padding: u32, lock_owner: u64 }

    /// `fuse_read_in`, of READ, READDIR and READDIRPLUS.
    ReadIn[40] {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }

    /// `fuse_write_in`, followed by the data.
    WriteIn[40] {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }

    /// `fuse_fsync_in`, of FSYNC and FSYNCDIR.
    FsyncIn[16] { fh: u64, fsync_flags: u32, padding: u32 }

    /// `fuse_setxattr_in` without FUSE_SETXATTR_EXT, followed by name and value.
    SetxattrIn[8] { size: u32, flags: u32 }

    /// What FUSE_SETXATTR_EXT adds to [`SetxattrIn`].
    SetxattrExt[8] { setxattr_flags: u32, padding: u32 }

    /// `fuse_getxattr_in`, of GETXATTR (followed by the name) and LISTXATTR.
    GetxattrIn[8] { size: u32, padding: u32 }

    /// `fuse_access_in`.
    AccessIn[8] { mask: u32, padding: u32 }

    /// `fuse_fallocate_in`.
    FallocateIn[32] { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }

    /// `fuse_lseek_in`.
    LseekIn[24] { fh: u64, offset: u64, whence: u32, padding: u32 }

    /// `fuse_copy_file_range_in`.
    CopyFileRangeIn[56] {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }

    /// `fuse_ext_header`, and `fuse_secctx_header` when `kind` is at most 31 (then the number of contexts).
    ExtHeader[8] { size: u32, kind: u32 }

    /// `fuse_secctx`, followed by the attribute's name and `size` bytes of value.
    Secctx[8] { size: u32, padding: u32 }

    /// `fuse_supp_groups`, followed by `nr_groups` group ids.
    SuppGroups[4] { nr_groups: u32 }
}

macro_rules! opcodes {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[allow(missing_docs, reason = "the protocol's own names")]
        pub enum Opcode {
            $($name = $number),*
        }

        impl Opcode {
            /// All opcodes, in the order of their numbers.
            pub const ALL: &[Opcode] = &[$(Opcode::$name),*];

            /// The opcode of a number off the wire.
            pub fn from_number(number: u32) -> Option<Opcode> {
                match number {
                    $($number => Some(Opcode::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Getlk = 31,
    Setlk = 32,
    Setlkw = 33,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Bmap = 37,
    Destroy = 38,
    Ioctl = 39,
    Poll = 40,
    NotifyReply = 41,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    SetupMapping = 48,
    RemoveMapping = 49,
    Syncfs = 50,
    Tmpfile = 51,
    Statx = 52,
    CopyFileRange64 = 53,
}

impl Opcode {
    /// The protocol knows no reply to this one: its descriptor chain comes back with used length 0.
    pub fn is_without_reply(self) -> bool {
        matches!(self, Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::Destroy)
    }

    /// ENOSYS, whatever the file system.
    pub fn is_unsupported(self) -> bool {
        matches!(
            self,
            Opcode::Getlk
                | Opcode::Setlk
                | Opcode::Setlkw
                | Opcode::Bmap
                | Opcode::Ioctl
                | Opcode::Poll
                | Opcode::NotifyReply
                | Opcode::SetupMapping
                | Opcode::RemoveMapping
                | Opcode::Tmpfile
                | Opcode::Statx
                | Opcode::CopyFileRange64
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_survive_the_wire() {
        let header = InHeader {
            len: 1,
            opcode: 2,
            unique: 3,
            nodeid: u64::MAX,
            uid: 5,
            gid: 6,
            pid: 7,
            total_extlen: 8,
            padding: 9,
        };
        let bytes = header.to_bytes();
        let mut rest = bytes.as_slice();
        assert_eq!(InHeader::take(&mut rest), Some(header));
        assert!(rest.is_empty());
        assert_eq!(InHeader::take(&mut &bytes[..39]), None);
    }

    #[test]
    fn init_out_has_the_kernels_layout() {
        let out = InitOut {
            major: 7,
            minor: 38,
            max_readahead: 0x11,
            flags: 0x22,
            max_background: 0x33,
            congestion_threshold: 0x44,
            max_write: 0x55,
            time_gran: 1,
            max_pages: 0x66,
            map_alignment: 0,
            flags2: 0x77,
            unused: [0; 7],
        };
        let mut expected = Vec::new();
        for value in [7u32, 38, 0x11, 0x22, 0x0044_0033, 0x55, 1, 0x66, 0x77] {
            expected.extend_from_slice(&value.to_ne_bytes());
        }
        expected.resize(64, 0);
        if cfg!(target_endian = "little") {
            assert_eq!(out.to_bytes().as_slice(), expected);
        }
    }

    #[test]
    fn opcodes_and_numbers_agree() {
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::from_number(*opcode as u32), Some(*opcode));
        }
        for number in [0, 7, 19, 54, 4096, u32::MAX] {
            assert_eq!(Opcode::from_number(number), None);
        }
    }
}
