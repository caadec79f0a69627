# The first half of the survey runs as the login user: what sudo would hide.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
umask 077
say() { printf '%s=%s\n' "$1" "$2"; }
say begin survey
say uid "$(id -u)"
say home "$HOME"
say ssh_connection "$SSH_CONNECTION"
