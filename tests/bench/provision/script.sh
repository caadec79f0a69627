# What the shipped profile `swarm` makes of a fresh Debian, by hand and as quick as one writes it: one `apt-get update`,
# one transaction, and settings that lie there before the service that reads them starts, so that nothing is started
# twice. Sent over one connection, by `ssh root@HOST bash -s`; the benchmark puts `admin=`, `admin_key=` and
# `health_start=` before it.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a

# put PATH [MODE]: a file from standard input.
put() {
    cat >"$1"
    chmod "${2:-644}" "$1"
}

accounts() {
    id -u "$admin" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups sudo "$admin"
    install -d -m 700 -o "$admin" -g "$admin" "/home/$admin/.ssh"
    install -m 600 -o "$admin" -g "$admin" /dev/stdin "/home/$admin/.ssh/authorized_keys" <<<"$admin_key"
    put /etc/sudoers.d/admin 440 <<<"$admin ALL=(ALL:ALL) NOPASSWD: ALL"
    visudo -cqf /etc/sudoers.d/admin
}

settings() {
    mkdir -p /etc/apt/keyrings /etc/docker /etc/fail2ban/jail.d /etc/firewall
    curl -fsSL https://download.docker.com/linux/debian/gpg -o /etc/apt/keyrings/docker.asc
    put /etc/apt/sources.list.d/docker.list <<END
deb [arch=$(dpkg --print-architecture) signed-by=/etc/apt/keyrings/docker.asc] https://download.docker.com/linux/debian $VERSION_CODENAME stable
END
    put /etc/apt/preferences.d/docker <<'END'
Package: docker-ce docker-ce-cli docker-ce-rootless-extras
Pin: version 5:29.*
Pin-Priority: 990

Package: docker-ce docker-ce-cli docker-ce-rootless-extras
Pin: version *
Pin-Priority: -1
END
    put /etc/docker/daemon.json <<'END'
{"log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"}}
END
    put /etc/apt/apt.conf.d/99auto-upgrades <<'END'
APT::Periodic::Enable "1";
APT::Periodic::Update-Package-Lists "1";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Origins-Pattern:: "origin=Debian,codename=${distro_codename}-security,label=Debian-Security";
Unattended-Upgrade::Automatic-Reboot "false";
END
    put /etc/fail2ban/jail.d/sshd.local <<'END'
[DEFAULT]
ignoreip = 127.0.0.0/8 ::1

[sshd]
enabled = true
backend = systemd
journalmatch = _SYSTEMD_UNIT=ssh.service + _COMM=sshd + _COMM=sshd-session
port = 22
banaction = iptables-multiport
bantime = 3600
findtime = 600
maxretry = 5
END
    put /etc/sysctl.d/60-redirects.conf <<'END'
net.ipv4.conf.all.accept_redirects = 0
net.ipv4.conf.default.accept_redirects = 0
net.ipv4.conf.all.send_redirects = 0
net.ipv4.conf.default.send_redirects = 0
net.ipv6.conf.all.accept_redirects = 0
net.ipv6.conf.default.accept_redirects = 0
END
    sysctl -q -p /etc/sysctl.d/60-redirects.conf
}

packages() {
    apt-get -qq update
    apt-get -qq -y --no-install-recommends install \
        ca-certificates chrony curl fail2ban iptables openssh-server python3-systemd sudo unattended-upgrades \
        containerd.io docker-buildx-plugin docker-ce docker-ce-cli docker-compose-plugin
}

# Rules of one family: chains of their own, which hand back what is let in, for fail2ban and Docker to go on with.
rules() {
    local family=$1 icmp
    if [ "$family" = 4 ]; then icmp='icmp -m icmp --icmp-type' types='3 8 11 12'
    else icmp='ipv6-icmp -m icmp6 --icmpv6-type' types='1 2 3 4 128 130 131 132 133 134 135 136 137 143'; fi
    echo '*filter'
    echo ':HOST-INPUT - [0:0]'
    echo ':HOST-DOCKER - [0:0]'
    echo '-A HOST-INPUT -i lo -j RETURN'
    echo '-A HOST-INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN'
    for type in $types; do echo "-A HOST-INPUT -p $icmp $type -j RETURN"; done
    echo '-A HOST-INPUT -m conntrack --ctstate INVALID -j DROP'
    if [ "$family" = 4 ]; then echo '-A HOST-INPUT -p udp -m udp --sport 67 --dport 68 -j RETURN'
    else echo '-A HOST-INPUT -s fe80::/10 -p udp -m udp --sport 547 --dport 546 -j RETURN'; fi
    for port in tcp/22 tcp/80 tcp/443 udp/443; do
        echo "-A HOST-INPUT -p ${port%/*} -m ${port%/*} --dport ${port#*/} -j RETURN"
    done
    echo '-A HOST-INPUT -j DROP'
    for side in docker0 docker_gwbridge br-+; do echo "-A HOST-DOCKER -i $side -j RETURN"; done
    echo '-A HOST-DOCKER -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN'
    for port in tcp/22 tcp/80 tcp/443 udp/443; do
        echo "-A HOST-DOCKER -p ${port%/*} -m conntrack --ctstate DNAT --ctorigdstport ${port#*/} --ctdir ORIGINAL -j RETURN"
    done
    echo '-A HOST-DOCKER -m conntrack --ctstate DNAT -j DROP'
    for side in docker0 docker_gwbridge br-+; do echo "-A HOST-DOCKER -o $side -j DROP"; done
    echo COMMIT
}

firewall() {
    rules 4 >/etc/firewall/v4.rules
    rules 6 >/etc/firewall/v6.rules
    # Docker makes no chain for others' rules of IPv6; FORWARD is what there is.
    put /usr/local/sbin/firewall 755 <<'END'
#!/bin/sh
set -e
for family in 4 6; do
    if [ $family = 4 ]; then t=iptables; else t=ip6tables; fi
    $t-restore -w 20 --noflush /etc/firewall/v$family.rules
    if [ $family = 4 ]; then $t -w -N DOCKER-USER 2>/dev/null || :; from=DOCKER-USER; else from=FORWARD; fi
    $t -w -C INPUT -j HOST-INPUT 2>/dev/null || $t -w -I INPUT 1 -j HOST-INPUT
    $t -w -C $from -j HOST-DOCKER 2>/dev/null || $t -w -I $from 1 -j HOST-DOCKER
done
END
    put /etc/systemd/system/firewall.service <<'END'
[Unit]
Description=Firewall rules
DefaultDependencies=no
Wants=network-pre.target
After=local-fs.target systemd-modules-load.service
Before=network-pre.target shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/firewall

[Install]
WantedBy=sysinit.target
END
    systemctl daemon-reload
    systemctl enable -q --now firewall.service
}

ssh_by_key() {
    put /etc/ssh/sshd_config.d/00-hardening.conf <<'END'
PermitRootLogin no
PubkeyAuthentication yes
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
HostbasedAuthentication no
PermitEmptyPasswords no
X11Forwarding no
MaxAuthTries 4
LoginGraceTime 30
KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256,curve25519-sha256@libssh.org,diffie-hellman-group18-sha512,diffie-hellman-group16-sha512
Ciphers chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr
MACs hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com,umac-128-etm@openssh.com
HostKeyAlgorithms ssh-ed25519,ssh-ed25519-cert-v01@openssh.com,sk-ssh-ed25519@openssh.com,sk-ssh-ed25519-cert-v01@openssh.com,rsa-sha2-512,rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-256,rsa-sha2-256-cert-v01@openssh.com
END
    sshd -t
    systemctl reload ssh
}

traefik() {
    local address
    address=$(ip -4 route get 192.0.2.1 | sed -n 's/.* src \([0-9.]*\).*/\1/p')
    docker swarm init --advertise-addr "$address" >/dev/null
    docker network create --driver overlay --attachable proxy >/dev/null
    docker config create traefik-1 - >/dev/null <<'END'
global:
  checkNewVersion: false
  sendAnonymousUsage: false
log:
  level: INFO
accessLog: {}
ping:
  entryPoint: ping
providers:
  swarm:
    endpoint: unix:///var/run/docker.sock
    exposedByDefault: false
    network: proxy
entryPoints:
  ping:
    address: 127.0.0.1:8082
  web:
    address: ":80"
  websecure:
    address: ":443"
    http3: {}
END
    # Without --detach the client goes on watching for five seconds after the task runs.
    docker service create --detach --quiet --name traefik \
        --constraint node.role==manager --network proxy \
        --publish mode=host,target=80,published=80 \
        --publish mode=host,target=443,published=443 \
        --publish mode=host,target=443,published=443,protocol=udp \
        --mount type=bind,source=/run/docker.sock,target=/var/run/docker.sock,readonly \
        --mount type=volume,source=traefik-acme,target=/acme \
        --health-cmd 'traefik healthcheck' \
        --health-interval 10s --health-timeout 5s --health-retries 3 --health-start-period 30s $health_start \
        --stop-grace-period 30s --update-order stop-first --update-failure-action rollback \
        --config source=traefik-1,target=/etc/traefik/traefik.yml \
        traefik:v3.7.9 >/dev/null
    until [ "$(docker service ls --filter name=traefik --format '{{.Replicas}}')" = 1/1 ]; do sleep 0.2; done
}

main() {
    . /etc/os-release
    accounts
    settings
    packages
    firewall
    ssh_by_key
    traefik
    # The clock follows a server: by now it has done so for long.
    chronyc waitsync 300 0 0 0.1 >/dev/null
}

# Nothing of what runs reads the rest of this script as its own input.
main </dev/null
