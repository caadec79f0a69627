//! Each kind's last look against programs that say another thing: what is on the disk does not decide.

mod hardening;

use serde_json::json;

use super::fixture::Fixture;
use super::*;

impl Fixture {
    /// Why it is not in force; empty where it is.
    async fn proof<R: Resource>(&self, spec: serde_json::Value) -> String {
        let spec: R::Spec = serde_json::from_value(spec).unwrap();
        match R::observe(&spec, &self.sys, Depth::Proof).await {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }
}

/// What was said where another thing was wanted.
#[derive(Default)]
struct Found(Vec<(String, String)>);

impl Found {
    /// `want` is how the reason begins; empty where there is to be none.
    fn note(&mut self, want: &str, why: String) {
        if !why.starts_with(want) || why.is_empty() != want.is_empty() {
            self.0.push((want.to_owned(), why));
        }
    }

    #[track_caller]
    fn check(&self) {
        assert!(self.0.is_empty(), "wanted, and found: {:#?}", self.0);
    }
}

/// T13: what visudo says of all files, what sudo lists, and what it does, each on its own.
#[tokio::test]
async fn trap_13_a_sudo_rule_is_in_force_when_sudo_says_so() {
    // Only root can ask as somebody else.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = Fixture::new();
    host.write("/etc/passwd", "nobody:x:65534:65534::/:/bin/sh\n");
    host.write("/usr/sbin/visudo", "");
    let spec: postern_proto::spec::SudoersSpec = serde_json::from_value(json!({"user": "nobody"})).unwrap();
    host.write(&spec.path(), spec.content());
    let reads = format!("echo '{}: parsed OK'", spec.path());
    let lists = "test \"$2\" = -l && echo '    (ALL : ALL) NOPASSWD: ALL'; exit 0";
    // visudo, sudo, and how the reason begins.
    let cases = [
        (&*reads, lists, ""),
        (
            "echo '/etc/sudoers.d/x:1: syntax error'; exit 1",
            lists,
            "sudo's files as a whole are not in order",
        ),
        ("echo '/etc/sudoers: parsed OK'", lists, "sudo does not read /etc/sudoers.d/"),
        (&*reads, "exit 0", "sudo does not list ALL for nobody"),
        (&*reads, "echo '    (ALL : ALL) NOPASSWD: ALL\n    (ALL : ALL) ALL'", "another rule wins over"),
        (
            &*reads,
            "test \"$2\" = true && echo no >&2 && exit 1; echo '    (ALL : ALL) NOPASSWD: ALL'",
            "`sudo -n true` as nobody fails",
        ),
    ];
    let mut found = Found::default();
    for (visudo, sudo, want) in cases {
        host.program("visudo", visudo);
        host.program("sudo", sudo);
        found.note(want, host.proof::<sudoers::Sudoers>(json!({"user": "nobody"})).await);
    }
    found.check();
}

/// T08: what unattended-upgrades itself allows decides, not what the files say.
#[tokio::test]
async fn trap_08_the_dry_run_decides() {
    let host = Fixture::new();
    host.write(
        "/var/lib/dpkg/status",
        "Package: unattended-upgrades\nStatus: install ok installed\nArchitecture: all\nVersion: 1\n",
    );
    host.write("/etc/os-release", "ID=debian\nVERSION_CODENAME=trixie\n");
    host.write(
        "/var/lib/apt/lists/security.example_dists_trixie-security_InRelease",
        "Origin: Debian\nLabel: Debian-Security\nSuite: stable-security\nCodename: trixie-security\n",
    );
    host.program(
        "systemctl",
        "for t in apt-daily apt-daily-upgrade; do echo Id=$t.timer; echo LoadState=loaded; \
         echo ActiveState=active; echo UnitFileState=enabled; echo; done",
    );
    let dump = |patterns: &str| {
        format!(
            "cat <<'END'\nAPT::Periodic::Enable \"1\";\nAPT::Periodic::Update-Package-Lists \"1\";\n\
             APT::Periodic::Unattended-Upgrade \"1\";\nUnattended-Upgrade::Automatic-Reboot \"false\";\n{patterns}\nEND"
        )
    };
    let own = "Unattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=${distro_codename}-security,label=Debian-Security\";";
    host.program("apt-config", &dump(own));
    // Our file, as the kind itself writes it.
    let spec = json!({});
    let typed = serde_json::from_value(spec.clone()).unwrap();
    let seen = security_updates::SecurityUpdates::observe(&typed, &host.sys, Depth::Cheap).await.unwrap();
    let steps = security_updates::SecurityUpdates::plan(&typed, &seen);
    let Some(Step::WriteFile(file)) = steps.first() else { panic!("{steps:?}") };
    host.write(&file.path, std::str::from_utf8(&file.content).unwrap());
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let says = |line: &str| format!("echo 'Allowed origins are: {line}'");
    let cases = [
        (own, says("origin=Debian,codename=trixie-security,label=Debian-Security"), ""),
        (
            own,
            says("origin=Debian,codename=buster-security"),
            "unattended-upgrade allows no security repository",
        ),
        (own, "echo broken; exit 1".to_owned(), "unattended-upgrade --dry-run did not come to say"),
        (
            "Unattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=buster\";",
            says("origin=Debian,codename=trixie-security,label=Debian-Security"),
            "no origin that is allowed matches",
        ),
    ];
    let mut found = Found::default();
    for (patterns, dry_run, want) in cases {
        host.program("apt-config", &dump(patterns));
        host.program("unattended-upgrade", &dry_run);
        found.note(want, host.proof::<security_updates::SecurityUpdates>(spec.clone()).await);
    }
    found.check();
}

/// apt's own word on what it has of a source, whatever lies in its lists.
#[tokio::test]
async fn a_repository_is_there_when_apt_trusts_it() {
    // Only root can give files to root.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let host = Fixture::new();
    // A packet of a version 4 key; what is in it does not matter for its fingerprint.
    let packet = [&[0xc6, 10, 4], &[7; 9][..]].concat();
    let own = postern_proto::openpgp::read(&packet).unwrap().fingerprints[0].to_string();
    let spec = json!({"name": "lab", "uris": ["http://a.example"], "suites": ["s"], "components": ["main"],
        "key_url": "http://a.example/key", "fingerprints": [own]});
    let typed = serde_json::from_value(spec.clone()).unwrap();
    let steps = apt_repository::AptRepository::plan(&typed, &apt_repository::Seen::default());
    for step in steps {
        if let Step::WriteFile(file) = step {
            host.write(&file.path, std::str::from_utf8(&file.content).unwrap());
        }
    }
    host.write("/etc/apt/keyrings/postern-lab.gpg", "");
    std::fs::write(host.at("etc/apt/keyrings/postern-lab.gpg"), &packet).unwrap();
    host.write("/var/lib/apt/lists/a.example_dists_s_InRelease", "");
    let row = |file: &str, trusted: &str| {
        format!("printf '/etc/apt/sources.list.d/{file}.sources:2\\t{trusted}\\tx\\n'")
    };
    let cases = [
        (row("postern-lab", "yes"), ""),
        (row("postern-lab", "no"), "apt has nothing that it trusts of the repository lab"),
        (row("postern-lab2", "yes"), "apt has nothing that it trusts of the repository lab"),
        ("echo E: broken >&2; exit 100".to_owned(), "apt-get indextargets failed: E: broken"),
    ];
    let mut found = Found::default();
    for (script, want) in cases {
        host.program("apt-get", &script);
        found.note(want, host.proof::<apt_repository::AptRepository>(spec.clone()).await);
    }
    found.check();
}

/// A name that only other packages provide is told apart from one that nobody has, which apt itself names.
#[tokio::test]
async fn a_virtual_package_is_named_with_those_that_provide_it() {
    let host = Fixture::new();
    host.write("/var/lib/dpkg/status", "");
    let none = "Candidate: (none)";
    let cases = [
        (
            none,
            "postfix 3.5 (= )\nexim4 4.9 (= )",
            "mta is a virtual package: declare one that provides it: exim4, postfix",
        ),
        (none, "", ""),
        ("Candidate: 1", "postfix 3.5 (= )", ""),
    ];
    let mut found = Found::default();
    for (policy, provided, want) in cases {
        let script = format!(
            "test $1 = policy && echo 'mta:\n  {policy}' || echo 'Package: mta\nReverse Provides: \n{provided}'"
        );
        host.program("apt-cache", &script);
        found.note(want, host.proof::<package::Package>(json!({"name": "mta"})).await);
    }
    found.check();
}

/// A unit that dies right after it said it was ready is not up.
#[tokio::test]
async fn a_unit_that_dies_at_once_does_not_run() {
    let host = Fixture::new();
    let spec = json!({"name": "x", "state": "running"});
    let typed = serde_json::from_value(spec).unwrap();
    // What failed is forgotten by systemd before its start.
    for (second, steps) in [("active", 0), ("failed", 2)] {
        host.program(
            "systemctl",
            &format!(
                "n={0}/asked; echo x >>$n; s=active; test $(wc -l <$n) -ge 2 && s={second}\n\
                 echo LoadState=loaded; echo ActiveState=$s; echo UnitFileState=enabled",
                host.dir.path().display()
            ),
        );
        let _ = std::fs::remove_file(host.at("asked"));
        let seen = service::Service::observe(&typed, &host.sys, Depth::Proof).await.unwrap();
        assert_eq!(service::Service::plan(&typed, &seen).len(), steps, "{second}: {seen:?}");
    }
}
