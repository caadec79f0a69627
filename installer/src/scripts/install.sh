# Puts the agent in place. Its inputs are the shell variables set above; empty means "not this part".
#
# Nothing that ran before is replaced until the new program is verified and enrolled: up to then there are
# only temporary files, and they are removed however this ends. An agent that must give way is stopped only
# for the moment of the enrolment, and started again as it was if that fails.
binary=@BINARY@
new=/usr/local/bin/.postern-agent.new
new_config=@CONFIG_DIR@/.config.new
new_run_config=@RUN_DIR@/.config.new
say() { printf '%s=%s\n' "$1" "$2"; }
fail() {
    say error "$1"
    exit 1
}
part() {
    say "$1" "$2"
    if [ -n "$pause" ]; then read -r _ || [ -n "$taken" ] || exit 1; fi
}
clean() {
    [ -z "$stopped" ] || systemctl start --no-block @UNIT@
    rm -f "$new" "$new_config" "$new_run_config" @UNIT_FILE@.new
    # Kept for the second attempt when only the way to the controller was missing.
    case $keep$code in
    yes@UNREACHABLE@ | yes@NOT_THE_CONTROLLER@) ;;
    *)
        rm -f @UPLOAD@
        [ -z "$upload" ] || rm -f "$upload"
        ;;
    esac
    # What a failed first attempt would leave: directories that hold nothing.
    rmdir @CONFIG_DIR@ @STATE_DIR@ @RUN_DIR@ 2>/dev/null
    return 0
}

unpack() {
    [ -f "$upload" ] || fail upload-missing
    mkdir -p /usr/local/bin || fail write
    rm -f "$new"
    gzip -dc <"$upload" >"$new" || fail unpack
    # Hashed where only root can write, and never copied again: what was verified is what runs.
    sum=$(sha256sum "$new") || fail unpack
    [ "${sum%% *}" = "$sha256" ] || fail hash
    chmod 0755 "$new" || fail write
    [ ! -e "$binary" ] || sync "$new"
    timeout 20 "$new" --version >/dev/null || fail unusable
}

write() {
    mkdir -p -m 0700 @CONFIG_DIR@ @STATE_DIR@ && chmod 0700 @CONFIG_DIR@ @STATE_DIR@ || fail write
    if [ -n "$config" ]; then printf '%s\n' "$config" >"$new_config" || fail write; fi
    if [ -n "$run_config" ]; then
        mkdir -p -m 0700 @RUN_DIR@ && printf '%s\n' "$run_config" >"$new_run_config" || fail write
    fi
    if [ -n "$unit" ]; then
        printf '%s' "$unit" >@UNIT_FILE@.new && chmod 0644 @UNIT_FILE@.new || fail write
    fi
}

# `enrol` or `probe`, by the program and the configuration that are to be.
ask() {
    program=$binary
    [ ! -e "$new" ] || program=$new
    from=@CONFIG_FILE@
    [ -z "$config" ] || from=$new_config
    [ -z "$run_config" ] || from=$new_run_config
    # printf is the shell's own: the token is in no argument vector. The report is one line of JSON. A signal
    # that this shell ignores, the program ignores too: hence the second one, which cannot be.
    report=$(printf '%s\n' "$token" | timeout -k 5 120 "$program" "$1" --config "$from" 9>&-)
    code=$?
    say enrol.report "$(printf '%s' "$report" | tail -c 16384 | tr '\n' ' ')"
    say enrol.code "$code"
    [ "$code" = 0 ] || fail enrol
}

# The agent there is another controller's or another host's. It holds its state while it runs, and an
# enrolment that finds it held has used its token up: so it stops, but only once the new controller is known
# to answer.
make_way() {
    case $(systemctl is-active @UNIT@) in
    active | activating | reloading | deactivating) ;;
    *) return 0 ;;
    esac
    ask probe
    # From here to the new agent's start, nothing that comes with a lost SSH connection (sudo forwards some) may
    # leave the host without an agent.
    trap '' HUP INT TERM PIPE
    stopped=yes
    say displaced yes
    timeout 60 systemctl stop @UNIT@ || fail stop
}

place() {
    # Each is one rename: there is always either the old file or the new one.
    if [ -n "$config" ]; then mv -f "$new_config" @CONFIG_FILE@ || fail write; fi
    if [ -n "$run_config" ]; then mv -f "$new_run_config" @RUN_DIR@/config.json || fail write; fi
    if [ -e "$new" ]; then mv -f "$new" "$binary" || fail write; fi
    if [ -n "$unit" ]; then mv -f @UNIT_FILE@.new @UNIT_FILE@ || fail write; fi
    if [ -n "$run_drop_in" ]; then
        (
            umask 022
            mkdir -p "${run_dir_of_drop_in%/*}" && printf '%s' "$run_drop_in" >"$run_dir_of_drop_in"
        ) || fail write
    elif [ -e "$run_dir_of_drop_in" ]; then
        rm -rf "$run_dir_of_drop_in" @RUN_DIR@
    fi
}

start_unit() {
    systemctl enable --quiet --no-reload @UNIT@ || fail start
    systemctl daemon-reload || fail start
    systemctl reset-failed @UNIT@ 2>/dev/null
    # Not waited for: whether it works is seen by the controller when its session comes up.
    systemctl restart --no-block @UNIT@ || fail start
}

main() {
    code=
    stopped=
    taken=
    run_dir_of_drop_in=@RUN_DROP_IN@
    trap clean EXIT
    trap 'exit 1' HUP INT TERM PIPE
    say begin install
    # Two bootstraps of one host at once: the second waits for the first. A directory that is always there
    # can be locked too, and leaves no file behind.
    if command -v flock >/dev/null 2>&1; then
        exec 9</run
        flock -w 60 9 || fail locked
    fi
    [ -z "$upload" ] || unpack
    write
    part done install
    [ -z "$displace" ] || make_way
    [ -z "$token" ] || ask enrol
    [ -z "$probe" ] || ask probe
    # The identity is the new one now: there is no way back, only on.
    taken=$stopped
    stopped=
    part done enrol
    place
    [ -z "$start" ] || start_unit
    part done start
    say end install
}
