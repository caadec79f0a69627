//! A time server inside a lab host, for profiles that want the clock to follow one.

use anyhow::Result;

use crate::lab::Host;

/// The lab has no time servers outside: the name of the distribution's pool leads to a second chronyd, which
/// starts as soon as the profile has installed one. chrony itself gets what it lacks in a container. Without default
/// dependencies `multi-user.target` does not wait for it: on a host that is still booting cloud-init's last stage would,
/// for a chronyd that is installed only when cloud-init has ended.
const TIME_SERVER: &str = r#"
    echo '127.0.0.1 2.debian.pool.ntp.org' >>/etc/hosts
    printf 'local stratum 5\nallow\nbindaddress 127.0.0.1\ncmdport 0\nbindcmdaddress /run/lab-chrony.sock\npidfile /run/lab-chrony.pid\n' >/etc/lab-chrony.conf
    printf '[Unit]\nDefaultDependencies=no\nAfter=basic.target\nConflicts=shutdown.target\nBefore=shutdown.target\n[Service]\nExecStartPre=sh -c "until test -x /usr/sbin/chronyd; do sleep 0.2; done"\nTimeoutStartSec=infinity\nExecStart=/usr/sbin/chronyd -d -x -F 0 -u root -f /etc/lab-chrony.conf\n[Install]\nWantedBy=multi-user.target\n' >/etc/systemd/system/lab-time.service
    mkdir -p /etc/systemd/system/chrony.service.d
    printf '[Unit]\nConditionCapability=\n[Service]\nEnvironmentFile=\nEnvironment="DAEMON_OPTS=-F 1 -x"\n' >/etc/systemd/system/chrony.service.d/lab.conf
    systemctl daemon-reload; systemctl enable --quiet lab-time; systemctl start --no-block lab-time
"#;

/// Gives a host what it needs to have the right time by chrony.
pub fn serve_time(host: &Host) -> Result<()> {
    host.sh(TIME_SERVER)?;
    Ok(())
}
