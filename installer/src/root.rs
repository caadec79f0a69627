//! Being root on the host: directly, or by sudo with or without a password.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::api::{Console, Options, Step};
use crate::connect::Handle;
use crate::error::{BootstrapError, Code};
use crate::exec::{self, Input};
use crate::script;
use crate::survey::{self, HostFacts, Sudo};

/// How long the survey may take; a small host that is busy with its first boot is slow.
pub(crate) const SURVEY: Duration = Duration::from_secs(60);
/// How often sudo's password is asked for.
const ATTEMPTS: u32 = 3;

/// How a script becomes root.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    pub(crate) shell: &'static str,
    password: Option<Zeroizing<String>>,
}

impl Root {
    /// What comes first on stdin: sudo's password, if it wants one.
    pub(crate) fn input(&self) -> Input {
        match &self.password {
            Some(password) => Input::default().secret(Zeroizing::new(format!("{}\n", password.as_str()))),
            None => Input::default(),
        }
    }
}

/// Surveys the host and finds the way to root.
pub(crate) async fn survey(
    handle: &Handle,
    options: &Options,
    console: &dyn Console,
) -> Result<(HostFacts, Root), BootstrapError> {
    let what = "surveying the host";
    let text = Input::text(&script::survey_login());
    let output = exec::run(handle, script::SHELL, text, what, SURVEY).await?;
    let facts = parse(&output.stdout, &output.complaint())?;
    match facts.sudo {
        Sudo::Root => Ok((facts, Root { shell: script::SHELL, password: None })),
        Sudo::Free => Ok((facts, Root { shell: script::SUDO_SHELL, password: None })),
        Sudo::Missing => Err(BootstrapError::new(
            Code::NoSudo,
            format!("user id {} is not root and there is no sudo on the host", facts.uid),
        )
        .at(Step::Survey)),
        Sudo::Password => {
            let root = sudo_password(handle, options, console).await?;
            let input = root.input().secret(Zeroizing::new(script::survey()));
            let again = exec::run(handle, root.shell, input, what, SURVEY).await?;
            // The first half knows the login user's side, the second root's.
            let both = format!("{}\n{}", output.stdout, again.stdout);
            let facts = parse(&both, &again.complaint())?;
            if !facts.surveyed_as_root {
                return Err(BootstrapError::new(
                    Code::NoSudo,
                    format!("sudo does not make the user root: {}", again.complaint()),
                )
                .at(Step::Survey));
            }
            Ok((facts, root))
        }
    }
}

fn parse(output: &str, complaint: &str) -> Result<HostFacts, BootstrapError> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    survey::parse(output, now).map_err(|error| {
        let mut text = "the survey of the host failed".to_owned();
        if !complaint.is_empty() {
            text.push_str(&format!(" ({complaint})"));
        }
        BootstrapError::new(Code::Unexpected, text).caused_by(error).at(Step::Survey)
    })
}

/// A password that sudo takes. It is tried by itself, with the end of stdin right behind it: sudo would read
/// whatever follows as a second and third attempt, and lock the account.
async fn sudo_password(
    handle: &Handle,
    options: &Options,
    console: &dyn Console,
) -> Result<Root, BootstrapError> {
    let user = &options.target.user;
    let refuse = |why: &str| {
        BootstrapError::new(Code::SudoPassword, format!("sudo does not let {user:?} become root: {why}"))
            .at(Step::Survey)
    };
    let mut known = options.become_password.clone();
    let mut complaint = String::new();
    for _ in 0..ATTEMPTS {
        let given = known.is_some();
        let password = match known.take() {
            Some(password) => password,
            None => {
                let prompt = format!("sudo password of {user}@{}: ", options.target.host);
                match console.secret(&prompt).await {
                    Some(password) => password,
                    None if complaint.is_empty() => {
                        return Err(refuse("it wants a password, and there is none"));
                    }
                    None => return Err(refuse(&complaint)),
                }
            }
        };
        let root = Root { shell: script::SUDO_PASSWORD_SHELL, password: Some(password) };
        let what = "trying sudo";
        let output = exec::run(handle, root.shell, root.input(), what, SURVEY).await?;
        if output.code == Some(0) {
            return Ok(root);
        }
        complaint = output.complaint();
        // A password that was given beforehand is not asked for again.
        if given {
            break;
        }
    }
    Err(refuse(&complaint))
}
