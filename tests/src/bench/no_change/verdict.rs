//! Whether a program that has ended found everything as declared. What failed, or changed something, is no sample.
use anyhow::{Result, ensure};

use super::RESOURCES;
use crate::rig::Ended;

/// Judges how a program ended.
pub(super) type Judge = fn(&Ended) -> Result<()>;

/// Exit code 0.
pub(super) fn succeeded(ended: &Ended) -> Result<()> {
    ensure!(ended.code == Some(0), "exit code {:?}\n{}{}", ended.code, ended.stdout, ended.stderr);
    Ok(())
}

/// What the last line counts, where it says that the run went well.
fn counts(ended: &Ended) -> Option<&str> {
    let (_, rest) = ended.stdout.lines().last()?.split_once(": ok: ")?;
    Some(rest.split(" in ").next().unwrap_or(rest))
}

/// The last line counts resources as unchanged, and nothing else; how many, is the shipped profile's affair.
pub(super) fn base(ended: &Ended) -> Result<()> {
    succeeded(ended)?;
    let number = counts(ended).and_then(|counts| counts.strip_suffix(" unchanged"));
    let some = number.and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number > 0);
    ensure!(some, "want unchanged alone in the last line of\n{}{}", ended.stdout, ended.stderr);
    Ok(())
}

/// The last line counts every resource as unchanged, and nothing else.
pub(super) fn postern(ended: &Ended) -> Result<()> {
    succeeded(ended)?;
    let want = format!("{RESOURCES} unchanged");
    ensure!(
        counts(ended) == Some(&want),
        "want {want:?} alone in the last line of\n{}{}",
        ended.stdout,
        ended.stderr
    );
    Ok(())
}

/// The script says so itself.
pub(super) fn script(ended: &Ended) -> Result<()> {
    succeeded(ended)?;
    ensure!(ended.stdout == "unchanged\n", "the script says:\n{}{}", ended.stdout, ended.stderr);
    Ok(())
}

/// The recap of its one host has tasks, all of them ok.
pub(super) fn ansible(ended: &Ended) -> Result<()> {
    succeeded(ended)?;
    let mut recap = ended.stdout.lines().skip_while(|line| !line.starts_with("PLAY RECAP")).skip(1);
    let counts =
        recap.next().and_then(|line| line.split_once(" : ")).map(|(_, counts)| counts).unwrap_or_default();
    let count = |name: &str| {
        let pair = counts.split_whitespace().filter_map(|word| word.split_once('='));
        pair.filter(|(word, _)| *word == name).find_map(|(_, count)| count.parse::<u32>().ok())
    };
    let none = ["changed", "unreachable", "failed", "skipped", "rescued", "ignored"];
    let fine = count("ok").is_some_and(|ok| ok > 0) && none.iter().all(|name| count(name) == Some(0));
    ensure!(fine, "the recap is not of tasks that are all ok:\n{}{}", ended.stdout, ended.stderr);
    Ok(())
}

/// The grand total has operations, all without a change.
pub(super) fn pyinfra(ended: &Ended) -> Result<()> {
    succeeded(ended)?;
    let lines = ended.stdout.lines().chain(ended.stderr.lines());
    let total =
        lines.filter_map(|line| line.trim().strip_prefix("Grand total")).next_back().unwrap_or_default();
    let columns: Vec<_> = total.split_whitespace().collect();
    let fine = matches!(columns[..], [all, "-", "-", same] if all == same && all != "0" && all != "-");
    ensure!(fine, "the total is not of operations without a change:\n{}{}", ended.stdout, ended.stderr);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What it says is said on standard output.
    #[track_caller]
    fn check(judge: Judge, code: i32, text: &str, fine: bool) {
        let (stdout, stderr) = (text.to_owned(), String::new());
        let ended = Ended { code: Some(code), stdout, stderr, took: Duration::ZERO };
        assert_eq!(judge(&ended).is_ok(), fine, "{ended:?}");
    }

    #[test]
    fn postern_is_unchanged_only_as_a_whole() {
        check(postern, 0, "unchanged  forty:x\nweb: ok: 40 unchanged in 0.03 s\n", true);
        check(postern, 0, "web: ok: 40 unchanged\n", true);
        check(postern, 1, "web: ok: 40 unchanged in 0.03 s\n", false);
        check(postern, 0, "web: ok: 1 changed, 39 unchanged in 0.03 s\n", false);
        check(postern, 0, "web: ok: 39 unchanged in 0.03 s\n", false);
        check(postern, 0, "web: ok: 40 unchanged, 1 skipped in 0.03 s\n", false);
        check(postern, 0, "", false);
    }

    #[test]
    fn base_is_unchanged_whatever_it_holds() {
        check(base, 0, "web: ok: 17 unchanged in 0.03 s\n", true);
        check(base, 0, "web: ok: 1 changed, 16 unchanged in 0.03 s\n", false);
        check(base, 0, "web: ok: 0 unchanged\n", false);
        check(base, 0, "web: ok: nothing done\n", false);
        check(base, 1, "web: ok: 17 unchanged\n", false);
    }

    #[test]
    fn a_script_says_one_word() {
        check(script, 0, "unchanged\n", true);
        check(script, 0, "differs: content\nunchanged\n", false);
        check(script, 1, "unchanged\n", false);
    }

    #[test]
    fn ansible_counts_what_it_did() {
        let recap =
            |counts: &str| format!("TASK [x]\nok: [h]\n\nPLAY RECAP *****\n10.0.0.1    : {counts}\n\n");
        let rest = "unreachable=0    failed=0    skipped=0    rescued=0    ignored=0   ";
        check(ansible, 0, &recap(&format!("ok=21   changed=0    {rest}")), true);
        check(ansible, 0, &recap(&format!("ok=21   changed=1    {rest}")), false);
        check(ansible, 0, &recap(&format!("ok=0    changed=0    {rest}")), false);
        check(ansible, 2, &recap(&format!("ok=21   changed=0    {rest}")), false);
        check(
            ansible,
            0,
            &recap("ok=20 changed=0 unreachable=0 failed=1 skipped=0 rescued=0 ignored=0"),
            false,
        );
        check(ansible, 0, "PLAY RECAP *****\n\n", false);
    }

    #[test]
    fn pyinfra_counts_in_columns() {
        let total = |columns: &str| {
            format!("--> Results:\n    packages   1  -  -  1\n    Grand total   {columns}   \n")
        };
        check(pyinfra, 0, &total("21      -         -       21"), true);
        check(pyinfra, 0, &total("21      1         -       20"), false);
        check(pyinfra, 0, &total("21      -         1       20"), false);
        check(pyinfra, 0, &total("-       -         -       -"), false);
        check(pyinfra, 1, &total("21      -         -       21"), false);
        check(pyinfra, 0, "", false);
    }
}
