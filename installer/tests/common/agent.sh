#!/bin/sh
# A stand-in for the agent: the commands a bootstrap uses, nothing else. Version VERSION.
state=/var/lib/postern-agent
case "$1" in
--version) echo "postern-agent VERSION" ;;
status)
    [ ! -e /run/status-code ] || exit "$(cat /run/status-code)"
    if [ -e $state/host_id ]; then
        printf '{"version":"VERSION","host_id":"%s","unfinished_runs":0,"certificate_not_after_s":null}\n' "$(cat $state/host_id)"
    else
        printf '{"version":"VERSION","host_id":null,"unfinished_runs":0,"certificate_not_after_s":null}\n'
        exit 7
    fi ;;
enrol | probe)
    config=$3
    IFS= read -r token || exit 2
    ps axww -o args >>/run/processes
    cat /proc/self/environ >>/run/environ
    code=0
    [ ! -e /run/enrol-code ] || code=$(cat /run/enrol-code)
    route=$(sed -n 's/.*"temporary_route":"\([^"]*\)".*/\1/p' "$config")
    if [ -n "$route" ]; then
        # Through the route, the controller answers with one line.
        answer=$(bash -c 'exec 3<>"/dev/tcp/${0%:*}/${0#*:}"; read -r line <&3; echo "$line"' "$route")
        [ "$answer" = controller ] && code=0
    fi
    if [ "$code" != 0 ]; then
        printf '{"host_id":null,"reached":null,"tried":[{"address":"192.0.2.1:7300","error":"refused"}],"error":"as told"}\n'
        exit "$code"
    fi
    if [ "$1" = probe ]; then
        printf '{"host_id":null,"reached":"a:1","tried":[],"error":""}\n'
        exit 0
    fi
    mkdir -p -m 0700 $state
    sed -n 's/.*"host_id":"\([^"]*\)".*/\1/p' "$config" >$state/host_id
    echo "$token" >>/run/tokens
    printf '{"host_id":null,"reached":"a:1","tried":[],"error":""}\n' ;;
esac
