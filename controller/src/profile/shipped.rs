//! The profiles that come with the program. Each is a file that a user can read, copy and change.

/// A profile inside of the program.
#[derive(Clone, Copy, Debug)]
pub struct Shipped {
    /// What `--profile` calls it.
    pub name: &'static str,
    /// Its YAML.
    pub text: &'static str,
}

/// All of them.
pub const SHIPPED: &[Shipped] = &[
    Shipped { name: "hello", text: include_str!("../../profiles/hello.yaml") },
    Shipped { name: "base", text: include_str!("../../profiles/base.yaml") },
    Shipped { name: "swarm", text: include_str!("../../profiles/swarm.yaml") },
    Shipped { name: "tunnel", text: include_str!("../../profiles/tunnel.yaml") },
    Shipped { name: "site", text: include_str!("../../profiles/site.yaml") },
];
