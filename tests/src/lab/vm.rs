//! Virtual machines: a disk made from the host's root file system, the emulator's command line, and what needs another
//! way than with a container.
//!
//! Killing the emulator is an honest power cut: what the guest's kernel had not written yet is lost, and what it had
//! flushed is on the disk. The disk image is raw, as other formats keep tables of their own in the emulator's memory.
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::{LabError, Result};
use super::host::Host;
use super::net::Net;
use super::requirements::QEMU;
use super::spec::VmSpec;
use super::store::{HostRecord, VmRecord};
use super::sys::{Cmd, Output, SAFE_PATH, make_dir, remove, unmount_and_remove, wait_until, write_file};

/// How long a guest may take to end all its services and to boot again.
const REBOOT_DEADLINE: Duration = Duration::from_secs(240);
/// For one question to a guest that may be down.
const ASK_DEADLINE: Duration = Duration::from_secs(15);
/// With this status ssh says that it failed itself.
const SSH_FAILED: i32 = 255;

/// The hardware that a spec asks for, booted from a base image.
pub(super) fn record(spec: &VmSpec, base: &Path) -> Result<VmRecord> {
    let boot = base.join("boot");
    let newest = |prefix: &str| -> Result<PathBuf> {
        let entries = std::fs::read_dir(&boot).map_err(LabError::io("list", &boot))?.flatten();
        let named =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        let none = || LabError::Invalid(format!("the image has no {prefix}* in {}", boot.display()));
        entries.map(|entry| entry.path()).filter(named).max().ok_or_else(none)
    };
    Ok(VmRecord {
        memory_mb: spec.memory_mb,
        cpus: spec.cpus,
        clock: spec.clock.clone(),
        kernel: newest("vmlinuz-")?,
        initrd: newest("initrd.img-")?,
    })
}

fn disk(dir: &Path) -> PathBuf {
    dir.join("disk.img")
}

/// Turns the mounted and populated root folder into the disk, and takes the folder away.
pub(super) fn make_disk(dir: &Path, host: &HostRecord, spec: &VmSpec) -> Result<()> {
    let root = dir.join("root");
    write_file(root.join("etc/fstab"), "/dev/vda / ext4 errors=remount-ro 0 1\n", 0o644)?;
    write_file(root.join("etc/systemd/network/10-lab.network"), network(host), 0o644)?;
    let wanted = root.join("etc/systemd/system/multi-user.target.wants");
    make_dir(&wanted)?;
    let link = wanted.join("systemd-networkd.service");
    remove(&link)?;
    std::os::unix::fs::symlink("/lib/systemd/system/systemd-networkd.service", &link)
        .map_err(LabError::io("make the link", &link))?;
    let (disk, size) = (disk(dir), format!("{}M", spec.disk_mb));
    // Tables that are not written yet are zero on a new disk as they are.
    let lazy = "lazy_itable_init=1,lazy_journal_init=1";
    let argv = ["mke2fs", "-q", "-t", "ext4", "-F", "-L", "lab", "-E", lazy, "-d"].map(AsRef::as_ref);
    let argv = argv.into_iter().chain([root.as_os_str(), disk.as_os_str(), size.as_ref()]);
    Cmd::new(argv).deadline(Duration::from_secs(120)).run()?;
    unmount_and_remove(&root)?;
    unmount_and_remove(&dir.join("layer"))
}

/// The addresses that a container gets from outside.
fn network(host: &HostRecord) -> String {
    format!(
        "[Match]\nName=eth0\n\n[Network]\nAddress={}/24\nGateway={}\nIPv6AcceptRA=no\n\n\
         [Address]\nAddress={}/64\nDuplicateAddressDetection=none\n",
        host.v4,
        Net { run: host.run }.gateway_v4(),
        host.v6
    )
}

/// The emulator, which lives as long as the machine has power. Never /dev/kvm: where there is one, it need not run a
/// stock kernel.
pub(super) fn qemu(dir: &Path, host: &HostRecord, vm: &VmRecord) -> Command {
    let net = Net { run: host.run };
    let mut command = Command::new(QEMU);
    command
        .env_clear()
        .env("PATH", SAFE_PATH)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", &vm.cpus.to_string(), "-m", &vm.memory_mb.to_string()])
        .arg("-kernel")
        .arg(&vm.kernel)
        .arg("-initrd")
        .arg(&vm.initrd)
        .args(["-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0"])
        .arg("-blockdev")
        .arg(format!("driver=raw,node-name=disk,file.driver=file,file.filename={}", disk(dir).display()))
        .args(["-device", "virtio-blk-pci,drive=disk"])
        .arg("-netdev")
        .arg(format!("tap,id=cable,ifname={},script=no,downscript=no", net.veth(host.slot)))
        .arg("-device")
        .arg(format!("virtio-net-pci,netdev=cable,mac={}", net.mac(0, host.slot)))
        // Keys are made at boot: without this the guest waits for randomness.
        .args(["-device", "virtio-rng-pci"])
        .arg("-chardev")
        .arg(format!("file,id=console,append=on,path={}", dir.join("console.log").display()))
        .args(["-serial", "chardev:console"])
        .stdin(Stdio::null());
    if let Some(clock) = &vm.clock {
        command.arg("-rtc").arg(format!("base={clock}"));
    }
    command
}

/// The emulator among the processes of a host's control group.
pub(super) fn emulator(processes: &[i32]) -> Option<i32> {
    processes.iter().copied().find(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // The kernel keeps 15 bytes of a name. One that ended is not running while it waits to be collected.
        let name = status.lines().find_map(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
        name.len() > 4 && QEMU.starts_with(name) && !status.lines().any(|line| line.starts_with("State:\tZ"))
    })
}

/// The arguments by which ssh runs a program in the guest as root: no shell there takes a word apart.
pub(super) fn remote(argv: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let quote = |word: &str| format!("'{}'", word.replace('\'', "'\\''"));
    let mut line = format!("exec env PATH={SAFE_PATH} HOME=/root LANG=C.UTF-8");
    for word in argv {
        line.push(' ');
        line += &quote(word.as_ref());
    }
    line
}

/// Runs a program in the guest over SSH. That SSH itself failed is an error.
pub(super) fn exec<S: AsRef<str>>(
    host: &Host,
    argv: &[S],
    input: &[u8],
    deadline: Duration,
) -> Result<Output> {
    let ssh = host.ssh("root");
    let all = std::iter::once(ssh.get_program()).chain(ssh.get_args()).map(ToOwned::to_owned);
    let all = all.chain([remote(argv).into()]);
    let output = Cmd::new(all).clean_env(&[]).input(input).deadline(deadline).output()?;
    if output.status.code() == Some(SSH_FAILED) { output.ok() } else { Ok(output) }
}

/// The guest's boot id; none while it does not answer.
fn boot_id(host: &Host) -> Option<String> {
    let answer = exec(host, &["cat", "/proc/sys/kernel/random/boot_id"], b"", ASK_DEADLINE).ok()?;
    answer.success().then(|| answer.text())
}

/// Tells the guest's systemd to do something after which the connection is gone.
fn tell(host: &Host, verb: &str) {
    let _ = exec(host, &["systemctl", verb], b"", ASK_DEADLINE);
}

/// Reboots in good order and waits until the next boot answers.
pub(super) fn reboot(host: &Host) -> Result<()> {
    let before = host.boot_id()?;
    tell(host, "reboot");
    wait_until(format!("{} reboots", host.name), REBOOT_DEADLINE, || {
        Ok(boot_id(host).filter(|now| *now != before).map(drop))
    })
}

/// Powers off in good order.
pub(super) fn poweroff(host: &Host) {
    tell(host, "poweroff");
}

/// Copies folders of the guest from its disk.
pub(super) fn copy_out(host: &Host, dir: &Path, folders: &[(&str, PathBuf)]) -> Result<()> {
    if host.init_pid().is_some() {
        // Where it does not answer, the disk has what it had written before.
        let _ = exec(host, &["sync"], b"", ASK_DEADLINE);
    }
    for (folder, to) in folders {
        make_dir(to)?;
        let request = format!("rdump \"{folder}\" \"{}\"", to.display());
        let disk = disk(dir);
        let argv = ["debugfs".as_ref(), "-R".as_ref(), request.as_ref(), disk.as_os_str()];
        Cmd::new(argv).run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_whole() {
        let line = remote(["sh", "-c", "echo \"$1\" 'it''s'", "x", "a  b;c"]);
        let out = Command::new("sh").arg("-c").arg(&line).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let line = remote(["printf", "%s|", "it's", "$HOME", "a  b;c", ""]);
        let out = Command::new("sh").arg("-c").arg(&line).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "it's|$HOME|a  b;c||");
    }
}
