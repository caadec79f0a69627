# Turns a mount namespace into a machine of its own as far as a bootstrap can tell, and runs sshd there.
# $1: a directory for it. Whatever is written below /etc, /usr/local, /var/lib, /run, /root, /home and /tmp
# is gone with the namespace; the real machine is never touched.
set -e
base=$1
mount -t tmpfs tmpfs "$base"
# The test's own files, which the mount hides, come by stdin.
cat >"$base/prepare.sh"
for name in etc var/lib; do
    flat=$(echo "$name" | tr / -)
    mkdir -p "$base/$flat-up" "$base/$flat-work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=$base/$flat-up,workdir=$base/$flat-work" "/$name"
done
for name in usr/local run root home; do mount -t tmpfs tmpfs "/$name"; done
chmod 0755 /usr/local /run /home
chmod 0700 /root
mkdir -p /run/systemd/system /run/sshd /run/lock /usr/local/bin /usr/local/sbin /root/.ssh
rm -rf /etc/ssh/sshd_config.d/* /etc/postern-agent /var/lib/postern-agent

cat >/usr/local/sbin/systemctl <<'END'
#!/bin/sh
echo "$*" >>/run/systemctl.log
case "$1" in
is-system-running) echo running ;;
is-active) [ -e /run/agent-active ]; exit $? ;;
show)
    case "$*" in
    *cloud-final*)
        [ -e /run/cloud-busy ] && state=activating || state=active
        printf 'Id=cloud-final.service\nLoadState=loaded\nActiveState=%s\n' "$state" ;;
    *)
        [ -e /run/agent-active ] && echo ActiveState=active || echo ActiveState=inactive
        [ -e /run/agent-enabled ] && echo UnitFileState=enabled || echo UnitFileState=disabled ;;
    esac ;;
enable) touch /run/agent-enabled ;;
disable) rm -f /run/agent-enabled /run/agent-active ;;
restart) touch /run/agent-active ;;
esac
exit 0
END
printf '#!/bin/sh\necho the journal says nothing\n' >/usr/local/sbin/journalctl
chmod 0755 /usr/local/sbin/*
. "$base/prepare.sh"
mkdir -p "$base/keys"
for type in ed25519 ecdsa rsa; do ssh-keygen -q -t $type -N '' -f "$base/keys/$type"; done
mkdir -p "$base/out"
cp "$base"/keys/*.pub "$base/out/"
touch "$base/out/ready"
exec /usr/sbin/sshd -D -e -f "$base/sshd_config"
