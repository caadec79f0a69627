//! A configuration file that a kind has for itself: its whole content is Postern's, readable by all.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{ObserveError, Step, WriteFile, base64_bytes};
use crate::sys::{FileKind, Sys};

/// The most that is read of one, bytes.
const LIMIT: u64 = 4 << 20;
const MODE: u32 = 0o644;

/// Such a file as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owned {
    #[serde(with = "base64_bytes")]
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owned {
    /// A file as this module writes it.
    #[cfg(test)]
    pub(super) fn new(content: &[u8]) -> Self {
        Self { content: content.to_vec(), mode: MODE, uid: 0, gid: 0 }
    }

    /// What lies there; an obstacle where that is no regular file.
    pub(super) fn look(host: &Sys, path: &str) -> Result<Option<Self>, ObserveError> {
        let Some(meta) = host.meta(path)? else { return Ok(None) };
        if meta.kind != FileKind::File {
            let what = meta.kind.as_str();
            return Err(ObserveError::Obstacle(format!("{path} is {what}: remove it")));
        }
        let content = host.read(path, LIMIT)?;
        Ok(content.map(|content| Self { content, mode: meta.mode, uid: meta.uid, gid: meta.gid }))
    }

    /// Whether anybody but root could have changed it, or somebody cannot read it.
    pub(super) fn has_right_mode(&self) -> bool {
        (self.mode, self.uid, self.gid) == (MODE, 0, 0)
    }
}

/// Whether it is there with this content, or is not there as it is to be.
pub(super) fn is(there: Option<&Owned>, content: Option<&[u8]>) -> bool {
    match (there, content) {
        (None, None) => true,
        (Some(there), Some(content)) => there.content == content && there.has_right_mode(),
        _ => false,
    }
}

/// The step that puts it there.
pub(super) fn put(path: &str, content: Vec<u8>) -> Step {
    Step::WriteFile(WriteFile { path: path.to_owned(), content, mode: MODE, uid: 0, gid: 0, validate: None })
}

/// The step back to what it was; none where it is so.
pub(super) fn back(path: &str, was: Option<&Owned>, is: Option<&Owned>) -> Option<Step> {
    if was == is {
        return None;
    }
    let path = path.to_owned();
    Some(match was {
        None => Step::Remove { path },
        Some(was) => {
            let (content, mode, uid, gid) = (was.content.clone(), was.mode, was.uid, was.gid);
            Step::WriteFile(WriteFile { path, content, mode, uid, gid, validate: None })
        }
    })
}

/// A unit that reads such a file.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) conf: Option<&'a Owned>,
    pub(super) running: bool,
    pub(super) enabled: bool,
}

/// The steps back to what file and unit were; `systemctl` makes one of a verb.
pub(super) fn back_with_reader(
    path: &str,
    was: Reader<'_>,
    is: Reader<'_>,
    systemctl: impl Fn(&str) -> Step,
) -> Vec<Step> {
    let conf = back(path, was.conf, is.conf);
    let restart = conf.is_some() && was.running && is.running;
    let verbs = [
        restart.then_some("restart"),
        (is.running && !was.running).then_some("stop"),
        (was.running && !is.running).then_some("start"),
        (is.enabled && !was.enabled).then_some("disable"),
        (was.enabled && !is.enabled).then_some("enable"),
    ];
    conf.into_iter().chain(verbs.into_iter().flatten().map(systemctl)).collect()
}

/// What identifies it.
pub(super) fn essence(there: Option<&Owned>) -> Value {
    there.map_or(Value::Null, |there| {
        let hash = postern_proto::ids::PlanHash::of(&there.content);
        json!({"sha256": hash, "mode": there.mode, "uid": there.uid, "gid": there.gid})
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Exec;

    /// Whether its file is there, whether it runs, whether it is started at boot.
    type There = (bool, bool, bool);

    #[test]
    fn a_unit_and_its_file_go_back_by_table() {
        let conf = Owned::new(b"x");
        let cases: [(There, There, &[&str]); 9] = [
            ((true, true, true), (true, true, true), &[]),
            ((false, true, true), (true, true, true), &["remove /c", "restart"]),
            ((true, true, true), (false, true, true), &["write /c", "restart"]),
            ((true, false, true), (true, true, true), &["stop"]),
            ((true, true, true), (true, false, true), &["start"]),
            ((true, true, false), (true, true, true), &["disable"]),
            ((true, true, true), (true, true, false), &["enable"]),
            // What is started or stopped reads its file anew, or not at all.
            ((false, true, true), (true, false, false), &["remove /c", "start", "enable"]),
            ((false, false, false), (true, true, true), &["remove /c", "stop", "disable"]),
        ];
        for (was, is, want) in cases {
            let reader =
                |(there, running, enabled): There| Reader { conf: there.then_some(&conf), running, enabled };
            let systemctl = |verb: &str| Step::Exec(Exec::new(&[verb], std::time::Duration::ZERO));
            let steps = back_with_reader("/c", reader(was), reader(is), systemctl);
            let steps: Vec<String> = steps.iter().map(Step::summary).collect();
            assert_eq!(steps, want, "{was:?} {is:?}");
        }
    }
}
