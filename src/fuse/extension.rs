//! What follows the names of CREATE, MKDIR, MKNOD and SYMLINK: a security context and supplementary groups.
//!
//! Each extension begins with its own length, which includes that beginning. Types up to 31 are the *number* of
//! security contexts (the older of the two extensions had no type), 32 is the list of groups.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::abi::{ExtHeader, Field, Secctx, SuppGroups};
use super::flags::init::{CREATE_SUPP_GROUP, SECURITY_CTX};
use super::name;
use super::session::Terms;
use crate::fs::{Errno, Extensions, Result};

/// The largest type that counts security contexts (FUSE_MAX_NR_SECCTX).
const SECCTX_COUNT_MAX: u32 = 31;
/// The type of the list of groups (FUSE_EXT_GROUPS).
const GROUPS: u32 = 32;
/// The most groups a Linux process can have (NGROUPS_MAX).
const GROUPS_MAX: u32 = 65536;

/// Reads all extensions; `bytes` is everything behind the last name.
///
/// # Errors
/// EINVAL: malformed, twice the same, one that was not agreed, or a missing security context where it was agreed.
pub(super) fn parse(terms: Terms, mut bytes: &[u8]) -> Result<Extensions> {
    let mut found = Extensions::default();
    let mut is_secctx_seen = false;
    while !bytes.is_empty() {
        let header = ExtHeader::take(&mut bytes).ok_or(Errno::EINVAL)?;
        let len = usize::try_from(header.size).ok().and_then(|size| size.checked_sub(ExtHeader::SIZE));
        let (body, rest) = len.and_then(|len| bytes.split_at_checked(len)).ok_or(Errno::EINVAL)?;
        bytes = rest;
        match header.kind {
            count @ 0..=SECCTX_COUNT_MAX => {
                if is_secctx_seen || !may_carry(terms, SECURITY_CTX) {
                    return Err(Errno::EINVAL);
                }
                is_secctx_seen = true;
                found.security = security_context(count, body)?;
            }
            GROUPS => {
                if !found.groups.is_empty() || !may_carry(terms, CREATE_SUPP_GROUP) {
                    return Err(Errno::EINVAL);
                }
                found.groups = groups(body)?;
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    if terms.has(SECURITY_CTX) && !is_secctx_seen {
        return Err(Errno::EINVAL);
    }
    Ok(found)
}

fn may_carry(terms: Terms, flag: u64) -> bool {
    terms.has(flag) || terms.is_assumed()
}

/// Attribute name and value; `None` when the guest has no security module. Linux sends at most one.
fn security_context(count: u32, mut body: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    match count {
        0 => return Ok(None),
        1 => {}
        _ => return Err(Errno::EINVAL),
    }
    let Secctx { size, .. } = Secctx::take(&mut body).ok_or(Errno::EINVAL)?;
    let (attribute, rest) = name::split_xattr(body).map_err(|_| Errno::EINVAL)?;
    // Zeros up to a multiple of 8 may follow the value.
    let len = usize::try_from(size).map_err(|_| Errno::EINVAL)?;
    let value = rest.get(..len).filter(|value| !value.is_empty()).ok_or(Errno::EINVAL)?;
    Ok(Some((attribute.to_vec(), value.to_vec())))
}

fn groups(mut body: &[u8]) -> Result<Vec<u32>> {
    let len = body.len();
    let SuppGroups { nr_groups } = SuppGroups::take(&mut body).ok_or(Errno::EINVAL)?;
    let count = usize::try_from(nr_groups).map_err(|_| Errno::EINVAL)?;
    let expected = count
        .checked_mul(u32::SIZE)
        .and_then(|ids| ids.checked_add(SuppGroups::SIZE))
        .and_then(|bytes| bytes.checked_next_multiple_of(8));
    if nr_groups > GROUPS_MAX || expected != Some(len) {
        return Err(Errno::EINVAL);
    }
    (0..count).map(|_| u32::take(&mut body).ok_or(Errno::EINVAL)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(ExtHeader::SIZE.strict_add(body.len())).unwrap();
        [&ExtHeader { size, kind }.to_bytes()[..], body].concat()
    }

    fn groups_body(count: u32, ids: &[u32]) -> Vec<u8> {
        let mut body = count.to_ne_bytes().to_vec();
        ids.iter().for_each(|id| body.extend_from_slice(&id.to_ne_bytes()));
        body.resize(body.len().next_multiple_of(8), 0);
        body
    }

    fn secctx_body(size: u32, text: &[u8]) -> Vec<u8> {
        [&Secctx { size, padding: 0 }.to_bytes()[..], text].concat()
    }

    #[test]
    fn both_extensions_are_read() {
        let terms = Terms::agreed(SECURITY_CTX | CREATE_SUPP_GROUP);
        let bytes = [
            extension(1, &secctx_body(5, b"security.selinux\0label\0\0")),
            extension(GROUPS, &groups_body(2, &[1000, 27])),
        ]
        .concat();
        let found = parse(terms, &bytes).unwrap();
        assert_eq!(found.security, Some((b"security.selinux".to_vec(), b"label".to_vec())));
        assert_eq!(found.groups, [1000, 27]);
        assert_eq!(parse(Terms::assumed(), &bytes), Ok(found));
    }

    #[test]
    fn none_is_fine_unless_a_context_was_agreed() {
        assert_eq!(parse(Terms::agreed(CREATE_SUPP_GROUP), b""), Ok(Extensions::default()));
        assert_eq!(parse(Terms::agreed(SECURITY_CTX), b""), Err(Errno::EINVAL));
        assert_eq!(parse(Terms::agreed(SECURITY_CTX), &extension(0, b"")), Ok(Extensions::default()));
    }

    #[test]
    fn malformed_ones_are_refused() {
        let terms = Terms::agreed(SECURITY_CTX | CREATE_SUPP_GROUP);
        let context = extension(0, b"");
        let with_context = |rest: Vec<u8>| [context.clone(), rest].concat();
        let bad = [
            b"junk\0".to_vec(),
            [context.clone(), context.clone()].concat(),
            extension(2, &secctx_body(1, b"a\0x")),
            extension(1, &secctx_body(0, b"a\0x")),
            extension(1, &secctx_body(9, b"a\0x")),
            extension(1, &secctx_body(1, b"no nul")),
            extension(1, &secctx_body(1, b"\0x")),
            with_context(extension(33, b"")),
            with_context(extension(GROUPS, &groups_body(3, &[1]))),
            with_context(extension(GROUPS, &groups_body(u32::MAX, &[1]))),
            with_context(ExtHeader { size: 7, kind: GROUPS }.to_bytes().to_vec()),
            with_context(ExtHeader { size: u32::MAX, kind: GROUPS }.to_bytes().to_vec()),
            with_context([extension(GROUPS, &groups_body(1, &[1])), extension(GROUPS, &groups_body(1, &[1]))].concat()),
        ];
        for bytes in bad {
            assert_eq!(parse(terms, &bytes), Err(Errno::EINVAL), "{bytes:?}");
        }
        assert_eq!(parse(Terms::agreed(0), &context), Err(Errno::EINVAL));
    }
}
