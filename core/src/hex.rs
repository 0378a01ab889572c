//! Bytes as hexadecimal digits, in lower case: one spelling only, since much of it is compared as
//! text.

/// Two digits a byte.
pub fn encode(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

/// Exactly `N` bytes; `None` for fewer, more, or what is not hexadecimal in lower case.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (base16ct::lower::decode(text, &mut bytes).ok()?.len() == N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_of_the_right_length() {
        assert_eq!(encode(&[0x00, 0xaf, 0x7e]), "00af7e");
        assert_eq!(decode("00af7e"), Some([0x00, 0xaf, 0x7e]));
        for text in [
            "", "00af", "00af7", "00af7e01", "00AF7E", "00af7g", " 0af7e",
        ] {
            assert_eq!(decode::<3>(text), None, "{text:?}");
        }
    }
}
