# Whether a host is in the state that all ways of `cargo xtask bench provision` are to bring about, whoever did it: what
# is in force counts, not who wrote which file. Prints what is not so; the last line is "all is so" when nothing is.
# What is seen from outside, the benchmark looks at itself: open and closed ports, logins.
set -u
admin=ada
bad=0
no() {
    echo "not so: $1"
    bad=1
}
so() {
    local what=$1
    shift
    "$@" >/dev/null 2>&1 || no "$what"
}
is() { [ "$2" = "$3" ] || no "$1 is '$2' and not '$3'"; }

# Packages.
there='ca-certificates chrony curl fail2ban iptables openssh-server python3-systemd sudo unattended-upgrades
containerd.io docker-buildx-plugin docker-ce docker-ce-cli docker-compose-plugin'
for package in $there; do
    is "package $package" "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" installed
done
for package in docker.io docker-doc docker-compose podman-docker containerd runc; do
    is "package $package" "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -x installed)" ''
done
is 'what dpkg has left to do' "$(dpkg --audit)" ''
is 'priority of docker-ce' "$(apt-cache policy docker-ce | sed -n 's/^ \*\*\* 5:29\.[^ ]* //p')" 990
so 'Docker comes from its own repository' sh -c 'apt-cache policy docker-ce | grep -q "https://download.docker.com/linux/debian "'
so 'that repository is signed' sh -c "apt-get indextargets --format '\$(URI) \$(TRUSTED)' | grep -q '^https://download.docker.com/.* yes\$'"
# A newer major is never a candidate.
so 'other majors are out' sh -c 'grep -rhs -A2 "^Package:.*docker-ce" /etc/apt/preferences.d | grep -A1 "^Pin: version \*" | grep -q -- "^Pin-Priority: -"'

# The administrator.
is "groups of $admin" "$(id -nG "$admin" | tr ' ' '\n' | grep -cx sudo)" 1
is "shell of $admin" "$(getent passwd "$admin" | cut -d : -f 7)" /bin/bash
is "mode of $admin's keys" "$(stat -c '%U %a' "/home/$admin/.ssh/authorized_keys")" "$admin 600"
so "$admin becomes root" runuser -u "$admin" -- sudo -n true
so 'sudo takes its files' visudo -c

# SSH.
config=$(sshd -T -C "user=$admin,host=somewhere,addr=192.0.2.9")
value() { echo "$config" | sed -n "s/^$1 //p"; }
for pair in permitrootlogin=no passwordauthentication=no kbdinteractiveauthentication=no pubkeyauthentication=yes \
    authenticationmethods=publickey hostbasedauthentication=no permitemptypasswords=no x11forwarding=no maxauthtries=4 \
    logingracetime=30; do
    is "sshd's ${pair%%=*}" "$(value "${pair%%=*}")" "${pair#*=}"
done
for kind in kexalgorithms ciphers macs hostkeyalgorithms; do
    is "unsound in sshd's $kind" "$(value $kind | tr ',' '\n' | grep -E 'nistp|sha1$|-cbc|^ssh-rsa|^hmac-[^e]*$')" ''
done

# What keeps it well by itself.
is 'fail2ban at boot' "$(systemctl is-enabled fail2ban)" enabled
for pair in bantime=3600 findtime=600 maxretry=5; do
    is "fail2ban's ${pair%=*}" "$(fail2ban-client get sshd "${pair%=*}")" "${pair#*=}"
done
fail2ban-client set sshd banip 192.0.2.77 >/dev/null
for try in $(seq 50); do
    banned=$(iptables-save | grep -c -- '-s 192.0.2.77/32 .*-j REJECT')
    [ "$banned" = 1 ] && break
    sleep 0.1
done
is 'rules that shut out who was banned' "$banned" 1
fail2ban-client set sshd unbanip 192.0.2.77 >/dev/null
apt=$(apt-config dump)
for line in 'APT::Periodic::Unattended-Upgrade "1";' 'APT::Periodic::Update-Package-Lists "1";' \
    'Unattended-Upgrade::Automatic-Reboot "false";'; do
    so "apt's $line" grep -qxF "$line" <<<"$apt"
done
so 'security updates are taken' grep -q '^Unattended-Upgrade::Origins-Pattern:: .*codename=${distro_codename}-security,label=Debian-Security' <<<"$apt"
for timer in apt-daily.timer apt-daily-upgrade.timer; do
    is "$timer" "$(systemctl is-enabled $timer) $(systemctl is-active $timer)" 'enabled active'
done
is 'chrony at boot' "$(systemctl is-enabled chrony)" enabled
is 'the clock' "$(chronyc -n tracking | sed -n 's/^Leap status *: //p')" Normal

# The kernel, now and after a restart.
for key in net.ipv4.conf.all.accept_redirects net.ipv4.conf.default.accept_redirects net.ipv4.conf.all.send_redirects \
    net.ipv4.conf.default.send_redirects net.ipv6.conf.all.accept_redirects net.ipv6.conf.default.accept_redirects; do
    is "$key" "$(sysctl -n $key)" 0
    so "$key at boot" grep -rqsE "^$key *= *0" /etc/sysctl.d
done

# The firewall: a drop at the end of what INPUT calls, in both families, and a unit that makes it so at boot before
# there is a network. That it drops is seen from outside.
for save in iptables-save ip6tables-save; do
    first=$($save -t filter | sed -n 's/^-A INPUT -j //p' | tail -n 1)
    is "the end of ${first:-INPUT} ($save)" "$($save -t filter | grep -- "^-A $first " | tail -n 1)" "-A $first -j DROP"
    so "ports that Docker publishes ($save)" sh -c "$save -t filter | grep -qE -- '--ctstate DNAT .*-j DROP'"
done
early=0
for unit in $(systemctl show -P After network-pre.target); do
    case $(systemctl is-enabled "$unit" 2>/dev/null) in enabled) systemctl is-active -q "$unit" && early=1 ;; esac
done
is 'units before the network that are on and active' "$early" 1

# Docker and its Swarm.
is 'docker at boot' "$(systemctl is-enabled docker)" enabled
is 'Docker' "$(docker info --format '{{.LoggingDriver}} {{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}')" 'json-file active true'
so 'sizes of logs' sh -c 'tr -d " \n" </etc/docker/daemon.json | grep -q "\"max-file\":\"3\"" && tr -d " \n" </etc/docker/daemon.json | grep -q "\"max-size\":\"10m\""'
so 'daemon.json is in force' sh -c 'test "$(docker inspect -f "{{index .HostConfig.LogConfig.Config \"max-size\"}}" $(docker ps -q | head -n 1))" = 10m'
address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([0-9.]*\).*/\1/p')
is "the node's address" "$(docker info --format '{{.Swarm.NodeAddr}}')" "$address"
is 'the network' "$(docker network inspect proxy --format '{{.Driver}} {{.Attachable}} {{.Scope}}')" 'overlay true swarm'
is 'the service' "$(docker service ls --format '{{.Name}} {{.Replicas}} {{.Image}}')" 'traefik 1/1 traefik:v3.7.9'
task=$(docker ps -q --filter label=com.docker.swarm.service.name=traefik)
is 'its health' "$(docker inspect -f '{{.State.Health.Status}}' "$task")" healthy
spec=$(docker service inspect traefik --format '{{json .Spec}}')
# Engines before 25 have no such word.
wanted='"StartPeriod":30000000000'
if docker service create --help | grep -q -e --health-start-interval; then wanted='"StartInterval":1000000000'; fi
for part in "$wanted" '"Constraints":["node.role==manager"]' '"StopGracePeriod":30000000000' '"Interval":10000000000' \
    '"FailureAction":"rollback"' '"Order":"stop-first"' '"Source":"/run/docker.sock"' '"Source":"traefik-acme"' \
    '"Protocol":"udp","TargetPort":443,"PublishedPort":443,"PublishMode":"host"' \
    '"Protocol":"tcp","TargetPort":80,"PublishedPort":80,"PublishMode":"host"' '/etc/traefik/traefik.yml'; do
    so "the service has $part" grep -qF -- "$part" <<<"$spec"
done
# By the kernel, as the image need not have a program for it.
inside=/proc/$(docker inspect -f '{{.State.Pid}}' "$task")
is "its network's MTU" "$(nsenter --net="$inside/ns/net" ip -o link show eth0 | sed 's/.* mtu \([0-9]*\).*/\1/')" 1450
for line in 'exposedByDefault: false' 'address: 127.0.0.1:8082' 'address: ":80"' 'address: ":443"' 'http3: {}' 'network: proxy'; do
    so "Traefik's $line" grep -qF -- "$line" "$inside/root/etc/traefik/traefik.yml"
done

[ $bad = 0 ] && echo 'all is so'
exit $bad
