//! Text from a host made harmless for a terminal: what could move the cursor, set a title or reorder text is
//! shown, not obeyed.

/// Shown as it is: nothing that a terminal or a reader of mixed scripts would be misled by.
fn is_harmless(c: char) -> bool {
    // Control characters of both sets, then what changes the direction of text or cannot be seen.
    !c.is_control()
        && !matches!(c,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn push(c: char, to: &mut String) {
    if is_harmless(c) || c == '\t' {
        to.push(c);
    } else {
        to.extend(c.escape_default());
    }
}

/// One line: a newline is shown too.
pub(crate) fn line(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    text.chars().for_each(|c| push(c, &mut clean));
    clean
}

/// Several lines, such as a diff.
pub(crate) fn lines(text: &str) -> String {
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// JSON that is safe on a terminal too: within its strings, escapes mean the same to a reader of JSON.
pub(crate) fn json(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut units = [0; 2];
    for c in text.chars() {
        if is_harmless(c) {
            clean.push(c);
        } else {
            c.encode_utf16(&mut units).iter().for_each(|unit| clean.push_str(&format!("\\u{unit:04x}")));
        }
    }
    clean
}

/// Bytes in pieces: a character that is cut between two of them is put together again.
#[derive(Debug, Default)]
pub(crate) struct Cleaner {
    /// The beginning of a character, at most three bytes.
    rest: Vec<u8>,
    /// A carriage return came last.
    returned: bool,
}

impl Cleaner {
    /// What can be shown so far. Newlines and tabs stay; a carriage return before a newline is dropped and
    /// begins a line of its own otherwise, so that nothing that was shown is written over.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.rest);
        input.extend_from_slice(bytes);
        let mut clean = String::with_capacity(input.len());
        let mut chunks = input.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            chunk.valid().chars().for_each(|c| self.take(c, &mut clean));
            let invalid = chunk.invalid();
            // Incomplete only where the input ends: elsewhere the next byte has shown that it is wrong.
            let incomplete = chunks.peek().is_none()
                && std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if incomplete {
                self.rest.extend_from_slice(invalid);
            } else if !invalid.is_empty() {
                self.take(char::REPLACEMENT_CHARACTER, &mut clean);
            }
        }
        clean
    }

    fn take(&mut self, c: char, clean: &mut String) {
        if std::mem::take(&mut self.returned) && c != '\n' {
            clean.push('\n');
        }
        match c {
            '\r' => self.returned = true,
            '\n' => clean.push('\n'),
            c => push(c, clean),
        }
    }

    /// What is left at the end.
    pub(crate) fn finish(&mut self) -> String {
        let mut clean = String::new();
        if !std::mem::take(&mut self.rest).is_empty() {
            self.take(char::REPLACEMENT_CHARACTER, &mut clean);
        }
        self.returned = false;
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_shown_by_table() {
        for (text, want) in [
            ("plain é 漢", "plain é 漢"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{7}b\u{8}c\u{7f}", "a\\u{7}b\\u{8}c\\u{7f}"),
            ("\u{1b}]0;title\u{7}", "\\u{1b}]0;title\\u{7}"),
            ("abc\u{202e}fed", "abc\\u{202e}fed"),
            ("a\tb", "a\tb"),
        ] {
            assert_eq!(line(text), want);
            assert_eq!(Cleaner::default().push(text.as_bytes()), want);
        }
        assert_eq!(line("a\nb\r"), "a\\nb\\r");
    }

    #[test]
    fn carriage_returns_never_write_over_what_was_shown() {
        let mut cleaner = Cleaner::default();
        assert_eq!(cleaner.push(b"10%\r20%\r\nend\r"), "10%\n20%\nend");
        assert_eq!(cleaner.push(b"\nnext\r"), "\nnext");
        assert_eq!(cleaner.push(b"x"), "\nx");
        assert_eq!(cleaner.finish(), "");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"a": "\u{1b}\u{9b}\u{202e}\u{7f}é\u{1F600}"});
        let text = json(&value.to_string());
        assert!(text.chars().all(is_harmless), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    proptest! {
        #[test]
        fn nothing_harmful_comes_out_however_it_is_cut(
            bytes in proptest::collection::vec(prop_oneof![
                any::<u8>(), Just(0x1b), Just(b'\r'), Just(b'\n'), Just(0xe2), Just(0x80), Just(0xae), Just(0xc2), Just(0x9b),
            ], 0..80),
            cuts in proptest::collection::vec(0usize..80, 0..6),
        ) {
            let mut cleaner = Cleaner::default();
            let mut out = String::new();
            let mut from = 0;
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            for cut in cuts {
                out += &cleaner.push(&bytes[from..cut]);
                from = cut;
            }
            out += &cleaner.finish();
            prop_assert!(out.chars().all(|c| is_harmless(c) || matches!(c, '\n' | '\t')), "{:?}", out);
            let mut whole = Cleaner::default();
            let at_once = whole.push(&bytes) + &whole.finish();
            prop_assert_eq!(out, at_once);
        }
    }
}
