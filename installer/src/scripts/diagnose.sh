# Why the agent does not run, or runs without a session: its own words.
systemctl show -p ActiveState -p SubState -p Result -p ExecMainStatus -p NRestarts @UNIT@ 2>&1 </dev/null
journalctl -u @UNIT@ -n 15 --no-pager -o cat 2>&1 </dev/null | cut -c 1-300
exit 0
