//! A unified kernel image: a PE file whose sections hold, beside the kernel, the command line and
//! the os-release of its root.

use sha2::{Digest as _, Sha256};

pub(super) struct KernelImage {
    bytes: Vec<u8>,
}

/// One line of the section table.
struct Section {
    name: [u8; 8],
    /// Its length in memory; the file may have it padded.
    size: usize,
    start: usize,
    padded: usize,
}

/// Of the optional header, by the PE format for 64 bits.
const PE32_PLUS_MAGIC: u16 = 0x20b;
const SIZE_OF_HEADERS_OFFSET: usize = 60;
const CHECKSUM_OFFSET: usize = 64;
const CERTIFICATE_TABLE_OFFSET: usize = 112 + 4 * 8;

impl KernelImage {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A value of its os-release.
    pub(super) fn release(&self, name: &str) -> Option<String> {
        let text = self.text(*b".osrel\0\0")?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    }

    /// A value of its command line.
    pub(super) fn command_line(&self, name: &str) -> Option<String> {
        self.text(*b".cmdline")?
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    }

    fn text(&self, name: [u8; 8]) -> Option<&str> {
        let section = self
            .sections()?
            .into_iter()
            .find(|section| section.name == name)?;
        let length = section.size.min(section.padded);
        let text = std::str::from_utf8(self.take(section.start, length)?).ok()?;
        Some(text.trim_end_matches('\0'))
    }

    /// The hash that its signatures are over, as the firmware takes it: headers without checksum
    /// and the place of the signatures, sections in their order in the file, what follows them
    /// but for the signatures.
    pub(super) fn hash(&self) -> Option<[u8; 32]> {
        let header = self.optional_header()?;
        let headers_size = self.number(header + SIZE_OF_HEADERS_OFFSET)?;
        let mut hash = Sha256::new();
        hash.update(self.bytes.get(..header + CHECKSUM_OFFSET)?);
        hash.update(
            self.bytes
                .get(header + CHECKSUM_OFFSET + 4..header + CERTIFICATE_TABLE_OFFSET)?,
        );
        hash.update(
            self.bytes
                .get(header + CERTIFICATE_TABLE_OFFSET + 8..headers_size)?,
        );
        let mut sections = self.sections()?;
        sections.sort_by_key(|section| section.start);
        let mut hashed = headers_size;
        for section in sections.iter().filter(|section| section.padded != 0) {
            hash.update(self.take(section.start, section.padded)?);
            hashed = hashed.checked_add(section.padded)?;
        }
        let rest = self.bytes.len().checked_sub(self.signatures_place()?.1)?;
        if hashed < rest {
            hash.update(self.bytes.get(hashed..rest)?);
        }
        Some(hash.finalize().into())
    }

    /// The signatures, each a PKCS#7 structure.
    pub(super) fn signatures(&self) -> Vec<&[u8]> {
        const HEADER_BYTES: usize = 8;
        // Revision 2.0 and the type.
        const PKCS_SIGNED_DATA: [u8; 4] = [0x00, 0x02, 0x02, 0x00];
        let mut found = Vec::new();
        let mut left = self
            .signatures_place()
            .and_then(|(start, size)| self.take(start, size))
            .unwrap_or_default();
        while let Some(header) = left.first_chunk::<HEADER_BYTES>() {
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let Some(signature) = left.get(HEADER_BYTES..length) else {
                break;
            };
            if header[4..] == PKCS_SIGNED_DATA {
                found.push(signature);
            }
            left = left.get(length.next_multiple_of(8)..).unwrap_or_default();
        }
        found
    }

    fn signatures_place(&self) -> Option<(usize, usize)> {
        let at = self.optional_header()? + CERTIFICATE_TABLE_OFFSET;
        Some((self.number(at)?, self.number(at + 4)?))
    }

    fn sections(&self) -> Option<Vec<Section>> {
        let header = self.optional_header()?;
        let count = self.short(header - 18)?;
        let table = header + usize::from(self.short(header - 4)?);
        (0..usize::from(count))
            .map(|index| {
                let entry = table + index * 40;
                Some(Section {
                    name: *self.bytes.get(entry..)?.first_chunk()?,
                    size: self.number(entry + 8)?,
                    padded: self.number(entry + 16)?,
                    start: self.number(entry + 20)?,
                })
            })
            .collect()
    }

    fn optional_header(&self) -> Option<usize> {
        let start = self.number(0x3c)?;
        let header = start.checked_add(24)?;
        (self.take(start, 4)? == b"PE\0\0" && self.short(header)? == PE32_PLUS_MAGIC)
            .then_some(header)
    }

    fn take(&self, start: usize, length: usize) -> Option<&[u8]> {
        self.bytes.get(start..start.checked_add(length)?)
    }

    fn short(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(at, 2)?.try_into().ok()?))
    }

    fn number(&self, at: usize) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(at, 4)?.try_into().ok()?) as usize)
    }
}
