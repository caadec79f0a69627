//! What systemd says of units: looks that ask in the same moment share one process.
//!
//! Nothing is remembered. An answer comes from a process that was started after the question, so whatever was
//! changed before that is in it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::{Output, Sys, SysError};

/// How long the first question waits for others. One process takes about three times as long.
const GATHER: Duration = Duration::from_millis(3);
/// The most units that one process is asked for.
const TOGETHER: usize = 64;

/// One look's question.
#[derive(Debug)]
struct Question {
    unit: String,
    answer: oneshot::Sender<String>,
}

/// Questions for the same properties that wait for their process.
#[derive(Debug, Default)]
pub(super) struct Questions(Mutex<Vec<(String, Vec<Question>)>>);

impl Questions {
    /// Adds one. True when it is the first, and whoever asks it has to see to the process.
    fn add(&self, properties: &str, question: Question) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|(of, list)| of == properties && list.len() < TOGETHER) {
            Some((_, list)) => {
                list.push(question);
                false
            }
            None => {
                all.push((properties.to_owned(), vec![question]));
                true
            }
        }
    }

    /// Takes those that wait longest for these properties.
    fn take(&self, properties: &str) -> Vec<Question> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter().position(|(of, _)| of == properties) {
            Some(at) => all.remove(at).1,
            None => Vec::new(),
        }
    }
}

impl Sys {
    /// What `systemctl show` says of these properties of a unit. `properties` is its argument.
    pub async fn show_unit(&self, unit: &str, properties: &str, limit: Duration) -> Result<Output, SysError> {
        let (answer, answered) = oneshot::channel();
        if self.questions.add(properties, Question { unit: unit.to_owned(), answer }) {
            let (host, properties) = (self.clone(), properties.to_owned());
            // On its own: the look that asked first may be dropped, and the others still want to know.
            tokio::spawn(async move {
                tokio::time::sleep(GATHER).await;
                host.answer(&properties, limit).await;
            });
        }
        match answered.await {
            Ok(text) => Ok(Output { code: Some(0), stdout: text.into_bytes(), stderr: Vec::new() }),
            // There was nobody to share with, or one of them spoils it for all.
            Err(_) => self.show(&[unit], properties, limit).await,
        }
    }

    /// Asks one process for all that have gathered, and tells each its own. Who is told nothing asks alone.
    async fn answer(&self, properties: &str, limit: Duration) {
        let questions = self.questions.take(properties);
        if questions.len() < 2 {
            return;
        }
        let units: BTreeSet<&str> = questions.iter().map(|question| question.unit.as_str()).collect();
        let units: Vec<&str> = units.into_iter().collect();
        let said = match self.show(&units, &format!("{properties},Names"), limit).await {
            Ok(said) if said.ok() => said,
            _ => return,
        };
        let text = String::from_utf8_lossy(&said.stdout);
        for question in questions {
            if let Some(part) = part_of(&text, &question.unit) {
                // Whoever asked may be gone.
                let _ = question.answer.send(part.to_owned());
            }
        }
    }

    async fn show(&self, units: &[&str], properties: &str, limit: Duration) -> Result<Output, SysError> {
        let mut argv = vec!["systemctl", "show", "--no-pager", properties, "--"];
        argv.extend(units);
        self.run(&argv, &[], limit).await
    }
}

/// The paragraph about a unit, which may have been asked for by another of its names.
fn part_of<'a>(text: &'a str, unit: &str) -> Option<&'a str> {
    let names = |part: &&str| {
        let names = part.lines().find_map(|line| line.strip_prefix("Names="));
        names.is_some_and(|names| names.split(' ').any(|name| name == unit))
    };
    text.split("\n\n").find(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_is_found_by_any_name_of_its_unit() {
        let text = "LoadState=loaded\nNames=ssh.service sshd.service\nSourcePath=\n\n\
                    LoadState=not-found\nNames=x.service\n";
        let cases = [
            ("sshd.service", Some("loaded")),
            ("ssh.service", Some("loaded")),
            ("x.service", Some("not-found")),
            ("h.service", None),
        ];
        for (unit, want) in cases {
            let load = part_of(text, unit).and_then(|part| part.lines().next()?.strip_prefix("LoadState="));
            assert_eq!(load, want, "{unit}");
        }
        assert_eq!(part_of("Names=\n\n\n", "x"), None);
    }

    /// A systemctl that notes each start of it, and what the file `state` says at that time.
    fn host(script: &str) -> (tempfile::TempDir, Sys) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("systemctl");
        std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}", dir.path().display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("state"), "one").unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        (dir, Sys::rooted("/".into(), path))
    }

    const LIMIT: Duration = Duration::from_secs(20);
    const ANSWER: &str = "echo x >>starts; p=$3; shift 4\n\
                          for u; do echo \"A=$(cat state)\"; echo \"Of=$u $p\"; echo \"Names=$u\"; echo; done\n";

    fn starts(dir: &tempfile::TempDir) -> usize {
        std::fs::read_to_string(dir.path().join("starts")).map_or(0, |text| text.lines().count())
    }

    #[tokio::test]
    async fn questions_of_one_moment_share_a_process_and_later_ones_see_what_changed() {
        let (dir, sys) = host(ANSWER);
        let ask = |unit: &'static str, of: &'static str| {
            let sys = sys.clone();
            async move {
                let said = sys.show_unit(unit, of, LIMIT).await.unwrap();
                String::from_utf8(said.stdout).unwrap().replace('\n', " ")
            }
        };
        let all = tokio::join!(ask("a", "-p=P"), ask("b", "-p=P"), ask("a", "-p=P"), ask("c", "-p=Q"));
        assert_eq!(starts(&dir), 2, "one for each list of properties");
        assert!(all.0.starts_with("A=one Of=a -p=P,Names "), "{all:?}");
        assert!(all.1.starts_with("A=one Of=b -p=P,Names ") && all.2 == all.0, "{all:?}");
        assert!(all.3.starts_with("A=one Of=c -p=Q "), "{all:?}");
        std::fs::write(dir.path().join("state"), "two").unwrap();
        let later = tokio::join!(ask("a", "-p=P"), ask("b", "-p=P"));
        assert!(later.0.starts_with("A=two") && later.1.starts_with("A=two"), "{later:?}");
        assert_eq!(starts(&dir), 3);
    }

    /// One whose unit systemd does not take costs the others a process each, and no answer.
    #[tokio::test]
    async fn one_that_spoils_it_for_all_is_asked_alone() {
        let (dir, sys) = host(&format!("for u; do test $u = bad && echo no >&2 && exit 1; done\n{ANSWER}"));
        let (good, bad) =
            tokio::join!(sys.show_unit("a", "-p=P", LIMIT), sys.show_unit("bad", "-p=P", LIMIT));
        assert!(good.unwrap().ok() && !bad.unwrap().ok());
        assert_eq!(starts(&dir), 1);
    }

    /// Polls it once. True when it goes on.
    async fn begun<F: Future + Unpin>(future: &mut F) -> bool {
        use std::task::Poll;
        std::future::poll_fn(|context| {
            Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn a_question_that_is_dropped_leaves_the_others_their_answer() {
        let (dir, sys) = host(ANSWER);
        let first = sys.clone();
        let mut first = Box::pin(async move { first.show_unit("a", "-p=P", LIMIT).await });
        assert!(begun(&mut first).await);
        let mut second = Box::pin(sys.show_unit("b", "-p=P", LIMIT));
        assert!(begun(&mut second).await);
        drop(first);
        let said = tokio::time::timeout(LIMIT, second).await.expect("an answer in time").unwrap();
        assert!(String::from_utf8_lossy(&said.stdout).contains("Of=b"));
        assert_eq!(starts(&dir), 1);
    }
}
