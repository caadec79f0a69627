//! What `firewall`, `sshd` and `fail2ban` make of a host, each condition of a look on its own.

use super::*;

impl Fixture {
    /// What is seen and what is then to be done, or why it cannot be.
    async fn steps<R: Resource>(&self, spec: serde_json::Value, depth: Depth) -> Result<Vec<String>, String> {
        let spec: R::Spec = serde_json::from_value(spec).unwrap();
        let seen = R::observe(&spec, &self.sys, depth).await.map_err(|error| error.to_string())?;
        Ok(R::plan(&spec, &seen).iter().map(Step::summary).collect())
    }

    /// The first reason that stands in the way; empty where none does.
    async fn obstacle<R: Resource>(&self, spec: serde_json::Value) -> String {
        self.steps::<R>(spec, Depth::Cheap).await.err().unwrap_or_default()
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.at(path)).unwrap();
    }

    /// What systemd says: these blocks, and that ssh.socket listens on port 22.
    fn units(&self, more: &str) {
        self.program(
            "systemctl",
            &format!(
                "cat <<'END'\nId=ssh.socket\nActiveState=active\nListen=[::]:22 (Stream)\n\n{more}\nEND"
            ),
        );
    }

    /// The filter tables of both families.
    fn tables(&self, v4: &str, v6: &str) {
        self.program("iptables-save", &format!("cat <<'END'\n*filter\n{v4}\nEND"));
        self.program("ip6tables-save", &format!("cat <<'END'\n*filter\n{v6}\nEND"));
    }
}

const OPEN: &str = ":INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]";
const SSH: &str = r#"{"allow": ["22/tcp"]}"#;

fn bare() -> Fixture {
    let host = Fixture::new();
    host.write("/usr/sbin/iptables-restore", "");
    host.write("/proc/net/if_inet6", "");
    host.units("");
    host.tables(OPEN, OPEN);
    host
}

fn ssh_with(more: serde_json::Value) -> serde_json::Value {
    let mut spec: serde_json::Value = serde_json::from_str(SSH).unwrap();
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

/// Each trace of another firewall by itself, and what is no such trace.
#[tokio::test]
async fn trap_30b_who_else_filters_is_found_by_each_trace() {
    type Change = fn(&Fixture);
    let ufw_conf: Change = |host| host.write("/etc/ufw/ufw.conf", "ENABLED=yes\n");
    let ufw_chains: Change = |host| host.tables(OPEN, &format!("{OPEN}\n:ufw6-before-input - [0:0]"));
    let dropping = ":INPUT DROP [0:0]\n:ufw-before-input - [0:0]";
    let unit = |name: &str, line: &str| format!("Id={name}.service\nLoadState=loaded\n{line}");
    let (ignored, over) = (json!({"docker": "ignored"}), json!({"takeover": true}));
    let no = json!({});
    let nft = "cat <<'END'\ntable ip docker-bridges {\n\tchain x {\n\t}\n}\nEND";
    let nft_drops = "cat <<'END'\ntable inet lab {\n\tchain in {\n\t\ttype filter hook input priority 5; policy drop;\n\t}\n}\nEND";
    type Case<'a> = (&'a str, Box<dyn Fn(&Fixture)>, &'a serde_json::Value, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("nothing", Box::new(|_| ()), &no, ""),
        (
            "ufw",
            Box::new(move |host| (ufw_conf(host), ufw_chains(host)).0),
            &no,
            "ufw manages this host's firewall",
        ),
        ("ufw, taken over", Box::new(move |host| (ufw_conf(host), ufw_chains(host)).0), &over, ""),
        ("ufw whose chains are not there", Box::new(ufw_conf), &no, ""),
        ("chains of a ufw that is off", Box::new(ufw_chains), &no, ""),
        (
            "ufw's own policy is no other firewall",
            Box::new(move |host| (ufw_conf(host), host.tables(dropping, OPEN)).0),
            &over,
            "",
        ),
        (
            "firewalld now",
            Box::new(move |host| host.units(&unit("firewalld", "ActiveState=active"))),
            &no,
            "firewalld manages",
        ),
        (
            "firewalld at boot",
            Box::new(move |host| host.units(&unit("firewalld", "UnitFileState=enabled"))),
            &no,
            "firewalld manages",
        ),
        (
            "firewalld off",
            Box::new(move |host| host.units(&unit("firewalld", "UnitFileState=disabled"))),
            &no,
            "",
        ),
        (
            "nftables at boot",
            Box::new(move |host| host.units(&unit("nftables", "UnitFileState=enabled"))),
            &over,
            "nftables.service loads rules",
        ),
        (
            "nftables now",
            Box::new(move |host| host.units(&unit("nftables", "ActiveState=active"))),
            &no,
            "nftables.service loads rules",
        ),
        (
            "Docker's setting",
            Box::new(|host| host.write("/etc/docker/daemon.json", r#"{"firewall-backend": "nftables"}"#)),
            &no,
            "Docker filters with nftables",
        ),
        (
            "Docker's setting, of no interest",
            Box::new(|host| host.write("/etc/docker/daemon.json", r#"{"firewall-backend": "nftables"}"#)),
            &ignored,
            "",
        ),
        (
            "Docker's tables",
            Box::new(move |host| (host.write("/usr/sbin/nft", ""), host.program("nft", nft)).0),
            &no,
            "Docker filters with nftables",
        ),
        (
            "a chain of nftables",
            Box::new(move |host| (host.write("/usr/sbin/nft", ""), host.program("nft", nft_drops)).0),
            &no,
            "the chain in of nftables' table inet lab",
        ),
        (
            "a policy",
            Box::new(|host| host.tables(OPEN, ":INPUT DROP [0:0]")),
            &no,
            "the policy of INPUT is DROP",
        ),
        (
            "a rule",
            Box::new(|host| host.tables(&format!("{OPEN}\n-A INPUT -j DROP"), OPEN)),
            &no,
            "INPUT has the rule `-j DROP`",
        ),
    ];
    let mut found = Found::default();
    for (what, change, more, want) in cases {
        let host = bare();
        change(&host);
        let spec = ssh_with(more.clone());
        let why = host.obstacle::<firewall::Firewall>(spec.clone()).await;
        if !why.starts_with(want) || why.is_empty() != want.is_empty() {
            found.0.push((format!("{what}: {want}"), why));
        }
        // What is there is no reason not to take back what was declared.
        let whole = host.steps::<firewall::Firewall>(spec, Depth::Whole).await;
        assert!(whole.is_ok(), "{what}: {whole:?}");
    }
    found.check();
}

/// Who would be locked out, and what could not work at all.
#[tokio::test]
async fn a_firewall_that_cannot_be_is_refused() {
    let mut found = Found::default();
    let refused = |host: Fixture, spec: &str| {
        let spec = serde_json::from_str(spec).unwrap();
        async move { host.obstacle::<firewall::Firewall>(spec).await }
    };
    let host = bare();
    host.remove("/usr/sbin/iptables-restore");
    found.note("the package iptables is not installed", refused(host, SSH).await);
    for (program, family) in [("iptables-save", true), ("ip6tables-save", true), ("ip6tables-save", false)] {
        let host = bare();
        host.program(program, "echo no such table >&2; exit 3");
        if !family {
            host.remove("/proc/net/if_inet6");
        }
        let want = if family { format!("{program} failed: no such table") } else { String::new() };
        found.note(&want, refused(host, SSH).await);
    }
    let http = r#"{"allow": ["80/tcp"]}"#;
    found.note("this would close port 22", refused(bare(), http).await);
    found.note("", refused(bare(), r#"{"allow": ["80/tcp"], "ssh": "closed"}"#).await);
    let zero = "0".repeat(32);
    for (path, text) in [
        ("/proc/net/route", "Iface\tDestination\nbr-lan\t00000000\n".to_owned()),
        ("/proc/net/ipv6_route", format!("{zero} 00 {zero} 00 fe80 0 0 0 3 br-lan\n")),
    ] {
        for (spec, want) in
            [(SSH, "the default route is by br-lan"), (r#"{"allow": ["22/tcp"], "docker": "ignored"}"#, "")]
        {
            let host = bare();
            host.write(path, &text);
            found.note(want, refused(host, spec).await);
        }
    }
    found.check();
    // None of it keeps anybody from going back.
    let host = bare();
    host.write("/proc/net/route", "Iface\tDestination\nbr-lan\t00000000\n");
    let spec: serde_json::Value = serde_json::from_str(http).unwrap();
    assert!(host.steps::<firewall::Firewall>(spec, Depth::Whole).await.is_ok());
}

/// In force when files, units, both links and the kernel's tables are right, and not when one is not.
#[tokio::test]
async fn a_firewall_is_in_force_when_all_of_it_is() {
    let host = bare();
    let spec: serde_json::Value = serde_json::from_str(SSH).unwrap();
    let typed = serde_json::from_value(spec.clone()).unwrap();
    let seen = firewall::Firewall::observe(&typed, &host.sys, Depth::Cheap).await.unwrap();
    for step in firewall::Firewall::plan(&typed, &seen) {
        if let Step::WriteFile(file) = step {
            use std::os::unix::fs::PermissionsExt as _;
            host.write(&file.path, std::str::from_utf8(&file.content).unwrap());
            let path = host.at(&file.path);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode)).unwrap();
        }
    }
    let wants = "/etc/systemd/system/sysinit.target.wants/postern-firewall.service";
    let with_docker = "/etc/systemd/system/docker.service.wants/postern-firewall-docker.service";
    host.write(wants, "");
    host.write(with_docker, "");
    let ours = |name: &str| {
        let file = std::fs::read_to_string(host.at(&format!("etc/postern-agent/firewall-{name}.rules")));
        file.unwrap().replace("COMMIT\n", "").replace("*filter\n", "")
    };
    let (v4, v6) = (
        format!("{OPEN}\n{}-A INPUT -j POSTERN-INPUT", ours("v4")),
        format!("{OPEN}\n{}-A INPUT -j POSTERN-INPUT\n-A FORWARD -j POSTERN-DOCKER", ours("v6")),
    );
    let now = || async { host.steps::<firewall::Firewall>(spec.clone(), Depth::Proof).await.unwrap() };
    let is_root = rustix::process::geteuid().is_root();
    host.tables(&v4, &v6);
    if is_root {
        assert_eq!(now().await, Vec::<String>::new());
    }
    let enable = "systemctl enable -- postern-firewall.service postern-firewall-docker.service";
    for link in [wants, with_docker] {
        host.remove(link);
        assert!(now().await.contains(&enable.to_owned()), "{link}");
        host.write(link, "");
    }
    let load = |steps: Vec<String>| steps.last().is_some_and(|step| step.ends_with(" firewall load"));
    for (v4, v6) in [
        (v4.replace("-A INPUT -j POSTERN-INPUT", ""), v6.clone()),
        (v4.clone(), v6.replace("-A FORWARD -j POSTERN-DOCKER", "")),
        (v4.replace("--dport 22", "--dport 23"), v6.clone()),
    ] {
        host.tables(&v4, &v6);
        assert!(load(now().await), "{v4}\n{v6}");
    }
    // Docker came, and its chain is not called from.
    host.tables(&v4, &v6);
    host.write("/usr/bin/dockerd", "");
    assert!(load(now().await));
}

const ALGORITHMS: &str = "case $2 in kex) echo curve25519-sha256;; cipher) echo aes256-ctr;; \
                          mac) echo hmac-sha2-256-etm@openssh.com;; *) echo ssh-ed25519;; esac";

/// A host where `ada` has a key and sshd does not run.
fn sshd_host() -> Fixture {
    let host = Fixture::new();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    host.write("/usr/sbin/sshd", "");
    host.write("/etc/passwd", format!("ada:x:{uid}:{gid}::/home/ada:/bin/bash\n"));
    host.write(
        "/home/ada/.ssh/authorized_keys",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGT2/5hLlLC12ZgUEoud+FIUtp0Szc6E48Spq1r+GtnI\n",
    );
    host.write("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n");
    host.write("/etc/ssh/sshd_config.d/50-cloud-init.conf", "PasswordAuthentication yes\n");
    host.program("ssh", ALGORITHMS);
    host.program("systemctl", "printf 'Id=ssh.service\\nActiveState=inactive\\n'");
    host
}

/// T05: each reason not to touch sshd by itself; around an undo none of them counts.
#[tokio::test]
async fn trap_05_what_keeps_sshd_as_it_is() {
    type Change = fn(&Fixture);
    let cases: [(Change, &str, bool); 7] = [
        (|_| (), "", true),
        (|host| host.remove("/usr/sbin/sshd"), "the package openssh-server is not installed", false),
        (|host| host.program("ssh", "echo ssh-dss"), "this OpenSSH knows no algorithm that is sound", false),
        (|host| host.remove("/home/ada/.ssh/authorized_keys"), "nobody could log in any more", true),
        (|host| host.write("/etc/ssh/sshd_config", "Port 22\n"), "/etc/ssh/sshd_config does not read", true),
        (
            |host| host.write("/etc/ssh/sshd_config.d/00-a.conf", "PasswordAuthentication yes\n"),
            "other lines count before /etc/ssh/sshd_config.d/00-postern.conf: /etc/ssh/sshd_config.d/00-a.conf:1:",
            true,
        ),
        (
            |host| {
                host.write("/etc/ssh/sshd_config", "Match User x\nInclude /etc/ssh/sshd_config.d/*.conf\n")
            },
            "/etc/ssh/sshd_config reads /etc/ssh/sshd_config.d only in",
            true,
        ),
    ];
    let mut found = Found::default();
    for (change, want, undone) in cases {
        let host = sshd_host();
        change(&host);
        let spec = json!({"users": ["ada"]});
        found.note(want, host.obstacle::<sshd::Sshd>(spec.clone()).await);
        let whole = host.steps::<sshd::Sshd>(spec, Depth::Whole).await;
        assert_eq!(whole.is_ok(), undone, "{want}: {whole:?}");
    }
    found.check();
    // One of several is enough, whoever lacks one.
    let host = sshd_host();
    assert_eq!(host.obstacle::<sshd::Sshd>(json!({"users": ["ghost", "ada"]})).await, "");
}

/// T07: what runs and has not read its files is told to, and is waited for afterwards.
#[tokio::test]
async fn trap_07_a_server_that_is_late_is_waited_for() {
    let host = sshd_host();
    host.write("/proc/7/fd/none", "");
    std::os::unix::fs::symlink("socket:[4711]", host.at("proc/7/fd/3")).unwrap();
    host.write("/proc/net/tcp", "head\n0: 00000000:0016 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n");
    for state in ["active", "reloading"] {
        host.program("systemctl", &format!("printf 'Id=ssh.service\\nMainPID=7\\nActiveState={state}\\n'"));
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        host.write("/run/sshd.pid", "7\n");
        let pid_file = std::fs::File::options().write(true).open(host.at("run/sshd.pid")).unwrap();
        pid_file.set_modified(old).unwrap();
        let steps = host.steps::<sshd::Sshd>(json!({"users": ["ada"]}), Depth::Cheap).await.unwrap();
        assert!(steps.last().unwrap().ends_with("postern-agent reload-ssh"), "{state}: {steps:?}");
    }
    // It reads them while it is looked at for the second time or later.
    let pid_file = host.at("run/sshd.pid");
    host.program(
        "systemctl",
        &format!(
            "echo x >>{0}/asked; test $(wc -l <{0}/asked) -lt 3 || echo 7 >{1}\n\
             printf 'Id=ssh.service\\nMainPID=7\\nActiveState=active\\n'",
            host.dir.path().display(),
            pid_file.display()
        ),
    );
    // Whatever the proof then says: it calls the real sshd by its path, and this machine may have none.
    let _ = host.steps::<sshd::Sshd>(json!({"users": ["ada"]}), Depth::Proof).await;
    let asked = || std::fs::read_to_string(host.at("asked")).unwrap().lines().count();
    assert!(asked() >= 3, "looked {} times", asked());

    // And it listens where it is told to later still.
    host.write("/moved", "head\n0: 00000000:08AE 00000000:0000 0A 0:0 0:0 0 0 0 4711 1\n");
    host.program(
        "systemctl",
        &format!(
            "echo x >>{0}/asked; test $(wc -l <{0}/asked) -lt {1} || cp {0}/moved {0}/proc/net/tcp\n\
             printf 'Id=ssh.service\\nMainPID=7\\nActiveState=active\\n'",
            host.dir.path().display(),
            asked() + 3
        ),
    );
    let before = asked();
    let _ = host.steps::<sshd::Sshd>(json!({"users": ["ada"], "ports": ["2222"]}), Depth::Proof).await;
    assert!(asked() >= before + 3, "looked {} times", asked() - before);
}

/// A fail2ban that is set up as declared and answers for its jail, with `client` before its own answers.
async fn banning(client: &str) -> Fixture {
    let host = Fixture::new();
    host.write("/usr/sbin/iptables", "");
    host.write(
        "/var/lib/dpkg/status",
        "Package: fail2ban\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n\n\
         Package: python3-systemd\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n",
    );
    host.write("/etc/systemd/system/multi-user.target.wants/fail2ban.service", "");
    // Started when the last file was there, in the far future.
    host.units("Id=fail2ban.service\nActiveState=active\nExecMainStartTimestampMonotonic=3155760000000000");
    host.program(
        "fail2ban-client",
        &format!(
            "cd {}\n{client}\ncase \"$*\" in *bantime) echo 3600;; *findtime) echo 600;; *maxretry) echo 5;;\n\
             *ignoreip) printf 'ignored:\\n|- 127.0.0.0/8\\n`- ::1\\n';; *unbanip*) rm -f banned;; *banip*) echo $4 >banned;; esac",
            host.dir.path().display()
        ),
    );
    host.program(
        "iptables-save",
        &format!(
            "echo '*filter'; echo '-A INPUT -j f2b-sshd'; echo ':f2b-sshd - [0:0]'\n\
             read a <{}/banned 2>/dev/null && echo \"-A f2b-sshd -s $a/32 -j REJECT\"",
            host.dir.path().display()
        ),
    );
    let typed = serde_json::from_value(json!({})).unwrap();
    let seen = fail2ban::Fail2ban::observe(&typed, &host.sys, Depth::Cheap).await.unwrap();
    let steps = fail2ban::Fail2ban::plan(&typed, &seen);
    let Some(Step::WriteFile(file)) = steps.first() else { panic!("{steps:?}") };
    host.write(&file.path, std::str::from_utf8(&file.content).unwrap());
    host
}

/// T09 and T10: what the live jail says, each answer on its own.
#[tokio::test]
async fn trap_09_the_jail_that_runs_decides() {
    // As root only the file is wholly as declared; without, nothing is proved.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut found = Found::default();
    for (client, want) in [
        ("", ""),
        ("case \"$*\" in *bantime) echo 60; exit;; esac", "bantime of the jail sshd is 60 in spite of"),
        ("case \"$*\" in *findtime) echo 60; exit;; esac", "findtime of the jail sshd is 60"),
        ("case \"$*\" in *maxretry) echo 60; exit;; esac", "maxretry of the jail sshd is 60"),
        ("case \"$*\" in *ignoreip) echo '`- ::1'; exit;; esac", "the jail sshd does not ignore 127.0.0.0/8"),
        ("case \"$*\" in *' banip'*) echo no >&2; exit 1;; esac", "a ban fails: no"),
        ("case \"$*\" in *unbanip*) echo no >&2; exit 1;; esac", "a ban cannot be taken back: no"),
        // It takes its time to ban.
        ("case \"$*\" in *' banip'*) (sleep 0.6; echo $4 >banned) >/dev/null 2>&1 & exit;; esac", ""),
    ] {
        let host = banning(client).await;
        found.note(want, host.proof::<fail2ban::Fail2ban>(json!({})).await);
        assert!(want.contains("taken back") || !host.at("banned").exists(), "{client}: it is still banned");
    }
    // It was waited for; and what is not set up is not proved.
    let late = banning("case \"$*\" in status*) echo x >>s; test $(wc -l <s) -ge 5; exit;; esac").await;
    found.note("", late.proof::<fail2ban::Fail2ban>(json!({})).await);
    let asked = std::fs::read_to_string(late.at("s")).unwrap().lines().count();
    assert!(asked >= 5, "looked {asked} times");
    let unset = banning("case \"$*\" in *bantime) echo 60; exit;; esac").await;
    unset.remove("/etc/fail2ban/jail.d/postern.local");
    found.note("", unset.proof::<fail2ban::Fail2ban>(json!({})).await);
    // IPv6 is banned where there is IPv6.
    let no_v6 = "case \"$*\" in *' banip 2001'*) echo no v6 >&2; exit 1;; esac";
    let host = banning(no_v6).await;
    found.note("", host.proof::<fail2ban::Fail2ban>(json!({})).await);
    host.write("/proc/net/if_inet6", "");
    found.note("a ban fails: no v6", host.proof::<fail2ban::Fail2ban>(json!({})).await);
    found.check();
}

/// What there is to block with, what must be installed, and when it is started anew.
#[tokio::test]
async fn a_jail_needs_its_packages_and_something_to_block_with() {
    let mut found = Found::default();
    for (package, want) in [
        ("fail2ban", "the package fail2ban is not"),
        ("python3-systemd", "the package python3-systemd is not"),
    ] {
        let host = banning("").await;
        let status = std::fs::read_to_string(host.at("var/lib/dpkg/status")).unwrap();
        host.write(
            "/var/lib/dpkg/status",
            status.replace(&format!("Package: {package}\n"), "Package: other\n"),
        );
        found.note(want, host.obstacle::<fail2ban::Fail2ban>(json!({})).await);
    }
    let host = banning("").await;
    host.remove("/usr/sbin/iptables");
    found.note("nothing here can block an address", host.obstacle::<fail2ban::Fail2ban>(json!({})).await);
    found.check();
    let action = |host: &Fixture| {
        let sys = host.sys.clone();
        async move {
            let typed = serde_json::from_value(json!({})).unwrap();
            let seen = fail2ban::Fail2ban::observe(&typed, &sys, Depth::Cheap).await.unwrap();
            let diff = fail2ban::Fail2ban::diff(&typed, &seen);
            diff.lines()
                .filter_map(|line| line.strip_prefix("+banaction = ").map(str::to_owned))
                .collect::<Vec<_>>()
        }
    };
    host.write("/usr/sbin/nft", "");
    assert_eq!(action(&host).await, ["nftables-multiport"]);
    host.write("/usr/sbin/iptables", "");
    host.remove("/etc/fail2ban/jail.d/postern.local");
    assert_eq!(
        action(&host).await,
        ["iptables-multiport"],
        "where both are, bans stand beside all other rules"
    );

    if !rustix::process::geteuid().is_root() {
        return;
    }
    let steps = |host: Fixture| async move {
        host.steps::<fail2ban::Fail2ban>(json!({}), Depth::Cheap).await.unwrap()
    };
    let (enable, restart) = ("systemctl enable -- fail2ban.service", "systemctl restart -- fail2ban.service");
    assert_eq!(steps(banning("").await).await, Vec::<String>::new());
    let host = banning("").await;
    host.remove("/etc/systemd/system/multi-user.target.wants/fail2ban.service");
    assert_eq!(steps(host).await, [enable]);
    assert_eq!(
        steps(banning("case \"$*\" in status*) exit 1;; esac").await).await,
        [restart],
        "no such jail"
    );
    for units in [
        "Id=fail2ban.service\nActiveState=failed\nExecMainStartTimestampMonotonic=3155760000000000",
        // T07: started before its file was written.
        "Id=fail2ban.service\nActiveState=active\nExecMainStartTimestampMonotonic=1",
    ] {
        let host = banning("").await;
        host.units(units);
        assert_eq!(steps(host).await, [restart], "{units}");
    }
}
