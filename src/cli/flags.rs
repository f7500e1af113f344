//! The flags as a file of settings knows them: by name, with values as text.
//!
//! Everything here is read off clap's own list of arguments, so that a flag cannot lack a key, nor a key a flag.

use std::any::TypeId;
use std::error::Error;
use std::sync::LazyLock;

use clap::{Arg, ArgAction, CommandFactory, Parser};

use super::options::Options;

/// What may stand for the value of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On or off.
    Switch,
    /// A whole number.
    Number,
    /// A number of seconds.
    Seconds,
    /// A number of milliseconds.
    Milliseconds,
    /// A number of bytes, with or without a suffix.
    Size,
    /// Anything else.
    Text,
    /// Any number of texts.
    List,
}

/// A flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Its long name, without the dashes.
    pub name: String,
    /// What it takes.
    pub kind: Kind,
}

impl Flag {
    /// Its name in a file.
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }
}

/// Long flags that a file cannot set, each with the reason, as the rest of a sentence about its key. (Short flags, all of
/// them deprecated, are other names for long ones.)
pub const WITHOUT_KEY: [(&str, &str); 7] = [
    ("help", "is for the command line only"),
    ("version", "is for the command line only"),
    ("print-capabilities", "is for the command line only"),
    ("print-config", "is for the command line only"),
    ("config-file", "is for the command line only"),
    ("config-dir", "is for the command line only"),
    ("socket", "is deprecated; [socket_settings] has socket_path"),
];

/// All flags that a file can set.
pub fn all() -> &'static [Flag] {
    static ALL: LazyLock<Vec<Flag>> = LazyLock::new(|| {
        let command = Options::command();
        let flags = command.get_arguments().filter_map(|arg| {
            let name = arg.get_long()?;
            let settable = WITHOUT_KEY.iter().all(|(without, _)| *without != name);
            settable.then(|| Flag { name: name.to_owned(), kind: kind(arg) })
        });
        flags.collect()
    });
    &ALL
}

fn kind(arg: &Arg) -> Kind {
    if arg.get_long() == Some("backend") {
        // In a file it is the root's store; others have sections of their own.
        return Kind::Text;
    }
    match arg.get_action() {
        ArgAction::SetTrue | ArgAction::SetFalse => return Kind::Switch,
        ArgAction::Append => return Kind::List,
        _ => {}
    }
    let integers = [TypeId::of::<i32>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>()];
    let is_integer =
        integers.into_iter().chain([TypeId::of::<usize>()]).any(|id| arg.get_value_parser().type_id() == id);
    let placeholder = arg.get_value_names().and_then(|names| names.first()).map(|name| name.as_str());
    match placeholder {
        Some("BYTES") => Kind::Size,
        Some("SECONDS") => Kind::Seconds,
        Some("MILLISECONDS") => Kind::Milliseconds,
        // Octal numbers are texts in a file: 644 would be one number to the reader and another to TOML.
        Some("OCTAL") => Kind::Text,
        _ if is_integer => Kind::Number,
        _ => Kind::Text,
    }
}

/// Holds a value against the parser of the flag `name`.
///
/// # Errors
/// The parser's words.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    let arg = format!("--{name}={value}");
    let error = match Options::try_parse_from(["ovfs", &arg]) {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let rendered = || error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    Err(error.source().map_or_else(rendered, ToString::to_string))
}

/// The flag that says the contrary of `name`, if there is one.
pub fn opposite(name: &str) -> Option<&'static str> {
    let contrary = |other: &str| match other.strip_prefix("no-") {
        Some(rest) => rest == name,
        None => name.strip_prefix("no-") == Some(other),
    };
    all().iter().map(|flag| flag.name.as_str()).find(|other| contrary(other))
}

/// Whether `one` and `other` cannot both hold.
pub fn exclude_each_other(one: &str, other: &str) -> bool {
    static PAIRS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
        let command = Options::command();
        let name = |arg: &Arg| arg.get_long().map(str::to_owned);
        let pairs = command.get_arguments().flat_map(|arg| {
            let others = command.get_arg_conflicts_with(arg).into_iter();
            others.filter_map(move |other| Some((name(arg)?, name(other)?)))
        });
        pairs.collect()
    });
    let forbidden = |a: &str, b: &str| PAIRS.iter().any(|(x, y)| x == a && y == b);
    forbidden(one, other) || forbidden(other, one) || opposite(one) == Some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_argument_has_a_key_or_a_reason() {
        let mut command = Options::command();
        command.build();
        let keys: Vec<String> = all().iter().map(|flag| flag.name.clone()).collect();
        for arg in command.get_arguments() {
            match arg.get_long() {
                Some(name) => {
                    let without = WITHOUT_KEY.iter().any(|(flag, _)| *flag == name);
                    assert!(keys.iter().any(|key| key == name) != without, "--{name}");
                }
                None => assert_eq!(arg.get_help_heading(), Some("Deprecated"), "{}", arg.get_id()),
            }
        }
        for (name, _) in WITHOUT_KEY {
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(name)), "--{name}");
        }
    }

    #[test]
    fn kinds_are_those_of_the_values() {
        let kind = |name: &str| all().iter().find(|flag| flag.name == name).unwrap().kind;
        for (name, expected) in [
            ("readonly", Kind::Switch),
            ("thread-pool-size", Kind::Number),
            ("fd", Kind::Number),
            ("rlimit-nofile", Kind::Number),
            ("num-request-queues", Kind::Number),
            ("uid", Kind::Number),
            ("cache-size", Kind::Size),
            ("capacity", Kind::Size),
            ("request-timeout", Kind::Seconds),
            ("writeback-delay", Kind::Milliseconds),
            ("cache-dirty-ratio", Kind::Number),
            ("cache-block-size", Kind::Size),
            ("file-mode", Kind::Text),
            ("cache", Kind::Text),
            ("posix-acl", Kind::Text),
            ("uid-map", Kind::List),
            ("translate-gid", Kind::List),
        ] {
            assert_eq!(kind(name), expected, "{name}");
        }
    }

    #[test]
    fn values_are_checked_by_the_parser_of_the_flag() {
        assert_eq!(check("cache", "Always"), Ok(()));
        assert_eq!(check("modcaps", "-chown"), Ok(()));
        assert_eq!(check("posix-acl", "auto"), Ok(()));
        assert_eq!(check("cache", "bogus"), Err("invalid cache policy".to_owned()));
        assert_eq!(check("request-timeout", "0"), Err("0 is not in 1..=86400".to_owned()));
        assert_eq!(check("cache-size", "3M"), Err("the cache needs at least 16 MiB".to_owned()));
    }

    #[test]
    fn contradictions_are_known() {
        assert!(exclude_each_other("fd", "socket-path") && exclude_each_other("socket-group", "fd"));
        assert!(exclude_each_other("announce-submounts", "no-announce-submounts"));
        assert!(exclude_each_other("no-killpriv-v2", "killpriv-v2"));
        assert!(!exclude_each_other("uid", "gid") && !exclude_each_other("socket-path", "socket-group"));
        assert_eq!(opposite("no-readdirplus"), None);
    }
}
