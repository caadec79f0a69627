//! The summary at the end of `cargo xtask test`.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::suite::Suite;

/// Everything that came of the suites so far.
pub(super) struct Report {
    start: Instant,
    filter: Option<String>,
    require_lab: bool,
    stages: Vec<(&'static str, Duration)>,
    suites: Vec<Suite>,
}

impl Report {
    pub(super) fn new(filter: Option<String>, require_lab: bool) -> Self {
        Report { start: Instant::now(), filter, require_lab, stages: Vec::new(), suites: Vec::new() }
    }

    /// Runs a part that is not a suite, and remembers how long it took.
    pub(super) fn stage<T>(&mut self, name: &'static str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = part();
        self.stages.push((name, start.elapsed()));
        result
    }

    pub(super) fn add(&mut self, suite: Suite) {
        // Harnesses of thin binaries, and those that a filter leaves empty.
        if suite.good() && suite.outcome.announced == 0 {
            return;
        }
        println!("{}", line(&suite));
        self.suites.push(suite);
    }

    /// Prints the summary, its last line in a form for programs, and decides.
    pub(super) fn finish(self) -> ExitCode {
        let (text, good) = self.render();
        print!("{text}");
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn render(&self) -> (String, bool) {
        let mut text = String::from("\nsummary\n");
        let mut say = |line: String| {
            // A String takes whatever is written.
            let _ = writeln!(text, "{line}");
        };
        for suite in &self.suites {
            say(format!("  {}", line(suite)));
            for failure in &suite.outcome.failures {
                say(format!("      failed: {failure}"));
            }
        }
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for suite in &self.suites {
            for skip in &suite.outcome.skipped {
                let test = skip.test.as_deref().unwrap_or("(a test)");
                reasons.entry(&skip.reason).or_default().push(format!("{}::{test}", suite.name));
            }
        }
        for (reason, tests) in reasons {
            let first: Vec<_> = tests.iter().take(3).map(String::as_str).collect();
            let more = if tests.len() > 3 { format!(" and {} more", tests.len() - 3) } else { String::new() };
            say(format!("  skipped {}, because: {reason} ({}{more})", tests.len(), first.join(", ")));
        }
        let stand_ins: BTreeSet<&str> =
            self.suites.iter().flat_map(|s| &s.outcome.stand_ins).map(String::as_str).collect();
        let stand_ins: Vec<&str> = stand_ins.into_iter().collect();
        say(format!(
            "  stand-ins used: {}",
            if stand_ins.is_empty() { "none".into() } else { stand_ins.join("; ") }
        ));
        let times: Vec<_> =
            self.stages.iter().map(|(name, time)| format!("{name} {}", seconds(*time))).collect();
        say(format!("  times: {}; all {}", times.join(", "), seconds(self.start.elapsed())));

        let sum = |pick: fn(&Suite) -> usize| self.suites.iter().map(pick).sum::<usize>();
        let passed = sum(|s| s.outcome.passed);
        // A suite that broke as a whole is a failure even where no single test could be named.
        let failed = sum(|s| s.outcome.failed + usize::from(s.error.is_some() && s.outcome.failed == 0));
        let skipped = sum(|s| s.outcome.skipped.len());
        let mut good = failed == 0;
        if let (0, Some(filter)) = (passed + failed + skipped, &self.filter) {
            say(format!("  error: no test matches `{filter}`"));
            good = false;
        }
        let of_lab = |s: &Suite| s.outcome.skipped.iter().any(|skip| skip.reason.starts_with("lab"));
        if self.require_lab && self.suites.iter().any(of_lab) {
            say("  error: the lab is required, and tests of it were skipped".to_owned());
            good = false;
        }
        // Here, as of a long output the end is what is shown.
        for (suite, test, said) in self.suites.iter().flat_map(|suite| {
            suite.outcome.reasons.iter().map(|(test, said)| (suite.name.as_str(), test, said))
        }) {
            say(format!("failed: {suite}::{test}"));
            said.iter().for_each(|line| say(format!("    {line}")));
        }
        say(format!("{passed} passed, {failed} failed, {skipped} skipped"));
        (text, good)
    }
}

fn line(suite: &Suite) -> String {
    let Suite { name, outcome, time, error } = suite;
    let word = if suite.good() { "ok    " } else { "FAILED" };
    let skipped = outcome.skipped.len();
    let mut line = format!(
        "{word} {name}: {} passed, {} failed, {skipped} skipped, {}",
        outcome.passed,
        outcome.failed,
        seconds(*time)
    );
    if let Some(error) = error {
        line += &format!(" ({error})");
    }
    line
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::super::libtest::{Outcome, Skip};
    use super::*;

    fn suite(passed: usize, failed: usize, skip: Option<&str>) -> Suite {
        let skipped = skip.map(|reason| Skip { test: Some("t".into()), reason: reason.into() });
        let outcome =
            Outcome { passed, failed, skipped: skipped.into_iter().collect(), ..Outcome::default() };
        Suite { name: "s".into(), outcome, time: Duration::from_millis(1500), error: None }
    }

    fn render(suites: Vec<Suite>, filter: Option<&str>, require_lab: bool) -> (String, bool) {
        let mut report = Report::new(filter.map(str::to_owned), require_lab);
        report.suites = suites;
        report.render()
    }

    fn last(text: &str) -> &str {
        text.lines().last().unwrap_or_default()
    }

    #[test]
    fn the_last_line_is_plain_and_counts_everything() {
        let (text, good) = render(vec![suite(3, 0, None), suite(4, 0, Some("takes an hour"))], None, false);
        assert_eq!(last(&text), "7 passed, 0 failed, 1 skipped");
        assert!(good);
        assert!(text.contains("skipped 1, because: takes an hour (s::t)"), "{text}");
        assert!(text.contains("stand-ins used: none"), "{text}");
    }

    #[test]
    fn a_failed_test_and_a_broken_suite_fail() {
        assert!(!render(vec![suite(3, 1, None)], None, false).1);
        let mut broken = suite(3, 0, None);
        broken.error = Some("killed".into());
        let (text, good) = render(vec![broken], None, false);
        assert_eq!((last(&text), good), ("3 passed, 1 failed, 0 skipped", false));
    }

    #[test]
    fn why_a_test_failed_stands_at_the_end() {
        let mut failed = suite(3, 1, None);
        failed.outcome.reasons = vec![("a::b".into(), vec!["Error: it rained".into()])];
        let (text, _) = render(vec![failed], None, false);
        assert!(
            text.ends_with("\nfailed: s::a::b\n    Error: it rained\n3 passed, 1 failed, 0 skipped\n"),
            "{text}"
        );
    }

    #[test]
    fn a_skipped_lab_fails_only_where_it_is_required() {
        let suites = || vec![suite(3, 0, Some("lab: root is missing"))];
        assert!(render(suites(), None, false).1);
        let (text, good) = render(suites(), None, true);
        assert!(!good && text.contains("the lab is required"), "{text}");
        assert_eq!(last(&text), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_filter_that_matches_nothing_fails() {
        let (text, good) = render(vec![suite(0, 0, None)], Some("tpyo"), false);
        assert!(!good && text.contains("`tpyo`"), "{text}");
    }

    #[test]
    fn stand_ins_are_named_once() {
        let mut one = suite(1, 0, None);
        one.outcome.stand_ins = vec!["b: x".into(), "a: y".into(), "b: x".into()];
        assert!(render(vec![one], None, false).0.contains("stand-ins used: a: y; b: x\n"));
    }
}
