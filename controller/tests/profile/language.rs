//! Includes, conditions, needs, holes and facts: what they make, and what is told of mistakes.

use postern::profile::{Facts, Inputs};
use postern::room::Room;
use serde_json::json;

use crate::support::{addresses, facts, good, map, on_host, resources, run, spec};

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

/// Each waits for what stands before it there; the first also for what the include names. What the including profile
/// has already waits for what it waits for there.
#[test]
fn an_include_with_needs_stands_apart_and_keeps_its_order() {
    let text = resources(
        "  - package: {name: curl}\n  - package: {name: cron}\n  - command: {argv: [slow]}\n    id: slow\n  \
         - include: q.yaml\n    needs: [cron]\n  - command: {argv: [last]}\n    id: last\n",
    );
    let q = "name: q\nresources:\n  - file: {path: /a, content: x}\n  - package: {name: curl}\n  \
             - file: {path: /b, content: x}\n  - file: {path: /c, content: x}\n    needs: []\n  \
             - include: r.yaml\n  - include: r.yaml\n    id: s\n    needs: [/c]\n  - file: {path: /d, content: x}\n";
    let r = "name: r\nresources:\n  - command: {argv: [one]}\n    id: one\n  - command: {argv: [two]}\n    id: two\n";
    let compiled = good(&[("p.yaml", &text), ("q.yaml", q), ("r.yaml", r)], &on_host());
    let needs = compiled.plan.resources.iter().map(|resource| {
        let needs = resource.needs.as_ref();
        let text = needs.map(|needs| needs.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(" "));
        (resource.address.as_str(), text)
    });
    let want = [
        ("p:package:curl", None),
        ("p:package:cron", None),
        ("p:command:slow", None),
        ("p/q:file:/a", Some("p:package:cron")),
        ("p/q:file:/b", Some("p/q:file:/a p:package:curl")),
        ("p/q:file:/c", Some("p:package:cron")),
        ("p/q/r:command:one", Some("p/q:file:/b p/q:file:/c")),
        ("p/q/r:command:two", Some("p/q/r:command:one")),
        ("p/q/s:command:one", Some("p:package:cron p/q:file:/c")),
        ("p/q/s:command:two", Some("p/q/s:command:one")),
        ("p/q:file:/d", Some("p/q/r:command:two p/q/s:command:one p/q/s:command:two")),
        ("p:command:last", None),
    ];
    assert_eq!(needs.collect::<Vec<_>>(), want.map(|(address, needs)| (address, needs.map(str::to_owned))));
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
            "- include: q.yaml\n    nedes: [a]\n    vars: {must: a}",
            &[q],
            &["p.yaml:5:5: unknown field of an include \"nedes\" (did you mean needs?)"],
        ),
        (
            "- package: {name: cron}\n  - include: q.yaml\n    needs: [crom, q]\n    vars: {must: a}",
            &[q],
            &[
                "p.yaml:6:13: unknown id in needs \"crom\" (did you mean cron?)",
                "p.yaml:6:19: \"q\" does not stand before this (move it up: what is needed stands first)",
            ],
        ),
        (
            "- package: {name: cron}\n  - include: s.yaml\n  - include: s.yaml\n    id: again\n    needs: [crom, cron]",
            &[("s.yaml", "name: s\nresources:\n  - package: {name: at}\n")],
            &["p.yaml:8:13: unknown id in needs \"crom\" (did you mean cron?)"],
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
