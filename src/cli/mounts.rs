//! Stores beside that in the root of the share: `--backend /PATH=URL`, and what each has of its own.

use std::time::Duration;

use clap::Parser;

use super::given::{Preset, arguments};
use super::options::Options;
use super::plan::{self, BackendShare, PlanError};

/// A value of `--backend`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendArg {
    /// Where in the share; `None`: its root.
    pub path: Option<String>,
    /// The store.
    pub url: String,
}

/// A store below the root of the share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountArg {
    /// As [`mount_path`] has it.
    pub path: String,
    /// The URL, as far as it may be seen.
    pub url: String,
    /// Options of its own.
    pub own: Vec<Preset>,
    /// How long its names and attributes are trusted with a `cache` of its own that is `auto`.
    pub cache_expiration: Option<Duration>,
}

/// Reads `URL` or `/PATH=URL`.
pub(super) fn parse_backend(text: &str) -> Result<BackendArg, String> {
    if !text.starts_with('/') {
        return Ok(BackendArg { path: None, url: text.to_owned() });
    }
    let (path, url) = text.split_once('=').ok_or("a path in the share must be followed by =URL")?;
    let path = mount_path(path).map_err(|why| format!("'{path}' {why}"))?;
    Ok(BackendArg { path: (path != "/").then_some(path), url: url.to_owned() })
}

/// A path in the share, with one slash before each name and none at the end; `/` is the root.
///
/// # Errors
/// What stands against it, as the rest of a sentence.
pub fn mount_path(path: &str) -> Result<String, &'static str> {
    if !path.starts_with('/') {
        return Err("does not begin with a slash");
    }
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..") || name.contains('\0') || name.len() > 255) {
        return Err("has a name in it that no directory can have");
    }
    Ok(format!("/{}", names.join("/")))
}

/// Sorts the values of `--backend`: of those for one place the last counts, as with any repeated option.
pub(super) fn sort(options: &mut Options) {
    for BackendArg { path, url } in std::mem::take(&mut options.backends) {
        match path {
            None => options.backend = Some(url),
            Some(path) => {
                options.mounts.retain(|mount| mount.path != path);
                options.mounts.push(MountArg { path, url, own: Vec::new(), cache_expiration: None });
            }
        }
    }
}

/// What the share's `options` and the mount's own make of it. What it does not say of itself is as with the share.
pub(super) fn share(options: &Options, mount: &MountArg) -> Result<BackendShare, Vec<PlanError>> {
    let mut all = options.clone();
    let own = std::iter::once("ovfs".into()).chain(mount.own.iter().flat_map(arguments));
    // Whoever made these options has held each against its parser.
    if let Ok(said) = Options::try_parse_from(own) {
        for Preset { name, values } in &mount.own {
            match name.as_str() {
                "cache" => {
                    all.cache = said.cache.clone();
                    all.cache_expiration = mount.cache_expiration;
                }
                "readonly" => all.readonly = values.iter().all(|value| value == "true"),
                "posix-metadata" => all.posix_metadata = values.iter().all(|value| value == "true"),
                "uid" => all.uid = said.uid,
                "gid" => all.gid = said.gid,
                "file-mode" => all.file_mode = said.file_mode,
                "dir-mode" => all.dir_mode = said.dir_mode,
                "umask" => all.umask = said.umask,
                "on-conflict" => all.on_conflict = said.on_conflict,
                "writeback-delay" => all.writeback_delay = said.writeback_delay,
                "request-timeout" => all.request_timeout = said.request_timeout,
                "capacity" => all.capacity = said.capacity,
                _ => {}
            }
        }
    }
    plan::backend(&all, Some(mount.url.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stores(line: &str) -> plan::Stores {
        let args = std::iter::once("ovfs").chain(line.split_whitespace()).map(Into::into);
        match plan::Plan::new(super::super::parse(args).unwrap()).unwrap().share {
            plan::Share::Backend(stores) => *stores,
            plan::Share::HostDir(_) => panic!("a store was asked for"),
        }
    }

    #[test]
    fn repeated_backend_puts_stores_at_paths() {
        let stores = stores("--fd 3 --backend s3://b --backend //models/=s3://m?k=v --backend=/a/b=fs:///x");
        assert_eq!(stores.root.url.as_deref(), Some("s3://b"));
        let mounts: Vec<(&str, Option<&str>)> =
            stores.mounts.iter().map(|(path, share)| (path.as_str(), share.url.as_deref())).collect();
        assert_eq!(mounts, [("/models", Some("s3://m?k=v")), ("/a/b", Some("fs:///x"))]);
    }

    #[test]
    fn last_store_of_a_place_counts_and_the_root_needs_none() {
        let both = stores("--fd 3 --backend s3://b --backend /=fs:///x --backend /a=s3://y --backend /a=s3://z");
        assert_eq!(both.root.url.as_deref(), Some("fs:///x"));
        assert_eq!(both.mounts.len(), 1);
        assert_eq!(both.mounts[0].1.url.as_deref(), Some("s3://z"));
        assert_eq!(stores("--fd 3 --backend /a=s3://y").root.url, None);
    }

    #[test]
    fn paths_that_cannot_be_are_refused() {
        for (value, why) in [
            ("/models", "must be followed by =URL"),
            ("/a/../b=s3://b", "has a name in it that no directory can have"),
            ("/.=s3://b", "has a name in it that no directory can have"),
        ] {
            let args = ["ovfs", "--fd", "3", "--backend", value].map(Into::into);
            let error = super::super::parse(args).unwrap_err().to_string();
            assert!(error.contains("--backend") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn mounts_share_the_memory_and_have_options_of_their_own() {
        let args = "ovfs --fd 3 --backend fs:///r --uid 7 --cache-size 64M --cache always".split(' ').map(Into::into);
        let mut options = super::super::parse(args).unwrap();
        let preset = |name: &str, value: &str| Preset { name: name.into(), values: vec![value.into()] };
        let own = vec![
            preset("uid", "9"),
            preset("readonly", "true"),
            preset("cache", "auto"),
            preset("request-timeout", "5"),
            preset("capacity", "1G"),
        ];
        let mount = |path: &str, own: &[Preset]| MountArg {
            path: path.into(),
            url: "memory://".into(),
            own: own.to_vec(),
            cache_expiration: Some(Duration::from_secs(3)),
        };
        options.mounts = vec![mount("/own", &own), mount("/same", &[])];
        let plan::Share::Backend(stores) = plan::Plan::new(options.clone()).unwrap().share else { panic!("a store") };
        let [own, same] = [0, 1].map(|at| &stores.mounts[at].1);
        assert_eq!((own.uid, own.readonly, own.request_timeout.as_secs(), own.capacity), (9, true, 5, 1 << 30));
        assert_eq!((own.cache_expiration, same.cache_expiration), (Some(Duration::from_secs(3)), None));
        assert_eq!((same.uid, same.readonly, same.request_timeout.as_secs()), (7, false, 60));
        assert!(stores.root.cache_size == own.cache_size && own.cache_size == same.cache_size);
        assert!(own.cache_size <= (64 << 20) / 3 && own.cache_size > (63 << 20) / 3);
        options.mounts.extend(["/c", "/d"].map(|path| mount(path, &[])));
        let errors = plan::Plan::new(options).unwrap_err();
        assert_eq!(errors[0].to_string(), "--cache-size: 5 stores need at least 80M, 16M each");
    }
}
