//! The `ovfs` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ovfs::daemon::main()
}
