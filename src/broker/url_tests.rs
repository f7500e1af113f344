use super::*;

fn parse(url: &str) -> Result<Backend, BackendError> {
    Backend::parse_with(url, |_| None)
}

/// `key=value` of what came out, sorted.
fn settings(url: &str) -> String {
    match parse(url) {
        Ok(backend) => backend.config.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "),
        Err(e) => format!("ERROR {e}"),
    }
}

#[test]
fn both_forms_mean_the_same() {
    for (url, want) in [
        ("s3://b/p/q?region=r", "bucket=b region=r root=/p/q"),
        ("S3://b?region=r", "bucket=b region=r"),
        ("s3://b/?region=r", "bucket=b region=r"),
        ("s3://?bucket=b&root=/p/q&region=r", "bucket=b region=r root=/p/q"),
        ("s3://?root=p&aws_bucket=b&REGION=r", "bucket=b region=r root=p"),
        (
            "s3://?root=/&bucket=b&endpoint=http://127.0.0.1:9000/&region=r&access_key_id=A%2FB+C&secret_access_key=s%3Dt",
            "access_key_id=A/B+C bucket=b disable_ec2_metadata=true endpoint=http://127.0.0.1:9000 region=r root=/ \
             secret_access_key=s=t",
        ),
        (
            "s3://b/a%20b?region=r&disable_ec2_metadata=off&endpoint=h:1",
            "bucket=b disable_ec2_metadata=false endpoint=h:1 region=r root=/a b",
        ),
        ("fs:///srv/data", "root=/srv/data"),
        ("file:///srv/data/", "root=/srv/data"),
        ("fs:///", "root=/"),
        ("fs://?root=/srv/data", "root=/srv/data"),
        ("fs:///a%20b", "root=/a b"),
        ("memory://", ""),
        ("memory:///x", "root=/x"),
        (
            "azblob://c/p?endpoint=https://a.blob.core.windows.net",
            "container=c endpoint=https://a.blob.core.windows.net root=/p",
        ),
        (
            "webdav://dav.example:8443/p?username=u&password=x",
            "endpoint=https://dav.example:8443 password=x root=/p username=u",
        ),
        ("webdav://?endpoint=http://127.0.0.1:1/dav&root=/p", "endpoint=http://127.0.0.1:1/dav root=/p"),
        (
            "sftp://me@host:2222/srv?key=/k&known_hosts_strategy=Add",
            "endpoint=ssh://host:2222 key=/k known_hosts_strategy=add root=/srv user=me",
        ),
        ("hdfs-native://nn:9000/d", "name_node=hdfs://nn:9000 root=/d"),
        (
            "azdls://acc.dfs.core.windows.net/fsys/d",
            "account_name=acc endpoint=https://acc.dfs.core.windows.net filesystem=fsys root=/d",
        ),
        (
            "azdls://acc.dfs.core.windows.net/fsys?account_name=z",
            "account_name=z endpoint=https://acc.dfs.core.windows.net filesystem=fsys",
        ),
        ("swift://sw.example/c/d/e?token=t", "container=c endpoint=https://sw.example root=/d/e token=t"),
        ("sftp://?endpoint=host&root=/srv", "endpoint=ssh://host root=/srv"),
        ("gs://b/p", "bucket=b root=/p"),
        (
            "b2://b?bucket_id=i&application_key_id=k&application_key=s",
            "application_key=s application_key_id=k bucket=b bucket_id=i",
        ),
    ] {
        assert_eq!(settings(url), want, "{url}");
    }
}

#[test]
fn each_mistake_is_named() {
    let built = services::compiled();
    for (url, want) in [
        ("/srv", "the backend is not a URL: it has no SCHEME:// at its start (a local directory is fs:///DIR)".to_owned()),
        ("://x", "the backend is not a URL: it has no SCHEME:// at its start (a local directory is fs:///DIR)".to_owned()),
        ("s4://b", format!("unknown backend scheme 's4'; did you mean 's3'? (built in: {built})")),
        ("nothing://b", format!("unknown backend scheme 'nothing' (built in: {built})")),
        ("dropbox://", format!("OpenDAL's service 'dropbox' is not built into this program (built in: {built})")),
        ("redis://h", "the service 'redis' cannot list what it holds, so it cannot be shown as a tree of directories".to_owned()),
        ("http://h/x", "the service 'http' cannot list what it holds, so it cannot be shown as a tree of directories".to_owned()),
        ("s3://b?region=r&endpont=x", "s3: unknown key 'endpont'; did you mean 'endpoint'?".to_owned()),
        ("s3://b?region=r&qwertyuiop=x", "s3: unknown key 'qwertyuiop'".to_owned()),
        ("s3://b?region=r&bucket=c", "s3: 'bucket' is given twice".to_owned()),
        ("s3://b?region=r&region=r", "s3: 'region' is given twice".to_owned()),
        ("s3://b/p?region=r&root=/q", "s3: 'root' is given twice".to_owned()),
        ("s3://?region=r", "s3: no bucket is given: s3://NAME/… or s3://?bucket=NAME&…".to_owned()),
        ("s3://b", "s3: no region is given: add region=… or set AWS_REGION (servers without regions take any, such as us-east-1)".to_owned()),
        ("s3://b?region=r&access_key_id=SECRET", "s3: no secret_access_key is given: the two keys go together".to_owned()),
        ("s3://b?region=", "s3: bad value for 'region': it is empty".to_owned()),
        ("s3://b?region=r&skip_signature=maybe", "s3: bad value for 'skip_signature': 'maybe' is neither true nor false".to_owned()),
        ("s3://b?region=r&endpoint=ftp://x", "s3: bad value for 'endpoint': 'ftp' is neither http nor https".to_owned()),
        ("s3://b?region=r&endpoint=http://me:SECRET@x", "s3: bad value for 'endpoint': user and password do not belong into it".to_owned()),
        ("s3://b?region=r&checksum_algorithm=md4", "s3: bad value for 'checksum_algorithm': 'md4' is not one of crc32c, md5".to_owned()),
        ("s3://k:SECRET@b?region=r", "s3: user and password do not go before '@'; give them as keys of the query".to_owned()),
        ("s3://b/a/../c?region=r", "s3: bad value for 'root': '/a/../c' has a '.' or '..' in it".to_owned()),
        ("s3://b/a%20/c?region=r", "s3: bad value for 'root': '/a /c' has white space at the start or end of a component, which OpenDAL would take away".to_owned()),
        ("s3://?bucket=a%2Fb&region=r", "s3: bad value for 'bucket': 'a/b' has a slash in it".to_owned()),
        ("s3://b/x#y?region=r", "s3: '#' must be written %23".to_owned()),
        ("s3://b?region=r&secret_access_key=%ff", "s3: bad value for 'secret_access_key': it is not UTF-8".to_owned()),
        ("fs://tmp/x", "fs: 'tmp' stands where a host would; a path needs a third slash: fs:///tmp…".to_owned()),
        ("fs://", "fs: no root is given: fs:///DIR or fs://?root=/DIR".to_owned()),
        ("fs://?root=srv", "fs: bad value for 'root': 'srv' is not an absolute path".to_owned()),
        ("fs:///a/%00", "fs: bad value for 'root': it has a NUL in it".to_owned()),
        ("memory://x", "memory: 'x' stands where a host would; a path needs a third slash: memory:///x…".to_owned()),
        ("azblob://c", "azblob: no endpoint is given: add endpoint=…".to_owned()),
        ("webdav://", "webdav: no endpoint is given: webdav://HOST/… or webdav://?endpoint=…&…".to_owned()),
        ("swift://h", "swift: no container is given: swift://HOST/NAME/… or swift://?endpoint=…&container=NAME&…".to_owned()),
        ("b2://b?application_key_id=k&application_key=s", "b2: no bucket_id is given: add bucket_id=…".to_owned()),
    ] {
        let error = parse(url).map(|b| b.to_string()).unwrap_err().to_string();
        assert_eq!(error, want, "{url}");
        assert!(!error.contains("SECRET"), "{error}");
    }
}

#[test]
fn the_region_may_come_from_the_environment() {
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        let backend = Backend::parse_with("s3://b", |n| (n == name).then(|| "eu-west-9".into())).unwrap();
        assert_eq!(backend.config["region"], "eu-west-9");
    }
}

#[test]
fn no_secret_is_shown() {
    let url =
        "s3://b/p?region=r&endpoint=http://h:1&access_key_id=CANARY1&secret_access_key=CANARY2&session_token=CANARY3";
    let backend = parse(url).unwrap();
    let shown = format!("{backend} {backend:?}");
    assert_eq!(backend.to_string(), "s3://b/p at http://h:1");
    assert!(!shown.contains("CANARY"), "{shown}");
    assert_eq!(backend.secrets(), ["CANARY1", "CANARY2", "CANARY3"]);
}

#[test]
fn stores_that_cannot_keep_attributes_say_why() {
    for url in ["s3://b?region=r", "memory://", "fs://?root=/srv", "gcs://b", "oss://b?endpoint=h", "swift://h/c"] {
        assert_eq!(parse(url).unwrap().check_attributes(), Ok(()), "{url}");
    }
    for url in ["webdav://h", "sftp://h", "hdfs-native://h", "azdls://h/fs"] {
        let error = parse(url).unwrap().check_attributes().unwrap_err().to_string();
        let scheme = url.split("://").next().unwrap();
        assert!(error.starts_with(&format!("{scheme}: POSIX attributes cannot be kept in this store: ")), "{error}");
    }
}

#[test]
fn same_store_can_be_reached_in_other_ways() {
    let one = "s3://b/p?region=r&endpoint=http://h:1&access_key_id=a&secret_access_key=s";
    for (other, store, place) in [
        (one, true, true),
        ("s3://b/p?region=r&endpoint=http://h:1&access_key_id=x&secret_access_key=y", true, true),
        ("s3://?bucket=b&root=p/&region=r&endpoint=http://h:1&access_key_id=a&secret_access_key=s", true, false),
        ("s3://b/p?region=r&endpoint=http://h:2&access_key_id=a&secret_access_key=s", true, false),
        ("s3://b/p?region=q&endpoint=http://h:1&access_key_id=a&secret_access_key=s", true, false),
        ("s3://c/p?region=r&endpoint=http://h:1&access_key_id=a&secret_access_key=s", false, false),
        ("s3://b/q?region=r&endpoint=http://h:1&access_key_id=a&secret_access_key=s", false, false),
        ("s3://b?region=r&endpoint=http://h:1&access_key_id=a&secret_access_key=s", false, false),
        ("gcs://b/p", false, false),
    ] {
        let (one, other) = (parse(one).unwrap(), parse(other).unwrap());
        assert_eq!((one.is_same_store(&other), one.is_same_place(&other)), (store, place), "{other}");
        assert_eq!(one.is_as(&other), one.config == other.config);
    }
    let parsed = |url| parse(url).unwrap();
    assert!(parsed("webdav://a/p?username=u").is_same_store(&parsed("webdav://b/p?username=v")));
    assert!(!parsed("azblob://c?endpoint=https://a").is_same_store(&parsed("azblob://d?endpoint=https://a")));
    assert!(!parsed("fs:///a").is_same_store(&parsed("fs:///b")));
    assert!(!parsed("memory://").is_same_store(&parsed("memory://")), "what it holds would be gone");
}
