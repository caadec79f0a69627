//! Bootstrap over SSH.
