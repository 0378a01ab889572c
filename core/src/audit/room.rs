//! Room on the disk that nobody else can take: blocks that the file system gives the log's file
//! beyond its end, before they are needed.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// So much is kept ready.
pub(super) const RESERVE_BYTES: u64 = 2 << 20;
/// More is asked for when less is left.
const REFILL_BELOW_BYTES: u64 = 3 << 19;
/// With less left, and no more to be had, no change is begun.
pub(super) const MIN_BYTES_CHANGE: u64 = 1 << 20;
/// With less left, and no more to be had, no request that needs a line is carried out. What is left
/// is for the outcomes of what was begun, and for the server's own lines.
pub(super) const MIN_BYTES_REQUEST: u64 = 1 << 19;
/// With less left, counts of what was not written wait.
pub(super) const MIN_BYTES_SUMMARY: u64 = 1 << 17;
/// More is asked for at most this often once there was none.
const MIN_REFILL_GAP: Duration = Duration::from_secs(1);

/// What is ready for one file.
pub(super) struct Room {
    /// Offset up to which the file has its blocks.
    to: u64,
    /// There was no more to be had, and when it was asked for.
    short: Option<Instant>,
    /// The file system does not know of this: there is only what it has when a line is written.
    unknown: bool,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            to: 0,
            short: None,
            unknown: false,
        }
    }

    /// Bytes that can be written for certain; the largest number where that can't be known.
    pub(super) fn left(&self, length: u64) -> u64 {
        if self.unknown {
            return u64::MAX;
        }
        self.to.saturating_sub(length)
    }

    /// Whether the disk is so full that less is ready than should be.
    pub(super) fn is_short(&self) -> bool {
        self.short.is_some()
    }

    /// Whether the file system keeps no room ready.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown
    }

    /// Asks for more if little is left.
    pub(super) fn refill(&mut self, file: &File, length: u64) {
        let little = self.is_short() || self.left(length) < REFILL_BELOW_BYTES;
        if little
            && self
                .short
                .is_none_or(|when| when.elapsed() >= MIN_REFILL_GAP)
        {
            self.ask(file, length, RESERVE_BYTES);
        }
    }

    /// Whether `needed` bytes are ready; asks for them if not.
    pub(super) fn has(&mut self, file: &File, length: u64, needed: u64) -> bool {
        if self.left(length) < needed
            && self
                .short
                .is_none_or(|when| when.elapsed() >= MIN_REFILL_GAP)
        {
            self.ask(file, length, needed.saturating_add(RESERVE_BYTES));
        }
        self.left(length) >= needed
    }

    fn ask(&mut self, file: &File, length: u64, wanted: u64) {
        self.short = None;
        let (mut from, mut bytes) = (length, wanted);
        // Of a disk that is nearly full, what there is: half of it, half of the rest, ...
        while bytes >= MIN_BYTES_REQUEST / 8 {
            match reserve(file, from, bytes) {
                Ok(()) => {
                    from += bytes;
                    self.to = self.to.max(from);
                    if self.short.is_none() {
                        break;
                    }
                    bytes /= 2;
                }
                Err(Errno::ENOSPC | Errno::EDQUOT) => {
                    self.short = Some(Instant::now());
                    bytes /= 2;
                }
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.unknown = true;
                    break;
                }
            }
        }
    }

    /// Gives back what was not needed, when no more is written to that file.
    pub(super) fn release(&mut self, file: &File, length: u64) {
        let beyond = i64::try_from(self.to.saturating_sub(length)).unwrap_or(0);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if let (Ok(from), 1..) = (i64::try_from(length), beyond) {
            let _ = fallocate(file, flags, from, beyond);
        }
        *self = Self::new();
    }
}

fn reserve(file: &File, from: u64, bytes: u64) -> Result<(), Errno> {
    let (Ok(from), Ok(bytes)) = (i64::try_from(from), i64::try_from(bytes)) else {
        return Err(Errno::EFBIG);
    };
    fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, bytes)
}

/// Whether a line of any length can be written at the file's end: tried, as a limit of the process
/// is met by the write alone.
pub(super) fn try_writing(file: &File, length: u64, bytes: usize) -> io::Result<()> {
    let tried = io::Write::write_all(&mut &*file, &vec![b'\n'; bytes]);
    // Whatever was written of it.
    file.set_len(length)?;
    tried
}
