//! Units that the way to a host lies over: what puts their files in force is made under guard, and so are the files.

use crate::support::{Host, Told, complete, file, to_the_end, until};
use crate::vantage::{Says, guards_left, open};
use postern_proto::event::{EventKind, Outcome};
use serde_json::{Value, json};

const CONF: &str = "/etc/sshd.conf";

/// A host with an SSH server whose file is older than its start, under a named double of systemctl that writes down
/// what it is told to do. `does` is what it does for `enable`.
fn with_ssh(does: &str) -> Host {
    let host = Host::new();
    std::fs::write(host.root().join(CONF.trim_start_matches('/')), "old\n").unwrap();
    std::fs::write(host.path("started"), "1").unwrap();
    let script = format!(
        r#"case "$1" in
           show) case "$*" in
               *Listen*) printf 'Id=ssh.socket\nActiveState=active\nListen=0.0.0.0:22 (Stream)\n';;
               *) while [ "$1" != -- ]; do shift; done; shift
                  for unit; do
                      printf 'LoadState=loaded\nActiveState=active\nSubState=running\nNeedDaemonReload=no\n'
                      test -e {enabled} && echo UnitFileState=enabled || echo UnitFileState=disabled
                      echo "ExecMainStartTimestampMonotonic=$(cat {started})"; echo "Names=$unit"; echo
                  done;;
               esac;;
           restart) echo "$@" >>{calls}; cat {conf} >>{read}
               # What a way back starts is older than what is written after it.
               [ $(($(grep -c restart {calls}) % 2)) = 0 ] && echo 1 >{started} || echo 999999999999999 >{started};;
           enable) echo "$@" >>{calls}; touch {enabled}; {does};;
           disable) echo "$@" >>{calls}; rm -f {enabled};;
           esac"#,
        enabled = host.path("enabled"),
        started = host.path("started"),
        calls = host.path("calls"),
        read = host.path("read"),
        conf = host.root().join(CONF.trim_start_matches('/')).display(),
    );
    host.fake("systemctl", &script);
    host
}

/// A file and the unit that reads it.
fn resources(enabled: Option<bool>) -> [(&'static str, &'static str, Value); 2] {
    let mut service = json!({"name": "ssh", "state": "running", "restart_on": [CONF]});
    if let Some(enabled) = enabled {
        service["enabled"] = json!(enabled);
    }
    [("conf", "file", file(CONF, "new\n")), ("ssh", "service", service)]
}

fn text(host: &Host, name: &str) -> String {
    std::fs::read_to_string(host.path(name)).unwrap_or_default()
}

fn conf(host: &Host) -> String {
    std::fs::read_to_string(host.root().join(CONF.trim_start_matches('/'))).unwrap_or_default()
}

fn outcomes(told: &Told) -> Vec<Outcome> {
    told.outcomes().into_iter().map(|(_, outcome)| outcome).collect()
}

/// What a restart puts in force was written before, by another resource: both are taken back, and what runs has read
/// the old file.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_cuts_the_host_off_is_taken_back_with_the_files_it_read() {
    let mut host = with_ssh("true");
    let work = open(&host, &[Says::Yes, Says::No]);
    let dispatch = host.dispatch(&resources(None));
    let told = complete(&work, dispatch).await;
    assert_eq!(outcomes(&told), [Outcome::Changed, Outcome::Failed], "{:?}", told.messages());
    assert!(told.messages()[1].contains("the change was taken back"), "{:?}", told.messages());
    assert_eq!(conf(&host), "old\n");
    assert_eq!(text(&host, "read"), "new\nold\n");
    assert_eq!(guards_left(&host), 0);

    // Nothing is in the way of another try, and what holds stays.
    std::fs::write(host.path("started"), "1").unwrap();
    work.kill().await;
    let work = open(&host, &[Says::Yes]);
    let dispatch = host.dispatch(&resources(None));
    let told = complete(&work, dispatch).await;
    assert_eq!(outcomes(&told), [Outcome::Changed, Outcome::Changed], "{:?}", told.messages());
    assert_eq!((conf(&host).as_str(), text(&host, "read").as_str()), ("new\n", "new\nold\nnew\n"));
    assert!(told.messages()[1].contains("link"), "{:?}", told.messages());
}

/// An earlier run wrote the file, and its unit was never restarted: what that run replaced is what comes back.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_wrote_and_nothing_has_read_is_taken_back_too() {
    let mut host = with_ssh("true");
    let work = open(&host, &[Says::Yes, Says::No]);
    let [conf_only, _] = resources(None);
    let dispatch = host.dispatch(&[conf_only]);
    assert_eq!(outcomes(&complete(&work, dispatch).await), [Outcome::Changed]);
    let dispatch = host.dispatch(&resources(None));
    let told = complete(&work, dispatch).await;
    assert_eq!(outcomes(&told), [Outcome::Unchanged, Outcome::Failed], "{:?}", told.messages());
    assert_eq!((conf(&host).as_str(), text(&host, "read").as_str()), ("old\n", "new\nold\n"));
}

/// The agent is gone before the restart is confirmed: unit and file are taken back, and both are done again.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_before_it_confirmed_does_all_of_it_again() {
    let mut host = with_ssh("true");
    let work = open(&host, &[Says::Yes, Says::Nothing]);
    let dispatch = host.dispatch(&resources(None));
    let run = dispatch.run;
    work.engine.dispatch(dispatch).await.unwrap();
    until("the restart", || text(&host, "read") == "new\n").await;
    work.kill().await;
    std::fs::write(host.path("started"), "1").unwrap();
    let work = open(&host, &[Says::Yes]);
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(told.end().0, postern_proto::event::RunState::Ok, "{:?}", told.messages());
    assert_eq!((conf(&host).as_str(), text(&host, "read").as_str()), ("new\n", "new\nold\nnew\n"));
}

/// What somebody else wrote after the run did is his, and it is said that it stays.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_since_is_left_alone_and_told() {
    let mut host = with_ssh("true");
    let work = open(&host, &[Says::Yes, Says::No]);
    let [conf_only, service] = resources(None);
    let path = host.root().join(CONF.trim_start_matches('/'));
    let by_hand = ("hand", "command", json!({"shell": format!("echo by hand >{}", path.display())}));
    let dispatch = host.dispatch(&[conf_only, by_hand, service]);
    let told = complete(&work, dispatch).await;
    assert_eq!(
        outcomes(&told),
        [Outcome::Changed, Outcome::Changed, Outcome::Failed],
        "{:?}",
        told.messages()
    );
    assert_eq!(conf(&host), "by hand\n");
    let said = told.events.iter().any(|event| {
        matches!(&event.kind, EventKind::StepStarted { summary, .. }
            if summary.contains("/etc/sshd.conf would stay as it is now (somebody has changed it since)"))
    });
    assert!(said, "{:?}", told.events);
}

/// A file that was as declared before the run is not this run's to take back.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_run_did_not_change_stay() {
    let mut host = with_ssh("true");
    std::fs::write(host.root().join(CONF.trim_start_matches('/')), "new\n").unwrap();
    let work = open(&host, &[Says::Yes, Says::No]);
    let dispatch = host.dispatch(&resources(None));
    let told = complete(&work, dispatch).await;
    assert_eq!(*outcomes(&told).last().unwrap(), Outcome::Failed, "{:?}", told.messages());
    assert_eq!(conf(&host), "new\n");
    assert_eq!(text(&host, "calls").lines().count(), 2, "{}", text(&host, "calls"));
}

/// The guard is over in the middle of the steps, as its timer may have it: the next one does not begin, or it would
/// change again what was taken back.
#[tokio::test(flavor = "multi_thread")]
async fn no_step_begins_once_its_guard_is_over() {
    let over = "for d in $GUARDS/*; do mv $d/armed $d/reverted; done";
    let mut host = with_ssh(&over.replace("$GUARDS", "\"$(cat \"$(dirname \"$0\")/guards\")\""));
    std::fs::write(host.path("bin/guards"), host.state().join("guard").display().to_string()).unwrap();
    let work = open(&host, &[Says::Yes]);
    let dispatch = host.dispatch(&resources(Some(true)));
    let told = complete(&work, dispatch).await;
    assert!(
        told.messages()[1].contains("the time that its guard gives it is over"),
        "{:?} {}",
        told.messages(),
        text(&host, "calls")
    );
    // The one restart is that of the way back.
    let calls = text(&host, "calls");
    assert_eq!(
        calls.lines().collect::<Vec<_>>(),
        ["enable -- ssh.service", "disable -- ssh.service", "restart -- ssh.service"]
    );
    assert_eq!((conf(&host).as_str(), text(&host, "read").as_str()), ("old\n", "old\n"));
}

/// A controller that is there and cannot look is one to wait for: the run is parked once, and not begun and parked
/// again at each try.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_there_and_cannot_look_is_waited_for() {
    let mut host = with_ssh("true");
    let work = open(&host, &[Says::Blind, Says::Blind, Says::Blind, Says::Yes]);
    let dispatch = host.dispatch(&resources(None));
    let run = dispatch.run;
    let mut outbox = work.engine.attach(vec![], vec![]).await;
    work.engine.dispatch(dispatch).await.unwrap();
    let mut told = Told::default();
    to_the_end(&work.engine, &mut outbox, run, &mut told).await;
    assert_eq!(outcomes(&told), [Outcome::Changed, Outcome::Changed], "{:?}", told.messages());
    let parked = told.events.iter().filter(|event| matches!(event.kind, EventKind::Parked { .. })).count();
    assert_eq!(parked, 1);
}
