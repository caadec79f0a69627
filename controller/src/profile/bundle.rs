//! A profile with every file it names, so that it can be compiled again where its files are not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::diag::{Diagnostic, Place, Sink, closest};
use super::shipped::SHIPPED;
use super::yaml::{self, Node, Value};

/// The largest file of a profile, bytes.
pub const MAX_PROFILE_BYTES: usize = 1024 * 1024;
/// The largest bundle, bytes, as [`Bundle::to_bytes`] writes it.
pub const MAX_BUNDLE_BYTES: usize = 4 * 1024 * 1024;
/// The most files of one bundle.
const MAX_FILES: usize = 256;
/// How deep includes go.
pub(crate) const MAX_INCLUDES: usize = 16;
/// The version of a bundle's own JSON.
const BUNDLE_VERSION: u32 = 1;

/// Everything that is needed to compile a profile: its text and the files it names.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    root: String,
    files: BTreeMap<String, Content>,
}

/// A file of a bundle.
#[derive(Clone, Debug, PartialEq)]
enum Content {
    Text(String),
    /// It cannot be used; told when it is compiled, together with all else that is wrong. A place where there
    /// is one in the file itself.
    Broken {
        place: Option<Place>,
        message: String,
    },
}

/// Why bytes are not a bundle.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BundleError {
    /// More than [`MAX_BUNDLE_BYTES`].
    #[error("the profile with its files has {0} bytes, the limit is {MAX_BUNDLE_BYTES}")]
    TooLarge(usize),
    /// Written by a newer build.
    #[error("the stored profile has version {0}, this build knows {BUNDLE_VERSION}")]
    TooNew(u32),
    /// Not a bundle.
    #[error("the stored profile cannot be read: {0}")]
    Malformed(String),
    /// A file of it could not be read when it was made.
    #[error("{0} could not be read")]
    Broken(String),
}

/// As it is written down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    root: String,
    files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Bundle {
    /// A profile of one file, which needs no other: for texts that are not on a disk.
    #[must_use]
    pub fn new(file: &str, bytes: &[u8]) -> Self {
        Self { root: file.to_owned(), files: BTreeMap::from([(file.to_owned(), Content::of(bytes))]) }
    }

    /// The same with one more file, named as the profile finds it.
    #[must_use]
    pub fn with(mut self, file: &str, bytes: &[u8]) -> Self {
        self.files.insert(file.to_owned(), Content::of(bytes));
        self
    }

    /// The profile's own file, as it was named.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.root
    }

    /// The profile's own text, where it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.get(&self.root).ok()
    }

    /// Versioned JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        let mut files = BTreeMap::new();
        for (name, content) in &self.files {
            match content {
                Content::Text(text) => files.insert(name.clone(), text.clone()),
                Content::Broken { .. } => return Err(BundleError::Broken(name.clone())),
            };
        }
        let stored = Stored { version: BUNDLE_VERSION, root: self.root.clone(), files };
        let bytes = serde_json::to_vec(&stored).map_err(|error| BundleError::Malformed(error.to_string()))?;
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        Ok(bytes)
    }

    /// What [`Bundle::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BundleError> {
        if bytes.len() > MAX_BUNDLE_BYTES {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        let malformed = |error: serde_json::Error| BundleError::Malformed(error.to_string());
        let Version { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version > BUNDLE_VERSION {
            return Err(BundleError::TooNew(version));
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != BUNDLE_VERSION || stored.files.len() > MAX_FILES {
            return Err(BundleError::Malformed("no such version, or too many files".into()));
        }
        if !stored.files.contains_key(&stored.root) {
            return Err(BundleError::Malformed("the profile itself is not in it".into()));
        }
        let files =
            stored.files.into_iter().map(|(name, text)| (name, Content::of(text.as_bytes()))).collect();
        Ok(Self { root: stored.root, files })
    }

    /// The names of all profiles in it.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let texts = self.files.values().filter_map(|content| match content {
            Content::Text(text) => Some(text.as_str()),
            Content::Broken { .. } => None,
        });
        texts.filter_map(super::compile::name_of).collect()
    }

    /// The text of a file, or what is wrong with it, with a place in it where there is one.
    pub(crate) fn get(&self, file: &str) -> Result<&str, (Option<Place>, &str)> {
        match self.files.get(file) {
            Some(Content::Text(text)) => Ok(text),
            Some(Content::Broken { place, message }) => Err((*place, message)),
            None => Err((None, "is not among the files of this profile, which are 256 at most")),
        }
    }

    /// Reads a profile and every file it names. What cannot be read is told by `compile`, at the line that
    /// names it.
    pub(crate) fn read(name: &str, cwd: &Path) -> Result<Self, Diagnostic> {
        let fail = |message: String| Diagnostic::new(name, Place::START, message);
        let mut bundle = if is_path(name) {
            let bytes =
                read_bounded(&cwd.join(name)).map_err(|error| fail(format!("cannot be read: {error}")))?;
            Self::new(name, &bytes)
        } else {
            let shipped = SHIPPED.iter().find(|shipped| shipped.name == name);
            let shipped = shipped.ok_or_else(|| {
                fail("there is no shipped profile of this name".into()).hint(instead(name, cwd))
            })?;
            Self::new(name, shipped.text.as_bytes())
        };
        bundle.gather(name, cwd, MAX_INCLUDES);
        Ok(bundle)
    }

    /// Adds every file that `file` names and that is not there yet.
    fn gather(&mut self, file: &str, cwd: &Path, depth: usize) {
        // What is wrong with the text is told when it is compiled.
        let Ok(Some(root)) = self.get(file).map(|text| yaml::parse(text, &mut Sink::new(file))) else {
            return;
        };
        for (what, wanted) in named(&root) {
            let name = resolve(file, what, wanted);
            if self.files.contains_key(&name) || self.files.len() >= MAX_FILES {
                continue;
            }
            let content = match SHIPPED.iter().find(|shipped| shipped.name == name) {
                Some(shipped) if what == Names::Profile => Content::Text(shipped.text.to_owned()),
                _ if what == Names::Profile && !is_path(wanted) => {
                    let hint = instead(&name, cwd);
                    Content::broken(format!("is not the name of a shipped profile ({hint})"))
                }
                _ => match regular(&cwd.join(&name)) {
                    Ok(bytes) => Content::of(&bytes),
                    Err(error) => Content::broken(format!("cannot be read: {error}")),
                },
            };
            self.files.insert(name.clone(), content);
            if what == Names::Profile && depth > 0 {
                self.gather(&name, cwd, depth - 1);
            }
        }
    }
}

impl Content {
    fn broken(message: String) -> Self {
        Self::Broken { place: None, message }
    }

    fn of(bytes: &[u8]) -> Self {
        if bytes.len() > MAX_PROFILE_BYTES {
            let message = format!("larger than {MAX_PROFILE_BYTES} bytes");
            return Self::Broken { place: Some(Place::START), message };
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(error) => {
                let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
                let last = String::from_utf8_lossy(before.get(start..).unwrap_or_default());
                let place = Place { line, column: 1 + last.chars().count() };
                Self::Broken { place: Some(place), message: "this is not UTF-8 text".into() }
            }
        }
    }
}

/// What a profile names a file as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Profile,
    File,
}

/// The files that a profile names.
fn named(root: &Node) -> Vec<(Names, &str)> {
    let Some(Value::List(items)) = field(root, "resources").map(|node| &node.value) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for item in items {
        found.extend(field(item, "include").and_then(text).map(|text| (Names::Profile, text)));
        let file = field(item, "file");
        for key in ["source", "template"] {
            found.extend(
                file.and_then(|file| field(file, key)).and_then(text).map(|text| (Names::File, text)),
            );
        }
    }
    found
}

fn field<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
        _ => None,
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar(scalar) if !scalar.is_null() => Some(&scalar.text),
        _ => None,
    }
}

/// What a bundle calls a file that `from` names: a shipped profile by its name, any other as a path beside
/// `from`. `..` takes back the directory before it, as text.
pub(crate) fn resolve(from: &str, what: Names, wanted: &str) -> String {
    if what == Names::Profile && !is_path(wanted) {
        return wanted.to_owned();
    }
    let beside = Path::new(from).parent().unwrap_or(Path::new("")).join(wanted);
    let mut clean = PathBuf::new();
    for component in beside.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    let name = clean.to_string_lossy().into_owned();
    // Never taken for a shipped profile.
    if SHIPPED.iter().any(|shipped| shipped.name == name) { format!("./{name}") } else { name }
}

fn is_path(name: &str) -> bool {
    name.contains('/') || name.ends_with(".yaml") || name.ends_with(".yml")
}

/// What to do about the name of a profile that is not shipped.
fn instead(name: &str, cwd: &Path) -> String {
    if cwd.join(name).is_file() {
        format!("for the file of that name, write ./{name}")
    } else if let Some(close) = closest(name, SHIPPED.iter().map(|shipped| shipped.name)) {
        format!("did you mean {close}?")
    } else {
        "a file is named with a slash or with .yaml; `postern profile list` shows what is shipped".into()
    }
}

/// At most one byte more than the limit, so that it is told as too large.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same of a regular file: what a profile names must not be a pipe that nobody writes to.
fn regular(path: &Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    read_bounded(path)
}
