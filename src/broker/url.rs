//! What `--backend` says: a URL, in OpenDAL's own form (`s3://bucket/prefix?region=…`) or with everything in the query
//! (`s3://?bucket=…&root=…&region=…`).
//!
//! OpenDAL takes any key and any host without a word and has errors that show values; so the URL is taken apart here, held
//! against `broker::services`, and OpenDAL only gets what it knows. In the query, `+` is a plus sign (access keys contain
//! it), and a space is `%20`.

use std::collections::BTreeMap;
use std::fmt;

use percent_encoding::percent_decode_str;

use super::services::{self, Host, Is, Keeps, Key, Lookup, PathIs, Service, Upload};
use crate::process::secrets::is_secret;

/// A store to be served: the service and its settings, all checked. Neither [`fmt::Debug`] nor [`fmt::Display`] shows a secret.
#[derive(Clone)]
pub struct Backend {
    pub(super) service: &'static Service,
    pub(super) config: BTreeMap<&'static str, String>,
}

/// Why a URL names no store. The texts show no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No `scheme://` at its start.
    #[error("the backend is not a URL: it has no SCHEME:// at its start (a local directory is fs:///DIR)")]
    NotAUrl,
    /// Not one of OpenDAL's services.
    #[error("unknown backend scheme '{scheme}'{} (built in: {})", hint(.nearest), services::compiled())]
    UnknownScheme {
        /// As given.
        scheme: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// One of OpenDAL's, but not one of this program's.
    #[error("OpenDAL's service '{scheme}' is not built into this program (built in: {})", services::compiled())]
    NotBuilt {
        /// As given.
        scheme: String,
    },
    /// Left out by cargo's features.
    #[error(
        "the service '{scheme}' was left out of this build (cargo feature \"{scheme}\"; built in: {})",
        services::compiled()
    )]
    LeftOut {
        /// Its scheme, which is also the feature.
        scheme: &'static str,
    },
    /// A key-value store or a mere download.
    #[error("the service '{0}' cannot list what it holds, so it cannot be shown as a tree of directories")]
    CannotList(String),
    /// A key that the service does not have.
    #[error("{scheme}: unknown key '{key}'{}", hint(.nearest))]
    UnknownKey {
        /// The service.
        scheme: &'static str,
        /// As given.
        key: String,
        /// What was probably meant.
        nearest: Option<&'static str>,
    },
    /// A key twice, or once as a key and once as host or path.
    #[error("{scheme}: '{key}' is given twice")]
    Twice {
        /// The service.
        scheme: &'static str,
        /// Its own name for it.
        key: &'static str,
    },
    /// A key that the service cannot do without.
    #[error("{scheme}: no {key} is given: {how}")]
    Missing {
        /// The service.
        scheme: &'static str,
        /// The key.
        key: &'static str,
        /// How to give it.
        how: String,
    },
    /// A value that the key cannot have.
    #[error("{scheme}: bad value for '{key}': {why}")]
    BadValue {
        /// The service.
        scheme: &'static str,
        /// The key.
        key: String,
        /// What is wrong with it; the value itself only where it is no secret.
        why: String,
    },
    /// Something that no part of the URL can be.
    #[error("{scheme}: {why}")]
    Malformed {
        /// The service.
        scheme: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The store cannot keep [`crate::store::Attributes`].
    #[error("{scheme}: POSIX attributes cannot be kept in this store: {why}")]
    NoAttributes {
        /// The service.
        scheme: &'static str,
        /// What stands against it.
        why: &'static str,
    },
    /// OpenDAL refused what passed the checks here.
    #[error("{scheme}: {why}")]
    Refused {
        /// The service.
        scheme: &'static str,
        /// OpenDAL's words.
        why: String,
    },
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map(|n| format!("; did you mean '{n}'?")).unwrap_or_default()
}

impl Backend {
    /// Takes a URL apart and checks it, without asking any store; only a local directory must be there. The region of S3 may come from AWS_REGION or
    /// AWS_DEFAULT_REGION; credentials from wherever OpenDAL finds them.
    ///
    /// # Errors
    /// [`BackendError`], naming the first thing that is wrong.
    pub fn parse(url: &str) -> Result<Backend, BackendError> {
        let backend = Backend::parse_with(url, |name| std::env::var(name).ok().filter(|v| !v.is_empty()))?;
        if let (true, Some(root)) = (backend.service.local, backend.config.get("root")) {
            let why = match std::fs::metadata(root) {
                Ok(metadata) if metadata.is_dir() => return Ok(backend),
                Ok(_) => "it is not a directory".to_owned(),
                Err(e) => e.to_string(),
            };
            let why = format!("'{root}': {why}");
            return Err(BackendError::BadValue { scheme: backend.service.scheme, key: "root".into(), why });
        }
        Ok(backend)
    }

    fn parse_with(url: &str, env: impl Fn(&str) -> Option<String>) -> Result<Backend, BackendError> {
        let (scheme, rest) = url.split_once("://").ok_or(BackendError::NotAUrl)?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        if scheme.is_empty() || !scheme.chars().all(legal) {
            return Err(BackendError::NotAUrl);
        }
        let scheme = scheme.to_ascii_lowercase();
        let service = match services::lookup(&scheme) {
            Lookup::Found(service) => service,
            Lookup::LeftOut(service) => return Err(BackendError::LeftOut { scheme: service.scheme }),
            Lookup::CannotList => return Err(BackendError::CannotList(scheme)),
            Lookup::NotBuilt => return Err(BackendError::NotBuilt { scheme }),
            Lookup::Unknown { nearest } => return Err(BackendError::UnknownScheme { scheme, nearest }),
        };
        let mut backend = Backend { service, config: BTreeMap::new() };
        if rest.contains('#') {
            return Err(backend.malformed("'#' must be written %23"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        backend.take_host(host)?;
        backend.take_path(path)?;
        backend.take_query(query)?;
        backend.complete(env)?;
        Ok(backend)
    }

    fn take_host(&mut self, host: &str) -> Result<(), BackendError> {
        let (user, host) = host.rsplit_once('@').map_or((None, host), |(user, host)| (Some(user), host));
        if let Some(user) = user {
            if self.service.scheme != "sftp" || user.contains(':') {
                return Err(self.malformed("user and password do not go before '@'; give them as keys of the query"));
            }
            let user = self.decode("user", user)?;
            self.set("user", user)?;
        }
        let host = self.decode("host", host)?;
        if host.is_empty() {
            return Ok(());
        }
        match self.service.host {
            Host::Nothing => {
                let scheme = self.service.scheme;
                Err(self.malformed(&format!(
                    "'{host}' stands where a host would; a path needs a third slash: {scheme}:///{host}…"
                )))
            }
            Host::Name(key) => self.set(key, host),
            Host::Authority { key, prefix } => {
                if self.service.scheme == "azdls"
                    && let Some(account) = host.split('.').next().filter(|a| !a.is_empty())
                {
                    // Overridden by a key of the query.
                    self.config.insert("account_name", account.to_owned());
                }
                self.set(key, format!("{prefix}{host}"))
            }
        }
    }

    fn take_path(&mut self, path: &str) -> Result<(), BackendError> {
        let path = self.decode("root", path)?;
        let trimmed = path.trim_matches('/');
        if trimmed.is_empty() {
            // `fs:///` means the root directory, `s3://bucket/` and `fs://` say nothing.
            return if self.service.local && !path.is_empty() { self.set("root", "/".into()) } else { Ok(()) };
        }
        let root = match self.service.path {
            PathIs::Root => trimmed,
            PathIs::NameThenRoot(key) => {
                let (name, root) = trimmed.split_once('/').unwrap_or((trimmed, ""));
                self.set(key, name.to_owned())?;
                root
            }
        };
        if root.is_empty() { Ok(()) } else { self.set("root", format!("/{root}")) }
    }

    fn take_query(&mut self, query: &str) -> Result<(), BackendError> {
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = self.decode("key", name)?.to_ascii_lowercase();
            let Some(key) = self.service.key(&name) else {
                let nearest = self.service.nearest_key(&name);
                return Err(BackendError::UnknownKey { scheme: self.service.scheme, key: name, nearest });
            };
            let value = self.decode(key.name, value)?;
            let value = self.check(key, value)?;
            if self.service.scheme == "azdls" && key.name == "account_name" {
                self.config.remove("account_name");
            }
            self.set(key.name, value)?;
        }
        Ok(())
    }

    /// The value as OpenDAL takes it.
    fn check(&self, key: &Key, value: String) -> Result<String, BackendError> {
        let bad = |why: String| BackendError::BadValue { scheme: self.service.scheme, key: key.name.into(), why };
        if value.is_empty() {
            return Err(bad("it is empty".into()));
        }
        if value.chars().any(char::is_control) {
            return Err(bad("it has a control character in it".into()));
        }
        match key.is {
            Is::Text | Is::Secret => Ok(value),
            Is::Bool => match value.to_ascii_lowercase().as_str() {
                "true" | "on" | "yes" | "1" => Ok("true".into()),
                "false" | "off" | "no" | "0" => Ok("false".into()),
                _ => Err(bad(format!("'{value}' is neither true nor false"))),
            },
            Is::Number => match value.parse::<u32>() {
                Ok(n) => Ok(n.to_string()),
                Err(_) => Err(bad(format!("'{value}' is not a whole number"))),
            },
            Is::OneOf(choices) => match choices.iter().find(|c| c.eq_ignore_ascii_case(&value)) {
                Some(choice) => Ok((*choice).into()),
                None => Err(bad(format!("'{value}' is not one of {}", choices.join(", ")))),
            },
            Is::Url => {
                let host = match value.split_once("://") {
                    None => value.as_str(),
                    Some((scheme, host))
                        if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
                    {
                        host
                    }
                    Some((scheme, _)) => return Err(bad(format!("'{scheme}' is neither http nor https"))),
                };
                if host.contains('@') {
                    return Err(bad("user and password do not belong into it".into()));
                }
                if host.is_empty() || host.starts_with('/') || host.contains(['?', '#', ' ']) {
                    return Err(bad(format!("'{value}' is not http://HOST or https://HOST")));
                }
                Ok(value.trim_end_matches('/').to_owned())
            }
        }
    }

    fn complete(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<(), BackendError> {
        let scheme = self.service.scheme;
        let missing = |key: &'static str, how: String| Err(BackendError::Missing { scheme, key, how });
        let keys: &'static [Key] = self.service.keys;
        if let Some(key) = keys.iter().find(|k| k.required && !self.config.contains_key(k.name)) {
            let how = match (self.service.host, self.service.path) {
                _ if self.service.local => format!("{scheme}:///DIR or {scheme}://?root=/DIR"),
                (Host::Name(name), _) if name == key.name => {
                    format!("{scheme}://NAME/… or {scheme}://?{name}=NAME&…")
                }
                (Host::Authority { key: name, .. }, PathIs::NameThenRoot(first))
                    if name == key.name || first == key.name =>
                {
                    format!("{scheme}://HOST/NAME/… or {scheme}://?{name}=…&{first}=NAME&…")
                }
                (Host::Authority { key: name, .. }, _) if name == key.name => {
                    format!("{scheme}://HOST/… or {scheme}://?{name}=…&…")
                }
                _ => format!("add {}=…", key.name),
            };
            return missing(key.name, how);
        }
        if scheme == "s3" {
            if !self.config.contains_key("region") {
                match env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION")) {
                    Some(region) => self.set("region", region)?,
                    None => {
                        let how =
                            "add region=… or set AWS_REGION (servers without regions take any, such as us-east-1)";
                        return missing("region", how.into());
                    }
                }
            }
            let has = |key| self.config.contains_key(key);
            if has("access_key_id") != has("secret_access_key") {
                let key = if has("access_key_id") { "secret_access_key" } else { "access_key_id" };
                return missing(key, "the two keys go together".into());
            }
            // Nobody answers at 169.254.169.254 where an endpoint is given or keys are: a start-up that hangs on it.
            if (has("endpoint") || has("access_key_id")) && !has("disable_ec2_metadata") {
                self.set("disable_ec2_metadata", "true".into())?;
            }
        }
        if scheme == "sftp"
            && let Some(endpoint) = self.config.get_mut("endpoint").filter(|e| !e.contains("://"))
        {
            // Without it ssh(1) takes a port for a part of the name.
            endpoint.insert_str(0, "ssh://");
        }
        for (key, value) in &self.config {
            let is_name = matches!(self.service.host, Host::Name(k) if k == *key)
                || matches!(self.service.path, PathIs::NameThenRoot(k) if k == *key);
            let why = if is_name && value.contains('/') {
                format!("'{value}' has a slash in it")
            } else if *key == "root" && value.split('/').any(|c| matches!(c, "." | "..")) {
                format!("'{value}' has a '.' or '..' in it")
            } else if *key == "root" && self.service.local && !value.starts_with('/') {
                format!("'{value}' is not an absolute path")
            } else if *key == "root" && !self.service.local && value.split('/').any(|c| c.trim() != c) {
                format!("'{value}' has white space at the start or end of a component, which OpenDAL would take away")
            } else {
                continue;
            };
            return Err(BackendError::BadValue { scheme, key: (*key).into(), why });
        }
        Ok(())
    }

    fn set(&mut self, key: &'static str, value: String) -> Result<(), BackendError> {
        match self.config.insert(key, value) {
            None => Ok(()),
            Some(_) => Err(BackendError::Twice { scheme: self.service.scheme, key }),
        }
    }

    fn decode(&self, what: &str, text: &str) -> Result<String, BackendError> {
        let bad = |why: &str| BackendError::BadValue { scheme: self.service.scheme, key: what.into(), why: why.into() };
        let decoded = percent_decode_str(text).decode_utf8().map_err(|_| bad("it is not UTF-8"))?;
        if decoded.contains('\0') {
            return Err(bad("it has a NUL in it"));
        }
        Ok(decoded.into_owned())
    }

    fn malformed(&self, why: &str) -> BackendError {
        BackendError::Malformed { scheme: self.service.scheme, why: why.into() }
    }

    /// Whether the store can keep [`crate::store::Attributes`] with its objects; ask before
    /// [`super::BrokerOptions::posix_metadata`] is set.
    ///
    /// # Errors
    /// [`BackendError::NoAttributes`], with the reason.
    pub fn check_attributes(&self) -> Result<(), BackendError> {
        match self.service.keeps {
            Keeps::Metadata { .. } | Keeps::Natively => Ok(()),
            Keeps::Nowhere(why) => Err(BackendError::NoAttributes { scheme: self.service.scheme, why }),
        }
    }

    /// OpenDAL's name of the service.
    pub fn scheme(&self) -> &'static str {
        self.service.scheme
    }

    /// Whether `other` says the very same.
    pub(super) fn is_as(&self, other: &Backend) -> bool {
        self.service.scheme == other.service.scheme && self.config == other.config
    }

    /// Whether `other` is the same store, if reached in another way: its service, and what names the bucket and the
    /// directory in it, are equal. (Whether another endpoint leads to the same store, only its owner can know.) A store in this
    /// process's memory is gone with its operator.
    pub(super) fn is_same_store(&self, other: &Backend) -> bool {
        let names = |key: &str| {
            key == "root"
                || matches!(self.service.host, Host::Name(name) if name == key)
                || matches!(self.service.path, PathIs::NameThenRoot(name) if name == key)
        };
        let name = |backend: &Backend| -> Vec<(&'static str, String)> {
            let named = backend.config.iter().filter(|(key, _)| names(key));
            let trimmed = named.map(|(key, value)| (*key, value.trim_matches('/').to_owned()));
            trimmed.filter(|(_, value)| !value.is_empty()).collect()
        };
        let scheme = self.service.scheme;
        scheme == other.service.scheme && self.service.upload != Upload::Memory && name(self) == name(other)
    }

    /// Whether `other` differs in nothing but in who asks.
    pub(super) fn is_same_place(&self, other: &Backend) -> bool {
        let place = |backend: &Backend| -> Vec<(&'static str, String)> {
            let secret = |key: &str| is_secret(key) || self.service.key(key).is_some_and(|k| k.is == Is::Secret);
            let plain = backend.config.iter().filter(|(key, _)| !secret(key));
            plain.map(|(key, value)| (*key, value.clone())).collect()
        };
        self.service.scheme == other.service.scheme && place(self) == place(other)
    }

    /// The values that must appear nowhere.
    pub(super) fn secrets(&self) -> Vec<String> {
        let secret = |key: &str| self.service.key(key).is_some_and(|k| k.is == Is::Secret);
        self.config.iter().filter(|(key, _)| secret(key)).map(|(_, value)| value.clone()).collect()
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |key: &str| self.config.get(key).map(String::as_str);
        let name = match (self.service.host, self.service.path) {
            (Host::Name(key), _) | (_, PathIs::NameThenRoot(key)) => get(key),
            (Host::Authority { key, .. }, PathIs::Root) => get(key).map(|v| v.split("://").last().unwrap_or(v)),
            (Host::Nothing, PathIs::Root) => None,
        };
        let root = get("root").unwrap_or_default().trim_matches('/');
        write!(f, "{}://{}/{root}", self.service.scheme, name.unwrap_or_default())?;
        match (get("endpoint"), self.service.host) {
            (Some(endpoint), Host::Name(_)) => write!(f, " at {endpoint}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({self})")
    }
}

#[cfg(test)]
#[path = "url_tests.rs"]
mod tests;
