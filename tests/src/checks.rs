//! Looks at the tests themselves: in a line for a shell, a check whose result nobody looks at cannot fail.
#![cfg(test)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::path::{Path, PathBuf};

/// Texts in quotation marks, and the line where each begins. A text goes on after a backslash at the end of a line.
fn texts(source: &str) -> Vec<(usize, String)> {
    let (mut found, mut line) = (Vec::new(), 1);
    let mut text: Option<(usize, String)> = None;
    let mut all = source.chars().peekable();
    while let Some(c) = all.next() {
        match (c, &mut text) {
            ('\\', open) => {
                let next = all.next();
                if next == Some('\n') {
                    line += 1;
                    while all.next_if(|c| *c == ' ').is_some() {}
                } else if let (Some((_, text)), Some(next)) = (open, next) {
                    text.push(if next == 'n' { '\n' } else { next });
                }
            }
            // A mark of its own begins no text.
            ('\'', None) if all.peek() == Some(&'"') => drop(all.next()),
            ('"', None) => text = Some((line, String::new())),
            ('"', Some(_)) => found.extend(text.take()),
            (c, open) => {
                line += usize::from(c == '\n');
                if let Some((_, text)) = open {
                    text.push(c);
                }
            }
        }
    }
    found
}

/// The first check of a text for `sh -c` that the next command makes nobody hear of. What a loop or a condition asks is
/// heard, and so is what something is done for.
fn unheard(text: &str) -> Option<&str> {
    let mut parts =
        text.split([';', '\n']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>();
    parts.pop();
    parts.into_iter().find(|part| {
        let alone = part.rsplit("&& ").next().unwrap_or(part);
        let last = part.rsplit('|').next().unwrap_or(part).trim();
        let says_no_word = last.strip_prefix("grep -").is_some_and(|flags| {
            flags.chars().take_while(|c| c.is_ascii_alphabetic()).any(|flag| flag == 'q')
        });
        let asks = ["! ", "test ", "[ "].iter().any(|word| alone.starts_with(word));
        let heard = ["if ", "while ", "until ", "elif "].iter().any(|word| part.contains(word));
        !heard && !part.contains("||") && (asks || (says_no_word && !last.contains("&&")))
    })
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn a_check_that_nobody_hears_of_is_told() {
    for (text, want) in [
        ("! grep -q a b; ! c", Some("! grep -q a b")),
        ("true && ! grep -q a b; c", Some("true && ! grep -q a b")),
        ("dpkg -s a | grep -qx 2; dpkg --purge a", Some("dpkg -s a | grep -qx 2")),
        ("test -e /x\nls", Some("test -e /x")),
        ("a | grep -q b && c; d", None),
        ("! grep -q a b && ! c", None),
        ("! grep -q a b || exit 1; c", None),
        ("while ! test -e /x; do sleep 1; done", None),
        ("for i in 1 2; do test -e /x && break; sleep 1; done; test -e /x", None),
        ("a | grep b; c", None),
    ] {
        assert_eq!(unheard(text), want, "{text}");
    }
    let source = "x(\"a \\\"b\\\" \\\n    c\"); // '\n y(\"d\")";
    assert_eq!(texts(source), [(1, "a \"b\" c".to_owned()), (3, "d".to_owned())]);
}

#[test]
fn every_check_of_a_lab_test_can_fail() {
    let mut all = Vec::new();
    for dir in ["tests", "src"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut all);
    }
    assert!(all.len() > 50, "{all:?}");
    let own = Path::new(file!()).file_name().unwrap();
    let (mut looked, mut found) = (0, Vec::new());
    for path in all.iter().filter(|path| path.file_name() != Some(own)) {
        for (line, text) in texts(&std::fs::read_to_string(path).unwrap()) {
            looked += 1;
            found.extend(unheard(&text).map(|check| format!("{}:{line}: {check}", path.display())));
        }
    }
    assert!(looked > 2000, "only {looked} texts were looked at");
    assert!(found.is_empty(), "the next command takes the place of their result:\n{}", found.join("\n"));
}
