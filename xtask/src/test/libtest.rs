//! Understanding what a Rust test harness prints, line by line.

/// Of what a failed test says, so many lines of so many characters are told again at the end.
const REASON_LINES: usize = 8;
const REASON_WIDTH: usize = 300;

/// What a suite has said so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Tests announced by `running N tests`, over all harnesses of this output.
    pub(crate) announced: usize,
    /// Passed, those that skipped themselves not counted.
    pub(crate) passed: usize,
    /// Failed, as the result lines count them.
    pub(crate) failed: usize,
    /// Names of failed tests.
    pub(crate) failures: Vec<String>,
    /// The first of what failed tests said, each with the test's name before it.
    pub(crate) reasons: Vec<(String, Vec<String>)>,
    /// What was not run, and why.
    pub(crate) skipped: Vec<Skip>,
    /// `name: what it does not prove`, as tests print it after `STAND-IN: `.
    pub(crate) stand_ins: Vec<String>,
    /// Complete result lines seen.
    pub(crate) results: usize,
}

/// A test that did not run, or ended because it cannot run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skip {
    /// Its name, where the output tells.
    pub(crate) test: Option<String>,
    /// Why.
    pub(crate) reason: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    /// `test NAME ... ok` lines.
    #[default]
    Running,
    /// Output of tests that passed.
    Successes,
    /// Output of tests that failed.
    Failures,
}

/// Whom a line is for.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Line {
    /// Everyone: it belongs to a failed test.
    Failure,
    /// Who wants to follow: a test's result, or what it wrote past the harness.
    Progress,
    /// Nobody: output of tests that passed.
    Noise,
}

/// Reads a harness's standard output. Run the harness with `--show-output`, or skips stay unseen.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    outcome: Outcome,
    section: Section,
    /// The test whose output is being shown.
    current: Option<String>,
    in_backtrace: bool,
    ignored: Vec<Skip>,
    /// Tests that said `SKIPPED`, counted as passed by the harness.
    said_skipped: Vec<Skip>,
}

impl Reader {
    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) -> Line {
        self.markers(line);
        if let Some(rest) = line.strip_prefix("test result: ") {
            return self.result(rest);
        }
        match line {
            "successes:" if self.section == Section::Running => self.section = Section::Successes,
            "failures:" => {
                self.section = Section::Failures;
                // The second time come the names alone.
                self.current = None;
            }
            _ => {}
        }
        if self.section != Section::Running {
            let title = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" ----"));
            if let Some(title) = title {
                self.current = Some(title.strip_suffix(" stdout").unwrap_or(title).to_owned());
            }
            if self.section == Section::Failures {
                self.reason(line, title.is_some());
                return Line::Failure;
            }
            return Line::Noise;
        }
        let count = line.strip_prefix("running ").and_then(|l| l.split_once(" test"));
        if let Some(count) = count.and_then(|(count, _)| count.parse::<usize>().ok()) {
            self.outcome.announced += count;
            return Line::Noise;
        }
        if let Some((name, verdict)) = line.strip_prefix("test ").and_then(|l| l.split_once(" ... ")) {
            if verdict.starts_with("FAILED") {
                self.outcome.failures.push(name.to_owned());
            } else if let Some(why) = verdict.strip_prefix("ignored") {
                let reason = why.trim_start_matches(", ");
                let reason = if reason.is_empty() { "marked as ignored" } else { reason };
                self.ignored.push(Skip { test: Some(name.to_owned()), reason: reason.to_owned() });
            }
        }
        if line.is_empty() { Line::Noise } else { Line::Progress }
    }

    /// What a failed test said of why, without where that was in the code.
    fn reason(&mut self, line: &str, is_title: bool) {
        let Some(test) = &self.current else { return };
        let reasons = &mut self.outcome.reasons;
        if is_title {
            reasons.push((test.clone(), Vec::new()));
            self.in_backtrace = false;
            return;
        }
        let Some((_, said)) = reasons.last_mut() else { return };
        if line.to_ascii_lowercase().starts_with("stack backtrace:") {
            self.in_backtrace = true;
        } else if line.starts_with("thread '") || line.starts_with("Error:") {
            // Of another thread, or what came of that.
            self.in_backtrace = false;
        }
        if !self.in_backtrace && !line.trim().is_empty() && said.len() < REASON_LINES {
            said.push(line.chars().take(REASON_WIDTH).collect());
        }
    }

    /// Lines with a meaning for us, wherever they turn up (tests may write past the harness's capture).
    pub(crate) fn markers(&mut self, line: &str) {
        if let Some((_, stand_in)) = line.split_once("STAND-IN: ") {
            self.outcome.stand_ins.push(stand_in.trim().to_owned());
        }
        // What a failed test says is no reason not to count it as failed.
        if self.section == Section::Failures {
            return;
        }
        let Some((before, reason)) = line.split_once("SKIPPED ") else { return };
        // With one thread the harness has written `test NAME ... ` by then, on the same line.
        let named = before.strip_prefix("test ").and_then(|name| name.strip_suffix(" ... "));
        if !before.is_empty() && named.is_none() {
            return;
        }
        let test = named.map(str::to_owned).or_else(|| self.current.clone());
        let twice = test.is_some() && self.said_skipped.iter().any(|skip| skip.test == test);
        if !twice {
            self.said_skipped.push(Skip { test, reason: reason.trim().to_owned() });
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s`
    fn result(&mut self, rest: &str) -> Line {
        let number = |word: &str| -> Option<usize> {
            let (before, _) = rest.split_once(word)?;
            before.trim_end().rsplit(' ').next()?.parse().ok()
        };
        if let (Some(passed), Some(failed), Some(ignored)) =
            (number("passed;"), number("failed;"), number("ignored;"))
        {
            let skips = std::mem::take(&mut self.said_skipped);
            self.outcome.passed += passed.saturating_sub(skips.len());
            self.outcome.failed += failed;
            self.outcome.skipped.extend(skips);
            self.outcome.skipped.append(&mut self.ignored);
            self.outcome.results += 1;
            // The result line is the measure; the lines above it may have been garbled by a test's own output.
            let known = self.outcome.skipped.len();
            let counted = self.outcome.announced.saturating_sub(self.outcome.passed + self.outcome.failed);
            if known < counted && ignored > 0 {
                let unnamed = Skip { test: None, reason: "marked as ignored".to_owned() };
                self.outcome.skipped.resize(counted, unnamed);
            }
        }
        self.section = Section::Running;
        self.current = None;
        Line::Noise
    }

    /// All that was understood.
    pub(crate) fn finish(self) -> Outcome {
        self.outcome
    }
}

impl Outcome {
    /// Whether what was announced is what was counted: a harness that died, or output that was not understood, is
    /// never taken for success.
    pub(crate) fn adds_up(&self) -> bool {
        self.results > 0 && self.announced == self.passed + self.failed + self.skipped.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome {
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line);
        }
        reader.finish()
    }

    const MIXED: &str = "
running 5 tests
test a ... ok
test b ... FAILED
test c ... ignored, takes an hour
test d::e ... ok
test f ... ignored

successes:

---- d::e stdout ----
STAND-IN: traefik: nothing about its configuration
SKIPPED lab: root is missing
SKIPPED lab: root is missing


successes:
    a
    d::e

failures:

---- b stdout ----
SKIPPED is a word here
thread 'b' panicked at x.rs:1:1

failures:
    b

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.10s
";

    #[test]
    fn what_a_failed_test_says_is_kept_without_its_backtrace() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\n\n\
                    thread 'a' (7) panicked at tests/a.rs:1:2:\nit rained\nstack backtrace:\n   0: core::panicking\n             \
                    at /rustc/x.rs:1:2\n\nthread 'w' (8) panicked at x:\nwet\n\n---- b stdout ----\nError: no sun\n\nCaused by:\n    0: a cloud\n    1: grey\n\nStack backtrace:\n   0: b\n\nfailures:\n    a\n    \
                    b\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let reasons = read(text).reasons;
        assert_eq!(reasons[0].0, "a");
        let both = [
            "thread 'a' (7) panicked at tests/a.rs:1:2:",
            "it rained",
            "thread 'w' (8) panicked at x:",
            "wet",
        ];
        assert_eq!(reasons[0].1, both);
        assert_eq!(reasons[1].0, "b");
        assert_eq!(reasons[1].1, ["Error: no sun", "Caused by:", "    0: a cloud", "    1: grey"]);
    }

    #[test]
    fn passed_failed_skipped_and_stand_ins_are_told_apart() {
        let seen = read(MIXED);
        assert_eq!((seen.announced, seen.passed, seen.failed), (5, 1, 1));
        assert_eq!(seen.failures, ["b"]);
        let skipped: Vec<_> = seen.skipped.iter().map(|s| (s.test.as_deref(), s.reason.as_str())).collect();
        assert_eq!(
            skipped,
            [
                (Some("d::e"), "lab: root is missing"),
                (Some("c"), "takes an hour"),
                (Some("f"), "marked as ignored")
            ]
        );
        assert_eq!(seen.stand_ins, ["traefik: nothing about its configuration"]);
        assert!(seen.adds_up());
    }

    #[test]
    fn only_failures_are_shown_to_everyone() {
        let mut reader = Reader::default();
        let kinds: Vec<_> = MIXED.lines().map(|line| (line, reader.line(line))).collect();
        let kind = |wanted: &str| kinds.iter().find(|(line, _)| line.contains(wanted)).unwrap().1;
        assert_eq!(kind("panicked"), Line::Failure);
        assert_eq!(kind("test a ... ok"), Line::Progress);
        assert_eq!(kind("STAND-IN"), Line::Noise);
    }

    #[test]
    fn a_skip_written_past_the_capture_counts_once_for_each_line() {
        let several = "running 3 tests\nSKIPPED lab: no root\ntest a ... ok\nSKIPPED lab: no root\ntest b ... ok\n\
                       test c ... ok\n\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let seen = read(several);
        assert_eq!((seen.passed, seen.skipped.len(), seen.adds_up()), (1, 2, true));
        let one_thread = "running 1 test\ntest a ... SKIPPED lab: no root\nok\n\n\
                          test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let seen = read(one_thread);
        assert_eq!((seen.passed, seen.skipped[0].test.as_deref()), (0, Some("a")));
        assert!(seen.adds_up());
    }

    #[test]
    fn a_harness_that_died_does_not_add_up() {
        assert!(!read("running 2 tests\ntest a ... ok\n").adds_up());
        assert!(!read("").adds_up());
        let fewer =
            "running 2 tests\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert!(!read(fewer).adds_up());
    }

    #[test]
    fn several_harnesses_in_one_output_are_summed() {
        let one = "running 1 test\ntest a ... ok\n\n\
                   test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let seen = read(&format!("{one}\n   Doc-tests other\n{one}"));
        assert_eq!((seen.announced, seen.passed, seen.results), (2, 2, 2));
        assert!(seen.adds_up());
    }
}
