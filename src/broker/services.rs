//! Which services there are, what their URLs may say, and how their stores behave where OpenDAL's capabilities do not tell.
//!
//! OpenDAL ignores keys that it does not know and hosts that it has no use for, so a misspelt option would
//! be an option not given. This table is what `broker::url` holds a URL against.

/// How a value is checked and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Is {
    Text,
    /// Never shown again, in no error and no log.
    Secret,
    Bool,
    Number,
    /// `http://…` or `https://…`, or a bare host.
    Url,
    OneOf(&'static [&'static str]),
}

/// One key of a URL's query.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub is: Is,
    /// Its absence is an error.
    pub required: bool,
}

/// What stands between `://` and the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Host {
    /// Nothing may.
    Nothing,
    /// The bucket or container: the value of this key.
    Name(&'static str),
    /// `HOST[:PORT]`: the value of this key, with this before it.
    Authority { key: &'static str, prefix: &'static str },
}

/// What the path says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PathIs {
    /// The directory in the store that becomes the root.
    Root,
    /// First the value of this key, then the root.
    NameThenRoot(&'static str),
}

/// How an object gets its new content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    /// In pieces, and nothing shows until the end.
    Parts,
    /// In one request, so all of it at once.
    OneShot,
    /// In pieces that show at once: written under another name, then renamed.
    InPlace,
    /// Kept by reference in this very process.
    Memory,
}

/// Where a service keeps what POSIX programs know of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeps {
    /// In the user metadata of the object.
    Metadata {
        /// Most bytes of names and values.
        most: usize,
        /// Most bytes of one value.
        longest: usize,
        /// Whether listings tell them.
        listed: bool,
    },
    /// As every file system does.
    Natively,
    /// Nowhere, for this reason.
    Nowhere(&'static str),
}

/// What S3 and its likes take.
const TWO_KIB: Keeps = Keeps::Metadata { most: 2048, longest: 2048, listed: false };

/// What Google, Azure and Alibaba take.
const EIGHT_KIB: Keeps = Keeps::Metadata { most: 8192, longest: 8192, listed: false };

/// How many requests of each kind a mount works on at once; more wait. A store that hangs holds up nobody but itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    pub quick: usize,
    pub reads: usize,
    pub writes: usize,
}

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    pub scheme: &'static str,
    pub aliases: &'static [&'static str],
    pub host: Host,
    pub path: PathIs,
    pub keys: &'static [Key],
    pub compiled: bool,
    /// The service is a directory of this machine, served by `broker::local`.
    pub local: bool,
    pub upload: Upload,
    /// It is reached by HTTP, so that requests are counted as they are sent.
    pub http: bool,
    /// Directories exist on their own, without entries or marker objects.
    pub real_dirs: bool,
    /// Its ETags tell two contents apart.
    pub etag: bool,
    /// Its listings tell of an object what a question for it tells, but for headers: ETag, length and time. And one listing tells
    /// of a name whether it is an object, a directory, or both.
    pub lists_versions: bool,
    /// Renaming a directory is one request.
    pub renames_dirs: bool,
    pub keeps: Keeps,
    pub shares: Shares,
}

const fn key(name: &'static str, is: Is) -> Key {
    Key { name, aliases: &[], is, required: false }
}

const fn also(name: &'static str, is: Is, aliases: &'static [&'static str]) -> Key {
    Key { name, aliases, is, required: false }
}

const fn must(name: &'static str, is: Is, aliases: &'static [&'static str]) -> Key {
    Key { name, aliases, is, required: true }
}

use Is::{Bool, Number, OneOf, Secret, Text, Url};

const OBJECTS: Service = Service {
    scheme: "",
    aliases: &[],
    host: Host::Name("bucket"),
    path: PathIs::Root,
    keys: &[],
    compiled: false,
    local: false,
    http: true,
    upload: Upload::Parts,
    real_dirs: false,
    etag: true,
    lists_versions: false,
    renames_dirs: false,
    keeps: TWO_KIB,
    shares: Shares { quick: 64, reads: 96, writes: 16 },
};

/// All services that this source can be built with.
pub(super) static SERVICES: &[Service] = &[
    Service {
        scheme: "s3",
        aliases: &["s3a"],
        compiled: cfg!(feature = "s3"),
        keys: &[
            must("bucket", Text, &["aws_bucket", "aws_bucket_name", "bucket_name"]),
            key("root", Text),
            also("endpoint", Url, &["aws_endpoint", "aws_endpoint_url", "endpoint_url"]),
            also("region", Text, &["aws_region"]),
            also("profile", Text, &["aws_profile"]),
            also("access_key_id", Secret, &["aws_access_key_id"]),
            also("secret_access_key", Secret, &["aws_secret_access_key"]),
            also("session_token", Secret, &["aws_session_token", "aws_token", "token"]),
            key("role_arn", Text),
            key("external_id", Secret),
            key("role_session_name", Text),
            key("assume_role_duration_seconds", Number),
            key("disable_config_load", Bool),
            key("disable_ec2_metadata", Bool),
            also("skip_signature", Bool, &["allow_anonymous"]),
            also("server_side_encryption", Text, &["aws_server_side_encryption"]),
            also("server_side_encryption_aws_kms_key_id", Text, &["aws_sse_kms_key_id"]),
            key("server_side_encryption_customer_algorithm", Text),
            also("server_side_encryption_customer_key", Secret, &["aws_sse_customer_key_base64"]),
            key("server_side_encryption_customer_key_md5", Secret),
            key("default_storage_class", Text),
            also(
                "enable_virtual_host_style",
                Bool,
                &["aws_virtual_hosted_style_request", "virtual_hosted_style_request"],
            ),
            also("checksum_algorithm", OneOf(&["crc32c", "md5"]), &["aws_checksum_algorithm"]),
            key("disable_list_objects_v2", Bool),
            also("enable_request_payer", Bool, &["aws_request_payer", "request_payer"]),
            key("default_acl", Text),
        ],
        lists_versions: true,
        ..OBJECTS
    },
    Service {
        scheme: "fs",
        aliases: &["file"],
        compiled: cfg!(feature = "fs"),
        host: Host::Nothing,
        keys: &[must("root", Text, &[])],
        local: true,
        upload: Upload::InPlace,
        real_dirs: true,
        etag: false,
        renames_dirs: true,
        keeps: Keeps::Natively,
        http: false,
        ..OBJECTS
    },
    Service {
        scheme: "memory",
        compiled: cfg!(feature = "memory"),
        host: Host::Nothing,
        keys: &[key("root", Text)],
        upload: Upload::Memory,
        keeps: Keeps::Metadata { most: 8192, longest: 8192, listed: true },
        http: false,
        ..OBJECTS
    },
    Service {
        scheme: "gcs",
        aliases: &["gs"],
        compiled: cfg!(feature = "gcs"),
        keys: &[
            must("bucket", Text, &["google_bucket", "google_bucket_name", "bucket_name"]),
            key("root", Text),
            key("endpoint", Url),
            key("scope", Text),
            also(
                "service_account",
                Text,
                &["google_service_account", "google_service_account_path", "service_account_path"],
            ),
            also("credential", Secret, &["google_service_account_key", "service_account_key"]),
            also("credential_path", Text, &["google_application_credentials"]),
            key("predefined_acl", Text),
            key("default_storage_class", Text),
            also("skip_signature", Bool, &["google_skip_signature", "allow_anonymous"]),
            key("disable_vm_metadata", Bool),
            key("disable_config_load", Bool),
            key("token", Secret),
        ],
        keeps: EIGHT_KIB,
        lists_versions: true,
        ..OBJECTS
    },
    Service {
        scheme: "azblob",
        compiled: cfg!(feature = "azblob"),
        host: Host::Name("container"),
        keys: &[
            must("container", Text, &["azure_container_name", "container_name"]),
            key("root", Text),
            must("endpoint", Url, &["azure_storage_endpoint", "azure_endpoint"]),
            also("account_name", Text, &["azure_storage_account_name"]),
            also(
                "account_key",
                Secret,
                &[
                    "azure_storage_account_key",
                    "azure_storage_access_key",
                    "azure_storage_master_key",
                    "access_key",
                    "master_key",
                ],
            ),
            key("encryption_key", Secret),
            key("encryption_key_sha256", Secret),
            key("encryption_algorithm", OneOf(&["AES256"])),
            also("sas_token", Secret, &["azure_storage_sas_key", "azure_storage_sas_token", "sas_key"]),
            key("skip_signature", Bool),
        ],
        keeps: EIGHT_KIB,
        ..OBJECTS
    },
    Service {
        scheme: "azdls",
        aliases: &["abfs", "abfss"],
        compiled: cfg!(feature = "azdls"),
        host: Host::Authority { key: "endpoint", prefix: "https://" },
        path: PathIs::NameThenRoot("filesystem"),
        keys: &[
            must("filesystem", Text, &[]),
            key("root", Text),
            must("endpoint", Url, &[]),
            key("account_name", Text),
            key("account_key", Secret),
            key("client_secret", Secret),
            key("tenant_id", Text),
            key("client_id", Text),
            key("sas_token", Secret),
            key("authority_host", Url),
            key("enable_hns", Bool),
        ],
        upload: Upload::InPlace,
        real_dirs: true,
        renames_dirs: true,
        keeps: Keeps::Nowhere(
            "Data Lake Storage has modes and owners of its own, in access lists that OpenDAL does not reach",
        ),
        ..OBJECTS
    },
    Service {
        scheme: "webdav",
        compiled: cfg!(feature = "webdav"),
        host: Host::Authority { key: "endpoint", prefix: "https://" },
        keys: &[
            must("endpoint", Url, &[]),
            key("root", Text),
            key("username", Text),
            key("password", Secret),
            key("token", Secret),
            key("disable_create_dir", Bool),
            key("user_metadata_prefix", Text),
            key("user_metadata_uri", Text),
        ],
        upload: Upload::OneShot,
        real_dirs: true,
        renames_dirs: true,
        keeps: Keeps::Nowhere(
            "WebDAV sets properties only after the new content is in place, and few servers keep them",
        ),
        ..OBJECTS
    },
    Service {
        scheme: "sftp",
        compiled: cfg!(feature = "sftp"),
        host: Host::Authority { key: "endpoint", prefix: "ssh://" },
        keys: &[
            must("endpoint", Text, &[]),
            key("root", Text),
            key("user", Text),
            key("key", Text),
            key("known_hosts_strategy", OneOf(&["strict", "accept", "add"])),
        ],
        upload: Upload::InPlace,
        real_dirs: true,
        etag: false,
        renames_dirs: true,
        // Each is a connection of its own, and a server refuses more than ten that come about at once (MaxStartups).
        shares: Shares { quick: 4, reads: 3, writes: 2 },
        keeps: Keeps::Nowhere("OpenDAL reaches neither modes nor owners nor times over SFTP"),
        http: false,
        ..OBJECTS
    },
    Service {
        scheme: "hdfs-native",
        aliases: &["hdfs_native"],
        compiled: cfg!(feature = "hdfs-native"),
        host: Host::Authority { key: "name_node", prefix: "hdfs://" },
        keys: &[must("name_node", Text, &[]), key("root", Text)],
        upload: Upload::InPlace,
        real_dirs: true,
        etag: false,
        // OpenDAL first creates a file at the target, which HDFS will not replace by a directory.
        renames_dirs: false,
        keeps: Keeps::Nowhere("OpenDAL reaches neither modes nor owners nor times in HDFS"),
        http: false,
        ..OBJECTS
    },
    Service {
        scheme: "oss",
        compiled: cfg!(feature = "oss"),
        keys: &[
            must("bucket", Text, &[]),
            key("root", Text),
            must("endpoint", Url, &[]),
            key("addressing_style", OneOf(&["virtual", "path", "cname"])),
            key("server_side_encryption", Text),
            key("server_side_encryption_key_id", Text),
            also("skip_signature", Bool, &["allow_anonymous"]),
            key("access_key_id", Secret),
            key("access_key_secret", Secret),
            key("security_token", Secret),
            key("role_arn", Text),
            key("role_session_name", Text),
            key("oidc_provider_arn", Text),
            key("oidc_token_file", Text),
            key("sts_endpoint", Text),
            key("external_id", Secret),
        ],
        keeps: EIGHT_KIB,
        lists_versions: true,
        ..OBJECTS
    },
    Service {
        scheme: "cos",
        aliases: &["cosn"],
        compiled: cfg!(feature = "cos"),
        keys: &[
            must("bucket", Text, &[]),
            key("root", Text),
            must("endpoint", Url, &[]),
            key("secret_id", Secret),
            key("secret_key", Secret),
            key("security_token", Secret),
            key("disable_config_load", Bool),
        ],
        ..OBJECTS
    },
    Service {
        scheme: "obs",
        compiled: cfg!(feature = "obs"),
        keys: &[
            must("bucket", Text, &[]),
            key("root", Text),
            must("endpoint", Url, &[]),
            key("access_key_id", Secret),
            key("secret_access_key", Secret),
        ],
        ..OBJECTS
    },
    Service {
        scheme: "b2",
        compiled: cfg!(feature = "b2"),
        keys: &[
            must("bucket", Text, &[]),
            must("bucket_id", Text, &[]),
            key("root", Text),
            must("application_key_id", Secret, &[]),
            must("application_key", Secret, &[]),
        ],
        etag: false,
        keeps: Keeps::Metadata { most: 2048, longest: 2048, listed: true },
        ..OBJECTS
    },
    Service {
        scheme: "swift",
        compiled: cfg!(feature = "swift"),
        host: Host::Authority { key: "endpoint", prefix: "https://" },
        path: PathIs::NameThenRoot("container"),
        keys: &[
            must("endpoint", Url, &[]),
            must("container", Text, &[]),
            key("root", Text),
            key("token", Secret),
            key("temp_url_key", Secret),
            key("temp_url_hash_algorithm", OneOf(&["sha1", "sha256", "sha512"])),
        ],
        keeps: Keeps::Metadata { most: 4096, longest: 256, listed: false },
        ..OBJECTS
    },
];

/// Services of OpenDAL that keep values by key and answer no listing, so they cannot be a tree of directories.
const UNLISTABLE: &[&str] = &[
    "redis",
    "memcached",
    "http",
    "https",
    "mongodb",
    "gridfs",
    "postgresql",
    "sqlite",
    "d1",
    "cloudflare-kv",
    "tikv",
    "foundationdb",
    "ipfs",
    "cacache",
    "dashmap",
    "mini-moka",
    "moka",
    "redb",
    "persy",
    "surrealdb",
    "ghac",
    "vercel-artifacts",
    "foyer",
];

/// Services of OpenDAL that can list, but that this source is not built with.
const NOT_BUILT: &[&str] = &[
    "aliyun-drive",
    "alluxio",
    "azfile",
    "compfs",
    "dbfs",
    "dropbox",
    "etcd",
    "ftp",
    "gcs-grpc",
    "gdrive",
    "github",
    "goosefs",
    "hdfs",
    "hf",
    "ipmfs",
    "koofr",
    "lakefs",
    "monoiofs",
    "mysql",
    "onedrive",
    "opfs",
    "pcloud",
    "rocksdb",
    "seafile",
    "sled",
    "tos",
    "upyun",
    "vercel-blob",
    "webhdfs",
    "yandex-disk",
];

/// What becomes of a scheme.
#[derive(Debug)]
pub(super) enum Lookup {
    Found(&'static Service),
    LeftOut(&'static Service),
    CannotList,
    NotBuilt,
    Unknown { nearest: Option<&'static str> },
}

/// Finds the service of a scheme in lower case.
pub(super) fn lookup(scheme: &str) -> Lookup {
    if let Some(service) = SERVICES.iter().find(|s| s.scheme == scheme || s.aliases.contains(&scheme)) {
        return if service.compiled { Lookup::Found(service) } else { Lookup::LeftOut(service) };
    }
    if UNLISTABLE.contains(&scheme) {
        return Lookup::CannotList;
    }
    if NOT_BUILT.contains(&scheme) {
        return Lookup::NotBuilt;
    }
    let known = SERVICES.iter().filter(|s| s.compiled).flat_map(|s| s.aliases.iter().copied().chain([s.scheme]));
    Lookup::Unknown { nearest: nearest(scheme, known) }
}

/// The schemes that are compiled in, joined by commas.
pub(super) fn compiled() -> String {
    let schemes: Vec<_> = SERVICES.iter().filter(|s| s.compiled).map(|s| s.scheme).collect();
    schemes.join(", ")
}

impl Service {
    /// The key of this name or alias.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        let keys: &'static [Key] = self.keys;
        keys.iter().find(|k| k.name == name || k.aliases.contains(&name))
    }

    /// The key that `name` probably means.
    pub fn nearest_key(&self, name: &str) -> Option<&'static str> {
        let keys: &'static [Key] = self.keys;
        nearest(name, keys.iter().map(|k| k.name))
    }
}

/// The candidate with the fewest edits from `word`, if that is less than half the word.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (word.chars().count() / 2).min(6);
    candidates.map(|c| (edits(word, c), c)).filter(|(n, _)| *n <= most).min_by_key(|(n, _)| *n).map(|(_, c)| c)
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_offered_only_when_near() {
        assert_eq!(nearest("buket", ["bucket", "root"].into_iter()), Some("bucket"));
        assert_eq!(nearest("endpont", ["bucket", "endpoint"].into_iter()), Some("endpoint"));
        assert_eq!(nearest("zzz", ["bucket", "root"].into_iter()), None);
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
    }

    #[test]
    fn no_word_means_two_keys() {
        for service in SERVICES {
            let mut words: Vec<_> =
                service.keys.iter().flat_map(|k| k.aliases.iter().copied().chain([k.name])).collect();
            let all = words.len();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), all, "{}", service.scheme);
            if let Host::Name(k) | Host::Authority { key: k, .. } = service.host {
                assert!(service.key(k).is_some(), "{}", service.scheme);
            }
        }
    }
}
