//! Developer commands: `cargo xtask test | demo | lab | dist | bench | ci`.
#![allow(clippy::print_stdout, clippy::print_stderr)] // Talking to a person is what this program does.

mod agent;
mod cargo;
mod dist;
mod elf;
mod lab;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use lexopt::prelude::*;

const HELP: &str = "\
Developer commands of Postern

Usage: cargo xtask <COMMAND>

  test [FILTER]        All tests, the lab's included
      --require-lab      A test that the lab cannot run fails (also with CI=true)
      --no-lab           Leave out the tests that need throw-away hosts
                         (POSTERN_LAB_VMS=1: those with virtual machines, too)
      --locked           Cargo.lock must be up to date (also with CI=true)
  demo                 Make a throw-away VPS and run the real `postern up` against it
      --release NAME     Debian release of the VPS: bookworm (default) or trixie
      --shipped          A VPS as providers ship it: cloud-init, apt busy at first boot
      --keep             Keep the VPS and its controller until Ctrl-C
  lab ARGS…            Throw-away VPSs by hand; `cargo xtask lab --help` says more
  dist                 One self-contained `postern` in target/dist, the agent inside
      --arch ARCH        Embed the agent for x86_64 or aarch64 (may be repeated; default: this machine's)
  agent                Only the static agent, checked
  bench NAME           Measure: bootstrap, dispatch, no-change, provision, live-log, idle; `bench --help` says
                       more
  ci                   What CI runs (.ci/run)

Exit codes: 0 ok, 1 a test or a step failed, 2 usage, or this machine cannot do it.
";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
enum Command {
    Help,
    Test(test::Options),
    Demo(Vec<OsString>),
    Lab(Vec<OsString>),
    Bench(Vec<OsString>),
    Dist { archs: Vec<agent::Arch> },
    Agent { archs: Vec<agent::Arch> },
    Ci,
}

fn main() -> ExitCode {
    let command = match parse(lexopt::Parser::from_env()) {
        Ok(command) => command,
        Err(error) => {
            eprintln!("xtask: {error}; `cargo xtask help` shows the commands");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            let cannot = error.downcast_ref::<lab::CannotRunHere>().is_some();
            ExitCode::from(if cannot { 2 } else { 1 })
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Help => print!("{HELP}"),
        Command::Test(options) => return test::run(&options),
        Command::Demo(args) => return lab::run_tool("demo", &args),
        Command::Lab(args) => return lab::run_tool("lab", &args),
        Command::Bench(args) => return lab::run_tool("bench", &args),
        Command::Dist { archs } => dist::run(&archs)?,
        Command::Agent { archs } => {
            for arch in archs {
                println!("{}", agent::build(arch)?);
            }
        }
        Command::Ci => return Err(cargo::exec(std::process::Command::new(cargo::root().join(".ci/run")))),
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(mut args: lexopt::Parser) -> Result<Command, lexopt::Error> {
    let Some(first) = args.next()? else { return Ok(Command::Help) };
    let name = match first {
        Long("help") | Short('h') => return Ok(Command::Help),
        Value(name) => name.string()?,
        other => return Err(other.unexpected()),
    };
    let rest = |mut args: lexopt::Parser| args.raw_args().map(Iterator::collect);
    match name.as_str() {
        "help" => Ok(Command::Help),
        "test" => {
            let mut options = test::Options::default();
            while let Some(arg) = args.next()? {
                match arg {
                    Long("require-lab") => options.require_lab = true,
                    Long("no-lab") => options.no_lab = true,
                    Long("locked") => options.locked = true,
                    Long("help") | Short('h') => return Ok(Command::Help),
                    Value(filter) if options.filter.is_none() => options.filter = Some(filter.string()?),
                    other => return Err(other.unexpected()),
                }
            }
            if options.require_lab && options.no_lab {
                return Err("--require-lab and --no-lab contradict each other".into());
            }
            Ok(Command::Test(options))
        }
        "demo" => Ok(Command::Demo(rest(args)?)),
        "lab" => Ok(Command::Lab(rest(args)?)),
        "bench" => Ok(Command::Bench(rest(args)?)),
        "dist" | "agent" => {
            let mut archs = Vec::new();
            while let Some(arg) = args.next()? {
                match arg {
                    Long("arch") => archs.push(args.value()?.parse()?),
                    Long("help") | Short('h') => return Ok(Command::Help),
                    other => return Err(other.unexpected()),
                }
            }
            if archs.is_empty() {
                archs.push(agent::Arch::of_this_machine()?);
            }
            archs.dedup();
            Ok(if name == "dist" { Command::Dist { archs } } else { Command::Agent { archs } })
        }
        "ci" => match args.next()? {
            None => Ok(Command::Ci),
            Some(other) => Err(other.unexpected()),
        },
        other => Err(format!("there is no command `{other}`").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<Command, String> {
        let words = std::iter::once("xtask").chain(line.split_whitespace());
        parse(lexopt::Parser::from_iter(words)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_understood() {
        assert_eq!(check(""), Ok(Command::Help));
        let options =
            test::Options { require_lab: true, filter: Some("trap_05".into()), ..Default::default() };
        assert_eq!(check("test trap_05 --require-lab"), Ok(Command::Test(options)));
        assert_eq!(
            check("demo --release trixie -- x"),
            Ok(Command::Demo(["--release", "trixie", "--", "x"].map(OsString::from).into()))
        );
        let archs = vec![agent::Arch::X86_64, agent::Arch::Aarch64];
        assert_eq!(check("dist --arch x86_64 --arch=aarch64"), Ok(Command::Dist { archs }));
    }

    #[test]
    fn what_is_wrong_on_the_command_line_is_named() {
        for (line, word) in [
            ("tset", "`tset`"),
            ("test a b", "b"),
            ("test --require-lab --no-lab", "contradict"),
            ("dist --arch sparc", "sparc"),
            ("ci now", "now"),
        ] {
            let error = check(line).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
