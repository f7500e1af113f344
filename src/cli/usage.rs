//! From arguments to [`Options`], where clap's derive alone does not do: the short form with two positionals, and the
//! arguments of which one is required.
//!
//! virtiofsd knows no positionals, and its complaint about one comes before that about a missing flag. So the
//! arguments are read as virtiofsd reads them first; only when a positional is what stops that, they are read again
//! with two positionals allowed. Any other line of arguments fails with the error of the first reading.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, Parser};

use super::options::Options;

/// `ovfs <socket-path> <backend-url> [OPTIONS]`.
#[derive(Parser)]
#[command(name = "ovfs", args_override_self = true, override_usage = "ovfs <SOCKET_PATH> <URL> [OPTIONS]")]
struct ShortForm {
    #[command(flatten)]
    options: Options,
    #[arg(required = true, num_args = 2)]
    positionals: Vec<String>,
}

/// What the arguments say, without their `-o` lists.
pub(super) struct Reading {
    /// The flags.
    pub options: Options,
    /// The flags as text, to find out which were given.
    pub matches: ArgMatches,
}

/// Reads the arguments without their `-o` lists. Whether they are enough is for [`require`] to say.
pub(super) fn read(args: &[OsString]) -> Result<Reading, clap::Error> {
    match Options::command().try_get_matches_from(args) {
        Ok(matches) => Ok(Reading { options: from_matches::<Options>(&matches)?, matches }),
        Err(error) if error.kind() == ErrorKind::UnknownArgument => short_form(args, error),
        Err(error) => Err(error),
    }
}

/// What clap's `try_parse_from` does after the matching.
fn from_matches<T: Parser>(matches: &ArgMatches) -> Result<T, clap::Error> {
    T::from_arg_matches(matches).map_err(|error| error.format(&mut T::command()))
}

/// The options of the short form. If these arguments are not of that form, `otherwise` is what is wrong with them.
fn short_form(args: &[OsString], otherwise: clap::Error) -> Result<Reading, clap::Error> {
    let read = ShortForm::command().try_get_matches_from(args).and_then(|matches| {
        let form = from_matches::<ShortForm>(&matches)?;
        Ok((form, matches))
    });
    let (ShortForm { mut options, positionals }, matches) = match read {
        Ok(read) => read,
        Err(error) if means_short_form(args) && error.kind() == ErrorKind::ValueValidation => return Err(error),
        Err(_) => return Err(otherwise),
    };
    let Ok([socket_path, url]) = <[String; 2]>::try_from(positionals) else { return Err(otherwise) };
    let said_twice =
        options.socket_path.is_some() || options.socket.is_some() || options.fd.is_some() || options.backend.is_some();
    if said_twice || !url.contains(":/") {
        return Err(otherwise);
    }
    options.socket_path = Some(socket_path);
    options.backend = Some(url);
    Ok(Reading { options, matches })
}

/// Whether a URL stands where only the short form has one, so that a wrong value elsewhere is the thing to report.
fn means_short_form(args: &[OsString]) -> bool {
    args.windows(2).any(|two| {
        let url = two[1].to_str().is_some_and(|arg| !arg.starts_with('-') && arg.contains(":/"));
        url && !takes_value(&two[0])
    })
}

/// Refuses a line that names no share or no socket, in the words of clap's own check. It cannot be clap's, whose
/// check would not know of the short form, nor of files.
pub(super) fn require(options: &Options) -> Result<(), clap::Error> {
    if options.print_capabilities || options.print_config {
        return Ok(());
    }
    let mut missing = Vec::new();
    if options.shared_dir.is_none() && options.compat_options.is_none() && options.backend.is_none() {
        missing.push("--shared-dir <SHARED_DIR>");
    }
    if options.socket.is_none() && options.socket_path.is_none() && options.fd.is_none() {
        missing.extend(["--socket <SOCKET>", "--socket-path <SOCKET_PATH>", "--fd <FD>"]);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut command = Options::command();
    let mut error = clap::Error::new(ErrorKind::MissingRequiredArgument).with_cmd(&command);
    let missing = missing.into_iter().map(String::from).collect();
    error.insert(ContextKind::InvalidArg, ContextValue::Strings(missing));
    error.insert(ContextKind::Usage, ContextValue::StyledStr(command.render_usage()));
    Err(error)
}

/// Whether `arg` is an option whose value is the next argument, as `--tag` is and `--tag=x` or `--xattr` is not.
pub fn takes_value(arg: &OsStr) -> bool {
    let Some(arg) = arg.to_str().filter(|arg| arg.starts_with('-')) else { return false };
    Options::command().get_arguments().filter(|known| known.get_action().takes_values()).any(|known| {
        if known.is_require_equals_set() {
            return false;
        }
        let long = arg.strip_prefix("--").is_some_and(|name| known.get_long() == Some(name));
        let mut short = arg.strip_prefix('-').into_iter().flat_map(str::chars);
        long || (!arg.starts_with("--") && known.get_short().is_some() && known.get_short() == short.next_back())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let args: Vec<OsString> = std::iter::once("ovfs").chain(line.split_whitespace()).map(OsString::from).collect();
        let options =
            read(&args).map(|reading| reading.options).and_then(|options| require(&options).map(|()| options));
        options.map_err(|error| error.to_string())
    }

    #[test]
    fn short_form_takes_exactly_a_socket_and_a_url() {
        let options = parse("run/s s3://bucket/p?region=r --readonly --tag t").unwrap();
        assert_eq!(options.socket_path.as_deref(), Some("run/s"));
        assert_eq!(options.backend.as_deref(), Some("s3://bucket/p?region=r"));
        assert!(options.readonly);
        assert!(parse("--tag t run/s memory:///").is_ok());
        for line in [
            "extra --shared-dir d --socket-path s",
            "extra more --shared-dir d --socket-path s",
            "extra fs:/more and",
            "extra fs:/x --socket-path s",
            "extra fs:/x --backend fs:/y",
            "extra fs:/x --fd 3",
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with("error: unexpected argument 'extra' found\n"), "{line}: {error}");
        }
    }

    #[test]
    fn wrong_value_in_the_short_form_is_what_is_reported() {
        let error = parse("run/s fs:///x --cache-size 3M").unwrap_err();
        assert!(error.starts_with("error: invalid value '3M' for '--cache-size <BYTES>'"), "{error}");
        let error = parse("extra --cache bogus --shared-dir a:/b").unwrap_err();
        assert!(error.starts_with("error: unexpected argument 'extra' found"), "{error}");
    }

    #[test]
    fn missing_arguments_are_listed_in_order() {
        let all =
            "--shared-dir <SHARED_DIR>\n  --socket <SOCKET>\n  --socket-path <SOCKET_PATH>\n  --fd <FD>\n\nUsage: ";
        let error = parse("--xattr").unwrap_err();
        assert!(error.contains("the following required arguments were not provided:\n  "), "{error}");
        assert!(error.contains(all), "{error}");
        assert!(!parse("--shared-dir d").unwrap_err().contains("--shared-dir <SHARED_DIR>\n  --socket"));
        assert!(parse("--socket-path s").unwrap_err().contains("--shared-dir <SHARED_DIR>\n\n"));
        for line in ["--print-capabilities", "--socket-path s -o xattr", "--backend fs:/x --fd 3"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn takes_value_knows_which_options_do() {
        for (arg, expected) in [
            ("--shared-dir", true),
            ("--backend", true),
            ("-o", true),
            ("-do", true),
            ("--xattr", false),
            ("--posix-acl", false),
            ("--tag=x", false),
            ("-d", false),
            ("sock", false),
        ] {
            assert_eq!(takes_value(OsStr::new(arg)), expected, "{arg}");
        }
    }
}
