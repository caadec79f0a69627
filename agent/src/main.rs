//! Thin entry point: which command, with which arguments; the commands are in `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let code = match args.first().map(String::as_str) {
        // Before anything else: a supervisor starts for every command and must be cheap.
        Some("supervise") => postern_agent::supervise::main_supervise(),
        _ => postern_agent::cli::main(&args),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
