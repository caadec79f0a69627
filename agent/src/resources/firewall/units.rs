//! The units that put the rules in force at boot, before there is a network and again once Docker is there.

/// Loads the rules before any network.
pub(super) const UNIT: &str = "postern-firewall.service";
/// Loads them again when Docker has made its chains.
pub(super) const DOCKER_UNIT: &str = "postern-firewall-docker.service";
/// What makes the first start at boot.
pub(super) const AT_BOOT: &str = "/etc/systemd/system/sysinit.target.wants/postern-firewall.service";
/// What makes the second start with Docker.
pub(super) const WITH_DOCKER: &str =
    "/etc/systemd/system/docker.service.wants/postern-firewall-docker.service";

/// Paths and contents. Nothing is done at a stop: a host that shuts down stays as closed as it was.
pub(super) const ALL: [(&str, &str); 2] = [
    (
        "/etc/systemd/system/postern-firewall.service",
        "\
# Written by Postern, which writes it again at each run.
[Unit]
Description=Firewall rules of Postern
DefaultDependencies=no
Wants=network-pre.target
After=local-fs.target systemd-modules-load.service
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=90
ExecStart=/usr/local/bin/postern-agent firewall load
ExecReload=/usr/local/bin/postern-agent firewall load

[Install]
WantedBy=sysinit.target
",
    ),
    (
        "/etc/systemd/system/postern-firewall-docker.service",
        "\
# Written by Postern, which writes it again at each run.
[Unit]
Description=Firewall rules of Postern for ports that Docker publishes
After=docker.service postern-firewall.service
PartOf=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=90
ExecStart=/usr/local/bin/postern-agent firewall load

[Install]
WantedBy=docker.service
",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use postern_proto::host::AGENT_BINARY;

    #[test]
    fn units_name_the_program_that_is_installed() {
        for (path, content) in ALL {
            assert!(content.contains(&format!("ExecStart={AGENT_BINARY} firewall load\n")), "{path}");
        }
    }
}
