//! What a profile that holds together becomes.

use std::path::Path;

use postern::profile::{Bundle, Compiled, Inputs, SHIPPED, about, compile, load};
use serde_json::json;

use crate::support::{addresses, map};

fn plan(text: &str, vars: &[(&str, &str)]) -> Compiled {
    plans(&[text], vars).unwrap_or_else(|found| panic!("{found:?}"))
}

fn plans(texts: &[&str], vars: &[(&str, &str)]) -> Result<Compiled, Vec<String>> {
    let bundle = |(i, text): (usize, &&str)| Bundle::new(&format!("{i}.yaml"), text.as_bytes());
    let bundles: Vec<_> = texts.iter().enumerate().map(bundle).collect();
    let inputs = Inputs { vars: map(vars), ..Inputs::default() };
    compile(&bundles, &[], &inputs).map_err(|found| found.iter().map(ToString::to_string).collect())
}

#[test]
fn the_field_decides_what_a_scalar_means() {
    let compiled = plan(
        r#"
name: p
vars: {on: yes please, port: 80, strict: true, seconds: 9}
resources:
  - file: {path: /a, content: no, mode: 0644, owner: "root"}
  - file: {path: /b, content: 1.10}
  - file:
      path: /c
      content: |
        {% if strict %}
        strict {{ on }}
        {% endif %}
        port={{ port + 1 }}
  - service: {name: ssh, enabled: "{{ strict }}"}
  - command:
      argv: [echo, 7, true, "{{ port }}", ~root]
      timeout_s: "{{ seconds }}"
      env: {PORT: 80}
    id: say
  - command: {shell: "echo {{ '{{' }}", idempotent: true}
"#,
        &[],
    );
    let specs: Vec<_> = compiled.plan.resources.iter().map(|resource| resource.spec.clone()).collect();
    assert_eq!(
        specs,
        [
            json!({"path": "/a", "content": "no", "mode": "0644", "owner": "root"}),
            json!({"path": "/b", "content": "1.10"}),
            json!({"path": "/c", "content": "strict yes please\nport=81\n"}),
            json!({"name": "ssh", "enabled": true}),
            json!({
                "argv": ["echo", "7", "true", "80", "~root"], "timeout_s": 9, "env": {"PORT": "80"},
            }),
            json!({"shell": "echo {{", "idempotent": true}),
        ]
    );
    assert_eq!(
        addresses(&compiled),
        ["p:file:/a", "p:file:/b", "p:file:/c", "p:service:ssh", "p:command:say", "p:command:echo {{"]
    );
}

#[test]
fn a_value_cannot_add_structure() {
    let text = "name: p\nvars: {motd: x}\nresources:\n  - file: {path: /a, content: \"{{ motd }}\"}\n";
    let evil = "x\"}\n  - command: {shell: reboot}\n{{ motd }}{% for %}";
    let compiled = plan(text, &[("motd", evil)]);
    assert_eq!(compiled.plan.resources.len(), 1);
    assert_eq!(compiled.plan.resources[0].spec["content"], evil);
}

#[test]
fn given_values_are_like_the_default() {
    let text = "name: p\nvars: {strict: true, port: 80, name: }\nresources:\n  \
                - file: {path: /a, content: \"{% if strict %}s{% endif %}{{ port + 1 }}{{ name }}\"}\n";
    let content = |vars: &[(&str, &str)]| plan(text, vars).plan.resources[0].spec["content"].clone();
    assert_eq!(content(&[("name", "n")]), "s81n");
    assert_eq!(content(&[("name", "007"), ("strict", "false"), ("port", "1")]), "2007");
    let got = plans(&[text], &[("name", "n"), ("port", "many"), ("strict", "no")]).unwrap_err();
    assert_eq!(
        got,
        [
            "0.yaml:2:8: variable strict wants true or false, --var gives \"no\"",
            "0.yaml:2:22: variable port wants a whole number, --var gives \"many\"",
        ]
    );
    let got = plans(&[text], &[("name", "n"), ("prot", "1")]).unwrap_err();
    assert_eq!(got, ["--var:1:1: unknown variable \"prot\" (did you mean port?)"]);
}

#[test]
fn profiles_compose() {
    let a = "name: a\nvars: {x: 1}\nresources:\n  - package: {name: curl}\n  - command: {argv: [date]}\n";
    let b = "name: b\nvars: {y: 2}\nresources:\n  - package: {name: curl}\n  - package: {name: wget}\n  \
             - command: {argv: [date]}\n";
    let compiled = plans(&[a, b], &[("x", "3"), ("y", "4")]).unwrap();
    // What both want is taken once; an action is not a thing, so each profile has its own.
    assert_eq!(
        addresses(&compiled),
        ["a:package:curl", "a:command:date", "b:package:wget", "b:command:date",]
    );
    assert_eq!(compiled.origin(), "a + b");

    let other = "name: c\nresources:\n  - package: {name: curl, state: absent}\n";
    assert_eq!(
        plans(&[a, other], &[]).unwrap_err(),
        [
            "1.yaml:3:5: package \"curl\" of profile c contradicts profile a, 0.yaml:4 (one plan cannot want two \
             things of one resource)"
        ]
    );
    let same = "name: a\nresources:\n  - command: {argv: [date], idempotent: true}\n";
    assert_eq!(
        plans(&[a, same], &[]).unwrap_err(),
        ["1.yaml:3:5: a:command:date contradicts 0.yaml:5 (one plan cannot want two things of one resource)"]
    );
    // The same profile twice is that profile.
    assert_eq!(plans(&[a, a], &[]).unwrap().plan, plans(&[a], &[]).unwrap().plan);
}

#[test]
fn aliases_are_values() {
    let compiled = plan(
        "name: p\nresources:\n  - file: {path: /a, content: &c \"hi\\n\", owner: &o root}\n  \
         - file: {path: /b, content: *c, owner: *o}\n",
        &[],
    );
    assert_eq!(compiled.plan.resources[1].spec, json!({"path": "/b", "content": "hi\n", "owner": "root"}));
}

#[test]
fn the_same_profile_is_the_same_plan() {
    let hash = || plan(SHIPPED[0].text, &[]).plan.to_bytes().unwrap().1;
    assert_eq!(hash(), hash());
}

#[test]
fn every_shipped_profile_compiles_and_says_what_it_is() {
    for shipped in SHIPPED {
        let bundle = load(shipped.name, Path::new("/")).unwrap();
        let about = about(&bundle);
        assert_eq!(about.name.as_deref(), Some(shipped.name));
        assert!(!about.description.is_empty());
        // What must be given has a value that any text would do for.
        let missing = about.variables.into_iter().filter(|(_, default)| default.is_none());
        let vars = missing.map(|(name, _)| (name.clone(), sample(&name).to_owned())).collect();
        let inputs = Inputs { vars, ..Inputs::default() };
        let compiled = compile(&[bundle], &[], &inputs).unwrap_or_else(|found| panic!("{found:?}"));
        assert_eq!(compiled.origin(), shipped.name);
    }
}

fn sample(variable: &str) -> &'static str {
    match variable {
        "admin_key" => {
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7v0FfLYOaQdrB8LCgF0d2BmZ8xJGkGkQq0pZzvYd5R me@example"
        }
        "domain" => "www.example.org",
        "image" => "nginx:1",
        other => panic!("say what {other} could be"),
    }
}

#[test]
fn hello_has_all_four_kinds() {
    let compiled = compile(&[load("hello", Path::new("/")).unwrap()], &[], &Inputs::default()).unwrap();
    assert_eq!(
        addresses(&compiled),
        ["hello:package:cron", "hello:file:motd", "hello:service:cron", "hello:command:first-hello",]
    );
    assert_eq!(compiled.plan.resources[1].spec["content"], "Managed by Postern\n");
}

#[test]
fn profiles_are_found_by_name_and_by_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    std::fs::write(&path, "name: x\n").unwrap();
    assert_eq!(load("x.yaml", dir.path()).unwrap().text(), Some("name: x\n"));
    assert_eq!(
        load("helo", Path::new("/")).unwrap_err().to_string(),
        "helo:1:1: there is no shipped profile of this name (did you mean hello?)"
    );
    assert!(load("./none.yaml", dir.path()).unwrap_err().message.starts_with("cannot be read: No such file"));
    assert!(load("./", dir.path()).unwrap_err().message.starts_with("cannot be read: "));
}
