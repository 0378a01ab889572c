//! Bounds a number that sled believes. On opening it makes room for as many pages as the greatest
//! page number in its log, however great: a message of a few bytes, with a checksum that anybody
//! can compute, would take all memory.
//!
//! A log holds, in segments of 512 KiB, a header of 20 bytes and then messages, each: CRC-32 (4,
//! little-endian), kind (1), length of the body, number of the segment, number of the page (all
//! three of 1 to 9 bytes), body. The first that does not fit ends the segment.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

const SEGMENT_BYTES: u64 = 512 << 10;
const SEGMENT_HEADER_BYTES: usize = 20;
const READ_BYTES: usize = 4096;
/// No message is shorter, bytes. Each page has one at least.
const MIN_MESSAGE_BYTES: u64 = 8;
/// Ends a segment.
const CAP_KIND: u8 = 2;
/// The kinds of messages that are about a page.
const PAGE_KINDS: std::ops::RangeInclusive<u8> = 4..=11;

/// A page number that no log of this size can have, if there is one.
pub(super) fn impossible(log: &Path) -> io::Result<Option<u64>> {
    let mut file = File::open(log)?;
    let mut segment = Vec::new();
    let (mut greatest, mut written) = (0, 0);
    loop {
        segment.clear();
        if file
            .by_ref()
            .take(SEGMENT_BYTES)
            .read_to_end(&mut segment)?
            == 0
        {
            return Ok(Some(greatest).filter(|page| *page > written / MIN_MESSAGE_BYTES));
        }
        // A file may be long and empty.
        let blocks = segment.chunks(READ_BYTES).filter(|block| !is_zero(block));
        written += blocks.map(|block| block.len() as u64).sum::<u64>();
        let messages = Messages(segment.get(SEGMENT_HEADER_BYTES..).unwrap_or_default());
        greatest = messages.flatten().fold(greatest, u64::max);
    }
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The messages of a segment: the page that each is about, if it is about one.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = Option<u64>;

    fn next(&mut self) -> Option<Self::Item> {
        let all = self.0;
        let (crc, mut rest) = all.split_first_chunk()?;
        let kind = *rest.split_off_first()?;
        let length = usize::try_from(number(&mut rest)?).ok()?;
        let _segment = number(&mut rest)?;
        let page = number(&mut rest)?;
        let header = all.get(crc.len()..all.len() - rest.len())?;
        let (body, rest) = rest.split_at_checked(length)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(body);
        hasher.update(header);
        if kind == 0 || hasher.finalize() ^ u32::MAX != u32::from_le_bytes(*crc) {
            return None;
        }
        self.0 = if kind == CAP_KIND { &[] } else { rest };
        Some(PAGE_KINDS.contains(&kind).then_some(page))
    }
}

/// As sled writes numbers: small ones in one byte, greater ones behind a byte that tells their
/// length.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.split_off_first()?;
    let mut take = |count: usize| bytes.split_off(..count);
    match first {
        0..=240 => Some(u64::from(first)),
        241..=248 => Some(240 + 256 * (u64::from(first) - 241) + u64::from(*take(1)?.first()?)),
        249 => {
            let &[high, low] = take(2)? else { return None };
            Some(2288 + 256 * u64::from(high) + u64::from(low))
        }
        _ => {
            let given = take(usize::from(first) - 247)?;
            let mut number = [0; 8];
            number.get_mut(..given.len())?.copy_from_slice(given);
            Some(u64::from_le_bytes(number))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::engine::Engine as _;
    use super::*;
    use std::fs;

    #[test]
    fn a_page_that_cannot_be_is_found_and_none_in_a_log_of_sleds_own() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("db");
        let engine = super::super::engine::sled_db::Sled::open(folder.path()).unwrap();
        for number in 0..400_u32 {
            let key = number.to_be_bytes().to_vec();
            engine
                .write(None, vec![(key, Some(vec![7; 3000]))])
                .unwrap();
        }
        drop(engine);
        let bytes = fs::read(&log).unwrap();
        let pages = |segment: &[u8]| {
            let mut messages = Messages(&segment[SEGMENT_HEADER_BYTES..]);
            let pages = messages.by_ref().flatten().count();
            (pages, segment.len() - messages.0.len())
        };
        let found: usize = bytes
            .chunks(512 << 10)
            .map(|segment| pages(segment).0)
            .sum();
        assert!(found > 300, "{found} messages about pages");
        assert_eq!(impossible(&log).unwrap(), None);

        for page in [1_u64 << 50, u64::MAX] {
            let mut bad = bytes.clone();
            let end = pages(&bytes[..512 << 10]).1;
            let mut message = vec![0; 4];
            message.extend([4, 0, 0, 255]);
            message.extend(page.to_le_bytes());
            let crc = crc32fast::hash(&message[4..]) ^ u32::MAX;
            message[..4].copy_from_slice(&crc.to_le_bytes());
            // In the place of a message that is there.
            let at = if end + message.len() > 512 << 10 {
                SEGMENT_HEADER_BYTES
            } else {
                end
            };
            bad[at..at + message.len()].copy_from_slice(&message);
            fs::write(&log, bad).unwrap();
            assert_eq!(impossible(&log).unwrap(), Some(page));
        }
    }
}
