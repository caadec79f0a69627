//! Making a host's root file system: an overlay over the base image, then names, keys, users and files.
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{LabError, Result};
use super::internet::Internet;
use super::mirror;
use super::recipe::cloud_seed;
use super::spec::{Flavour, HostSpec, Sudo};
use super::store::HostRecord;
use super::sys::{Cmd, Output, make_dir, read_text, remove, write_file};

/// A key by which a host proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ssh-rsa`.
    pub algorithm: String,
    /// The key as in `known_hosts`, in base 64.
    pub key: String,
    /// `SHA256:…`, as ssh shows it.
    pub fingerprint: String,
}

/// Mounts the host's root: the layers below (the first of them on top), the host's own layer above.
pub(super) fn mount(dir: &Path, below: &[&Path], disk_limit: Option<u64>) -> Result<()> {
    let (layer, root) = (dir.join("layer"), dir.join("root"));
    make_dir(&layer)?;
    make_dir(&root)?;
    if let Some(bytes) = disk_limit {
        let options = format!("size={bytes},mode=0755");
        let args = ["mount", "-t", "tmpfs", "-o", &options, "postern-lab"].map(OsStr::new);
        Cmd::new(args.iter().copied().chain([layer.as_os_str()])).run()?;
    }
    let (upper, work) = (layer.join("up"), layer.join("work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    // The mode of the upper folder is what the guest sees on `/`.
    set_mode(&upper, 0o755)?;
    let below = below.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={below},upperdir={},workdir={}", upper.display(), work.display());
    let args = ["mount", "-t", "overlay", "-o", &options, "postern-lab"].map(OsStr::new);
    Cmd::new(args.iter().copied().chain([root.as_os_str()])).run()?;
    Ok(())
}

/// Writes into the root what makes this host itself. `lab_key` is the lab's own public key.
pub(super) fn populate(
    dir: &Path,
    record: &HostRecord,
    spec: &HostSpec,
    lab_key: &str,
    run: u64,
    internet: Option<&Internet>,
) -> Result<Vec<HostKey>> {
    let root = dir.join("root");
    let name = &spec.name;
    write_file(root.join("etc/hostname"), format!("{name}\n"), 0o644)?;
    let hosts = format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n");
    write_file(root.join("etc/hosts"), hosts, 0o644)?;
    // A link into /run would be followed out of the guest.
    remove(root.join("etc/resolv.conf"))?;
    match internet {
        None => write_file(root.join("etc/resolv.conf"), resolvers()?, 0o644)?,
        Some(internet) => lead_to(&root, internet)?,
    }

    let keys = |given: &[String]| {
        let mut all: Vec<String> = given.iter().map(|k| k.trim().to_owned()).collect();
        all.push(lab_key.trim().to_owned());
        all
    };
    authorize(&root.join("root"), &keys(&spec.authorized_keys), None)?;
    if let Some(password) = &spec.root_password {
        set_password(&root, "root", password)?;
        write_file(root.join("etc/ssh/sshd_config.d/41-lab-root.conf"), "PermitRootLogin yes\n", 0o600)?;
    }
    for (number, user) in spec.users.iter().enumerate() {
        chroot(&root, &["useradd", "--create-home", "--shell", "/bin/bash", "--", &user.name])?;
        if let Some(password) = &user.password {
            set_password(&root, &user.name, password)?;
        }
        let rule = match user.sudo {
            Sudo::None => None,
            Sudo::WithPassword => Some("ALL=(ALL:ALL) ALL"),
            Sudo::NoPassword => Some("ALL=(ALL:ALL) NOPASSWD:ALL"),
        };
        if let Some(rule) = rule {
            // sudo skips files whose name has a dot, as a user's name may.
            let file = root.join(format!("etc/sudoers.d/lab-user-{number}"));
            write_file(file, format!("{} {rule}\n", user.name), 0o440)?;
        }
        let (uid, gid, home) = passwd_entry(&root, &user.name)?;
        authorize(&root.join(home.trim_start_matches('/')), &keys(&user.keys), Some((uid, gid)))?;
    }
    if let Some(text) = &spec.sshd_extra {
        write_file(root.join("etc/ssh/sshd_config.d/40-lab.conf"), format!("{}\n", text.trim_end()), 0o600)?;
    }
    if record.image.flavour == Flavour::Shipped {
        let seconds = format!("{}\n", spec.first_boot_lock_seconds);
        write_file(root.join("etc/provider-guest-agent.seconds"), seconds, 0o644)?;
        for (file, text) in cloud_seed(name, run, &keys(&spec.authorized_keys)) {
            write_file(root.join("var/lib/cloud/seed/nocloud").join(file), text, 0o600)?;
        }
    }
    for gone in &spec.remove {
        remove(inside(&root, gone))?;
    }
    for file in &spec.files {
        write_file(inside(&root, &file.path), &file.content, file.mode)?;
    }
    let host_keys = make_host_keys(&root)?;
    if record.docker {
        for folder in ["docker", "containerd"] {
            make_dir(dir.join(folder))?;
            make_dir(root.join("var/lib").join(folder))?;
        }
    }
    Ok(host_keys)
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(LabError::io("set the mode of", path))
}

fn chroot(root: &Path, argv: &[&str]) -> Result<Output> {
    let head = [OsStr::new("chroot"), root.as_os_str()];
    Cmd::new(head.into_iter().chain(argv.iter().map(OsStr::new))).clean_env(&[]).run()
}

fn set_password(root: &Path, user: &str, password: &str) -> Result<()> {
    let head = [OsStr::new("chroot"), root.as_os_str(), OsStr::new("chpasswd")];
    Cmd::new(head).clean_env(&[]).input(format!("{user}:{password}\n")).run().map(drop)
}

fn passwd_entry(root: &Path, user: &str) -> Result<(u32, u32, String)> {
    let text = read_text(root.join("etc/passwd"))?;
    let entry = text.lines().map(|l| l.split(':').collect::<Vec<_>>()).find(|f| f.first() == Some(&user));
    let parsed =
        entry.and_then(|f| Some((f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?, (*f.get(5)?).to_owned())));
    parsed.ok_or_else(|| LabError::Invalid(format!("useradd made no usable entry for {user}")))
}

fn authorize(home: &Path, keys: &[String], owner: Option<(u32, u32)>) -> Result<()> {
    let ssh = home.join(".ssh");
    make_dir(&ssh)?;
    set_mode(&ssh, 0o700)?;
    let file = ssh.join("authorized_keys");
    write_file(&file, keys.join("\n") + "\n", 0o600)?;
    if let Some((uid, gid)) = owner {
        for path in [&ssh, &file] {
            chown(path, Some(uid), Some(gid)).map_err(LabError::io("change the owner of", path))?;
        }
    }
    Ok(())
}

/// Makes a host ask the lab's name server, and trust the lab's authority as a user would make it.
fn lead_to(root: &Path, internet: &Internet) -> Result<()> {
    write_file(root.join("etc/resolv.conf"), format!("nameserver {}\n", internet.name_server()), 0o644)?;
    let ca = root.join("usr/local/share/ca-certificates/postern-lab.crt");
    write_file(ca, internet.ca_certificate(), 0o644)?;
    chroot(root, &["update-ca-certificates"])?;
    if mirror::apt_settings().iter().any(|line| line.contains("::Proxy")) {
        // A proxy of the machine knows nothing of our names.
        let direct = internet.names().iter().map(|n| format!("Acquire::https::Proxy::{n} \"DIRECT\";\n"));
        write_file(root.join("etc/apt/apt.conf.d/99lab-internet"), direct.collect::<String>(), 0o644)?;
    }
    Ok(())
}

/// The machine's resolvers. One on the machine's own loopback is of no use to a guest.
pub(super) fn resolvers() -> Result<String> {
    let usable = |text: &str| -> Vec<String> {
        let entries = text.lines().filter_map(|l| l.strip_prefix("nameserver"));
        entries.map(|a| a.trim().to_owned()).filter(|a| !a.starts_with("127.") && a != "::1").collect()
    };
    for path in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let found = usable(&fs::read_to_string(path).unwrap_or_default());
        if !found.is_empty() {
            return Ok(found.iter().map(|a| format!("nameserver {a}\n")).collect());
        }
    }
    Ok("# the machine has no resolver that a guest could reach\n".to_owned())
}

fn make_host_keys(root: &Path) -> Result<Vec<HostKey>> {
    Cmd::new([
        OsStr::new("ssh-keygen"),
        OsStr::new("-q"),
        OsStr::new("-A"),
        OsStr::new("-f"),
        root.as_os_str(),
    ])
    .run()?;
    let dir = root.join("etc/ssh");
    let mut keys = Vec::new();
    for entry in fs::read_dir(&dir).map_err(LabError::io("list", &dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.starts_with("ssh_host_") && name.ends_with(".pub")) {
            continue;
        }
        let text = read_text(entry.path())?;
        let mut words = text.split_whitespace().map(str::to_owned);
        let path = entry.path();
        let listing = Cmd::new([OsStr::new("ssh-keygen"), OsStr::new("-lf"), path.as_os_str()]).run()?.text();
        let fingerprint = listing.split_whitespace().nth(1).map(str::to_owned);
        if let (Some(algorithm), Some(key), Some(fingerprint)) = (words.next(), words.next(), fingerprint) {
            keys.push(HostKey { algorithm, key, fingerprint });
        }
    }
    keys.sort_by(|a, b| a.algorithm.cmp(&b.algorithm));
    Ok(keys)
}
