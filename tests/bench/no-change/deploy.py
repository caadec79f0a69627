"""The resources of forty.yaml as one writes them for pyinfra: the packages are one operation."""

from io import StringIO

from pyinfra.operations import apt, files, server, systemd

apt.packages(
    name="packages",
    packages=[
        "bash-completion",
        "bzip2",
        "cron",
        "file",
        "htop",
        "jq",
        "less",
        "logrotate",
        "lsof",
        "nano",
        "netcat-openbsd",
        "psmisc",
        "rsync",
        "rsyslog",
        "tmux",
        "tree",
        "unzip",
        "whois",
        "xz-utils",
        "zip",
    ],
)

files.directory(name="directory", path="/srv/forty", mode="755")
server.user(name="user", user="forty", shell="/bin/bash", create_home=True)


def put(dest, content, mode="644", group="root"):
    files.put(name=dest, src=StringIO(content), dest=dest, user="root", group=group, mode=mode)


put(
    "/etc/sudoers.d/forty",
    "forty ALL=(root) NOPASSWD: /usr/bin/systemctl reload cron.service\n",
    mode="440",
)
put(
    "/etc/motd",
    "This host is managed. Changes made by hand do not last.\n",
)
put(
    "/etc/issue.net",
    "Authorised use only.\n",
)
put(
    "/etc/sysctl.d/60-forty.conf",
    "net.ipv4.tcp_syncookies = 1\n"
    "net.ipv4.conf.all.rp_filter = 2\n",
)
put(
    "/etc/cron.d/forty",
    "SHELL=/bin/sh\n"
    "17 4 * * * forty /usr/local/bin/forty --clean\n",
)
put(
    "/etc/logrotate.d/forty",
    "/var/log/forty.log {\n"
    "    weekly\n"
    "    rotate 8\n"
    "    compress\n"
    "    missingok\n"
    "}\n",
)
put(
    "/etc/profile.d/forty.sh",
    "export PAGER=less\n"
    "export EDITOR=nano\n",
)
put(
    "/etc/rsyslog.d/60-forty.conf",
    "if $programname == 'forty' then /var/log/forty.log\n",
)
put(
    "/etc/security/limits.d/60-forty.conf",
    "forty soft nofile 8192\n"
    "forty hard nofile 16384\n",
)
put(
    "/etc/tmpfiles.d/forty.conf",
    "d /run/forty 0750 forty forty -\n",
)
put(
    "/etc/ssh/sshd_config.d/60-forty.conf",
    "X11Forwarding no\n"
    "MaxAuthTries 4\n",
    mode="600",
)
put(
    "/etc/forty.conf",
    "[forty]\n"
    "interval = 60\n"
    "keep = 8\n",
    mode="640",
    group="adm",
)
put(
    "/usr/local/bin/forty",
    "#!/bin/sh\n"
    "# Clears what is older than a week.\n"
    "exec find /srv/forty -type f -mtime +7 -delete\n",
    mode="755",
)

systemd.service(name="cron", service="cron", running=True, enabled=True)
systemd.service(name="rsyslog", service="rsyslog", running=True, enabled=True)
systemd.service(name="ssh", service="ssh", running=True, enabled=True)
systemd.service(name="logrotate.timer", service="logrotate.timer", running=True, enabled=True)
systemd.service(name="systemd-logind", service="systemd-logind", running=True)
