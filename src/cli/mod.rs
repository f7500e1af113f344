//! The command line: virtiofsd's, plus ours.
