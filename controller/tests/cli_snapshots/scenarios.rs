//! Commands that are played in order, each list against one daemon that answers as it was told to.

use postern_proto::event::{EventKind, Outcome, RunState, StepEnd, Stream};
use postern_proto::ids::Address;
use postern_proto::v1::{self, LinkState};

use super::cli_support::{FakeOperator, Shell, event, host, output, run_id, step};

/// A list of commands and what is around them.
pub(crate) struct Scenario {
    /// Of the golden file.
    pub(crate) name: &'static str,
    /// The daemon; `None` where none can be started.
    pub(crate) fake: Option<FakeOperator>,
    pub(crate) stdin: &'static str,
    /// Name and text.
    pub(crate) files: &'static [(&'static str, &'static str)],
    pub(crate) commands: &'static [&'static [&'static str]],
}

impl Scenario {
    pub(crate) fn new(
        name: &'static str,
        fake: Option<FakeOperator>,
        commands: &'static [&'static [&'static str]],
    ) -> Self {
        Self { name, fake, stdin: "", files: &[], commands }
    }

    pub(crate) fn shell(&self) -> Shell {
        let mut shell = Shell::new();
        shell.stdin = self.stdin.to_owned();
        for (name, text) in self.files {
            shell.file(name, text);
        }
        if let Some(fake) = &self.fake {
            fake.serve(&shell.state());
        }
        shell
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

pub(crate) fn finished(
    text: &str,
    outcome: Outcome,
    message: &str,
    diff: &str,
    seen: &str,
) -> v1::run_update::Kind {
    event(EventKind::ResourceFinished {
        address: address(text),
        attempt: 1,
        outcome,
        message: message.into(),
        diff: diff.into(),
        duration_ns: 31_000_000,
        seen: seen.repeat(32),
    })
}

pub(crate) fn daemon() -> FakeOperator {
    let mut web = host("web1", LinkState::Up);
    web.vars = [("admin".to_owned(), "ada".to_owned())].into();
    web.profiles = vec!["hello".into()];
    web.peer = "192.0.2.7:55122".into();
    FakeOperator { hosts: vec![web, host("db\u{1b}1", LinkState::Down)], ..FakeOperator::default() }
}

/// Sends a backup of this sort.
fn backup_is(sort: &str) -> FakeOperator {
    FakeOperator { message: sort.into(), ..daemon() }
}

pub(crate) fn end(state: RunState, message: &str) -> v1::run_update::Kind {
    event(EventKind::Finished { state, message: message.into() })
}

/// A run of `hello` that changes something.
pub(crate) fn changes() -> FakeOperator {
    FakeOperator {
        updates: vec![
            event(EventKind::Accepted { plan: postern_proto::ids::PlanHash::of(b"x"), resources: 4 }),
            finished("hello:package:cron", Outcome::Unchanged, "", "", ""),
            event(EventKind::ResourceStarted { address: step().address, attempt: 1 }),
            event(EventKind::StepStarted { step: step(), summary: "run x".into() }),
            output(Stream::Stdout, b"one\ntwo \x1b[31m\n"),
            output(Stream::Stderr, b"bad \xff\n"),
            event(EventKind::StepFinished { step: step(), end: StepEnd::Exit(0), frames: 2 }),
            finished("hello:file:motd", Outcome::Changed, "content", "--- a\n+++ b\n-old\n+new\n", ""),
            end(RunState::Ok, ""),
        ],
        end: Some(RunState::Ok),
        ..daemon()
    }
}

/// A command that prints this and ends with this code.
pub(crate) fn says(text: &str, code: i32) -> FakeOperator {
    let state = if code == 0 { RunState::Ok } else { RunState::Failed };
    FakeOperator {
        updates: vec![
            output(Stream::Stdout, text.as_bytes()),
            event(EventKind::StepFinished { step: step(), end: StepEnd::Exit(code), frames: 1 }),
            end(state, ""),
        ],
        end: Some(state),
        ..daemon()
    }
}

/// A check of `hello` that sees everything.
pub(crate) fn sees() -> FakeOperator {
    let diff = "--- /etc/motd\n+++ /etc/motd\n@@ -1 +1 @@\n-old\n+Hello\n";
    FakeOperator {
        updates: vec![
            finished("hello:package:cron", Outcome::Unchanged, "", "", "11"),
            finished("hello:file:motd", Outcome::WouldChange, "content", diff, "22"),
            finished("hello:service:cron", Outcome::Unchanged, "", "", "33"),
            finished("hello:command:first-hello", Outcome::WouldChange, "known after apply", "", ""),
            end(RunState::Ok, ""),
        ],
        end: Some(RunState::Ok),
        ..daemon()
    }
}

fn fails() -> FakeOperator {
    FakeOperator {
        updates: vec![
            finished("hello:package:cron", Outcome::Failed, "apt-get: exit code 100", "", ""),
            finished("hello:file:motd", Outcome::Skipped, "", "", ""),
            end(RunState::Failed, "hello:package:cron failed"),
        ],
        end: Some(RunState::Failed),
        ..daemon()
    }
}

fn parks() -> FakeOperator {
    let why = "it waits for the value of secret db, version 2";
    FakeOperator {
        updates: vec![
            finished("hello:package:cron", Outcome::Unchanged, "", "", ""),
            event(EventKind::Parked { why: why.into() }),
            event(EventKind::Unparked),
            finished("hello:file:motd", Outcome::Changed, "content", "", ""),
            end(RunState::Ok, ""),
        ],
        end: Some(RunState::Ok),
        ..daemon()
    }
}

fn stays_parked() -> FakeOperator {
    let mut fake = parks();
    fake.updates.truncate(2);
    fake.end = Some(RunState::Parked);
    fake
}

fn secrets() -> FakeOperator {
    let secret = |name: &str, version, used_by: &[&str]| v1::SecretInfo {
        name: name.into(),
        version,
        set_unix_ms: 1_000,
        used_by: used_by.iter().map(|host| (*host).to_owned()).collect(),
    };
    FakeOperator { secrets: vec![secret("db", 2, &["web1"]), secret("dns/token", 1, &[])], ..daemon() }
}

fn undoes() -> FakeOperator {
    let mut fake = changes();
    fake.undoes = run_id().to_string();
    fake
}

/// A host that is to have a profile already.
pub(crate) fn has_other() -> FakeOperator {
    let mut fake = FakeOperator { updates: vec![end(RunState::Ok, "")], ..secrets() };
    fake.end = Some(RunState::Ok);
    fake.hosts[0].profiles = vec!["other".into()];
    let other =
        "name: other\nvars: {text: }\nresources:\n  - file: {path: /etc/other, content: '{{ text }}'}\n";
    fake.assigned = vec![v1::AssignedProfile {
        name: "other".into(),
        bundle: postern::profile::Bundle::new("other.yaml", other.as_bytes()).to_bytes().unwrap().into(),
        vars: [("text".to_owned(), "kept".to_owned())].into(),
        assigned_unix_ms: 1_000,
        covers: Vec::new(),
    }];
    fake
}

/// A host with a profile that brings Traefik, and one site.
fn has_sites() -> FakeOperator {
    let assigned = |name: &str, text: &str| {
        let site = postern::profile::SHIPPED.iter().find(|shipped| shipped.name == "site").unwrap();
        let bundle = postern::profile::Bundle::new(&format!("{name}.yaml"), text.as_bytes());
        v1::AssignedProfile {
            name: name.into(),
            bundle: bundle.with("site", site.text.as_bytes()).to_bytes().unwrap().into(),
            vars: Default::default(),
            assigned_unix_ms: 1_000,
            covers: Vec::new(),
        }
    };
    let traefik = "name: edge\nvars: {traefik_image: 'traefik:v3', dns: bunny}\nresources:\n  - file: {path: /etc/dns, \
                   content: '{{ dns }}'}\n";
    let site = "name: site-a-example\nvars: {site_domain: a.example, site_image: 'nginx:1', site_port: 80, site_dns: '', \
                site_replicas: 1, site_env: 'A=b'}\nresources:\n  - include: site\n    vars: {domain: '{{ site_domain }}', \
                image: '{{ site_image }}'}\n";
    let mut fake = FakeOperator { updates: vec![end(RunState::Ok, "")], ..secrets() };
    let token =
        v1::SecretInfo { name: "dns-cloudflare".into(), used_by: Vec::new(), ..fake.secrets[0].clone() };
    fake.secrets.push(token);
    fake.end = Some(RunState::Ok);
    fake.hosts[0].profiles = vec!["edge".into(), "site-a-example".into()];
    fake.assigned = vec![assigned("edge", traefik), assigned("site-a-example", site)];
    fake
}

/// Needs a variable of the host, facts and a secret.
pub(crate) const MINE: &str = "name: mine\nvars: {admin: , size: 1}\nresources:\n  - file:\n      path: /etc/mine\n      \
    content: \"{{ admin }} {{ size }} {{ os.version }} {{ secret('db') }}\"\n";
const KEYED: &str =
    "name: keyed\nvars: {admin_key: }\nresources:\n  - file: {path: /etc/k, content: '{{ admin_key }}'}\n";
const CONTRADICTS: &str =
    "name: mine\nresources:\n  - file: {path: /etc/other, content: 'not the same'}\n    id: other-file\n";

const BAD: &str = "name: bad\nresources:\n  - pakage: {name: curl}\n  - file: {path: x, content: y}\n";

/// All of them.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let refused = FakeOperator {
        message: "the agent is too old for kind sudoers".into(),
        end: Some(RunState::Refused),
        ..daemon()
    };
    let resumed = FakeOperator { message: "refuse".into(), end: Some(RunState::Ok), ..daemon() };
    let mut all = vec![
        Scenario::new(
            "hosts",
            Some(daemon()),
            &[
                &["hosts"],
                &["hosts", "name=web*"],
                &["hosts", "label role=db"],
                &["host", "show", "web1"],
                &["host", "show", "nope"],
                &["--output", "json", "host", "show", "web1"],
            ],
        ),
        Scenario::new(
            "hosts-none",
            Some(FakeOperator::default()),
            &[&["hosts"], &["runs"], &["secret", "list"]],
        ),
        Scenario::new(
            "host-changes",
            Some(daemon()),
            &[
                &["host", "rename", "web1", "web9"],
                &["host", "rename", "web1", "db\u{1b}1"],
                &["host", "rename", "nope", "x"],
                &["host", "label", "web1", "role=db", "zone=a", "old-"],
                &["host", "label", "web1", "role"],
                &["host", "label", "web1", "role=a", "role-"],
                &["host", "label", "web1"],
                &["host", "set", "web1", "admin=grace", "greeting=Hello there"],
                &["host", "set", "web1", "admin-"],
                &["host", "unassign", "web1", "hello"],
                &["host", "unassign", "web1", "base"],
                &["host", "forget", "web1"],
                &["host", "forget", "db\u{1b}1"],
                &["host", "forget", "db\u{1b}1", "--force"],
            ],
        ),
        Scenario::new(
            "sites",
            Some(has_sites()),
            &[
                &["site", "list", "web1"],
                &["--output", "json", "site", "list", "web1"],
                &["site", "add", "web1", "b.example", "--image", "nginx:2", "--dns", "cloudflare"],
                &["site", "add", "web1", "b.example"],
                &["site", "add", "web1", "https://b.example", "--image", "nginx:2"],
                &["site", "add", "web1", "b.example", "--image", "nginx:2", "--dns", "hetzner"],
                &["site", "add", "web1", "b.example", "--image", "nginx:2", "--dns", "route53"],
                &["site", "add", "web1", "a.example", "--replicas", "2", "--check"],
                &["site", "remove", "web1", "A.example."],
                &["site", "remove", "web1", "a.example", "--check"],
                &["site", "remove", "web1", "c.example"],
            ],
        ),
        Scenario::new(
            "sites-none",
            Some(daemon()),
            &[&["site", "list", "web1"], &["site", "add", "web1", "a.example", "--image", "nginx:1"]],
        ),
        Scenario::new(
            "runs",
            Some(changes()),
            &[
                &["runs"],
                &["run", "show", "beef"],
                &["run", "show", "dead"],
                &["run", "show", "?"],
                &["run", "logs", "beef"],
                &["run", "logs", "beef", "--follow"],
                &["run", "cancel", "beef"],
                &["run", "resume", "beef"],
                &["run", "resume", "dead"],
                &["run", "undo", "beef"],
                &["run", "undo", "beef", "--check"],
                &["run", "undo", "x"],
            ],
        ),
        Scenario::new(
            "run-failed",
            Some(fails()),
            &[
                &["run", "show", "beef"],
                &["run", "resume", "beef"],
                &["run", "undo", "beef"],
                &["run", "undo", "beef", "--check"],
            ],
        ),
        Scenario::new("run-parked", Some(stays_parked()), &[&["run", "show", "beef"]]),
        Scenario::new(
            "run-undo",
            Some(undoes()),
            &[&["run", "show", "beef"], &["runs"], &["run", "resume", "beef"]],
        ),
        Scenario::new("run-resume-refused", Some(resumed), &[&["run", "resume", "beef"]]),
        Scenario::new(
            "apply",
            Some(changes()),
            &[
                &["apply", "hello", "-H", "web1"],
                &["-q", "apply", "hello", "-H", "web1"],
                &["apply", "hello", "-H", "web1", "--check"],
                &["--output", "json", "apply", "hello", "-H", "web1"],
                &["apply", "hello", "-H", "nope"],
                &["apply", "hello", "-H", "os=plan9"],
                &["apply", "hello"],
                &["up", "root@web1.example", "-p", "hello"],
                &["up", "root@web1.example"],
                &["up", "root@web1.example", "--check"],
                &["up", "root@new.example", "--agent-binary", "none"],
            ],
        ),
        Scenario::new(
            "apply-failed",
            Some(fails()),
            &[
                &["apply", "hello", "-H", "web1"],
                &["apply", "hello", "-H", "web1", "--check"],
                &["apply", "hello", "-H", "web1", "--plan-out", "plan.json"],
            ],
        ),
        Scenario::new("apply-parked", Some(parks()), &[&["apply", "hello", "-H", "web1"]]),
        Scenario::new("apply-refused", Some(refused), &[&["apply", "hello", "-H", "web1"]]),
        Scenario {
            files: &[
                ("there.json", "mine"),
                ("new.json", "{\n  \"schema\": \"postern/reviewed-plan/v99\"}"),
                ("cut.json", "{\"schema\": \"postern/reviewed-plan/v1\", \"plan\":"),
            ],
            ..Scenario::new(
                "apply-reviewed",
                Some(sees()),
                &[
                    &["apply", "hello", "-H", "web1", "--plan-out", "plan.json"],
                    &["apply", "plan.json", "-H", "web1"],
                    &["apply", "plan.json", "-H", "db\u{1b}1"],
                    &["apply", "plan.json", "-H", "all"],
                    &["apply", "plan.json", "hello", "-H", "web1"],
                    &["apply", "plan.json", "-H", "web1", "--var", "greeting=x"],
                    &["apply", "hello", "-H", "web1", "--plan-out", "there.json"],
                    &["apply", "hello", "-H", "all", "--plan-out", "other.json"],
                    &["apply", "new.json", "-H", "web1"],
                    &["apply", "cut.json", "-H", "web1"],
                ],
            )
        },
        Scenario {
            files: &[
                ("mine.yaml", MINE),
                ("contradicts.yaml", CONTRADICTS),
                (
                    "secretive.yaml",
                    "name: s\nresources:\n  - file: {path: /etc/s, content: \"{{ secret('no') }}\"}\n",
                ),
                ("size.yaml", "size: 2\n"),
                ("sise.yaml", "sise: 2\n"),
            ],
            ..Scenario::new(
                "apply-composed",
                Some(has_other()),
                &[
                    &["apply", "mine.yaml", "-H", "web1"],
                    &["apply", "mine.yaml", "-H", "web1", "--check"],
                    &["apply", "mine.yaml", "-H", "web1", "--var-file", "size.yaml"],
                    &["apply", "mine.yaml", "-H", "web1", "--var-file", "sise.yaml"],
                    &["apply", "mine.yaml", "-H", "web1", "--var-file", "gone.yaml"],
                    &["apply", "mine.yaml", "-H", "db\u{1b}1"],
                    &["apply", "contradicts.yaml", "-H", "web1"],
                    &["apply", "secretive.yaml", "-H", "web1"],
                    &["profile", "check", "mine.yaml", "--var", "admin=ada"],
                ],
            )
        },
        Scenario {
            files: &[("keyed.yaml", KEYED), (".ssh/id_ed25519.pub", "# mine\nssh-ed25519 AAAA ada@laptop\n")],
            ..Scenario::new(
                "up-key",
                Some(changes()),
                &[
                    &["up", "root@web1.example", "-p", "keyed.yaml"],
                    &["up", "root@web1.example", "-p", "keyed.yaml", "--check"],
                    &["up", "root@web1.example", "-p", "keyed.yaml", "--var", "admin_key=ssh-ed25519 BBBB"],
                    &["up", "root@web1.example", "-p", "keyed.yaml", "-i", "other"],
                ],
            )
        },
        Scenario::new(
            "exec",
            Some(changes()),
            &[
                &["exec", "web1", "--", "x", "a b"],
                &["exec", "name=web*", "--", "x"],
                &["exec", "", "--", "x"],
                &["exec", "web1", "--"],
            ],
        ),
        Scenario::new(
            "unban",
            Some(says("1\n", 0)),
            &[
                &["unban", "web1", "203.0.113.9"],
                &["--output", "json", "unban", "web1", "2001:db8::9"],
                &["unban", "web1", "203.0.113.9; reboot"],
                &["unban", "web1", "web2.example"],
                &["unban", "nope", "203.0.113.9"],
                &["unban", "all", "203.0.113.9"],
            ],
        ),
        Scenario::new("unban-not-banned", Some(says("0\n", 0)), &[&["unban", "web1", "203.0.113.9"]]),
        Scenario::new(
            "unban-failed",
            Some(says("Failed to access socket path: is fail2ban running?\n", 255)),
            &[&["unban", "web1", "203.0.113.9"]],
        ),
        Scenario::new(
            "secrets",
            Some(secrets()),
            &[
                &["secret", "list"],
                &["--output", "json", "secret", "list"],
                &["secret", "remove", "db"],
                &["secret", "remove", "nope"],
                &["secret", "remove", ""],
            ],
        ),
        Scenario {
            stdin: "hunter2\n\n",
            files: &[("key.pem", "-----BEGIN-----\n"), ("empty", "")],
            ..Scenario::new(
                "secret-set",
                Some(secrets()),
                &[
                    &["secret", "set", "db"],
                    &["--output", "json", "secret", "set", "db"],
                    &["secret", "set", "key", "--file", "key.pem"],
                    &["secret", "set", "key", "--file", "empty"],
                    &["secret", "set", "key", "--file", "gone"],
                    &["secret", "set", "bad name"],
                ],
            )
        },
        Scenario::new("secret-set-nothing", Some(secrets()), &[&["secret", "set", "db"]]),
        Scenario {
            files: &[("bad.yaml", BAD), ("mine.yaml", "mine")],
            ..Scenario::new(
                "profiles",
                None,
                &[
                    &["profile", "list"],
                    &["profile", "show", "hello"],
                    &["profile", "show", "nope"],
                    &["profile", "check", "hello"],
                    &["profile", "check", "bad.yaml"],
                    &["profile", "check", "hello", "--var", "greting=x"],
                    &["profile", "copy", "hello"],
                    &["profile", "copy", "hello"],
                    &["profile", "copy", "hello", "mine.yaml"],
                    &["profile", "copy", "hello", "mine.yaml", "--force"],
                    &["profile", "copy", "bad.yaml"],
                    &["profile", "copy", "hello", "no/such/place.yaml"],
                ],
            )
        },
        Scenario {
            files: &[("there", "mine")],
            ..Scenario::new(
                "backup",
                Some(daemon()),
                &[&["backup", "state.backup"], &["backup", "there"], &["backup", "no/such/place"]],
            )
        },
        Scenario {
            files: &[("no.backup", "this is no backup"), ("there/port", "7300")],
            ..Scenario::new(
                "restore",
                None,
                &[
                    &["restore", "no.backup"],
                    &["restore", "gone.backup", "--state-dir", "new", "--accept"],
                    &["restore", "no.backup", "--state-dir", "new", "--accept"],
                    &["restore", "no.backup", "--state-dir", "there", "--accept"],
                ],
            )
        },
        Scenario::new("backup-broken", Some(backup_is("break")), &[&["backup", "state.backup"]]),
        Scenario::new("backup-half", Some(backup_is("half")), &[&["backup", "state.backup"]]),
        Scenario::new(
            "backup-keyless",
            Some(backup_is("keyless")),
            &[&["backup", "state.backup"], &["--output", "json", "backup", "other.backup"]],
        ),
        Scenario::new(
            "mistakes",
            None,
            &[
                &[],
                &["upp"],
                &["up"],
                &["up", "h", "--var", "novalue", "-p", "hello"],
                &["up", "h", "--timeout", "soon"],
                &["--output", "xml", "hosts"],
                &["-q", "-v", "hosts"],
                &["serve", "--listen", "nowhere:1"],
                &["completions", "tcsh"],
                &["hosts"],
            ],
        ),
    ];
    all.extend(super::drift::scenarios());
    all.extend(super::ssh_port::scenarios());
    all.extend(super::site_backup::scenarios());
    all
}
