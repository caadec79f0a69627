//! Unified diffs for people: bounded, and silent about what is not text.

/// The longest text that is compared, bytes: beyond it a diff costs more than it tells.
const COMPARED: usize = 1 << 20;
/// The longest diff, bytes.
const SHOWN: usize = 64 * 1024;

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
    let diff = similar::TextDiff::from_lines(old_text, new_text)
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
    fn diffs_by_table() {
        assert_eq!(unified("/a", Some(b"x\n"), Some(b"x\n")), "");
        assert_eq!(unified("/a", Some(b"x\n"), Some(b"y\n")), "--- /a\n+++ /a\n@@ -1 +1 @@\n-x\n+y\n");
        assert!(unified("/a", None, Some(b"y\n")).starts_with("--- /dev/null\n+++ /a\n"));
        assert!(unified("/a", Some(b"y\n"), None).contains("+++ /dev/null"));
        assert!(unified("/a", Some(&[0, 1, 255]), Some(b"y\n")).contains("not text; 3 bytes before"));
        let long: Vec<u8> = (0..40_000).flat_map(|i| format!("{i}\n").into_bytes()).collect();
        let diff = unified("/a", None, Some(&long));
        assert!(diff.len() < SHOWN + 200 && diff.contains("more bytes of this diff"), "{}", diff.len());
    }
}
