//! The scripts that are run on virtiofsd and on ovfs: everything a guest can see of a passthrough share.
//!
//! [`session`]: INIT and what depends on it. [`names`]: nodes and names. [`files`]: handles and data. [`tour`]: a walk
//! over most operations, for every option. [`random`]: seeded random operations.

pub mod files;
pub mod names;
pub mod random;
pub mod session;
pub mod tour;

use crate::script::{Case, Script};

/// A case without further daemon options.
pub(crate) fn plain(name: &str, run: fn(&mut Script)) -> Case {
    with(name, &[], run)
}

/// A case with daemon options.
pub(crate) fn with(name: &str, args: &[&str], run: fn(&mut Script)) -> Case {
    Case { name: name.into(), args: args.iter().map(|arg| (*arg).to_owned()).collect(), run }
}

/// Every case.
pub fn all() -> Vec<Case> {
    [session::cases(), names::cases(), files::cases(), tour::cases(), random::cases()].concat()
}
