//! `reboot`: a restart of the host where something on it calls for one.

use postern_proto::spec::RebootSpec;
use serde::{Deserialize, Serialize};

use super::service::newest;
use super::{Depth, ObserveError, Resource, Step, Undo};
use crate::sys::{Sys, SysError};

/// Where Debian's packages ask for a restart; the second is a link to the first on most hosts.
const FLAGS: [&str; 2] = ["/run/reboot-required", "/var/run/reboot-required"];
/// Which packages asked, one a line.
const PACKAGES: &str = "/run/reboot-required.pkgs";
/// The most that is read of it, bytes.
const PACKAGES_LIMIT: u64 = 64 * 1024;
/// How many of them are named.
const NAMED: usize = 3;

pub(super) struct Reboot;

/// Why a restart is due; nothing when it is not.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    why: Option<String>,
}

impl Resource for Reboot {
    type Spec = RebootSpec;
    type Seen = Seen;

    async fn observe(spec: &RebootSpec, host: &Sys, _depth: Depth) -> Result<Seen, ObserveError> {
        if spec.if_required
            && let Some(why) = required(host)?
        {
            return Ok(Seen { why: Some(why) });
        }
        if spec.if_newer.is_empty() {
            return Ok(Seen { why: None });
        }
        let Some(boot) = crate::sys::init_start_ns() else {
            let why = "when this host was started is not known: /proc/1/stat cannot be read";
            return Err(ObserveError::Obstacle(why.to_owned()));
        };
        Ok(Seen { why: newer(spec, host, boot)? })
    }

    fn plan(_: &RebootSpec, seen: &Seen) -> Vec<Step> {
        seen.why.iter().map(|why| Step::Reboot { why: why.clone() }).collect()
    }

    fn essence(_: &RebootSpec, seen: &Seen) -> serde_json::Value {
        seen.why.is_some().into()
    }

    fn undo(_: &RebootSpec, _: &Seen, _: &serde_json::Value, _: &Seen) -> Undo {
        Undo::Cannot("the host was restarted, which nothing takes back".to_owned())
    }

    fn diff(_: &RebootSpec, seen: &Seen) -> String {
        seen.why.as_ref().map_or(String::new(), |why| format!("the host is restarted: {why}\n"))
    }
}

fn required(host: &Sys) -> Result<Option<String>, SysError> {
    for flag in FLAGS {
        if host.exists(flag)? {
            return Ok(Some(format!("{} ({flag})", asked_by(host))));
        }
    }
    Ok(None)
}

/// Who asked, for people. It only explains, so what cannot be read is left out.
fn asked_by(host: &Sys) -> String {
    let text = host.read(PACKAGES, PACKAGES_LIMIT).ok().flatten().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut names: Vec<&str> = Vec::new();
    for name in text.lines().map(str::trim).filter(|name| !name.is_empty()) {
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > NAMED {
            break;
        }
    }
    match names.len() {
        0 => "a package asks for it".to_owned(),
        more if more > NAMED => format!("{} and others ask for it", names[..NAMED].join(", ")),
        1 => format!("{} asks for it", names[0]),
        _ => format!("{} ask for it", names.join(", ")),
    }
}

fn newer(spec: &RebootSpec, host: &Sys, boot: i128) -> Result<Option<String>, SysError> {
    Ok(newest(&spec.if_newer, host, boot)?.map(|path| format!("{path} is newer than the boot")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(json: serde_json::Value) -> RebootSpec {
        serde_json::from_value(json).unwrap()
    }

    #[tokio::test]
    async fn due_by_table() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        std::fs::create_dir_all(dir.path().join("run")).unwrap();
        std::fs::create_dir_all(dir.path().join("var/run")).unwrap();
        std::fs::write(dir.path().join("new"), "").unwrap();
        let old = std::fs::File::create(dir.path().join("old")).unwrap();
        old.set_modified(std::time::UNIX_EPOCH).unwrap();
        let asked = json!({"name": "x"});
        let files = json!({"name": "x", "if_required": false, "if_newer": ["/none", "/old", "/new"]});
        let old = json!({"name": "x", "if_newer": ["/none", "/old"]});
        let flag = |name: &str| std::fs::write(dir.path().join(name), "").unwrap();
        let packages =
            |text: &str| std::fs::write(dir.path().join("run/reboot-required.pkgs"), text).unwrap();
        let due = async |json: &serde_json::Value| {
            let spec = spec(json.clone());
            let seen = Reboot::observe(&spec, &sys, Depth::Cheap).await.unwrap();
            assert_eq!(Reboot::plan(&spec, &seen).len(), usize::from(seen.why.is_some()));
            seen.why.unwrap_or_default()
        };
        assert_eq!((due(&asked).await, due(&old).await), (String::new(), String::new()));
        assert_eq!(due(&files).await, "/new is newer than the boot");
        flag("var/run/reboot-required");
        assert_eq!(due(&asked).await, "a package asks for it (/var/run/reboot-required)");
        flag("run/reboot-required");
        packages("linux-image-6\nlinux-image-6\n");
        assert_eq!(due(&asked).await, "linux-image-6 asks for it (/run/reboot-required)");
        packages("a\nb\nc\nd\ne\n");
        assert_eq!(due(&old).await, "a, b, c and others ask for it (/run/reboot-required)");
        assert_eq!(due(&files).await, "/new is newer than the boot", "not asked for");
    }

    #[test]
    fn a_file_written_before_the_boot_calls_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let sys = Sys::rooted(dir.path().to_owned(), String::new());
        std::fs::write(dir.path().join("f"), "").unwrap();
        let spec = spec(json!({"name": "x", "if_newer": ["/f"]}));
        let now = i128::from(crate::sys::now_ns());
        let minute = 60_000_000_000;
        assert!(newer(&spec, &sys, now - minute).unwrap().is_some());
        assert_eq!(newer(&spec, &sys, now + minute).unwrap(), None);
        let boot = crate::sys::init_start_ns().unwrap();
        assert!(boot > now - 10 * 365 * 24 * 60 * minute && boot < now, "{boot}");
    }
}
