//! Building base images and keeping them in the cache.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::{LabError, Result};
use super::mirror;
use super::recipe::{AGENT_DEB, Recipe};
use super::spec::Image;
use super::store::{Lock, Places};
use super::sys::{Cmd, make_dir, remove, unmount_and_remove, write_file};

/// A build takes half a minute; a slow mirror may take longer.
const BUILD_DEADLINE: Duration = Duration::from_secs(20 * 60);

/// What of the cache nobody has used for so long is removed when another of its kind is made.
const UNUSED: Duration = Duration::from_secs(14 * 24 * 3600);

/// An image and whether it is in the cache.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// The image.
    pub image: Image,
    /// Its folder in the cache.
    pub dir: PathBuf,
    /// Whether it has been built.
    pub built: bool,
}

pub(super) fn info(places: &Places, image: Image) -> Result<ImageInfo> {
    let dir = places.cache.join(recipe(image).key());
    let built = dir.try_exists().map_err(LabError::io("look at", &dir))?;
    Ok(ImageInfo { image, dir, built })
}

/// The root folder of an image, which is built first when it is not in the cache.
pub(super) fn ensure(places: &Places, image: Image) -> Result<PathBuf> {
    let recipe = recipe(image);
    Ok(once(&places.cache, &recipe.key(), |temp| fill(temp, image, &recipe))?.join("root"))
}

/// Follows all that decides what an image holds.
pub(super) fn key(image: Image) -> String {
    recipe(image).key()
}

fn recipe(image: Image) -> Recipe {
    Recipe::of(image, mirror::apt_settings(), mirror::sources(image.release))
}

/// A folder of the cache, which `fill` fills in another place first when it is not there. Whoever comes while it is
/// being made waits.
pub(super) fn once(cache: &Path, key: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = cache.join(key);
    if !done.is_dir() {
        make_dir(cache)?;
        let _lock = Lock::wait(&cache.join(format!(".{key}.lock")), BUILD_DEADLINE)?;
        // Another process may have built it while we waited.
        if !done.is_dir() {
            build(cache, key, &done, fill)?;
            forget_unused(cache, key)?;
        }
    }
    // When it was last used; where that cannot be written, it is made again one day.
    let _ = fs::File::open(&done).and_then(|dir| dir.set_modified(SystemTime::now()));
    Ok(done)
}

/// Removes folders of the same kind that were made by recipes of before.
fn forget_unused(cache: &Path, key: &str) -> Result<()> {
    let kind = |name: &str| name.rsplit_once('-').map(|(kind, _)| kind.to_owned());
    for entry in fs::read_dir(cache).map_err(LabError::io("list", cache))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let used = entry.metadata().and_then(|meta| meta.modified());
        let unused = used.is_ok_and(|used| used.elapsed().is_ok_and(|since| since > UNUSED));
        if unused && name != key && kind(&name) == kind(key) && entry.path().is_dir() {
            unmount_and_remove(&entry.path())?;
        }
    }
    Ok(())
}

fn build(cache: &Path, key: &str, done: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    // We hold the lock, so whatever a killed builder left of this is nobody's.
    let half = format!(".build-{key}-");
    for entry in fs::read_dir(cache).map_err(LabError::io("list", cache))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&half) {
            unmount_and_remove(&entry.path())?;
        }
    }
    let temp = cache.join(format!("{half}{}", std::process::id()));
    make_dir(&temp)?;
    let outcome = fill(&temp);
    if let Err(e) = outcome {
        unmount_and_remove(&temp)?;
        return Err(e);
    }
    fs::rename(&temp, done).map_err(LabError::io("rename into place", &temp))
}

fn fill(temp: &Path, image: Image, recipe: &Recipe) -> Result<()> {
    let root = temp.join("root");
    let include = format!("--include={}", recipe.packages.join(","));
    let (root_text, release) = (root.to_string_lossy().into_owned(), image.release.to_string());
    // The build must not outlive us: its half image would be written on after another builder took over. When we die,
    // so does the first process of the build's own namespace, and with it all the others and all their mounts;
    // mmdebstrap's workers go on when only mmdebstrap is told to end.
    let mut argv: Vec<&str> = vec!["setpriv", "--pdeathsig", "KILL"];
    argv.extend(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    argv.extend(["mmdebstrap", "--mode=root", "--variant=minbase"]);
    argv.extend(["--format=directory", &include]);
    let options: Vec<String> = recipe.apt.iter().map(|line| format!("--aptopt={line}")).collect();
    argv.extend(options.iter().map(String::as_str));
    argv.extend([release.as_str(), &root_text]);
    argv.extend(recipe.sources.iter().map(String::as_str));
    // What mmdebstrap leaves in the temporary folder when it is killed goes with the half image.
    let scratch = temp.join("tmp");
    make_dir(&scratch)?;
    Cmd::new(argv).env("TMPDIR", &scratch).deadline(BUILD_DEADLINE).run()?;
    remove(&scratch)?;

    for entry in
        fs::read_dir(root.join("etc/ssh")).map_err(LabError::io("list", root.join("etc/ssh")))?.flatten()
    {
        // Keys made at build time would be the same on every host.
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            remove(entry.path())?;
        }
    }
    write_file(root.join("etc/machine-id"), "", 0o444)?;
    make_dir(root.join("var/log/journal"))?;
    for (path, mode, text) in &recipe.files {
        write_file(root.join(path.trim_start_matches('/')), text, *mode)?;
    }
    if let Some((control, postinst)) = recipe.agent {
        provider_package(temp, &root.join(AGENT_DEB.trim_start_matches('/')), control, postinst)?;
    }
    let list = ["chroot", &root_text, "dpkg-query", "-W"];
    write_file(temp.join("packages.txt"), Cmd::new(list).run()?.stdout, 0o644)?;
    let text = serde_json::to_vec_pretty(recipe).unwrap_or_default();
    write_file(temp.join("recipe.json"), text, 0o644)
}

fn provider_package(temp: &Path, deb: &Path, control: &str, postinst: &str) -> Result<()> {
    let tree = temp.join("provider");
    write_file(tree.join("DEBIAN/control"), control, 0o644)?;
    write_file(tree.join("DEBIAN/postinst"), postinst, 0o755)?;
    for dir in [&tree, &tree.join("DEBIAN")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
            .map_err(LabError::io("set the mode of", dir))?;
    }
    if let Some(parent) = deb.parent() {
        make_dir(parent)?;
    }
    Cmd::new([Path::new("dpkg-deb"), Path::new("--build"), Path::new("--root-owner-group"), &tree, deb])
        .run()?;
    remove(&tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_used_for_long_goes_when_another_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path();
        let old = SystemTime::now() - UNUSED - Duration::from_secs(3600);
        for name in ["internet-a", "internet-b", "internet-c", "bookworm-plain-a"] {
            fs::create_dir(cache.join(name)).unwrap();
            let at = if name == "internet-c" { SystemTime::now() - UNUSED / 2 } else { old };
            fs::File::open(cache.join(name)).unwrap().set_modified(at).unwrap();
        }
        // Whoever uses one keeps it.
        once(cache, "internet-b", |_| panic!("it is there")).unwrap();
        once(cache, "internet-new", |temp| write_file(temp.join("x"), "", 0o644)).unwrap();
        let there = |name: &str| cache.join(name).is_dir();
        assert!(!there("internet-a"), "it stays though nobody used it");
        for name in ["internet-b", "internet-c", "internet-new", "bookworm-plain-a"] {
            assert!(there(name), "{name} is gone");
        }
    }
}
