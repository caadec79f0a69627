//! What has to be done on a host, and what a failure there means. Pure.

use postern_proto::host::{AgentConfig, CONFIG_VERSION, EnrolReport, exit};
use sha2::{Digest as _, Sha256};

use crate::api::{AgentBinary, Ticket};
use crate::error::{BootstrapError, Code};
use crate::survey::ExistingAgent;

/// What has to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) upload: bool,
    pub(crate) config: bool,
    pub(crate) unit: bool,
    pub(crate) enrol: bool,
    /// The agent there is, as far as is known, another controller's or another host's: it gives way.
    pub(crate) displace: bool,
    pub(crate) start: bool,
}

impl Work {
    /// Everything.
    pub(crate) const ALL: Self =
        Self { upload: true, config: true, unit: true, enrol: true, displace: false, start: true };

    pub(crate) fn nothing(self) -> bool {
        self == Self::default()
    }
}

/// What the host is to have.
pub(crate) struct Wanted<'a> {
    pub(crate) binary: &'a AgentBinary,
    /// The configuration file's text.
    pub(crate) config_text: &'a str,
    pub(crate) config: &'a AgentConfig,
    pub(crate) unit: &'a str,
}

/// Whether the program there is to be replaced. A newer one is not put back: the controller speaks with it,
/// and its state may be of a later form.
pub(crate) fn needs_upload(found: Option<&ExistingAgent>, binary: &AgentBinary) -> bool {
    let Some(found) = found else { return true };
    let same = found.sha256.as_deref() == Some(hex(&binary.sha256).as_str());
    let newer = found.status.as_ref().is_some_and(|status| is_newer(&status.version, &binary.version));
    !same && !newer
}

/// Compares what is there with what is wanted.
pub(crate) fn work(found: Option<&ExistingAgent>, wanted: &Wanted<'_>) -> Work {
    let Some(found) = found else { return Work::ALL };
    let same =
        |sum: &Option<String>, text: &str| sum.as_deref() == Some(hex_sha256(text.as_bytes()).as_str());
    let identity = found.status.as_ref().and_then(|status| status.host_id);
    let configured = found.config.as_ref().is_some_and(|config| {
        config.host_id == wanted.config.host_id && config.server_ca_pem == wanted.config.server_ca_pem
    });
    let enrolled =
        found.status_code == Some(exit::OK) && identity == Some(wanted.config.host_id) && configured;
    let mut work = Work {
        upload: needs_upload(Some(found), wanted.binary),
        config: !same(&found.config_sha256, &format!("{}\n", wanted.config_text)),
        unit: !same(&found.unit_sha256, wanted.unit),
        enrol: !enrolled,
        displace: !configured || identity.is_some_and(|host| host != wanted.config.host_id),
        start: false,
    };
    let runs = found.active_state == "active" && found.enabled && !found.temporary;
    work.start = !runs || !work.nothing();
    work
}

/// Why an agent's state forbids going on, if it does (missing, corrupt and too new are different things).
pub(crate) fn state_refusal(found: Option<&ExistingAgent>) -> Option<BootstrapError> {
    let found = found?;
    match found.status_code {
        Some(exit::CORRUPT) => Some(BootstrapError::new(
            Code::StateCorrupt,
            "the host has an agent whose state on disk cannot be read",
        )),
        Some(exit::TOO_NEW) => Some(BootstrapError::new(
            Code::StateTooNew,
            "the host has an agent's state that a newer agent wrote",
        )),
        _ => None,
    }
}

/// The configuration for a ticket; `extra` addresses come first. What the host has for itself stays.
pub(crate) fn config(ticket: &Ticket, extra: Vec<String>, found: Option<&ExistingAgent>) -> AgentConfig {
    let mut controllers: Vec<String> = Vec::new();
    for address in extra.into_iter().chain(ticket.controllers.iter().cloned()) {
        if !controllers.contains(&address) {
            controllers.push(address);
        }
    }
    AgentConfig {
        version: CONFIG_VERSION,
        host_id: ticket.host_id,
        controllers,
        server_name: ticket.server_name.clone(),
        server_ca_pem: ticket.server_ca_pem.clone(),
        proxy: ticket.proxy.clone(),
        temporary_route: None,
        limits: found
            .and_then(|agent| agent.config.as_ref())
            .map(|its| its.limits.clone())
            .unwrap_or_default(),
    }
}

/// Whether `found` is a later version than `ours`. What is not a version is not later.
pub(crate) fn is_newer(found: &str, ours: &str) -> bool {
    fn parse(text: &str) -> Option<([u64; 3], Option<&str>)> {
        let text = text.split('+').next().unwrap_or(text);
        let (numbers, suffix) = match text.split_once('-') {
            Some((numbers, suffix)) => (numbers, Some(suffix)),
            None => (text, None),
        };
        let mut parts = numbers.split('.').map(|part| part.parse::<u64>().ok());
        let version = [parts.next()??, parts.next()??, parts.next()??];
        parts.next().is_none().then_some((version, suffix))
    }
    let (Some((found, found_suffix)), Some((ours, our_suffix))) = (parse(found), parse(ours)) else {
        return false;
    };
    // A pre-release comes before its release; two of them are not told apart.
    found > ours || (found == ours && found_suffix.is_none() && our_suffix.is_some())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What the install script said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct InstallSaid {
    pub(crate) begun: bool,
    pub(crate) done: Vec<String>,
    pub(crate) ended: bool,
    pub(crate) error: Option<String>,
    pub(crate) enrol_code: Option<i32>,
    pub(crate) report: Option<EnrolReport>,
}

/// Parses the install script's output.
pub(crate) fn install_said(output: &str) -> InstallSaid {
    let mut said = InstallSaid::default();
    for (key, value) in output.lines().filter_map(|line| line.split_once('=')) {
        match (key, value) {
            ("begin", "install") => said.begun = true,
            ("end", "install") => said.ended = true,
            ("done", part) => said.done.push(part.to_owned()),
            ("error", why) => said.error = Some(why.to_owned()),
            ("enrol.code", code) => said.enrol_code = code.parse().ok(),
            ("enrol.report", json) => said.report = serde_json::from_str(json.trim()).ok(),
            _ => {}
        }
    }
    said
}

/// A full or read-only disk, from what programs say of it (with LC_ALL=C).
pub(crate) fn disk_code(complaint: &str) -> Option<Code> {
    if complaint.contains("No space left on device") || complaint.contains("Disk quota exceeded") {
        Some(Code::DiskFull)
    } else if complaint.contains("Read-only file system") {
        Some(Code::ReadOnly)
    } else {
        None
    }
}

/// What a failed installation means.
pub(crate) fn install_error(said: &InstallSaid, complaint: &str) -> BootstrapError {
    let words = |text: &str| {
        if complaint.is_empty() { text.to_owned() } else { format!("{text}: {complaint}") }
    };
    match said.error.as_deref() {
        Some("enrol") => enrol_error(said, complaint),
        Some("hash") => {
            BootstrapError::new(Code::HashMismatch, "what the host unpacked is not the agent that was sent")
        }
        Some("upload-missing") => BootstrapError::new(
            Code::UploadFailed,
            "the upload is not where it was put (a chrooted SFTP, or another bootstrap at the same time?)",
        ),
        Some("unusable") => {
            BootstrapError::new(Code::AgentUnusable, words("the agent's program does not run on the host"))
        }
        Some("stop") => BootstrapError::new(
            Code::InstallFailed,
            words("the host has another controller's agent, and it does not stop"),
        ),
        Some("start") => BootstrapError::new(Code::StartFailed, words("systemd does not start the agent")),
        Some("unpack") if disk_code(complaint).is_none() => {
            BootstrapError::new(Code::HashMismatch, words("the upload cannot be unpacked"))
        }
        Some("locked") => {
            BootstrapError::new(Code::InstallFailed, "another bootstrap of this host is at work")
        }
        _ => BootstrapError::new(
            disk_code(complaint).unwrap_or(Code::InstallFailed),
            words("writing the agent on the host"),
        ),
    }
}

fn enrol_error(said: &InstallSaid, complaint: &str) -> BootstrapError {
    let report = said.report.clone();
    let why = report.as_ref().map(|report| report.error.clone()).filter(|text| !text.is_empty());
    let why =
        why.unwrap_or_else(|| if complaint.is_empty() { "no reason given".into() } else { complaint.into() });
    let tried = report.map(|report| report.tried).unwrap_or_default();
    let list: Vec<String> =
        tried.iter().map(|tried| format!("{} ({})", tried.address, tried.error)).collect();
    let list = if list.is_empty() { why.clone() } else { list.join(", ") };
    let (code, text) = match said.enrol_code {
        Some(exit::UNREACHABLE) => {
            (Code::ControllerUnreachable, format!("the host reaches no address of the controller: {list}"))
        }
        Some(exit::REFUSED) => (Code::EnrolRefused, format!("the controller refused the host: {why}")),
        Some(exit::NOT_THE_CONTROLLER) => {
            (Code::NotTheController, format!("the host finds another than this controller: {list}"))
        }
        Some(exit::DISK) => (
            disk_code(complaint).or_else(|| disk_code(&why)).unwrap_or(Code::InstallFailed),
            format!("the agent cannot write its state: {why}"),
        ),
        Some(exit::CORRUPT) => (Code::StateCorrupt, format!("the agent's state on the host: {why}")),
        Some(exit::TOO_NEW) => (Code::StateTooNew, format!("the agent's state on the host: {why}")),
        // timeout(1)'s own, and when it had to kill.
        Some(124 | 137) => (Code::EnrolFailed, "enrolling took more than two minutes".into()),
        Some(126 | 127) => (Code::AgentUnusable, format!("the agent's program does not run there: {why}")),
        _ => (Code::EnrolFailed, format!("enrolling failed: {why}")),
    };
    BootstrapError::new(code, text).with_tried(tried)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use postern_proto::host::StatusReport;
    use zeroize::Zeroizing;

    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            host_id: "0198c0de-0000-7000-8000-000000000001".parse().unwrap(),
            token: Zeroizing::new("t".into()),
            controllers: vec!["b:1".into(), "a:1".into()],
            server_name: "n".into(),
            server_ca_pem: "pem".into(),
            proxy: None,
        }
    }

    fn binary() -> AgentBinary {
        AgentBinary { gzip: Bytes::new(), sha256: [1; 32], version: "0.2.0".into() }
    }

    /// What somebody set on the host for itself outlives every bootstrap.
    #[test]
    fn the_limits_of_a_host_stay() {
        let mut theirs = config(&ticket(), vec![], None);
        theirs.limits.lock_wait_s = Some(7);
        theirs.server_ca_pem = "other".into();
        let found = ExistingAgent { config: Some(theirs), ..ExistingAgent::default() };
        let ours = config(&ticket(), vec![], Some(&found));
        assert_eq!((ours.limits.lock_wait_s, &*ours.server_ca_pem), (Some(7), "pem"));
        // Nothing of it is written where there is nothing: an older agent reads that too.
        let plain = serde_json::to_string(&config(&ticket(), vec![], None)).unwrap();
        assert!(!plain.contains("limits"), "{plain}");
    }

    #[test]
    fn what_has_to_be_done() {
        let (binary, ticket) = (binary(), ticket());
        let config = config(&ticket, vec!["a:1".into()], None);
        assert_eq!(config.controllers, ["a:1", "b:1"]);
        let text = serde_json::to_string(&config).unwrap();
        let wanted = Wanted { binary: &binary, config_text: &text, config: &config, unit: "unit" };
        let healthy = ExistingAgent {
            sha256: Some(hex(&binary.sha256)),
            config_sha256: Some(hex_sha256(format!("{text}\n").as_bytes())),
            unit_sha256: Some(hex_sha256(b"unit")),
            config: Some(config.clone()),
            status: Some(StatusReport {
                version: "0.2.0".into(),
                host_id: Some(config.host_id),
                unfinished_runs: 0,
                certificate_not_after_s: None,
            }),
            status_code: Some(0),
            active_state: "active".into(),
            enabled: true,
            temporary: false,
            has_state: true,
        };
        let check = |change: &dyn Fn(&mut ExistingAgent), want: Work| {
            let mut found = healthy.clone();
            change(&mut found);
            assert_eq!(work(Some(&found), &wanted), want, "{found:?}");
        };
        let start = Work { start: true, ..Work::default() };
        assert_eq!(work(None, &wanted), Work::ALL);
        check(&|_| {}, Work::default());
        check(&|a| a.active_state = "failed".into(), start);
        check(&|a| a.enabled = false, start);
        check(&|a| a.temporary = true, start);
        check(&|a| a.sha256 = Some("00".into()), Work { upload: true, ..start });
        check(&|a| a.unit_sha256 = None, Work { unit: true, ..start });
        check(&|a| a.config_sha256 = None, Work { config: true, ..start });
        // A newer agent stays.
        let newer = |a: &mut ExistingAgent| {
            a.sha256 = Some("00".into());
            a.status.as_mut().unwrap().version = "0.10.0".into();
        };
        check(&newer, Work::default());
        // Another controller's, or another host's identity.
        let other = |a: &mut ExistingAgent| a.config.as_mut().unwrap().server_ca_pem = "other".into();
        let displace = Work { enrol: true, displace: true, ..start };
        check(&other, displace);
        let clone = |a: &mut ExistingAgent| {
            a.status.as_mut().unwrap().host_id = Some(postern_proto::ids::HostId::generate());
        };
        check(&clone, displace);
        let nobody = |a: &mut ExistingAgent| a.status.as_mut().unwrap().host_id = None;
        check(&nobody, Work { enrol: true, ..start });
        // Its program is gone and it may still run: by its configuration it is ours, or nothing says so.
        let lost = |a: &mut ExistingAgent| (a.status, a.status_code, a.sha256) = (None, None, None);
        check(&lost, Work { enrol: true, upload: true, ..start });
        check(
            &|a| {
                lost(a);
                (a.config, a.config_sha256) = (None, None);
            },
            Work { upload: true, config: true, ..displace },
        );
        check(&|a| a.status_code = Some(exit::NOT_ENROLLED), Work { enrol: true, ..start });
        // Only state is left, as after a bootstrap that was cut.
        assert_eq!(
            work(Some(&ExistingAgent { has_state: true, ..ExistingAgent::default() }), &wanted),
            Work { displace: true, ..Work::ALL }
        );
    }

    #[test]
    fn versions() {
        for (found, ours, want) in [
            ("0.1.0", "0.1.0", false),
            ("0.1.1", "0.1.0", true),
            ("0.10.0", "0.9.9", true),
            ("0.1.0", "0.1.1", false),
            ("1.0.0", "1.0.0-rc.1", true),
            ("1.0.0-rc.1", "1.0.0", false),
            ("1.0.0+abc", "1.0.0", false),
            ("", "1.0.0", false),
            ("9", "1.0.0", false),
            ("9.9.9.9", "1.0.0", false),
            ("x.y.z", "1.0.0", false),
        ] {
            assert_eq!(is_newer(found, ours), want, "{found} over {ours}");
        }
    }

    #[test]
    fn failures_have_codes() {
        let tried =
            r#"{"host_id":null,"reached":null,"tried":[{"address":"a:1","error":"refused"}],"error":"none"}"#;
        for (output, complaint, want) in [
            ("error=hash", "", Code::HashMismatch),
            ("error=unpack", "gzip: stdin: unexpected end of file", Code::HashMismatch),
            ("error=unpack", "gzip: stdout: No space left on device", Code::DiskFull),
            ("error=write", "cannot create /etc/x: Read-only file system", Code::ReadOnly),
            ("error=write", "", Code::InstallFailed),
            ("error=upload-missing", "", Code::UploadFailed),
            ("error=unusable", "not found", Code::AgentUnusable),
            ("error=start", "", Code::StartFailed),
            ("error=stop", "", Code::InstallFailed),
            ("error=locked", "", Code::InstallFailed),
            ("enrol.code=3\nerror=enrol", "", Code::ControllerUnreachable),
            ("enrol.code=4\nerror=enrol", "", Code::EnrolRefused),
            ("enrol.code=5\nerror=enrol", "", Code::NotTheController),
            ("enrol.code=6\nerror=enrol", "No space left on device", Code::DiskFull),
            ("enrol.code=8\nerror=enrol", "", Code::StateCorrupt),
            ("enrol.code=9\nerror=enrol", "", Code::StateTooNew),
            ("enrol.code=124\nerror=enrol", "", Code::EnrolFailed),
            ("enrol.code=126\nerror=enrol", "", Code::AgentUnusable),
            ("enrol.code=1\nerror=enrol", "", Code::EnrolFailed),
            ("garbage", "", Code::InstallFailed),
        ] {
            assert_eq!(install_error(&install_said(output), complaint).code(), want, "{output}");
        }
        let said = install_said(&format!("begin=install\nenrol.report={tried}\nenrol.code=3\nerror=enrol"));
        let error = install_error(&said, "");
        assert_eq!(error.tried().len(), 1);
        assert!(error.to_string().contains("a:1 (refused)"), "{error}");
    }
}
