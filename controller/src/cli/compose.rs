//! From profiles to the plan of each host, or everything that is wrong with them.

use std::collections::BTreeMap;

use serde_json::json;

use super::apply::Job;
use super::args::Values;
use super::attend::What;
use super::error::CliError;
use super::{Context, clean};
use crate::client::{Client, HostInfo};
use crate::profile::{self, Bundle, Compiled, Diagnostic, Inputs};

/// Profiles that were read, and what they are given.
pub(crate) struct Wanted {
    bundles: Vec<Bundle>,
    inputs: Inputs,
}

impl Wanted {
    pub(crate) fn read(context: &Context, names: &[String], values: &Values) -> Result<Self, CliError> {
        let mut vars = BTreeMap::new();
        for (name, value) in &values.vars {
            if vars.insert(name.clone(), value.clone()).is_some() {
                return Err(CliError::usage("usage", format!("--var gives {name} twice")));
            }
        }
        let (mut bundles, mut found) = (Vec::new(), Vec::new());
        for name in names {
            match profile::load(name, &context.env.cwd) {
                Ok(bundle) => bundles.push(bundle),
                Err(diagnostic) => found.push(diagnostic),
            }
        }
        let inputs = Inputs { vars, ..Inputs::default() };
        if found.is_empty() {
            return Ok(Self { bundles, inputs });
        }
        // A variable may belong to the profile that was not found.
        found.extend(profile::compile(&bundles, &[], &inputs).err().unwrap_or_default());
        Err(wrong(context, &found))
    }

    /// What they make while no host is known.
    pub(crate) fn check(&self, context: &Context) -> Result<Compiled, CliError> {
        profile::compile(&self.bundles, &[], &self.inputs).map_err(|found| wrong(context, &found))
    }

    /// What is to be done on each of these hosts.
    pub(crate) async fn jobs(
        &self,
        context: &Context,
        client: &mut Client,
        hosts: &[HostInfo],
        check: bool,
    ) -> Result<Vec<Job>, CliError> {
        let mut jobs = Vec::new();
        for host in hosts {
            jobs.push(self.job(context, client, host, check).await?);
        }
        Ok(jobs)
    }

    /// What is to be done on a host.
    pub(crate) async fn job(
        &self,
        context: &Context,
        _client: &mut Client,
        _host: &HostInfo,
        check: bool,
    ) -> Result<Job, CliError> {
        let compiled = self.check(context)?;
        let (plan, _) =
            compiled.plan.to_bytes().map_err(|error| CliError::usage("plan", error.to_string()))?;
        Ok(Job {
            what: What::Apply,
            plan,
            resources: compiled.plan.resources.len(),
            origin: compiled.origin(),
            check,
            approved: Vec::new(),
            assign: Vec::new(),
        })
    }
}

/// Says everything that is wrong.
fn wrong(context: &Context, found: &[Diagnostic]) -> CliError {
    if !context.out.json {
        for diagnostic in found {
            context.out.tell(&clean::line(&diagnostic.to_string()));
        }
    }
    let count = found.len();
    let mistakes = if count == 1 { "one mistake".to_owned() } else { format!("{count} mistakes") };
    let mut error = CliError::usage("profile", format!("{mistakes} in the profile; nothing was touched"));
    if context.out.json {
        error.details = found.iter().map(ToString::to_string).collect();
        context
            .out
            .document(&json!({"schema": "postern/profile-check/v1", "ok": false, "diagnostics": found}));
    }
    error
}
