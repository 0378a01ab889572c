//! What was added to the signed image on its way into memory.

use std::fs;
use std::io;
use std::path::Path;

/// What systemd-stub copies out of the signed kernel image itself.
const OWN: [&str; 4] = [
    "os-release",
    "profile",
    "tpm2-pcr-public-key.pem",
    "tpm2-pcr-signature.json",
];

/// So many characters of what others wrote are shown on the console.
const SHOWN: usize = 160;

/// In words, if `given` is not the command line that was `signed`.
pub(crate) fn to_command_line(signed: &str, given: &[u8]) -> Option<String> {
    let signed = signed.trim();
    let given = given.trim_ascii();
    if given == signed.as_bytes() {
        return None;
    }
    let rest = given.strip_prefix(signed.as_bytes());
    Some(match rest {
        Some(rest) => format!(
            "the kernel's command line is not the signed one; added is: {}",
            shown(rest)
        ),
        None => format!(
            "the kernel's command line is not the signed one: {}",
            shown(given)
        ),
    })
}

/// In words, if this directory holds anything that is not from the signed image.
pub(crate) fn to_initrd(folder: &Path) -> io::Result<Option<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let own = OWN.iter().any(|own| name == *own);
        if !own || !entry.file_type()?.is_file() {
            return Ok(Some(format!(
                "the boot partition holds something for the initrd that was not signed with it ({})",
                shown(name.as_encoded_bytes())
            )));
        }
    }
    Ok(None)
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let escaped: String = text.trim().escape_debug().take(SHOWN).collect();
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SIGNED: &str = "console=ttyS0 quiet roothash=00 --\n";

    #[test]
    fn the_signed_command_line_passes_and_no_other() {
        assert_eq!(
            to_command_line(SIGNED, b"console=ttyS0 quiet roothash=00 --\n"),
            None
        );
        for other in [
            &b"console=ttyS0 quiet roothash=00 -- roothash=11\n"[..],
            b"console=ttyS0 quiet roothash=00 --x\n",
            b"console=ttyS0 quiet roothash=00\n",
            b"rdinit=/x console=ttyS0 quiet roothash=00 --\n",
            b"console=ttyS0 quiet  roothash=00 --\n",
            b"console=ttyS0 quiet roothash=00 --\0x\n",
            b"console=ttyS0 quiet roothash=00 -- \xff\n",
            b"",
        ] {
            assert!(to_command_line(SIGNED, other).is_some(), "{other:?}");
        }
    }

    #[test]
    fn what_was_added_is_shown_and_can_t_write_to_the_console_as_it_likes() {
        let mut given = SIGNED.trim().as_bytes().to_vec();
        given.extend_from_slice(b" roothash=11 \x1b[2J\r\nstrongroom: health serving ");
        given.extend_from_slice(&[b'x'; 4096]);
        let why = to_command_line(SIGNED, &given).unwrap();
        assert!(why.contains("added is: roothash=11 \\u{1b}[2J"), "{why}");
        assert!(!why.contains(|c: char| c.is_control()), "{why:?}");
        assert!(why.len() < 300, "{}", why.len());
    }

    #[test]
    fn of_the_initrd_only_what_comes_from_the_kernel_image_passes() {
        let folder = std::env::temp_dir().join(format!("strongroom-init-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(to_initrd(&folder.join("missing")).unwrap(), None);
        for own in OWN {
            fs::write(folder.join(own), []).unwrap();
        }
        assert_eq!(to_initrd(&folder).unwrap(), None);
        for added in ["credentials", "global_credentials", "sysext", "confext"] {
            fs::create_dir(folder.join(added)).unwrap();
            let why = to_initrd(&folder).unwrap().unwrap();
            assert!(why.contains(added), "{why}");
            fs::remove_dir(folder.join(added)).unwrap();
        }
        // By the name of one that may be there.
        fs::remove_file(folder.join("profile")).unwrap();
        fs::create_dir(folder.join("profile")).unwrap();
        assert!(to_initrd(&folder).unwrap().is_some());
        fs::remove_dir_all(&folder).unwrap();
    }
}
