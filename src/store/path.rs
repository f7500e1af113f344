//! What a name and a path may look like. Both processes ask here, in both directions: guest to store and listing to guest.

/// Longest component in bytes, as in every Linux file system.
pub const NAME_MAX: usize = 255;

/// Longest path in bytes; S3's limit for keys.
pub const PATH_MAX: usize = 1024;

/// Why a name cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with `/` or NUL in it.
    #[error("not a single path component")]
    NotAComponent,
    /// Longer than [`NAME_MAX`] or [`PATH_MAX`].
    #[error("too long")]
    TooLong,
    /// Not UTF-8; object keys are.
    #[error("not UTF-8")]
    NotUtf8,
    /// A path that OpenDAL would trim to another one: white space at its start or end.
    #[error("white space at the start or end of the path")]
    Rewritten,
}

/// Checks one component.
///
/// # Errors
/// See [`NameError`].
pub fn check_name(name: &[u8]) -> Result<&str, NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong);
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(NameError::NotAComponent);
    }
    std::str::from_utf8(name).map_err(|_| NameError::NotUtf8)
}

/// Checks a path: every component, the length, and that OpenDAL leaves it as it is. `""` is the root and fine.
///
/// # Errors
/// See [`NameError`].
pub fn check_path(path: &str) -> Result<(), NameError> {
    if path.is_empty() {
        return Ok(());
    }
    if path.len() > PATH_MAX {
        return Err(NameError::TooLong);
    }
    if path.trim() != path {
        return Err(NameError::Rewritten);
    }
    path.split('/').try_for_each(|name| check_name(name.as_bytes()).map(drop))
}

/// `parent` with `name` below it.
pub fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_component_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", b"/"] {
            assert_eq!(check_name(bad), Err(NameError::NotAComponent), "{bad:?}");
        }
        assert_eq!(check_name(&[b'x'; 256]), Err(NameError::TooLong));
        assert_eq!(check_name(b"\xff\xfe"), Err(NameError::NotUtf8));
        assert_eq!(check_name(&[b'x'; 255]).map(str::len), Ok(255));
        assert_eq!(check_name(b"..."), Ok("..."));
    }

    #[test]
    fn paths_that_opendal_would_rewrite_are_refused() {
        for bad in ["/a", "a/", "a//b", "a/../b", "./a"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for bad in [" a", "a ", "a/b\u{3000}", "\ta"] {
            assert_eq!(check_path(bad), Err(NameError::Rewritten), "{bad:?}");
        }
        for good in ["", "a", "a b/c", "a/ b", "a /b"] {
            assert_eq!(check_path(good), Ok(()), "{good:?}");
        }
    }
}
