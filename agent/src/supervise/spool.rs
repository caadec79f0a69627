//! The spool of one step: a first page with who runs it and how it ended, then frames of output.
//!
//! The supervisor creates it with `O_EXCL` and holds a lock on it for as long as it lives; so whoever gets
//! the lock knows that no supervisor is at work, and whoever creates the file first decides whether the job
//! is ever started.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postern_proto::MAX_FRAME_BYTES;
use postern_proto::event::{LogBody, StepEnd, Stream};

use super::job::{Exit, Started};

/// Who runs it and how it ended, each in one half.
const PAGE: u64 = 4096;
const HALF: usize = PAGE as usize / 2;
/// Before each frame's data.
const HEAD: usize = 40;
const MARK: u32 = 0x4653_5450;

/// A piece of output of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From 0 over both streams.
    pub frame_no: u64,
    /// Which output.
    pub stream: Stream,
    /// Bytes of the stream before it.
    pub offset: u64,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: i64,
    /// The bytes, or what was dropped.
    pub body: LogBody,
}

/// The bytes of a frame.
pub(super) fn encode(frame: &Frame, into: &mut Vec<u8>) {
    let (kind, data) = match &frame.body {
        LogBody::Data(data) => (0u8, data.clone()),
        LogBody::Truncated { bytes, sha256 } => (1, [&bytes.to_le_bytes()[..], sha256].concat()),
    };
    let mut rest = Vec::with_capacity(HEAD - 8 + data.len());
    rest.extend([kind, u8::from(frame.stream == Stream::Stderr), 0, 0]);
    rest.extend((data.len() as u32).to_le_bytes());
    rest.extend(frame.frame_no.to_le_bytes());
    rest.extend(frame.offset.to_le_bytes());
    rest.extend(frame.time_ns.to_le_bytes());
    rest.extend(data);
    into.extend(MARK.to_le_bytes());
    into.extend(crc32fast::hash(&rest).to_le_bytes());
    into.extend(rest);
}

/// The first frame in `bytes` and its length; `None` when it is not whole or not valid.
fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = u32_at(12)? as usize;
    if u32_at(0)? != MARK || len > MAX_FRAME_BYTES {
        return None;
    }
    if crc32fast::hash(bytes.get(8..HEAD + len)?) != u32_at(4)? {
        return None;
    }
    let data = &bytes[HEAD..HEAD + len];
    let body = match (bytes[8], len) {
        (0, _) => LogBody::Data(data.to_vec()),
        (1, 40) => LogBody::Truncated {
            bytes: u64::from_le_bytes(data[..8].try_into().ok()?),
            sha256: data[8..].try_into().ok()?,
        },
        _ => return None,
    };
    let stream = if bytes[9] == 0 { Stream::Stdout } else { Stream::Stderr };
    let frame =
        Frame { frame_no: u64_at(16)?, stream, offset: u64_at(24)?, time_ns: u64_at(32)? as i64, body };
    Some((frame, HEAD + len))
}

fn half(file: &File, second: bool) -> Option<Vec<u8>> {
    let mut bytes = [0u8; HALF];
    file.read_exact_at(&mut bytes, if second { HALF as u64 } else { 0 }).ok()?;
    let len = u32::from_le_bytes(bytes[..4].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(bytes[4..8].try_into().ok()?);
    let json = bytes.get(8..8 + len)?;
    (len > 0 && crc32fast::hash(json) == crc).then(|| json.to_vec())
}

fn to_half(value: &impl serde::Serialize) -> io::Result<[u8; HALF]> {
    let json = serde_json::to_vec(value)?;
    let mut bytes = [0u8; HALF];
    let Some(place) = bytes.get_mut(8..8 + json.len()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too long for its half page"));
    };
    place.copy_from_slice(&json);
    bytes[..4].copy_from_slice(&(json.len() as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&crc32fast::hash(&json).to_le_bytes());
    Ok(bytes)
}

/// The supervisor's end of a spool.
pub(super) struct Writer {
    file: File,
    end: u64,
}

impl Writer {
    /// Creates it; fails when it is there, which means that this job was started or must not be any more.
    pub(super) fn create(path: &Path, started: &Started) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let file = options.open(path)?;
        let taken = || io::Error::new(io::ErrorKind::AlreadyExists, "the job was given up before it began");
        file.try_lock().map_err(|_| taken())?;
        if file.metadata()?.len() != 0 {
            return Err(taken());
        }
        let mut page = to_half(started)?.to_vec();
        page.resize(PAGE as usize, 0);
        file.write_all_at(&page, 0)?;
        Ok(Self { file, end: PAGE })
    }

    /// Appends whole frames; on an error nothing of them is there.
    pub(super) fn append(&mut self, frames: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(frames, self.end) {
            let _ = self.file.set_len(self.end);
            return Err(error);
        }
        self.end += frames.len() as u64;
        Ok(())
    }

    /// One whose every write fails.
    #[cfg(test)]
    pub(super) fn read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, end: PAGE })
    }

    /// Bytes of frames so far.
    pub(super) fn len(&self) -> u64 {
        self.end - PAGE
    }

    /// Writes the end, once the frames it speaks of are on the disk.
    pub(super) fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        if self.end > PAGE {
            // The end is worth telling without them, too: what is missing is then marked.
            let _ = self.file.sync_data();
        }
        self.file.write_all_at(&to_half(exit)?, HALF as u64)
    }
}

/// What has become of a job.
#[derive(Debug)]
pub enum Claim {
    /// Its supervisor is at work.
    Running,
    /// It ended.
    Exited(Exit),
    /// Its supervisor is gone without a word: how far the process got is not known.
    Dead,
    /// It was never started, and now never will be.
    Never,
}

/// Finds out what has become of a job, and makes sure that one which was not begun never begins. `same_boot`
/// says that the job was given in this boot: otherwise a spool that is not there proves nothing, since the
/// power cut may have taken it.
pub fn claim(path: &Path, same_boot: bool) -> io::Result<Claim> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    let never = |file: &File| {
        file.write_all_at(&to_half(&Started { pid: 0, start_ticks: 0 })?, 0)?;
        file.set_len(PAGE)?;
        Ok(if same_boot { Claim::Never } else { Claim::Dead })
    };
    let file = match options.create_new(true).open(path) {
        Ok(file) => return never(&file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.create_new(false).open(path)?,
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Claim::Running),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    if let Some(exit) = read_exit(&file) {
        return Ok(Claim::Exited(exit));
    }
    match read_started(&file) {
        Some(Started { pid: 0, .. }) if same_boot => Ok(Claim::Never),
        None if file.metadata()?.len() == 0 => never(&file),
        _ => Ok(Claim::Dead),
    }
}

fn read_exit(file: &File) -> Option<Exit> {
    serde_json::from_slice(&half(file, true)?).ok()
}

fn read_started(file: &File) -> Option<Started> {
    serde_json::from_slice(&half(file, false)?).ok()
}

/// Reads a spool while it is written and afterwards.
pub struct Reader {
    file: File,
    path: PathBuf,
    at: u64,
    next: u64,
    /// Read from the file; what is not yet decoded begins at `used`, which is byte `at` of the file.
    ahead: Vec<u8>,
    used: usize,
    exit: Option<Exit>,
    named: bool,
    /// There is no such file.
    gone: bool,
    /// Bytes of each output before the next frame.
    ends: [u64; 2],
    /// When the last frame was written.
    time_ns: i64,
    missing: Option<Missing>,
}

/// Frames that cannot be read any more.
struct Missing {
    /// The number of the first one after them.
    to: u64,
    /// How much of each output they held, as far as what follows tells.
    bytes: [u64; 2],
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Reader {
    /// Opens a spool.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        Ok(Self::at(options.open(path)?, path, PAGE, 0))
    }

    /// Stands for a spool that cannot be opened any more: all its frames are missing.
    pub fn lost(path: &Path) -> io::Result<Self> {
        Ok(Self { gone: true, ..Self::at(File::open("/dev/null")?, path, PAGE, 0) })
    }

    fn at(file: File, path: &Path, at: u64, next: u64) -> Self {
        Self {
            file,
            path: path.to_owned(),
            at,
            next,
            ahead: Vec::new(),
            used: 0,
            exit: None,
            named: false,
            gone: false,
            ends: [0; 2],
            time_ns: 0,
            missing: None,
        }
    }

    /// How the job ended, once it has.
    pub fn exit(&mut self) -> Option<&Exit> {
        if self.exit.is_none() {
            self.exit = read_exit(&self.file);
        }
        self.exit.as_ref()
    }

    /// Who runs it.
    #[must_use]
    pub fn started(&self) -> Option<Started> {
        read_started(&self.file)
    }

    /// The number of the next frame.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The next frame, when it is there whole.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some((frame, len)) = decode(&self.ahead[self.used..]) {
                if frame.frame_no != self.next {
                    return Ok(None);
                }
                self.used += len;
                self.at += len as u64;
                self.passed(&frame);
                return Ok(Some(frame));
            }
            self.ahead.drain(..self.used);
            self.used = 0;
            let have = self.ahead.len();
            if have > MAX_FRAME_BYTES + HEAD {
                break;
            }
            self.ahead.resize(have + 2 * (MAX_FRAME_BYTES + HEAD), 0);
            let got = self.file.read_at(&mut self.ahead[have..], self.at + have as u64)?;
            self.ahead.truncate(have + got);
            if got == 0 {
                break;
            }
        }
        // What is left undecoded may be half a write, whose other half replaces it.
        self.ahead.clear();
        Ok(self.lost_frame())
    }

    /// Moves on to a frame; stops early when it is not there yet.
    pub fn skip_to(&mut self, frame_no: u64) -> io::Result<()> {
        while self.next < frame_no && self.next_frame()?.is_some() {}
        Ok(())
    }

    /// Returns when all that was read is on the disk, its name too.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        self.file.sync_data()?;
        if !self.named {
            crate::journal::sync_dir(&self.path)?;
            self.named = true;
        }
        Ok(())
    }

    /// Output that found no room is told of at the end.
    fn lost_frame(&mut self) -> Option<Frame> {
        let next = self.next;
        let exit = self.exit()?;
        let lost = exit.lost.get(usize::try_from(next.checked_sub(exit.frames)?).ok()?)?;
        let frame = Frame {
            frame_no: next,
            stream: lost.stream,
            offset: lost.offset,
            time_ns: exit.time_ns,
            body: LogBody::Truncated { bytes: lost.bytes, sha256: unhex(&lost.sha256)? },
        };
        self.passed(&frame);
        Some(frame)
    }

    fn passed(&mut self, frame: &Frame) {
        self.next = frame.frame_no + 1;
        self.ends[index(frame.stream)] = frame.offset.saturating_add(frame.body.stream_bytes());
        self.time_ns = frame.time_ns;
    }

    /// The next frame of a spool that had `until` of them: a mark stands for each that cannot be read any
    /// more, and what follows the damage is told as it is. `patient` says that a disk error is given back
    /// instead, since it may pass. `None` when that was the last.
    pub fn next_of(&mut self, until: u64, patient: bool) -> io::Result<Option<Frame>> {
        if self.next >= until {
            return Ok(None);
        }
        if self.missing.is_none() {
            match self.next_frame() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Err(error) if patient => return Err(error),
                Ok(None) | Err(_) => {}
            }
            self.missing = Some(self.measure(until, patient)?);
        }
        let Some(missing) = &mut self.missing else { return Ok(None) };
        let stream =
            if missing.bytes[0] == 0 && missing.bytes[1] > 0 { Stream::Stderr } else { Stream::Stdout };
        let frame = Frame {
            frame_no: self.next,
            stream,
            offset: self.ends[index(stream)],
            time_ns: self.time_ns,
            // What was in it is not known, so no hash is that of it.
            body: LogBody::Truncated {
                bytes: std::mem::take(&mut missing.bytes[index(stream)]),
                sha256: [0; 32],
            },
        };
        if frame.frame_no + 1 >= missing.to {
            self.missing = None;
        }
        self.passed(&frame);
        Ok(Some(frame))
    }

    /// Finds out how far the damage goes, and moves behind it. The same file always gives the same answer:
    /// what one session told, the next one goes on with.
    fn measure(&mut self, until: u64, patient: bool) -> io::Result<Missing> {
        (self.ahead, self.used) = (Vec::new(), 0);
        let found = match self.find_whole(until) {
            Err(error) if patient => return Err(error),
            found => found.unwrap_or(None),
        };
        let (at, to) = found.unwrap_or_else(|| {
            let written = self.exit().map_or(until, |exit| exit.frames);
            (0, written.clamp(self.next + 1, until))
        });
        // Nothing whole follows: nothing more is read.
        let at = if at == 0 { self.file.metadata()?.len().max(PAGE) } else { at };
        // The first later frame of each output says how much of it is missing before that.
        let mut bytes = [None; 2];
        let mut later = Self::at(self.file.try_clone()?, &self.path, at, to);
        while bytes.contains(&None)
            && let Ok(Some(frame)) = later.next_frame()
        {
            let stream = index(frame.stream);
            bytes[stream].get_or_insert(frame.offset.saturating_sub(self.ends[stream]));
        }
        self.at = at;
        Ok(Missing { to, bytes: bytes.map(|bytes| bytes.unwrap_or(0)) })
    }

    /// Place and number of the first whole frame behind a damaged one.
    fn find_whole(&self, until: u64) -> io::Result<Option<(u64, u64)>> {
        const LONGEST: usize = MAX_FRAME_BYTES + HEAD;
        let mut part = vec![0u8; 4 * LONGEST];
        let mut at = self.at;
        loop {
            let mut have = 0;
            while have < part.len() {
                match self.file.read_at(&mut part[have..], at + have as u64)? {
                    0 => break,
                    got => have += got,
                }
            }
            let last = have < part.len();
            // Behind each place that is looked at there is room for a whole frame.
            let places = if last { have } else { have - LONGEST };
            for place in 0..places {
                let bytes = &part[place..have];
                if bytes.starts_with(&MARK.to_le_bytes())
                    && let Some((frame, _)) = decode(bytes)
                    && (self.next + 1..until).contains(&frame.frame_no)
                    && frame.offset >= self.ends[index(frame.stream)]
                {
                    return Ok(Some((at + place as u64, frame.frame_no)));
                }
            }
            if last {
                return Ok(None);
            }
            at += places as u64;
        }
    }
}

/// Hex of a hash.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0u8; 32];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The last lines of a step's output, for a message: at most `limit` characters, control characters as spaces.
#[must_use]
pub fn last_words(path: &Path, limit: usize) -> String {
    let Ok(mut reader) = Reader::open(path) else { return String::new() };
    let mut tail: Vec<u8> = Vec::new();
    while let Ok(Some(frame)) = reader.next_frame() {
        if let LogBody::Data(data) = frame.body {
            tail.extend(data);
            let extra = tail.len().saturating_sub(8 * limit);
            tail.drain(..extra);
        }
    }
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> =
        text.lines().rev().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    let line = lines.into_iter().rev().collect::<Vec<_>>().join(" / ");
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let skip = line.chars().count().saturating_sub(limit);
    line.chars().skip(skip).collect()
}

/// True when this is the end of a process that did what it was to do.
#[must_use]
pub fn succeeded(end: &StepEnd) -> bool {
    matches!(end, StepEnd::Done | StepEnd::Exit(0))
}
