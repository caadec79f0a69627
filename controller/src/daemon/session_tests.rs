//! Tests of the session's logic without any I/O.
