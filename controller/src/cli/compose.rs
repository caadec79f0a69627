//! From profiles to the plan of each host, or everything that is wrong with them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::json;

use super::apply::Job;
use super::args::Values;
use super::attend::What;
use super::error::{CliError, chain};
use super::ssh_port::keep_ssh_out;
use super::{Context, clean};
use crate::client::{self, Client, HostInfo};
use crate::profile::{self, Bundle, Compiled, Diagnostic, Facts, Inputs, MAX_PROFILE_BYTES, VarFile};

/// Profiles that were read, and what they are given on the command line.
#[derive(Debug)]
pub(crate) struct Wanted {
    bundles: Vec<Bundle>,
    vars: BTreeMap<String, String>,
    var_files: Vec<VarFile>,
}

impl Wanted {
    pub(crate) fn read(context: &Context, names: &[String], values: &Values) -> Result<Self, CliError> {
        let mut vars = BTreeMap::new();
        for (name, value) in &values.vars {
            if vars.insert(name.clone(), value.clone()).is_some() {
                return Err(CliError::usage("usage", format!("--var gives {name} twice")));
            }
        }
        let files = values.var_files.iter().map(|file| var_file(&context.env.cwd, file));
        let var_files = files.collect::<Result<_, _>>()?;
        let (mut bundles, mut found) = (Vec::new(), Vec::new());
        for name in names {
            match profile::load(name, &context.env.cwd) {
                Ok(bundle) => bundles.push(bundle),
                Err(diagnostic) => found.push(diagnostic),
            }
        }
        let wanted = Self { bundles, vars, var_files };
        if found.is_empty() {
            return Ok(wanted);
        }
        // Said together with what is wrong with the others, but for values: they may be for the one that was
        // not found.
        let alone = profile::compile(&wanted.bundles, &[], &Inputs::default());
        let about_values = |diagnostic: &Diagnostic| diagnostic.message.ends_with(" has no value");
        found.extend(alone.err().unwrap_or_default().into_iter().filter(|it| !about_values(it)));
        Err(wrong(context, "the profile", &found))
    }

    /// Bundles that are there already, and values for them.
    pub(crate) fn of(bundles: Vec<Bundle>, vars: BTreeMap<String, String>) -> Self {
        Self { bundles, vars, var_files: Vec::new() }
    }

    /// What is given, with these values of a host below it.
    fn inputs(&self, host_vars: &BTreeMap<String, String>) -> Inputs {
        Inputs {
            vars: self.vars.clone(),
            var_files: self.var_files.clone(),
            host_vars: host_vars.clone(),
            facts: None,
            secrets: None,
        }
    }

    /// What they make while no host is known, but for values that are kept for one.
    pub(crate) fn try_check(
        &self,
        host_vars: &BTreeMap<String, String>,
    ) -> Result<Compiled, Vec<Diagnostic>> {
        profile::compile(&self.bundles, &[], &self.inputs(host_vars))
    }

    /// The same, and everything that is wrong is said.
    pub(crate) fn check(
        &self,
        context: &Context,
        host_vars: &BTreeMap<String, String>,
    ) -> Result<Compiled, CliError> {
        self.try_check(host_vars).map_err(|found| wrong(context, "the profile", &found))
    }

    /// True when some profile declares this variable without a default.
    pub(crate) fn asks_for(&self, variable: &str) -> bool {
        let asks = |(name, default): &(String, Option<String>)| name == variable && default.is_none();
        self.bundles.iter().any(|bundle| profile::about(bundle).variables.iter().any(asks))
    }

    /// What is to be done on each of these hosts, or everything that is wrong for the first of them that it is
    /// wrong for.
    pub(crate) async fn jobs(
        &self,
        context: &Context,
        client: &mut Client,
        hosts: &[HostInfo],
        check: bool,
    ) -> Result<Vec<Job>, CliError> {
        let secrets = client.secrets().await?;
        let secrets: BTreeMap<_, _> =
            secrets.into_iter().map(|secret| (secret.name, secret.version)).collect();
        let mut jobs = Vec::new();
        for host in hosts {
            let assigned = assigned(client, host).await?;
            let inputs = Inputs {
                facts: Some(facts(host)?),
                secrets: Some(secrets.clone()),
                ..self.inputs(&host.vars)
            };
            let mut compiled = profile::compile(&self.bundles, &assigned, &inputs)
                .map_err(|found| wrong(context, &format!("the profile for {}", host.name), &found))?;
            if host.ssh.is_closed() {
                keep_ssh_out(&mut compiled.plan);
            }
            jobs.push(self.to_job(compiled, check)?);
        }
        Ok(jobs)
    }

    /// What is to be done on a host.
    pub(crate) async fn job(
        &self,
        context: &Context,
        client: &mut Client,
        host: &HostInfo,
        check: bool,
    ) -> Result<Job, CliError> {
        let mut jobs = self.jobs(context, client, std::slice::from_ref(host), check).await?;
        jobs.pop().ok_or_else(|| CliError::usage("internal", "a host without a plan"))
    }

    fn to_job(&self, compiled: Compiled, check: bool) -> Result<Job, CliError> {
        let (plan, _) =
            compiled.plan.to_bytes().map_err(|error| CliError::usage("plan", error.to_string()))?;
        let origin = compiled.origin();
        let mut assign = Vec::new();
        for part in compiled.parts {
            // A check changes nothing, and those that the host has already stay as they are.
            if check {
                break;
            }
            let Some(bundle) = part.bundle.and_then(|index| self.bundles.get(index)) else { continue };
            let bundle = bundle
                .to_bytes()
                .map_err(|error| CliError::usage("profile", format!("{}: {}", part.name, chain(&error))))?;
            assign.push(client::Assigned {
                name: part.name,
                bundle,
                vars: part.vars,
                assigned_ms: 0,
                covers: part.covers,
            });
        }
        Ok(Job {
            what: What::Apply,
            plan,
            resources: compiled.plan.resources.len(),
            origin,
            check,
            approved: Vec::new(),
            assign,
            unassign: Vec::new(),
        })
    }
}

fn var_file(cwd: &Path, file: &Path) -> Result<VarFile, CliError> {
    let name = file.display().to_string();
    let mut bytes = Vec::new();
    let read = File::open(cwd.join(file))
        .and_then(|file| file.take(MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| CliError::usage("var-file", format!("reading {name}: {error}")))?;
    if bytes.len() > MAX_PROFILE_BYTES {
        return Err(CliError::usage("var-file", format!("{name} has more than {MAX_PROFILE_BYTES} bytes")));
    }
    Ok(VarFile { file: name, bytes })
}

/// A plan is made for what a host is, which its agent says.
fn facts(host: &HostInfo) -> Result<Facts, CliError> {
    if host.os_id.is_empty() {
        return Err(CliError::failed(
            "not-connected",
            format!("nothing is known of {} yet: its agent has never been connected", host.name),
        )
        .hint("take it over with `postern up`"));
    }
    Ok(Facts {
        name: host.name.clone(),
        labels: host.labels.clone(),
        os_id: host.os_id.clone(),
        os_version: host.os_version.clone(),
        arch: host.arch.clone(),
        hostname: host.hostname.clone(),
        room: host.room,
    })
}

/// The profiles that the host is to have already.
pub(crate) async fn assigned(
    client: &mut Client,
    host: &HostInfo,
) -> Result<Vec<profile::Assigned>, CliError> {
    // Known to have none: one question less.
    if host.profiles.is_empty() {
        return Ok(Vec::new());
    }
    let mut assigned = Vec::new();
    for kept in client.assigned(host.id).await? {
        let bundle = Bundle::from_bytes(&kept.bundle).map_err(|error| {
            CliError::usage(
                "assigned-profile",
                format!("profile {} that {} is to have: {}", kept.name, host.name, chain(&error)),
            )
            .hint(format!(
                "apply it again from its file, or take it away: postern host unassign {} {}",
                host.name, kept.name
            ))
        })?;
        assigned.push(profile::Assigned { name: kept.name, bundle, vars: kept.vars });
    }
    Ok(assigned)
}

/// Says everything that is wrong.
pub(crate) fn wrong(context: &Context, what: &str, found: &[Diagnostic]) -> CliError {
    if !context.out.json {
        for diagnostic in found {
            context.out.tell(&clean::line(&diagnostic.to_string()));
        }
    }
    let count = found.len();
    let mistakes = if count == 1 { "one mistake".to_owned() } else { format!("{count} mistakes") };
    let mut error = CliError::usage("profile", format!("{mistakes} in {what}; nothing was touched"));
    if context.out.json {
        error.details = found.iter().map(ToString::to_string).collect();
        context
            .out
            .document(&json!({"schema": "postern/profile-check/v1", "ok": false, "diagnostics": found}));
    }
    error
}
