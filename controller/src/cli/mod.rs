//! The command line: arguments and streams in, text or JSON and an exit code out.

mod addresses;
mod admin_key;
mod apply;
mod args;
mod asked;
mod attend;
mod backup;
mod bar;
mod clean;
mod compose;
mod drift;
mod env;
mod error;
mod exec;
mod follow;
mod fresh;
mod hosts;
mod json;
mod logging;
mod out;
mod profiles;
mod records;
mod redo;
mod reviewed;
mod runs;
mod secrets;
mod selector;
mod serve;
mod site;
mod ssh_port;
mod terminal;
mod unban;
mod up;
mod view;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory as _, Parser as _};

pub use env::Env;
pub use error::Exit;
pub use out::{Io, Stream};

use crate::client::{Client, Starter};
use args::{Cli, Command, Format, Host, Profile, Run, Secret};
use error::CliError;
use out::{Manner, Out, Volume};

/// This process as a command: its arguments, environment and streams.
pub fn main() -> Exit {
    let mut io = Io::of_process();
    let env = match Env::of_process() {
        Ok(env) => env,
        Err(error) => return early(&mut io, &format!("error[internal]: finding this program: {error}")),
    };
    let args: Vec<_> = std::env::args_os().collect();
    // A daemon serves many at once; a command waits for one thing at a time and should start fast.
    let serves = args.iter().skip(1).any(|arg| arg == "serve");
    let mut builder = match serves {
        true => tokio::runtime::Builder::new_multi_thread(),
        false => tokio::runtime::Builder::new_current_thread(),
    };
    match builder.enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(run(args, env, io));
            // A thread that waits for a terminal must not keep the process.
            runtime.shutdown_background();
            exit
        }
        Err(error) => early(&mut io, &format!("error[internal]: starting the runtime: {error}")),
    }
}

fn early(io: &mut Io, text: &str) -> Exit {
    let _ = writeln!(io.stderr, "{text}");
    Exit::Usage
}

/// Runs one command. `args` begin with the program's name.
pub async fn run(args: impl IntoIterator<Item = OsString>, env: Env, mut io: Io) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &env, &mut io),
    };
    let Cli { global, command } = cli;
    let volume = match (global.quiet, global.verbose) {
        (true, _) => Volume::Quiet,
        (false, 0) => Volume::Normal,
        (false, _) => Volume::Verbose,
    };
    let no_color = env.get("NO_COLOR").is_some() || env.get("TERM") == Some("dumb");
    // A terminal that can do nothing cannot take a line back.
    let progress = !global.no_progress && env.get("TERM") != Some("dumb");
    let manner = Manner { json: global.output == Format::Json, volume, no_color, progress };
    let out = Out::new(io, manner);
    if global.verbose > 1 && !matches!(command, Command::Serve(_)) {
        logging::to_stderr(global.verbose);
    }
    let context = Context { state_dir: env.state_dir(global.state_dir.as_deref()), env, out };
    let result = dispatch(&context, command, global.verbose).await;
    context.out.end_activity();
    match result {
        Ok(exit) => exit,
        Err(error) => {
            context.fail(&error);
            error.exit
        }
    }
}

/// What clap has to say: help and version are data, everything else is a mistake.
fn usage(error: &clap::Error, env: &Env, io: &mut Io) -> Exit {
    use clap::error::ErrorKind;
    let is_asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let (stream, is_terminal) = match is_asked {
        true => (&mut io.stdout, io.stdout_is_terminal),
        false => (&mut io.stderr, io.stderr_is_terminal),
    };
    let styled = error.render();
    let text = if is_terminal && env.get("NO_COLOR").is_none() {
        styled.ansi().to_string()
    } else {
        styled.to_string()
    };
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
    if is_asked { Exit::Ok } else { Exit::Usage }
}

async fn dispatch(context: &Context, command: Command, verbose: u8) -> Result<Exit, CliError> {
    match command {
        Command::Up(args) => Box::pin(up::up(context, *args)).await,
        Command::Apply(args) => Box::pin(apply::apply(context, args)).await,
        Command::Drift(args) => Box::pin(drift::drift(context, args)).await,
        Command::Exec(args) => Box::pin(exec::exec(context, args)).await,
        Command::Unban(args) => Box::pin(unban::unban(context, args)).await,
        Command::SshPort(args) => Box::pin(ssh_port::ssh_port(context, args)).await,
        Command::Hosts(args) => hosts::list(context, args).await,
        Command::Host(Host::Show { host }) => hosts::show(context, &host).await,
        Command::Host(Host::Forget(args)) => Box::pin(hosts::forget(context, args)).await,
        Command::Host(Host::Rename { host, name }) => records::rename(context, &host, name).await,
        Command::Host(Host::Label(changes)) => records::label(context, changes).await,
        Command::Host(Host::Set(changes)) => records::set(context, changes).await,
        Command::Host(Host::Unassign { host, profile }) => records::unassign(context, &host, profile).await,
        Command::Runs(args) => runs::list(context, args).await,
        Command::Run(Run::Show { run }) => runs::show(context, &run).await,
        Command::Run(Run::Logs { run, follow: _, no_follow }) => runs::logs(context, &run, no_follow).await,
        Command::Run(Run::Cancel { run }) => runs::cancel(context, &run).await,
        Command::Run(Run::Resume { run }) => Box::pin(redo::resume(context, &run)).await,
        Command::Run(Run::Undo { run, check }) => Box::pin(redo::undo(context, &run, check)).await,
        Command::Secret(Secret::Set(args)) => secrets::set(context, args).await,
        Command::Secret(Secret::List) => secrets::list(context).await,
        Command::Secret(Secret::Remove { name }) => secrets::remove(context, name).await,
        Command::Site(command) => Box::pin(site::site(context, command)).await,
        Command::Backup(args) => backup::backup(context, &args).await,
        Command::Restore(args) => backup::restore(context, &args),
        Command::Profile(Profile::List) => profiles::list(context),
        Command::Profile(Profile::Show { profile }) => profiles::show(context, &profile),
        Command::Profile(Profile::Copy { profile, file, force }) => {
            profiles::copy(context, &profile, file.as_deref(), force)
        }
        Command::Profile(Profile::Schema) => profiles::schema(context),
        Command::Profile(Profile::Check { profiles, values }) => profiles::check(context, &profiles, &values),
        Command::Serve(args) => Box::pin(serve::serve(context, args, verbose)).await,
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "postern", &mut bytes);
            context.out.raw(&bytes);
            Ok(Exit::Ok)
        }
    }
}

/// What every command has.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) env: Env,
    pub(crate) out: Out,
    state_dir: Option<PathBuf>,
}

impl Context {
    pub(crate) fn state_dir(&self) -> Result<&PathBuf, CliError> {
        self.state_dir.as_ref().ok_or_else(|| {
            CliError::usage("state-directory", "there is no home directory to keep state in")
                .hint("name a directory with --state-dir")
        })
    }

    /// A connection to the daemon, which is started where none runs.
    pub(crate) async fn connect(&self) -> Result<Client, CliError> {
        let starter = Starter { state_dir: self.state_dir()?.clone(), program: self.env.program.clone() };
        let (client, started) = starter.connect().await?;
        if started && self.out.volume == Volume::Verbose {
            self.out.note(&format!("started a daemon for {}", starter.state_dir.display()));
        }
        Ok(client)
    }

    /// Says an error.
    pub(crate) fn fail(&self, error: &CliError) {
        let text = match self.out.json {
            true => clean::json(&error.json().to_string()),
            false => error.text(),
        };
        self.out.tell(&text);
    }
}
