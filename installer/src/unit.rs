//! The agent's systemd unit.

use postern_proto::host::{AGENT_BINARY, CONFIG_FILE, RUN_DIR, exit};

/// The unit's text.
///
/// What is deliberately not in it: `ProtectSystem`, `PrivateTmp`, `NoNewPrivileges`, `RestrictNamespaces`,
/// `CapabilityBoundingSet` and their kin. The agent provisions: it writes everywhere, and what it starts
/// (dpkg, docker, the operator's commands) inherits its sandbox and would break in ways that a shell on the
/// same host does not.
pub(crate) fn unit() -> String {
    format!(
        "# Written by Postern; changes are overwritten.\n\
         [Unit]\n\
         Description=Postern agent\n\
         # Not network-online.target: what it waits for may take minutes, and the agent keeps dialling anyway.\n\
         After=network.target\n\
         # It is never given up: a host that is not reached by SSH has no other way back.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={AGENT_BINARY} run --config {CONFIG_FILE}\n\
         Restart=always\n\
         RestartSec=2\n\
         RestartPreventExitStatus={left}\n\
         TimeoutStartSec=60\n\
         TimeoutStopSec=20\n\
         # What a run started outlives the agent, its restart and its update.\n\
         KillMode=process\n\
         # Not killed first when a task eats the memory. Children inherit it, so it is moderate.\n\
         OOMScoreAdjust=-250\n\
         OOMPolicy=continue\n\
         UMask=0077\n\
         # No secret in a core dump.\n\
         LimitCORE=0\n\
         LimitNOFILE=65536:524288\n\
         TasksMax=infinity\n\
         # Its own slice of the journal: a chatty agent does not push out the host's messages.\n\
         LogRateLimitIntervalSec=30s\n\
         LogRateLimitBurst=2000\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        left = exit::LEFT
    )
}

/// Makes the unit use the configuration with a temporary route. It lies on tmpfs, as that configuration
/// does: a reboot forgets both.
pub(crate) fn temporary_route_drop_in() -> String {
    format!("[Service]\nExecStart=\nExecStart={AGENT_BINARY} run --config {RUN_DIR}/config.json\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_holds_what_the_design_asks_for() {
        let unit = unit();
        for line in [
            "Type=notify",
            "Restart=always",
            "RestartPreventExitStatus=10",
            "KillMode=process",
            "UMask=0077",
            "LimitCORE=0",
            "WantedBy=multi-user.target",
            "ExecStart=/usr/local/bin/postern-agent run --config /etc/postern-agent/config.json",
        ] {
            assert!(unit.lines().any(|found| found == line), "{line}");
        }
        // systemd ignores a comment only at the start of a line.
        assert!(unit.lines().all(|line| !line.contains('#') || line.starts_with('#')));
        assert!(!unit.contains("ProtectSystem"));
    }
}
