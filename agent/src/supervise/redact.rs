//! Takes values that must not reach the disk out of a stream, also where reads cut them in two and in the
//! encodings in which programs print them.

mod forms;
mod search;

use std::collections::VecDeque;
use std::sync::Arc;

use search::{ROOT, Search};

/// What stands in a value's place.
const MASK: &[u8] = b"[redacted]";
/// The beginning of a value at the end of a text that was cut is masked from this many bytes on: of less,
/// every other text has some.
const CUT: usize = 4;
/// A text of at least so many bytes may have been cut: the shortest limit of a line for people.
const MAY_BE_CUT: usize = 190;

/// Values that are to be taken out; clones share them.
#[derive(Clone)]
pub(crate) struct Redact(Arc<Search>);

impl Redact {
    /// Of these values, in each of their forms (see [`forms`]).
    pub(crate) fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut search = Search::default();
        for value in values {
            forms::forms(value, &mut |form| search.add(form));
        }
        search.finish();
        Self(Arc::new(search))
    }

    /// True when there is nothing to take out.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A text without them. Where it ends in the beginning of a value, as a text that was cut to a length may,
    /// that is taken out, too.
    pub(crate) fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let body = text.trim_end_matches('…');
        let may_be_cut = body.len() < text.len() || text.len() >= MAY_BE_CUT;
        let mut redactor = Redactor::over(self.clone());
        let mut out = redactor.push(body.as_bytes());
        let rest = redactor.finish();
        // What is held back at the end is the longest piece there that a value could begin with.
        if may_be_cut && redactor.ends_in_a_beginning && !rest.ends_with(MASK) {
            let kept = rest.len().saturating_sub(redactor.tail);
            out.extend_from_slice(&rest[..kept]);
            out.extend_from_slice(MASK);
        } else {
            out.extend(rest);
        }
        let mut out = String::from_utf8_lossy(&out).into_owned();
        out.push_str(&text[body.len()..]);
        out
    }

    /// True when one of the values is in the text.
    pub(crate) fn finds(&self, text: &str) -> bool {
        !self.is_empty() && self.text(text) != text
    }
}

/// Bytes that are covered by values: from, until, and whether their mask was handed out already.
struct Covered {
    from: u64,
    until: u64,
    masked: bool,
}

/// One stream's redaction. Without values it hands everything on as it is.
///
/// Every byte that lies in some value is taken out, also where two values overlap; one mask stands for each
/// such stretch. Only what may be the beginning of a value is held back.
pub(super) struct Redactor {
    redact: Redact,
    state: u32,
    /// Bytes seen so far.
    seen: u64,
    /// The end of what was pushed, as far as it may be the beginning of a value.
    held: VecDeque<u8>,
    covered: VecDeque<Covered>,
    /// Set by `finish`: the stream ended in the beginning of a value, this long.
    ends_in_a_beginning: bool,
    tail: usize,
}

impl Redactor {
    #[cfg(test)]
    fn new(values: &[String]) -> Self {
        Self::over(Redact::new(values.iter().map(String::as_str)))
    }

    /// With values that are prepared already.
    pub(super) fn over(redact: Redact) -> Self {
        Self {
            redact,
            state: ROOT,
            seen: 0,
            held: VecDeque::new(),
            covered: VecDeque::new(),
            ends_in_a_beginning: false,
            tail: 0,
        }
    }

    /// Takes bytes in, gives the bytes that are safe to write.
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<u8> {
        if self.redact.is_empty() {
            return data.to_vec();
        }
        let search = Arc::clone(&self.redact.0);
        let mut out = Vec::with_capacity(data.len() + self.held.len());
        for byte in data.iter().copied() {
            self.state = search.step(self.state, byte);
            self.held.push_back(byte);
            self.seen += 1;
            let found = u64::from(search.ends_here(self.state));
            if found > 0 {
                self.cover(self.seen - found);
            }
            // Only a beginning that the search is still in can become part of a value.
            let safe = self.seen - u64::from(search.depth(self.state));
            self.release(safe, &mut out);
        }
        out
    }

    /// A value ends here and began there.
    fn cover(&mut self, from: u64) {
        let mut new = Covered { from, until: self.seen, masked: false };
        while let Some(last) = self.covered.pop_back() {
            if last.until <= new.from {
                self.covered.push_back(last);
                break;
            }
            new.from = new.from.min(last.from);
            new.masked |= last.masked;
        }
        self.covered.push_back(new);
    }

    /// Hands out what lies before `until`.
    fn release(&mut self, until: u64, out: &mut Vec<u8>) {
        let mut at = self.seen - self.held.len() as u64;
        while at < until {
            let Some(first) = self.covered.front_mut().filter(|first| first.from <= at) else {
                let next = self.covered.front().map_or(until, |first| first.from.min(until));
                out.extend(self.held.drain(..(next - at) as usize));
                at = next;
                continue;
            };
            if !std::mem::replace(&mut first.masked, true) {
                out.extend_from_slice(MASK);
            }
            let end = first.until.min(until);
            self.held.drain(..(end - at) as usize);
            at = end;
            if first.until == end {
                self.covered.pop_front();
            }
        }
    }

    /// The rest, when nothing more will come.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.held.len());
        let tail = self.redact.0.depth(self.state) as usize;
        let covered = self.covered.back().is_some_and(|last| last.until == self.seen);
        (self.tail, self.ends_in_a_beginning) = (tail, tail >= CUT && !covered);
        self.release(self.seen, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    fn redacted(values: &[String], pieces: &[&[u8]]) -> Vec<u8> {
        let mut redactor = Redactor::new(values);
        let mut out: Vec<u8> = pieces.iter().flat_map(|piece| redactor.push(piece)).collect();
        out.extend(redactor.finish());
        out
    }

    /// T46: a secret cut at every offset, one within another, several lines long.
    #[test]
    fn trap_46_secrets_cut_at_every_offset_are_taken_out() {
        let values = ["hunter2", "hunter2-extended", "line one\nline two"].map(str::to_owned);
        let text = b"a hunter2 b hunter2-extended c line one\nline two d hunter";
        let want = b"a [redacted] b [redacted] c [redacted] d hunter".to_vec();
        for first in 0..text.len() {
            for second in first..text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(redacted(&values, &pieces), want, "{first} {second}");
            }
        }
    }

    #[test]
    fn without_values_everything_passes_at_once() {
        let mut redactor = Redactor::new(&[String::new()]);
        assert_eq!(redactor.push(b"abc"), b"abc");
        assert_eq!(redactor.finish(), b"");
    }

    /// The stream holds back no more than what a value may begin with.
    #[test]
    fn only_a_beginning_is_held_back() {
        let mut redactor = Redactor::new(&["secret-value".to_owned(), "aa-bb".to_owned()]);
        assert_eq!(redactor.push(b"password: "), b"password: ");
        assert_eq!(redactor.push(b"see secret"), b"see ");
        assert_eq!(redactor.push(b"ary "), b"secretary ");
        assert_eq!(redactor.push(&[b'a'; 1000]).len(), 998);
        assert_eq!(redactor.finish(), b"aa");
    }

    /// Values that overlap without an end do not make it hold back the stream, and leave nothing of them.
    #[test]
    fn overlapping_values_are_taken_out_whole() {
        let values = ["abcd", "cdef", "xxxx"].map(str::to_owned);
        assert_eq!(redacted(&values, &[b"-abcdef-"]), b"-[redacted]-");
        let mut redactor = Redactor::new(&values);
        let out = redactor.push(&vec![b'x'; 100_000]);
        assert_eq!(out, MASK);
        assert!(redactor.held.len() < 5);
        assert_eq!([redactor.push(b"y"), redactor.finish()].concat(), b"y");
    }

    /// In three bytes there is nothing that could not as well be something else.
    #[test]
    fn a_short_value_is_only_known_as_it_is() {
        let values = ["ab1".to_owned()];
        assert_eq!(redacted(&values, &[b"x ab1 y"]), b"x [redacted] y");
        let encoded = STANDARD.encode("ab1");
        assert_eq!(redacted(&values, &[encoded.as_bytes()]), encoded.as_bytes());
    }

    #[test]
    fn trap_46_the_beginning_of_a_value_at_a_cut_is_taken_out() {
        let redact = Redact::new(["correct horse battery"]);
        assert_eq!(redact.text("it said correct hor…"), "it said [redacted]…");
        assert_eq!(redact.text("it said correct horse battery…"), "it said [redacted]…");
        assert_eq!(redact.text("it said cor"), "it said cor");
        assert_eq!(redact.text("nothing at all"), "nothing at all");
        assert!(redact.finds("a correct horse battery b") && !redact.finds("a horse"));
    }

    /// Text of a peer's `base64`, which breaks lines.
    #[test]
    fn trap_46_base64_over_several_lines_leaves_no_run_of_it() {
        let value: String = (0..120u8).map(|i| char::from(b'!' + i % 90)).collect();
        for lead in 0..90 {
            let whole = STANDARD.encode(format!("{}{value} and more", "u".repeat(lead)));
            let first = (lead * 4).div_ceil(3) + 1;
            let wrapped: Vec<&str> =
                whole.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
            let out =
                String::from_utf8(redacted(std::slice::from_ref(&value), &[wrapped.join("\n").as_bytes()]))
                    .unwrap();
            let of_value = &whole[first..first + 150];
            for at in 0..of_value.len() - 11 {
                assert!(!out.contains(&of_value[at..at + 11]), "{lead} {at}: {out}");
            }
        }
    }

    /// What it takes to look for one byte of a secret, by measurement; the limit of a run's secrets counts on it.
    #[test]
    fn the_memory_of_a_value_is_bounded() {
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize
        };
        let mut text = |of: &str, line: usize| -> String {
            let of: Vec<char> = of.chars().collect();
            let one = |at: usize| if at % (line + 1) == line { '\n' } else { of[random() % of.len()] };
            (0..16 << 10).map(one).collect()
        };
        let base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let values = [
            ("a key in lines", text(base64, 64)),
            ("one line of base64", text(base64, usize::MAX - 1)),
            ("words", text("abcdefghijklmnopqrstuvwxyz ", 72)),
            ("punctuation", text(" /!'()*;,?:@&=+$#<>\"\\", usize::MAX - 1)),
            ("punctuation in short lines", text(" /!'()*;,?:@&=+$#<>\"\\", 5)),
            ("not ASCII", text("äöüß€", usize::MAX - 1)),
        ];
        for (what, value) in values {
            let redact = Redact::new([value.as_str()]);
            let each = redact.0.memory() / value.len();
            println!("{what}: {each} bytes for each");
            assert!(each <= 640, "{what}: {each}");
        }
    }

    fn percent(value: &str, plain: impl Fn(u8) -> bool, upper: bool) -> String {
        let one = |byte: u8| match byte {
            byte if plain(byte) => char::from(byte).to_string(),
            byte if upper => format!("%{byte:02X}"),
            byte => format!("%{byte:02x}"),
        };
        value.bytes().map(one).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        // T46: whatever the value, its form, what stands around it and where reads cut it.
        #[test]
        fn trap_46_no_form_of_a_value_survives(
            value in "[ -~äß]{4,24}(\n[ -~]{4,12})?",
            before in "[a-z]{0,4}",
            cut in any::<prop::sample::Index>(),
        ) {
            let lines: Vec<&str> = value.split('\n').collect();
            let values = [value.clone()];
            let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            let json = serde_json::to_string(&value).unwrap();
            let mut forms = vec![
                value.clone(),
                json[1..json.len() - 1].to_owned(),
                percent(&value, unreserved, true),
                percent(&value, unreserved, false),
                percent(&value, |_| false, true),
                percent(&value, |_| false, false),
                STANDARD.encode(&value),
                URL_SAFE.encode(&value),
                URL_SAFE_NO_PAD.encode(&value),
            ];
            forms.extend(lines.iter().map(|line| (*line).to_owned()));
            for form in forms {
                let text = format!("<{form}>");
                let at = cut.index(text.len());
                let out = redacted(&values, &[&text.as_bytes()[..at], &text.as_bytes()[at..]]);
                prop_assert_eq!(String::from_utf8(out).unwrap(), "<[redacted]>", "{}", text);
            }
            // Within a longer text that was encoded whole: nothing of it can be decoded.
            for engine in [&STANDARD, &URL_SAFE] {
                let whole = engine.encode(format!("{before}{value}--"));
                let at = cut.index(whole.len());
                let out = redacted(&values, &[&whole.as_bytes()[..at], &whole.as_bytes()[at..]]);
                let out = String::from_utf8(out).unwrap();
                let left = out.replace("[redacted]", "").len();
                // Bits of the neighbours: up to two characters and a bit on either side.
                prop_assert!(left <= (before.len() * 4).div_ceil(3) + 1 + 5, "{} -> {}", whole, out);
            }
        }

        // Cut at every place, the outcome is that of the whole text.
        #[test]
        fn trap_46_cuts_change_nothing(text in "[ab]{0,40}", values in proptest::collection::vec("[ab]{1,6}", 1..4)) {
            let whole = redacted(&values, &[text.as_bytes()]);
            for at in 0..text.len() {
                let pieces = [&text.as_bytes()[..at], &text.as_bytes()[at..]];
                prop_assert_eq!(&redacted(&values, &pieces), &whole);
            }
            let each: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            prop_assert_eq!(&redacted(&values, &each), &whole);
            // Against the plain definition: a byte stays when it lies in no value.
            let mut inside = vec![false; text.len()];
            for value in &values {
                for at in 0..text.len() {
                    if text[at..].starts_with(value.as_str()) {
                        inside[at..at + value.len()].fill(true);
                    }
                }
            }
            let kept: Vec<u8> = text.bytes().zip(&inside).filter(|(_, i)| !**i).map(|(b, _)| b).collect();
            let out = String::from_utf8(whole).unwrap().replace("[redacted]", "");
            prop_assert_eq!(out.as_bytes(), kept);
        }
    }
}
