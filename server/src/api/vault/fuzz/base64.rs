//! Go's base64 decoder (`encoding/base64`, `decodeQuantum` with `StdEncoding`), one character at a
//! time: the reference.

/// The bytes, or the offset in Go's `CorruptInputError`.
pub(super) fn as_go(text: &[u8]) -> Result<Vec<u8>, usize> {
    let mut bytes = Vec::new();
    let mut at = 0;
    loop {
        let mut bits = 0_u32;
        let mut count = 0;
        while count < 4 {
            let Some(byte) = text.get(at) else {
                return if count == 0 {
                    Ok(bytes)
                } else {
                    Err(at - count)
                };
            };
            at += 1;
            if let Some(value) = value(*byte) {
                bits = bits << 6 | value;
                count += 1;
            } else if *byte == b'=' {
                let end = padding(text, at, count)?;
                bits <<= 6 * (4 - count);
                bytes.extend(bits.to_be_bytes().into_iter().skip(1).take(count - 1));
                return if end == text.len() {
                    Ok(bytes)
                } else {
                    Err(end)
                };
            } else if !b"\r\n".contains(byte) {
                return Err(at - 1);
            }
        }
        bytes.extend(bits.to_be_bytes().into_iter().skip(1));
    }
}

/// Where the text goes on after the padding whose first `=` stands just before `at`.
fn padding(text: &[u8], at: usize, count: usize) -> Result<usize, usize> {
    match count {
        0 | 1 => Err(at - 1),
        2 => {
            let second = skip_breaks(text, at);
            match text.get(second) {
                None => Err(text.len()),
                Some(b'=') => Ok(skip_breaks(text, second + 1)),
                Some(_) => Err(second - 1),
            }
        }
        _ => Ok(skip_breaks(text, at)),
    }
}

fn skip_breaks(text: &[u8], at: usize) -> usize {
    let breaks = text
        .iter()
        .skip(at)
        .take_while(|byte| b"\r\n".contains(byte));
    at + breaks.count()
}

fn value(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}
