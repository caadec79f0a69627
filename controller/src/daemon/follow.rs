//! Following a run: from the store, woken when something was committed. A slow reader holds up nobody.

use std::sync::Arc;

use postern_proto::ids::RunId;
use postern_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::enrolment::store_status;
use super::hub::Subscription;
use super::shared::Shared;
use crate::store::{RunRecord, UpdateBody};

/// Updates on their way to one reader.
const OUTBOUND: usize = 64;

/// Updates of a run, in order.
pub(crate) type Updates = ReceiverStream<Result<v1::RunUpdate, Status>>;

/// A run as the operator's interface shows it.
pub(crate) fn run_message(run: RunRecord) -> v1::Run {
    v1::Run {
        id: run.id.to_string(),
        host_id: run.host.to_string(),
        host_name: run.host_name,
        state: v1::RunState::from(run.state).into(),
        origin: run.origin,
        check: run.terms.check,
        created_unix_ms: run.created_ms,
        finished_unix_ms: run.finished_ms,
        plan_sha256: run.plan.as_bytes().to_vec().into(),
        message: run.message,
        resumes: run.resumes.map(|run| run.to_string()).unwrap_or_default(),
        undoes: run.undoes.map(|run| run.to_string()).unwrap_or_default(),
        ssh_port: super::ssh_port::message(run.ssh_port).into(),
    }
}

fn update(cursor: u64, kind: v1::run_update::Kind) -> v1::RunUpdate {
    v1::RunUpdate { cursor, kind: Some(kind) }
}

/// The run as it is, what came after `cursor`, what comes, and at the end the run as it ended.
pub(crate) fn follow(shared: Arc<Shared>, run: RunId, cursor: u64) -> Updates {
    // Subscribed before the first look, so that nothing falls in between.
    let changes = shared.hub.runs.subscribe(run);
    spawn(shared, run, cursor, None, changes)
}

/// The same for a run that was just written down and has no update yet. `changes` is from before it was, or
/// the end of one that is over at once would be missed.
pub(crate) fn follow_new(shared: Arc<Shared>, run: RunRecord, changes: Subscription<RunId>) -> Updates {
    spawn(shared, run.id, 0, Some(run), changes)
}

fn spawn(
    shared: Arc<Shared>,
    run: RunId,
    cursor: u64,
    known: Option<RunRecord>,
    changes: Subscription<RunId>,
) -> Updates {
    let (out, stream) = mpsc::channel(OUTBOUND);
    let stop = shared.stop_sessions.clone();
    tokio::spawn(async move {
        let result = tokio::select! {
            result = pump(&shared, run, cursor, known, changes, &out) => result,
            () = out.closed() => Ok(()),
            () = stop.cancelled() => Err(Status::unavailable("the controller stops; follow the run again later")),
        };
        if let Err(status) = result {
            let _ = out.send(Err(status)).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn pump(
    shared: &Shared,
    run: RunId,
    mut cursor: u64,
    known: Option<RunRecord>,
    mut changes: Subscription<RunId>,
    out: &mpsc::Sender<Result<v1::RunUpdate, Status>>,
) -> Result<(), Status> {
    let mut greeted = false;
    if let Some(known) = known {
        send(out, update(cursor, v1::run_update::Kind::Run(run_message(known)))).await?;
        greeted = true;
        changes.changed().await;
    }
    loop {
        let page = shared.store.follow(run, cursor).await.map_err(|error| store_status(&error))?;
        if !greeted {
            greeted = true;
            send(out, update(cursor, v1::run_update::Kind::Run(run_message(page.run.clone())))).await?;
        }
        for item in page.updates {
            cursor = item.cursor;
            let kind = match item.body {
                UpdateBody::Event(event) => v1::run_update::Kind::Event(event.into()),
                UpdateBody::Log(frame) => v1::run_update::Kind::Log(frame.into()),
            };
            send(out, update(cursor, kind)).await?;
        }
        if page.complete {
            return send(out, update(cursor, v1::run_update::Kind::Run(run_message(page.run)))).await;
        }
        if !page.more {
            changes.changed().await;
        }
    }
}

/// Waits for the reader as long as it takes: it is bounded by its connection, which is kept alive by pings.
async fn send(
    out: &mpsc::Sender<Result<v1::RunUpdate, Status>>,
    update: v1::RunUpdate,
) -> Result<(), Status> {
    out.send(Ok(update)).await.map_err(|_| Status::cancelled("the reader went away"))
}
