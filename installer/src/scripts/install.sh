# Puts the agent in place. Its inputs are the shell variables set above; empty means "not this part".
#
# Nothing that ran before is touched until the new program is verified and enrolled: up to then there are
# only temporary files, and they are removed however this ends.
binary=@BINARY@
new=/usr/local/bin/.postern-agent.new
new_config=@CONFIG_DIR@/.config.new
say() { printf '%s=%s\n' "$1" "$2"; }
fail() {
    say error "$1"
    exit 1
}
part() {
    say "$1" "$2"
    if [ -n "$pause" ]; then read -r _ || exit 1; fi
}
clean() {
    rm -f "$new" "$new_config" @UNIT_FILE@.new
    # Kept for the second attempt when only the way to the controller was missing.
    case $keep$code in
    yes@UNREACHABLE@ | yes@NOT_THE_CONTROLLER@) ;;
    *)
        rm -f @UPLOAD@
        [ -z "$upload" ] || rm -f "$upload"
        ;;
    esac
    # What a failed first attempt would leave: directories that hold nothing.
    rmdir @CONFIG_DIR@ @STATE_DIR@ 2>/dev/null
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
        mkdir -p -m 0700 @RUN_DIR@ && printf '%s\n' "$run_config" >@RUN_DIR@/config.json || fail write
    fi
    if [ -n "$unit" ]; then
        printf '%s' "$unit" >@UNIT_FILE@.new && chmod 0644 @UNIT_FILE@.new || fail write
    fi
}

enrol() {
    program=$binary
    [ ! -e "$new" ] || program=$new
    from=@CONFIG_FILE@
    [ -z "$config" ] || from=$new_config
    [ -z "$run_config" ] || from=@RUN_DIR@/config.json
    # printf is the shell's own: the token is in no argument vector. The report is one line of JSON.
    report=$(printf '%s\n' "$token" | timeout 120 "$program" "$1" --config "$from" 9>&-)
    code=$?
    say enrol.report "$(printf '%s' "$report" | tail -c 16384 | tr '\n' ' ')"
    say enrol.code "$code"
    if [ "$code" != 0 ]; then
        [ -z "$run_config" ] || rm -rf @RUN_DIR@
        fail enrol
    fi
}

place() {
    # Each is one rename: there is always either the old file or the new one.
    if [ -n "$config" ]; then mv -f "$new_config" @CONFIG_FILE@ || fail write; fi
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
    run_dir_of_drop_in=@RUN_DROP_IN@
    trap clean EXIT
    trap 'exit 1' HUP INT TERM PIPE
    say begin install
    # Two bootstraps of one host at once: the second waits for the first.
    if command -v flock >/dev/null 2>&1; then
        exec 9>/run/postern-bootstrap.lock
        flock -w 60 9 || fail locked
    fi
    [ -z "$upload" ] || unpack
    write
    part done install
    [ -z "$token" ] || enrol enrol
    [ -z "$probe" ] || enrol probe
    part done enrol
    place
    [ -z "$start" ] || start_unit
    part done start
    say end install
}
