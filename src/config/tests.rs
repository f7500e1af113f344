//! What files say, and what is said of bad ones.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::broker::Backend;
use crate::cli::flags;

/// A directory with files in it.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let files_dir = Files { dir: tempfile::tempdir().unwrap() };
        for (name, text) in files {
            files_dir.write(name, text);
        }
        files_dir
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// With `f.toml` as the file and the directory itself as the directory.
    fn sources(&self) -> Sources {
        let file = Some(self.path("f.toml")).filter(|file| file.exists());
        Sources { config_file: file, config_dir: Some(self.dir.path().to_owned()), ..Sources::default() }
    }

    fn load(&self) -> Result<Settings, String> {
        self.load_from(&self.sources())
    }

    fn load_from(&self, sources: &Sources) -> Result<Settings, String> {
        let prefix = format!("{}/", self.dir.path().display());
        load(sources).map_err(|diagnostic| diagnostic.to_string().replace(&prefix, ""))
    }
}

fn load_text(text: &str) -> Result<Settings, String> {
    Files::new(&[("f.toml", text)]).load()
}

fn option<'a>(settings: &'a Settings, name: &str) -> Vec<&'a str> {
    let setting = settings.options.iter().find(|setting| setting.name == name);
    setting.map(|setting| setting.values.iter().map(String::as_str).collect()).unwrap_or_default()
}

fn url(settings: &Settings) -> String {
    settings.store.as_ref().and_then(|store| store.url.expose()).unwrap_or_default().to_owned()
}

const OLDEST: &str = r#"
[socket_settings]
socket_path = "/tmp/vfsd.sock"

[cache_settings]
enabled_cache = true
enabled_cache_write_back = false
enabled_cache_expiration = true
cache_expiration_time = "60s"

[storage_settings]
type = "s3"
bucket = "<bucket>"
region = "us-east-1"
endpoint = "https://s3.amazonaws.com"
access_key_id = "<access_key_id>"
secret_access_key = "<secret_access_key>"
"#;

#[test]
fn oldest_schema_is_read() {
    let settings = load_text(OLDEST).unwrap();
    assert_eq!(option(&settings, "socket-path"), ["/tmp/vfsd.sock"]);
    assert_eq!(option(&settings, "cache"), ["auto"]);
    assert_eq!((settings.cache_expiration, settings.options.len()), (Some(Duration::from_secs(60)), 3));
    assert_eq!(option(&settings, "writeback-delay"), ["0"]);
    assert_eq!(
        url(&settings),
        "s3://?bucket=%3Cbucket%3E&region=us-east-1&endpoint=https://s3.amazonaws.com\
         &access_key_id=%3Caccess_key_id%3E&secret_access_key=%3Csecret_access_key%3E"
    );
    let store = settings.store.as_ref().unwrap();
    assert!(store.visible.ends_with("&access_key_id=xxxxxxxxxxxxxxxxxxx&secret_access_key=xxxxxxxxxxxxxxxxxxxxxxx"));
    let shown: Vec<&str> = store.shown.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(shown, ["s3", "<bucket>", "us-east-1", "https://s3.amazonaws.com", MASK, MASK]);
    assert!(settings.exposed.is_empty());
    assert!(!format!("{settings:?}").contains("<secret_access_key>"));
}

#[test]
fn cache_settings_are_policies() {
    let time = |seconds| Some(Duration::from_secs(seconds));
    for (text, policy, expiration, delay) in [
        ("enabled_cache = false\ncache_expiration_time = \"9s\"", "never", None, ""),
        ("enabled_cache = true", "auto", None, ""),
        ("enabled_cache = true\nenabled_cache_expiration = true\ncache_expiration_time = \"1m\"", "auto", time(60), ""),
        ("enabled_cache = true\nenabled_cache_expiration = false\ncache_expiration_time = \"1m\"", "always", None, ""),
        ("cache_expiration_time = \"0s\"", "auto", time(0), ""),
        ("enabled_cache_write_back = true", "", None, "1000"),
        ("enabled_cache_write_back = true\n[options]\nwriteback_delay = \"5s\"", "", None, "5000"),
        ("enabled_cache_write_back = false\n[options]\nwriteback_delay = 0", "", None, "0"),
        ("enabled_cache = true\n[options]\ncache = \"metadata\"", "metadata", None, ""),
        ("cache_expiration_time = \"3s\"\n[options]\ncache = \"AUTO\"", "auto", time(3), ""),
    ] {
        let settings = load_text(&format!("[cache_settings]\n{text}\n")).unwrap();
        assert_eq!(option(&settings, "cache").concat(), policy, "{text}");
        assert_eq!(settings.cache_expiration, expiration, "{text}");
        assert_eq!(option(&settings, "writeback-delay").concat(), delay, "{text}");
    }
}

proptest::proptest! {
    /// A file with mistakes in it is read or refused, and what is said is one line without secrets.
    #[test]
    fn damaged_file_is_refused_in_one_line(
        edits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), "[^A-Za-z]?"), 1..4)
    ) {
        let mut text: Vec<char> = OLDEST.replace("<secret_access_key>", "CANARY").chars().collect();
        for (at, by) in edits {
            let at = at.index(text.len());
            // The secret itself stays whole, so that it can be looked for.
            if !text[at].is_ascii_uppercase() {
                text.splice(at..=at, by.chars());
            }
        }
        if let Err(said) = load_text(&text.into_iter().collect::<String>()) {
            proptest::prop_assert!(said.starts_with("f.toml:"), "{said}");
            proptest::prop_assert!(!said.contains('\n') && !said.contains("CANARY"), "{said}");
        }
    }
}

/// Each file, and what is said of it.
const BAD: &[(&str, &str)] = &[
    (
        "[storage_setting]\ntype = \"memory\"",
        "f.toml:1: storage_setting: unknown section; did you mean `storage_settings`?",
    ),
    ("\n\n[xyz]", "f.toml:3: xyz: unknown section"),
    ("readonly = true", "f.toml:1: readonly: stands outside of all sections: put it into [options]"),
    ("storage_settings = 3", "f.toml:1: storage_settings: expected sections [storage_settings], found an integer"),
    ("[shares]\nshared_dir = \"/a\"", "f.toml:1: shares: expected sections [[shares]], found a table"),
    ("[[cache_settings]]", "f.toml:1: cache_settings: expected sections [cache_settings], found tables"),
    (
        "[socket_settings]\nsocket_pth = \"/s\"",
        "f.toml:2: socket_settings.socket_pth: unknown key; did you mean `socket_path`?",
    ),
    (
        "[socket_settings]\nsocket_path = 3",
        "f.toml:2: socket_settings.socket_path: expected a string, found an integer",
    ),
    (
        "[socket_settings]\nsocket = \"/s\"",
        "f.toml:2: socket_settings.socket: is deprecated; [socket_settings] has socket_path",
    ),
    (
        "[cache_settings]\nenable_cache = true",
        "f.toml:2: cache_settings.enable_cache: unknown key; did you mean `enabled_cache`?",
    ),
    (
        "[cache_settings]\nenabled_cache = \"yes\"",
        "f.toml:2: cache_settings.enabled_cache: expected true or false, found a string",
    ),
    (
        "[cache_settings]\nenabled_cache = true\ncache_expiration_time = \"60x\"",
        "f.toml:3: cache_settings.cache_expiration_time: '60x' is no duration such as 500ms, 60s, 1m or 1h",
    ),
    (
        "[cache_settings]\ncache_expiration_time = 60",
        "f.toml:2: cache_settings.cache_expiration_time: expected a duration such as 60s, found an integer",
    ),
    (
        "[cache_settings]\nenabled_cache = false\n[options]\ncache = \"always\"",
        "f.toml:2: cache_settings.enabled_cache: means cache = \"never\", but [options] says \"always\"",
    ),
    (
        "[cache_settings]\nenabled_cache_write_back = false\n[options]\nwriteback_delay = \"2s\"",
        "f.toml:2: cache_settings.enabled_cache_write_back: says false, but [options] says writeback_delay = 2000",
    ),
    ("[options]\nwriteback_delay = \"2h\"", "f.toml:2: options.writeback_delay: 7200000 is not in 0..=3600000"),
    ("[storage_settings]\nbucket = \"b\"", "f.toml:1: storage_settings.type: is missing"),
    ("[storage_settings]\ntype = 3", "f.toml:2: storage_settings.type: expected a string, found an integer"),
    ("[storage_settings]\ntype = \"a/b\"", "f.toml:2: storage_settings.type: 'a/b' is no name of a service"),
    (
        "[storage_settings]\ntype = \"redis\"",
        "f.toml:2: storage_settings.type: the service 'redis' cannot list what it holds, so it cannot be shown as a tree \
         of directories",
    ),
    (
        "[storage_settings]\ntype = \"s3\"\nregion = \"r\"\nbuket = \"b\"",
        "f.toml:4: storage_settings.buket: unknown key of s3; did you mean `bucket`?",
    ),
    ("[storage_settings]\ntype = \"s3\"\nregion = \"r\"", "f.toml:1: storage_settings.bucket: is missing: s3 needs it"),
    (
        "[storage_settings]\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\naccess_key_id = \"CANARY\"",
        "f.toml:1: storage_settings.secret_access_key: is missing: s3 needs it beside access_key_id",
    ),
    (
        "[storage_settings]\ntype = \"s3\"\nbucket = \"b\"\naws_bucket = \"c\"",
        "f.toml:3: storage_settings.bucket: is given twice",
    ),
    (
        "[storage_settings]\ntype = \"s3\"\nbucket = [\"b\"]",
        "f.toml:3: storage_settings.bucket: expected a string, found a list",
    ),
    (
        "[storage_settings]\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\nskip_signature = \"maybe\"",
        "f.toml:5: storage_settings.skip_signature: bad value: 'maybe' is neither true nor false",
    ),
    (
        "[storage_settings]\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\nendpoint = \"http://me:CANARY@h\"",
        "f.toml:5: storage_settings.endpoint: bad value: user and password do not belong into it",
    ),
    (
        "[storage_settings]\ntype = \"fs\"\nroot = \"/dev/null\"",
        "f.toml:3: storage_settings.root: bad value: '/dev/null': it is not a directory",
    ),
    (
        "[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"env:OVFS_TEST_UNSET\"",
        "f.toml:4: storage_settings.password: the environment variable 'OVFS_TEST_UNSET' is not set",
    ),
    (
        "[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"file:relative\"",
        "f.toml:4: storage_settings.password: 'relative' is not an absolute path",
    ),
    (
        "[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"file:/does/not/exist\"",
        "f.toml:4: storage_settings.password: /does/not/exist: No such file or directory (os error 2)",
    ),
    ("[storage_settings]\ntype = \"memory\"\ntype = \"fs\"", "f.toml:3: type: duplicate key"),
    ("[options]\nuid = 1\n[options]\ngid = 1", "f.toml:3: options: duplicate key"),
    ("[options]\nread_only = true", "f.toml:2: options.read_only: unknown key; did you mean `readonly`?"),
    ("[options]\nreadonly = \"true\"", "f.toml:2: options.readonly: expected true or false, found a string"),
    ("[options]\ncache = \"bogus\"", "f.toml:2: options.cache: invalid cache policy"),
    ("[options]\nuid = \"0\"", "f.toml:2: options.uid: expected an integer, found a string"),
    ("[options]\nuid = -1", "f.toml:2: options.uid: -1 is not in 0..=4294967294"),
    ("[options]\nfile_mode = 644", "f.toml:2: options.file_mode: expected a string, found an integer"),
    ("[options]\nfile_mode = \"rw\"", "f.toml:2: options.file_mode: expected an octal number from 0 to 7777"),
    (
        "[options]\ncache_size = \"32Q\"",
        "f.toml:2: options.cache_size: unknown suffix in '32Q', expected: K, M, G, T, P",
    ),
    ("[options]\ncache_size = true", "f.toml:2: options.cache_size: expected a size such as 64M, found true or false"),
    (
        "[options]\nrequest_timeout = \"soon\"",
        "f.toml:2: options.request_timeout: 'soon' is no duration such as 500ms, 60s, 1m or 1h",
    ),
    (
        "[options]\nrequest_timeout = \"1500ms\"",
        "f.toml:2: options.request_timeout: '1500ms' is not a whole number of seconds",
    ),
    ("[options]\nrequest_timeout = \"25h\"", "f.toml:2: options.request_timeout: 90000 is not in 1..=86400"),
    (
        "[options]\ntranslate_uid = [1]",
        "f.toml:2: options.translate_uid: expected a list of strings, found something else in it",
    ),
    ("[options]\ntranslate_uid = [\"bogus:0:0:1\"]", "f.toml:2: options.translate_uid: Invalid ID map prefix bogus"),
    ("[options]\nsocket_path = \"s\"", "f.toml:2: options.socket_path: stands in [socket_settings]"),
    ("[options]\nprint_config = true", "f.toml:2: options.print_config: is for the command line only"),
    (
        "[socket_settings]\nsocket_path = \"s\"\n[options]\nfd = 3",
        "f.toml:4: options.fd: cannot stand beside socket_path",
    ),
    (
        "[options]\nkillpriv_v2 = true\nno_killpriv_v2 = true",
        "f.toml:3: options.no_killpriv_v2: cannot stand beside killpriv_v2",
    ),
    (
        "[options]\nbackend = \"s4://b?secret_access_key=CANARY\"",
        "f.toml:2: options.backend: unknown backend scheme 's4'; did you mean 's3'?",
    ),
    (
        "[options]\nbackend = \"memory://\"\n[storage_settings]\ntype = \"memory\"",
        "f.toml:4: storage_settings.type: the store is described twice: one of [storage_settings], backend and the mount \
         \"/\" is enough",
    ),
    ("[[shares]]\ntype = \"memory\"", "f.toml:1: shares.shared_dir: is missing"),
    ("[[shares]]\nshared_dir = \"/a\"", "f.toml:1: shares.type: is missing"),
    ("[[shares]]\nshared_dir = \"a\"\ntype = \"memory\"", "f.toml:2: shares.shared_dir: 'a' is not an absolute path"),
    (
        "[[shares]]\nshared_dir = \"/a\"\ntype = \"memory\"\nreadolny = true",
        "f.toml:4: shares.readolny: unknown key of memory; did you mean `readonly`?",
    ),
    (
        "[[shares]]\nshared_dir = \"/a\"\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\nregoin = \"r\"",
        "f.toml:6: shares.regoin: unknown key of s3; did you mean `region`?",
    ),
    (
        "[[shares]]\nshared_dir = \"/a\"\ntype = \"memory\"\n[[shares]]\nshared_dir = \"/a/\"\ntype = \"memory\"",
        "f.toml:5: shares.shared_dir: '/a/' is described twice, first at f.toml:2",
    ),
    (
        "[[shares]]\nshared_dir = \"/a\"\ntype = \"memory\"\ncache = \"never\"\ncache_expiration_time = \"1s\"",
        "f.toml:5: shares.cache_expiration_time: means cache = \"auto\", not \"never\"",
    ),
    ("[[mounts]]\ntype = \"memory\"", "f.toml:1: mounts.path: is missing"),
    ("[[mounts]]\npath = \"m\"\ntype = \"memory\"", "f.toml:2: mounts.path: 'm' does not begin with a slash"),
    (
        "[[mounts]]\npath = \"/a/../b\"\ntype = \"memory\"",
        "f.toml:2: mounts.path: '/a/../b' has a name in it that no directory can have",
    ),
    (
        "[[mounts]]\npath = \"/a\"\ntype = \"memory\"\n[[mounts]]\npath = \"//a/\"\ntype = \"memory\"",
        "f.toml:5: mounts.path: '/a' is described twice, first at f.toml:2",
    ),
    (
        "[[mounts]]\npath = \"/a\"\ntype = \"memory\"\nfile_mod = \"644\"",
        "f.toml:4: mounts.file_mod: unknown key of memory; did you mean `file_mode`?",
    ),
    ("[options]\nuid == 1", "f.toml:2: uid: extra `=`, expected nothing"),
    ("[options]\ntag = \"CANARY", "f.toml:2: tag: invalid basic string, expected `\"`"),
    ("[options\nuid = 1", "f.toml:1: options: unclosed table, expected `]`"),
];

#[test]
fn each_mistake_is_one_line_with_file_line_and_key() {
    for (text, expected) in BAD {
        let said = load_text(text).map(|settings| format!("{settings:?}")).unwrap_err();
        // Where a list of what is built in follows, that depends on the build.
        let said = said.replace(&built_in(), "");
        assert_eq!(said, *expected, "{text}");
        assert!(!said.contains('\n') && !said.contains("CANARY"), "{said}");
    }
}

fn built_in() -> String {
    let error = Backend::parse("nothing://").unwrap_err().to_string();
    error[error.find(" (built in: ").unwrap()..].to_owned()
}

#[test]
fn unknown_service_names_those_that_there_are() {
    let said = load_text("[storage_settings]\ntype = \"s4\"").unwrap_err();
    assert_eq!(
        said,
        format!("f.toml:2: storage_settings.type: unknown service 's4'{}; did you mean `s3`?", built_in())
    );
}

#[test]
fn what_cannot_be_read_is_said_without_a_line() {
    let files = Files::new(&[]);
    let sources = Sources { config_file: Some(files.path("f.toml")), ..files.sources() };
    assert_eq!(
        files.load_from(&sources).unwrap_err(),
        "f.toml: cannot be read: No such file or directory (os error 2)"
    );
    let sources = Sources { config_dir: Some(files.path("d")), ..Sources::default() };
    assert_eq!(files.load_from(&sources).unwrap_err(), "d: cannot be read: No such file or directory (os error 2)");
    fs::write(files.path("f.toml"), b"# one\n\n# \xff").unwrap();
    assert_eq!(files.load().unwrap_err(), "f.toml:3: is not UTF-8");
    files.write("f.toml", &"#\n".repeat(600_000));
    assert_eq!(files.load().unwrap_err(), "f.toml: is larger than 1 MiB");
}

#[test]
fn file_wins_over_directory_whose_last_file_wins_over_the_first() {
    let files = Files::new(&[
        ("ovfs.toml", "[options]\nuid = 1\ngid = 1\ncache_size = \"32M\"\nrequest_timeout = \"2m\"\nfd = 3"),
        ("conf.d/20.toml", "[options]\nuid = 3\ntranslate_uid = [\"map:0:1:1\", \"map:5:6:1\"]\ncache = \"always\""),
        ("conf.d/10.toml", "[options]\nuid = 2\ngid = 2\nannounce_submounts = true"),
        ("conf.d/30.txt", "not read"),
        ("conf.d/.40.toml", "not read"),
        (
            "f.toml",
            "[options]\ngid = 9\nno_announce_submounts = true\n[socket_settings]\nsocket_path = \"s\"\n\
             [cache_settings]\ncache_expiration_time = \"5s\"",
        ),
    ]);
    let settings = files.load().unwrap();
    for (name, expected) in [
        ("uid", "3"),
        ("gid", "9"),
        ("cache-size", "32M"),
        ("request-timeout", "120"),
        ("translate-uid", "map:0:1:1map:5:6:1"),
        ("socket-path", "s"),
        ("no-announce-submounts", "true"),
        // What contradicts something of higher precedence goes.
        ("announce-submounts", ""),
        ("fd", ""),
        ("cache", "auto"),
    ] {
        assert_eq!(option(&settings, name).concat(), expected, "{name}");
    }
    assert_eq!(settings.cache_expiration, Some(Duration::from_secs(5)));
    let names: Vec<&str> = settings.files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
    assert_eq!(names, ["ovfs.toml", "10.toml", "20.toml", "f.toml"]);
    files.write("f.toml", "[options]\ncache = \"never\"");
    assert_eq!(files.load().unwrap().cache_expiration, None);
}

#[test]
fn empty_sources_say_nothing() {
    let files = Files::new(&[("conf.d/README", "")]);
    assert!(files.sources().files().unwrap().is_empty());
    assert_eq!(files.load().unwrap(), Settings::default());
    assert!(!Files::new(&[("conf.d/a.toml", "")]).sources().files().unwrap().is_empty());
}

#[test]
fn share_is_found_by_its_directory() {
    let files = Files::new(&[("real/f", "")]);
    std::os::unix::fs::symlink(files.path("real"), files.path("link")).unwrap();
    let real = files.path("real").display().to_string();
    files.write(
        "ovfs.toml",
        &format!(
            "[options]\nuid = 1\ngid = 1\n[[shares]]\nshared_dir = \"{real}\"\ntype = \"memory\"\nroot = \"/a\"\n\
             readonly = true\nuid = 7\n[[shares]]\nshared_dir = \"/not/there\"\ntype = \"memory\"\nroot = \"/b\"\n"
        ),
    );
    let with = |dir: &Path| Sources { shared_dir: Some(dir.to_owned()), ..files.sources() };
    for dir in [files.path("real"), files.path("link"), files.path("real/"), files.path("link/../real")] {
        let settings = files.load_from(&with(&dir)).unwrap();
        assert_eq!(url(&settings), "memory://?root=/a", "{}", dir.display());
        assert_eq!((option(&settings, "uid"), option(&settings, "gid")), (vec!["7"], vec!["1"]));
        assert_eq!(option(&settings, "readonly"), ["true"]);
        assert_eq!(settings.share.unwrap().place.line, Some(5));
    }
    assert_eq!(url(&files.load_from(&with(Path::new("/not/there/"))).unwrap()), "memory://?root=/b");
    let none = files.load_from(&with(Path::new("/elsewhere"))).unwrap();
    assert!(none.store.is_none() && none.share.is_none() && option(&none, "readonly").is_empty());
    let backend = Sources { has_backend: true, ..with(&files.path("real")) };
    assert!(files.load_from(&backend).unwrap().store.is_none());
    files.write("f.toml", "[options]\nshared_dir = \"/not/there\"");
    assert_eq!(url(&files.load().unwrap()), "memory://?root=/b");
}

#[test]
fn entries_of_the_file_come_before_those_of_the_directory() {
    let share = |root: &str| format!("[[shares]]\nshared_dir = \"/x\"\ntype = \"memory\"\nroot = \"/{root}\"\n");
    let files = Files::new(&[("conf.d/a.toml", &share("dir")), ("f.toml", &share("file"))]);
    let sources = Sources { shared_dir: Some("/x".into()), ..files.sources() };
    assert_eq!(url(&files.load_from(&sources).unwrap()), "memory://?root=/file");
    files.write("f.toml", "[storage_settings]\ntype = \"memory\"\nroot = \"/storage\"");
    assert_eq!(url(&files.load_from(&sources).unwrap()), "memory://?root=/storage");
    files.write("f.toml", "");
    assert_eq!(url(&files.load_from(&sources).unwrap()), "memory://?root=/dir");
    files.write("conf.d/b.toml", &share("twice"));
    let said = files.load_from(&sources).unwrap_err();
    assert!(said.starts_with("conf.d/b.toml:2: shares.shared_dir: '/x' is described twice, first at "), "{said}");
}

#[test]
fn store_of_the_host_is_not_put_in_place_of_a_directory() {
    let files = Files::new(&[("ovfs.toml", "[storage_settings]\ntype = \"memory\"")]);
    assert!(files.load().unwrap().store.is_some());
    let sources = Sources { shared_dir: Some("/x".into()), ..files.sources() };
    assert!(files.load_from(&sources).unwrap().store.is_none());
}

#[test]
fn secrets_are_looked_up_where_they_are_needed_only() {
    let files = Files::new(&[("secret", "top secret/\n"), ("two", "two\n\n")]);
    let secret = files.path("secret").display().to_string();
    let store = |value: &str| format!("type = \"webdav\"\nendpoint = \"h\"\npassword = \"{value}\"\n");
    files.write("f.toml", &format!("[storage_settings]\n{}", store(&format!("file:{secret}"))));
    let settings = files.load().unwrap();
    assert!(url(&settings).ends_with("password=top%20secret/"), "{}", url(&settings));
    assert_eq!(settings.store.unwrap().shown[2].1, format!("file:{secret}"));
    files.write("secret", "another");
    assert!(url(&files.load().unwrap()).ends_with("password=another"));
    let path = std::env::var("PATH").unwrap();
    files.write("f.toml", &format!("[storage_settings]\n{}", store("env:PATH")));
    assert!(url(&files.load().unwrap()).contains(&path));
    let two = files.path("two").display().to_string();
    files.write("f.toml", &format!("[storage_settings]\n{}", store(&format!("file:{two}"))));
    assert_eq!(
        files.load().unwrap_err(),
        "f.toml:4: storage_settings.password: bad value: it has a control character in it"
    );
    files.write("f.toml", &format!("[[shares]]\nshared_dir = \"/x\"\n{}", store("env:OVFS_TEST_UNSET")));
    assert!(files.load().is_ok());
    let sources = Sources { shared_dir: Some("/x".into()), ..files.sources() };
    assert!(files.load_from(&sources).unwrap_err().starts_with("f.toml:5: shares.password: the environment variable"));
}

#[test]
fn file_with_secrets_for_everybody_is_remarked() {
    let plain = "[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"x\"";
    for (text, mode, exposed) in [
        (plain, 0o600, false),
        (plain, 0o640, false),
        (plain, 0o644, true),
        (plain, 0o604, true),
        ("[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"env:PATH\"", 0o644, false),
        ("[storage_settings]\ntype = \"sftp\"\nendpoint = \"h\"\nkey = \"/k\"", 0o644, false),
        ("[options]\nbackend = \"webdav://h?token=x\"", 0o644, true),
        ("[options]\nbackend = \"webdav://h\"", 0o644, false),
        ("[[shares]]\nshared_dir = \"/x\"\ntype = \"webdav\"\nendpoint = \"h\"\ntoken = \"x\"", 0o644, true),
    ] {
        let files = Files::new(&[("f.toml", text)]);
        fs::set_permissions(files.path("f.toml"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(files.load().unwrap().exposed.len(), usize::from(exposed), "{text} {mode:o}");
    }
}

#[test]
fn file_of_one_secret_for_everybody_is_remarked_too() {
    let files = Files::new(&[("secret", "x")]);
    let secret = files.path("secret");
    for (key, mode, exposed) in [("password", 0o640, false), ("password", 0o644, true), ("username", 0o644, false)] {
        let store = format!("type = \"webdav\"\nendpoint = \"h\"\n{key} = \"file:{}\"", secret.display());
        files.write("f.toml", &format!("[storage_settings]\n{store}"));
        fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
        let expected = if exposed { vec![secret.clone()] } else { Vec::new() };
        assert_eq!(files.load().unwrap().exposed, expected, "{key} {mode:o}");
    }
}

#[test]
fn settings_that_say_the_same_are_equal() {
    let first = load_text(OLDEST).unwrap();
    assert_eq!(load_text(&format!("# a remark\n{OLDEST}")).unwrap().store, first.store);
    assert_ne!(load_text(&OLDEST.replace("\"<secret_access_key>\"", "\"rotated\"")).unwrap().store, first.store);
    assert_ne!(load_text(&OLDEST.replace("60s", "61s")).unwrap().cache_expiration, first.cache_expiration);
}

#[test]
fn mounts_have_options_of_their_own_and_one_may_be_the_root() {
    let text = "[storage_settings]\ntype = \"memory\"\n[[mounts]]\npath = \"/models/\"\ntype = \"memory\"\nroot = \"/m\"\n\
                readonly = true\nuid = 5\nfile_mode = \"0600\"\ncache_expiration_time = \"500ms\"\n\
                request_timeout = \"5s\"\n[[mounts]]\npath = \"/a/b\"\ntype = \"memory\"\ncache = \"always\"";
    let settings = load_text(text).unwrap();
    assert!(settings.store.is_some() && settings.options.is_empty());
    let [models, other] = settings.mounts.as_slice() else { panic!("{:?}", settings.mounts) };
    assert_eq!((models.path.as_str(), other.path.as_str()), ("/models", "/a/b"));
    assert_eq!(models.cache_expiration, Some(Duration::from_millis(500)));
    assert_eq!(models.store.url.expose(), Some("memory://?root=/m"));
    let names: Vec<&str> = models.options.iter().map(|setting| setting.name.as_str()).collect();
    assert_eq!(names, ["cache", "file-mode", "readonly", "request-timeout", "uid"]);
    let root = load_text("[[mounts]]\npath = \"/\"\ntype = \"memory\"\nreadonly = true").unwrap();
    assert_eq!((url(&root).as_str(), option(&root, "readonly"), root.mounts.len()), ("memory://?", vec!["true"], 0));
}

#[test]
fn inline_tables_and_dotted_keys_are_sections_too() {
    let settings = load_text("storage_settings = { type = \"memory\", root = \"/x\" }\noptions.uid = 4").unwrap();
    assert_eq!((url(&settings).as_str(), option(&settings, "uid")), ("memory://?root=/x", vec!["4"]));
    let said = load_text("\nshares = [{ shared_dir = \"/a\", type = \"memory\", rot = 1 }]").unwrap_err();
    assert_eq!(said, "f.toml:2: shares.rot: unknown key of memory; did you mean `root`?");
}

#[test]
fn no_option_has_the_name_of_a_key_of_a_store() {
    let list = built_in();
    let services = list.trim_start_matches(" (built in: ").trim_end_matches(')').split(", ");
    let keys = schema::share_keys(flags::all()).into_iter().chain(schema::mount_keys(flags::all()));
    let keys: Vec<String> = keys.collect();
    for service in services {
        for key in &keys {
            let error = Backend::parse(&format!("{service}://?{key}=x")).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown key '{key}'")), "{service}: {key}: {error}");
        }
    }
}
