//! Users, their keys and their rights on real hosts: a login with the key, sudo as that user, links in the way.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use anyhow::{Context, Result};
use postern_tests::lab::{Host, Image};
use postern_tests::rig::{self, Ended, Rig, finish, managed};

/// Made by ssh-keygen; the first is in the form of a key that lives in a token.
const SK: &str = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnIAAAABHNzaDo= yubi";
const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBKI1NLy4Yifs/5inuEb4cy6XyJbwmHDs2fW1/VY7MoU8RS3zwwX96ZOTLQhEk9ubYW9dEraC+4FWfhL8AaVmHvw= e256";
const FILE: &str = "/home/ada.l/.ssh/authorized_keys";

fn apply(rig: &Rig, host: &Host, resources: &str) -> Result<Ended> {
    rig::apply(rig, host, resources, &[])
}

#[track_caller]
fn says(ended: &Ended, text: &str) {
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains(text), "want {text:?}\n{said}");
}

/// What ada.l's own login says to this.
fn login(host: &Host, line: &str) -> Result<Ended> {
    let mut ssh = host.ssh("ada.l");
    ssh.arg(line);
    finish(ssh, Duration::from_secs(30))
}

fn profile(rig: &Rig) -> Result<String> {
    let key = std::fs::read_to_string(rig.lab.public_key()).context("read the lab's key")?;
    let key = key.trim();
    Ok(format!(
        "  - user: {{name: ada.l, groups: [adm], comment: Ada Lovelace}}\n\
         \x20 - authorized_key: {{user: ada.l, key: '{key}'}}\n\
         \x20 - authorized_key: {{user: ada.l, key: '{SK}', options: 'restrict,pty'}}\n\
         \x20 - authorized_key: {{user: ada.l, key: '{ECDSA}'}}\n\
         \x20 - sudoers: {{user: ada.l}}\n"
    ))
}

/// T13 and T14: a name with a dot, keys of every type, and a login that becomes root without a password.
fn a_user_with_key_and_sudo(name: &str, image: Image) -> Result<()> {
    let Some((rig, host)) = managed(name, image)? else { return Ok(()) };
    let whole = profile(&rig)?;
    assert_ne!(login(&host, "true")?.code, Some(0), "before");
    apply(&rig, &host, &whole)?.expect(0);
    let root = login(&host, "id -un; id -Gn; sudo -n id -u")?.expect(0);
    assert_eq!(root.stdout, "ada.l\nada.l adm\n0\n");
    let second = apply(&rig, &host, &whole)?.expect(0);
    says(&second, "5 unchanged");
    let modes = "stat -c '%a %U %G %n' /home/ada.l/.ssh /home/ada.l/.ssh/* /etc/sudoers.d/90-postern-ada=2el";
    let want = format!(
        "700 ada.l ada.l /home/ada.l/.ssh\n600 ada.l ada.l {FILE}\n440 root root /etc/sudoers.d/90-postern-ada=2el"
    );
    assert_eq!(host.sh(modes)?, want);
    let keys = host.sh(&format!("cat {FILE}"))?;
    assert!(keys.contains(&format!("restrict,pty {SK}")) && keys.contains(ECDSA), "{keys}");
    assert_eq!(host.sh(&format!("ssh-keygen -lf {FILE} | wc -l"))?, "3");

    // What others wrote stays, byte for byte; a line of ours that was changed is put right in its place.
    host.sh(&format!("printf '# mine\\nssh-rsa broken\\n' >>{FILE} && sed -i 's/^restrict,pty //' {FILE}"))?;
    let foreign = format!("tail -n 2 {FILE} | sha256sum");
    let before = host.sh(&foreign)?;
    let third = apply(&rig, &host, &whole)?.expect(0);
    says(&third, "4 unchanged");
    assert_eq!(host.sh(&foreign)?, before);
    assert_eq!(host.sh(&format!("cat {FILE}"))?, format!("{keys}\n# mine\nssh-rsa broken"));

    // sshd would not use the key: that is an error, whatever the file says.
    let drop_key = format!("sed -i '/nistp256/d' {FILE}");
    for (spoil, mend, why) in [
        ("chmod g+w /home/ada.l", "chmod g-w /home/ada.l", "others can write to /home/ada.l"),
        (
            "echo 'AuthorizedKeysFile /etc/ssh/keys/%u' >/etc/ssh/sshd_config.d/10-lab.conf",
            "rm /etc/ssh/sshd_config.d/10-lab.conf",
            "sshd does not look into /home/ada.l/.ssh/authorized_keys",
        ),
    ] {
        host.sh(&format!("{drop_key} && {spoil}"))?;
        says(&apply(&rig, &host, &whole)?.expect(1), why);
        host.sh(mend)?;
    }
    // Nor does sudo where a later file wins, or one is broken.
    for (rule, why) in [
        ("ada.l ALL=(ALL:ALL) PASSWD: ALL", "another rule wins over /etc/sudoers.d/90-postern-ada=2el"),
        ("nonsense", "sudo's files as a whole are not in order"),
    ] {
        host.sh(&format!("rm -f /etc/sudoers.d/90-postern-ada=2el; echo '{rule}' >/etc/sudoers.d/99-lab; chmod 440 /etc/sudoers.d/99-lab"))?;
        says(&apply(&rig, &host, &whole)?.expect(1), why);
        host.sh("rm /etc/sudoers.d/99-lab")?;
    }
    apply(&rig, &host, &whole)?.expect(0);
    assert_eq!(login(&host, "sudo -n id -u")?.expect(0).stdout, "0\n");

    commands_by_name(&rig, &host)?;
    everything_taken_away(&rig, &host)
}

/// Rules for commands are what sudo takes them for, with all that has to be escaped.
fn commands_by_name(rig: &Rig, host: &Host) -> Result<()> {
    let some =
        "  - sudoers: {user: ada.l, commands: ['/usr/bin/id -u', '/usr/bin/printf %s a:b,c=d#e, f']}\n";
    apply(rig, host, some)?.expect(0);
    says(&apply(rig, host, some)?.expect(0), "1 unchanged");
    let said = login(host, "sudo -n id -u; sudo -n printf %s 'a:b,c=d#e,' f; sudo -n id -g; true")?.expect(0);
    assert_eq!(said.stdout, "0\na:b,c=d#e,f", "{said:?}");
    Ok(())
}

/// The way out: rule, keys, changes to the user, and the user itself.
fn everything_taken_away(rig: &Rig, host: &Host) -> Result<()> {
    apply(rig, host, "  - sudoers: {user: ada.l, state: absent}\n")?.expect(0);
    host.sh("test ! -e /etc/sudoers.d/90-postern-ada=2el")?;
    assert_ne!(login(host, "sudo -n true")?.code, Some(0));
    let changed =
        "  - user: {name: ada.l, shell: /bin/sh, groups: [users], exclusive_groups: true, comment: ''}\n";
    apply(rig, host, changed)?.expect(0);
    says(&apply(rig, host, changed)?.expect(0), "1 unchanged");
    assert_eq!(
        host.sh("id -Gn ada.l; getent passwd ada.l | cut -d: -f5-")?,
        "ada.l users\n:/home/ada.l:/bin/sh"
    );

    let key = std::fs::read_to_string(rig.lab.public_key())?;
    let gone = format!("  - authorized_key: {{user: ada.l, key: '{}', state: absent}}\n", key.trim());
    apply(rig, host, &gone)?.expect(0);
    assert_ne!(login(host, "true")?.code, Some(0));
    host.sh(&format!("grep -q '# mine' {FILE} && grep -q nistp256 {FILE}"))?;

    // Not while it is in use, and then it is gone; its home is not.
    host.sh("systemd-run --quiet --unit=busy --uid=ada.l sleep 300")?;
    let user = "  - user: {name: ada.l, state: absent}\n";
    says(&apply(rig, host, user)?.expect(1), "userdel: user ada.l is currently used by process");
    // And its own systemd, which stays for some seconds after the last login.
    host.sh("systemctl stop busy user@$(id -u ada.l).service; ! pgrep -u ada.l")?;
    apply(rig, host, user)?.expect(0);
    says(&apply(rig, host, user)?.expect(0), "1 unchanged");
    host.sh("! getent passwd ada.l && ! getent group ada.l && test -d /home/ada.l")?;
    // The same person again, with the home that is there.
    apply(rig, host, "  - user: {name: other}\n")?.expect(0);
    let again = apply(rig, host, "  - user: {name: ada.l}\n")?;
    says(&again.expect(1), "/home/ada.l was there before and belongs to uid 1000");
    Ok(())
}

#[test]
fn trap_13_trap_14_on_debian_12() -> Result<()> {
    a_user_with_key_and_sudo("people12", Image::BOOKWORM)
}

#[test]
fn trap_13_trap_14_on_debian_13() -> Result<()> {
    a_user_with_key_and_sudo("people13", Image::TRIXIE)
}

/// T48: root writes into a directory that its user controls, and keeps changing.
#[test]
fn trap_48_links_in_a_home_are_not_followed() -> Result<()> {
    let Some((rig, host)) = managed("links", Image::TRIXIE)? else { return Ok(()) };
    host.sh("useradd -m eve && mkdir -p /root/.ssh && ln -s /root/.ssh /home/eve/.ssh && chown -h eve: /home/eve/.ssh")?;
    let victim = "sha256sum /root/.ssh/authorized_keys; stat -c '%a %u %g' /root/.ssh /root/.ssh/authorized_keys; ls -A /root/.ssh";
    let before = host.sh(victim)?;
    let key = format!("  - authorized_key: {{user: eve, key: '{ECDSA}'}}\n");
    says(&apply(&rig, &host, &key)?.expect(1), "/home/eve/.ssh is a symbolic link");
    assert_eq!(host.sh(victim)?, before);

    // A private file of root's, moved into place by the one who owns the directory, is not given away.
    host.sh("rm /home/eve/.ssh && install -d -o eve -m 700 /home/eve/.ssh && \
             (umask 077; echo hunter2secret >/home/eve/notes) && \
             setpriv --reuid eve --regid eve --clear-groups mv /home/eve/notes /home/eve/.ssh/authorized_keys")?;
    says(&apply(&rig, &host, &key)?.expect(1), "belongs to uid 0 (mode 0600)");
    assert_eq!(
        host.sh("stat -c '%a %U' /home/eve/.ssh/authorized_keys; ls -A /home/eve/.ssh")?,
        "600 root\nauthorized_keys"
    );

    // Between a look and a write everything can change: whatever comes of it, nothing lands elsewhere.
    host.sh("rm -rf /home/eve/.ssh; echo 'cd /home/eve; while :; do ln -s /root/.ssh .ssh 2>/dev/null; rm -rf .ssh; \
             mkdir .ssh; rm -rf .ssh; done' >/home/eve/swap && \
             systemd-run --quiet --unit=swap --uid=eve sh /home/eve/swap")?;
    for _ in 0..12 {
        let _ = apply(&rig, &host, &key)?;
        assert_eq!(host.sh(victim)?, before);
    }
    host.sh("systemctl is-active --quiet swap && systemctl stop swap && rm -rf /home/eve/.ssh")?;
    apply(&rig, &host, &key)?.expect(0);
    says(&apply(&rig, &host, &key)?.expect(0), "1 unchanged");
    Ok(())
}
