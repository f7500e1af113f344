//! Resident memory that the start leaves behind.
//!
//! Starting touches megabytes of code (reading flags, the sandbox, TLS) that serving never needs, and what was touched
//! counts as resident until memory runs short. It is clean and in the page cache: giving it back costs nothing, and
//! what is needed again comes back page by page.

use std::ffi::{c_int, c_void};
use std::ptr;

/// Gives back the pages of all code and constants of this process; those in use come back as they are touched.
pub fn release_code() {
    // SAFETY: the callback has the type that is asked for and needs no data; it does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(release_object), ptr::null_mut()) };
}

/// Gives back the segments of one object that nobody can have written.
///
/// # Safety
/// As dl_iterate_phdr(3) calls it: `object` describes a loaded object.
unsafe extern "C" fn release_object(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let object = unsafe { &*object };
    // SAFETY: takes a number.
    let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    // SAFETY: the object has so many headers there.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    // SAFETY: takes a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.cast_unsigned().max(1);
    for header in headers {
        let is_constant = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let from = object.dlpi_addr.wrapping_add(header.p_vaddr);
        let to = from.saturating_add(header.p_filesz).next_multiple_of(page);
        let from = from - from % page;
        if !is_constant || (from..to).contains(&vdso) {
            continue;
        }
        if let (Ok(at), Ok(len)) = (usize::try_from(from), usize::try_from(to - from)) {
            // SAFETY: these pages are a private mapping of a file that was never writable, so they read the same when
            // they are touched again; only their being resident ends. A refusal leaves them so.
            unsafe { libc::madvise(ptr::without_provenance_mut(at), len, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::release_code;

    #[test]
    fn code_and_constants_are_the_same_afterwards() {
        static CONSTANT: &str = "a constant";
        release_code();
        assert_eq!(CONSTANT.replace('c', "k"), "a konstant");
        release_code();
    }
}
