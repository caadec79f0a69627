//! Where Debian's packages come from on this machine: its own mirror and apt settings, so that the lab works where
//! the default mirror is out of reach.
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use super::spec::Release;
use super::sys::Cmd;

/// Apt settings that matter to whoever fetches over the same network.
const SETTINGS: &[&str] = &[
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
];

/// The machine's settings, each as a line of an apt configuration file. Asked for once in a process.
pub(super) fn apt_settings() -> Vec<String> {
    static SETTINGS_HERE: OnceLock<Vec<String>> = OnceLock::new();
    SETTINGS_HERE.get_or_init(ask_apt).clone()
}

fn ask_apt() -> Vec<String> {
    let dump = match Cmd::new(["apt-config", "dump"]).output() {
        Ok(output) => output.text(),
        // Not a Debian machine: it has no settings to hand on.
        Err(_) => return Vec::new(),
    };
    let ours = |line: &&str| line.split_once(' ').is_some_and(|(name, _)| SETTINGS.contains(&name));
    dump.lines().filter(ours).filter(|l| !l.ends_with("\"\";")).map(str::to_owned).collect()
}

/// Source lines for a release; empty when the machine names no Debian mirror, which means the default one.
pub(super) fn sources(release: Release) -> Vec<String> {
    let mut uris = Vec::new();
    let list = Path::new("/etc/apt/sources.list").to_path_buf();
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    for path in std::iter::once(list).chain(parts) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        match path.extension().and_then(|e| e.to_str()) {
            Some("list") => uris.extend(one_line_uris(&text)),
            Some("sources") => uris.extend(deb822_uris(&text)),
            _ => {}
        }
    }
    lines(release, &uris)
}

fn one_line_uris(text: &str) -> Vec<String> {
    let entries =
        text.lines().filter_map(|l| l.trim().strip_prefix("deb ").or_else(|| l.trim().strip_prefix("deb\t")));
    entries
        .filter_map(|rest| {
            let rest = rest.trim_start();
            let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
            rest.split_whitespace().next().map(str::to_owned)
        })
        .collect()
}

fn deb822_uris(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter(|stanza| !stanza.lines().any(|l| l.trim().eq_ignore_ascii_case("enabled: no")))
        .flat_map(str::lines)
        .filter_map(|l| l.strip_prefix("URIs:"))
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect()
}

fn lines(release: Release, uris: &[String]) -> Vec<String> {
    let ending = |end: &str| {
        uris.iter()
            .find(|u| u.starts_with("http") && u.trim_end_matches('/').ends_with(end))
            .map(String::as_str)
    };
    let Some(main) = ending("/debian") else { return Vec::new() };
    let mut lines = vec![format!("deb {main} {release} main"), format!("deb {main} {release}-updates main")];
    if let Some(security) = ending("/debian-security") {
        lines.push(format!("deb {security} {release}-security main"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms_of_sources() {
        let old = "# deb http://no.example/debian x main\ndeb [signed-by=/k] https://m.example/debian bookworm main\n";
        assert_eq!(one_line_uris(old), ["https://m.example/debian"]);
        let new = "Types: deb\nURIs: http://m.example/debian-security\nSuites: x\n\n\
                   Enabled: no\nURIs: http://off.example/debian\n";
        assert_eq!(deb822_uris(new), ["http://m.example/debian-security"]);
        let both = ["http://m.example/debian".to_owned(), "http://m.example/debian-security/".to_owned()];
        assert_eq!(
            lines(Release::Trixie, &both),
            [
                "deb http://m.example/debian trixie main",
                "deb http://m.example/debian trixie-updates main",
                "deb http://m.example/debian-security/ trixie-security main"
            ]
        );
        assert!(lines(Release::Trixie, &["http://m.example/ubuntu".to_owned()]).is_empty());
    }
}
