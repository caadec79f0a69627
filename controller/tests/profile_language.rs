//! Includes, conditions, needs, holes, files, values and facts: what they make, and what is told of mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use postern::profile::{Assigned, Bundle, BundleError, Compiled, Facts, Inputs, VarFile, compile, load};
use postern::room::Room;
use serde_json::{Value, json};

fn map(values: &[(&str, &str)]) -> BTreeMap<String, String> {
    values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn facts() -> Facts {
    Facts {
        name: "web1".into(),
        labels: map(&[("role", "web")]),
        os_id: "debian".into(),
        os_version: "13".into(),
        arch: "x86_64".into(),
        hostname: "vps-7".into(),
        room: Default::default(),
    }
}

fn on_host() -> Inputs {
    Inputs { facts: Some(facts()), secrets: Some([("db/pass-1".to_owned(), 3)].into()), ..Inputs::default() }
}

/// The first file is the profile, the others are those it names.
fn bundle(files: &[(&str, &str)]) -> Bundle {
    let (first, rest) = files.split_first().unwrap();
    rest.iter().fold(Bundle::new(first.0, first.1.as_bytes()), |bundle, (name, text)| {
        bundle.with(name, text.as_bytes())
    })
}

fn run(files: &[(&str, &str)], inputs: &Inputs) -> Result<Compiled, Vec<String>> {
    compile(&[bundle(files)], &[], inputs).map_err(|found| found.iter().map(ToString::to_string).collect())
}

fn good(files: &[(&str, &str)], inputs: &Inputs) -> Compiled {
    run(files, inputs).unwrap_or_else(|found| panic!("{found:#?}"))
}

fn resources(text: &str) -> String {
    format!("name: p\nvars: {{on: true, off: false, text: hi, empty: \"\"}}\nresources:\n{text}")
}

fn addresses(compiled: &Compiled) -> Vec<&str> {
    compiled.plan.resources.iter().map(|resource| resource.address.as_str()).collect()
}

fn spec<'a>(compiled: &'a Compiled, address: &str) -> &'a Value {
    let found = compiled.plan.resources.iter().find(|resource| resource.address.as_str() == address);
    &found.unwrap_or_else(|| panic!("{address} is not in {:?}", addresses(compiled))).spec
}

#[test]
fn conditions_leave_out() {
    let text = resources(
        "  - package: {name: aa}\n    when: on and not off\n  - package: {name: bb}\n    when: text == 'no'\n  \
         - package: {name: cc}\n    when: os.version == '13' and labels.role == 'web'\n  \
         - package: {name: dd}\n    when: labels.region is defined\n  \
         - package: {name: ee}\n    when: false\n  \
         - file: {path: \"/etc/{{ empty }}\", content: x}\n    when: empty != ''\n  \
         - file: {path: /a, content: one}\n    when: arch == 'x86_64'\n  \
         - file: {path: /a, content: two}\n    when: arch != 'x86_64'\n",
    );
    let compiled = good(&[("p.yaml", &text)], &on_host());
    assert_eq!(addresses(&compiled), ["p:package:aa", "p:package:cc", "p:file:/a"]);
    assert_eq!(spec(&compiled, "p:file:/a")["content"], "one");
}

#[test]
fn facts_are_filled_in_and_every_platform_is_checked_without_them() {
    let text = resources(
        "  - file: {path: /a, content: \"{{ host.name }} {{ hostname }} {{ os.id }}{{ os.version }} {{ arch }} \
         {{ labels.role }} {{ labels.x | default('none') }}\"}\n",
    );
    let compiled = good(&[("p.yaml", &text)], &on_host());
    assert_eq!(spec(&compiled, "p:file:/a")["content"], "web1 vps-7 debian13 x86_64 web none");
    good(&[("p.yaml", &text)], &Inputs::default());

    let room = resources(
        "  - file: {path: /a, content: \"{{ memory_mb }} {{ host.swap_mb }} {{ host.var_free_mb | default('-') }}\"}\n    \
         when: host.disk_free_mb > 100 and host.var_free_mb is not defined\n  \
         - file: {path: /b, content: x}\n    when: host.swap_mb > 0\n",
    );
    let small = Room { memory_mb: Some(480), swap_mb: Some(0), disk_free_mb: Some(900), var_free_mb: None };
    let on_small = Inputs { facts: Some(Facts { room: small, ..facts() }), ..Inputs::default() };
    let compiled = good(&[("p.yaml", &room)], &on_small);
    assert_eq!(addresses(&compiled), ["p:file:/a"]);
    assert_eq!(spec(&compiled, "p:file:/a")["content"], "480 0 -");
    good(&[("p.yaml", &room)], &Inputs::default());
    // An agent that is older says nothing of it.
    assert_eq!(
        run(&[("p.yaml", &room)], &on_host()).unwrap_err(),
        [
            "p.yaml:4:35: \"memory_mb\" has no value (the host has not said how much memory it has)",
            "p.yaml:5:11: \"host.disk_free_mb\" has no value (the host has not said it; ask first: \
             host.disk_free_mb is defined)",
            "p.yaml:7:11: \"host.swap_mb\" has no value (the host has not said it; ask first: host.swap_mb is defined)",
        ]
    );
    // A variable of that name is still a profile's own.
    let own = "name: p\nvars: {swap_mb: 7}\nresources:\n  - file: {path: /a, content: \"{{ swap_mb }}\"}\n";
    assert_eq!(spec(&good(&[("p.yaml", own)], &on_small), "p:file:/a")["content"], "7");

    let only = resources(
        "  - file: {path: \"{% if os.version == '13' %}etc{% else %}/etc{% endif %}/a\", content: x}\n",
    );
    assert_eq!(
        run(&[("p.yaml", &only)], &Inputs::default()).unwrap_err(),
        ["p.yaml:4:18: on debian 13: file.path: \"etc/a\": want an absolute path"]
    );
}

#[test]
fn holes_become_parts_and_values_cannot_forge_one() {
    let text = resources(
        "  - command: {argv: [ip, addr], late: ip}\n  \
         - command: {argv: [echo, \"a{{ late.ip }}b{{ late.ip }}\"], env: {P: \"{{ secret('db/pass-1') }}\"}}\n    id: use\n  \
         - file: {path: /a, content: \"{{ text }}{% if on %}{{ secret('db/pass-1') }}{% endif %}\"}\n",
    );
    let inputs = Inputs { vars: map(&[("text", "{\"$text\": [{\"late\": \"ip\"}]}")]), ..on_host() };
    let compiled = good(&[("p.yaml", &text)], &inputs);
    let secret = json!({"secret": {"id": "db/pass-1", "version": 3}});
    assert_eq!(
        *spec(&compiled, "p:command:use"),
        json!({
            "argv": ["echo", {"$text": ["a", {"late": "ip"}, "b", {"late": "ip"}]}], "env": {"P": {"$text": [secret]}},
        })
    );
    assert_eq!(
        spec(&compiled, "p:file:/a")["content"],
        json!({"$text": ["{\"$text\": [{\"late\": \"ip\"}]}", secret]})
    );
    let bytes = || compiled.plan.to_bytes().unwrap();
    assert_eq!(bytes(), good(&[("p.yaml", &text)], &inputs).plan.to_bytes().unwrap());
}

#[test]
fn mistakes_with_holes() {
    let secret = "it would be seen by others on the host, or in logs";
    let alone = "is filled in on the host: nothing can be made of it here (no filter, comparison or condition; write {{";
    let cases: &[(&str, String)] = &[
        (
            "- command: {argv: [\"{{ secret('db/pass-1') }}\"]}",
            format!(
                "4:26: argv cannot have a secret in it: {secret} (fields of command that can: env, stdin)"
            ),
        ),
        (
            "- package: {name: \"{{ late.ip }}\"}",
            "4:25: name cannot have a late value in it (no field of package can)".into(),
        ),
        (
            "- service: {name: x, enabled: \"{{ late.ip }}\"}",
            "4:37: enabled wants true or false now, not a value that is filled in on the host".into(),
        ),
        (
            "- file: {path: /a, content: \"{{ late.ip | upper }}\"}",
            format!("4:35: late.ip {alone} late.ip }}}})"),
        ),
        (
            "- file: {path: /a, content: \"{{ late.ip ~ text }}\"}",
            format!("4:35: late.ip {alone} late.ip }}}})"),
        ),
        (
            "- file: {path: /a, content: \"{% if late.ip %}x{% endif %}\"}",
            format!("4:38: late.ip {alone} late.ip }}}})"),
        ),
        (
            "- file: {path: /a, content: \"{% if late.ip == text %}x{% endif %}\"}",
            format!("4:38: late.ip {alone} late.ip }}}})"),
        ),
        (
            "- file: {path: /a, content: \"{% for x in [late.ip] %}{{ x }}{{ x | lower }}{% endfor %}\"}",
            format!("4:45: late.ip {alone} late.ip }}}})"),
        ),
        (
            "- file: {path: /a, content: \"{{ secret('db/pas-1') }}\"}",
            "4:35: there is no secret called \"db/pas-1\" (did you mean db/pass-1?)".into(),
        ),
        (
            "- file: {path: /a, content: \"{{ secret('a b') }}\"}",
            "4:35: \"a b\" is no name for a secret (want letters, digits, -, _, . and /, at most 128)".into(),
        ),
        (
            "- file: {path: /a, content: \"{{ secret }}\"}",
            "4:35: a secret has a name (write {{ secret('name') }})".into(),
        ),
        (
            "- package: {name: curl}\n    when: late.ip == 'x'",
            "5:11: late values and secrets are not known when this is decided".into(),
        ),
        (
            "- file: {path: /a, content: \"{{ late.ip }}\"}",
            "4:35: no value is called late.ip here (a command before it yields it with late: ip)".into(),
        ),
        (
            "- file: {path: /a, content: \"{{ late.ip }}\"}\n  - command: {argv: [a], late: ip}",
            "4:35: no value is called late.ip here (its command stands after this: move it up)".into(),
        ),
        (
            "- command: {argv: [a], late: ip}\n    when: off\n  - file: {path: /a, content: \"{{ late.ip }}\"}",
            "6:35: no value is called late.ip here (its command is left out by its when:)".into(),
        ),
        (
            "- command: {argv: [a], late: ip}\n  - command: {argv: [b], late: ip}",
            "5:5: late.ip is here twice, first in p.yaml:4 (give one of them another name)".into(),
        ),
    ];
    let mut wrong = String::new();
    for (text, want) in cases {
        let got = run(&[("p.yaml", &resources(&format!("  {text}\n")))], &on_host()).map(|_| ());
        let want = Err(vec![format!("p.yaml:{want}")]);
        if got != want {
            wrong += &format!("of:\n{text}\n got {got:?}\nwant {want:?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn needs_are_resolved() {
    let text = resources(
        "  - package: {name: cron}\n  - service: {name: cron, enabled: true}\n    needs: [cron]\n  \
         - package: {name: off}\n    when: off\n  - include: q.yaml\n    id: sub\n  \
         - command: {argv: [date]}\n    id: d\n    needs: [\"service:cron\", off, sub, \"p/sub:file:/q\"]\n  \
         - command: {argv: [w]}\n    needs: []\n",
    );
    let q = "name: q\nresources:\n  - file: {path: /q, content: x}\n  - file: {path: /r, content: x}\n    needs: [/q]\n";
    let compiled = good(&[("p.yaml", &text), ("q.yaml", q)], &on_host());
    let needs: Vec<_> = compiled
        .plan
        .resources
        .iter()
        .map(|resource| {
            resource.needs.as_ref().map(|needs| needs.iter().map(|it| it.as_str()).collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        needs,
        [
            None,
            Some(vec!["p:package:cron"]),
            None,
            Some(vec!["p/sub:file:/q"]),
            Some(vec!["p:service:cron", "p/sub:file:/q", "p/sub:file:/r"]),
            Some(vec![]),
        ]
    );
}

#[test]
fn included_profiles_have_scopes_and_their_own_variables() {
    let outer = "name: out\nvars: {port: 80}\nresources:\n  - include: sub/db.yaml\n    vars: {name: \"x{{ port + 1 }}\"}\n  \
                 - include: sub/db.yaml\n    id: second\n    vars: {name: y, size: 7}\n  - include: sub/db.yaml\n    id: third\n    when: port == 81\n";
    let db = "name: db\nvars: {name: , size: 1}\nresources:\n  - file: {path: \"/{{ name }}\", template: t.j2}\n  - include: ../leaf.yaml\n";
    let leaf = "name: leaf\nresources:\n  - package: {name: curl}\n";
    let files = [
        ("d/out.yaml", outer),
        ("d/sub/db.yaml", db),
        ("d/sub/t.j2", "size {{ size + 1 }}\n"),
        ("d/leaf.yaml", leaf),
    ];
    let compiled = good(&files, &on_host());
    // What two includes want in the same words is one resource.
    assert_eq!(addresses(&compiled), ["out/db:file:/x81", "out/db/leaf:package:curl", "out/second:file:/y"]);
    assert_eq!(spec(&compiled, "out/db:file:/x81")["content"], "size 2\n");
    assert_eq!(spec(&compiled, "out/second:file:/y")["content"], "size 8\n");
}

/// Files, and what is told of them.
#[test]
fn mistakes_by_table() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let q = ("q.yaml", "name: q\nvars: {must: , size: 1}\nresources:\n  - package: {name: curl}\n");
    let cases: &[Case<'_>] = &[
        (
            "- package: {name: curl}\n    when: \"{{ on }}\"",
            &[],
            &["p.yaml:5:11: when: is an expression already (write it without {{ and }})"],
        ),
        (
            "- package: {name: curl}\n    when: onn",
            &[],
            &["p.yaml:5:11: no variable is called \"onn\" (did you mean on?)"],
        ),
        (
            "- package: {name: curl}\n    when: ons == 'x' or offs",
            &[],
            &[
                "p.yaml:5:11: no variable is called \"ons\" (did you mean on?)",
                "p.yaml:5:25: no variable is called \"offs\" (did you mean off?)",
            ],
        ),
        (
            "- package: {name: curl}\n    when: text",
            &[],
            &["p.yaml:5:11: when wants true or false, this is \"hi\" (compare it: when: name == 'value')"],
        ),
        (
            "- package: {name: curl}\n    when: os.name == 'x'",
            &[],
            &["p.yaml:5:11: \"os.name\" has no value (known: os.id, os.version)"],
        ),
        ("- package: {name: curl}\n    when:", &[], &["p.yaml:5:9: when wants a condition, this is nothing"]),
        (
            "- package: {name: curl}\n    when: on and",
            &[],
            &[
                "p.yaml:5:14: this is no condition: unexpected end of input, expected expression (write it like: os.version == \
                 '12' and not strict)",
            ],
        ),
        // What is left out is checked all the same.
        (
            "- package: {nmae: \"{{ textt }}\"}\n    when: off",
            &[],
            &[
                "p.yaml:4:5: package needs name",
                "p.yaml:4:15: unknown field of package \"nmae\" (did you mean name?)",
            ],
        ),
        (
            "- package: {name: \"{{ textt }}\"}\n    when: off",
            &[],
            &["p.yaml:4:25: no variable is called \"textt\" (did you mean text?)"],
        ),
        (
            "- package: {name: C}\n    when: off",
            &[],
            &[
                "p.yaml:4:21: package.name: \"C\": want a package name: lower case letters, digits, +, - and .",
            ],
        ),
        (
            "- package: {name: curl}\n    needs: [curl]",
            &[],
            &["p.yaml:5:13: a resource cannot need itself (leave it out)"],
        ),
        (
            "- package: {name: curl}\n    needs: wget",
            &[],
            &["p.yaml:5:12: needs wants a list of ids, this is \"wget\" (write needs: [one, two])"],
        ),
        (
            "- package: {name: curl}\n  - package: {name: wget}\n    needs: [crul, \"p:package:crl\"]",
            &[],
            &[
                "p.yaml:6:13: unknown id in needs \"crul\" (did you mean curl?)",
                "p.yaml:6:19: unknown id in needs \"p:package:crl\" (did you mean p:package:curl?)",
            ],
        ),
        (
            "- package: {name: curl}\n    needs: [wget]\n  - package: {name: wget}",
            &[],
            &["p.yaml:5:13: \"wget\" does not stand before this (move it up: what is needed stands first)"],
        ),
        (
            "- package: {name: cron}\n  - service: {name: cron, enabled: true}\n  - command: {argv: [a]}\n    needs: [cron]",
            &[],
            &[
                "p.yaml:7:13: \"cron\" can be p:package:cron or p:service:cron (write kind:name, or give one of them another \
               id:)",
            ],
        ),
        (
            "- include: q.yaml\n    vars: {size: big, colour: red}",
            &[q],
            &[
                "p.yaml:5:31: unknown variable \"colour\" (known: must, size)",
                "p.yaml:4:5: variable must has no value (give it one here: vars: {must: …})",
                "p.yaml:5:18: variable size wants a whole number, this is \"big\"",
            ],
        ),
        (
            "- include: q.yaml\n    vars: {must: \"{{ secret('db/pass-1') }}\"}",
            &[q],
            &[
                "p.yaml:5:18: a value that is filled in on the host cannot be passed on (pass the secret's name, and write \
             secret(name) there)",
            ],
        ),
        (
            "- include: q.yaml\n    vars: {must: a}\n  - include: q.yaml\n    vars: {must: b}",
            &[q],
            &["p.yaml:6:5: p/q is here twice, first in line 4 (give one of them another id:)"],
        ),
        (
            "- include: q.yaml\n    needs: [a]\n    vars: {must: a}",
            &[q],
            &["p.yaml:5:5: unknown field of an include \"needs\" (known: include, id, vars, when)"],
        ),
        (
            "- include: r.yaml\n    when: off",
            &[("r.yaml", "name: r\nresources:\n  - include: p.yaml\n")],
            &["r.yaml:3:14: p.yaml includes itself: p.yaml -> r.yaml -> p.yaml"],
        ),
        (
            "- include: none.yaml",
            &[],
            &["p.yaml:4:14: none.yaml is not among the files of this profile, which are 256 at most"],
        ),
        ("- include: \"{{ text }}.yaml\"", &[], &["p.yaml:4:14: include cannot have variables in it"]),
        (
            "- file: {path: /a, template: t.j2}",
            &[("t.j2", "one\ntwo {{ textt }}\n{{ empt }}\n")],
            &[
                "t.j2:2:8: no variable is called \"textt\" (did you mean text?)",
                "t.j2:3:4: no variable is called \"empt\" (did you mean empty?)",
            ],
        ),
        (
            "- file: {path: /a, template: t.j2}",
            &[("t.j2", "one\n{% if on %}")],
            &[
                "t.j2:2:10: the template does not render: unexpected end of input, expected end of block (for a text with \
             {{ in it: \"{{ '{{' }}\")",
            ],
        ),
        (
            "- file: {path: /a, source: t, content: x}",
            &[("t", "x")],
            &["p.yaml:4:33: file has one of content, source, template"],
        ),
        (
            "- package: {name: curl, source: t}",
            &[("t", "x")],
            &["p.yaml:4:27: unknown field of package \"source\" (known: name, state, version, hold)"],
        ),
    ];
    let mut wrong = String::new();
    for (text, others, want) in cases {
        let root = resources(&format!("  {text}\n"));
        let mut files = vec![("p.yaml", root.as_str())];
        files.extend_from_slice(others);
        let got = run(&files, &on_host()).map(|_| ()).unwrap_err();
        if got != *want {
            wrong += &format!("of:\n{text}\n got {got:#?}\nwant {want:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn a_variable_cannot_hide_a_fact() {
    let got =
        run(&[("p.yaml", "name: p\nvars: {os: x}\nresources:\n  - package: {name: curl}\n")], &on_host());
    assert_eq!(
        got.map(|_| ()).unwrap_err(),
        ["p.yaml:2:8: a variable cannot be called os (it would hide what is known of the host)"]
    );
}

#[test]
fn the_strongest_value_counts() {
    let text = "name: p\nvars: {a: 1, b: 1, c: 1, d: 1}\nresources:\n  - file: {path: /a, content: \"{{ a }}{{ b }}{{ c }}{{ d }}\"}\n";
    let file = |name: &str, text: &str| VarFile { file: name.into(), bytes: text.into() };
    let inputs = Inputs {
        vars: map(&[("a", "5")]),
        var_files: vec![file("one.yaml", "a: 3\nb: 3\nc: 3\n"), file("two.json", "{\"b\": 4, \"a\": 4}\n")],
        host_vars: map(&[("a", "2"), ("b", "2"), ("c", "2"), ("d", "2"), ("other", "x")]),
        ..on_host()
    };
    let compiled = good(&[("p.yaml", text)], &inputs);
    assert_eq!(spec(&compiled, "p:file:/a")["content"], "5432");
    // What the command gave is kept with the assignment; what the host has stays there.
    assert_eq!(compiled.parts[0].vars, map(&[("a", "5"), ("b", "4"), ("c", "3")]));

    let inputs = Inputs {
        var_files: vec![
            file("v.yaml", "a: many\nbb: 1\nc: [1]\nd:\n"),
            file("w.yaml", "- a\n"),
            file("x.yaml", ""),
        ],
        ..on_host()
    };
    assert_eq!(
        run(&[("p.yaml", text)], &inputs).unwrap_err(),
        [
            "x.yaml:1:1: the file is empty (a file of values is a map of names and values)",
            "w.yaml:1:1: want a map of names and values",
            "v.yaml:3:4: \"c\" wants a text, a number or true/false, this is a list",
            "v.yaml:4:2: \"d\" wants a text, a number or true/false, this is nothing",
            "v.yaml:1:4: variable a wants a whole number, this is \"many\"",
            "v.yaml:2:5: unknown variable \"bb\" (did you mean b?)",
        ]
    );
}

#[test]
fn what_a_host_has_already_is_part_of_the_plan() {
    let assigned = |name: &str, text: &str, vars: &[(&str, &str)]| Assigned {
        name: name.into(),
        bundle: bundle(&[(&format!("{name}.yaml"), text)]),
        vars: map(vars),
    };
    let one = assigned(
        "one",
        "name: one\nvars: {x: }\nresources:\n  - package: {name: \"{{ x }}\"}\n",
        &[("x", "curl")],
    );
    let two = assigned("two", "name: two\nresources:\n  - command: {argv: [ip], late: ip}\n", &[]);
    let new = bundle(&[(
        "new.yaml",
        "name: new\nresources:\n  - file: {path: /a, content: \"{{ late.ip }}\"}\n    needs: [\"two:command:ip\"]\n",
    )]);
    let again =
        bundle(&[("b.yaml", "name: one\nvars: {x: wget}\nresources:\n  - package: {name: \"{{ x }}\"}\n")]);
    let had = [one, two];
    // What it was applied with stays, stronger than what the host has for all profiles, until it is given anew.
    let mut inputs = on_host();
    inputs.host_vars = map(&[("x", "nano")]);
    let compiled = compile(std::slice::from_ref(&again), &had, &inputs).unwrap();
    assert_eq!(addresses(&compiled), ["one:package:curl", "two:command:ip"]);
    assert_eq!(compiled.parts[0].vars, map(&[("x", "curl")]), "and it is kept again");
    let compiled = compile(std::slice::from_ref(&again), &[], &inputs).unwrap();
    assert_eq!(addresses(&compiled), ["one:package:nano"]);
    inputs.vars = map(&[("x", "wget")]);
    let compiled = compile(&[new.clone(), again], &had, &inputs).unwrap();
    assert_eq!(addresses(&compiled), ["one:package:wget", "two:command:ip", "new:file:/a"]);
    let parts: Vec<_> = compiled.parts.iter().map(|part| (part.name.as_str(), part.bundle)).collect();
    assert_eq!(parts, [("one", Some(1)), ("two", None), ("new", Some(0))]);
    let compiled = compile(&[new], &had, &on_host()).unwrap();
    assert_eq!(addresses(&compiled), ["one:package:curl", "two:command:ip", "new:file:/a"]);

    let against = bundle(&[("c.yaml", "name: c\nresources:\n  - package: {name: curl, state: absent}\n")]);
    let got = compile(&[against], &had, &on_host()).unwrap_err();
    assert_eq!(
        got.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "c.yaml:3:5: package \"curl\" of profile c contradicts profile one, one.yaml:4 (one plan cannot want two \
          things of one resource)"
        ]
    );
}

#[test]
fn a_profile_takes_the_place_of_those_that_it_includes() {
    let low = "name: low\nvars: {ports: 22, who: }\nresources:\n  - file: {path: /a, content: \"{{ ports }} {{ who }}\"}\n";
    let had = |name: &str, text: &str, vars: &[(&str, &str)]| Assigned {
        name: name.into(),
        bundle: bundle(&[(&format!("{name}.yaml"), text)]),
        vars: map(vars),
    };
    let other = "name: other\nresources:\n  - package: {name: jq}\n";
    let assigned = [had("low", low, &[("who", "ops")]), had("other", other, &[])];
    let high = "name: high\nvars: {who: , low: true}\nresources:\n  - package: {name: curl}\n  - include: low.yaml\n    when: low\n    \
                vars: {ports: 80, who: \"{{ who }}\"}\n";
    let high = bundle(&[("high.yaml", high), ("low.yaml", low)]);
    // In its place, and with what it was applied with.
    let compiled = compile(std::slice::from_ref(&high), &assigned, &on_host()).unwrap();
    assert_eq!(addresses(&compiled), ["high:package:curl", "high/low:file:/a", "other:package:jq"]);
    assert_eq!(spec(&compiled, "high/low:file:/a")["content"], "80 ops");
    let parts: Vec<_> = compiled.parts.iter().map(|part| (part.name.as_str(), part.covers.clone())).collect();
    assert_eq!(parts, [("high", vec!["low".to_owned()]), ("other", vec![])]);
    assert_eq!(compiled.parts[0].vars, map(&[("who", "ops")]), "and it is kept with the new one");
    // Not one that it leaves out.
    let without = Inputs { vars: map(&[("low", "false")]), ..on_host() };
    let compiled = compile(&[high], &assigned, &without).unwrap();
    assert_eq!(addresses(&compiled), ["low:file:/a", "other:package:jq", "high:package:curl"]);
}

#[test]
fn bundles_hold_all_that_a_profile_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    };
    write("a/p.yaml", b"name: p\nresources:\n  - include: ../b/q.yaml\n  - include: hello\n  - file: {path: /a, source: files/a}\n");
    write("b/q.yaml", b"name: q\nresources:\n  - file: {path: /b, template: hello}\n");
    write("a/files/a", b"{{ not rendered }}\n");
    write("b/hello", b"{{ arch }}");
    let bundle = load("a/p.yaml", dir.path()).unwrap();
    let bytes = bundle.to_bytes().unwrap();
    let again = Bundle::from_bytes(&bytes).unwrap();
    assert_eq!(again, bundle);
    drop(dir);
    let compiled = compile(&[again], &[], &on_host()).unwrap();
    assert_eq!(spec(&compiled, "p/q:file:/b")["content"], "x86_64");
    assert_eq!(spec(&compiled, "p:file:/a")["content"], "{{ not rendered }}\n");
    assert!(addresses(&compiled).contains(&"p/hello:file:motd"));

    let newer = String::from_utf8(bytes.clone()).unwrap().replacen("\"version\":1", "\"version\":2", 1);
    assert_eq!(Bundle::from_bytes(newer.as_bytes()), Err(BundleError::TooNew(2)));
    for bad in [
        &b"{}"[..],
        b"",
        b"[]",
        br#"{"version":1,"root":"a","files":{}}"#,
        br#"{"version":0,"root":"a","files":{"a":""}}"#,
        &bytes[..20],
    ] {
        assert!(matches!(Bundle::from_bytes(bad), Err(BundleError::Malformed(_))), "{bad:?}");
    }
    let large = vec![b' '; postern::profile::MAX_BUNDLE_BYTES + 1];
    assert!(matches!(Bundle::from_bytes(&large), Err(BundleError::TooLarge(_))));
}

#[test]
fn files_that_cannot_be_read_are_told_at_their_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("latin"), b"ok\n\xe9t\xe9\n").unwrap();
    std::fs::write(
        dir.path().join("p.yaml"),
        "name: p\nresources:\n  - file: {path: /a, source: none}\n  - file: {path: /b, source: latin}\n  \
         - file: {path: /c, source: /dev/null}\n  - include: helo\n",
    )
    .unwrap();
    let bundle = load("./p.yaml", dir.path()).unwrap();
    let got = compile(std::slice::from_ref(&bundle), &[], &on_host()).unwrap_err();
    assert_eq!(
        got.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "./p.yaml:3:30: none cannot be read: No such file or directory (os error 2)",
            "./p.yaml:5:30: /dev/null cannot be read: not a regular file",
            "./p.yaml:6:14: helo is not the name of a shipped profile (did you mean hello?)",
            "latin:2:1: this is not UTF-8 text",
        ]
    );
    assert!(matches!(bundle.to_bytes(), Err(BundleError::Broken(_))));
}

#[test]
fn includes_have_a_limit() {
    let name = |i: usize| format!("{i}.yaml");
    let text = |i: usize| format!("name: p{i}\nresources:\n  - include: {}\n", name(i + 1));
    let mut bundle = Bundle::new("0.yaml", text(0).as_bytes());
    for i in 1..20 {
        bundle = bundle.with(&name(i), text(i).as_bytes());
    }
    let got = compile(&[bundle], &[], &on_host()).unwrap_err();
    assert_eq!(got[0].to_string(), "16.yaml:3:14: includes go more than 16 deep");
}
