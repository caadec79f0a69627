//! A bootstrap below the command line, for tests that need what the command line cannot say.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use postern::bundle::Bundle;
use postern_installer::{
    Console, Fault, HostKeyPolicy, HostKeyQuestion, Options, Overrides, Progress, SshConfig, Target,
};
use postern_tests::lab::Host;
use postern_tests::rig::Rig;
use zeroize::Zeroizing;

/// Nobody at the terminal.
pub(crate) struct Nobody;

#[async_trait]
impl Console for Nobody {
    async fn confirm_host_key(&self, _: &HostKeyQuestion) -> bool {
        false
    }

    async fn secret(&self, _: &str) -> Option<Zeroizing<String>> {
        None
    }

    fn progress(&self, _: &Progress) {}
}

/// What `postern up` would say about this host, with the rig's agent.
pub(crate) fn options(rig: &Rig, user: &str, host: &Host, fault: Option<Fault>) -> Result<Options> {
    let config = SshConfig::parse("", Path::new("/nonexistent"))?;
    let overrides =
        Overrides { local_user: "root".into(), home: "/nonexistent".into(), ..Overrides::default() };
    let target = Target::resolve(&format!("{user}@{}", host.v4), &config, &overrides)?;
    let bundle = Bundle::from_file(rig.agent())?;
    let mut options = Options::new(target, Arc::new(move |arch| bundle.agent(arch)));
    options.identity_files = vec![host.private_key.clone()];
    options.password_login = false;
    // A record of its own: addresses of the lab come back with other keys.
    let fingerprint = host.fingerprint("ssh-ed25519").context("a fingerprint")?;
    options.host_key = HostKeyPolicy {
        known_hosts_files: vec![rig.state_dir().join("known_hosts")],
        fingerprint: Some(fingerprint.into()),
    };
    options.connect_deadline = Duration::from_secs(30);
    options.fault = fault;
    Ok(options)
}
