//! Which resource of a run comes next, and which are not reached any more: pure.

use std::collections::HashMap;

use postern_proto::event::Outcome;
use postern_proto::ids::Address;
use postern_proto::plan::PlannedResource;
use postern_proto::{spec, text};

/// For each resource the places of those it waits for; `None` for all before it.
pub(super) type Needs = Vec<Option<Vec<usize>>>;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// This one is to be worked on.
    Go(usize),
    /// This one is not reached, since that one failed.
    Skip(usize, usize),
    /// The wait of this one, which was put off, is all that can go on.
    Finish(usize),
    /// Nothing can go on before these have what they wait for.
    Wait(Vec<usize>),
    /// All have their outcome.
    Over,
}

/// Of a validated plan. Who uses a late value also waits for the command that yields it.
pub(super) fn needs(resources: &[PlannedResource]) -> Needs {
    let mut places: HashMap<&Address, usize> = HashMap::new();
    let mut yielded: HashMap<String, usize> = HashMap::new();
    let mut all = Vec::with_capacity(resources.len());
    for (index, planned) in resources.iter().enumerate() {
        all.push(planned.needs.as_ref().map(|needs| {
            let mut on: Vec<usize> =
                needs.iter().filter_map(|address| places.get(address).copied()).collect();
            on.extend(text::late(&planned.spec).iter().filter_map(|name| yielded.get(name).copied()));
            on.sort_unstable();
            on.dedup();
            on
        }));
        places.insert(&planned.address, index);
        if let Some(name) = spec::kind(&planned.kind).and_then(|kind| (kind.yields)(&planned.spec)) {
            yielded.insert(name, index);
        }
    }
    all
}

/// How one resource stands, for those that need it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    Good,
    /// It failed, or was not reached since that one failed.
    Bad(usize),
}

/// In the order of the plan. `outcome` is `None` for what is not over; `ready` says that nothing but its needs
/// keeps a resource from its turn; `put_off`, that it was worked on and only has to be waited for, which comes after
/// all that does not need it. In a check nothing is brought about, so a failure holds nothing up.
pub(super) fn next(
    needs: &Needs,
    check: bool,
    outcome: impl Fn(usize) -> Option<Outcome>,
    ready: impl Fn(usize) -> bool,
    put_off: impl Fn(usize) -> bool,
) -> Turn {
    let mut standing: Vec<Standing> = Vec::with_capacity(needs.len());
    // Of all so far, together.
    let mut before = Standing::Good;
    let (mut waiting, mut first_put_off) = (Vec::new(), None);
    for (index, on) in needs.iter().enumerate() {
        let own = match on {
            None => before,
            Some(on) => on.iter().fold(Standing::Good, |all, at| both(all, standing[*at])),
        };
        let now = match (outcome(index), own) {
            (Some(Outcome::Unchanged | Outcome::Changed | Outcome::WouldChange), _) => Standing::Good,
            (Some(_), _) if check => Standing::Good,
            (Some(Outcome::Skipped), Standing::Bad(root)) => Standing::Bad(root),
            (Some(_), _) => Standing::Bad(index),
            // It has acted: whatever failed meanwhile, it is brought to its own outcome.
            (None, _) if put_off(index) => {
                first_put_off = first_put_off.or(Some(index));
                Standing::Open
            }
            (None, Standing::Bad(root)) => return Turn::Skip(index, root),
            (None, Standing::Good) if ready(index) => return Turn::Go(index),
            (None, Standing::Good) => {
                waiting.push(index);
                Standing::Open
            }
            (None, Standing::Open) => Standing::Open,
        };
        standing.push(now);
        before = both(before, now);
    }
    match first_put_off {
        Some(index) => Turn::Finish(index),
        None if waiting.is_empty() => Turn::Over,
        None => Turn::Wait(waiting),
    }
}

fn both(one: Standing, other: Standing) -> Standing {
    match (one, other) {
        // What failed first is told.
        (Standing::Bad(_), _) => one,
        (_, Standing::Bad(_)) => other,
        (Standing::Open, _) | (_, Standing::Open) => Standing::Open,
        (Standing::Good, Standing::Good) => Standing::Good,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Outcomes: `.` open, `w` open and not ready, `p` put off, `u` unchanged, `c` changed, `F` failed, `S` skipped,
    /// `I` interrupted.
    fn turn(needs: &[Option<&[usize]>], state: &str) -> Turn {
        turn_in(needs, state, false)
    }

    fn turn_in(needs: &[Option<&[usize]>], state: &str, check: bool) -> Turn {
        let needs: Needs = needs.iter().map(|on| on.map(<[usize]>::to_vec)).collect();
        let of = |index: usize| state.as_bytes()[index];
        let outcome = |index| match of(index) {
            b'u' => Some(Outcome::Unchanged),
            b'c' => Some(Outcome::Changed),
            b'F' => Some(Outcome::Failed),
            b'S' => Some(Outcome::Skipped),
            b'I' => Some(Outcome::Interrupted),
            _ => None,
        };
        next(&needs, check, outcome, |index| of(index) == b'.', |index| of(index) == b'p')
    }

    #[test]
    fn turns_by_table() {
        let line: &[Option<&[usize]>] = &[None, None, None];
        // 1 and 2 stand alone, 3 needs 1, 4 needs everything before it.
        let graph: &[Option<&[usize]>] = &[None, Some(&[]), Some(&[]), Some(&[1]), None];
        let cases = [
            (line, "...", Turn::Go(0)),
            (line, "uc.", Turn::Go(2)),
            (line, "ucu", Turn::Over),
            (line, "uF.", Turn::Skip(2, 1)),
            (line, "I..", Turn::Skip(1, 0)),
            (line, "FS.", Turn::Skip(2, 0)),
            (line, "FSS", Turn::Over),
            (line, "uw.", Turn::Wait(vec![1])),
            (graph, ".....", Turn::Go(0)),
            (graph, "F....", Turn::Go(1)),
            (graph, "Fu...", Turn::Go(2)),
            (graph, "Fuu..", Turn::Go(3)),
            (graph, "Fuuu.", Turn::Skip(4, 0)),
            (graph, "uF...", Turn::Go(2)),
            (graph, "uFc..", Turn::Skip(3, 1)),
            (graph, "uFcS.", Turn::Skip(4, 1)),
            (graph, "w....", Turn::Go(1)),
            (graph, "wccc.", Turn::Wait(vec![0])),
            (graph, "ww...", Turn::Go(2)),
            (graph, "wwc..", Turn::Wait(vec![0, 1])),
            // What is put off is waited for before the next of a line, and after what does not need it.
            (line, "p..", Turn::Finish(0)),
            (line, "cup", Turn::Finish(2)),
            (graph, "p....", Turn::Go(1)),
            (graph, "pcc..", Turn::Go(3)),
            (graph, "pccc.", Turn::Finish(0)),
            (graph, "cp...", Turn::Go(2)),
            (graph, "cpc..", Turn::Finish(1)),
            (graph, "ppc..", Turn::Finish(0)),
            (graph, "pwc..", Turn::Finish(0)),
            // A failure elsewhere keeps none from its own end.
            (graph, "pFc..", Turn::Skip(3, 1)),
            (graph, "pFcS.", Turn::Skip(4, 1)),
            (graph, "pFcSS", Turn::Finish(0)),
        ];
        for (needs, state, want) in cases {
            assert_eq!(turn(needs, state), want, "{state}");
        }
        // A check brings nothing about that anything could lack.
        assert_eq!(turn_in(line, "F..", true), Turn::Go(1));
    }

    proptest! {
        /// Whatever needs what, and whoever fails: each is worked on or skipped once, a wait comes after all else that
        /// can go on, and nothing begins before what it needs is good.
        #[test]
        fn a_wait_is_put_off_and_never_lost(
            some in proptest::collection::vec(
                (proptest::option::of(proptest::collection::vec(0..8usize, 0..3)), 0..4u8), 1..9)
        ) {
            let needs: Needs = some.iter().enumerate().map(|(index, (on, _))| {
                let on = on.as_ref().filter(|_| index > 0);
                on.map(|on| on.iter().map(|at| at % index).collect())
            }).collect();
            // How it goes: well, not well, put off and then well or not.
            let (waits, fails) = (|at: usize| some[at].1 >= 2, |at: usize| some[at].1 % 2 == 1);
            let mut state: Vec<Option<Outcome>> = vec![None; some.len()];
            let mut put_off = vec![false; some.len()];
            let ended = |at| Some(if fails(at) { Outcome::Failed } else { Outcome::Changed });
            let mut turns = 0;
            loop {
                turns += 1;
                prop_assert!(turns <= 2 * some.len() + 1, "it comes to an end");
                let before: Vec<Vec<usize>> =
                    needs.iter().enumerate().map(|(at, on)| on.clone().unwrap_or_else(|| (0..at).collect())).collect();
                let good = |at: usize| before[at].iter().all(|on| state[*on] == Some(Outcome::Changed));
                match next(&needs, false, |at| state[at], |_| true, |at| put_off[at]) {
                    Turn::Go(at) => {
                        prop_assert!(state[at].is_none() && !put_off[at] && good(at), "{at} is not next");
                        if waits(at) { put_off[at] = true } else { state[at] = ended(at) }
                    }
                    Turn::Skip(at, root) => {
                        prop_assert!(state[at].is_none() && !put_off[at], "{at} has acted");
                        prop_assert_eq!(state[root], Some(Outcome::Failed));
                        state[at] = Some(Outcome::Skipped);
                    }
                    Turn::Finish(at) => {
                        prop_assert!(put_off[at] && state[at].is_none());
                        for other in 0..some.len() {
                            prop_assert!(state[other].is_some() || put_off[other] || !good(other), "{other} can go on");
                        }
                        (put_off[at], state[at]) = (false, ended(at));
                    }
                    Turn::Wait(_) => prop_assert!(false, "nothing is waited for"),
                    Turn::Over => break,
                }
            }
            prop_assert!(state.iter().all(Option::is_some), "{state:?}");
        }
    }

    #[test]
    fn needs_of_a_plan() {
        let planned = |name: &str, spec, needs: Option<&[&str]>| PlannedResource {
            address: format!("t:command:{name}").parse().unwrap(),
            kind: "command".to_owned(),
            schema: 1,
            spec,
            needs: needs
                .map(|needs| needs.iter().map(|name| format!("t:command:{name}").parse().unwrap()).collect()),
        };
        let plan = [
            planned("a", json!({"argv": ["true"]}), None),
            planned("b", json!({"argv": ["hostname"], "late": "name"}), Some(&[])),
            planned("c", json!({"argv": ["echo", {"$text": [{"late": "name"}]}]}), Some(&["a", "a"])),
        ];
        assert_eq!(needs(&plan), [None, Some(vec![]), Some(vec![0, 1])]);
    }
}
