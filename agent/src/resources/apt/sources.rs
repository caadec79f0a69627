//! How apt writes down its sources, and what it calls the files that it fetches from them.

use crate::sys::{Sys, SysError};

/// Where apt looks for more sources.
pub(in crate::resources) const PARTS: &str = "/etc/apt/sources.list.d";
const MAIN: &str = "/etc/apt/sources.list";
/// The most that is read of a file of sources, bytes.
const LIMIT: u64 = 1 << 20;

/// One release at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::resources) struct Source {
    /// Without a slash at its end.
    pub(in crate::resources) uri: String,
    pub(in crate::resources) suite: String,
}

impl Source {
    pub(in crate::resources) fn new(uri: &str, suite: &str) -> Self {
        Self { uri: uri.trim_end_matches('/').to_owned(), suite: suite.to_owned() }
    }
}

/// Every file that apt reads its sources from, in its order, with those that are switched on.
pub(in crate::resources) fn all(host: &Sys) -> Result<Vec<(String, Vec<Source>)>, SysError> {
    let mut files: Vec<String> =
        host.list(PARTS)?.into_iter().map(|name| format!("{PARTS}/{name}")).collect();
    files.sort_unstable();
    let mut all = Vec::new();
    for path in std::iter::once(MAIN.to_owned()).chain(files) {
        let parse = match path.rsplit_once('.') {
            Some((_, "list")) => one_line,
            Some((_, "sources")) => deb822,
            _ => continue,
        };
        // A link there is somebody's choice, and apt follows it.
        let Some(bytes) = host.read_through(&path, LIMIT)? else { continue };
        all.push((path, parse(&String::from_utf8_lossy(&bytes))));
    }
    Ok(all)
}

/// The sources of a file in the form of sources.list(5), without those that are switched off.
fn one_line(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((kind, rest)) = line.split_once(char::is_whitespace) else { continue };
        if !matches!(kind, "deb" | "deb-src") {
            continue;
        }
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        if let (Some(uri), Some(suite)) = (words.next(), words.next()) {
            all.push(Source::new(uri, suite));
        }
    }
    all
}

/// The sources of a file in the deb822 form, without those that are switched off.
pub(in crate::resources) fn deb822(text: &str) -> Vec<Source> {
    let mut all = Vec::new();
    let mut paragraph: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            all.extend(paragraph_sources(&std::mem::take(&mut paragraph)));
        } else if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), paragraph.last_mut()) {
            *value = format!("{value} {}", line.trim());
        } else if let Some((name, value)) = line.split_once(':') {
            paragraph.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    all
}

fn paragraph_sources(fields: &[(String, String)]) -> Vec<Source> {
    let field =
        |wanted: &str| fields.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value.as_str());
    // apt's StringToBool.
    let off = matches!(
        field("enabled").to_ascii_lowercase().as_str(),
        "no" | "false" | "without" | "off" | "disable" | "0"
    );
    if off {
        return Vec::new();
    }
    let suites = || field("suites").split_whitespace();
    field("uris").split_whitespace().flat_map(|uri| suites().map(|suite| Source::new(uri, suite))).collect()
}

/// What the names of all files begin with that apt fetches of a source (apt's `URItoFileName`).
pub(in crate::resources) fn list_prefix(source: &Source) -> String {
    let whole = if source.suite == "/" {
        format!("{}/", source.uri)
    } else if source.suite.ends_with('/') {
        format!("{}/{}", source.uri, source.suite)
    } else {
        format!("{}/dists/{}/", source.uri, source.suite)
    };
    let rest = whole.split_once("://").map_or(whole.as_str(), |(_, rest)| rest);
    let mut name = String::new();
    for byte in rest.bytes() {
        match byte {
            b'/' => name.push('_'),
            _ if !byte.is_ascii_graphic() || b"\\|{}[]<>\"^~_=!@#$%&*".contains(&byte) => {
                name += &format!("%{byte:02x}");
            }
            _ => name.push(char::from(byte)),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_by_table() {
        let (one, two) = (Source::new("http://a.example/x/", "s"), Source::new("http://a.example/x", "t"));
        let lists = "# deb http://no.example s main\ndeb [signed-by=/k arch=amd64] http://a.example/x s main # why\n\
                     deb-src\thttp://a.example/x/ t main\n\nrpm http://b.example s main\ndeb\n";
        assert_eq!(one_line(lists), [one.clone(), two.clone()]);
        let stanzas = "Types: deb\nURIs: http://a.example/x\nSuites: s\n t\n# Suites: u\nComponents: main\n\n\
                       Types: deb\nEnabled: no\nuris: http://off.example\nsuites: s\n\n\n\
                       types: deb\nuris: http://c.example\nSuites: ./";
        assert_eq!(deb822(stanzas), [one, two, Source::new("http://c.example", "./")]);
        assert!(deb822("").is_empty() && one_line("").is_empty());
    }

    #[test]
    fn names_of_lists_by_table() {
        let cases = [
            ("https://deb.example/debian", "bookworm", "deb.example_debian_dists_bookworm_"),
            ("http://a.example:8080/my_repo/", "stable/x", "a.example:8080_my%5frepo_dists_stable_x_"),
            ("http://a.example/~me", "./", "a.example_%7eme_._"),
            ("http://a.example", "/", "a.example_"),
        ];
        for (uri, suite, want) in cases {
            assert_eq!(list_prefix(&Source::new(uri, suite)), want);
        }
    }
}
