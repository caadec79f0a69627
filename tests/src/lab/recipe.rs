//! What goes into each base image: the pinned package lists and the texts that a provider would have put there.
//! Any change here changes the recipe's hash, and so the image is built anew.
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::spec::{Flavour, Image};

/// Raised when the code that builds an image changes what comes out.
const BUILD_VERSION: u32 = 1;

/// In every image. Fixed, so that an image cannot come to hold what a profile should install.
const PLAIN: &[&str] = &[
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "iptables",
    "libpam-systemd",
    "netbase",
    "openssh-server",
    "openssh-sftp-server",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// Added where the image is as providers ship it.
const SHIPPED: &[&str] = &["cloud-init", "python3"];

/// Added where the image boots by itself.
const KERNEL: &[&str] = &["initramfs-tools", "kmod", "linux-image-cloud-amd64"];

/// Added where the small internet is served from: its name server, its web server, its registry and its ACME server, and
/// what fills them.
const SERVERS: &[&str] = &[
    "apt-utils",
    "bind9",
    "bind9-dnsutils",
    "busybox-static",
    "docker-registry",
    "gnupg",
    "nginx",
    "openssl",
    "pebble",
    "perl",
    "skopeo",
    "zstd",
];

/// What the provider set for cloud-init, beside Debian's own file.
const CLOUD_CFG: &str = "\
# How this machine's provider set cloud-init up.
datasource_list: [NoCloud, None]
network: {config: disabled}
locale: false
disable_root: false
ssh_pwauth: true
ssh_deletekeys: false
ssh_genkeytypes: []
manage_etc_hosts: false
";

const CLOUD_SSHD: &str = "PasswordAuthentication yes\n";

/// A provider's guest agent: a real package that first boot installs with a real apt-get, and whose set-up takes
/// its time, so that apt's and dpkg's locks are held by those who hold them on a rented machine.
const AGENT_CONTROL: &str = "\
Package: provider-guest-agent
Version: 1.0
Architecture: all
Maintainer: Postern lab <lab@localhost>
Description: stands in for what a provider installs at first boot
 Its set-up waits, and so holds the package manager's locks for a while.
";

const AGENT_POSTINST: &str = "\
#!/bin/sh
set -e
seconds=$(cat /etc/provider-guest-agent.seconds 2>/dev/null || echo 8)
date +%s > /var/lib/provider-guest-agent.started
sleep \"$seconds\"
date +%s > /var/lib/provider-guest-agent.finished
";

/// Journals must survive a reboot, and must not grow over a test's disk.
const JOURNALD: &str = "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRuntimeMaxUse=32M\n";

/// The first process of a guest without systemd. nspawn's own stub reaps and answers the power-off signal.
const TRIVIAL_INIT: &str = "\
#!/bin/sh
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e
";

/// Where the package of the provider lies until first boot.
pub(super) const AGENT_DEB: &str = "/var/cache/provider/provider-guest-agent.deb";
/// Where [`TRIVIAL_INIT`] lies.
pub(super) const TRIVIAL_INIT_PATH: &str = "/usr/local/sbin/lab-init";

/// All that decides what an image holds.
#[derive(Debug, Serialize)]
pub(super) struct Recipe {
    version: u32,
    arch: &'static str,
    image: Image,
    pub(super) packages: Vec<&'static str>,
    /// Path, mode and text of files written over the packages.
    pub(super) files: Vec<(&'static str, u32, &'static str)>,
    /// Control file and postinst of the provider's package.
    pub(super) agent: Option<(&'static str, &'static str)>,
    /// Apt settings of the machine that a guest needs as well (proxies, clock checks).
    pub(super) apt: Vec<String>,
    /// Sources in one-line form; empty for Debian's default mirror.
    pub(super) sources: Vec<String>,
}

impl Recipe {
    pub(super) fn of(image: Image, apt: Vec<String>, sources: Vec<String>) -> Self {
        let shipped = image.flavour == Flavour::Shipped;
        let mut packages = PLAIN.to_vec();
        let mut files = vec![
            ("/etc/systemd/journald.conf.d/10-lab.conf", 0o644, JOURNALD),
            (TRIVIAL_INIT_PATH, 0o755, TRIVIAL_INIT),
        ];
        if shipped {
            packages.extend(SHIPPED);
            files.push(("/etc/cloud/cloud.cfg.d/90-provider.cfg", 0o644, CLOUD_CFG));
            files.push(("/etc/ssh/sshd_config.d/50-cloud-init.conf", 0o600, CLOUD_SSHD));
        }
        if image.flavour == Flavour::Kernel {
            packages.extend(KERNEL);
        }
        if image.flavour == Flavour::Servers {
            packages.extend(SERVERS);
        }
        let agent = shipped.then_some((AGENT_CONTROL, AGENT_POSTINST));
        Recipe {
            version: BUILD_VERSION,
            arch: std::env::consts::ARCH,
            image,
            packages,
            files,
            agent,
            apt,
            sources,
        }
    }

    /// Name of the image's folder in the cache.
    pub(super) fn key(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let hash: String = Sha256::digest(&text).iter().take(6).map(|b| format!("{b:02x}")).collect();
        format!("{}-{hash}", self.image)
    }
}

/// The seed that cloud-init reads at first boot.
pub(super) fn cloud_seed(host: &str, run: u64, keys: &[String]) -> [(&'static str, String); 2] {
    let keys: String = keys.iter().map(|k| format!("  - {}\n", k.trim())).collect();
    [
        ("meta-data", format!("instance-id: lab-{run:x}-{host}\nlocal-hostname: {host}\n")),
        (
            "user-data",
            format!(
                "#cloud-config\nssh_authorized_keys:\n{keys}\
                 runcmd:\n  - [env, DEBIAN_FRONTEND=noninteractive, apt-get, -y, install, {AGENT_DEB}]\n"
            ),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_content() {
        let key = |image| Recipe::of(image, Vec::new(), Vec::new()).key();
        assert_eq!(key(Image::TRIXIE), key(Image::TRIXIE));
        assert_ne!(key(Image::TRIXIE), key(Image::TRIXIE_SHIPPED));
        assert_ne!(key(Image::TRIXIE), key(Image::TRIXIE_KERNEL));
        assert_ne!(key(Image::TRIXIE), Recipe::of(Image::TRIXIE, vec!["x".into()], Vec::new()).key());
    }
}
