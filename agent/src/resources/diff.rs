//! Unified diffs for people: bounded, and silent about what is not text.

use std::time::Duration;

/// The time for finding a small diff; after it a larger one must do.
const TIME: Duration = Duration::from_millis(200);
/// The longest text that is compared, bytes: beyond it a diff costs more than it tells.
const COMPARED: usize = 1 << 20;
/// The longest diff, bytes.
const SHOWN: usize = 64 * 1024;

/// What changes in a file whose content is nobody else's: sizes, and hashes to tell versions apart (I7).
pub(super) fn hidden(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> String {
    if old == new {
        return String::new();
    }
    let said = |content: Option<&[u8]>| match content {
        None => "not there".to_owned(),
        Some(content) => {
            let hash = postern_proto::ids::PlanHash::of(content).to_string();
            format!("{} bytes, sha256 {:.12}…", content.len(), hash)
        }
    };
    format!("{path}: not shown, it is not for everyone to read: {} -> {}\n", said(old), said(new))
}

/// What changes in a file.
pub(super) fn unified(path: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> String {
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

    #[test]
    fn hidden_diffs_by_table() {
        assert_eq!(hidden("/a", Some(b"x"), Some(b"x")), "");
        let shown = hidden("/a", Some(b"secret1"), Some(b"secret22"));
        assert!(
            shown.contains("7 bytes") && shown.contains("8 bytes") && !shown.contains("secret"),
            "{shown}"
        );
        assert!(hidden("/a", None, Some(b"")).contains("not there -> 0 bytes, sha256 e3b0c44298fc…"));
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
