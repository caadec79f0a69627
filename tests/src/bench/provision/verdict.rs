//! Whether a program that has ended counts as a sample, and what the medians say about the goals.
use anyhow::{Result, ensure};

use super::Way;
use crate::bench::stats::Samples;
use crate::rig::Ended;

/// Exit code 0; whether the host is as it should be is looked at on the host.
pub(super) fn went_well(ended: &Ended) -> Result<()> {
    ensure!(ended.code == Some(0), "exit code {:?}\n{}{}", ended.code, ended.stdout, ended.stderr);
    Ok(())
}

/// A quotient of two medians and what it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    of: Way,
    to: Way,
    bound: Bound,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

pub(super) const GOALS: [Goal; 4] = [
    Goal { of: Way::Run, to: Way::Script, bound: Bound::AtMost(1.05) },
    Goal { of: Way::Up, to: Way::Script, bound: Bound::AtMost(1.10) },
    Goal { of: Way::Ansible, to: Way::Run, bound: Bound::AtLeast(1.5) },
    // Ansible needs no bootstrap, so the whole of ours is the harder comparison.
    Goal { of: Way::Ansible, to: Way::Up, bound: Bound::AtLeast(1.5) },
];

impl Goal {
    /// One line for people; `None` where one of the two was not sampled.
    pub(super) fn judge(&self, samples: &Samples) -> Option<String> {
        let (of, to) = (self.of as usize, self.to as usize);
        if samples.series(of).is_empty() || samples.series(to).is_empty() {
            return None;
        }
        let ratio = samples.ratio(of, to);
        let (goal, reached) = match self.bound {
            Bound::AtMost(most) => (format!("{most:.2} or less"), ratio <= most),
            Bound::AtLeast(least) => (format!("{least:.2} or more"), ratio >= least),
        };
        let reached = if reached { "reached" } else { "not reached" };
        Some(format!("{} / {}: {ratio:.3}; goal {goal}: {reached}", self.of.name(), self.to.name()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn samples(of_each: [&[u64]; 4]) -> Samples {
        let mut samples = Samples::new(&Way::ALL.map(Way::name));
        for (way, all) in Way::ALL.into_iter().zip(of_each) {
            all.iter().for_each(|ms| samples.add(way as usize, Duration::from_millis(*ms)));
        }
        samples
    }

    #[track_caller]
    fn check(of_each: [&[u64]; 4], ends: &[&str]) {
        let samples = samples(of_each);
        let lines: Vec<_> = GOALS.iter().filter_map(|goal| goal.judge(&samples)).collect();
        assert_eq!(lines.len(), ends.len(), "{lines:?}");
        for (line, end) in lines.iter().zip(ends) {
            assert!(line.ends_with(end), "{line} does not end with {end}");
        }
    }

    #[test]
    fn goals_are_judged_by_medians() {
        let reached = [
            "script over ssh: 1.050; goal 1.05 or less: reached",
            "script over ssh: 1.100; goal 1.10 or less: reached",
            "apply swarm: 1.619; goal 1.50 or more: reached",
            "--profile swarm: 1.545; goal 1.50 or more: reached",
        ];
        check([&[1, 1050, 9000], &[1100], &[1000], &[1700]], &reached);
        let missed = [
            "1.051; goal 1.05 or less: not reached",
            "1.101; goal 1.10 or less: not reached",
            "1.427; goal 1.50 or more: not reached",
            "1.362; goal 1.50 or more: not reached",
        ];
        check([&[1051], &[1101], &[1000], &[1500]], &missed);
    }

    #[test]
    fn what_was_not_sampled_is_not_judged() {
        check([&[1000], &[], &[1000], &[]], &["1.000; goal 1.05 or less: reached"]);
        check([&[], &[], &[], &[]], &[]);
    }

    #[test]
    fn only_what_ended_well_is_a_sample() {
        let ended = |code| Ended { code, stdout: "why".into(), stderr: String::new(), took: Duration::ZERO };
        assert!(went_well(&ended(Some(0))).is_ok());
        assert!(went_well(&ended(Some(2))).unwrap_err().to_string().contains("why"));
        assert!(went_well(&ended(None)).is_err());
    }
}
