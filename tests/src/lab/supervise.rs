//! The two small processes beside a lab: the supervisor boots one host again and again, the guardian clears up
//! after a lab whose process died. Both are hidden commands of the `lab` program.
use std::fs::File;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::cgroup::Hierarchies;
use super::error::{LabError, Result};
use super::net::{Net, rebuild_host, rebuild_tap};
use super::recipe::TRIVIAL_INIT_PATH;
use super::store::{HostRecord, Owner, Places, RunRecord, SupervisorRecord, load, save};
use super::sys::SAFE_PATH;
use super::teardown;
use super::vm;

/// With this status nspawn says that the guest asked for a reboot.
const REBOOT: i32 = 133;

/// System calls that containers of Docker need and nspawn forbids otherwise.
const SYSCALLS: &str = "add_key keyctl bpf perf_event_open";

/// Starts a hidden command of the `lab` program, in a process group of its own so that a Ctrl-C meant for us does
/// not end it.
pub(super) fn spawn(places: &Places, args: &[&str], log: Option<File>, stdin: Stdio) -> Result<Child> {
    let program = program()?;
    let out = |file: &Option<File>| match file {
        Some(f) => f.try_clone().map_or_else(|_| Stdio::null(), Stdio::from),
        None => Stdio::null(),
    };
    Command::new(&program)
        .args(args)
        .env_clear()
        .env("PATH", SAFE_PATH)
        .env("POSTERN_LAB_STATE", &places.state)
        .env("POSTERN_LAB_CACHE", &places.cache)
        .current_dir("/")
        .stdin(stdin)
        .stdout(out(&log))
        .stderr(out(&log))
        .process_group(0)
        .spawn()
        .map_err(|source| LabError::Start {
            argv: format!("{} {}", program.display(), args.join(" ")),
            source,
        })
}

/// The `lab` program: given by `POSTERN_LAB_BIN`, this very program, or one beside it (tests lie one folder deeper).
fn program() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("POSTERN_LAB_BIN") {
        return Ok(given.into());
    }
    let me = std::env::current_exe().map_err(LabError::io("find", "this program"))?;
    let folders = me.ancestors().skip(1).take(2);
    let found = folders.map(|dir| dir.join("lab")).find(|p| p.is_file());
    found.ok_or_else(|| {
        let text = "the program `lab` is not built: run `cargo build -p postern-tests --bin lab`, \
                    or name it in POSTERN_LAB_BIN";
        LabError::Invalid(text.to_owned())
    })
}

/// Boots the host, whether a container or a virtual machine, until it powers off or fails. Returns what is to be the exit status of the process.
pub fn supervise(run: u8, name: &str) -> Result<()> {
    let places = Places::from_env();
    let dir = places.host(run, name);
    // Under the lock, so that whoever removes the run either finds our control group or has left us no host to boot.
    let lock = places.lock_run(run)?;
    let path = dir.join("host.json");
    let record: HostRecord =
        load(&path)?.ok_or_else(|| LabError::Invalid(format!("there is no host at {}", path.display())))?;
    let unique = Net { run }.unique(name);
    let groups =
        Hierarchies::find().ok_or_else(|| LabError::Invalid("cgroup v2 is not mounted".to_owned()))?;
    groups.enter(&unique)?;
    drop(lock);
    let state = dir.join("supervisor.json");
    let mut me = SupervisorRecord { owner: Owner::me()?, boots: 0, ended: None };
    loop {
        // Anew each time: what a guest did to its network must not survive a reboot.
        let mut command = match &record.vm {
            Some(machine) => {
                rebuild_tap(&record)?;
                vm::qemu(&dir, &record, machine)
            }
            None => {
                rebuild_host(&record)?;
                nspawn(&dir, &record, &unique)
            }
        };
        me.boots += 1;
        save(&state, &me)?;
        let program = command.get_program().to_string_lossy().into_owned();
        let status = command.status().map_err(|source| LabError::Start { argv: program.clone(), source })?;
        // A virtual machine that reboots does so inside its emulator, which ends with the machine.
        if record.vm.is_some() || status.code() != Some(REBOOT) {
            me.ended = Some(match (status.code(), status.signal()) {
                (Some(0), _) => "powered off".to_owned(),
                (Some(code), _) => format!("{program} ended with {code}"),
                (None, signal) => format!("{program} was killed by signal {}", signal.unwrap_or_default()),
            });
            return save(&state, &me);
        }
    }
}

fn nspawn(dir: &Path, record: &HostRecord, unique: &str) -> Command {
    let mut command = Command::new("systemd-nspawn");
    command
        .env_clear()
        .env("PATH", SAFE_PATH)
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
        .args(["--quiet", "--register=no", "--keep-unit", "--settings=no", "--link-journal=no"])
        .args(["--resolv-conf=off", "--timezone=off", "--console=read-only"])
        .args(["--capability=all", "--drop-capability=CAP_SYS_TIME"])
        .arg(format!("--system-call-filter={SYSCALLS}"))
        .arg("--bind=/dev/net/tun")
        .arg(format!("--machine={unique}"))
        .arg(format!("--hostname={}", record.name))
        .arg(format!("--network-namespace-path=/run/netns/{unique}"))
        .arg(format!("--directory={}", dir.join("root").display()))
        .stdin(Stdio::null());
    if record.docker {
        for folder in ["docker", "containerd"] {
            command.arg(format!("--bind={}:/var/lib/{folder}", dir.join(folder).display()));
        }
    }
    if record.read_only_root {
        command.arg("--read-only");
    }
    if record.no_systemd {
        command.args(["--as-pid2", TRIVIAL_INIT_PATH]);
    } else {
        command.arg("--boot");
    }
    command
}

/// What guardians of all labs could not clear up, as they said it: nobody else is there to be told.
pub fn guardian_log() -> String {
    std::fs::read_to_string(log_path(&Places::from_env())).unwrap_or_default()
}

fn log_path(places: &Places) -> PathBuf {
    places.state.join("guardian.log")
}

/// Starts the guardian of a run; it lets go of the run when the pipe to it closes.
pub(super) fn spawn_guardian(places: &Places, run: u8, nonce: u64) -> Result<Child> {
    let path = log_path(places);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let log = log.map_err(LabError::io("open", &path))?;
    spawn(places, &["guardian", &run.to_string(), &nonce.to_string()], Some(log), Stdio::piped())
}

/// Waits until the pipe on standard input closes, which the kernel does when the lab's process dies in any way,
/// and then removes the run if it is still there.
pub fn guard(run: u8, nonce: u64) -> Result<()> {
    let mut byte = [0; 1];
    let mut stdin = std::io::stdin();
    while matches!(stdin.read(&mut byte), Ok(1..)) {}
    let places = Places::from_env();
    let _lock = places.lock_run(run)?;
    match load::<RunRecord>(&places.run(run).join("run.json"))? {
        Some(record) if record.nonce == nonce => teardown::run_of_dead(&places, run),
        // Removed by its owner, as it should be.
        _ => Ok(()),
    }
}
