//! Every command as it looks: stdout, stderr and exit code, kept in `golden/`. `POSTERN_BLESS=1` writes what is seen
//! there, for `git diff` to judge.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../cli_support/mod.rs"]
mod cli_support;
mod documents;
mod drift;
mod live;
mod restore;
mod reviewed;
mod scenarios;
mod site_backup;
mod ssh_port;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cli_support::{Ended, Shell};
use scenarios::{Scenario, scenarios};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli_snapshots/golden").join(format!("{name}.txt"))
}

/// What differs from one run of the test to the next, by name.
fn steady(text: &str, shell: &Shell) -> String {
    let text = text
        .replace(shell.dir.path().to_str().unwrap(), "DIR")
        .replace(&format!("postern {}", env!("CARGO_PKG_VERSION")), "postern VERSION");
    let text = without_times(&text);
    let mut steady = String::new();
    // `20000 days ago`: the number grows.
    for (index, part) in text.split(" ago").enumerate() {
        if index > 0 {
            let unit = steady.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len();
            let number = steady[..unit].trim_end().trim_end_matches(|c: char| c.is_ascii_digit()).len();
            steady.truncate(number);
            steady.push_str("SOME TIME ago");
        }
        steady.push_str(part);
    }
    steady
}

/// The names of recovery kits have the time at which they were made.
fn without_times(text: &str) -> String {
    let is_time = |part: &str| {
        part.len() == 16
            && part.char_indices().all(|(at, c)| match at {
                8 => c == 'T',
                15 => c == 'Z',
                _ => c.is_ascii_digit(),
            })
    };
    let mut out = text.to_owned();
    for (at, _) in text.char_indices().filter(|(_, c)| *c == '-') {
        if let Some(part) = text.get(at + 1..at + 17).filter(|part| is_time(part)) {
            out = out.replace(part, "TIME");
        }
    }
    out
}

fn transcript(args: &[&str], ended: &Ended, shell: &Shell) -> String {
    let quoted = |arg: &&str| match arg.is_empty() || arg.contains([' ', '*', '\n']) {
        true => format!("'{arg}'"),
        false => (*arg).to_owned(),
    };
    let command: Vec<_> = args.iter().map(quoted).collect();
    let mut text = format!("$ postern {}\n", command.join(" "));
    for (name, stream) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
        for line in stream.lines() {
            text.push_str(&format!("{name}: {line}\n"));
        }
        if !stream.is_empty() && !stream.ends_with('\n') {
            text.push_str(&format!("{name} ends without a newline\n"));
        }
    }
    text.push_str(&format!("exit code: {}\n\n", ended.code));
    steady(&text, shell)
}

fn compare(name: &str, seen: &str) {
    let path = golden(name);
    if std::env::var_os("POSTERN_BLESS").is_some() {
        std::fs::write(path, seen).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = kept.lines().zip(seen.lines()).position(|(kept, seen)| kept != seen);
    assert!(
        kept == seen,
        "{} is not what is seen (POSTERN_BLESS=1 writes it), first at line {}:\n{seen}",
        path.display(),
        differs.unwrap_or_else(|| kept.lines().count().min(seen.lines().count())) + 1
    );
}

async fn play(scenario: &Scenario) -> String {
    let shell = scenario.shell();
    let mut text = String::new();
    for args in scenario.commands {
        let ended = shell.run(args).await;
        text += &transcript(args, &ended, &shell);
    }
    let asked = scenario.fake.as_ref().map(|fake| fake.asked()).unwrap_or_default();
    for line in asked {
        text += &format!("asked the daemon: {line}\n");
    }
    text
}

#[tokio::test]
async fn every_command_looks_as_it_was_agreed() {
    for scenario in scenarios() {
        compare(scenario.name, &play(&scenario).await);
    }
}

/// Commands below this one, by its own help; itself where there are none.
async fn leaves(shell: &Shell, command: &[String], help: &mut String) -> Vec<Vec<String>> {
    let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
    args.push("--help");
    let ended = shell.run(&args).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{command:?}");
    *help += &transcript(&args, &ended, shell);
    let below = ended.stdout.split("\nCommands:\n").nth(1).unwrap_or_default();
    let names = below.lines().take_while(|line| !line.is_empty());
    let names: Vec<_> = names
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return vec![command.to_vec()];
    }
    let mut found = Vec::new();
    for name in names {
        let command = [command, &[name]].concat();
        found.extend(Box::pin(leaves(shell, &command, help)).await);
    }
    found
}

#[tokio::test]
async fn every_command_has_help_and_a_scenario() {
    let shell = Shell::new();
    let mut help = String::new();
    let leaves = leaves(&shell, &[], &mut help).await;
    assert!(leaves.len() > 25, "{leaves:?}");
    compare("help", &help);
    let scenarios = scenarios();
    let played: BTreeSet<Vec<&str>> = scenarios
        .iter()
        .flat_map(|scenario| scenario.commands)
        .flat_map(|args| {
            // Global options stand before the command in no scenario but those of output.
            let args: Vec<_> = args.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
            [args.iter().take(1).copied().collect(), args.iter().take(2).copied().collect()]
        })
        .collect();
    // Prints the same whatever surrounds it, and much: its own test reads it.
    let own = ["profile", "schema"];
    let without: Vec<_> = leaves
        .iter()
        .filter(|leaf| leaf.iter().ne(own))
        .filter(|leaf| !played.contains(&leaf.iter().map(String::as_str).collect::<Vec<_>>()))
        .collect();
    assert!(without.is_empty(), "no scenario plays {without:?}");
}
