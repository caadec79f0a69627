//! The bytes of the journal: one header, then checksummed frames; pure.
//!
//! A frame is written and synced before the next one is begun. So a bad frame with a good one behind it was
//! damaged later, and only the last frame can be torn. A torn frame is told from a damaged one by what a
//! disk does: it writes whole sectors, so what was not written is still zero, and no sector of a whole frame
//! is all zero, nor is its last byte.

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"PSTNJRNL";
/// The newest format this build reads and the one it writes.
pub(super) const FORMAT: u32 = 1;
/// Where the first frame begins: one sector, so that no frame shares a sector with the header.
pub(super) const HEADER_LEN: u64 = 512;
/// Before each payload: length, sequence, checksum of the payload, checksum of these, mark.
const FRAME_HEADER: usize = 24;
/// The end of a frame header; its last byte is not zero.
const FRAME_MARK: u32 = 0x4a52_4e21;
/// What disks write as a whole.
const SECTOR: usize = 512;
/// The longest payload, bytes.
pub(super) const MAX_PAYLOAD: usize = 8 << 20;

/// Why a file header is no good.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Not a journal, or damaged.
    Corrupt,
    /// Written by a newer build.
    TooNew(u32),
}

/// Where a journal is damaged, and how.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Byte of the file.
    pub offset: u64,
    /// For people.
    pub what: String,
}

/// What is in a journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Payloads in order, as ranges of the file.
    pub frames: Vec<std::ops::Range<usize>>,
    /// Where the next frame goes.
    pub end: u64,
    /// Something was begun after `end` and not finished.
    pub torn: bool,
}

/// The header of a new file.
pub(super) fn header(format: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(format.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.resize(HEADER_LEN as usize, 0);
    bytes
}

/// Checks the header of a file.
pub(super) fn check_header(bytes: &[u8]) -> Result<(), HeaderError> {
    let (Some(body), Some(crc)) = (bytes.get(..12), le32(bytes, 12)) else {
        return Err(HeaderError::Corrupt);
    };
    if body[..8] != MAGIC || crc32fast::hash(body) != crc {
        return Err(HeaderError::Corrupt);
    }
    match le32(bytes, 8) {
        Some(format) if format > FORMAT => Err(HeaderError::TooNew(format)),
        Some(format) if format > 0 => Ok(()),
        _ => Err(HeaderError::Corrupt),
    }
}

/// The bytes of a frame, padded so that the next begins at a multiple of 8.
pub(super) fn encode(seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame_len(payload.len()) as usize);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(seq.to_le_bytes());
    bytes.extend(crc32fast::hash(payload).to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend(FRAME_MARK.to_le_bytes());
    bytes.extend(payload);
    bytes.resize(frame_len(payload.len()) as usize, 0);
    bytes
}

/// How many bytes a payload of this length takes in the file.
pub(super) fn frame_len(payload: usize) -> u64 {
    (FRAME_HEADER + payload).next_multiple_of(8) as u64
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

struct Head {
    len: usize,
    seq: u64,
    crc: u32,
}

/// The frame header at `at`, if it is whole.
fn head(bytes: &[u8], at: usize) -> Option<Head> {
    let raw = bytes.get(at..at + FRAME_HEADER)?;
    let valid = le32(raw, 20)? == FRAME_MARK && le32(raw, 16)? == crc32fast::hash(&raw[..16]);
    let head = Head {
        len: le32(raw, 0)? as usize,
        seq: u64::from_le_bytes(raw[4..12].try_into().ok()?),
        crc: le32(raw, 12)?,
    };
    (valid && head.len > 0 && head.len <= MAX_PAYLOAD).then_some(head)
}

/// True when a write of these bytes cannot have been completed: beyond the end of the file counts as zero.
fn unwritten(bytes: &[u8], from: usize, to: usize) -> bool {
    let zero = |from: usize, to: usize| {
        bytes.get(from.min(bytes.len())..to.min(bytes.len())).is_none_or(|part| part.iter().all(|b| *b == 0))
    };
    let mut at = from;
    while at < to {
        let next = ((at / SECTOR + 1) * SECTOR).min(to);
        if zero(at, next) {
            return true;
        }
        at = next;
    }
    zero(to - 1, to)
}

/// Reads a whole file whose header is good.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan, Damage> {
    let (mut at, mut seq) = (HEADER_LEN as usize, 1u64);
    let mut frames = Vec::new();
    loop {
        if bytes.get(at..).is_none_or(|rest| rest.iter().all(|b| *b == 0)) {
            return Ok(Scan { frames, end: at as u64, torn: false });
        }
        let damage = |what: String| Err(Damage { offset: at as u64, what });
        let torn = match head(bytes, at) {
            None if unwritten(bytes, at, at + FRAME_HEADER) => true,
            None => return damage(format!("the header of record {seq} is not valid")),
            Some(head) if head.seq != seq => {
                return damage(format!("record {} stands where {seq} belongs", head.seq));
            }
            Some(head) => {
                let (from, to) = (at + FRAME_HEADER, at + FRAME_HEADER + head.len);
                match bytes.get(from..to) {
                    Some(payload) if crc32fast::hash(payload) == head.crc => {
                        frames.push(from..to);
                        at += frame_len(head.len) as usize;
                        seq += 1;
                        continue;
                    }
                    _ if unwritten(bytes, from, to) => true,
                    _ => return damage(format!("the checksum of record {seq} is wrong")),
                }
            }
        };
        // Whatever was not finished was the last thing written; something whole behind it says otherwise.
        let later = (at + 8..bytes.len()).step_by(8).find(|at| head(bytes, *at).is_some_and(|h| h.seq > seq));
        if let Some(later) = later {
            return damage(format!("record {seq} is not valid, and a later one stands at byte {later}"));
        }
        return Ok(Scan { frames, end: at as u64, torn });
    }
}
