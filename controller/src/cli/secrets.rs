//! `postern secret`: values that profiles refer to. Nothing here prints one.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use postern_proto::text::{BadSecret, MAX_SECRET_BYTES, check_secret, is_secret_name};
use serde_json::json;
use zeroize::Zeroizing;

use super::args::SetSecret;
use super::error::CliError;
use super::hosts::ago;
use super::out::table;
use super::terminal::secret;
use super::{Context, Exit, clean, json as documents};

pub(crate) async fn set(context: &Context, args: SetSecret) -> Result<Exit, CliError> {
    is_name(&args.name)?;
    let value = match &args.file {
        Some(file) => from_file(&context.env.cwd.join(file))?,
        None if context.out.stdin_is_terminal => asked(context, &args.name)?,
        None => from_stdin(context)?,
    };
    check_secret(&value).map_err(|error| bad_value(&args.name, error))?;
    let version = context.connect().await?.set_secret(args.name.clone(), value).await?;
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/secret-set/v1", "name": args.name, "version": version,
        }));
    } else {
        context.out.line(&format!("{}: version {version} is set", args.name));
    }
    Ok(Exit::Ok)
}

fn bad_value(name: &str, error: BadSecret) -> CliError {
    CliError::usage("secret-value", format!("the value of {name} {error}")).hint(match error {
        BadSecret::Empty => "is a variable unset, or did the command before the pipe fail?".to_owned(),
        BadSecret::TooLarge => {
            "a secret is a password, a token or a key; let the host fetch what is larger".to_owned()
        }
        BadSecret::NotText(_) => format!(
            "a secret becomes a part of files and variables, which are text: set it encoded, as in \
             `base64 -w0 FILE | postern secret set {name}`, and have the host decode it"
        ),
    })
}

fn is_name(name: &str) -> Result<(), CliError> {
    if is_secret_name(name) {
        return Ok(());
    }
    Err(CliError::usage("secret-name", format!("{name:?} is no name for a secret")).hint(
        "want a letter or digit, then letters, digits, `-`, `_`, `.` and `/`, at most 128 in all; the value is \
         given on stdin",
    ))
}

/// One newline at the end is the shell's, not the value's.
fn from_stdin(context: &Context) -> Result<Zeroizing<Vec<u8>>, CliError> {
    // One more, so that a value of the largest size may have its newline.
    let mut value = context
        .out
        .read_stdin(MAX_SECRET_BYTES + 1)
        .map_err(|error| CliError::usage("secret-value", format!("reading stdin: {error}")))?;
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Ok(value)
}

fn from_file(file: &Path) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let mut value = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES + 1));
    let read =
        File::open(file).and_then(|file| file.take(MAX_SECRET_BYTES as u64 + 1).read_to_end(&mut value));
    read.map_err(|error| CliError::usage("secret-value", format!("reading {}: {error}", file.display())))?;
    Ok(value)
}

/// Twice, as nobody sees what is typed.
fn asked(context: &Context, name: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let ask = |prompt: String| {
        context.out.aside(|| secret(&prompt)).ok_or_else(|| {
            CliError::usage("no-terminal", "the terminal could not be asked for the value")
                .hint("pipe it in, or name a file with --file")
        })
    };
    let first = ask(format!("Value of {name}"))?;
    if *first != *ask(format!("Value of {name}, again"))? {
        return Err(CliError::usage("secret-value", "the two values differ; nothing was set"));
    }
    Ok(Zeroizing::new(first.as_bytes().to_vec()))
}

pub(crate) async fn list(context: &Context) -> Result<Exit, CliError> {
    let secrets = context.connect().await?.secrets().await?;
    let out = &context.out;
    if out.json {
        let secrets: Vec<_> = secrets.iter().map(documents::secret).collect();
        out.document(&json!({"schema": "postern/secrets/v1", "secrets": secrets}));
        return Ok(Exit::Ok);
    }
    if secrets.is_empty() {
        out.note("no secret yet; `postern secret set NAME` keeps one");
        return Ok(Exit::Ok);
    }
    let mut rows = vec![["NAME", "VERSION", "SET", "USED BY"].map(str::to_owned).to_vec()];
    rows.extend(secrets.iter().map(|secret| {
        let used_by = if secret.used_by.is_empty() { "-".to_owned() } else { secret.used_by.join(",") };
        vec![clean::line(&secret.name), secret.version.to_string(), ago(secret.set_ms), clean::line(&used_by)]
    }));
    table(&rows).iter().for_each(|line| out.line(line));
    Ok(Exit::Ok)
}

pub(crate) async fn remove(context: &Context, name: String) -> Result<Exit, CliError> {
    is_name(&name)?;
    context.connect().await?.remove_secret(name.clone()).await?;
    if context.out.json {
        context.out.document(&json!({"schema": "postern/secret-removed/v1", "name": name}));
    } else {
        context.out.line(&format!("{name}: removed, with all its versions"));
    }
    Ok(Exit::Ok)
}
