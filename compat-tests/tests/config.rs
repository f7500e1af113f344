//! Files of settings, from outside: what a daemon that is given them does, prints and refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::launch::{Exit, Finished, Launch, Scratch, Which, binary};
use ovfs_compat_tests::mounted::guest;
use ovfs_compat_tests::stores::{ACCESS_KEY, Kind, SECRET_KEY, TestStore};

/// What a secret contains that must be seen nowhere.
const CANARY: &str = "cAnArY41d8";

fn ovfs() -> Launch {
    Launch::new(binary(Which::Ovfs))
}

/// Writes a file that only its owner can read.
fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("make the folder");
    fs::write(path, text).expect("write the file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set its mode");
}

/// What `--print-config` says of a key.
fn printed<'a>(finished: &'a Finished, key: &str) -> Option<&'a str> {
    assert_eq!((finished.exit, finished.stderr.as_str()), (Exit::Code(0), ""), "{}", finished.stdout);
    let start = format!("{key} = ");
    finished.stdout.lines().find_map(|line| line.strip_prefix(&start))
}

/// The schema of old, word for word, with the values of this server.
fn oldest(socket: &Path, port: u16, access_key: &str, secret_key: &str) -> String {
    format!(
        r#"
[socket_settings]
socket_path = "{}"

[cache_settings]
enabled_cache = true
enabled_cache_write_back = false
enabled_cache_expiration = true
cache_expiration_time = "60s"

[storage_settings]
type = "s3"
bucket = "bucket"
region = "us-east-1"
endpoint = "http://127.0.0.1:{port}"
access_key_id = "{access_key}"
secret_access_key = "{secret_key}"
"#,
        socket.display()
    )
}

#[test]
fn oldest_schema_alone_serves_a_guest_from_s3() {
    let store = TestStore::start(Kind::Moto);
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &oldest(&socket, store.port(), ACCESS_KEY, SECRET_KEY));
    store.put("outside", b"hello guest");
    let mut daemon = ovfs().arg("--config-file").arg(&file).start();
    let mut guest = guest(&mut daemon, &socket);
    assert_eq!(guest.read_file("outside").expect("read"), b"hello guest");
    guest.write_file("inside", b"hello store").expect("write");
    assert_eq!(store.get("inside").as_deref(), Some(&b"hello store"[..]));
    let entry = guest.lookup(ROOT, b"outside").expect("lookup");
    let minute = 60_000_000_000;
    assert_eq!((entry.entry_timeout_ns, entry.attr_timeout_ns), (minute, minute), "the file's expiration time");
    drop(guest);
    let finished = daemon.finish();
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
    assert!(!finished.stderr.contains("WARN  ovfs]") && !finished.stderr.contains(SECRET_KEY), "{}", finished.stderr);
}

#[test]
fn command_line_wins_over_file_over_directory_over_built_in() {
    let scratch = Scratch::new();
    let (dir, file) = (scratch.join("etc"), scratch.join("f.toml"));
    write(&dir.join("ovfs.toml"), "[options]\nuid = 1\ngid = 1\ncapacity = \"1G\"\nrequest_timeout = \"1m\"");
    write(&dir.join("conf.d/20-b.toml"), "[options]\ncapacity = \"3G\"\ncache_size = \"32M\"");
    write(&dir.join("conf.d/10-a.toml"), "[options]\ncapacity = \"2G\"");
    write(&file, "[options]\ngid = 2\ncache_size = \"64M\"\n[storage_settings]\ntype = \"memory\"");
    let with = |args: &[&str]| {
        let launch = ovfs().arg("--config-dir").arg(&dir).arg("--config-file").arg(&file);
        launch.arg("--print-config").args(args).run()
    };
    let files = with(&[]);
    let line = with(&["--gid", "3", "--cache-size", "128M", "--cache=never"]);
    for (key, of_files, of_line) in [
        ("umask", "\"0\"", "\"0\""),
        ("uid", "1", "1"),
        ("request_timeout", "60", "60"),
        ("capacity", "\"3G\"", "\"3G\""),
        ("gid", "2", "3"),
        ("cache_size", "\"64M\"", "\"128M\""),
        ("cache", "\"auto\"", "\"never\""),
        ("enabled_cache", "true", "false"),
    ] {
        assert_eq!(printed(&files, key), Some(of_files), "{key}");
        assert_eq!(printed(&line, key), Some(of_line), "{key}");
    }
}

#[test]
fn what_is_printed_is_a_file_that_says_the_same() {
    let scratch = Scratch::new();
    let (first, again) = (scratch.join("first.toml"), scratch.join("again.toml"));
    let args = [
        "--fd=3",
        "--tag=t\"\\x",
        "--cache=metadata",
        "--posix-acl=never",
        "--translate-uid=map:0:1:1",
        "--translate-uid=map:5:6:1",
        "--no-announce-submounts",
        "--killpriv-v2",
        "--modcaps=-mknod",
        "--file-mode=0600",
        "--writeback-delay=500",
        "--cache-dirty-ratio=30",
        "--cache-block-size=16K",
        "--backend=memory:///x",
        "-o",
        "no_readdirplus,loglevel=err",
    ];
    let printed_first = ovfs().arg("--print-config").args(args).run();
    assert_eq!(printed(&printed_first, "no_readdirplus"), Some("true"));
    assert_eq!(printed(&printed_first, "enabled_cache_write_back"), Some("true"));
    assert_eq!(printed(&printed_first, "log_level"), Some("\"error\""));
    write(&first, &printed_first.stdout);
    let printed_again = ovfs().arg("--print-config").arg("--config-file").arg(&first).run();
    assert_eq!(printed(&printed_again, "translate_uid"), Some("[\"map:0:1:1\", \"map:5:6:1\"]"));
    let body = |finished: &Finished| {
        finished.stdout.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    assert_eq!(body(&printed_again), body(&printed_first));
    write(&again, &printed_again.stdout);
    assert_eq!(body(&ovfs().arg("--print-config").arg("--config-file").arg(&again).run()), body(&printed_first));
}

#[test]
fn secrets_are_masked_wherever_something_is_shown() {
    let scratch = Scratch::new();
    let (file, secret) = (scratch.join("f.toml"), scratch.join("secret"));
    write(&secret, &format!("{CANARY}\n"));
    let text = |password: &str, token: &str| {
        format!(
            "[storage_settings]\ntype = \"webdav\"\nendpoint = \"h\"\npassword = \"{password}\"\ntoken = \"{token}\""
        )
    };
    write(&file, &text(CANARY, &format!("file:{}", secret.display())));
    let finished = ovfs().arg("--print-config").arg("--config-file").arg(&file).run();
    assert_eq!(printed(&finished, "password"), Some("\"********\""));
    assert_eq!(printed(&finished, "token"), Some(format!("\"file:{}\"", secret.display()).as_str()));
    assert_eq!(printed(&finished, "endpoint"), Some("\"h\""));
    assert!(!finished.stdout.contains(CANARY), "{}", finished.stdout);
    write(&file, &format!("[options]\nbackend = \"webdav://h?token={CANARY}\""));
    let finished = ovfs().arg("--print-config").arg("--config-file").arg(&file).run();
    assert_eq!(printed(&finished, "backend"), Some("\"webdav://h?token=xxxxxxxxxx\""));
    let finished = ovfs().arg("--print-config").arg(format!("--backend=webdav://h?token={CANARY}")).run();
    assert_eq!(printed(&finished, "backend"), Some("\"webdav://h?token=xxxxxxxxxx\""));
    for bad in [text(CANARY, "env:NOT_THERE"), format!("{}\n{CANARY}x", text(CANARY, "y")), text(CANARY, "y\\u0007")] {
        write(&file, &bad);
        let finished = ovfs().arg("--config-file").arg(&file).run();
        assert_eq!(finished.exit, Exit::Code(2), "{}", finished.stderr);
        assert!(!finished.stderr.contains(CANARY), "{}", finished.stderr);
    }
}

#[test]
fn a_bad_file_is_one_line_and_the_exit_code_of_a_bad_option() {
    let scratch = Scratch::new();
    let (file, dir) = (scratch.join("f.toml"), scratch.join("etc"));
    let socket = scratch.join("run/s");
    for (text, said) in [
        ("[cache_setings]", ":1: cache_setings: unknown section; did you mean `cache_settings`?"),
        ("\n[options]\nreadnoly = true", ":3: options.readnoly: unknown key; did you mean `readonly`?"),
        ("[options]\nreadonly = 1", ":2: options.readonly: expected true or false, found an integer"),
        (
            "[cache_settings]\ncache_expiration_time = \"1 hour\"",
            ":2: cache_settings.cache_expiration_time: '1 hour' is no duration such as 500ms, 60s, 1m or 1h",
        ),
        ("[options]\ncache_size = \"1X\"", ":2: options.cache_size: unknown suffix in '1X', expected: K, M, G, T, P"),
    ] {
        write(&file, text);
        let with_file = ovfs().arg("--config-file").arg(&file).arg("--socket-path").arg(&socket).run();
        write(&dir.join("conf.d/x.toml"), text);
        let with_dir = ovfs().arg("--config-dir").arg(&dir).arg("--shared-dir").arg(scratch.join("sh")).run();
        for (finished, file) in [(with_file, file.clone()), (with_dir, dir.join("conf.d/x.toml"))] {
            assert_eq!((finished.exit, finished.stdout.as_str()), (Exit::Code(2), ""));
            assert_eq!(finished.stderr, format!("{}{said}\n", file.display()));
        }
    }
    assert!(!socket.exists());
    let missing = ovfs().args(["--config-dir", "/does/not/exist", "--print-config"]).run();
    assert_eq!(missing.exit, Exit::Code(2));
    assert_eq!(missing.stderr, "/does/not/exist: cannot be read: No such file or directory (os error 2)\n");
    let capabilities = ovfs().args(["--config-dir", "/does/not/exist", "--print-capabilities"]).run();
    assert_eq!((capabilities.exit, capabilities.stderr.as_str()), (Exit::Code(0), ""));
    let nothing = ovfs().args(["--config-dir"]).arg(scratch.join("sh")).run();
    assert!(nothing.stderr.contains("the following required arguments were not provided:"), "{}", nothing.stderr);
}

/// A directory of settings in which `sh` of the scratch directory is a store.
fn with_share(scratch: &Scratch, store: &TestStore) -> PathBuf {
    let dir = scratch.join("etc");
    let root = store.url().trim_start_matches("fs://").to_owned();
    let text = format!(
        "[[shares]]\nshared_dir = \"/elsewhere\"\ntype = \"s3\"\nbucket = \"b\"\nregion = \"r\"\n\
         access_key_id = \"env:NOT_THERE\"\nsecret_access_key = \"env:NOT_THERE\"\n\n[[shares]]\n\
         shared_dir = \"{}\"\ntype = \"fs\"\nroot = \"{root}\"\nuid = 77\nfile_mode = \"0640\"\n",
        scratch.join("sh").display()
    );
    write(&dir.join("conf.d/shares.toml"), &text);
    dir
}

#[test]
fn shared_directory_with_an_entry_is_its_store() {
    let (scratch, store) = (Scratch::new(), TestStore::start(Kind::Fs));
    store.put("object", b"of the store");
    let dir = with_share(&scratch, &store);
    std::os::unix::fs::symlink(scratch.join("sh"), scratch.join("link")).expect("make a link");
    for (flag, name) in [("--shared-dir", "sh"), ("--shared-dir", "link"), ("-o", "sh")] {
        let socket = scratch.join("run/s");
        let value = format!("{}{}", if flag == "-o" { "source=" } else { "" }, scratch.join(name).display());
        let launch = ovfs().arg("--socket-path").arg(&socket).arg("--config-dir").arg(&dir);
        let mut daemon = launch.args([flag, &value]).start();
        let mut guest = guest(&mut daemon, &socket);
        assert_eq!(guest.list("").expect("list"), ["object"], "{name}");
        assert_eq!(guest.read_file("object").expect("read"), b"of the store");
        let attr = guest.lookup(ROOT, b"object").expect("lookup").attr;
        assert_eq!((attr.uid, attr.mode & 0o7777), (77, 0o640));
        drop(guest);
        let finished = daemon.finish();
        let entry = format!(
            "{}: the [[shares]] entry at {}:10 applies",
            scratch.join("sh").display(),
            dir.join("conf.d/shares.toml").display()
        );
        let taken: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("[[shares]]")).collect();
        assert!(matches!(taken[..], [line] if line.contains("INFO") && line.contains(&entry)), "{}", finished.stderr);
    }
}

#[test]
fn entry_applies_to_what_libvirt_passes() {
    let (scratch, store) = (Scratch::new(), TestStore::start(Kind::Fs));
    store.put("object", b"of the store");
    let dir = with_share(&scratch, &store);
    let socket = scratch.join("run/s");
    let listener = UnixListener::bind(&socket).expect("listen");
    let shared = format!("--shared-dir={}", scratch.join("sh").display());
    let launch = ovfs().pass_fd(listener, 23).args(["--fd=23", &shared, "--cache", "always", "--xattr"]);
    let mut daemon = launch.arg("--config-dir").arg(&dir).start();
    let mut guest = guest(&mut daemon, &socket);
    assert_eq!(guest.read_file("object").expect("read"), b"of the store");
    drop(guest);
    assert_eq!(daemon.finish().exit, Exit::Code(0));
}

#[test]
fn directory_of_the_host_is_read_without_being_named() {
    let scratch = Scratch::new();
    let shared = scratch.join("sh").display().to_string();
    write(&scratch.join("ovfs.toml"), &format!("[[shares]]\nshared_dir = \"{shared}\"\ntype = \"memory\"\nuid = 9\n"));
    // In a mount namespace of its own, so that this host's stays as it is.
    let script = "mkdir etc && cp -a /etc/passwd /etc/group etc && mkdir etc/ovfs && cp ovfs.toml etc/ovfs && \
                  mount --bind etc /etc && exec \"$@\"";
    let run = |args: &[&str]| {
        let prefix = ["unshare", "--mount", "sh", "-c", script, "sh"];
        let finished = ovfs().through(prefix).cwd(scratch.path()).arg("--print-config").args(args).run();
        fs::remove_dir_all(scratch.join("etc")).expect("remove the copy");
        finished
    };
    let finished = run(&["--shared-dir", &shared]);
    assert_eq!((printed(&finished, "type"), printed(&finished, "uid")), (Some("\"memory\""), Some("9")));
    assert!(finished.stdout.starts_with("# from /etc/ovfs/ovfs.toml\n"), "{}", finished.stdout);
    assert_eq!(printed(&run(&["--shared-dir", "/"]), "type"), None);
}

#[test]
fn directory_can_be_shared_by_a_file_alone() {
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("f.toml"), scratch.join("run/s"));
    let text = format!(
        "[socket_settings]\nsocket_path = \"{}\"\n[options]\nshared_dir = \"{}\"\nreadonly = true\nuid = 5\n\
         [cache_settings]\ncache_expiration_time = \"1500ms\"\n",
        socket.display(),
        scratch.join("sh").display()
    );
    write(&file, &text);
    let mut daemon = ovfs().arg("--config-file").arg(&file).start();
    let mut guest = guest(&mut daemon, &socket);
    assert_eq!(guest.read_file("f").expect("read"), b"hello\n");
    assert!(guest.write_file("g", b"x").is_err(), "it is read-only");
    assert_eq!(guest.lookup(ROOT, b"f").expect("lookup").entry_timeout_ns, 1_500_000_000);
    drop(guest);
    assert_eq!(daemon.finish().exit, Exit::Code(0));
}

#[test]
fn command_line_wins_over_the_entry_of_a_share() {
    let (scratch, store) = (Scratch::new(), TestStore::start(Kind::Fs));
    let dir = with_share(&scratch, &store);
    let with = |args: &[&str]| ovfs().arg("--config-dir").arg(&dir).arg("--print-config").args(args).run();
    let shared = scratch.join("sh").display().to_string();
    let entry = with(&["--shared-dir", &shared]);
    assert_eq!((printed(&entry, "type"), printed(&entry, "uid")), (Some("\"fs\""), Some("77")));
    let line = with(&["--shared-dir", &shared, "--uid", "5"]);
    assert_eq!((printed(&line, "type"), printed(&line, "uid")), (Some("\"fs\""), Some("5")));
    let backend = with(&["--shared-dir", &shared, "--backend", "memory://"]);
    assert_eq!((printed(&backend, "type"), printed(&backend, "backend")), (None, Some("\"memory://\"")));
    assert_eq!(printed(&backend, "uid"), Some("0"));
}

#[test]
fn shared_directory_without_an_entry_is_passed_through() {
    let (scratch, store) = (Scratch::new(), TestStore::start(Kind::Fs));
    let dir = with_share(&scratch, &store);
    fs::create_dir(scratch.join("other")).expect("make a directory");
    fs::write(scratch.join("other/g"), "of the host").expect("write a file");
    let socket = scratch.join("run/s");
    let launch = ovfs().arg("--socket-path").arg(&socket).arg("--config-dir").arg(&dir);
    let mut daemon = launch.arg("--shared-dir").arg(scratch.join("other")).start();
    let mut guest = guest(&mut daemon, &socket);
    assert_eq!(guest.read_file("g").expect("read"), b"of the host");
    drop(guest);
    let finished = daemon.finish();
    assert!(!finished.stderr.contains("[[shares]]") && !finished.stderr.contains("WARN  ovfs]"), "{}", finished.stderr);
}

#[test]
fn secrets_come_from_environment_file_or_credential() {
    // This server checks signatures.
    let store = TestStore::start(Kind::S3sFs);
    store.put("f", b"signed");
    let scratch = Scratch::new();
    let (file, socket, secret) = (scratch.join("f.toml"), scratch.join("run/s"), scratch.join("credentials/secret"));
    write(&secret, &format!("{SECRET_KEY}\n"));
    let in_file = format!("file:{}", secret.display());
    for source in ["env:THE_SECRET", &in_file, "credential:secret"] {
        write(&file, &oldest(&socket, store.port(), "env:THE_KEY", source));
        let launch = ovfs().arg("--config-file").arg(&file).env("THE_KEY", ACCESS_KEY);
        let launch = match source {
            "env:THE_SECRET" => launch.env("THE_SECRET", SECRET_KEY),
            "credential:secret" => launch.env("CREDENTIALS_DIRECTORY", scratch.join("credentials")),
            _ => launch,
        };
        let mut daemon = launch.start();
        let mut guest = guest(&mut daemon, &socket);
        assert_eq!(guest.read_file("f").expect("read"), b"signed", "{source}");
        drop(guest);
        let stderr = daemon.finish().stderr;
        assert!(!stderr.contains(SECRET_KEY) && !stderr.contains("WARN  ovfs]"), "{stderr}");
    }
    let finished = ovfs().arg("--config-file").arg(&file).env("THE_KEY", ACCESS_KEY).run();
    assert_eq!(finished.exit, Exit::Code(2));
    let said =
        "storage_settings.secret_access_key: there are no credentials: systemd has not set CREDENTIALS_DIRECTORY";
    assert_eq!(finished.stderr, format!("{}:17: {said}\n", file.display()));
}

#[test]
fn file_of_secrets_that_everybody_can_read_is_one_warning() {
    let store = TestStore::start(Kind::Moto);
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("f.toml"), scratch.join("run/s"));
    write(&file, &oldest(&socket, store.port(), ACCESS_KEY, SECRET_KEY));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set the mode");
    let mut daemon = ovfs().arg("--config-file").arg(&file).start();
    drop(guest(&mut daemon, &socket));
    let stderr = daemon.finish().stderr;
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("WARN  ovfs]")).collect();
    let said = format!("{}: everybody on this host can read the secrets in it", file.display());
    assert!(matches!(warnings[..], [line] if line.ends_with(&said)), "{stderr}");
}

#[test]
fn mounts_are_printed_with_their_options() {
    let scratch = Scratch::new();
    let file = scratch.join("f.toml");
    let mount = "[[mounts]]\npath = \"//models/\"\ntype = \"memory\"\nuid = 5\ncapacity = \"2G\"\n";
    write(&file, &format!("[storage_settings]\ntype = \"memory\"\n{mount}"));
    let of_file = ovfs().arg("--config-file").arg(&file).arg("--print-config").run();
    assert_eq!((printed(&of_file, "path"), printed(&of_file, "type")), (Some("\"/models\""), Some("\"memory\"")));
    let own = of_file.stdout.split("[[mounts]]").nth(1).expect("the entry");
    assert!(own.contains("uid = 5\n") && own.contains("capacity = \"2G\"\n"), "{own}");
    let line = ["--print-config", "--backend", "/x=memory://", "--backend=memory:///y"];
    let of_line = ovfs().arg("--config-file").arg(&file).args(line).run();
    assert_eq!((printed(&of_line, "path"), printed(&of_line, "backend")), (None, Some("\"memory:///y\"")));
    assert!(of_line.stdout.contains("# --backend /x=memory://\n"), "{}", of_line.stdout);
}
