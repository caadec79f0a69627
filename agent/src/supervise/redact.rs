//! Takes values that must not reach the disk out of a stream, also where reads cut them in two.

/// What stands in a value's place.
const MASK: &[u8] = b"[redacted]";

/// One stream's redaction. Without values it hands everything on as it is.
pub(super) struct Redactor {
    /// Longest first, so that a value that begins with another is taken out whole.
    values: Vec<Vec<u8>>,
    /// The end of what was pushed, as far as it may be the beginning of a value.
    held: Vec<u8>,
}

impl Redactor {
    pub(super) fn new(values: &[String]) -> Self {
        let mut values: Vec<Vec<u8>> =
            values.iter().filter(|value| !value.is_empty()).map(|value| value.clone().into_bytes()).collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self { values, held: Vec::new() }
    }

    /// Takes bytes in, gives the bytes that are safe to write.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.values.is_empty() {
            return data.to_vec();
        }
        self.held.extend_from_slice(data);
        self.drain(false)
    }

    /// The rest, when nothing more will come.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.drain(true)
    }

    fn drain(&mut self, last: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        let mut at = 0;
        while at < self.held.len() {
            let rest = &self.held[at..];
            if !last && self.values.iter().any(|value| value.len() > rest.len() && value.starts_with(rest)) {
                break;
            }
            match self.values.iter().find(|value| rest.starts_with(value)) {
                Some(value) => {
                    out.extend_from_slice(MASK);
                    at += value.len();
                }
                None => {
                    out.push(rest[0]);
                    at += 1;
                }
            }
        }
        self.held.drain(..at);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T46: a secret cut at every offset, one within another, several lines long.
    #[test]
    fn trap_46_secrets_cut_at_every_offset_are_taken_out() {
        let values = ["hunter2", "hunter2-extended", "line one\nline two"].map(str::to_owned);
        let text = b"a hunter2 b hunter2-extended c line one\nline two d hunter";
        let want = b"a [redacted] b [redacted] c [redacted] d hunter".to_vec();
        for first in 0..text.len() {
            for second in first..text.len() {
                let mut redactor = Redactor::new(&values);
                let mut out = redactor.push(&text[..first]);
                out.extend(redactor.push(&text[first..second]));
                out.extend(redactor.push(&text[second..]));
                out.extend(redactor.finish());
                assert_eq!(out, want, "{first} {second}");
            }
        }
    }

    #[test]
    fn without_values_everything_passes_at_once() {
        let mut redactor = Redactor::new(&[String::new()]);
        assert_eq!(redactor.push(b"abc"), b"abc");
        assert_eq!(redactor.finish(), b"");
    }
}
