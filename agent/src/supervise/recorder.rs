//! Turns output into frames, within the spool's limit and with a disk that may be full.

use std::collections::VecDeque;

use postern_proto::MAX_FRAME_BYTES;
use postern_proto::event::{LogBody, Stream};
use sha2::{Digest as _, Sha256};

use super::job::Lost;
use super::redact::{Redact, Redactor};
use super::spool::{Frame, Writer, encode, hex};

/// The most of the end of a flood that is kept, bytes; it waits in memory for the end of the process.
const TAIL_BYTES: u64 = 1 << 20;
/// So much is gathered before it is written, bytes.
const BATCH_BYTES: usize = 256 * 1024;
/// What a frame takes beside its data, bytes.
const OVERHEAD: usize = 40;

/// What was dropped of one stream.
struct Dropped {
    offset: u64,
    bytes: u64,
    hash: Sha256,
}

/// Output on its way into the spool.
pub(super) struct Recorder {
    spool: Writer,
    redact: [Redactor; 2],
    offsets: [u64; 2],
    next: u64,
    /// Not yet written.
    pending: Vec<Frame>,
    pending_bytes: usize,
    head_limit: u64,
    tail_limit: u64,
    /// Set once the head is full or the disk is: from here on only the end is kept.
    dropping: bool,
    tail: VecDeque<Frame>,
    tail_bytes: u64,
    dropped: [Option<Dropped>; 2],
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Recorder {
    pub(super) fn new(spool: Writer, limit: u64, redact: &[String]) -> Self {
        let tail_limit = TAIL_BYTES.min(limit / 4);
        let redact = Redact::new(redact.iter().map(String::as_str));
        Self {
            spool,
            redact: [Redactor::over(redact.clone()), Redactor::over(redact)],
            offsets: [0, 0],
            next: 0,
            pending: Vec::new(),
            pending_bytes: 0,
            head_limit: limit - tail_limit,
            tail_limit,
            dropping: false,
            tail: VecDeque::new(),
            tail_bytes: 0,
            dropped: [None, None],
        }
    }

    /// Output as it was read.
    pub(super) fn take(&mut self, stream: Stream, data: &[u8], time_ns: i64) {
        let data = self.redact[index(stream)].push(data);
        self.record(stream, &data, time_ns);
        if self.pending_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    /// True when something waits to be written.
    pub(super) fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    fn record(&mut self, stream: Stream, data: &[u8], time_ns: i64) {
        for part in data.chunks(MAX_FRAME_BYTES) {
            let offset = &mut self.offsets[index(stream)];
            let body = LogBody::Data(part.to_vec());
            let frame = Frame { frame_no: self.next, stream, offset: *offset, time_ns, body };
            *offset += part.len() as u64;
            let size = part.len() + OVERHEAD;
            let used = self.spool.len() + self.pending_bytes as u64;
            if self.dropping || used + size as u64 > self.head_limit {
                if !std::mem::replace(&mut self.dropping, true) {
                    // What came before goes to the disk, or into the tail, before anything that follows.
                    self.flush();
                }
                self.keep_in_tail(frame);
            } else {
                self.next += 1;
                self.pending_bytes += size;
                self.pending.push(frame);
            }
        }
    }

    fn keep_in_tail(&mut self, frame: Frame) {
        self.tail_bytes += frame.body.stream_bytes() + OVERHEAD as u64;
        self.tail.push_back(frame);
        while self.tail_bytes > self.tail_limit {
            let Some(frame) = self.tail.pop_front() else { break };
            self.tail_bytes -= frame.body.stream_bytes() + OVERHEAD as u64;
            self.drop_frame(&frame);
        }
    }

    fn drop_frame(&mut self, frame: &Frame) {
        let LogBody::Data(data) = &frame.body else { return };
        let dropped = self.dropped[index(frame.stream)].get_or_insert_with(|| Dropped {
            offset: frame.offset,
            bytes: 0,
            hash: Sha256::new(),
        });
        dropped.bytes += data.len() as u64;
        dropped.hash.update(data);
    }

    /// Writes what waits. When the disk does not take it, only the end of what follows is kept.
    pub(super) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let frames = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        if self.write(&frames).is_err() {
            self.next = frames[0].frame_no;
            self.dropping = true;
            // These came before anything that is in the tail already.
            let later = std::mem::take(&mut self.tail);
            self.tail_bytes = 0;
            frames.into_iter().chain(later).for_each(|frame| self.keep_in_tail(frame));
        }
    }

    fn write(&mut self, frames: &[Frame]) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(frames.len() * OVERHEAD + BATCH_BYTES);
        frames.iter().for_each(|frame| encode(frame, &mut bytes));
        self.spool.append(&bytes)
    }

    /// Writes the rest. Gives the spool, the number of frames in it, and what found no room.
    pub(super) fn finish(mut self, time_ns: i64) -> (Writer, u64, Vec<Lost>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = self.redact[index(stream)].finish();
            self.record(stream, &rest, time_ns);
        }
        self.flush();
        if !self.dropping {
            return (self.spool, self.next, Vec::new());
        }
        let tail = std::mem::take(&mut self.tail);
        let mut frames = Vec::with_capacity(tail.len() + 2);
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(dropped) = &self.dropped[index(stream)] {
                let body = LogBody::Truncated {
                    bytes: dropped.bytes,
                    sha256: dropped.hash.clone().finalize().into(),
                };
                frames.push(Frame { frame_no: 0, stream, offset: dropped.offset, time_ns, body });
            }
        }
        frames.extend(tail.iter().cloned());
        for (frame, frame_no) in frames.iter_mut().zip(self.next..) {
            frame.frame_no = frame_no;
        }
        if self.write(&frames).is_ok() {
            let frames = self.next + frames.len() as u64;
            return (self.spool, frames, Vec::new());
        }
        tail.iter().for_each(|frame| self.drop_frame(frame));
        let mut lost = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(dropped) = self.dropped[index(stream)].take() {
                let sha256 = hex(&dropped.hash.finalize());
                lost.push(Lost { stream, offset: dropped.offset, bytes: dropped.bytes, sha256 });
            }
        }
        (self.spool, self.next, lost)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Started;
    use super::*;

    /// A disk that takes nothing: what waited when the head was full still comes first in what is lost.
    #[test]
    fn what_waits_when_the_head_is_full_keeps_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        Writer::create(&path, &Started { pid: 1, start_ticks: 1 }).unwrap();
        let mut recorder = Recorder::new(Writer::read_only(&path).unwrap(), 4000, &[]);
        let data: Vec<u8> = (0..3500u32).map(|i| i as u8).collect();
        recorder.take(Stream::Stdout, &data[..2000], 1);
        recorder.take(Stream::Stdout, &data[2000..], 2);
        let (_, frames, lost) = recorder.finish(3);
        assert_eq!((frames, lost.len()), (0, 1));
        assert_eq!((lost[0].offset, lost[0].bytes), (0, 3500));
        assert_eq!(lost[0].sha256, hex(&Sha256::digest(&data)));
    }
}
