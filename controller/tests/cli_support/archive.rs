//! A backup as a daemon sends it, of a state in which every file is one letter.

use postern_proto::SERVER_NAME;
use postern_proto::ids::PlanHash;
use serde_json::json;

const FILES: [&str; 8] = [
    "postern.db",
    "ca/format",
    "ca/root.crt",
    "ca/root.key",
    "ca/servers.crt",
    "ca/servers.key",
    "ca/agents.crt",
    "ca/agents.key",
];

/// Whole, with the key of its secrets in it or without.
pub(crate) fn archive(has_key: bool) -> Vec<u8> {
    let names: Vec<_> = FILES.into_iter().chain(has_key.then_some("secrets.key")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| json!({"path": name, "bytes": 1, "sha256": PlanHash::of(b"x").to_string()}))
        .collect();
    let manifest = json!({
        "format": "postern-backup", "version": 1, "postern": "0.0.0", "created_ms": 7,
        "cluster": "0199cccc-0000-7000-8000-000000000001", "server_name": SERVER_NAME,
        "secrets_key": "0000000000000000", "files": files,
    });
    let mut archive = tar::Builder::new(Vec::new());
    let mut append = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, content).unwrap();
    };
    append("postern-backup.json", manifest.to_string().as_bytes());
    names.iter().for_each(|name| append(name, b"x"));
    archive.into_inner().unwrap()
}
