//! `preflight`: what a host must have before anything is installed. It looks, and all that is lacking is told at once.

mod reach;
mod verdict;

use std::time::Duration;

use futures_util::future::join_all;
use postern_proto::spec::{PreflightSpec, Reach};
use serde::{Deserialize, Serialize};

use super::apt::proxies::Proxies;
use super::apt::{servers, sources};
use super::{Depth, ObserveError, Resource, Step, Undo};
use crate::link::route::{Proxy, ProxyEnv};
use crate::sys::Sys;
use reach::Known;
use verdict::{Found, Gone};

/// For one name or one server. A lost packet of a handshake is sent again after one and after three seconds.
const PROBE: Duration = Duration::from_secs(10);
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Where Debian keeps the environment of everybody who logs in.
const ENVIRONMENT: &str = "/etc/environment";
const ENVIRONMENT_LIMIT: u64 = 1 << 16;

pub(super) struct Preflight;

/// Whether anything was asked for; what was found is told where it is not enough.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    asked: bool,
}

impl Resource for Preflight {
    type Spec = PreflightSpec;
    type Seen = Seen;

    async fn observe(spec: &PreflightSpec, host: &Sys, depth: Depth) -> Result<Seen, ObserveError> {
        // What is taken back needs no room, and what is there already needs none any more.
        if depth == Depth::Whole || is_done(spec, host)? {
            return Ok(Seen { asked: false });
        }
        let (names, servers) = tokio::join!(resolve(spec, host), reached(spec, host));
        let found = Found {
            memory: host.memory()?,
            root: host.room("/")?,
            var: host.room("/var")?,
            clock_off_s: host.clock_off_s(),
            gone: names.into_iter().chain(servers?).collect(),
        };
        match verdict::told(&verdict::lacking(spec, &found)) {
            Some(why) => Err(ObserveError::Obstacle(why)),
            None => Ok(Seen { asked: true }),
        }
    }

    fn plan(_: &PreflightSpec, _: &Seen) -> Vec<Step> {
        Vec::new()
    }

    fn essence(_: &PreflightSpec, _: &Seen) -> serde_json::Value {
        // It changes nothing, so two looks never differ in what was done.
        serde_json::Value::Null
    }

    fn undo(_: &PreflightSpec, _: &Seen, _: &serde_json::Value, _: &Seen) -> Undo {
        Undo::Steps(Vec::new())
    }
}

/// Whether all that the room is for is there.
fn is_done(spec: &PreflightSpec, host: &Sys) -> Result<bool, ObserveError> {
    if spec.packages.is_empty() {
        return Ok(false);
    }
    let dpkg = host.dpkg()?;
    Ok(dpkg.is_some_and(|dpkg| spec.packages.iter().all(|name| dpkg.installed(name).is_some())))
}

/// The names without an address.
async fn resolve(spec: &PreflightSpec, host: &Sys) -> Vec<Gone> {
    let asked = spec.resolves.iter().map(async |name| {
        let why = host.addresses(name, PROBE).await.err()?;
        Some(Gone::Name { name: name.clone(), why })
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// The servers that are not reached.
async fn reached(spec: &PreflightSpec, host: &Sys) -> Result<Vec<Gone>, ObserveError> {
    let targets = spec.targets();
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let mut gone = Vec::new();
    let servers = match targets.contains(&Reach::Apt) {
        true => servers::servers(host)?,
        false => Vec::new(),
    };
    if targets.contains(&Reach::Apt) && sources::all(host)?.iter().all(|(_, sources)| sources.is_empty()) {
        gone.push(Gone::Sources);
    }
    let known = Known { apt: proxies_of_apt(host).await, others: proxies(host)? };
    let goals = reach::goals(&targets, &servers, &known);
    let tried = goals.iter().map(async |goal| reach::attempt(goal, host, PROBE).await);
    gone.extend(join_all(tried).await.into_iter().flatten());
    Ok(gone)
}

/// A host without apt-config has no proxy for apt either.
async fn proxies_of_apt(host: &Sys) -> Proxies {
    match host.run(&["apt-config", "dump"], &[], ASK_LIMIT).await {
        Ok(said) if said.ok() => Proxies::parse(&String::from_utf8_lossy(&said.stdout)),
        _ => Proxies::default(),
    }
}

/// The proxies of everybody on this host: the agent's own, and that of the environment.
fn proxies(host: &Sys) -> Result<Vec<Proxy>, ObserveError> {
    let text = host.read_through(ENVIRONMENT, ENVIRONMENT_LIMIT)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let env = ProxyEnv::from_lookup(|name| reach::variable(&text, name));
    Ok(host.proxy().into_iter().chain(env.proxy.and_then(|url| url.parse().ok())).collect())
}

#[cfg(test)]
mod tests;
