//! What a profile gets beside its own text: values from many places, and the profiles that a host has already.

use postern::profile::{Assigned, Inputs, VarFile, compile};

use crate::support::{addresses, bundle, good, map, on_host, run, spec};

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
