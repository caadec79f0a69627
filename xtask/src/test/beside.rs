//! Suites side by side: as many tests at once as there is room for, whichever suites they are of.
use std::panic::AssertUnwindSafe;
use std::process::Command;
use std::sync::mpsc::channel;

use anyhow::Result;

use super::suite::{self, Plan, Suite};

/// A suite that is to be run.
pub(super) struct Waiting {
    pub(super) name: String,
    /// Without the number of threads.
    pub(super) command: Command,
    pub(super) plan: Plan,
    /// How many tests it has.
    pub(super) tests: usize,
}

impl Waiting {
    /// How many of its tests run at once.
    fn width(&self, room: usize) -> usize {
        self.tests.clamp(1, room.max(1))
    }

    fn run(mut self, width: usize) -> Result<Suite> {
        self.command.arg(format!("--test-threads={width}"));
        suite::run(&self.name, self.command, self.plan)
    }
}

/// Runs all of them and hands each over as it ends. One that is wider than what is free lets narrower ones go first, and
/// has its turn at the latest when those are over.
pub(super) fn run(waiting: Vec<Waiting>, room: usize, each: &mut dyn FnMut(Suite)) -> Result<()> {
    let (tell, ended) = channel();
    let (mut waiting, mut free, mut running) = (waiting, room.max(1), 0_usize);
    std::thread::scope(|scope| {
        loop {
            while let Some(at) = waiting.iter().position(|suite| suite.width(room) <= free) {
                let suite = waiting.remove(at);
                let width = suite.width(room);
                free -= width;
                running += 1;
                let tell = tell.clone();
                scope.spawn(move || {
                    // A panic that nobody is told of would be waited for without end.
                    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| suite.run(width)));
                    let ended = ended.unwrap_or_else(|_| Err(anyhow::anyhow!("running a suite panicked")));
                    // Nobody is left to be told only where an error has ended all of it.
                    let _ = tell.send((width, ended));
                });
            }
            if running == 0 {
                return Ok(());
            }
            let (width, suite) = ended.recv()?;
            free += width;
            running -= 1;
            each(suite?);
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn sleeper(name: &str, tests: usize, script: &str) -> Waiting {
        let mut command = Command::new("sh");
        let report = format!(
            "{script}; echo $1; printf 'running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored;\\n'"
        );
        command.args(["-c", &report, "sh"]);
        let plan = Plan { deadline: Duration::from_secs(30), follow: false, expects_tests: true };
        Waiting { name: name.to_owned(), command, plan, tests }
    }

    #[test]
    fn narrow_ones_run_side_by_side_and_wide_ones_alone() {
        let dir = std::env::temp_dir().join(format!("postern-beside-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let met = dir.join("met");
        // Each of the two waits until the other is there; the wide one would find neither.
        let meet = |mine: &str, other: &str| {
            let (mine, other) = (dir.join(mine), dir.join(other));
            format!(
                "touch {}; for i in $(seq 100); do [ -e {} ] && touch {} && break; sleep 0.1; done",
                mine.display(),
                other.display(),
                met.display()
            )
        };
        let wide = format!("[ -e {} ] || exit 1", met.display());
        let all = vec![
            sleeper("one", 2, &meet("a", "b")),
            sleeper("wide", 9, &wide),
            sleeper("two", 1, &meet("b", "a")),
        ];
        let mut ends = Vec::new();
        let start = Instant::now();
        run(all, 3, &mut |suite| ends.push((suite.name.clone(), suite.good()))).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(start.elapsed() < Duration::from_secs(8), "they waited for each other");
        assert_eq!(ends.last(), Some(&("wide".to_owned(), true)), "{ends:?}");
        assert_eq!(ends.iter().filter(|(_, good)| *good).count(), 3, "{ends:?}");
    }

    #[test]
    fn a_suite_is_as_wide_as_it_has_tests() {
        assert_eq!([0, 1, 3, 9].map(|tests| sleeper("x", tests, "true").width(4)), [1, 1, 3, 4]);
        assert_eq!(sleeper("x", 5, "true").width(0), 1);
    }
}
