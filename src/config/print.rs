//! `--print-config`: the settings in effect, as a file that would say the same but for its secrets.

use std::io::{self, Write};

use super::{Mount, Setting, Settings, schema, value};
use crate::cli::flags::{self, Flag, Kind};
use crate::cli::{Line, MountArg};

/// What holds for a store where nothing is said, of flags whose default clap does not know because it must be seen whether
/// they were given.
const UNSAID: [(&str, &str); 10] = [
    ("uid", "0"),
    ("gid", "0"),
    ("file-mode", "0644"),
    ("dir-mode", "0755"),
    ("umask", "0"),
    ("capacity", "1P"),
    ("writeback-delay", "0"),
    ("cache-dirty-ratio", "50"),
    ("cache-block-size", "64K"),
    ("on-conflict", "keep-both"),
];

/// What names with `auto` are trusted for where nothing is said.
const AUTO: &str = "1s";

/// Writes the settings.
///
/// # Errors
/// Those of `out`.
pub fn print(mut out: impl Write, line: &Line, settings: &Settings) -> io::Result<()> {
    for file in &settings.files {
        writeln!(out, "# from {}", show_path(file))?;
    }
    if let Some(share) = &settings.share {
        writeln!(out, "# the store of {} from {}", show_path(&share.shared_dir), share.place)?;
    }
    let flags = flags::all();
    socket(&mut out, line, flags)?;
    cache(&mut out, line)?;
    let in_file = settings.store.as_ref().filter(|store| line.options.backend.as_ref() == Some(&store.visible));
    if let Some(store) = in_file.filter(|store| !store.shown.is_empty()) {
        writeln!(out, "\n[storage_settings]")?;
        for (key, text) in &store.shown {
            writeln!(out, "{} = {}", key_of(key), string(text))?;
        }
    }
    writeln!(out, "\n[options]")?;
    for flag in flags.iter().filter(|flag| !schema::is_of_socket(flag)) {
        if flag.name == "backend" && in_file.is_some_and(|store| !store.shown.is_empty()) {
            continue;
        }
        let has_store = line.options.backend.is_some() || !line.options.mounts.is_empty();
        let unsaid = || UNSAID.iter().find(|(name, _)| *name == flag.name && has_store);
        let texts = line.texts.get(&flag.name).cloned();
        if let Some(texts) = texts.or_else(|| unsaid().map(|(_, value)| vec![(*value).to_owned()])) {
            writeln!(out, "{} = {}", flag.key(), of_flag(flag, &texts))?;
        }
    }
    for MountArg { path, url, .. } in &line.options.mounts {
        match settings.mounts.iter().find(|mount| mount.path == *path && mount.store.visible == *url) {
            Some(one) => mount(&mut out, one, flags)?,
            // Of the command line, where there is nothing but a URL to say it with.
            None => writeln!(out, "\n# --backend {path}={url}")?,
        }
    }
    out.flush()
}

fn socket(out: &mut impl Write, line: &Line, flags: &[Flag]) -> io::Result<()> {
    let mut heading = Some("\n[socket_settings]");
    for flag in flags.iter().filter(|flag| schema::is_of_socket(flag)) {
        if let Some(texts) = line.texts.get(&flag.name) {
            heading.take().map_or(Ok(()), |heading| writeln!(out, "{heading}"))?;
            writeln!(out, "{} = {}", flag.key(), of_flag(flag, texts))?;
        }
    }
    Ok(())
}

/// The policy once more, as far as this section can say it.
fn cache(out: &mut impl Write, line: &Line) -> io::Result<()> {
    let policy = line.texts.get("cache").map(|texts| texts.concat().to_ascii_lowercase()).unwrap_or_default();
    writeln!(out, "\n[cache_settings]")?;
    writeln!(out, "enabled_cache = {}", policy != "never")?;
    let write_back = line.options.writeback_delay.is_some_and(|ms| ms != 0);
    writeln!(out, "enabled_cache_write_back = {write_back}")?;
    match policy.as_str() {
        "always" => writeln!(out, "enabled_cache_expiration = false"),
        "auto" => {
            let time = line.options.cache_expiration.map_or(AUTO.to_owned(), value::show_duration);
            writeln!(out, "enabled_cache_expiration = true\ncache_expiration_time = {}", string(&time))
        }
        _ => Ok(()),
    }
}

fn mount(out: &mut impl Write, mount: &Mount, flags: &[Flag]) -> io::Result<()> {
    writeln!(out, "\n[[mounts]]\npath = {}", string(&mount.path))?;
    for (key, text) in &mount.store.shown {
        writeln!(out, "{} = {}", key_of(key), string(text))?;
    }
    for Setting { name, values, .. } in &mount.options {
        if let Some(flag) = flags.iter().find(|flag| flag.name == *name) {
            writeln!(out, "{} = {}", flag.key(), of_flag(flag, values))?;
        }
    }
    let time = mount.cache_expiration.map(value::show_duration);
    time.map_or(Ok(()), |time| writeln!(out, "cache_expiration_time = {}", string(&time)))
}

/// The value of a flag.
fn of_flag(flag: &Flag, texts: &[String]) -> String {
    let one = texts.last().map(String::as_str).unwrap_or_default();
    match flag.kind {
        Kind::List => format!("[{}]", texts.iter().map(|text| string(text)).collect::<Vec<_>>().join(", ")),
        Kind::Switch => one.to_owned(),
        // Leading zeros and signs, which the command line takes, are none of TOML's.
        Kind::Number | Kind::Seconds | Kind::Milliseconds => match one.parse::<i64>() {
            Ok(number) => number.to_string(),
            Err(_) => string(one),
        },
        Kind::Size | Kind::Text => string(one),
    }
}

/// A key, in quotes if it needs them.
fn key_of(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { key.to_owned() } else { string(key) }
}

/// A string of TOML.
fn string(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn show_path(path: &std::path::Path) -> String {
    path.display().to_string().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Options;

    #[test]
    fn unsaid_defaults_are_those_of_the_help() {
        let command = Options::command();
        for (name, value) in UNSAID {
            let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name)).unwrap();
            let help = arg.get_help().unwrap().to_string();
            assert!(help.contains(&format!("[default: {value}]")), "{name}: {help}");
        }
    }

    #[test]
    fn strings_are_quoted() {
        assert_eq!(string("a\"b\\c\n\u{e9}"), "\"a\\\"b\\\\c\\u000A\u{e9}\"");
        assert_eq!((key_of("a_b"), key_of("a b")), ("a_b".to_owned(), "\"a b\"".to_owned()));
    }
}
