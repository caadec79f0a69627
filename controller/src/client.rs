//! The command line's connection to the daemon.
