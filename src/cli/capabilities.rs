//! `--print-capabilities`: what libvirt and Incus ask for before they choose flags.
//!
//! `separate-options` is what makes libvirt use long flags instead of `-o`.

use std::io::{self, Write};

const CAPABILITIES: &str = r#"{
  "type": "fs",
  "features": [
    "migrate-precopy",
    "posix-acl-negotiation-mode",
    "security-label-negotiation-mode",
    "separate-options"
  ]
}
"#;

/// Writes the description that the vhost-user backend program conventions of QEMU ask for (docs/interop/vhost-user.json).
///
/// # Errors
/// Those of `out`.
pub fn print(mut out: impl Write) -> io::Result<()> {
    out.write_all(CAPABILITIES.as_bytes())?;
    out.flush()
}
