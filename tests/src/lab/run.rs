//! A lab: the hosts of one process, with a network of their own.
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::error::{LabError, Result};
use super::guest;
use super::host::Host;
use super::image::{self, ImageInfo};
use super::internet::{self, Internet};
use super::net::{self, MAX_SLOTS, Net, SLOT_BASE};
use super::peer::{MAX_PEERS, Peer};
use super::requirements::requirements;
use super::spec::{Flavour, HostSpec, Image, VmSpec};
use super::store::{HostRecord, Lock, MAX_RUNS, Owner, Places, RECORD_VERSION, RunRecord, load, save};
use super::supervise;
use super::sys::{Cmd, make_dir, read_text, wait_exit, write_file};
use super::teardown;
use super::vm;

/// A lab of throw-away hosts. Clones share it; it is removed with its hosts when the last clone and the last host
/// are dropped, and also when the process dies in any way.
#[derive(Debug, Clone)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) places: Places,
    pub(super) net: Net,
    pub(super) kept: bool,
    nonce: u64,
    slots: Mutex<Vec<u8>>,
    peers: AtomicU8,
    guardian: Mutex<Option<Child>>,
    internet: Mutex<Option<Internet>>,
    gone: AtomicBool,
}

/// One host as the lab's records have it.
#[derive(Debug, Clone)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// The run it belongs to.
    pub run: u8,
    /// The image it was made from.
    pub image: Image,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its ULA.
    pub v6: Ipv6Addr,
    /// Made by the command, so it stays until destroyed.
    pub kept: bool,
    /// Process that made it.
    pub owner: u32,
    /// Whether the guest runs now.
    pub running: bool,
}

impl Lab {
    /// A lab that ends with this process. Clears up first what dead processes left behind.
    pub fn open() -> Result<Lab> {
        Self::make_run(false)
    }

    /// A lab whose hosts stay until they are destroyed by name.
    pub fn open_kept() -> Result<Lab> {
        Self::make_run(true)
    }

    fn make_run(kept: bool) -> Result<Lab> {
        let missing = requirements();
        if !missing.is_empty() {
            return Err(LabError::Missing(missing));
        }
        let places = Places::from_env();
        // What cannot be removed is in the way of whoever sweeps, not of a lab with another index.
        if let Err(e) = teardown::sweep(&places) {
            super::warn(&format!("clearing up after a dead lab: {e}"));
        }
        let nonce = rand::random();
        let (index, lock) = claim(&places, kept, nonce)?;
        let inner = Inner {
            places,
            net: Net { run: index },
            kept,
            nonce,
            slots: Mutex::new(Vec::new()),
            peers: AtomicU8::new(0),
            guardian: Mutex::new(None),
            internet: Mutex::new(None),
            gone: AtomicBool::new(false),
        };
        // From here on dropping `inner` clears up; it takes the lock itself.
        let made = inner.start();
        drop(lock);
        match made {
            Ok(()) => Ok(Lab { inner: Arc::new(inner) }),
            Err(e) => {
                inner.destroy()?;
                Err(e)
            }
        }
    }

    /// Makes and starts a host. It is booting when this returns; see [`Host::wait_ssh`] and [`Host::wait_booted`].
    pub fn make(&self, spec: HostSpec) -> Result<Host> {
        spec.check()?;
        if spec.image.flavour == Flavour::Kernel {
            return Err(LabError::Invalid(format!("{} is for virtual machines: use make_vm", spec.image)));
        }
        self.make_host(&spec, None)
    }

    /// Makes a virtual machine and switches it on. It is booting when this returns, for half a minute or so.
    pub fn make_vm(&self, spec: VmSpec) -> Result<Host> {
        spec.check()?;
        self.make_host(&spec.host, Some(&spec))
    }

    fn make_host(&self, spec: &HostSpec, machine: Option<&VmSpec>) -> Result<Host> {
        let inner = &self.inner;
        let (places, run) = (&inner.places, inner.net.run);
        let base = image::ensure(places, spec.image)?;
        let vm = machine.map(|machine| vm::record(machine, &base)).transpose()?;
        let internet = spec.internet.then(|| self.internet()).transpose()?;
        let slot = inner.take_slot()?;
        let dir = places.host(run, &spec.name);
        make_dir(places.run(run).join("hosts"))?;
        std::fs::create_dir(&dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                LabError::Invalid(format!("this lab has a host {} already", spec.name))
            }
            _ => LabError::io("make the folder", &dir)(e),
        })?;
        let record = HostRecord {
            version: RECORD_VERSION,
            run,
            slot,
            name: spec.name.clone(),
            image: spec.image,
            v4: inner.net.v4(SLOT_BASE + slot),
            v6: inner.net.v6(SLOT_BASE + slot),
            no_systemd: spec.no_systemd,
            read_only_root: spec.read_only_root,
            docker: spec.docker,
            vm,
        };
        let make = || {
            save(&dir.join("host.json"), &record)?;
            guest::mount(&dir, &[&base], spec.disk_limit)?;
            let lab_key = read_text(self.public_key())?;
            let keys = guest::populate(&dir, &record, spec, &lab_key, inner.nonce, internet.as_ref())?;
            if let Some(machine) = machine {
                vm::make_disk(&dir, &record, machine)?;
            }
            save(&dir.join("host-keys.json"), &keys)?;
            // Counting starts before the first boot, so that the count covers the host's whole life.
            net::packets_to(inner.net, &record, Host::SSH_PORT)?;
            let host = Host::attach(Some(Arc::clone(inner)), places.clone(), record.clone(), keys)?;
            host.start()?;
            Ok(host)
        };
        make().inspect_err(|_| {
            if let Err(e) = teardown::host(places, run, &spec.name) {
                super::warn(&format!("clearing up after a host that could not be made: {e}"));
            }
        })
    }

    /// Somebody else on this lab's network, with addresses that nobody had before.
    pub fn peer(&self) -> Result<Peer> {
        let next = |made: u8| (made < MAX_PEERS).then_some(made + 1);
        let made = self.inner.peers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        let made =
            made.map_err(|_| LabError::Invalid(format!("this lab has made {MAX_PEERS} peers already")))?;
        Peer::make(Arc::clone(&self.inner), made + 1)
    }

    /// The small internet of this lab, which is started first when it does not run. It ends with the lab. Hosts made
    /// with [`HostSpec::internet`] are led to it; others see nothing of it.
    pub fn internet(&self) -> Result<Internet> {
        let mut running = self.inner.internet.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(running.clone());
        }
        let started = Internet::start(&self.inner.places, self.inner.net, internet::DAYS)?;
        Ok(running.insert(started).clone())
    }

    /// Starts it with an ACME server whose certificates are good for so many days only. It must not run yet.
    pub fn internet_for(&self, days: u32) -> Result<Internet> {
        let mut running = self.inner.internet.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_some() {
            return Err(LabError::Invalid("the small internet of this lab runs already".to_owned()));
        }
        Ok(running.insert(Internet::start(&self.inner.places, self.inner.net, days)?).clone())
    }

    /// The cached root folder of an image, built first if need be.
    pub fn build_image(&self, image: Image) -> Result<PathBuf> {
        image::ensure(&self.inner.places, image)
    }

    /// Opens a TCP port of the gateway addresses to this lab's hosts. Until then they reach none.
    pub fn allow_port(&self, port: u16) -> Result<()> {
        net::open_port(self.inner.net, "tcp", port, true)
    }

    /// Shuts a port that [`Lab::allow_port`] opened.
    pub fn deny_port(&self, port: u16) -> Result<()> {
        net::open_port(self.inner.net, "tcp", port, false)
    }

    /// The machine's address as this lab's hosts see it; listen here.
    pub fn gateway_v4(&self) -> Ipv4Addr {
        self.inner.net.gateway_v4()
    }

    /// The same for IPv6.
    pub fn gateway_v6(&self) -> Ipv6Addr {
        self.inner.net.gateway_v6()
    }

    /// The private key that every host of this lab accepts, for root and for each user.
    pub fn private_key(&self) -> PathBuf {
        key_path(&self.inner.places, self.inner.net.run)
    }

    /// The public half of [`Lab::private_key`].
    pub fn public_key(&self) -> PathBuf {
        self.private_key().with_extension("pub")
    }

    /// This lab's number on this machine; part of all names it uses.
    pub fn run(&self) -> u8 {
        self.inner.net.run
    }

    /// Removes the lab with all its hosts now, instead of when it is dropped.
    pub fn destroy_all(&self) -> Result<()> {
        self.inner.destroy()
    }

    /// All hosts of all labs on this machine.
    pub fn list() -> Result<Vec<HostInfo>> {
        let places = Places::from_env();
        let mut found = Vec::new();
        for run in places.indexes() {
            let Some(owner) = load::<RunRecord>(&places.run(run).join("run.json"))? else { continue };
            for name in places.hosts(run) {
                let Some(r) = load::<HostRecord>(&places.host(run, &name).join("host.json"))? else {
                    continue;
                };
                let host = Host::attach(None, places.clone(), r.clone(), Vec::new())?;
                found.push(HostInfo {
                    name,
                    run,
                    image: r.image,
                    v4: r.v4,
                    v6: r.v6,
                    kept: owner.kept,
                    owner: owner.owner.pid,
                    running: host.init_pid().is_some(),
                });
            }
        }
        Ok(found)
    }

    /// A host made earlier, by any lab; dropping it does nothing to the host. Those of the command come first.
    pub fn find(name: &str) -> Result<Host> {
        let mut hosts: Vec<HostInfo> = Self::list()?.into_iter().filter(|h| h.name == name).collect();
        hosts.sort_by_key(|h| !h.kept);
        let Some(info) = hosts.first() else {
            return Err(LabError::Invalid(format!(
                "there is no host {name}; `lab list` shows those there are"
            )));
        };
        let places = Places::from_env();
        let dir = places.host(info.run, name);
        let lost = || LabError::Invalid(format!("the host {name} was removed just now"));
        let record = load(&dir.join("host.json"))?.ok_or_else(lost)?;
        let keys = load(&dir.join("host-keys.json"))?.unwrap_or_default();
        Host::attach(None, places, record, keys)
    }

    /// Removes a host that the command made, and its lab when it was the last one there.
    pub fn destroy(name: &str) -> Result<()> {
        let Some(info) = Self::list()?.into_iter().find(|h| h.name == name && h.kept) else {
            return Err(LabError::Invalid(format!("there is no host {name} made by `lab make`")));
        };
        let places = Places::from_env();
        let _lock = places.lock_run(info.run)?;
        teardown::host(&places, info.run, name)?;
        if places.hosts(info.run).is_empty() { teardown::run(&places, info.run) } else { Ok(()) }
    }

    /// Removes what labs of dead processes left behind; says which runs.
    pub fn sweep() -> Result<Vec<u8>> {
        teardown::sweep(&Places::from_env())
    }

    /// All images and whether they are built.
    pub fn images() -> Result<Vec<ImageInfo>> {
        let places = Places::from_env();
        let all = Image::ALL.iter().chain([&Image::SERVERS]).chain(&Image::OF_MACHINES);
        all.map(|image| image::info(&places, *image)).collect()
    }

    /// Where in the cache that lies which the small internet serves, and whether it has been made.
    pub fn internet_info() -> Result<(PathBuf, bool)> {
        internet::info(&Places::from_env())
    }

    /// Makes what the small internet serves, without opening a lab.
    pub fn prepare_internet() -> Result<()> {
        internet::prepare(&Places::from_env())
    }

    /// Builds an image without opening a lab.
    pub fn prepare_image(image: Image) -> Result<PathBuf> {
        image::ensure(&Places::from_env(), image)
    }
}

pub(super) fn key_path(places: &Places, run: u8) -> PathBuf {
    places.run(run).join("id_ed25519")
}

/// Takes a free index, looking from a random one on so that labs seldom meet. The lock is held until the run is
/// complete, so that a sweep leaves it alone.
fn claim(places: &Places, kept: bool, nonce: u64) -> Result<(u8, Lock)> {
    make_dir(places.runs())?;
    let first = rand::random_range(0..MAX_RUNS);
    for index in (0..MAX_RUNS).map(|n| (first + n) % MAX_RUNS + 1) {
        let dir = places.run(index);
        if dir.exists() {
            continue;
        }
        let Some(lock) = places.try_lock_run(index)? else { continue };
        if dir.exists() || !net::range_is_free(Net { run: index })? {
            continue;
        }
        make_dir(&dir)?;
        let record = RunRecord { version: RECORD_VERSION, index, nonce, owner: Owner::me()?, kept };
        save(&dir.join("run.json"), &record)?;
        return Ok((index, lock));
    }
    Err(LabError::Invalid(format!("all {MAX_RUNS} address ranges of the lab are taken; see `lab list`")))
}

impl Inner {
    fn start(&self) -> Result<()> {
        let run = self.net.run;
        if !self.kept {
            let child = supervise::spawn_guardian(&self.places, run, self.nonce)?;
            *self.guardian.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        }
        net::forward_on(&self.places)?;
        net::create(self.net)?;
        let key = key_path(&self.places, run);
        let keygen =
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "postern-lab", "-f"].map(AsRef::as_ref);
        Cmd::new(keygen.into_iter().chain([key.as_os_str()])).run()?;
        Ok(())
    }

    fn take_slot(&self) -> Result<u8> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (1..=MAX_SLOTS).find(|s| !slots.contains(s));
        let slot =
            free.ok_or_else(|| LabError::Invalid(format!("this lab has made {MAX_SLOTS} hosts already")))?;
        // Never given out twice: a new host at an old address would confuse a neighbour and a known_hosts file.
        slots.push(slot);
        Ok(slot)
    }

    fn destroy(&self) -> Result<()> {
        if self.gone.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let outcome =
            self.places.lock_run(self.net.run).and_then(|_lock| teardown::run(&self.places, self.net.run));
        if let Some(mut child) = self.guardian.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(child.stdin.take());
            if !wait_exit(rustix::process::Pid::from_child(&child), Duration::from_secs(90)) {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
        outcome
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(e) = self.destroy() {
            super::warn(&format!("the lab could not be removed: {e}; `lab list` shows what is left"));
        }
    }
}

/// Writes the file that ssh checks a host by.
pub(super) fn write_known_hosts(path: &Path, record: &HostRecord, keys: &[guest::HostKey]) -> Result<()> {
    let lines = keys.iter().map(|k| format!("{},{} {} {}\n", record.v4, record.v6, k.algorithm, k.key));
    write_file(path, lines.collect::<String>(), 0o600)
}
