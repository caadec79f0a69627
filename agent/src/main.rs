//! Thin entry point.

fn main() {
    // Before anything else: a supervisor starts for every command and must be cheap.
    if std::env::args_os().nth(1).is_some_and(|arg| arg == "supervise") {
        std::process::exit(postern_agent::supervise::main_supervise());
    }
}
