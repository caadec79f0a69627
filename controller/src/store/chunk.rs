//! Output as it lies in the database: the frames of one commit in one row, compressed where that pays.
//!
//! A row is a byte that says whether the rest is compressed (deflate), then frame after frame: the length
//! of the address, the address, attempt, step, frame number, stream, offset, time, then either the length
//! and the bytes, or what was dropped and its hash. Numbers are little-endian.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use postern_proto::event::{LogBody, LogFrame, StepId, Stream};
use postern_proto::ids::RunId;

/// Smaller ones are not worth the time.
const COMPRESS_ABOVE: usize = 512;
/// A chunk is closed when it holds so many bytes.
pub(super) const CHUNK_BYTES: usize = 256 * 1024;
/// None is larger, whatever the file says.
const MAX_RAW: u64 = 4 * CHUNK_BYTES as u64;

const PLAIN: u8 = 0;
const DEFLATED: u8 = 1;

/// The row's body.
pub(super) fn encode(frames: &[LogFrame]) -> Vec<u8> {
    let mut raw = vec![PLAIN];
    for frame in frames {
        let address = frame.step.address.as_str().as_bytes();
        // An address has at most 512 bytes.
        raw.extend_from_slice(&u16::try_from(address.len()).unwrap_or(u16::MAX).to_le_bytes());
        raw.extend_from_slice(address);
        raw.extend_from_slice(&frame.step.attempt.to_le_bytes());
        raw.extend_from_slice(&frame.step.step.to_le_bytes());
        raw.extend_from_slice(&frame.frame_no.to_le_bytes());
        raw.push(match frame.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        raw.extend_from_slice(&frame.offset.to_le_bytes());
        raw.extend_from_slice(&frame.time_ns.to_le_bytes());
        match &frame.body {
            LogBody::Data(data) => {
                raw.push(0);
                // A frame has at most 32 KiB.
                raw.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes());
                raw.extend_from_slice(data);
            }
            LogBody::Truncated { bytes, sha256 } => {
                raw.push(1);
                raw.extend_from_slice(&bytes.to_le_bytes());
                raw.extend_from_slice(sha256);
            }
        }
    }
    if raw.len() <= COMPRESS_ABOVE {
        return raw;
    }
    let mut encoder = DeflateEncoder::new(vec![DEFLATED], Compression::fast());
    match encoder.write_all(&raw[1..]).and_then(|()| encoder.finish()) {
        Ok(packed) if packed.len() < raw.len() => packed,
        _ => raw,
    }
}

/// The frames of a row. The error is for people: the database is corrupt.
pub(super) fn decode(run: RunId, body: &[u8]) -> Result<Vec<LogFrame>, String> {
    let unpacked;
    let raw = match body.split_first() {
        Some((&PLAIN, raw)) => raw,
        Some((&DEFLATED, packed)) => {
            let mut bytes = Vec::new();
            let mut decoder = DeflateDecoder::new(packed).take(MAX_RAW + 1);
            decoder.read_to_end(&mut bytes).map_err(|error| format!("output of run {run}: {error}"))?;
            if bytes.len() as u64 > MAX_RAW {
                return Err(format!("output of run {run}: a chunk is too large"));
            }
            unpacked = bytes;
            &unpacked[..]
        }
        _ => return Err(format!("output of run {run}: a chunk of an unknown form")),
    };
    let mut rest = Rest(raw);
    let mut frames = Vec::new();
    while !rest.0.is_empty() {
        frames.push(rest.frame(run).ok_or_else(|| format!("output of run {run}: a chunk is cut off"))?);
    }
    Ok(frames)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn frame(&mut self, run: RunId) -> Option<LogFrame> {
        let length = u16::from_le_bytes(self.array()?);
        let address = std::str::from_utf8(self.take(length.into())?).ok()?.parse().ok()?;
        let step = StepId {
            address,
            attempt: u32::from_le_bytes(self.array()?),
            step: u32::from_le_bytes(self.array()?),
        };
        let frame_no = u64::from_le_bytes(self.array()?);
        let stream = match self.take(1)? {
            [1] => Stream::Stdout,
            [2] => Stream::Stderr,
            _ => return None,
        };
        let offset = u64::from_le_bytes(self.array()?);
        let time_ns = i64::from_le_bytes(self.array()?);
        let body = match self.take(1)? {
            [0] => {
                let length = u32::from_le_bytes(self.array()?);
                LogBody::Data(self.take(usize::try_from(length).ok()?)?.to_vec())
            }
            [1] => LogBody::Truncated { bytes: u64::from_le_bytes(self.array()?), sha256: self.array()? },
            _ => return None,
        };
        Some(LogFrame { run, step, frame_no, stream, offset, time_ns, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(run: RunId, frame_no: u64, body: LogBody) -> LogFrame {
        let step = StepId { address: "a:command:é".parse().unwrap(), attempt: 3, step: 7 };
        let stream = if frame_no.is_multiple_of(2) { Stream::Stdout } else { Stream::Stderr };
        LogFrame { run, step, frame_no, stream, offset: frame_no * 9, time_ns: -5, body }
    }

    proptest! {
        #[test]
        fn comes_back_byte_for_byte(pieces in prop::collection::vec(any::<Vec<u8>>(), 1..20), pad in 0usize..3000) {
            let run = RunId::generate();
            let mut frames: Vec<_> = (0u64..)
                .zip(pieces)
                .map(|(no, data)| frame(run, no, LogBody::Data(data)))
                .collect();
            frames.push(frame(run, 99, LogBody::Truncated { bytes: u64::MAX, sha256: [7; 32] }));
            frames.push(frame(run, 100, LogBody::Data(vec![b'x'; pad])));
            prop_assert_eq!(decode(run, &encode(&frames)).unwrap(), frames);
        }

        #[test]
        fn no_content_is_a_panic(bytes in any::<Vec<u8>>(), cut in 0usize..100) {
            let run = RunId::generate();
            let _ = decode(run, &bytes);
            let body = encode(&[frame(run, 0, LogBody::Data(b"hello".to_vec()))]);
            let cut = cut % body.len();
            if cut > 1 {
                prop_assert!(decode(run, &body[..cut]).is_err());
            }
        }
    }
}
