//! Thin entry point.

fn main() -> std::process::ExitCode {
    postern::cli::main().code().into()
}
