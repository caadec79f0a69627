//! What agents send is shown to people only after it was made harmless.

use std::fmt;

/// Text of a peer: control characters are escaped and what is too long is cut.
pub(crate) struct Neutral<'a>(pub(crate) &'a str);

/// The longest text that is shown, characters.
const MAX: usize = 500;

impl fmt::Display for Neutral<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for (index, c) in self.0.chars().enumerate() {
            if index == MAX {
                return f.write_str("…");
            }
            // Also what changes the direction of writing or has no width: it hides what follows.
            if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
            {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The same as an owned text.
pub(crate) fn neutral(text: &str) -> String {
    Neutral(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal() {
        assert_eq!(neutral("plain text, é"), "plain text, é");
        assert_eq!(neutral("a\u{1b}[31mb\r\n"), "a\\u{1b}[31mb\\u{d}\\u{a}");
        assert_eq!(neutral("\u{9b}x\u{202e}y"), "\\u{9b}x\\u{202e}y");
        assert_eq!(neutral(&"x".repeat(1000)).chars().count(), MAX + 1);
    }
}
