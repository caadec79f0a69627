//! What dpkg has on this host, read once for each state of its file: thirty packages are one parse.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Sys, SysError};

/// Where dpkg keeps it. It is never changed in place: a new file takes the name.
const STATUS: &str = "/var/lib/dpkg/status";
/// The most that is read of it, bytes; a desktop's has 5 MB.
const LIMIT: u64 = 64 << 20;

/// How far dpkg is with a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpkgState {
    /// Installed and configured.
    Whole,
    /// The same, and triggers are still to be run.
    Triggers,
    /// Unpacked, and not configured.
    Unconfigured,
    /// Wanted, and cut off while it was unpacked: to be unpacked again from the start.
    HalfInstalled,
    /// Removed; its configuration files are still there.
    ConfigFiles,
    /// Anything else.
    Other,
}

/// A package that dpkg knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DpkgPackage {
    /// Its architecture, or `all`.
    pub arch: Box<str>,
    /// Its version; empty where there is none.
    pub version: Box<str>,
    /// How far it is.
    pub state: DpkgState,
    /// Somebody wants no other version of it than this.
    pub hold: bool,
}

/// All packages that dpkg knows of, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dpkg {
    by_name: HashMap<Box<str>, Vec<DpkgPackage>>,
}

impl Dpkg {
    /// From the text of dpkg's status file.
    #[must_use]
    pub fn parse(status: &str) -> Self {
        let mut all = Self::default();
        let mut fields = Fields::default();
        for line in status.lines() {
            if line.is_empty() {
                all.add(std::mem::take(&mut fields));
            } else if let Some((name, value)) = line.split_once(": ") {
                match name {
                    "Package" => fields.name = value,
                    "Status" => fields.status = value,
                    "Architecture" => fields.arch = value,
                    "Version" => fields.version = value,
                    _ => {}
                }
            }
        }
        all.add(fields);
        all
    }

    fn add(&mut self, fields: Fields<'_>) {
        if fields.name.is_empty() {
            return;
        }
        // want, error flag, state: hold is a wish about upgrades, not about being there.
        let mut words = fields.status.trim().split(' ');
        let (want, flag, state) = (words.next(), words.next(), words.next());
        let wanted = matches!(want, Some("install" | "hold"));
        let state = match (flag, state) {
            (Some("ok"), Some("installed")) => DpkgState::Whole,
            (Some("ok"), Some("triggers-pending" | "triggers-awaited")) => DpkgState::Triggers,
            (Some("reinstreq"), _) | (_, Some("half-installed")) if wanted => DpkgState::HalfInstalled,
            (_, Some("unpacked" | "half-configured")) => DpkgState::Unconfigured,
            (_, Some("config-files")) => DpkgState::ConfigFiles,
            _ => DpkgState::Other,
        };
        self.by_name.entry(fields.name.trim().into()).or_default().push(DpkgPackage {
            arch: fields.arch.trim().into(),
            version: fields.version.trim().into(),
            state,
            hold: want == Some("hold"),
        });
    }

    /// The package of this name that is whole, `NAME` or `NAME:ARCH`.
    #[must_use]
    pub fn installed(&self, name: &str) -> Option<&DpkgPackage> {
        let (name, arch) = name.split_once(':').map_or((name, None), |(name, arch)| (name, Some(arch)));
        let fits = |package: &&DpkgPackage| {
            package.state == DpkgState::Whole
                && arch.is_none_or(|arch| *package.arch == *arch || &*package.arch == "all")
        };
        self.by_name.get(name)?.iter().find(fits)
    }

    /// Every package, with its name, in no order.
    pub fn all(&self) -> impl Iterator<Item = (&str, &DpkgPackage)> {
        self.by_name.iter().flat_map(|(name, of)| of.iter().map(move |package| (&**name, package)))
    }

    /// Whether there are packages whose configuration dpkg did not come to.
    #[must_use]
    pub fn has_unconfigured(&self) -> bool {
        self.all().any(|(_, package)| package.state == DpkgState::Unconfigured)
    }

    /// The packages that dpkg was cut off at while it unpacked them, as apt names them, sorted. `journal` has what it
    /// has not taken over into its status yet, oldest first.
    #[must_use]
    pub fn half_installed(&self, journal: &[Self]) -> Vec<String> {
        let mut half = BTreeSet::new();
        for (name, package) in std::iter::once(self).chain(journal).flat_map(Self::all) {
            let name = match &*package.arch {
                "" | "all" => name.to_owned(),
                arch => format!("{name}:{arch}"),
            };
            match package.state {
                DpkgState::HalfInstalled => half.insert(name),
                _ => half.remove(&name),
            };
        }
        half.into_iter().collect()
    }
}

#[derive(Default)]
struct Fields<'a> {
    name: &'a str,
    status: &'a str,
    arch: &'a str,
    version: &'a str,
}

/// What a file was when it was read: another one under its name differs in one of these.
type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    let (changed, made) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    (meta.dev(), meta.ino(), meta.size(), changed, made)
}

/// The last parse, and what it was of.
#[derive(Debug, Default)]
pub(super) struct Memo(Mutex<Option<(Stamp, Arc<Dpkg>)>>);

impl Sys {
    /// What dpkg has now; `None` on a host without dpkg.
    pub fn dpkg(&self) -> Result<Option<Arc<Dpkg>>, SysError> {
        let file = match self.open(STATUS) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SysError::file("open", STATUS)(error)),
        };
        // Of the file that was opened, not of the name: in between it may have come to be another one.
        let now = stamp(&file.metadata().map_err(SysError::file("look at", STATUS))?);
        let mut memo = self.dpkg.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((was, parsed)) = &*memo
            && *was == now
        {
            return Ok(Some(Arc::clone(parsed)));
        }
        let parsed = Arc::new(Dpkg::parse(&read(file)?));
        *memo = Some((now, Arc::clone(&parsed)));
        Ok(Some(parsed))
    }
}

fn read(file: File) -> Result<String, SysError> {
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(SysError::file("read", STATUS))?;
    let len = bytes.len() as u64;
    if len > LIMIT {
        return Err(SysError::TooLarge { path: STATUS.to_owned(), bytes: len, limit: LIMIT });
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Package: curl\nStatus: install ok installed\nArchitecture: amd64\n\
                        Version: 7.88.1-10\nDescription: x\n Package: sneaky\n\n\
                        Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                        Package: half\nStatus: install reinstreq half-installed\nVersion: 2\n\n\
                        Package: held\nStatus: hold ok installed\nArchitecture: all\nVersion: 3\n\n\
                        Package: multi\nStatus: install ok installed\nArchitecture: i386\nVersion: 4\n\n\
                        Package: multi\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5\n";

    #[test]
    fn dpkg_status_by_table() {
        let cases = [
            ("curl", Some("7.88.1-10")),
            ("cur", None),
            ("url", None),
            ("sneaky", None),
            ("gone", None),
            ("half", None),
            ("held", Some("3")),
            ("held:arm64", Some("3")),
            ("multi:amd64", Some("5")),
            ("multi:arm64", None),
        ];
        let parsed = Dpkg::parse(TEXT);
        for (name, want) in cases {
            assert_eq!(parsed.installed(name).map(|found| &*found.version), want, "{name}");
        }
        assert!(parsed.installed("held").is_some_and(|found| found.hold));
        assert!(parsed.installed("curl").is_some_and(|found| !found.hold));
        assert_eq!(parsed.all().count(), 6);
        assert_eq!(Dpkg::parse(""), Dpkg::default());
    }

    #[test]
    fn what_is_not_configured_is_told() {
        let states = [
            ("Status: install ok installed\n", false),
            ("Status: install ok unpacked\n", true),
            ("Status: install ok half-configured\n", true),
            ("Status: install ok triggers-pending\n", false),
            ("Description: Status: install ok unpacked\n", false),
            ("Status: install reinstreq half-installed\n", false),
        ];
        for (status, want) in states {
            assert_eq!(Dpkg::parse(&format!("Package: a\n{status}")).has_unconfigured(), want, "{status:?}");
        }
    }

    #[test]
    fn what_is_half_unpacked_is_told() {
        let package = |name: &str, status: &str, arch: &str| {
            format!("Package: {name}\nStatus: {status}\nArchitecture: {arch}\nVersion: 1\n\n")
        };
        let text = [
            package("b", "install reinstreq half-installed", "amd64"),
            package("a", "install ok half-installed", "all"),
            package("c", "hold reinstreq unpacked", "i386"),
            // Its removal was cut off.
            package("d", "deinstall ok half-installed", "all"),
            package("e", "install ok unpacked", "all"),
            package("f", "install ok installed", "all"),
        ];
        let status = Dpkg::parse(&text.concat());
        assert_eq!(status.half_installed(&[]), ["a", "b:amd64", "c:i386"]);
        // What dpkg wrote last counts.
        let journal = [
            package("a", "install ok installed", "all"),
            package("g", "install reinstreq half-installed", "all"),
        ];
        let journal = journal.map(|text| Dpkg::parse(&text));
        assert_eq!(status.half_installed(&journal), ["b:amd64", "c:i386", "g"]);
    }

    #[test]
    fn one_parse_for_all_clones_until_the_file_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        assert!(sys.dpkg().unwrap().is_none());
        let path = dir.path().join("var/lib/dpkg");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("status"), TEXT).unwrap();
        let first = sys.dpkg().unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &sys.clone().dpkg().unwrap().unwrap()), "read twice");
        // As dpkg does it: a new file of the same length and even the same time takes the name.
        let meta = std::fs::metadata(path.join("status")).unwrap();
        std::fs::write(path.join("status-new"), TEXT.replace("7.88.1-10", "7.88.1-11")).unwrap();
        let new = File::options().write(true).open(path.join("status-new")).unwrap();
        new.set_modified(meta.modified().unwrap()).unwrap();
        std::fs::rename(path.join("status-new"), path.join("status")).unwrap();
        let second = sys.clone().dpkg().unwrap().unwrap();
        assert_eq!(&*second.installed("curl").unwrap().version, "7.88.1-11");
        assert!(Arc::ptr_eq(&second, &sys.dpkg().unwrap().unwrap()));
    }
}
