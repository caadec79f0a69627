//! Who looks at the host from outside, and what has to hold before a change stays.

use async_trait::async_trait;
use postern_proto::guard::{Finding, Found, Predicate};

/// Why nothing can be told from outside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unseen {
    /// For people.
    pub why: String,
    /// To ask again would be in vain.
    pub for_good: bool,
}

impl Unseen {
    /// It may be otherwise in a moment.
    pub fn now(why: impl Into<String>) -> Self {
        Self { why: why.into(), for_good: false }
    }

    /// It will not be.
    pub fn for_good(why: impl Into<String>) -> Self {
        Self { why: why.into(), for_good: true }
    }
}

/// Looks at the host from outside, by a connection to the controller that is made for it.
#[async_trait]
pub trait Vantage: std::fmt::Debug + Send + Sync {
    /// What is found about these. That there is an answer at all proves the link.
    async fn look(&self, predicates: &[Predicate]) -> Result<Vec<Found>, Unseen>;
}

/// What keeps a change from being confirmed: each thing that held before and does not hold now, and each that the
/// change was to bring about and that does not hold; those that fail alike at one address in one line. Empty where it
/// may stay. Pure.
#[must_use]
pub fn lacking(predicates: &[Predicate], before: &[Found], after: &[Found]) -> Vec<String> {
    let mut lacking: Vec<(&str, &str, Vec<String>)> = Vec::new();
    let mut add = |found: &Found, at, why| {
        let name = predicates.get(found.predicate).map_or_else(String::new, ToString::to_string);
        match lacking.iter_mut().find(|it| (it.0, it.1) == (at, why)) {
            Some((_, _, names)) => names.push(name),
            None => lacking.push((at, why, vec![name])),
        }
    };
    for was in before.iter().filter(|was| was.finding == Finding::Holds) {
        if !predicates.get(was.predicate).is_some_and(Predicate::is_kept) {
            continue;
        }
        let is = after.iter().find(|is| (is.predicate, &is.at) == (was.predicate, &was.at));
        match is.map(|is| &is.finding) {
            Some(Finding::Holds) => {}
            Some(Finding::Fails { why } | Finding::Unobservable { why }) => add(was, &was.at, why),
            None => add(was, &was.at, "it was not looked at again"),
        }
    }
    // What is reached there must go on being reached; where nothing was, nothing can be asked for.
    let was_reached = |at: &str| before.iter().any(|was| was.at == at && was.finding == Finding::Holds);
    for is in after {
        if predicates.get(is.predicate).is_none_or(Predicate::is_kept) {
            continue;
        }
        match &is.finding {
            Finding::Fails { why } => add(is, &is.at, why),
            Finding::Unobservable { why } if was_reached(&is.at) => add(is, &is.at, why),
            Finding::Holds | Finding::Unobservable { .. } => {}
        }
    }
    let told = |(at, why, names): (&str, &str, Vec<String>)| {
        let at = if at.is_empty() { String::new() } else { format!(" at {at}") };
        format!("{}{at}: {why}", names.join(", "))
    };
    lacking.into_iter().map(told).collect()
}

/// One line on what is watched and what could not be, for people.
pub(crate) fn watched(predicates: &[Predicate], before: &[Found]) -> String {
    let mut watched = vec!["link".to_owned()];
    let mut left_out = Vec::new();
    for (place, predicate) in predicates.iter().enumerate() {
        let of: Vec<&Found> = before.iter().filter(|found| found.predicate == place).collect();
        let holds = of.iter().any(|found| found.finding == Finding::Holds);
        if holds || !predicate.is_kept() {
            watched.push(predicate.to_string());
            continue;
        }
        let why = of.iter().find_map(|found| match &found.finding {
            Finding::Holds => None,
            Finding::Fails { why } => Some(format!("not so before: {why}")),
            Finding::Unobservable { why } => Some(format!("unobservable: {why}")),
        });
        left_out.push(format!("{predicate} ({})", why.unwrap_or_else(|| "not looked at".to_owned())));
    }
    let mut line = watched.join(", ");
    if !left_out.is_empty() {
        line += &format!("; not watched: {}", left_out.join(", "));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(predicate: usize, at: &str, finding: Finding) -> Found {
        Found { predicate, at: at.to_owned(), finding }
    }

    #[test]
    fn what_held_must_hold_and_what_did_not_is_no_condition() {
        let inbound = |port| Predicate::Inbound { port };
        let predicates = [inbound(22), inbound(80), Predicate::NoPassword { port: 22, user: "root".into() }];
        let refused = || Finding::fails("refused");
        let before = [
            found(0, "v4", Finding::Holds),
            found(0, "v6", Finding::Holds),
            found(1, "v4", refused()),
            found(2, "v4", refused()),
        ];
        let ok = [
            found(0, "v4", Finding::Holds),
            found(0, "v6", Finding::Holds),
            found(1, "v4", refused()),
            found(2, "v4", Finding::Holds),
        ];
        assert_eq!(lacking(&predicates, &before, &ok), [] as [&str; 0]);
        let mut one_family = ok.clone();
        one_family[1].finding = refused();
        assert_eq!(lacking(&predicates, &before, &one_family), ["inbound 22 at v6: refused"]);
        let mut blind = ok.clone();
        blind[0].finding = Finding::unobservable("no answer");
        assert_eq!(lacking(&predicates, &before, &blind), ["inbound 22 at v4: no answer"]);
        let mut still_taken = ok.clone();
        still_taken[3].finding = Finding::fails("it takes one");
        assert_eq!(
            lacking(&predicates, &before, &still_taken),
            ["ssh takes no password from root on port 22 at v4: it takes one"]
        );
        assert_eq!(lacking(&predicates, &before, &[]).len(), 2);
        // Where SSH was reached it must be reached afterwards; where it never was (a tunnel, a provider's
        // firewall), that it takes no password cannot be asked for.
        let mut moved_away = ok.clone();
        moved_away[3].finding = Finding::unobservable("no answer in time");
        assert_eq!(lacking(&predicates, &before, &moved_away).len(), 1);
        let never = [found(0, "v4", refused()), found(2, "v4", Finding::unobservable("no answer in time"))];
        assert_eq!(lacking(&predicates, &never, &never), [] as [&str; 0]);
        // A port that is to be shut: one address at which it still answers is enough.
        let (shut, web) = (Predicate::Closed { port: 22 }, inbound(443));
        let at = |v4: Finding, v6: Finding, web: Finding| {
            [found(0, "v4", v4), found(0, "v6", v6), found(1, "v4", web.clone()), found(1, "v6", web)]
        };
        let was = at(Finding::fails("it answers"), Finding::fails("it answers"), Finding::Holds);
        let closing = [shut, web];
        assert_eq!(lacking(&closing, &was, &at(Finding::Holds, Finding::Holds, Finding::Holds)), [""; 0]);
        let half = at(Finding::Holds, Finding::fails("it answers"), Finding::Holds);
        assert_eq!(lacking(&closing, &was, &half), ["closed 22 at v6: it answers"]);
        let blind = at(Finding::Holds, Finding::unobservable("nothing answers"), Finding::Holds);
        assert_eq!(lacking(&closing, &was, &blind), ["closed 22 at v6: nothing answers"]);
        // What fails alike at one place is told at once.
        let gone = [found(0, "v4", refused()), found(0, "v6", Finding::Holds), found(2, "v4", refused())];
        assert_eq!(
            lacking(&predicates, &before, &gone),
            ["inbound 22, ssh takes no password from root on port 22 at v4: refused"]
        );
        // What the change is to bring about may have been so before: that counts once.
        let mut had = before.clone();
        had[3].finding = Finding::Holds;
        assert_eq!(lacking(&predicates, &had, &still_taken).len(), 1);
        assert_eq!(
            watched(&predicates, &before),
            "link, inbound 22, ssh takes no password from root on port 22; not watched: inbound 80 (not so \
             before: refused)"
        );
    }
}
