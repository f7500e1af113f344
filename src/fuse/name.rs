//! What may name something: the one place where a guest's names are checked, for every opcode that takes one.
//!
//! A name that passes is one path component. Nothing below the server has to ask again, whatever the sandbox: `..`,
//! `a/b` and `/etc` never reach a system call or a store.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::fs::{Errno, Result};

/// The longest name in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;
/// The longest name of an extended attribute in bytes (XATTR_NAME_MAX).
const XATTR_NAME_MAX: usize = 255;
/// The longest target of a symbolic link in bytes (PATH_MAX without its NUL).
const TARGET_MAX: usize = 4095;

/// Splits off what stands before the first NUL.
///
/// # Errors
/// `too_long` when no NUL comes and there are more than `max` bytes, else EINVAL.
fn until_nul(bytes: &[u8], max: usize, too_long: Errno) -> Result<(&[u8], &[u8])> {
    let end =
        bytes.iter().position(|byte| *byte == 0).ok_or(if bytes.len() > max { too_long } else { Errno::EINVAL })?;
    let (text, rest) = bytes.split_at_checked(end).ok_or(Errno::EINVAL)?;
    if text.len() > max {
        return Err(too_long);
    }
    Ok((text, rest.split_first().map_or(&[][..], |(_nul, rest)| rest)))
}

/// Takes a file name and its NUL off the front: the name, and what follows.
///
/// # Errors
/// EINVAL: empty, `.`, `..`, with a slash, or without NUL. ENAMETOOLONG: more than 255 bytes.
pub fn split(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (name, rest) = until_nul(bytes, NAME_MAX, Errno::ENAMETOOLONG)?;
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
        return Err(Errno::EINVAL);
    }
    Ok((name, rest))
}

/// The file name that fills `bytes` up to one NUL at their end.
///
/// # Errors
/// As [`split`]; EINVAL also when something follows the NUL.
pub fn whole(bytes: &[u8]) -> Result<&[u8]> {
    alone(split(bytes)?)
}

/// Takes the target of a symbolic link off the front.
///
/// # Errors
/// ENOENT: empty, as symlink(2) says. ENAMETOOLONG: more than 4095 bytes. EINVAL: without NUL.
pub fn split_target(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (target, rest) = until_nul(bytes, TARGET_MAX, Errno::ENAMETOOLONG)?;
    if target.is_empty() { Err(Errno::ENOENT) } else { Ok((target, rest)) }
}

/// Takes the name of an extended attribute off the front.
///
/// # Errors
/// ERANGE: empty or more than 255 bytes, as setxattr(2) says. EINVAL: without NUL.
pub fn split_xattr(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (name, rest) = until_nul(bytes, XATTR_NAME_MAX, Errno::ERANGE)?;
    if name.is_empty() { Err(Errno::ERANGE) } else { Ok((name, rest)) }
}

/// The attribute name that fills `bytes` up to one NUL at their end.
///
/// # Errors
/// As [`split_xattr`]; EINVAL also when something follows the NUL.
pub fn whole_xattr(bytes: &[u8]) -> Result<&[u8]> {
    alone(split_xattr(bytes)?)
}

/// Whether a directory may list the name: what a guest kernel accepts, `.` and `..` included.
pub fn is_listable(name: &[u8]) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

fn alone<'a>((text, rest): (&'a [u8], &[u8])) -> Result<&'a [u8]> {
    if rest.is_empty() { Ok(text) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_component_are_refused() {
        for bad in [
            &b""[..],
            b"\0",
            b".\0",
            b"..\0",
            b"/\0",
            b"a/b\0",
            b"/etc/passwd\0",
            b"../x\0",
            b"a/\0",
            b"no nul",
            b"a\0b\0",
            b"a\0\0",
        ] {
            assert_eq!(whole(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"..a", b" ", b"\xff\xfe", b"-"] {
            assert_eq!(whole(&[good, b"\0"].concat()), Ok(good));
        }
    }

    #[test]
    fn length_is_bounded() {
        let name = |len| [vec![b'n'; len], vec![0]].concat();
        assert!(whole(&name(255)).is_ok());
        assert_eq!(whole(&name(256)), Err(Errno::ENAMETOOLONG));
        assert_eq!(whole(&vec![b'n'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(whole(&vec![b'n'; 255]), Err(Errno::EINVAL));
        assert_eq!(whole_xattr(&name(256)), Err(Errno::ERANGE));
        assert!(split_target(&name(4095)).is_ok());
        assert_eq!(split_target(&name(4096)), Err(Errno::ENAMETOOLONG));
    }

    #[test]
    fn attribute_names_and_targets_may_hold_slashes() {
        assert_eq!(whole_xattr(b"user.a/b\0"), Ok(&b"user.a/b"[..]));
        assert_eq!(split_target(b"../a\0rest"), Ok((&b"../a"[..], &b"rest"[..])));
        assert_eq!(split_target(b"\0"), Err(Errno::ENOENT));
        assert_eq!(whole_xattr(b"\0"), Err(Errno::ERANGE));
    }
}
