//! Suites side by side: as many tests at once as there is room for, whichever suites they are of.
use std::cmp::Reverse;
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
    /// How many of its tests run at once: never more than half of what there is room for, so that another suite fills the
    /// room that the last tests of this one leave.
    fn width(&self, room: usize) -> usize {
        self.tests.clamp(1, (room / 2).max(1))
    }

    fn run(mut self, width: usize) -> Result<Suite> {
        self.command.arg(format!("--test-threads={width}"));
        suite::run(&self.name, self.command, self.plan)
    }
}

/// Runs all of them and hands each over as it ends: those of `long`, whose single tests take minutes, before the others,
/// and of the others those with most tests, so that none of these is waited for alone in the end.
pub(super) fn run(
    mut waiting: Vec<Waiting>,
    room: usize,
    long: &[&str],
    each: &mut dyn FnMut(Suite),
) -> Result<()> {
    sort(&mut waiting, long);
    let (tell, ended) = channel();
    let (mut free, mut running) = (room.max(1), 0_usize);
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

fn sort(waiting: &mut [Waiting], long: &[&str]) {
    waiting.sort_by_key(|suite| {
        let place = long.iter().position(|name| suite.name.ends_with(name));
        (place.unwrap_or(long.len()), Reverse(suite.tests))
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn two_suites_run_side_by_side_however_many_tests_they_have() {
        let dir = std::env::temp_dir().join(format!("postern-beside-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // Each waits until the other is there; neither would end well alone.
        let meet = |mine: &str, other: &str| {
            let (mine, other) = (dir.join(mine), dir.join(other));
            format!(
                "touch {}; for i in $(seq 100); do [ -e {other} ] && break; sleep 0.1; done; [ -e {other} ] || exit 1",
                mine.display(),
                other = other.display()
            )
        };
        let all = vec![
            sleeper("few", 1, "true"),
            sleeper("one", 9, &meet("a", "b")),
            sleeper("two", 7, &meet("b", "a")),
        ];
        let mut ends = Vec::new();
        run(all, 4, &[], &mut |suite| ends.push((suite.name.clone(), suite.good()))).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        ends.sort();
        assert_eq!(ends, ["few", "one", "two"].map(|name| (name.to_owned(), true)));
    }

    #[test]
    fn long_ones_begin_first_and_then_those_with_most_tests() {
        let mut all = [("a/few", 1), ("a/long", 2), ("a/many", 9), ("a/longer", 1), ("a/other", 1)]
            .map(|(name, tests)| sleeper(name, tests, "true"));
        sort(&mut all, &["/longer", "/long"]);
        assert_eq!(
            all.map(|suite| suite.name),
            ["a/longer", "a/long", "a/many", "a/few", "a/other"].map(str::to_owned)
        );
    }

    #[test]
    fn a_suite_is_as_wide_as_it_has_tests_and_no_wider_than_half_of_the_room() {
        assert_eq!([0, 1, 3, 9].map(|tests| sleeper("x", tests, "true").width(6)), [1, 1, 3, 3]);
        assert_eq!([0, 1, 2].map(|room| sleeper("x", 5, "true").width(room)), [1, 1, 1]);
    }
}
