//! The name that `ps -o comm` and `pgrep` see. Tools look for `virtiofsd`, so a program started under that name, through
//! a symlink for example, keeps it in every process and thread; started under any other name it is `ovfs`.

use std::ffi::{CStr, OsStr};
use std::path::Path;

/// Names this process, and all that it will fork, after the name it was started under. Returns that name.
pub fn adopt(argv0: Option<&OsStr>) -> &'static str {
    let name = name_for(argv0);
    // SAFETY: PR_SET_NAME reads a C string of any length; it cannot fail for a valid one.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    name.to_str().unwrap_or("ovfs")
}

fn name_for(argv0: Option<&OsStr>) -> &'static CStr {
    let base = argv0.and_then(|name| Path::new(name).file_name());
    if base == Some(OsStr::new("virtiofsd")) { c"virtiofsd" } else { c"ovfs" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_base_name_counts() {
        for (argv0, name) in [
            (Some("/usr/libexec/virtiofsd"), c"virtiofsd"),
            (Some("virtiofsd"), c"virtiofsd"),
            (Some("/opt/virtiofsd/ovfs"), c"ovfs"),
            (Some("virtiofsd-1.14"), c"ovfs"),
            (Some(""), c"ovfs"),
            (None, c"ovfs"),
        ] {
            assert_eq!(name_for(argv0.map(OsStr::new)), name, "{argv0:?}");
        }
    }
}
