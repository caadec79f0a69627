//! `postern site`: web sites behind the Traefik of a host.

mod acme;
mod backup;
mod kept;
mod text;

use std::collections::BTreeMap;

use serde_json::json;

use super::apply::{self, Job};
use super::args::{AddSite, Site as Command};
use super::compose::{self, Wanted};
use super::error::CliError;
use super::follow::Interrupt;
use super::out::table;
use super::{Context, Exit, clean, hosts};
use crate::client::{Client, HostInfo};
use crate::profile::{self, Assigned};
use text::{Site, Wrong};

/// The variable of the profile with Traefik that names DNS providers, and one that only such a profile has.
const PROVIDERS: &str = "dns";
const TRAEFIK: &str = "traefik_image";

pub(crate) async fn site(context: &Context, command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Add(args) => Box::pin(add(context, args)).await,
        Command::List { host } => list(context, &host).await,
        Command::Backup { host, file } => Box::pin(backup::backup(context, &host, &file)).await,
        Command::Restore { host, file, replace } => {
            Box::pin(backup::restore(context, &host, &file, replace)).await
        }
        Command::Remove { host, domain, check } => Box::pin(remove(context, &host, &domain, check)).await,
    }
}

fn usage(Wrong { what, hint }: Wrong) -> CliError {
    let error = CliError::usage("site", what);
    if hint.is_empty() { error } else { error.hint(hint) }
}

/// What is assigned to a host, and which of it are sites.
struct Assignments {
    all: Vec<Assigned>,
    sites: Vec<Site>,
}

impl Assignments {
    async fn of(client: &mut Client, host: &HostInfo) -> Result<Self, CliError> {
        let all = compose::assigned(client, host).await?;
        let sites = sites(&all).collect();
        Ok(Self { all, sites })
    }

    fn find(&self, domain: &str) -> Option<&Site> {
        self.sites.iter().find(|site| site.domain == domain)
    }

    /// The profile with Traefik, and what its variable names now.
    fn traefik(&self, host: &HostInfo) -> Result<(&Assigned, String), CliError> {
        let found = self.all.iter().find_map(|assigned| {
            let about = profile::about(&assigned.bundle);
            about.variables.iter().find(|(name, _)| name == TRAEFIK)?;
            let (_, default) = about.variables.into_iter().find(|(name, _)| name == PROVIDERS)?;
            let given = assigned.vars.get(PROVIDERS).or_else(|| host.vars.get(PROVIDERS)).cloned();
            Some((assigned, given.or(default).unwrap_or_default()))
        });
        found.ok_or_else(|| {
            let name = &host.name;
            let message = format!("{name} is to have no Traefik, which sites are served by");
            CliError::usage("no-traefik", message).hint(format!("postern apply swarm -H {name}"))
        })
    }
}

fn sites(assigned: &[Assigned]) -> impl Iterator<Item = Site> {
    assigned.iter().filter_map(|it| Site::of(&it.name, &profile::about(&it.bundle), &it.vars))
}

/// The domains of the sites among what is assigned.
pub(crate) fn domains(assigned: &[Assigned]) -> Vec<String> {
    sites(assigned).map(|site| site.domain).collect()
}

async fn add(context: &Context, args: AddSite) -> Result<Exit, CliError> {
    let domain = text::domain(&args.domain).map_err(usage)?;
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, &args.host).await?;
    let had = Assignments::of(&mut client, &host).await?;
    let site = Site::wanted(&args, had.find(&domain)).map_err(usage)?;
    if let Some(other) = had.sites.iter().find(|it| it.domain != domain && it.service() == site.service()) {
        let message = format!("{domain} and {} would be one service, {}", other.domain, site.service());
        return Err(
            CliError::usage("site", message).hint("write a profile of your own that includes `site` for one")
        );
    }
    let (traefik, kept) = had.traefik(&host)?;
    let mut needed = Vec::new();
    if !site.dns.is_empty() {
        let what = format!("the token by which {} lets certificates be made", site.dns);
        needed.push((format!("dns-{}", site.dns), what));
    }
    if !site.registry_user.is_empty() {
        let what = format!("the password of {} at the image's registry", clean::line(&site.registry_user));
        needed.push((site.registry_secret.clone(), what));
    }
    if !needed.is_empty() {
        let kept = client.secrets().await?;
        for (secret, what) in needed {
            if kept.iter().all(|kept| kept.name != secret) {
                let secret = clean::line(&secret);
                let error = CliError::usage("no-secret", format!("there is no secret {secret}, {what}"));
                return Err(error.hint(format!("postern secret set {secret}")));
            }
        }
    }
    let others = had.sites.iter().filter(|other| other.domain != domain).map(|site| site.dns.as_str());
    let providers = text::providers(&kept, others.chain([site.dns.as_str()]));
    let mut bundles = vec![site.bundle(true).map_err(internal)?];
    let mut vars = BTreeMap::new();
    if providers != text::providers(&kept, std::iter::empty()) {
        bundles.insert(0, traefik.bundle.clone());
        vars.insert(PROVIDERS.to_owned(), providers);
    }
    let wanted = Wanted::of(bundles, vars);
    let job = wanted.job(context, &mut client, &host, args.check).await?;
    let exit = run(context, &mut client, &host, &job).await?;
    if exit == Exit::Ok && !args.check {
        let scheme = if site.dns.is_empty() { "http" } else { "https" };
        context.out.note(&format!(
            "{scheme}://{domain} is served as soon as its DNS record leads to {}{}",
            clean::line(&host.name),
            if site.dns.is_empty() {
                ""
            } else {
                " and its certificate is there, which takes a minute or two"
            }
        ));
    }
    Ok(exit)
}

fn internal(error: String) -> CliError {
    CliError::usage("internal", error)
}

async fn run(context: &Context, client: &mut Client, host: &HostInfo, job: &Job) -> Result<Exit, CliError> {
    let mut interrupt = Interrupt::listen();
    apply::one(context, client, host, job, false, &mut interrupt, |_| {}).await
}

async fn remove(context: &Context, host: &str, domain: &str, check: bool) -> Result<Exit, CliError> {
    let domain = text::domain(domain).map_err(usage)?;
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, host).await?;
    let had = Assignments::of(&mut client, &host).await?;
    let Some(site) = had.find(&domain) else {
        let error = CliError::usage("no-such-site", format!("{} has no site {domain}", host.name));
        let known: Vec<&str> = had.sites.iter().map(|site| site.domain.as_str()).collect();
        return Err(match known.as_slice() {
            [] => error.hint("it has none"),
            known => error.hint(format!("it has {}", known.join(", "))),
        });
    };
    let wanted = Wanted::of(vec![site.bundle(false).map_err(internal)?], BTreeMap::new());
    let mut job = wanted.job(context, &mut client, &host, check).await?;
    job.assign.clear();
    if !check {
        job.unassign.push(site.profile());
    }
    // The assignment goes when the run has ended well, or nobody could ask for it again.
    run(context, &mut client, &host, &job).await
}

async fn list(context: &Context, host: &str) -> Result<Exit, CliError> {
    let mut client = context.connect().await?;
    let host = hosts::find(&mut client, host).await?;
    let sites = Assignments::of(&mut client, &host).await?.sites;
    if context.out.json {
        let one = |site: &Site| {
            json!({
                "domain": site.domain, "image": site.image,
                "registry_user": (!site.registry_user.is_empty()).then_some(&site.registry_user), "port": site.port.parse::<u16>().ok(),
                "dns": (!site.dns.is_empty()).then_some(&site.dns),
                "replicas": site.replicas.parse::<u16>().ok(),
                "env": site.env.lines().collect::<Vec<_>>(),
            })
        };
        context.out.document(&json!({
            "schema": "postern/sites/v1", "host": host.name, "host_id": host.id.to_string(),
            "sites": sites.iter().map(one).collect::<Vec<_>>(),
        }));
        return Ok(Exit::Ok);
    }
    if sites.is_empty() {
        context.out.note(&format!("{} has no site", clean::line(&host.name)));
        return Ok(Exit::Ok);
    }
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { clean::line(text) };
    let mut rows = vec![["DOMAIN", "IMAGE", "PORT", "DNS", "REPLICAS"].map(str::to_owned).to_vec()];
    rows.extend(sites.iter().map(|site| {
        [&site.domain, &site.image, &site.port, &site.dns, &site.replicas].map(|text| dash(text)).to_vec()
    }));
    table(&rows).iter().for_each(|line| context.out.line(line));
    Ok(Exit::Ok)
}
