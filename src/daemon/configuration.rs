//! Reading the files of settings, in a process of its own: what they contain of secrets must not be found in the memory of
//! the device process, but for what is handed to the broker and wiped.

use std::path::PathBuf;

use crate::cli::Given;
use crate::config::{self, Diagnostic, Settings, Sources};
use crate::process::isolated::{self, CheckError};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigurationError {
    /// A file is wrong.
    #[error(transparent)]
    Wrong(#[from] Diagnostic),
    /// They could not be read at all.
    #[error("Error reading the configuration: {0}")]
    Process(String),
}

/// The files that this command line is about.
fn sources(given: &Given) -> Sources {
    let options = given.options();
    Sources {
        config_file: options.config_file.as_ref().map(PathBuf::from),
        config_dir: options.config_dir.as_ref().map(PathBuf::from),
        shared_dir: given.shared_dir().map(PathBuf::from),
        has_backend: given.says("backend"),
    }
}

/// What files say beside the command line. Call it while there is one thread.
pub(super) fn read(given: &Given) -> Result<Settings, ConfigurationError> {
    if given.options().print_capabilities {
        return Ok(Settings::default());
    }
    let sources = sources(given);
    if sources.files()?.is_empty() {
        return Ok(Settings::default());
    }
    let work = || postcard::to_stdvec(&config::load(&sources)).unwrap_or_default();
    let answer = isolated::ask(work, |answer| postcard::from_bytes::<Result<Settings, Diagnostic>>(answer));
    match answer {
        Ok(Ok(settings)) => Ok(settings?),
        Ok(Err(error)) => Err(ConfigurationError::Process(error.to_string())),
        Err(CheckError::Process(error)) => Err(ConfigurationError::Process(error.to_string())),
        Err(CheckError::Failed(_) | CheckError::Died) => {
            Err(ConfigurationError::Process("it ended without an answer".to_owned()))
        }
    }
}
