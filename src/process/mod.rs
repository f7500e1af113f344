//! What surrounds the file system in the operating system: log, limits, socket, sandbox, capabilities, signals.
