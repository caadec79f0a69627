//! The thread that owns a connection: takes what has queued up, executes it in one transaction, commits,
//! and only then answers. One fsync serves all who wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::{OpError, StoreError};

/// Operations that may wait.
const QUEUE: usize = 1024;
/// Operations that share a transaction at most.
const GROUP: usize = 256;
/// Nobody waits longer for the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a thread does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// One transaction for all that has queued up.
    GroupCommit,
    /// One snapshot for each.
    Read,
}

trait Job: Send {
    /// True when it did what it was to do.
    fn run(&mut self, db: &Connection) -> bool;
    /// Tells the waiter. `lost` is why the transaction it was in came to nothing.
    fn answer(self: Box<Self>, lost: Option<&Arc<rusqlite::Error>>);
}

struct Waiting<T, F> {
    action: &'static str,
    /// Set by the first of two: the thread that begins with it, or the waiter that gives up.
    taken: Arc<AtomicBool>,
    op: Option<F>,
    result: Option<Result<T, OpError>>,
    answer: oneshot::Sender<Result<T, OpError>>,
}

impl<T, F> Job for Waiting<T, F>
where
    T: Send,
    F: FnOnce(&Connection) -> Result<T, OpError> + Send,
{
    fn run(&mut self, db: &Connection) -> bool {
        // Nobody waits for it any more, and was told that nothing was written.
        if self.answer.is_closed() || self.taken.swap(true, Ordering::AcqRel) {
            return false;
        }
        let Some(op) = self.op.take() else { return false };
        let result = op(db).map_err(|error| match error {
            OpError::Database { source, .. } => OpError::Database { action: self.action, source },
            error => error,
        });
        let done = result.is_ok();
        self.result = Some(result);
        done
    }

    fn answer(self: Box<Self>, lost: Option<&Arc<rusqlite::Error>>) {
        let lost = lost.map(|source| OpError::Database { action: self.action, source: Arc::clone(source) });
        let result = match (self.result, lost) {
            (Some(Err(error)), _) => Err(error),
            (_, Some(lost)) => Err(lost),
            (Some(result), None) => result,
            (None, None) => Err(OpError::Closed),
        };
        // Whoever asked may have gone; what was committed stays.
        let _ = self.answer.send(result);
    }
}

enum Message {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<()>),
}

/// The way to a thread.
#[derive(Clone)]
pub(super) struct Queue(mpsc::Sender<Message>);

impl Queue {
    pub(super) fn start(name: &str, db: Connection, mode: Mode) -> Result<Self, StoreError> {
        let (send, receive) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || serve(&db, receive, mode)).map_err(
            |source| StoreError::Io { action: "starting a thread for", path: "the database".into(), source },
        )?;
        Ok(Self(send))
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        op: impl FnOnce(&Connection) -> Result<T, OpError> + Send + 'static,
    ) -> Result<T, OpError> {
        let (answer, mut wait) = oneshot::channel();
        let taken = Arc::new(AtomicBool::new(false));
        let job = Waiting { action, taken: Arc::clone(&taken), op: Some(op), result: None, answer };
        let send = self.0.send_timeout(Message::Job(Box::new(job)), PATIENCE).await;
        send.map_err(|error| match error {
            mpsc::error::SendTimeoutError::Timeout(_) => OpError::Busy(action),
            mpsc::error::SendTimeoutError::Closed(_) => OpError::Closed,
        })?;
        let mut answer = tokio::time::timeout(PATIENCE, &mut wait).await;
        // What was begun is waited for once more: its commit may be under way.
        if answer.is_err() && taken.swap(true, Ordering::AcqRel) {
            answer = tokio::time::timeout(PATIENCE, &mut wait).await;
        }
        match answer {
            Ok(answer) => answer.unwrap_or(Err(OpError::Closed)),
            Err(_) => Err(OpError::Busy(action)),
        }
    }

    pub(super) async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send_timeout(Message::Close(done), PATIENCE).await.is_ok() {
            let _ = tokio::time::timeout(PATIENCE, wait).await;
        }
    }
}

fn serve(db: &Connection, mut queue: mpsc::Receiver<Message>, mode: Mode) {
    let mut closing = None;
    while closing.is_none() {
        let Some(first) = queue.blocking_recv() else { break };
        let mut jobs = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Job(job) => jobs.push(job),
                Message::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
            next = if jobs.len() < GROUP { queue.try_recv().ok() } else { None };
        }
        match mode {
            Mode::GroupCommit => commit_together(db, jobs),
            Mode::Read => jobs.into_iter().for_each(|job| read_alone(db, job)),
        }
    }
    if mode == Mode::GroupCommit {
        // The log is folded into the database, so that what remains is one file.
        if let Err(error) = db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, "the write-ahead log could not be folded in; it will be at the next start");
        }
    }
    drop(queue);
    if let Some(done) = closing {
        let _ = done.send(());
    }
}

fn commit_together(db: &Connection, mut jobs: Vec<Box<dyn Job>>) {
    while !jobs.is_empty() {
        let (done, lost) = transaction(db, &mut jobs);
        for job in jobs.drain(..done) {
            job.answer(lost.as_ref());
        }
    }
}

/// Executes jobs from the front until the end or until SQLite gave up the transaction. How many were
/// executed, and why their transaction came to nothing, if it did.
fn transaction(db: &Connection, jobs: &mut [Box<dyn Job>]) -> (usize, Option<Arc<rusqlite::Error>>) {
    if let Err(error) = db.execute_batch("BEGIN IMMEDIATE") {
        return (jobs.len(), Some(Arc::new(error)));
    }
    let alone = jobs.len() == 1;
    for (index, job) in jobs.iter_mut().enumerate() {
        // One that fails must not take its neighbours with it.
        let step = if alone {
            if job.run(db) { Ok(()) } else { db.execute_batch("ROLLBACK; BEGIN IMMEDIATE") }
        } else {
            db.execute_batch("SAVEPOINT op").and_then(|()| {
                let end = if job.run(db) { "RELEASE op" } else { "ROLLBACK TO op; RELEASE op" };
                db.execute_batch(end)
            })
        };
        // A full disk ends the whole transaction, and with it all that was in it.
        if let Err(error) = step {
            let _ = db.execute_batch("ROLLBACK");
            return (index + 1, Some(Arc::new(error)));
        }
    }
    match db.execute_batch("COMMIT") {
        Ok(()) => (jobs.len(), None),
        Err(error) => {
            let _ = db.execute_batch("ROLLBACK");
            (jobs.len(), Some(Arc::new(error)))
        }
    }
}

fn read_alone(db: &Connection, mut job: Box<dyn Job>) {
    if let Err(error) = db.execute_batch("BEGIN") {
        return job.answer(Some(&Arc::new(error)));
    }
    job.run(db);
    let _ = db.execute_batch("COMMIT");
    job.answer(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (Queue, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("t.db")).unwrap();
        db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY)").unwrap();
        (Queue::start("test", db, Mode::GroupCommit).unwrap(), dir)
    }

    async fn count(queue: &Queue) -> i64 {
        queue
            .run("count", |db| Ok(db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn one_that_fails_leaves_its_neighbours() {
        let (queue, _dir) = fresh();
        let insert = |value: i64, fail: bool| {
            let queue = queue.clone();
            async move {
                queue
                    .run("insert", move |db| {
                        db.execute("INSERT INTO t VALUES ($1)", [value])?;
                        if fail { Err(OpError::Fenced) } else { Ok(()) }
                    })
                    .await
            }
        };
        let all: Vec<_> = (0..50).map(|n| insert(n, n % 3 == 0)).collect();
        let results = futures_util::future::join_all(all).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 33);
        assert_eq!(count(&queue).await, 33);
        // The same value twice: the constraint stops the second only.
        let (first, second) = tokio::join!(insert(100, false), insert(100, false));
        assert!(first.is_ok() != second.is_ok());
        assert!(insert(0, false).await.is_ok(), "what failed alone left nothing behind");
        assert_eq!(count(&queue).await, 35);
    }

    /// What was answered with "nothing was written" is not written later.
    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_not_done() {
        let (queue, _dir) = fresh();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let blocker = {
            let queue = queue.clone();
            tokio::spawn(async move {
                let hold = move |_: &Connection| {
                    let _ = began.send(());
                    let _: Result<(), _> = held.recv();
                    Ok(())
                };
                queue.run("holding the thread", hold).await
            })
        };
        begun.await.unwrap();
        let insert = queue.run("insert", |db| Ok(db.execute("INSERT INTO t VALUES (1)", [])?));
        // Queued behind the other, then given up, as after a timeout.
        assert!(tokio::time::timeout(Duration::from_millis(50), insert).await.is_err());
        hold.send(()).unwrap();
        blocker.await.unwrap().unwrap();
        assert_eq!(count(&queue).await, 0);
    }

    #[tokio::test]
    async fn closing_writes_down_what_was_queued() {
        let (queue, dir) = fresh();
        let (done, ()) = tokio::join!(
            queue.run("insert", |db| Ok(db.execute("INSERT INTO t VALUES (1)", [])?)),
            queue.close()
        );
        assert_eq!(done.unwrap(), 1);
        assert!(matches!(queue.run("insert", |_| Ok(())).await, Err(OpError::Closed)));
        let db = Connection::open(dir.path().join("t.db")).unwrap();
        assert_eq!(db.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }
}
