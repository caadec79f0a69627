//! Every mistake in a profile has its place, and all of them are told at once.

use postern::profile::{Bundle, Compiled, Inputs, compile};

use crate::support::map;

fn run(text: &[u8], vars: &[(&str, &str)]) -> Result<Compiled, Vec<String>> {
    run_many(&[("p.yaml", text)], vars)
}

fn run_many(files: &[(&str, &[u8])], vars: &[(&str, &str)]) -> Result<Compiled, Vec<String>> {
    let bundles: Vec<_> = files.iter().map(|(file, text)| Bundle::new(file, text)).collect();
    let inputs = Inputs { vars: map(vars), ..Inputs::default() };
    compile(&bundles, &[], &inputs).map_err(|found| found.iter().map(ToString::to_string).collect())
}

/// The resources, under `name: p`.
fn resources(text: &str) -> String {
    format!("name: p\nresources:\n{text}")
}

/// Profile, and what is told of it line by line.
#[test]
fn mistakes_by_table() {
    let kinds: Vec<_> = postern_proto::spec::KINDS.iter().map(|kind| kind.name).collect();
    let kinds = format!("p.yaml:3:5: unknown kind of resource \"teapot\" (known: {})", kinds.join(", "));
    let kinds = [kinds.as_str()];
    let cases: Vec<(String, &[&str])> = vec![
        (String::new(), &["p.yaml:1:1: the file is empty (a profile has at least name: and resources:)"]),
        (
            "# only a comment\n".into(),
            &["p.yaml:1:1: the file is empty (a profile has at least name: and resources:)"],
        ),
        (
            "just a text".into(),
            &["p.yaml:1:1: a profile is a map, this is \"just a text\" (begin with name: and resources:)"],
        ),
        (
            "- a\n- b\n".into(),
            &["p.yaml:1:1: a profile is a map, this is a list (begin with name: and resources:)"],
        ),
        ("name: p\n---\nname: q\n".into(), &["p.yaml:2:1: a second document: one file holds one profile"]),
        ("name: p\n".into(), &["p.yaml:1:1: resources: is missing"]),
        ("resources: []\n".into(), &["p.yaml:1:1: name: is missing", "p.yaml:1:12: resources is empty"]),
        (
            "name: p\nresources: {}\n".into(),
            &["p.yaml:2:12: resources wants a list, this is a map (each resource begins with \"- \")"],
        ),
        (
            "name: Bad Name\nresorces: []\n".into(),
            &[
                "p.yaml:1:1: resources: is missing",
                "p.yaml:1:7: \"Bad Name\" is no name for a profile (want up to 64 lower case letters, digits, - and \
             _)",
                "p.yaml:2:1: unknown field \"resorces\" (did you mean resources?)",
            ],
        ),
        (
            resources("  - pakage: {name: curl}\n"),
            &["p.yaml:3:5: unknown kind of resource \"pakage\" (did you mean package?)"],
        ),
        (resources("  - teapot: {}\n"), &kinds),
        (
            resources("  - package: {nmae: curl, colour: red}\n"),
            &[
                "p.yaml:3:5: package needs name",
                "p.yaml:3:15: unknown field of package \"nmae\" (did you mean name?)",
                "p.yaml:3:27: unknown field of package \"colour\" (known: name, state, version, hold)",
            ],
        ),
        (
            resources("  - package: curl\n"),
            &["p.yaml:3:14: package wants a map of its fields, this is \"curl\" (write package: {name: …})"],
        ),
        (resources("  - package: {name: [curl]}\n"), &["p.yaml:3:21: name wants a text, this is a list"]),
        (resources("  - package: {name: }\n"), &["p.yaml:3:19: name wants a text, this is nothing"]),
        (
            resources("  - package: {name: curl, state: presnt}\n"),
            &["p.yaml:3:34: unknown value of state \"presnt\" (did you mean present?)"],
        ),
        (
            resources("  - service: {name: ssh, enabled: maybe}\n"),
            &["p.yaml:3:35: enabled wants true or false, this is \"maybe\""],
        ),
        (
            resources("  - service: {name: ssh, enabled: \"true\"}\n"),
            &["p.yaml:3:35: enabled wants true or false, this is \"true\" in quotes"],
        ),
        (
            resources("  - command: {argv: [\"true\"], timeout_s: soon}\n"),
            &["p.yaml:3:42: timeout_s wants a whole number, this is \"soon\""],
        ),
        (
            resources("  - command: {argv: ls -l}\n"),
            &["p.yaml:3:21: argv wants a list of texts, this is \"ls -l\" (write argv: [one, two])"],
        ),
        (
            resources("  - command: {argv: [a], env: [b]}\n"),
            &["p.yaml:3:31: env wants a map of texts, this is a list (write env: {NAME: value})"],
        ),
        (
            resources("  - command: {argv: [a], env: {X: [b]}}\n"),
            &["p.yaml:3:35: env wants a text, this is a list"],
        ),
        // What the spec itself says is told at the field.
        (
            resources("  - file:\n      path: etc/motd\n      content: x\n      mode: rw\n"),
            &[
                "p.yaml:4:13: file.path: \"etc/motd\": want an absolute path",
                "p.yaml:6:13: file.mode: \"rw\": want three or four octal digits, quoted",
            ],
        ),
        (
            resources("  - command:\n      argv: [a]\n      env:\n        \"A=B\": c\n"),
            &["p.yaml:6:9: command.env.A=B: not a name and value of the environment"],
        ),
        (resources("  - command: {}\n"), &["p.yaml:3:5: command: want one of argv and shell"]),
        (
            resources("  - file: {path: /a, content: x}\n  - file: {path: /a, content: x}\n"),
            &["p.yaml:4:5: p:file:/a is here twice, first in line 3 (give one of them another id:)"],
        ),
        (
            resources("  - file: {path: /a, content: x}\n  - file: {path: /a, content: y}\n    id: b\n"),
            &[
                "p.yaml:4:5: file \"/a\" contradicts p.yaml:3 (one plan cannot want two things of one resource)",
            ],
        ),
        (
            resources("  - package: {name: curl, name: wget}\n"),
            &["p.yaml:3:27: \"name\" is here twice, first in line 3"],
        ),
        (
            "name: p\nname: q\nresources:\n  - package: {name: curl}\n".into(),
            &["p.yaml:2:1: \"name\" is here twice, first in line 1"],
        ),
        (
            resources("  - package: {name: curl}\n    file: {path: /a, content: x}\n"),
            &["p.yaml:4:5: a second kind, file, in one resource (begin each resource with \"- \")"],
        ),
        (
            resources("  - package:\n    name: curl\n"),
            &[
                "p.yaml:3:12: package wants a map of its fields, this is nothing (write package: {name: …})",
                "p.yaml:4:5: name belongs to package (indent it further than the kind)",
            ],
        ),
        (
            resources("  - package: {name: curl}\n    idd: x\n"),
            &["p.yaml:4:5: unknown field of a resource \"idd\" (did you mean id?)"],
        ),
        (
            resources("  - {}\n"),
            &["p.yaml:3:5: this resource has no kind (write it as: - package: {name: curl})"],
        ),
        (
            resources("  - curl\n"),
            &[
                "p.yaml:3:5: a resource is a map with its kind, this is \"curl\" (write it as: - package: {name: \
             curl})",
            ],
        ),
        // Templates.
        (
            resources("  - package: {name: \"{{ nam }}\"}\n"),
            &["p.yaml:3:25: no variable is called \"nam\" (declare it: vars: {nam: …})"],
        ),
        (
            "name: p\nvars: {greeting: hi}\nresources:\n  - package: {name: \"{{ greting }}\"}\n".into(),
            &["p.yaml:4:25: no variable is called \"greting\" (did you mean greeting?)"],
        ),
        (
            resources("  - file:\n      path: /a\n      content: |\n        one\n        {{ two }}\n"),
            &["p.yaml:7:1: no variable is called \"two\" (declare it: vars: {two: …})"],
        ),
        (
            resources("  - package: {name: {{ nam }}}\n"),
            &["p.yaml:3:22: a map cannot be the name of a field (a template needs quotes: \"{{ name }}\")"],
        ),
        (
            resources("  - package: {name: \"{{ 'x' | upper( }}\"}\n"),
            &["p.yaml:3:38: the template does not render: unexpected `}` (for a \
             text with {{ in it: \"{{ '{{' }}\")"],
        ),
        (
            resources("  - package: {name: \"{% set a = 1 %}\"}\n"),
            &[
                "p.yaml:3:21: {% set %} is not known here (known: if, elif, else, endif, for, endfor, raw, endraw; \
             values belong under vars:)",
            ],
        ),
        (
            "name: \"{{ x }}\"\nresources:\n  - package: {name: curl}\n".into(),
            &["p.yaml:1:7: name cannot have variables in it"],
        ),
        // Variables.
        (
            "name: p\nvars: {domain: }\nresources:\n  - package: {name: \"{{ domain }}\"}\n".into(),
            &["p.yaml:2:8: variable domain has no value (give it one with --var domain=VALUE)"],
        ),
        (
            "name: p\nvars: {a-b: 1, c: [1], d: \"{{ e }}\"}\nresources:\n  - package: {name: curl}\n".into(),
            &[
                "p.yaml:2:8: \"a-b\" is no name for a variable (want a letter and then letters, digits and _)",
                "p.yaml:2:19: variable c wants a text, a number or true/false, this is a list",
                "p.yaml:2:27: the value of variable d has a template in it (variables are filled into resources \
             only)",
            ],
        ),
        // What YAML has and a profile does not.
        (
            resources("  - package: !secret {name: curl}\n  - package: {name: !x wget}\n"),
            &["p.yaml:4:21: the tag \"!x\" means nothing in a profile"],
        ),
        (
            resources("  - package: &a {name: curl}\n  - package: {<<: *a}\n"),
            &[
                "p.yaml:4:5: package needs name",
                "p.yaml:4:15: merge keys (<<) are not part of YAML 1.2 (write the fields out)",
            ],
        ),
        (resources("  - &a [*a]\n"), &["p.yaml:3:9: this alias is inside of what it names"]),
    ];
    let mut wrong = String::new();
    for (text, want) in cases {
        let got = run(text.as_bytes(), &[]).expect_err(&text);
        if got != want {
            wrong += &format!("of:\n{text}\ngot {got:#?}\nwant {want:#?}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn what_is_not_yaml_or_not_text_is_told_with_its_place() {
    let got = run(b"name: p\nresources:\n  - package: {name: curl\n", &[]).unwrap_err();
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].starts_with("p.yaml:4:1: this is not YAML: "), "{got:?}");

    let got = run(b"name: p\nvars: {a: \"\xff\"}\n", &[]).unwrap_err();
    assert_eq!(got, ["p.yaml:2:12: this is not UTF-8 text"]);

    let large = vec![b'#'; postern::profile::MAX_PROFILE_BYTES + 1];
    assert_eq!(run(&large, &[]).unwrap_err(), ["p.yaml:1:1: larger than 1048576 bytes"]);
}

#[test]
fn bombs_are_refused_fast() {
    use std::fmt::Write as _;
    let started = std::time::Instant::now();
    let mut laughs = String::from("name: p\nvars:\n  a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let items = vec![format!("*a{}", i - 1); 9].join(", ");
        writeln!(laughs, "  a{i}: &a{i} [{items}]").unwrap();
    }
    let got = run(laughs.as_bytes(), &[]).unwrap_err();
    assert!(got[0].contains("more than 50000 values"), "{got:?}");

    let long = format!("name: p\nvars:\n  a: &a {}\n  b: [{}]\n", "x".repeat(500_000), "*a, ".repeat(50_000));
    let got = run(long.as_bytes(), &[]).unwrap_err();
    assert!(got[0].contains("more than 50000 values"), "{got:?}");

    for open in ["[", "{a: ", "- ", "? "] {
        let got = run(open.repeat(100_000).as_bytes(), &[]).unwrap_err();
        assert!(
            got.iter().any(|line| line.contains("32 levels") || line.contains("not YAML")),
            "{open}: {got:?}"
        );
    }

    for template in [
        "{% for a in 'x'*99999 | split('') %}{% for b in 'x'*99999 | split('') %}y{% endfor %}{% endfor %}",
        "{{ 'x' * 90000000 }}",
        "{{ ('x' * 9000) | replace('x', 'x' * 9000) | replace('x', 'x' * 9000) }}",
        "{% filter replace('a', 'aaaa') %}a{% endfilter %}",
        "{{ 'x' | indent(99999999999) }}",
    ] {
        let text = resources(&format!("  - file: {{path: /a, content: \"{template}\"}}\n"));
        assert_eq!(run(text.as_bytes(), &[]).unwrap_err().len(), 1, "{template}");
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn mistakes_beyond_a_hundred_are_counted() {
    let text = resources(&"  - package: {nmae: curl, nmae2: x}\n".repeat(100));
    let got = run(text.as_bytes(), &[]).unwrap_err();
    assert_eq!(got.len(), 101);
    assert!(got[100].ends_with("and 200 more mistakes"), "{}", got[100]);
}

#[test]
fn all_profiles_are_told_at_once() {
    let got = run_many(&[("a.yaml", b"name: a\n"), ("b.yaml", b"name: b\n")], &[]).unwrap_err();
    assert_eq!(got, ["a.yaml:1:1: resources: is missing", "b.yaml:1:1: resources: is missing"]);
}

mod never_panics {
    use super::*;
    use proptest::prelude::*;

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => proptest::sample::select(vec![
                "name: p\n", "vars:\n", "resources:\n", "  - package: ", "  - file:\n", "      path: /a\n",
                "      content: |\n", "        x\n", "{", "}", "[", "]", ", ", ": ", "- ", "\n", "  ", "\"", "'",
                "&a ", "*a ", "!t ", "!!str ", "{{ a }}", "{{", "}}", "{% if a %}", "{% endif %}", "{% raw %}",
                "|replace('', 'x')", "|split('')", "|int", "\t", "\u{85}", "\u{feff}", "---\n", "...\n", "%YAML 1.2\n",
                "? ", ">-\n", "|+\n", "#", "\\u", "0x", "~", "<<: ", "a", "name", "é", "\u{1F600}", "\r\n", "\0",
            ]).prop_map(str::to_owned),
            1 => ".{0,8}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

        #[test]
        fn on_pieces_of_profiles(pieces in proptest::collection::vec(piece(), 0..40), whole: bool) {
            let text: String = pieces.concat();
            let text = if whole { resources(&text) } else { text };
            let _ = run(text.as_bytes(), &[("a", "b")]);
        }

        #[test]
        fn on_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = run(&bytes, &[]);
        }

        #[test]
        fn on_templates(template in "[{}% a-z0-9|().'\"\\[\\]:*+~-]{0,60}") {
            let quoted = serde_json::to_string(&template).unwrap();
            let text = resources(&format!("  - file: {{path: /a, content: {quoted}}}\n"));
            let _ = run(text.as_bytes(), &[]);
        }

        // What is wrong is always placed inside of the file.
        #[test]
        fn and_places_are_in_the_file(pieces in proptest::collection::vec(piece(), 0..30)) {
            let text = resources(&pieces.concat());
            let compiled = compile(&[Bundle::new("p", text.as_bytes())], &[], &Inputs::default());
            let silent = format!("{compiled:?}").contains("mistake in Postern");
            prop_assert!(!silent, "a resource was left out in silence");
            if let Err(found) = compiled {
                let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() + 1;
                for diagnostic in found {
                    prop_assert!(diagnostic.place.line >= 1 && diagnostic.place.line <= lines, "{diagnostic}");
                    prop_assert!(diagnostic.place.column >= 1);
                }
            }
        }
    }
}
