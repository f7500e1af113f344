//! Keeping the secrets of a backend URL out of sight, and [which keys](is_secret) have secret values.
//!
//! `/proc/<pid>/cmdline` is readable by everyone on the host, so the first thing that the program does, before it even
//! parses its arguments, is to overwrite the secrets in them where they stand. From then on everything that sees the
//! arguments (the parser, its error messages, the log) sees `x`es; the real URL is in one [`SecretUrl`], for the broker
//! alone. The device process forgets that too, and its copy of the environment, before it meets the guest.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::slice;
use std::sync::atomic::{Ordering, compiler_fence};

use percent_encoding::percent_decode;
use serde::{Deserialize, Serialize};

/// A URL with its secrets. Shows them to nobody by accident, and wipes its memory when dropped.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUrl(Vec<u8>);

impl From<String> for SecretUrl {
    fn from(url: String) -> SecretUrl {
        SecretUrl(url.into_bytes())
    }
}

impl SecretUrl {
    /// The URL with its secrets, or `None` if it is not UTF-8.
    pub fn expose(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(..)")
    }
}

impl Drop for SecretUrl {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// The URLs that stood on the command line, each under what is visible of it now.
#[derive(Debug, Default)]
pub struct Vault {
    entries: Vec<(Vec<u8>, SecretUrl)>,
}

impl Vault {
    /// Hides the secrets in this process's command line. `takes_value` tells the options whose value is the next
    /// argument.
    ///
    /// Call it first of all, while there is one thread and nothing has read the arguments yet. Without /proc nothing is
    /// hidden, and nobody can see it.
    pub fn fill(takes_value: impl Fn(&[u8]) -> bool) -> Vault {
        let Some([args, _]) = argument_and_environment_areas() else { return Vault::default() };
        // SAFETY: the kernel says that the arguments lie there, in this process's own writable stack. No other thread
        // exists, and no reference to them is alive: the standard library keeps pointers and makes copies on request.
        let area = unsafe { slice::from_raw_parts_mut(args.start as *mut u8, args.len()) };
        Vault::fill_from(area, takes_value)
    }

    /// `area`: the arguments, each ended by a NUL.
    fn fill_from(area: &mut [u8], takes_value: impl Fn(&[u8]) -> bool) -> Vault {
        let mut vault = Vault::default();
        let mut option: Option<Vec<u8>> = None;
        if !area.windows(2).any(|two| two == b":/") {
            return vault;
        }
        for arg in area.split_mut(|&byte| byte == 0) {
            let value_of = option.take();
            let url = match &value_of {
                Some(name) if name == b"--backend" => 0,
                Some(_) => continue,
                None if arg.starts_with(b"--backend=") => b"--backend=".len(),
                None if looks_like_url(arg) => 0,
                None => {
                    option = takes_value(arg).then(|| arg.to_vec());
                    continue;
                }
            };
            vault.hide(&mut arg[url..]);
        }
        vault
    }

    /// Keeps a URL that did not stand on the command line, under what may be seen of it.
    pub fn keep(&mut self, visible: &str, url: SecretUrl) {
        self.entries.push((visible.as_bytes().to_vec(), url));
    }

    fn hide(&mut self, url: &mut [u8]) {
        let secrets = secret_ranges(url);
        if secrets.is_empty() {
            return;
        }
        let original = SecretUrl(url.to_vec());
        for range in secrets {
            url[range].fill(b'x');
        }
        self.entries.push((url.to_vec(), original));
    }

    /// The URL of which `visible` is what can be seen. Of several the last, as with any repeated option.
    pub fn take(mut self, visible: &str) -> SecretUrl {
        match self.entries.iter().rposition(|(seen, _)| seen == visible.as_bytes()) {
            Some(at) => self.entries.swap_remove(at).1,
            None => SecretUrl(visible.as_bytes().to_vec()),
        }
    }
}

/// Where this process's environment lies, in which the credentials of stores may stand.
#[derive(Debug)]
pub struct Environment(Option<Range<usize>>);

impl Environment {
    /// Finds it, while /proc can still be reached.
    pub fn locate() -> Environment {
        Environment(argument_and_environment_areas().map(|[_, environment]| environment))
    }

    /// Overwrites it. For the device process, which has no use for it; afterwards no environment variable can be read
    /// any more. There must be one thread.
    pub fn forget(self) {
        if let Some(area) = self.0 {
            // SAFETY: the kernel said that the environment lies there, in this process's own writable stack, which
            // stays mapped; a fork changes no addresses. There is one thread, and std copies variables when asked. All
            // zeros are empty strings to whoever asks later.
            wipe(unsafe { slice::from_raw_parts_mut(area.start as *mut u8, area.len()) });
        }
    }
}

/// Overwrites `memory` in a way that the compiler does not leave out.
pub(super) fn wipe(memory: &mut [u8]) {
    for byte in memory {
        // SAFETY: a valid, aligned, exclusive place for one byte.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
    compiler_fence(Ordering::SeqCst);
}

/// Where this process's arguments and environment lie in its memory.
fn argument_and_environment_areas() -> Option<[Range<usize>; 2]> {
    areas(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Fields 48 to 51 of proc_pid_stat(5). The second field is a name in parentheses that may contain anything.
fn areas(stat: &str) -> Option<[Range<usize>; 2]> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut numbers = rest.split_ascii_whitespace().skip(48 - 3).map(|field| field.parse::<usize>().ok());
    let mut area = || {
        let (start, end) = (numbers.next()??, numbers.next()??);
        (start != 0 && start <= end).then_some(start..end)
    };
    Some([area()?, area()?])
}

/// Whether `arg` starts as a URL does: a scheme and `:/`.
fn looks_like_url(arg: &[u8]) -> bool {
    let scheme = arg.iter().take_while(|c| c.is_ascii_alphanumeric() || b"+-.".contains(c)).count();
    scheme > 0 && arg[0].is_ascii_alphabetic() && arg[scheme..].starts_with(b":/")
}

/// What of `url` may be seen: its secrets are `x`es.
pub fn visible(url: &str) -> String {
    let mut bytes = url.as_bytes().to_vec();
    secret_ranges(&bytes).into_iter().for_each(|range| bytes[range].fill(b'x'));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether there are secrets in `url`.
pub fn has_secrets(url: &str) -> bool {
    !secret_ranges(url.as_bytes()).is_empty()
}

/// Whether the value of a store's key of this name is to be hidden. Goes by the sound, so that a key which nobody thought
/// of is hidden too.
pub fn is_secret(name: &str) -> bool {
    const MARKS: [&str; 8] = ["key", "secret", "pass", "token", "credential", "sas", "auth", "external_id"];
    // They sound like secrets, and are the names of files, of keys kept elsewhere, and of a server.
    const NAMES: [&str; 8] = [
        "key",
        "credential_path",
        "google_application_credentials",
        "oidc_token_file",
        "server_side_encryption_aws_kms_key_id",
        "aws_sse_kms_key_id",
        "server_side_encryption_key_id",
        "authority_host",
    ];
    let name = name.to_ascii_lowercase();
    MARKS.iter().any(|mark| name.contains(mark)) && !NAMES.contains(&name.as_str())
}

fn is_secret_key(key: &[u8]) -> bool {
    is_secret(&percent_decode(key).decode_utf8_lossy())
}

/// Where the secrets are in `url`: the user information, and the values of query keys that sound like secrets. A piece of
/// the query that is no pair, and a fragment, may be the rest of a secret that was not percent-encoded.
fn secret_ranges(url: &[u8]) -> Vec<Range<usize>> {
    let find = |from: usize, what: &[u8]| {
        url[from..].iter().position(|byte| what.contains(byte)).map_or(url.len(), |at| from + at)
    };
    let mut ranges = Vec::new();
    let authority = url.windows(3).position(|three| three == b"://").map_or(0, |at| at + 3);
    let query = find(authority, b"?");
    if authority > 0 {
        let authority_end = find(authority, b"/?#");
        let host = &url[authority..authority_end];
        // A password with a slash in it reaches beyond the authority.
        let beyond = host.contains(&b':') && !host.contains(&b'@');
        let reach = if beyond { query } else { authority_end };
        if let Some(at) = url[authority..reach].iter().rposition(|&byte| byte == b'@') {
            ranges.push(authority..authority + at);
        }
    }
    let mut start = query + 1;
    while start < url.len() {
        let end = find(start, b"&#");
        let pair = &url[start..end];
        match pair.iter().position(|&byte| byte == b'=') {
            Some(equals) if is_secret_key(&pair[..equals]) => ranges.push(start + equals + 1..end),
            Some(_) => {}
            None => ranges.push(start..end),
        }
        if url.get(end) == Some(&b'#') {
            ranges.push(end + 1..url.len());
            break;
        }
        start = end + 1;
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(url: &str) -> String {
        let mut bytes = url.as_bytes().to_vec();
        Vault::default().hide(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_stays_readable() {
        for (url, visible) in [
            ("s3://bucket/prefix?region=r&endpoint=http://h:9/", "s3://bucket/prefix?region=r&endpoint=http://h:9/"),
            (
                "s3://?root=/p&bucket=b&access_key_id=AKI&secret_access_key=s/+=c&region=r",
                "s3://?root=/p&bucket=b&access_key_id=xxx&secret_access_key=xxxxx&region=r",
            ),
            (
                "azblob://c?account_name=n&account_key=k==&sas_token=t",
                "azblob://c?account_name=n&account_key=xxx&sas_token=x",
            ),
            ("webdav://user:p%40ss@host/dir?x=1", "webdav://xxxxxxxxxxx@host/dir?x=1"),
            ("sftp://me@host:22/dir@2", "sftp://xx@host:22/dir@2"),
            ("webdav://u:p/w@host/d", "webdav://xxxxx@host/d"),
            ("s3://bucket/dir@2x?region=r", "s3://bucket/dir@2x?region=r"),
            ("s3://b?Secret%5FAccess%5FKey=abc#def", "s3://b?Secret%5FAccess%5FKey=xxx#xxx"),
            ("s3://b?password=a&b&region=r", "s3://b?password=x&x&region=r"),
            ("s3:/b?session_token=abc", "s3:/b?session_token=xxx"),
            ("s3:/b?External_Id=abc", "s3:/b?External_Id=xxx"),
            ("sftp://h/d?key=/home/me/.ssh/id", "sftp://h/d?key=/home/me/.ssh/id"),
            ("fs:///dir", "fs:///dir"),
            ("?token=", "?token="),
            ("", ""),
        ] {
            assert_eq!(hidden(url), visible, "{url}");
            assert_eq!(super::visible(url), visible, "{url}");
        }
    }

    #[test]
    fn only_backend_urls_are_touched_and_the_vault_knows_them() {
        let takes_value = |arg: &[u8]| arg == b"--shared-dir" || arg == b"--backend";
        let mut area =
            b"ovfs\0--shared-dir\0fs:/a?token=1\0--backend\0s3://a?token=1\0--backend=s3://b?token=2\0sock\0\
                         s3://b?token=3\0"
                .to_vec();
        let vault = Vault::fill_from(&mut area, takes_value);
        let expected =
            b"ovfs\0--shared-dir\0fs:/a?token=1\0--backend\0s3://a?token=x\0--backend=s3://b?token=x\0sock\0\
                         s3://b?token=x\0";
        assert_eq!(String::from_utf8_lossy(&area), String::from_utf8_lossy(expected));
        assert!(!format!("{vault:?}").contains("token=1"));
        assert_eq!(vault.take("s3://b?token=x").expose(), Some("s3://b?token=3"));
        assert_eq!(Vault::default().take("memory:///").expose(), Some("memory:///"));
    }

    #[test]
    fn areas_are_found_behind_any_process_name() {
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[48 - 3..52 - 3].clone_from_slice(&["100".into(), "120".into(), "120".into(), "200".into()]);
        let stat = format!("7 (a) b) {}", fields.join(" "));
        assert_eq!(areas(&stat), Some([100..120, 120..200]));
        assert_eq!(areas("7 (short) R 1 2"), None);
        let real = argument_and_environment_areas().unwrap();
        assert!(!real[0].is_empty());
    }
}
