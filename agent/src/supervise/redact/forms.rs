//! The forms in which a value may stand in a text: as it is, line by line, and encoded.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};

/// A shorter value is only looked for as it is: an encoding of so little, and a line of it, stand in many a
/// text that has nothing to do with it, and to mask those would hide what is going on and protect nothing
/// that can be guessed in a moment anyway.
const SHORT: usize = 4;
/// Pieces of base64 of this many characters are known by themselves, since programs break its lines; a
/// multiple of four, because that is where they break them.
const PIECE: usize = 8;

/// Gives each form of a value, some perhaps twice.
pub(super) fn forms(value: &str, give: &mut impl FnMut(&[u8])) {
    give(value.as_bytes());
    if value.len() < SHORT {
        return;
    }
    encoded(value, give);
    if value.contains(['\n', '\r']) {
        let lines = value.split(['\n', '\r']).flat_map(|line| [line, line.trim()]);
        lines.filter(|line| line.len() >= SHORT).for_each(|line| {
            give(line.as_bytes());
            encoded(line, give);
        });
    }
    if value.contains(char::is_control) {
        // As a line for people has it.
        let flat: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        give(flat.as_bytes());
    }
}

fn encoded(value: &str, give: &mut impl FnMut(&[u8])) {
    for alphabet in [alphabet::STANDARD, alphabet::URL_SAFE] {
        let engine = GeneralPurpose::new(&alphabet, NO_PAD);
        (0..3).for_each(|lead| base64(&engine, value.as_bytes(), lead, give));
    }
    json(value, give);
    percent(value, give);
}

/// As it stands in the base64 of a longer text in which `lead` bytes more than a multiple of three come before
/// it. Characters that are also made of a neighbour's bits are left out, except at the end of the text.
fn base64(engine: &GeneralPurpose, value: &[u8], lead: usize, give: &mut impl FnMut(&[u8])) {
    let text = engine.encode([&[0u8; 2][..lead], value].concat());
    let begin: usize = [0, 2, 3][lead];
    let whole = (lead + value.len()) * 8 / 6;
    let from = begin.next_multiple_of(4);
    let pieces = (from..whole.saturating_sub(PIECE - 1)).step_by(4);
    // Pieces overlap, so all of them are the whole but for its two ends.
    let last = pieces.clone().next_back();
    match last {
        Some(_) => give(&text.as_bytes()[begin..from + PIECE]),
        None => give(&text.as_bytes()[begin..whole]),
    }
    let end = last.unwrap_or(begin);
    give(&text.as_bytes()[end..whole]);
    if whole < text.len() {
        // At the end of the text: what is left of the last byte, and what fills it up.
        let padded = format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4));
        give(&text.as_bytes()[end..]);
        give(&padded.as_bytes()[end..]);
    }
    for at in pieces {
        give(&text.as_bytes()[at..at + PIECE]);
    }
}

fn json(value: &str, give: &mut impl FnMut(&[u8])) {
    let Ok(quoted) = serde_json::to_string(value) else { return };
    let plain = &quoted[1..quoted.len() - 1];
    give(plain.as_bytes());
    give(plain.replace('/', "\\/").as_bytes());
    // As Python writes it, and as Go does.
    let ascii: String =
        plain.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect();
    give(ascii.as_bytes());
    let html: String = plain
        .chars()
        .map(|c| if matches!(c, '<' | '>' | '&') { escaped(c) } else { c.to_string() })
        .collect();
    give(html.as_bytes());
}

fn escaped(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// RFC 3986, and what languages make of it: which bytes are left as they are differs.
fn percent(value: &str, give: &mut impl FnMut(&[u8])) {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let left: [&dyn Fn(u8) -> bool; 5] = [
        &unreserved,
        &|byte| unreserved(byte) || byte == b'/',
        &|byte| unreserved(byte) || b"!'()*".contains(&byte),
        &|byte| unreserved(byte) || b"!'()*;,/?:@&=+$#".contains(&byte),
        &|_| false,
    ];
    for keep in left {
        for upper in [true, false] {
            let one = |byte: u8| match byte {
                byte if keep(byte) => char::from(byte).to_string(),
                byte if upper => format!("%{byte:02X}"),
                byte => format!("%{byte:02x}"),
            };
            let text: String = value.bytes().map(one).collect();
            give(text.as_bytes());
            if value.contains(' ') {
                // In a form, a space is a plus.
                give(text.replace("%20", "+").as_bytes());
            }
        }
    }
}
