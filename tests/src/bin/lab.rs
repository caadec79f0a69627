//! A small command over the lab.
fn main() {}
