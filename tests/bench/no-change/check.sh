# The checks of forty.yaml as one writes them by hand: as few processes as can be, the argument of one ssh.
# Prints what is not as declared; the last line is "unchanged" when nothing is.
bad=0
differs() {
    echo "differs: $1"
    bad=1
}

packages='bash-completion bzip2 cron file htop jq less logrotate lsof nano netcat-openbsd psmisc rsync rsyslog tmux tree unzip whois xz-utils zip'
count=$(dpkg-query -W -f '${db:Status-Status}\n' $packages | grep -c '^installed$')
[ "$count" = 20 ] || differs packages

sha256sum --check --strict --quiet <<'END' || differs content
3ac0669add6535ff54f99633bf58c4fe3fe89e3fadf87d08f6ef5a1d0a6c1888  /etc/sudoers.d/forty
23005fa066ca372b9a59b5793fdaad41f1851585ca16d9c5b74f545145383cc5  /etc/motd
bb8aa32ce2305bf19c1f09255c79dfdc57280785831ba0e4cb61febefb453f25  /etc/issue.net
b6f717c7dc941c547457dfc1ff46bec3153d5f05de38855cbb1de41edd0d4e76  /etc/sysctl.d/60-forty.conf
b183243c8852f651974ef5c2b5e0b86a6f528f35e8f3c404c035c4d269f63840  /etc/cron.d/forty
a165901624214f54acc18329c03fcc29ea9ab9ba9e7cb738bb403e7285ec32bb  /etc/logrotate.d/forty
33c5b6cb8dcde95e1b882724b0f8f18f6618375d19cae7c8d96165684dc4d03d  /etc/profile.d/forty.sh
1cd2226dfd2fdc214fe16141d0b0d21cd3ae49d8e4dd411934aa3794526f14a3  /etc/rsyslog.d/60-forty.conf
f96ca17246ca7eb53e0026bb8eb10cfe291a09e5060e43199b3dd3bb87492870  /etc/security/limits.d/60-forty.conf
1547385d497c71d08130656a6cea8f1f62fbfc89c9474a016aaa3aec967bcb68  /etc/tmpfiles.d/forty.conf
6504ec18ae9c6f1308caea989cef54beac56f22589188b9310a865a333a213b5  /etc/ssh/sshd_config.d/60-forty.conf
86aa08cf3d44027b84d8e076e55ae4d0c7a45eccf4caa95cc05ab27170df2cec  /etc/forty.conf
65f17d1cb2e526de384b376ff6c39b55682f95c4f440ebdb2657ab0eeee7e38d  /usr/local/bin/forty
END
want='root:root:440 /etc/sudoers.d/forty
root:root:644 /etc/motd
root:root:644 /etc/issue.net
root:root:644 /etc/sysctl.d/60-forty.conf
root:root:644 /etc/cron.d/forty
root:root:644 /etc/logrotate.d/forty
root:root:644 /etc/profile.d/forty.sh
root:root:644 /etc/rsyslog.d/60-forty.conf
root:root:644 /etc/security/limits.d/60-forty.conf
root:root:644 /etc/tmpfiles.d/forty.conf
root:root:600 /etc/ssh/sshd_config.d/60-forty.conf
root:adm:640 /etc/forty.conf
root:root:755 /usr/local/bin/forty
root:root:755 /srv/forty'
paths=$(echo "$want" | cut -d ' ' -f 2)
[ "$(stat -c '%U:%G:%a %n' $paths)" = "$want" ] || differs "owner or mode"

case $(getent passwd forty) in
*:/bin/bash) ;;
*) differs user ;;
esac

# With several units systemctl is content when one is as asked for; so its words are counted.
active=$(systemctl is-active cron rsyslog ssh logrotate.timer systemd-logind | grep -c '^active$')
[ "$active" = 5 ] || differs "what runs"
enabled=$(systemctl is-enabled cron rsyslog ssh logrotate.timer | grep -c '^enabled$')
[ "$enabled" = 4 ] || differs "what starts at boot"

[ $bad = 0 ] && echo unchanged
exit $bad
