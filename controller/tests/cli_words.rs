//! Help, mistakes and what needs no daemon: stdout, stderr and exit code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod cli_support;

use cli_support::Shell;

#[tokio::test]
async fn help_is_data_and_fits_a_screen() {
    let shell = Shell::new();
    let ended = shell.run(&["--help"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.starts_with("Takes a bare VPS to a hardened, provisioned, managed host.\n"));
    assert!(ended.stdout.lines().count() < 50, "{}", ended.stdout);
    assert!(ended.stdout.lines().all(|line| line.chars().count() <= 100), "{}", ended.stdout);
    for word in ["up ", "exec ", "serve ", "--state-dir", "Exit codes: 0", "Examples:"] {
        assert!(ended.stdout.contains(word), "{word}");
    }
    let ended = shell.run(&["--version"]).await;
    assert_eq!((ended.code, ended.stdout), (0, format!("postern {}\n", env!("CARGO_PKG_VERSION"))));
}

#[tokio::test]
async fn every_command_has_help() {
    let shell = Shell::new();
    for command in [
        &["up"][..],
        &["apply"],
        &["exec"],
        &["hosts"],
        &["host"],
        &["host", "show"],
        &["host", "forget"],
        &["runs"],
        &["run"],
        &["run", "show"],
        &["run", "logs"],
        &["run", "cancel"],
        &["profile"],
        &["profile", "list"],
        &["profile", "show"],
        &["profile", "check"],
        &["site", "backup"],
        &["site", "restore"],
        &["serve"],
        &["completions"],
    ] {
        let ended = shell.run(&[command, &["--help"]].concat()).await;
        assert_eq!(ended.code, 0, "{command:?}");
        assert!(ended.stdout.contains("Usage: postern"), "{command:?}");
    }
}

/// Arguments, exit code, what stderr begins with. stdout is always empty.
#[tokio::test]
async fn mistakes_by_table() {
    let shell = Shell::new();
    for (args, code, begins) in [
        (&[][..], 2, "Takes a bare VPS"),
        (&["upp"], 2, "error: unrecognized subcommand 'upp'"),
        (&["up"], 2, "error: the following required arguments were not provided:"),
        (&["up", "h", "--var", "novalue", "-p", "hello"], 2, "error: invalid value 'novalue' for '--var"),
        (&["up", "h", "--timeout", "soon"], 2, "error: invalid value 'soon' for '--timeout"),
        (&["up", "h", "--check"], 2, "error[usage]: --check and --var are for profiles"),
        (&["exec", "h"], 2, "error: the following required arguments were not provided:"),
        (
            &["exec", "colour=red", "--", "true"],
            2,
            "error[bad-selector]: \"colour=red\" does not select hosts",
        ),
        (&["exec", "h", "--", ""], 2, "error[usage]: the command: argv: want a program"),
        (&["--output", "xml", "hosts"], 2, "error: invalid value 'xml' for '--output"),
        (&["serve", "--listen", "nowhere:1"], 2, "error[usage]: \"nowhere:1\" is nothing to listen on"),
        (&["profile", "show", "nope"], 2, "error[profile]: nope: there is no shipped profile of this name"),
        (&["apply", "hello"], 2, "error: the following required arguments were not provided:"),
        (&["site", "backup", "h"], 2, "error: the following required arguments were not provided:"),
        (&["site", "restore", "h", "gone"], 2, "error[not-found]: there is no backup "),
    ] {
        let ended = shell.run(args).await;
        assert_eq!(ended.code, code, "{args:?}: {ended:?}");
        assert!(ended.stderr.starts_with(begins), "{args:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "", "{args:?}");
    }
}

#[tokio::test]
async fn profiles_are_compiled_before_anything_is_touched() {
    let shell = Shell::new();
    shell.file(
        "bad.yaml",
        "name: bad\nresources:\n  - pakage: {name: curl}\n  - file: {path: x, content: y}\n",
    );
    // Neither a daemon nor the host is there: nothing but the profile is looked at.
    let ended = shell.run(&["up", "root@nowhere.invalid", "-p", "bad.yaml", "-p", "gone.yaml"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert_eq!(
        ended.stderr,
        "gone.yaml:1:1: cannot be read: No such file or directory (os error 2)\n\
         bad.yaml:3:5: unknown kind of resource \"pakage\" (did you mean package?)\n\
         bad.yaml:4:18: file.path: \"x\": want an absolute path\n\
         error[profile]: 3 mistakes in the profile; nothing was touched\n"
    );
    assert_eq!(std::fs::read_dir(shell.state()).unwrap().count(), 0, "no state was made");
}

#[tokio::test]
async fn profile_check_says_what_a_profile_makes() {
    let shell = Shell::new();
    let ended = shell.run(&["profile", "check", "hello", "--var", "greeting=Hi"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(
        ended.stdout,
        "hello:package:cron\nhello:file:motd\nhello:service:cron\nhello:command:first-hello\n"
    );
    assert!(ended.stderr.starts_with("hello: 4 resources, plan "), "{}", ended.stderr);

    let ended = shell.run(&["profile", "check", "hello", "--var", "greting=Hi", "--output", "json"]).await;
    assert_eq!(ended.code, 2);
    let document: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(document["schema"], "postern/profile-check/v1");
    assert_eq!(document["diagnostics"][0]["hint"], "did you mean greeting?");
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!((&error["schema"], &error["code"]), (&"postern/error/v1".into(), &"profile".into()));

    let ended = shell.run(&["profile", "check", "hello", "--var", "greeting=a", "--var", "greeting=b"]).await;
    assert_eq!(ended.stderr, "error[usage]: --var gives greeting twice\n");
}

#[tokio::test]
async fn profile_list_and_show() {
    let shell = Shell::new();
    let ended = shell.run(&["profile", "list"]).await;
    assert_eq!(
        ended.stdout,
        "hello   One small resource of each kind, to see Postern at work\n\
         base    An administrator with a key and sudo, time, updates, a firewall, SSH by key only, fail2ban\n\
         swarm   base, Docker CE, a Swarm of one node, and Traefik with certificates by DNS\n\
         tunnel  swarm behind a Cloudflare Tunnel, with no port of the web open\n\
         site    A container that answers for one domain behind Traefik\n"
    );
    let ended = shell.run(&["profile", "show", "hello"]).await;
    assert_eq!(ended.stdout, postern::profile::SHIPPED[0].text);
}

#[tokio::test]
async fn the_schema_of_profiles_is_json() {
    let ended = Shell::new().run(&["profile", "schema"]).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let schema: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(schema["$schema"].as_str().unwrap().starts_with("https://json-schema.org/"), "{schema}");
}

#[tokio::test]
async fn completions_for_every_shell() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = shell.run(&["completions", name]).await;
        assert!(ended.code == 0 && ended.stdout.contains("forget"), "{name}");
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_be_started_is_said() {
    let shell = Shell::new();
    let ended = shell.run(&["hosts"]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(
        ended.stderr.starts_with("error[daemon-start]: starting /nonexistent/postern: No such file"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("\nhint: "), "{}", ended.stderr);
}
