//! What a host is like, line by line, so that a test can say what a run changed and whether an undo brought it back.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::lab::Host;

/// Files of `/etc`, packages with their marks, units, and values of the kernel. Left out is what programs keep
/// for themselves: the copies that passwd's tools make (`passwd-`), lock files, ld's cache, and units that come
/// and go by their timers or with a login.
const LOOK: &str = r#"
    own="( -name *- -o -name .pwd.lock -o -name ld.so.cache -o -name .updated ) -prune -o"
    set -f; cd /etc
    # One program for all files: a process each takes a virtual machine minutes.
    find . -xdev $own -type f -exec sha256sum {} + | sort
    find . -xdev $own \( -type f -printf 'f %p %m %U %G\n' \) -o \
        \( -type l -printf 'l %p %l\n' \) -o \( -type d -printf 'd %p %m %U %G\n' \) | sort
    set +f
    dpkg --get-selections | sed 's/^/package /'
    apt-mark showauto | sort | sed 's/^/auto /'
    systemctl list-unit-files --no-legend --no-pager | awk '$2 != "transient" { print "unit", $1, $2 }' | sort
    systemctl list-units --all --no-legend --plain --no-pager --type=service,timer,socket |
        awk '$3 != "inactive" && $1 !~ /^(user|run-|session|apt-daily|dpkg-db|systemd-tmpfiles|e2scrub|man-db|fstrim|logrotate|cloud-|systemd-hostnamed|systemd-timedated)/ { print "active", $1, $3 }' | sort
    for f in net/ipv4/ip_forward net/ipv4/conf/all/accept_redirects net/ipv4/conf/all/send_redirects; do
        echo "kernel $f $(cat /proc/sys/$f)"
    done
"#;

/// One line for each thing.
pub fn fingerprint(host: &Host) -> Result<BTreeSet<String>> {
    Ok(host.sh(LOOK)?.lines().map(str::to_owned).collect())
}

/// What is gone, and what has come.
#[must_use]
pub fn changes(from: &BTreeSet<String>, to: &BTreeSet<String>) -> Vec<String> {
    let gone = from.difference(to).map(|line| format!("- {line}"));
    gone.chain(to.difference(from).map(|line| format!("+ {line}"))).collect()
}
