# What this host is. Prints key=value lines; changes nothing. Runs as root where it can.
say() { printf '%s=%s\n' "$1" "$2"; }

cloud_state() {
    if [ -e /run/cloud-init/disabled ] || [ -e /etc/cloud/cloud-init.disabled ]; then
        say cloud disabled
        return
    fi
    if [ ! -d /run/cloud-init ] && ! command -v cloud-init >/dev/null 2>&1; then
        say cloud none
        return
    fi
    say cloud present
    say system "$(systemctl is-system-running 2>/dev/null)"
    # Its own `status --wait` may return while its last stage still runs apt: look at the units and at the
    # processes that are left in them.
    for unit in cloud-init-local cloud-init cloud-init-network cloud-init-main cloud-config cloud-final; do
        for file in "/sys/fs/cgroup/system.slice/$unit.service/cgroup.procs" \
            "/sys/fs/cgroup/systemd/system.slice/$unit.service/cgroup.procs"; do
            [ -r "$file" ] || continue
            while read -r pid; do
                say cloud.process "$unit $pid $(tr '\000\n' '  ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-120)"
            done <"$file"
        done
    done
    systemctl show -p Id -p LoadState -p ActiveState cloud-init-local.service cloud-init.service \
        cloud-init-network.service cloud-init-main.service cloud-config.service cloud-final.service 2>/dev/null |
        while read -r line; do
            [ -n "$line" ] && say cloud.unit "$line"
        done
    if [ -e /run/cloud-init/result.json ]; then
        say cloud.result "$(head -c 8192 /run/cloud-init/result.json | base64 | tr -d '\n')"
    fi
}

lock_holder() {
    inode=$(stat -c %i /var/lib/dpkg/lock-frontend 2>/dev/null) || return 0
    while read -r _ _ _ _ pid device _; do
        case $device in
        *:"$inode") say lock "$pid $(cat "/proc/$pid/comm" 2>/dev/null)" ;;
        esac
    done </proc/locks
}

agent_state() {
    [ -e @STATE_DIR@ ] && say agent.state yes
    [ -e @UNIT_FILE@ ] && say agent.unit_file yes
    sha256sum @BINARY@ @CONFIG_FILE@ @UNIT_FILE@ 2>/dev/null | while read -r sum file; do
        say agent.sha256 "$sum $file"
    done
    if [ -r @CONFIG_FILE@ ]; then
        say agent.config "$(head -c 262144 @CONFIG_FILE@ | base64 | tr -d '\n')"
    fi
    if [ -e @BINARY@ ]; then
        # One line of JSON and, behind it, the exit status.
        say agent.status "$({
            timeout 10 @BINARY@ status 2>/dev/null
            printf '@%s' $?
        } | tail -c 4096 | tr '\n' ' ')"
        systemctl show -p ActiveState -p SubState -p UnitFileState -p NRestarts @UNIT@ 2>/dev/null |
            while read -r line; do say agent.show "$line"; done
        [ -e @RUN_DIR@/config.json ] && say agent.temporary yes
    fi
}

# The fourth field of each of df's lines, one for each path in order: what is free.
free() {
    kind=$1
    shift
    df "-P$kind" "$@" 2>/dev/null | {
        read -r _
        for path in $places; do
            read -r _ total _ free _ && say "free.$kind" "$path $total $free"
        done
    }
}

survey() {
    say euid "$(id -u)"
    while read -r line; do
        case $line in
        ID=* | ID_LIKE=* | VERSION_ID=* | PRETTY_NAME=*) say os "$line" ;;
        esac
    done </etc/os-release
    # System, name, release, machine; a host's name has no blanks.
    say uname "$(uname -s -n -r -m)"
    [ -d /run/systemd/system ] && say systemd yes
    read -r init </proc/1/comm && say init "$init"
    while read -r key value _; do
        case $key in
        MemTotal: | MemAvailable: | SwapTotal:) say memory "$key $value" ;;
        esac
    done </proc/meminfo
    places="/usr/local/bin /etc/systemd/system /etc /var/lib /tmp"
    set --
    for path in $places; do
        real=$path
        while [ ! -e "$real" ]; do
            real=${real%/*}
            [ -n "$real" ] || real=/
        done
        # As root, access(2) refuses only a read-only file system; without root it says nothing of that.
        if [ -w "$real" ]; then say writable "$path yes"; else say writable "$path no"; fi
        set -- "$@" "$real"
    done
    free k "$@"
    free i "$@"
    for tool in systemctl gzip sha256sum base64 cut tr head timeout stat mktemp; do
        command -v "$tool" >/dev/null 2>&1 || say missing "$tool"
    done
    ip -o addr show scope global 2>/dev/null | while read -r _ name _ address _; do
        say address "$name $address"
    done
    cloud_state
    lock_holder
    agent_state
    say now "$(date +%s)"
    say end survey
}
