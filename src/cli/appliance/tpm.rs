//! The one thing that is asked of the TPM itself: to forget its count of failures.
//!
//! A TPM counts a power cut after a key was used as a try to guess a password, and after some (3
//! with a software TPM) gives no key that is under this protection for many minutes. The keys of
//! systemd's sealed credentials are: the server would not get its PIN. No key of this machine has
//! a password that could be guessed.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use strongroom_core::hex;

/// The kernel's resource manager.
const TPM_DEVICE: &str = "/dev/tpmrm0";

/// `TPM2_DictionaryAttackLockReset`, TPM 2.0 Library part 3, 25.2: with the lockout hierarchy's
/// password, which nobody has set.
const LOCKOUT_RESET_COMMAND: [u8; 27] = [
    0x80, 0x02, // with sessions
    0, 0, 0, 27, // length
    0, 0, 0x01, 0x39, // the command
    0x40, 0, 0, 0x0a, // TPM_RH_LOCKOUT
    0, 0, 0, 9, // length of the authorisation
    0x40, 0, 0, 0x09, // by password
    0, 0, // no nonce
    0, // no attributes
    0, 0, // an empty password
];

pub(super) fn forget_failures() -> io::Result<()> {
    let mut device = OpenOptions::new().read(true).write(true).open(TPM_DEVICE)?;
    ask(&mut device)
}

fn ask(tpm: &mut (impl Read + Write)) -> io::Result<()> {
    tpm.write_all(&LOCKOUT_RESET_COMMAND)?;
    let mut answer = [0; 64];
    let read = tpm.read(&mut answer)?;
    // Tag, length, then the response code.
    match answer[..read].get(6..10) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(code) => Err(io::Error::other(format!(
            "response code {}",
            hex::encode(code)
        ))),
        None => Err(io::Error::other("a short response")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    struct Tpm(Vec<u8>);

    impl Read for Tpm {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.as_slice().read(buffer)
        }
    }

    impl Write for Tpm {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            assert_eq!(bytes.len(), usize::from(bytes[5]), "its own length");
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_response_without_an_error_is_one() {
        let answer = |bytes: &[u8]| ask(&mut Tpm(bytes.to_vec()));
        // As a TPM answers it.
        answer(&[0x80, 2, 0, 0, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]).unwrap();
        let refused = answer(&[0x80, 1, 0, 0, 0, 10, 0, 0, 9, 0x21]).unwrap_err();
        assert!(refused.to_string().contains("00000921"), "{refused}");
        assert!(answer(&[]).is_err());
        assert!(answer(&[0x80, 1, 0, 0, 0, 10]).is_err());
    }
}
