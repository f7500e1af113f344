//! `-o`: the option list of virtiofsd's predecessor in C, which old launchers still send.
//!
//! Read after all flags and overriding them. The words are those that virtiofsd takes, no more: `,,` is no escaped
//! comma, `posix_lock` and `flock` are refused while their negations are accepted.

use clap::CommandFactory;
use clap::error::ErrorKind;
use log::LevelFilter;
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, NegotiationMode};
use virtiofsd::sandbox::SandboxMode;

use super::options::Options;

/// Why an element of a list was refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Argument(String),
    Value { word: &'static str, value: String },
}

/// Folds every `-o` list into the flags.
///
/// # Errors
/// A usage error that names the element.
pub(super) fn apply(mut options: Options) -> Result<Options, clap::Error> {
    let lists = options.compat_options.clone().unwrap_or_default();
    for element in lists.iter().flat_map(|list| list.split(',')) {
        apply_one(&mut options, element).map_err(|refusal| match refusal {
            Refusal::Argument(element) => {
                let text = format!("Invalid compat argument '-o {element}'");
                Options::command().error(ErrorKind::UnknownArgument, text)
            }
            Refusal::Value { word, value } => {
                let text = format!("Invalid compat value '{value}' for '-o {word}'");
                Options::command().error(ErrorKind::InvalidValue, text)
            }
        })?;
    }
    Ok(options)
}

fn apply_one(options: &mut Options, element: &str) -> Result<(), Refusal> {
    match element.split_once('=') {
        // No value of this list may contain an equals sign.
        Some((word, value)) if !value.contains('=') => set(options, word, value, element),
        Some(_) => Err(Refusal::Argument(element.to_owned())),
        None => switch(options, element),
    }
}

fn set(options: &mut Options, word: &str, value: &str, element: &str) -> Result<(), Refusal> {
    let wrong = |word| Refusal::Value { word, value: value.to_owned() };
    match word {
        "source" => options.shared_dir = Some(value.to_owned()),
        "modcaps" => options.modcaps = Some(value.to_owned()),
        "xattrmap" => options.xattrmap = Some(XattrMap::try_from(value).map_err(|_| wrong("xattrmap"))?),
        "cache" => {
            options.cache = match value {
                "auto" => CachePolicy::Auto,
                "always" => CachePolicy::Always,
                "metadata" => CachePolicy::Metadata,
                "none" => CachePolicy::Never,
                _ => return Err(wrong("cache")),
            }
        }
        "loglevel" => {
            options.log_level = match value {
                "debug" => LevelFilter::Debug,
                "info" => LevelFilter::Info,
                "warn" => LevelFilter::Warn,
                "err" => LevelFilter::Error,
                _ => return Err(wrong("loglevel")),
            }
        }
        "sandbox" => {
            options.sandbox = match value {
                "namespace" => SandboxMode::Namespace,
                "chroot" => SandboxMode::Chroot,
                _ => return Err(wrong("sandbox")),
            }
        }
        _ => return Err(Refusal::Argument(element.to_owned())),
    }
    Ok(())
}

fn switch(options: &mut Options, word: &str) -> Result<(), Refusal> {
    let (name, on) = match word.strip_prefix("no_") {
        Some(name) => (name, false),
        None => (word, true),
    };
    let negotiation = if on { NegotiationMode::Always } else { NegotiationMode::Never };
    match name {
        "xattr" => options.xattr = on,
        "readdirplus" => options.no_readdirplus = !on,
        "writeback" => options.writeback = on,
        "allow_direct_io" => options.allow_direct_io = on,
        "killpriv_v2" => options.killpriv_v2 = on,
        "posix_acl" => options.posix_acl = negotiation,
        "security_label" => options.security_label = negotiation,
        // Announcing is the default, and only the long flag takes it back.
        "announce_submounts" if on => {}
        "posix_lock" | "flock" if !on => {}
        _ => return Err(Refusal::Argument(word.to_owned())),
    }
    Ok(())
}

/// What an accepted element of a list means: the long name of its flag, and what that is set to.
pub(super) fn flag_of(element: &str) -> Option<(&'static str, String)> {
    if let Some((word, value)) = element.split_once('=') {
        let flag = match word {
            "source" => "shared-dir",
            "modcaps" => "modcaps",
            "xattrmap" => "xattrmap",
            "cache" => "cache",
            "loglevel" => "log-level",
            "sandbox" => "sandbox",
            _ => return None,
        };
        let value = match value {
            "none" if word == "cache" => "never",
            "err" if word == "loglevel" => "error",
            other => other,
        };
        return Some((flag, value.to_owned()));
    }
    let (name, on) = element.strip_prefix("no_").map_or((element, true), |name| (name, false));
    let negotiation = || if on { "always" } else { "never" }.to_owned();
    Some(match name {
        "xattr" => ("xattr", on.to_string()),
        "readdirplus" => ("no-readdirplus", (!on).to_string()),
        "writeback" => ("writeback", on.to_string()),
        "allow_direct_io" => ("allow-direct-io", on.to_string()),
        "killpriv_v2" => ("killpriv-v2", on.to_string()),
        "posix_acl" => ("posix-acl", negotiation()),
        "security_label" => ("security-label", negotiation()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn with(flags: &[&str], list: &str) -> Result<Options, String> {
        let base = ["ovfs", "--socket-path", "s", "-o", list];
        let options = Options::try_parse_from(base.iter().chain(flags)).unwrap();
        apply(options).map_err(|error| error.to_string())
    }

    #[test]
    fn list_overrides_flags_whatever_their_order() {
        let options = with(&["--cache", "always", "--writeback"], "cache=none,no_writeback,source=/x").unwrap();
        assert!(matches!(options.cache, CachePolicy::Never));
        assert!(!options.writeback);
        assert_eq!(options.shared_dir.as_deref(), Some("/x"));
    }

    #[test]
    fn every_word_sets_its_flag() {
        let all = "xattr,no_readdirplus,writeback,allow_direct_io,killpriv_v2,posix_acl,security_label,\
                   announce_submounts,no_posix_lock,no_flock,cache=metadata,loglevel=err,sandbox=chroot,modcaps=+mknod,\
                   xattrmap=:map::user.virtiofs.:";
        let options = with(&[], all).unwrap();
        assert!(options.xattr && options.no_readdirplus && options.writeback && options.allow_direct_io);
        assert!(options.killpriv_v2 && options.xattrmap.is_some() && !options.no_announce_submounts);
        assert_eq!((options.posix_acl, options.security_label), (NegotiationMode::Always, NegotiationMode::Always));
        assert!(matches!(options.cache, CachePolicy::Metadata));
        assert_eq!(options.sandbox, SandboxMode::Chroot);
        assert_eq!((options.log_level, options.modcaps.as_deref()), (LevelFilter::Error, Some("+mknod")));
        let off = "no_xattr,readdirplus,no_writeback,no_allow_direct_io,no_killpriv_v2,no_posix_acl,no_security_label";
        let options = with(&["--xattr", "--posix-acl", "--killpriv-v2", "--no-readdirplus"], off).unwrap();
        assert!(!options.xattr && !options.no_readdirplus && !options.killpriv_v2);
        assert_eq!(options.posix_acl, NegotiationMode::Never);
    }

    #[test]
    fn words_that_virtiofsd_refuses_are_refused() {
        for word in ["bogus", "posix_lock", "flock", "timeout=5", "allow_root", "no_announce_submounts", "", "a=b=c"] {
            let error = with(&[], word).unwrap_err();
            assert!(error.starts_with(&format!("error: Invalid compat argument '-o {word}'\n")), "{error}");
        }
        for (word, value) in [("cache", "never"), ("sandbox", "none"), ("loglevel", "error"), ("xattrmap", ":map")] {
            let error = with(&[], &format!("{word}={value}")).unwrap_err();
            assert!(error.starts_with(&format!("error: Invalid compat value '{value}' for '-o {word}'\n")), "{error}");
        }
        assert!(with(&[], "xattr,,writeback").unwrap_err().contains("'-o '"));
        assert!(with(&[], "source=a=b").unwrap_err().contains("'-o source=a=b'"));
    }
}
