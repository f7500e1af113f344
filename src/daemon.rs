//! The start order, from parsed flags to exit code.
