//! What the small internet serves, made once and kept in the cache: certificates, apt repositories, a registry.
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::config::NAMES;
use crate::lab::error::{LabError, Result};
use crate::lab::spec::Image;
use crate::lab::store::Places;
use crate::lab::sys::{Cmd, make_dir, read_text, remove, unmount_and_remove, write_file};
use crate::lab::{guest, image, venv};

/// Packing half a gigabyte takes half a minute; a slow mirror may take longer.
const BUILD_DEADLINE: Duration = Duration::from_secs(10 * 60);

/// The programs that make it, run in the image of the servers.
const SCRIPTS: [(&str, &str); 7] = [
    ("all.sh", include_str!("build/all.sh")),
    ("cloudflared.pl", include_str!("build/cloudflared.pl")),
    ("cloudflared.sh", include_str!("build/cloudflared.sh")),
    ("docker.sh", include_str!("build/docker.sh")),
    ("images.sh", include_str!("build/images.sh")),
    ("repository.sh", include_str!("build/repository.sh")),
    ("trust.sh", include_str!("build/trust.sh")),
];

/// The tag of the lab's own image.
const IMAGE_VERSION: &str = "1";

/// Made for both releases out of these packages of Debian's; the last is a package of its own in newer ones only.
const ENGINE: &str =
    "docker.io containerd runc $(apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli)";

/// A folder in the cache: `root` is laid over the servers' image, `private` has the keys that no server needs.
#[derive(Debug, Clone)]
pub(super) struct Content {
    dir: PathBuf,
}

impl Content {
    /// The content, which is made first when it is not in the cache.
    pub(super) fn ensure(places: &Places) -> Result<Content> {
        let slots = slots_dir(places);
        // Why there is none was said when it was looked for; the stand-in says itself that it is one.
        let traefik = venv::traefik(&places.cache)?.ok();
        let key = key(&slots, traefik.is_some())?;
        let dir = image::once(&places.cache, &key, |temp| fill(places, &slots, traefik.as_deref(), temp))?;
        Ok(Content { dir })
    }

    /// The layer for the servers.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The certificate of the authority.
    pub(super) fn ca(&self) -> Result<String> {
        self.text("ca.crt")
    }

    /// Lines of one of the lists that the scripts wrote.
    pub(super) fn lines(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.text(name)?.lines().map(str::to_owned).collect())
    }

    fn text(&self, name: &str) -> Result<String> {
        read_text(self.root().join("srv/lab").join(name))
    }
}

/// Its folder in the cache, whether it is there or not.
pub(super) fn place(places: &Places) -> Result<PathBuf> {
    Ok(places.cache.join(key(&slots_dir(places), venv::has_traefik(&places.cache))?))
}

/// Where the real things may be put that the lab has none of, to be served instead of stand-ins:
/// `docker/RELEASE/*.deb`, `cloudflared/*.deb`, and `images/*.tar` as `docker save` writes them.
fn slots_dir(places: &Places) -> PathBuf {
    places.cache.join("slots")
}

/// Follows all that decides what comes out. Of what lies in the slots, name, size and time are looked at, as it is large.
fn key(slots: &Path, traefik: bool) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    };
    for text in SCRIPTS.iter().map(|(_, text)| *text).chain(NAMES).chain([IMAGE_VERSION, ENGINE]) {
        add(text);
    }
    for image in [Image::SERVERS, Image::BOOKWORM, Image::TRIXIE] {
        add(&image::key(image));
    }
    add(if traefik { venv::TRAEFIK } else { "" });
    for (path, size, time) in files_below(slots)? {
        add(&format!("{} {size} {time}", path.display()));
    }
    let hash: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
    Ok(format!("internet-{hash}"))
}

fn files_below(dir: &Path) -> Result<Vec<(PathBuf, u64, i64)>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.map_err(LabError::io("list", &folder))?,
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let meta = fs::metadata(&path).map_err(LabError::io("look at", &path))?;
            if meta.is_dir() {
                folders.push(path);
            } else {
                found.insert(path, (meta.size(), meta.mtime()));
            }
        }
    }
    Ok(found.into_iter().map(|(path, (size, time))| (path, size, time)).collect())
}

fn fill(places: &Places, slots: &Path, traefik: Option<&Path>, temp: &Path) -> Result<()> {
    let work = temp.join("work");
    guest::mount(&work, &[&image::ensure(places, Image::SERVERS)?], None)?;
    let build = work.join("root/build");
    for (name, text) in SCRIPTS {
        write_file(build.join("scripts").join(name), text, 0o755)?;
    }
    make_dir(build.join("slots"))?;
    if slots.exists() {
        let (from, to) = (slots.join("."), build.join("slots"));
        Cmd::new(["cp".as_ref(), "-rL".as_ref(), from.as_os_str(), to.as_os_str()])
            .deadline(BUILD_DEADLINE)
            .run()?;
    }
    if let Some(program) = traefik {
        let to = build.join("traefik");
        fs::copy(program, &to).map_err(LabError::io("copy", program))?;
    }
    for image in [Image::BOOKWORM, Image::TRIXIE] {
        fetch_engine(places, image, temp, &build.join("debs").join(image.release.to_string()))?;
    }
    let script = ["bash", "/build/scripts/all.sh", IMAGE_VERSION];
    // Nothing in there is to be asked of anybody outside.
    jail(&work.join("root"), &["--net"], script.into_iter().chain(NAMES)).deadline(BUILD_DEADLINE).run()?;

    let made = work.join("layer/up");
    make_dir(temp.join("root"))?;
    for (from, to) in [("srv", temp.join("root/srv")), ("build/private", temp.join("private"))] {
        let from = made.join(from);
        fs::rename(&from, to).map_err(LabError::io("move", &from))?;
    }
    unmount_and_remove(&work)
}

/// Downloads Debian's own engine of a release, from where its images come from.
fn fetch_engine(places: &Places, image: Image, temp: &Path, to: &Path) -> Result<()> {
    let Image { release, .. } = image;
    let work = temp.join(format!("fetch-{release}"));
    guest::mount(&work, &[&image::ensure(places, image)?], None)?;
    let root = work.join("root");
    remove(root.join("etc/resolv.conf"))?;
    write_file(root.join("etc/resolv.conf"), guest::resolvers()?, 0o644)?;
    // Apt downloads as a user of its own, which must be able to write.
    let line = format!("apt-get -q update && mkdir -m 777 /debs && cd /debs && apt-get -q download {ENGINE}");
    jail(&root, &[], ["sh", "-c", &line]).deadline(BUILD_DEADLINE).run()?;
    if let Some(parent) = to.parent() {
        make_dir(parent)?;
    }
    let (from, to) = (root.join("debs"), to.as_os_str());
    Cmd::new(["cp".as_ref(), "-r".as_ref(), from.as_os_str(), to]).run()?;
    unmount_and_remove(&work)
}

/// A program with a root folder and processes of its own; all of it ends with us.
fn jail<'a>(root: &Path, more: &[&str], argv: impl IntoIterator<Item = &'a str>) -> Cmd {
    let mut all = vec!["setpriv".to_owned(), "--pdeathsig".to_owned(), "KILL".to_owned()];
    all.extend(super::namespace(root, more));
    all.extend(argv.into_iter().map(str::to_owned));
    Cmd::new(all).clean_env(&[("HOME", "/root"), ("DEBIAN_FRONTEND", "noninteractive")])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stand-in, the real one and the image's name are of one release.
    #[test]
    fn there_is_one_release_of_traefik() {
        let version =
            venv::TRAEFIK.split_whitespace().next().and_then(|word| word.split_once("==")).unwrap().1;
        let images = SCRIPTS.iter().find(|(name, _)| *name == "images.sh").unwrap().1;
        assert!(images.contains(&format!("\ntraefik=v{version}\n")), "{version}");
    }
}
