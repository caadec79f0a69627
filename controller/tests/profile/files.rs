//! Bundles: a profile with every file that it names.

use postern::profile::{Bundle, BundleError, compile, load};

use crate::support::{addresses, on_host, spec};

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
