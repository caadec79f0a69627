//! `postern apply --plan-out F` and `postern apply F`: what a person saw and approved, and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::event::{EventKind, RunEvent};
use postern_proto::ids::{Address, HostId, PlanHash};
use postern_proto::plan::{Approval, Plan};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::apply::{Job, one};
use super::args::Apply;
use super::attend::What;
use super::compose::Wanted;
use super::error::CliError;
use super::follow::Interrupt;
use super::fresh::Fresh;
use super::out::Volume;
use super::selector::Selector;
use super::view::View;
use super::{Context, Exit, clean};
use crate::client::{Assigned, Client, HostInfo, Update, UpdateKind};

/// What such a file begins with, white space aside. A profile is no JSON object that begins so.
const MAGIC: &[u8] = b"{\"schema\":\"postern/reviewed-plan/";
/// The version that this build writes and reads.
const SCHEMA: &str = "postern/reviewed-plan/v1";
/// The largest such file, bytes: a plan and the profiles that it came from.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// A plan with the preview that a person looks at.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reviewed {
    /// First, so that the file can be told from a profile.
    schema: String,
    /// RFC 3339.
    created: String,
    /// Its name then, for people.
    host: String,
    host_id: HostId,
    /// The profiles.
    origin: String,
    /// What would be done, for people: as the check showed it.
    preview: Vec<String>,
    /// For every resource of the plan: what was seen of it.
    approved: Vec<Approval>,
    /// SHA-256 of `plan`, in hex.
    plan_sha256: String,
    /// Exactly what is sent to the host.
    plan: String,
    /// What the host is to have once it is applied.
    assign: Vec<StoredProfile>,
}

/// A profile as it is assigned.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredProfile {
    name: String,
    /// Base64.
    bundle: String,
    vars: BTreeMap<String, String>,
    /// Assigned profiles whose place it takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    covers: Vec<String>,
}

fn bad(path: &Path, why: impl std::fmt::Display) -> CliError {
    CliError::usage("plan-file", format!("{} is no reviewed plan that can be applied: {why}", path.display()))
        .hint("make it again with `postern apply … --plan-out FILE`")
}

/// The reviewed plan that is named instead of profiles, if one is.
pub(crate) fn named(context: &Context, args: &Apply) -> Result<Option<Reviewed>, CliError> {
    let mut plans = Vec::new();
    for name in &args.profiles {
        let path = context.env.cwd.join(name);
        if is_plan(&path) {
            plans.push(path);
        }
    }
    let Some(path) = plans.pop() else { return Ok(None) };
    let alone = args.profiles.len() == 1;
    if !alone || args.check || args.plan_out.is_some() || !args.values.is_empty() {
        return Err(CliError::usage(
            "usage",
            format!("{} is a reviewed plan, which is applied alone and as it is", path.display()),
        )
        .hint("leave out other profiles, --check, --plan-out, --var and --var-file"));
    }
    read(&path).map(Some)
}

/// Looks at the beginning only. What cannot be read is for the profiles to tell.
fn is_plan(path: &Path) -> bool {
    let read = || -> io::Result<Vec<u8>> {
        let mut begin = Vec::new();
        if std::fs::metadata(path)?.is_file() {
            File::open(path)?.take(128).read_to_end(&mut begin)?;
        }
        Ok(begin)
    };
    let begin = read().unwrap_or_default();
    let packed: Vec<u8> = begin.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    packed.starts_with(MAGIC)
}

fn read(path: &Path) -> Result<Reviewed, CliError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| CliError::usage("plan-file", format!("reading {}: {error}", path.display())))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(bad(path, "it is too large"));
    }
    #[derive(Deserialize)]
    struct Version {
        schema: String,
    }
    let Version { schema } = serde_json::from_slice(&bytes).map_err(|error| bad(path, error))?;
    if schema != SCHEMA {
        return Err(bad(path, format!("it is {schema}, and this build knows {SCHEMA}")));
    }
    let reviewed: Reviewed = serde_json::from_slice(&bytes).map_err(|error| bad(path, error))?;
    if PlanHash::of(reviewed.plan.as_bytes()).to_string() != reviewed.plan_sha256 {
        return Err(bad(path, "the plan in it is not the one that was reviewed"));
    }
    let plan = Plan::from_bytes(reviewed.plan.as_bytes()).map_err(|error| bad(path, error))?;
    let planned = plan.resources.iter().map(|resource| &resource.address);
    if !planned.eq(reviewed.approved.iter().map(|approval| &approval.address)) {
        return Err(bad(path, "what was approved is not what the plan has"));
    }
    Ok(reviewed)
}

/// Applies exactly what was reviewed.
pub(crate) async fn apply(
    context: &Context,
    reviewed: Reviewed,
    selector: &Selector,
) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    let [host] = hosts.as_slice() else { return Err(one_host(hosts.len())) };
    if host.id != reviewed.host_id {
        return Err(CliError::usage(
            "plan-host",
            format!(
                "the plan was reviewed for {} ({}), and {} is another host ({})",
                reviewed.host, reviewed.host_id, host.name, host.id
            ),
        )
        .hint("name the host that it was reviewed for, or make a plan for this one with --plan-out"));
    }
    let job = reviewed.into_job()?;
    one(context, &mut client, host, &job, false, &mut Interrupt::listen(), |_| {}).await
}

fn one_host(count: usize) -> CliError {
    CliError::usage("usage", format!("a reviewed plan is for one host, and {count} are chosen"))
        .hint("name one host with -H")
}

impl Reviewed {
    fn into_job(self) -> Result<Job, CliError> {
        let plan = |error: String| CliError::usage("plan-file", error);
        let assign = self.assign.into_iter().map(|stored| {
            let bundle = STANDARD.decode(&stored.bundle);
            let bundle = bundle.map_err(|error| plan(format!("profile {}: {error}", stored.name)))?;
            Ok(Assigned {
                name: stored.name,
                bundle,
                vars: stored.vars,
                assigned_ms: 0,
                covers: stored.covers,
            })
        });
        Ok(Job {
            what: What::Reviewed,
            plan: self.plan.into_bytes(),
            resources: self.approved.len(),
            origin: self.origin,
            check: false,
            approved: self.approved,
            assign: assign.collect::<Result<_, CliError>>()?,
            unassign: Vec::new(),
        })
    }
}

/// Checks one host and writes down what was seen.
pub(crate) async fn preview(
    context: &Context,
    client: &mut Client,
    wanted: &Wanted,
    hosts: Vec<HostInfo>,
    file: &Path,
) -> Result<Exit, CliError> {
    let [host] = hosts.as_slice() else { return Err(one_host(hosts.len())) };
    // Before the host is asked: a file that cannot be written is known now.
    let path = context.env.cwd.join(file);
    let mut fresh = Fresh::create(&path)?;
    let job = wanted.job(context, client, host, false).await?;
    let check = Job { check: true, assign: Vec::new(), ..job.clone() };
    let mut seen = Seen::default();
    let exit =
        one(context, client, host, &check, false, &mut Interrupt::listen(), |event| seen.take(event)).await?;
    if exit != Exit::Ok {
        return Ok(exit);
    }
    let bytes = seen.reviewed(host, job)?.to_bytes()?;
    fresh.write(&bytes)?;
    fresh.keep()?;
    if context.out.json {
        context.out.document(&json!({
            "schema": "postern/plan-written/v1", "file": path, "host": host.name, "host_id": host.id.to_string(),
        }));
    } else {
        let (file, name) = (file.display(), clean::line(&host.name));
        context.out.note(&format!(
            "written to {file}; `postern apply {file} -H {name}` does exactly that, or nothing where something has \
             changed since"
        ));
    }
    Ok(exit)
}

/// What a check showed.
#[derive(Default)]
struct Seen {
    digests: BTreeMap<Address, String>,
    preview: Vec<String>,
}

impl Seen {
    fn take(&mut self, event: &RunEvent) {
        if let EventKind::ResourceFinished { address, seen, .. } = &event.kind {
            self.digests.insert(address.clone(), seen.clone());
            let mut view = View::new(None, Volume::Normal, true);
            let lines = view.update(&Update { cursor: 0, kind: UpdateKind::Event(event.clone()) });
            self.preview.extend(lines.into_iter().map(|line| format!("{}{}", line.head, line.rest)));
        }
    }

    fn reviewed(mut self, host: &HostInfo, job: Job) -> Result<Reviewed, CliError> {
        let internal = |error: String| CliError::usage("internal", error);
        let plan = Plan::from_bytes(&job.plan).map_err(|error| internal(error.to_string()))?;
        let mut approved = Vec::new();
        for resource in plan.resources {
            let seen = self.digests.remove(&resource.address).ok_or_else(|| {
                CliError::failed("plan-file", format!("the check said nothing of {}", resource.address))
                    .hint("is the agent older than this program? `postern up … --bootstrap` upgrades it")
            })?;
            approved.push(Approval { address: resource.address, seen });
        }
        if approved.is_empty() {
            return Err(CliError::usage("plan-file", "the plan has no resource: there is nothing to review"));
        }
        let assign = job.assign.into_iter().map(|assigned| StoredProfile {
            name: assigned.name,
            bundle: STANDARD.encode(assigned.bundle),
            vars: assigned.vars,
            covers: assigned.covers,
        });
        Ok(Reviewed {
            schema: SCHEMA.into(),
            created: jiff::Timestamp::now().to_string(),
            host: host.name.clone(),
            host_id: host.id,
            origin: job.origin,
            preview: self.preview,
            approved,
            plan_sha256: PlanHash::of(&job.plan).to_string(),
            plan: String::from_utf8(job.plan).map_err(|error| internal(error.to_string()))?,
            assign: assign.collect(),
        })
    }
}

impl Reviewed {
    fn to_bytes(&self) -> Result<Vec<u8>, CliError> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| CliError::usage("internal", error.to_string()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
