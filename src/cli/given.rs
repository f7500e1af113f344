//! The command line and what files of settings add to it.
//!
//! What a file says of a flag becomes an argument in front of the others, unless they speak of that flag themselves; so
//! both go through one parser, and the command line wins.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory};

use super::flags::{self, Kind};
use super::mounts::MountArg;
use super::options::Options;
use super::usage::{self, Reading};
use super::{legacy, plan};

/// What a file says of a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The long name, without the dashes.
    pub name: String,
    /// One text, several for a list, `true` or `false` for a switch.
    pub values: Vec<String>,
}

/// The command line, read but not yet complete.
#[derive(Clone, Debug)]
pub struct Given {
    args: Vec<OsString>,
    options: Options,
    matches: ArgMatches,
    /// Long names of the flags that it speaks of, in whatever form.
    names: BTreeSet<String>,
}

/// The command line and the files together.
#[derive(Debug)]
pub struct Line {
    /// What follows from them.
    pub options: Options,
    /// Each flag that has a value, as text, by its long name.
    pub texts: BTreeMap<String, Vec<String>>,
}

impl Given {
    /// Reads the arguments, the program's name first.
    ///
    /// # Errors
    /// What clap answers to a wrong argument, or to `--help` and `--version`.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Given, clap::Error> {
        let args: Vec<OsString> = args.into_iter().collect();
        let Reading { options, matches } = usage::read(&args)?;
        let names = names(&options, &matches);
        Ok(Given { args, options, matches, names })
    }

    /// The options so far.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the command line speaks of the flag of this long name.
    pub fn says(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The directory to share, whether a flag or a list names it.
    pub fn shared_dir(&self) -> Option<String> {
        let of_list =
            elements(&self.options).filter_map(legacy::flag_of).filter(|(flag, _)| *flag == "shared-dir").last();
        of_list.map(|(_, dir)| dir).or_else(|| self.options.shared_dir.clone())
    }

    /// Adds what files say. `backend` is the visible URL of the store that they name, `mounts` are the other stores; the
    /// command line's own win.
    ///
    /// # Errors
    /// What clap answers to a line that lacks something.
    pub fn complete(
        self,
        presets: &[Preset],
        backend: Option<String>,
        mounts: Vec<MountArg>,
    ) -> Result<Line, clap::Error> {
        let Given { args, options, matches, names } = self;
        let said = options.backend.is_some() || !options.mounts.is_empty();
        let with_store = said || backend.is_some() || !mounts.is_empty();
        let added: Vec<OsString> =
            presets.iter().filter(|preset| yields(preset, &names, with_store)).flat_map(arguments).collect();
        let Reading { mut options, matches } = if added.is_empty() {
            Reading { options, matches }
        } else {
            let rest = args.len().min(1);
            let args: Vec<OsString> =
                args[..rest].iter().cloned().chain(added).chain(args[rest..].iter().cloned()).collect();
            usage::read(&args)?
        };
        if !said {
            (options.backend, options.mounts) = (backend, mounts);
        }
        usage::require(&options)?;
        let options = legacy::apply(options)?;
        let texts = texts(&options, &matches);
        Ok(Line { options, texts })
    }
}

/// Whether the command line leaves it to a file what this flag is, and whether it has a meaning at all.
fn yields(preset: &Preset, names: &BTreeSet<String>, with_store: bool) -> bool {
    let about_stores = plan::ABOUT_STORES.iter().any(|(flag, _)| flag.strip_prefix("--") == Some(&preset.name));
    let said = names.iter().any(|said| *said == preset.name || flags::exclude_each_other(said, &preset.name));
    !said && (with_store || !about_stores)
}

pub(super) fn arguments(preset: &Preset) -> Vec<OsString> {
    let switch = flags::all().iter().any(|flag| flag.name == preset.name && flag.kind == Kind::Switch);
    let name = &preset.name;
    if !switch {
        return preset.values.iter().map(|value| format!("--{name}={value}").into()).collect();
    }
    let on = preset.values.iter().all(|value| value == "true");
    let flag = if on { Some(name.as_str()) } else { flags::opposite(name) };
    flag.map(|flag| format!("--{flag}").into()).into_iter().collect()
}

/// The elements of all `-o` lists.
fn elements(options: &Options) -> impl Iterator<Item = &str> {
    options.compat_options.iter().flatten().flat_map(|list| list.split(','))
}

fn names(options: &Options, matches: &ArgMatches) -> BTreeSet<String> {
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let command = Options::command();
    let mut names: BTreeSet<String> = command
        .get_arguments()
        .filter(|arg| given(arg.get_id().as_str()))
        .filter_map(|arg| arg.get_long().map(str::to_owned))
        .collect();
    names.extend(elements(options).filter_map(legacy::flag_of).map(|(flag, _)| flag.to_owned()));
    // The short form's two, and the old name of one.
    if options.socket.is_some() || options.socket_path.is_some() {
        names.insert("socket-path".to_owned());
    }
    if options.backend.is_some() || !options.mounts.is_empty() {
        names.insert("backend".to_owned());
    }
    if options.compat_debug {
        names.insert("log-level".to_owned());
    }
    names
}

/// What each flag came to be, after the lists.
fn texts(options: &Options, matches: &ArgMatches) -> BTreeMap<String, Vec<String>> {
    let mut texts = BTreeMap::new();
    let command = Options::command();
    for flag in flags::all() {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&flag.name));
        let Some(raw) = arg.and_then(|arg| matches.get_raw(arg.get_id().as_str())) else { continue };
        texts.insert(flag.name.clone(), raw.map(|value| value.to_string_lossy().into_owned()).collect());
    }
    let mut set = |name: &str, value: Option<&String>| {
        if let Some(value) = value {
            texts.insert(name.to_owned(), vec![value.clone()]);
        }
    };
    set("socket-path", options.socket_path.as_ref().or(options.socket.as_ref()));
    set("backend", options.backend.as_ref());
    for (flag, value) in elements(options).filter_map(legacy::flag_of) {
        set(flag, Some(&value));
    }
    if options.compat_debug {
        set("log-level", Some(&"debug".to_owned()));
    }
    set("announce-submounts", Some(&(!options.no_announce_submounts).to_string()));
    set("killpriv-v2", Some(&options.killpriv_v2.to_string()));
    if options.backend.is_none() {
        texts.remove("backend");
    }
    texts.remove("no-announce-submounts");
    texts.remove("no-killpriv-v2");
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(name: &str, values: &[&str]) -> Preset {
        Preset { name: name.to_owned(), values: values.iter().map(|value| (*value).to_owned()).collect() }
    }

    fn line(line: &str, presets: &[Preset], backend: Option<&str>) -> Result<Line, String> {
        let args = std::iter::once("ovfs").chain(line.split_whitespace()).map(Into::into);
        let given = Given::read(args).map_err(|error| error.to_string())?;
        given.complete(presets, backend.map(str::to_owned), Vec::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn command_line_wins_over_presets() {
        let presets = [
            preset("cache", &["always"]),
            preset("uid", &["7"]),
            preset("readonly", &["true"]),
            preset("translate-uid", &["map:0:1:1", "map:1:5:1"]),
            preset("socket-path", &["file"]),
        ];
        let of_file = line("--fd 3", &presets, Some("memory://")).unwrap();
        assert_eq!(of_file.texts["cache"], ["always"]);
        assert!(of_file.options.readonly && of_file.options.socket_path.is_none());
        assert_eq!((of_file.options.uid, of_file.options.translate_uid.len()), (Some(7), 2));
        let args = "sock memory:///x --cache never --uid 8 --translate-uid map:9:9:1";
        let of_line = line(args, &presets, None).unwrap();
        assert_eq!((of_line.texts["cache"][0].as_str(), of_line.options.uid), ("never", Some(8)));
        assert_eq!(of_line.texts["translate-uid"], ["map:9:9:1"]);
        assert_eq!(of_line.texts["socket-path"], ["sock"]);
        assert_eq!(of_line.options.backend.as_deref(), Some("memory:///x"));
        let of_list =
            line("--socket s -o cache=none,source=d,no_xattr -d", &[preset("xattr", &["true"])], None).unwrap();
        assert_eq!((of_list.texts["cache"][0].as_str(), of_list.texts["log-level"][0].as_str()), ("never", "debug"));
        assert_eq!((of_list.texts["shared-dir"][0].as_str(), of_list.texts["socket-path"][0].as_str()), ("d", "s"));
        assert!(!of_list.options.xattr && of_list.options.socket_path.is_none());
    }

    #[test]
    fn switch_can_be_off_in_a_file() {
        let off = line("--fd 3 --shared-dir d", &[preset("announce-submounts", &["false"])], None).unwrap();
        assert!(off.options.no_announce_submounts);
        assert_eq!(off.texts["announce-submounts"], ["false"]);
        let on = line("--fd 3 --shared-dir d --announce-submounts", &[preset("announce-submounts", &["false"])], None);
        assert!(!on.unwrap().options.no_announce_submounts);
        assert!(!line("--fd 3 --shared-dir d", &[preset("readonly", &["false"])], None).unwrap().options.readonly);
    }

    #[test]
    fn what_is_about_stores_does_not_trouble_a_directory() {
        let presets = [preset("uid", &["7"]), preset("capacity", &["1G"])];
        assert_eq!(line("--fd 3 --shared-dir d", &presets, None).unwrap().options.uid, None);
        assert_eq!(line("--fd 3 --shared-dir d --gid 4", &presets, None).unwrap().options.gid, Some(4));
    }

    #[test]
    fn what_is_missing_is_asked_for_after_the_files() {
        assert!(line("--xattr", &[], None).unwrap_err().contains("--shared-dir <SHARED_DIR>"));
        assert!(line("--xattr", &[preset("socket-path", &["s"])], Some("memory://")).is_ok());
        assert!(line("--print-config", &[], None).is_ok());
    }
}
