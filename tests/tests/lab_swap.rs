//! Swap files and small machines, on a virtual machine: a container's kernel takes no swap from it, and has the
//! machine's clock.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod contract;

use anyhow::Result;
use contract::{Case, Undo, keeps};
use postern_tests::lab::{Host, Release, VmSpec};
use postern_tests::rig::{Rig, VM_BOOT_DEADLINE, apply, said};

/// Little enough to lack something, MiB.
const MEMORY_MB: u32 = 512;

/// A machine that the agent has taken over.
fn small(rig: &mut Rig) -> Result<Host> {
    rig.serve()?;
    let mut spec = VmSpec::new("swap", Release::Trixie);
    spec.memory_mb = MEMORY_MB;
    let host = rig.vm_with(spec)?;
    host.wait_booted(VM_BOOT_DEADLINE)?;
    rig.up(&host, &[])?.expect(0);
    Ok(host)
}

#[track_caller]
fn applied(rig: &Rig, host: &Host, resources: &str, want: &str) -> Result<()> {
    let ended = apply(rig, host, resources, &[])?.expect(0);
    assert!(ended.stdout.contains(want), "want {want}: {ended:?}");
    Ok(())
}

#[test]
fn trap_29_a_small_machine_is_given_swap() -> Result<()> {
    let Some(mut rig) = Rig::open_vm() else { return Ok(()) };
    let host = small(&mut rig)?;
    wants_memory(&rig, &host)?;
    keeps_the_contract(&rig, &host)?;
    beside_others(&rig, &host)?;
    over_a_reboot(&rig, &host)?;
    wrong_clock(&rig, &host)
}

/// What is lacking is told with what to do; and done, it is enough.
fn wants_memory(rig: &Rig, host: &Host) -> Result<()> {
    let preflight = "  - preflight: {name: lab, memory_mb: 700, clock_s: 60}\n";
    let ended = apply(rig, host, preflight, &[])?.expect(1);
    let memory = host.sh("awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo")?;
    let want = format!(
        "one thing is lacking, and nothing was installed: memory: the host has {memory} MB and no swap, together 700 MB \
         are wanted: give it swap, `swap: {{size_mb: 512}}` before this"
    );
    assert!(said(&ended).contains(&want), "{want} is not in {ended:?}");
    let both = format!("  - swap: {{size_mb: 512}}\n{preflight}");
    let check = apply(rig, host, &both, &["--check"])?.expect(0);
    assert!(said(&check).contains("+/swapfile: 512 MB"), "{check:?}");
    applied(rig, host, &both, "1 changed")?;
    applied(rig, host, &both, "2 unchanged")?;
    let swap = "awk '$1 == \"/swapfile\" { print $3 }' /proc/swaps; stat -c '%a %u %s' /swapfile";
    assert_eq!(host.sh(swap)?, "524284\n600 0 536870912");
    // None of it is a hole.
    host.sh("test $(($(stat -c %b /swapfile) * 512)) -ge 536870912")?;
    // Another size is another file, and the one in use is taken out of use first.
    applied(rig, host, "  - swap: {size_mb: 64}\n", "1 changed")?;
    assert_eq!(host.sh(swap)?, "65532\n600 0 67108864");
    applied(rig, host, "  - swap: {state: absent}\n", "1 changed")?;
    gone(host)
}

fn gone(host: &Host) -> Result<()> {
    host.sh("! grep -q /swapfile /proc/swaps")?;
    assert_eq!(host.sh("ls / /etc/systemd/system /etc/systemd/system/swap.target.wants 2>/dev/null | grep -i swapfile || true")?, "");
    Ok(())
}

/// The next plan is without it.
fn forget(rig: &Rig, host: &Host, profile: &str) -> Result<()> {
    rig.run(&["host", "unassign", &host.name, profile])?.expect(0);
    Ok(())
}

fn keeps_the_contract(rig: &Rig, host: &Host) -> Result<()> {
    forget(rig, host, "lab")?;
    let case = Case {
        kind: "swap",
        before: ":",
        resource: "swap: {size_mb: 64, path: /var/lib/swap-1}",
        effect: "grep -q '^/var/lib/swap-1 .*[[:space:]]65532' /proc/swaps && test $(stat -c %a /var/lib/swap-1) = 600 && \
                 systemctl is-enabled 'var-lib-swap\\x2d1.swap'",
        undo: Undo::Whole,
    };
    keeps(rig, host, 1, &case).map_err(anyhow::Error::msg)?;
    let absent = Case {
        before: "grep -q '^/var/lib/swap-1 ' /proc/swaps",
        resource: "swap: {state: absent, path: /var/lib/swap-1}",
        effect: "! grep -q swap-1 /proc/swaps && test ! -e /var/lib/swap-1",
        ..case
    };
    keeps(rig, host, 2, &absent).map_err(anyhow::Error::msg)?;
    forget(rig, host, "contract")?;
    // The undo of its undo took it away again.
    host.sh("test ! -e /var/lib/swap-1 && ! ls /var/lib/*.postern-new /*.postern-new 2>/dev/null")?;
    Ok(())
}

/// Swap of somebody else's counts, and stays as it is.
fn beside_others(rig: &Rig, host: &Host) -> Result<()> {
    host.sh(
        "dd if=/dev/zero of=/theirs bs=1M count=96 status=none; chmod 600 /theirs; mkswap -q /theirs; swapon /theirs
         echo precious >/data; echo precious >/swapfile",
    )?;
    applied(rig, host, "  - swap: {size_mb: 96, path: /own}\n", "1 unchanged")?;
    host.sh("test ! -e /own && grep -q '^/theirs ' /proc/swaps")?;
    // A file that is no swap file is nobody's to take.
    let ended = apply(rig, host, "  - swap: {size_mb: 128}\n", &[])?.expect(1);
    assert!(said(&ended).contains("/swapfile is a file and no swap file: remove it"), "{ended:?}");
    assert_eq!(host.sh("cat /swapfile; rm /swapfile")?, "precious");
    // Too large for the disk: told before a byte is written.
    let ended = apply(rig, host, "  - swap: {size_mb: 100000}\n", &[])?.expect(1);
    assert!(said(&ended).contains("100000 MB of swap must leave 512 MB of them"), "{ended:?}");
    host.sh("! ls /swapfile* 2>/dev/null && swapoff /theirs && rm /theirs")?;
    Ok(())
}

fn over_a_reboot(rig: &Rig, host: &Host) -> Result<()> {
    applied(rig, host, "  - swap: {size_mb: 64}\n", "1 changed")?;
    host.reboot()?;
    host.wait_booted(VM_BOOT_DEADLINE)?;
    host.sh("grep -q '^/swapfile .*[[:space:]]65532' /proc/swaps")?;
    postern_tests::rig::wait_for("the agent is back", VM_BOOT_DEADLINE, || {
        Ok(said(&rig.run(&["hosts"])?).contains(" up "))
    })?;
    applied(rig, host, "  - swap: {size_mb: 64}\n", "1 unchanged")?;
    let facts = rig.run(&["host", "show", &host.name])?.expect(0);
    assert!(facts.stdout.contains("MB, 63 MB of swap"), "{facts:?}");
    Ok(())
}

/// A clock that is two hours behind is told, and no program is asked to take a wrong one for right.
fn wrong_clock(rig: &Rig, host: &Host) -> Result<()> {
    host.sh("systemctl stop systemd-timesyncd 2>/dev/null; date -s \"@$(($(date +%s) - 7200))\" >/dev/null")?;
    let ended = apply(rig, host, "  - preflight: {name: lab, clock_s: 3600}\n", &[])?.expect(1);
    assert!(said(&ended).contains("s behind what the controller says, 3600 s are allowed"), "{ended:?}");
    host.sh("date -s \"@$(($(date +%s) + 7200))\" >/dev/null")?;
    applied(rig, host, "  - preflight: {name: lab, clock_s: 3600}\n", "1 unchanged")
}
