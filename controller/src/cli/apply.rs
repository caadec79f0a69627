//! `postern apply`: profiles to hosts that were taken over, several at once.

use std::sync::Arc;

use postern_proto::event::RunEvent;
use postern_proto::plan::Approval;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::args::Apply;
use super::attend::{Task, What, attend, waits};
use super::compose::Wanted;
use super::error::CliError;
use super::follow::Interrupt;
use super::selector::Selector;
use super::{Context, Exit, clean, reviewed};
use crate::client::{Assigned, Client, HostInfo, Order};

/// Hosts that are worked on at once.
pub(crate) const AT_ONCE: usize = 64;

/// What is to be done on one host.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) what: What,
    /// The plan as it is sent.
    pub(crate) plan: Vec<u8>,
    /// How many resources it has.
    pub(crate) resources: usize,
    /// Where it came from, for people.
    pub(crate) origin: String,
    pub(crate) check: bool,
    /// From a reviewed preview.
    pub(crate) approved: Vec<Approval>,
    /// What the host is to have from now on.
    pub(crate) assign: Vec<Assigned>,
    /// Names of what it is not to have any more.
    pub(crate) unassign: Vec<String>,
}

impl Job {
    /// How many resources it has, in words.
    pub(crate) fn what_it_has(&self) -> String {
        match self.resources {
            1 => "one resource".to_owned(),
            count => format!("{count} resources"),
        }
    }
}

pub(crate) async fn apply(context: &Context, args: Apply) -> Result<Exit, CliError> {
    let selector = Selector::parse(&args.hosts)?;
    if let Some(plan) = reviewed::named(context, &args)? {
        return reviewed::apply(context, plan, &selector).await;
    }
    let wanted = Wanted::read(context, &args.profiles, &args.values)?;
    let mut client = context.connect().await?;
    let hosts = selector.choose(client.hosts().await?)?;
    if let Some(file) = &args.plan_out {
        return reviewed::preview(context, &mut client, &wanted, hosts, file).await;
    }
    let jobs = wanted.jobs(context, &mut client, &hosts, args.check).await?;
    let mut interrupt = Interrupt::listen();
    if let ([host], [job]) = (hosts.as_slice(), jobs.as_slice()) {
        return one(context, &mut client, host, job, false, &mut interrupt, |_| {}).await;
    }
    let jobs: Vec<_> = hosts.into_iter().zip(jobs).collect();
    let pressed = interrupt.clone_handle();
    on_each(context, jobs, pressed, move |context, (host, job)| {
        let mut client = client.clone();
        let mut interrupt = interrupt.clone_handle();
        async move { one(&context, &mut client, &host, &job, true, &mut interrupt, |_| {}).await }
    })
    .await
}

/// Something that is done on a host.
pub(crate) trait OnHost {
    fn host(&self) -> &HostInfo;
}

impl OnHost for HostInfo {
    fn host(&self) -> &HostInfo {
        self
    }
}

impl OnHost for (HostInfo, Job) {
    fn host(&self) -> &HostInfo {
        &self.0
    }
}

/// Does something on every host, bounded; says each failure; the worst exit wins. Nothing is begun any more
/// once Ctrl-C was pressed.
pub(crate) async fn on_each<T, F, W>(
    context: &Context,
    tasks: Vec<T>,
    interrupt: Interrupt,
    work: F,
) -> Result<Exit, CliError>
where
    T: OnHost,
    F: Fn(Context, T) -> W,
    W: Future<Output = Result<Exit, CliError>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut working = JoinSet::new();
    for task in tasks {
        let (slots, name) = (slots.clone(), task.host().name.clone());
        let work = work(context.clone(), task);
        let interrupt = interrupt.clone_handle();
        working.spawn(async move {
            let _slot = slots.acquire_owned().await;
            if interrupt.is_pressed() {
                return (name, Err(CliError::failed("interrupted", "not started")));
            }
            (name, work.await)
        });
    }
    let mut exit = Exit::Ok;
    while let Some(done) = working.join_next().await {
        let this = match done {
            Ok((_, Ok(exit))) => exit,
            Ok((name, Err(mut error))) => {
                error.message = format!("{name}: {}", error.message);
                context.fail(&error);
                error.exit
            }
            Err(error) => {
                context.fail(&CliError::usage("internal", error.to_string()));
                Exit::Usage
            }
        };
        if this.code() > exit.code() {
            exit = this;
        }
    }
    Ok(exit)
}

/// Does it on one host and follows to the end.
pub(crate) async fn one(
    context: &Context,
    client: &mut Client,
    host: &HostInfo,
    job: &Job,
    prefixed: bool,
    interrupt: &mut Interrupt,
    on_event: impl FnMut(&RunEvent),
) -> Result<Exit, CliError> {
    let resources = job.what_it_has();
    let doing = match (job.check, job.what) {
        (true, _) => "checking",
        (false, What::Reviewed) => "applying what was reviewed of",
        (false, _) => "applying",
    };
    if !context.out.json {
        let (name, origin) = (clean::line(&host.name), clean::line(&job.origin));
        context.out.note(&format!("{name}: {doing} {origin} ({resources})"));
    }
    waits(context, host);
    let order = Order {
        check: job.check,
        origin: job.origin.clone(),
        approved: job.approved.clone(),
        assign: job.assign.clone(),
        unassign: job.unassign.clone(),
        ssh_port: None,
    };
    let updates = client.apply(host.id, job.plan.clone(), order).await?;
    let task = Task { host, what: job.what, check: job.check, prefixed };
    attend(context, client, updates, task, interrupt, on_event).await
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::cli::out::{Manner, Out, Volume};
    use crate::cli::{Env, Io};
    use crate::client::Link;

    fn context() -> Context {
        let io = Io {
            stdin: Box::new(std::io::empty()),
            stdin_is_terminal: false,
            stdout: Box::new(std::io::sink()),
            stderr: Box::new(std::io::sink()),
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        };
        let here = std::path::Path::new("/");
        Context {
            env: Env::of(&[], here, here),
            out: Out::new(io, Manner { json: false, volume: Volume::Quiet, no_color: true, progress: false }),
            state_dir: None,
        }
    }

    pub(crate) fn host(name: &str) -> HostInfo {
        HostInfo {
            id: postern_proto::ids::HostId::generate(),
            name: name.into(),
            ssh_address: String::new(),
            labels: Default::default(),
            link: Link::Up,
            agent_version: String::new(),
            os_id: String::new(),
            os_version: String::new(),
            arch: String::new(),
            hostname: String::new(),
            last_seen_ms: 0,
            peer: String::new(),
            detail: String::new(),
            vars: Default::default(),
            profiles: Vec::new(),
            also_at: Vec::new(),
            room: Default::default(),
            ssh: Default::default(),
        }
    }

    #[tokio::test]
    async fn nothing_is_begun_after_ctrl_c() {
        let begun = Arc::new(AtomicUsize::new(0));
        let count = begun.clone();
        let hosts = (0..3).map(|n| host(&format!("h{n}"))).collect();
        let context = context();
        let exit = on_each(&context, hosts, Interrupt::pressed(), move |_, _| {
            let begun = count.clone();
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                Ok(Exit::Ok)
            }
        });
        assert_eq!(exit.await.unwrap(), Exit::Failed);
        assert_eq!(begun.load(Ordering::Relaxed), 0);
    }
}
