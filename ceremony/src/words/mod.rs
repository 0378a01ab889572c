//! Bytes as words of the English list of BIP-39, 11 bits each, with a checksum over everything: for
//! paper, and for typing.
//!
//! A code word sequence is: one byte of length, the bytes, four bytes of SHA-256 over both; padded
//! with zero bits to whole words. It is not a BIP-39 mnemonic (those end at 24 words), it only uses
//! its list, whose words differ in their first four letters.

use bip39::Language;
use zeroize::Zeroizing;

use super::CeremonyError;
use super::encoding::sha256;
use super::page::printable;

const BITS_PER_WORD: usize = 11;
const CHECKSUM_BYTES: usize = 4;

/// What a checksum is over, so that it can't be that of something else.
const DOMAIN: &[u8] = b"strongroom words v1\0";

/// The words, six on a line. At most 255 bytes; what is beyond is left out, and then the checksum
/// is wrong.
pub fn encode(bytes: &[u8]) -> Zeroizing<String> {
    let list = Language::English.word_list();
    let mut all = framed(bytes);
    let count = (all.len() * 8).div_ceil(BITS_PER_WORD);
    all.extend_from_slice(&[0, 0]);
    let mut text = Zeroizing::new(String::with_capacity(count * 9));
    for at in 0..count {
        if at > 0 {
            text.push(if at % 6 == 0 { '\n' } else { ' ' });
        }
        text.push_str(
            list.get(take(&all, at * BITS_PER_WORD))
                .copied()
                .unwrap_or_default(),
        );
    }
    text
}

/// The bytes. Case, line breaks and numbers before words do not matter, and a word's first four
/// letters do.
///
/// # Errors
/// [`CeremonyError::Words`], naming the first word that is none.
pub fn decode(text: &str) -> Result<Zeroizing<Vec<u8>>, CeremonyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let (mut buffer, mut bits) = (0_u32, 0_usize);
    // A character beyond ASCII is in no word, but what looks like a letter or a blank was meant for
    // one: it is not passed over.
    let words = text
        .split(|c: char| c.is_ascii() && !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        let number = find(word).ok_or_else(|| {
            CeremonyError::Words(format!(
                "word {} ({}) is not in the list: look at it again, and type the words again",
                index + 1,
                printable(word)
            ))
        })?;
        buffer = buffer << BITS_PER_WORD | u32::from(number);
        bits += BITS_PER_WORD;
        while bits >= 8 {
            bits -= 8;
            // The mask leaves a byte.
            bytes.push(u8::try_from(buffer >> bits & 0xff).unwrap_or_default());
            buffer &= (1 << bits) - 1;
        }
    }
    let wrong = || {
        CeremonyError::Words(
            "the words' checksum is wrong: a word is missing, too many, or another one than on the page; compare line by line".to_owned(),
        )
    };
    let length = usize::from(*bytes.first().ok_or_else(wrong)?);
    let content = Zeroizing::new(bytes.get(1..=length).ok_or_else(wrong)?.to_vec());
    let whole = framed(&content);
    // What is left over are padding bits, less than a word's.
    let rest = bytes.get(whole.len()..).ok_or_else(wrong)?;
    let fits = bytes.get(..whole.len()) == Some(whole.as_slice())
        && rest.iter().all(|byte| *byte == 0)
        && buffer == 0
        && rest.len() * 8 + bits < BITS_PER_WORD;
    if fits { Ok(content) } else { Err(wrong()) }
}

/// length || bytes || checksum
fn framed(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut all = Zeroizing::new(Vec::with_capacity(bytes.len() + CHECKSUM_BYTES + 4));
    all.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    all.extend_from_slice(bytes);
    let check = sha256(&Zeroizing::new([DOMAIN, all.as_slice()].concat()));
    all.extend(check.iter().take(CHECKSUM_BYTES));
    all
}

/// 11 bits from bit `at` on.
fn take(bytes: &[u8], at: usize) -> usize {
    let byte = |index: usize| usize::from(bytes.get(index).copied().unwrap_or(0));
    let first = at / 8;
    let window = byte(first) << 16 | byte(first + 1) << 8 | byte(first + 2);
    window >> (24 - BITS_PER_WORD - at % 8) & ((1 << BITS_PER_WORD) - 1)
}

/// A word's number in the list, by the whole word or by its first four letters.
fn find(word: &str) -> Option<u16> {
    let word = Zeroizing::new(word.to_ascii_lowercase());
    Language::English.find_word(&word).or_else(|| {
        let mut starts = Language::English
            .word_list()
            .iter()
            .zip(0_u16..)
            .filter(|(listed, _)| word.len() == 4 && listed.starts_with(word.as_str()));
        match (starts.next(), starts.next()) {
            (Some((_, number)), None) => Some(number),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests;
