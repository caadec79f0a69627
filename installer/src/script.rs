//! The shell scripts that run on a host, put together from their texts.
//!
//! A script travels on the stdin of `/bin/sh` (or `sudo … /bin/sh`), never in an argument vector: what is in
//! it, secrets included, is seen by no other process, sudo logs only `/bin/sh`, and no login shell quotes it.

use postern_proto::host::{
    AGENT_BINARY, CONFIG_DIR, CONFIG_FILE, RUN_DIR, RUN_DROP_IN_DIR, STATE_DIR, UNIT, UNIT_FILE, exit,
};
use zeroize::Zeroizing;

/// What makes the unit use the configuration with a temporary route, in [`RUN_DROP_IN_DIR`].
const RUN_DROP_IN: &str = "temporary-route.conf";
/// Where root's upload arrives.
pub(crate) const UPLOAD_AS_ROOT: &str = "/usr/local/bin/.postern-agent.upload";
/// Where another user's upload arrives, in the home directory: nobody else writes there.
pub(crate) const UPLOAD_AS_USER: &str = ".postern-agent.upload";

const LOGIN: &str = include_str!("scripts/login.sh");
const SURVEY: &str = include_str!("scripts/survey.sh");
const INSTALL: &str = include_str!("scripts/install.sh");
const REMOVE: &str = include_str!("scripts/remove.sh");
const DIAGNOSE: &str = include_str!("scripts/diagnose.sh");

/// The shell that runs a script.
pub(crate) const SHELL: &str = "/bin/sh";
/// The same as root. `-k` ignores credentials that sudo remembers, so that whether a password is read from
/// stdin does not depend on what happened before. No `-p`: prompts go to stderr and are not read.
pub(crate) const SUDO_SHELL: &str = "sudo -k -n -- /bin/sh";
/// The same with a password as the first line of stdin.
pub(crate) const SUDO_PASSWORD_SHELL: &str = "sudo -k -S -- /bin/sh";

/// Quotes a text as one word for a POSIX shell.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn fill(text: &str) -> String {
    text.replace("@BINARY@", AGENT_BINARY)
        .replace("@CONFIG_DIR@", CONFIG_DIR)
        .replace("@CONFIG_FILE@", CONFIG_FILE)
        .replace("@STATE_DIR@", STATE_DIR)
        .replace("@UNIT_FILE@", UNIT_FILE)
        .replace("@UNIT@", UNIT)
        .replace("@RUN_DIR@", RUN_DIR)
        .replace("@RUN_DROP_IN_DIR@", RUN_DROP_IN_DIR)
        .replace("@RUN_DROP_IN@", &format!("{RUN_DROP_IN_DIR}/{RUN_DROP_IN}"))
        .replace("@UPLOAD@", UPLOAD_AS_ROOT)
        .replace("@UNREACHABLE@", &exit::UNREACHABLE.to_string())
        .replace("@NOT_THE_CONTROLLER@", &exit::NOT_THE_CONTROLLER.to_string())
}

const PROLOGUE: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nLC_ALL=C\n\
                        export PATH LC_ALL\numask 077\n";

/// The survey as root, or as whoever runs it: one part of [`survey_login`].
pub(crate) fn survey() -> String {
    format!("{PROLOGUE}{}\nsurvey </dev/null\n", fill(SURVEY))
}

/// The survey at login, in one round trip: as root at once, or through sudo where it asks for no password.
/// Where it asks for one, the survey follows when there is one.
pub(crate) fn survey_login() -> String {
    format!(
        "{LOGIN}\nsurvey_text() {{\ncat <<'POSTERN_END_OF_SURVEY'\n{}POSTERN_END_OF_SURVEY\n}}\n\
         main() {{\n\
         if [ \"$(id -u)\" = 0 ]; then say sudo root; survey_text | {SHELL}\n\
         elif ! command -v sudo >/dev/null 2>&1; then say sudo missing; say end survey\n\
         elif survey_text | {SUDO_SHELL} 2>/dev/null; then say sudo free\n\
         else say sudo password; say end survey\nfi\n}}\nmain; exit 0\n",
        survey()
    )
}

/// Only what cloud-init does.
pub(crate) fn cloud_init() -> String {
    format!("{PROLOGUE}{}\nsay begin survey\ncloud_state </dev/null\nsay end survey\n", fill(SURVEY))
}

/// What an installation does; see `scripts/install.sh`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Install<'a> {
    /// Path of the upload and the SHA-256 of what is in it.
    pub(crate) upload: Option<(&'a str, &'a str)>,
    /// The configuration, one line of JSON.
    pub(crate) config: Option<&'a str>,
    /// The configuration with a temporary route, until the next boot.
    pub(crate) run_config: Option<&'a str>,
    pub(crate) run_drop_in: Option<&'a str>,
    pub(crate) unit: Option<&'a str>,
    /// The token, when the agent is to enrol.
    pub(crate) token: Option<&'a str>,
    /// Whether an agent that runs there is another's and gives way to the enrolment.
    pub(crate) displace: bool,
    /// Whether an agent that is enrolled already looks first whether it reaches a controller.
    pub(crate) probe: bool,
    /// Whether the unit is enabled and (re)started.
    pub(crate) start: bool,
    /// Whether the upload stays for another attempt when the controller is out of reach.
    pub(crate) keep_upload: bool,
    /// For fault tests: wait for a line after each part, so that a cut hits exactly there.
    pub(crate) pause: bool,
}

pub(crate) fn install(what: &Install<'_>) -> Zeroizing<String> {
    let (upload, sha256) = what.upload.unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
    text.push_str(PROLOGUE);
    for (name, value) in [
        ("upload", upload),
        ("sha256", sha256),
        ("config", what.config.unwrap_or_default()),
        ("run_config", what.run_config.unwrap_or_default()),
        ("run_drop_in", what.run_drop_in.unwrap_or_default()),
        ("unit", what.unit.unwrap_or_default()),
        ("token", what.token.unwrap_or_default()),
        ("start", if what.start { "yes" } else { "" }),
        ("displace", if what.displace { "yes" } else { "" }),
        ("probe", if what.probe { "yes" } else { "" }),
        ("keep", if what.keep_upload { "yes" } else { "" }),
        ("pause", if what.pause { "yes" } else { "" }),
    ] {
        text.push_str(name);
        text.push('=');
        text.push_str(&Zeroizing::new(quote(value)));
        text.push('\n');
    }
    text.push_str(&fill(INSTALL));
    // On one line and last: nothing of the script is left on stdin for a `read` to find.
    text.push_str("\nmain; exit 0\n");
    text
}

pub(crate) fn remove() -> String {
    format!("{PROLOGUE}{}\nmain; exit 0\n", fill(REMOVE))
}

/// Takes the temporary route's configuration away; the running agent is left alone.
pub(crate) fn drop_route() -> String {
    format!(
        "{PROLOGUE}rm -rf {RUN_DIR} {RUN_DROP_IN_DIR}/{RUN_DROP_IN}\n\
             rmdir {RUN_DROP_IN_DIR} 2>/dev/null\nsystemctl daemon-reload\nexit 0\n"
    )
}

/// Why the agent does not run, in a few lines.
pub(crate) fn diagnose() -> String {
    format!("{PROLOGUE}{}", fill(DIAGNOSE))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<(&'static str, String)> {
        let full = Install {
            upload: Some(("/tmp/it's", "00")),
            config: Some("{\"a\":\"b'c\"}"),
            run_config: Some("{}"),
            run_drop_in: Some("[Service]"),
            unit: Some("[Unit]\nDescription=x"),
            token: Some("secret"),
            displace: true,
            probe: true,
            start: true,
            keep_upload: true,
            pause: true,
        };
        vec![
            ("survey", survey()),
            ("survey_login", survey_login()),
            ("cloud_init", cloud_init()),
            ("install", install(&full).to_string()),
            ("install nothing", install(&Install::default()).to_string()),
            ("remove", remove()),
            ("drop_route", drop_route()),
            ("diagnose", diagnose()),
        ]
    }

    fn run(shell: &str, arguments: &[&str], script: &str) -> (bool, String, String) {
        let mut child = Command::new(shell)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A shell that refuses a script closes its stdin early.
        let _ = child.stdin.take().unwrap().write_all(script.as_bytes());
        let output = child.wait_with_output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    #[test]
    fn scripts_are_good_posix_shell() {
        for (name, text) in all() {
            assert!(!text.contains('@') || !text.contains("_DIR@"), "{name}: a placeholder is left");
            for shell in ["sh", "dash", "bash"] {
                if Command::new(shell).arg("-c").arg(":").status().is_err() {
                    continue;
                }
                let arguments: &[&str] = if shell == "bash" { &["--posix", "-n"] } else { &["-n"] };
                let (ok, _, stderr) = run(shell, arguments, &text);
                assert!(ok && stderr.is_empty(), "{name} in {shell}: {stderr}");
            }
        }
    }

    #[test]
    fn no_line_of_the_survey_ends_its_own_quotation() {
        assert_eq!(survey_login().matches("POSTERN_END_OF_SURVEY").count(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn quoting_survives_a_shell(text in "[^\\x00]{0,40}") {
            let (ok, stdout, _) = run("sh", &[], &format!("printf %s {}", quote(&text)));
            prop_assert!(ok);
            prop_assert_eq!(stdout, text);
        }
    }
}
