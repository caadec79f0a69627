//! `postern profile`: list, show, check. Needs no daemon.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use super::args::Values;
use super::compose::Wanted;
use super::error::CliError;
use super::out::table;
use super::{Context, Exit, clean};
use crate::profile::{self, Diagnostic, SHIPPED};

pub(crate) fn list(context: &Context) -> Result<Exit, CliError> {
    let mut rows = Vec::new();
    for shipped in SHIPPED {
        let bundle = profile::load(shipped.name, &context.env.cwd).map_err(broken)?;
        rows.push((shipped.name, profile::about(&bundle).description));
    }
    if context.out.json {
        let profiles: Vec<_> = rows
            .iter()
            .map(|(name, description)| json!({"name": name, "description": description}))
            .collect();
        context.out.document(&json!({"schema": "postern/profiles/v1", "profiles": profiles}));
    } else {
        let rows: Vec<_> = rows.into_iter().map(|(name, text)| vec![name.to_owned(), text]).collect();
        table(&rows).iter().for_each(|line| context.out.line(line));
    }
    Ok(Exit::Ok)
}

fn broken(diagnostic: Diagnostic) -> CliError {
    let error = CliError::usage("profile", format!("{}: {}", diagnostic.file, diagnostic.message));
    match diagnostic.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

pub(crate) fn show(context: &Context, name: &str) -> Result<Exit, CliError> {
    let bundle = profile::load(name, &context.env.cwd).map_err(broken)?;
    let Some(text) = bundle.text() else {
        return Err(CliError::usage("profile", format!("{name}: this is not a text of at most 1 MiB")));
    };
    if context.out.json {
        context.out.document(&json!({"schema": "postern/profile/v1", "file": bundle.file(), "text": text}));
    } else if context.out.stdout_is_terminal {
        context.out.line(&clean::lines(text));
    } else {
        context.out.raw(text.as_bytes());
    }
    Ok(Exit::Ok)
}

pub(crate) fn copy(
    context: &Context,
    name: &str,
    file: Option<&Path>,
    force: bool,
) -> Result<Exit, CliError> {
    let shipped = SHIPPED.iter().find(|shipped| shipped.name == name).ok_or_else(|| {
        CliError::usage("profile", format!("there is no shipped profile {name:?}"))
            .hint("`postern profile list` shows them; a file of your own is copied with cp")
    })?;
    let path = match file {
        Some(file) => context.env.cwd.join(file),
        None => context.env.cwd.join(format!("{name}.yaml")),
    };
    let mut options = OpenOptions::new();
    match force {
        true => options.write(true).create(true).truncate(true),
        false => options.write(true).create_new(true),
    };
    let written = options.open(&path).and_then(|mut file| file.write_all(shipped.text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => CliError::usage(
            "file-exists",
            format!("{} is there already; nothing was written", path.display()),
        )
        .hint("name another file, or write over it with --force"),
        _ => CliError::usage("file", format!("writing {}: {error}", path.display())),
    })?;
    if context.out.json {
        context.out.document(&json!({"schema": "postern/profile-copied/v1", "name": name, "file": path}));
    } else {
        context.out.line(&path.display().to_string());
    }
    Ok(Exit::Ok)
}

pub(crate) fn schema(context: &Context) -> Result<Exit, CliError> {
    // JSON as it is, whatever the output: an editor reads it.
    let text = serde_json::to_string_pretty(&profile::schema())
        .map_err(|error| CliError::usage("internal", error.to_string()))?;
    context.out.line(&text);
    Ok(Exit::Ok)
}

pub(crate) fn check(context: &Context, names: &[String], values: &Values) -> Result<Exit, CliError> {
    let compiled = Wanted::read(context, names, values)?.check(context, &BTreeMap::new())?;
    let (_, hash) = compiled.plan.to_bytes().map_err(|error| CliError::usage("plan", error.to_string()))?;
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/profile-check/v1", "ok": true, "diagnostics": [],
            "plan_sha256": hash.to_string(), "plan": compiled.plan,
        }));
        return Ok(Exit::Ok);
    }
    for resource in &compiled.plan.resources {
        context.out.line(&clean::line(resource.address.as_str()));
    }
    let count = compiled.plan.resources.len();
    context.out.note(&format!("{}: {count} resources, plan {hash}", compiled.origin()));
    Ok(Exit::Ok)
}
