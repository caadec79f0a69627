//! `postern-agent supervise`: runs one process, records its output and its end, and outlives the agent.

mod child;
mod job;
mod recorder;
mod redact;
pub mod spool;

pub use job::{Exit, Job, JobUser, Lost, Started};
pub(crate) use redact::Redact;

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

/// The longest job, bytes: a plan's command and the secrets of its run, with room for their escapes.
const MAX_JOB_BYTES: u64 = 16 << 20;
/// The exit code when the job could not be begun; why is on stdout, after an `E`.
const NOT_BEGUN: i32 = 70;

/// Why a job was not begun.
#[derive(Debug, thiserror::Error)]
enum SuperviseError {
    #[error("cannot read the job from stdin: {0}")]
    Read(io::Error),
    #[error("the job is not valid: {0}")]
    Job(serde_json::Error),
    #[error("cannot make the spool {0}: {1}")]
    Spool(String, io::Error),
    #[error("cannot listen for SIGTERM: {0}")]
    Signal(io::Error),
    #[error("cannot watch the process: {0}")]
    Watch(io::Error),
}

/// Entry of `postern-agent supervise`: the job is JSON on stdin. Gives the exit code of this process.
#[must_use]
pub fn main_supervise() -> i32 {
    match supervise() {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stdout(), "E{error}");
            NOT_BEGUN
        }
    }
}

fn supervise() -> Result<(), SuperviseError> {
    // A session of its own: nothing that ends the agent ends this.
    let _ = rustix::process::setsid();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // The agent may be protected from the kernel's memory killer; what it runs is not.
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    // A full pipe must not stop the recording, whoever reads it.
    if let Ok(flags) = rustix::fs::fcntl_getfl(io::stdout()) {
        let _ = rustix::fs::fcntl_setfl(io::stdout(), flags | rustix::fs::OFlags::NONBLOCK);
    }

    let mut text = Vec::new();
    io::stdin().lock().take(MAX_JOB_BYTES).read_to_end(&mut text).map_err(SuperviseError::Read)?;
    let job: Job = serde_json::from_slice(&text).map_err(SuperviseError::Job)?;
    let (terminate, on_signal) = UnixStream::pair().map_err(SuperviseError::Signal)?;
    signal_hook::low_level::pipe::register(rustix::process::Signal::TERM.as_raw(), on_signal)
        .map_err(SuperviseError::Signal)?;
    let pid = std::process::id();
    let started = Started { pid, start_ticks: crate::sys::start_ticks(pid).unwrap_or(0) };
    let spool = spool::Writer::create(&job.spool, &started)
        .map_err(|error| SuperviseError::Spool(job.spool.display().to_string(), error))?;
    child::run(&job, spool, terminate).map_err(SuperviseError::Watch)
}
