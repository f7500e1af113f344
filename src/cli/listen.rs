//! Where `--metrics-listen` listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a path begins with.
const UNIX: &str = "unix:";

/// An address, or the path of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddr {
    /// `IP:PORT`, an IPv6 address in brackets.
    Inet(SocketAddr),
    /// `unix:PATH`
    Unix(PathBuf),
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsAddr::Inet(addr) => addr.fmt(f),
            MetricsAddr::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Reads the value of the flag.
///
/// # Errors
/// What would have been right.
pub fn parse_metrics_addr(text: &str) -> Result<MetricsAddr, &'static str> {
    match text.strip_prefix(UNIX) {
        Some("") => Err("unix: wants a path"),
        Some(path) => Ok(MetricsAddr::Unix(path.into())),
        None => text.parse().map(MetricsAddr::Inet).map_err(|_| "expected IP:PORT or unix:PATH"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_or_paths() {
        for text in ["127.0.0.1:9100", "[::1]:9100", "0.0.0.0:0", "unix:/run/m", "unix:m"] {
            assert_eq!(parse_metrics_addr(text).map(|addr| addr.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "9100", ":9100", "localhost:9100", "::1:9100:x", "127.0.0.1", "127.0.0.1:70000", "/run/m"] {
            assert_eq!(parse_metrics_addr(text), Err("expected IP:PORT or unix:PATH"), "{text}");
        }
        assert!(parse_metrics_addr("unix:").is_err());
    }
}
