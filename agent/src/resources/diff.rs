//! Unified diffs for people: bounded, and silent about what is not text.

use std::time::Duration;

use crate::sys::Meta;

/// The time for finding a small diff; after it a larger one must do.
const TIME: Duration = Duration::from_millis(200);
/// The longest text that is compared, bytes: beyond it a diff costs more than it tells.
const COMPARED: usize = 1 << 20;
/// The longest diff, bytes.
const SHOWN: usize = 64 * 1024;

/// What changes in a file whose content is nobody else's: sizes. Not a hash: of a short secret that is as
/// good as the secret (I7).
pub(crate) fn hidden(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> String {
    if old == new {
        return String::new();
    }
    let said = |content: Option<&[u8]>| match content {
        None => "not there".to_owned(),
        Some(content) => format!("{} bytes", content.len()),
    };
    let differs = if old.is_some() && new.is_some() { "content differs, " } else { "" };
    format!("{path}: not shown, it is not for everyone to read: {differs}{} -> {}\n", said(old), said(new))
}

/// What changes in owner and mode; one line each. The names are those of the declared owner and group.
pub(super) fn attributes(
    path: &str,
    was: &Meta,
    mode: u32,
    owner: (u32, &str),
    group: (u32, &str),
) -> String {
    let mut text = String::new();
    let mut line = |what: &str, from: String, to: String| text += &format!("{path}: {what} {from} -> {to}\n");
    if was.mode != mode {
        line("mode", format!("{:04o}", was.mode), format!("{mode:04o}"));
    }
    if was.uid != owner.0 {
        line("owner", was.uid.to_string(), format!("{} ({})", owner.0, owner.1));
    }
    if was.gid != group.0 {
        line("group", was.gid.to_string(), format!("{} ({})", group.0, group.1));
    }
    text
}

/// What changes in a file.
pub(crate) fn unified(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> String {
    let (before, after) = (old.unwrap_or_default(), new.unwrap_or_default());
    if before == after && old.is_some() == new.is_some() {
        return String::new();
    }
    if before == after {
        return format!("{path}: an empty file is {}\n", if new.is_some() { "made" } else { "removed" });
    }
    let text = |bytes| std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let (Some(old_text), Some(new_text)) = (text(before), text(after)) else {
        return format!("{path}: not text; {} bytes before, {} bytes after\n", before.len(), after.len());
    };
    if before.len().max(after.len()) > COMPARED {
        return format!(
            "{path}: too long to show; {} bytes before, {} bytes after\n",
            before.len(),
            after.len()
        );
    }
    let name = |there: bool| if there { path } else { "/dev/null" };
    let diff = similar::TextDiff::configure()
        .timeout(TIME)
        .diff_lines(old_text, new_text)
        .unified_diff()
        .header(name(old.is_some()), name(new.is_some()))
        .to_string();
    if diff.len() <= SHOWN {
        return diff;
    }
    let cut = (0..=SHOWN).rev().find(|at| diff.is_char_boundary(*at)).unwrap_or(0);
    format!("{}\n… {} more bytes of this diff are not shown\n", &diff[..cut], diff.len() - cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T46: what tells a short secret from another one is not told.
    #[test]
    fn trap_46_hidden_diffs_tell_sizes_and_nothing_else() {
        let said = |old: Option<&[u8]>, new: Option<&[u8]>| {
            let text = hidden("/a", old, new);
            text.strip_prefix("/a: not shown, it is not for everyone to read: ").unwrap_or(&text).to_owned()
        };
        assert_eq!(said(Some(b"x"), Some(b"x")), "");
        assert_eq!(said(Some(b"secret1"), Some(b"secret22")), "content differs, 7 bytes -> 8 bytes\n");
        assert_eq!(said(Some(b"1234"), Some(b"4321")), "content differs, 4 bytes -> 4 bytes\n");
        assert_eq!(said(None, Some(b"")), "not there -> 0 bytes\n");
        assert_eq!(said(Some(b"1234"), None), "4 bytes -> not there\n");
    }

    #[test]
    fn diffs_by_table() {
        assert_eq!(unified("/a", Some(b"x\n"), Some(b"x\n")), "");
        assert_eq!(unified("/a", Some(b"x\n"), Some(b"y\n")), "--- /a\n+++ /a\n@@ -1 +1 @@\n-x\n+y\n");
        assert!(unified("/a", None, Some(b"y\n")).starts_with("--- /dev/null\n+++ /a\n"));
        assert!(unified("/a", Some(b"y\n"), None).contains("+++ /dev/null"));
        assert!(unified("/a", Some(&[0, 1, 255]), Some(b"y\n")).contains("not text; 3 bytes before"));
        // Two long texts that have nothing in common: found in time, and still a diff of both.
        let lines = |salt: usize| {
            (0..60_000).map(|i| format!("{}\n", i * 7919 % (65_521 + salt))).collect::<String>()
        };
        let began = std::time::Instant::now();
        assert!(unified("/a", Some(lines(0).as_bytes()), Some(lines(5).as_bytes())).starts_with("--- /a\n"));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        let long: Vec<u8> = (0..40_000).flat_map(|i| format!("{i}\n").into_bytes()).collect();
        let diff = unified("/a", None, Some(&long));
        assert!(diff.len() < SHOWN + 200 && diff.contains("more bytes of this diff"), "{}", diff.len());
    }
}
