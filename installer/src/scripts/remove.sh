# Removes agent, unit, configuration and state. What the agent provisioned stays; what it still runs goes on.
say() { printf '%s=%s\n' "$1" "$2"; }
failed=
gone() {
    [ -e "$1" ] || [ -L "$1" ] || return 0
    if rm -rf "$1"; then say removed "$1"; else failed=yes; fi
}
main() {
    say begin remove
    if [ -d /run/systemd/system ]; then
        if systemctl is-active --quiet @UNIT@; then say stopped @UNIT@; fi
        # A start that was never enabled, or no unit at all, is as good as stopped.
        timeout 60 systemctl disable --now --quiet @UNIT@ 2>/dev/null
        if systemctl is-active --quiet @UNIT@; then
            say error stop
            exit 1
        fi
    fi
    gone @UNIT_FILE@
    gone /etc/systemd/system/multi-user.target.wants/@UNIT@
    gone @UNIT_FILE@.d
    gone @RUN_DROP_IN_DIR@
    gone @RUN_DIR@
    gone @CONFIG_DIR@
    gone @STATE_DIR@
    gone @BINARY@
    gone /usr/local/bin/.postern-agent.new
    gone @UPLOAD@
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl reset-failed @UNIT@ 2>/dev/null
    fi
    if [ -n "$failed" ]; then
        say error write
        exit 1
    fi
    say end remove
}
