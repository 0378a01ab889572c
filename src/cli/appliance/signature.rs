//! Whether this machine's firmware will start a kernel image: its signature (Authenticode) is by a
//! key of the firmware's `db`, and neither the image nor the key is in `dbx`. What the firmware
//! refuses does not start at all, and nothing would start the machine again.

use std::path::Path;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::prelude::X509Certificate;

use super::kernel_image::KernelImage;

/// Variables of the firmware: allowed and forbidden signers and images.
const DB_VARIABLE: &str = "/sys/firmware/efi/efivars/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f";
const DBX_VARIABLE: &str = "/sys/firmware/efi/efivars/dbx-d719b2cb-3d3a-4596-a3bc-dad00e67656f";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Refused {
    #[error("the firmware names no keys ({DB_VARIABLE}): set Secure Boot up first")]
    NoKeys,
    #[error("the kernel image is not a PE file")]
    NoImage,
    #[error("the kernel image has no signature by a key of this machine's firmware")]
    NotSigned,
    #[error("this machine's firmware forbids the kernel image or its signer")]
    Forbidden,
}

pub(super) fn check(image: &KernelImage) -> Result<(), Refused> {
    let allowed = Signers::read(Path::new(DB_VARIABLE));
    if allowed.certificates.is_empty() {
        return Err(Refused::NoKeys);
    }
    judge(image, &allowed, &Signers::read(Path::new(DBX_VARIABLE)))
}

fn judge(image: &KernelImage, allowed: &Signers, forbidden: &Signers) -> Result<(), Refused> {
    let hash = image.hash().ok_or(Refused::NoImage)?;
    if forbidden.hashes.contains(&hash) {
        return Err(Refused::Forbidden);
    }
    let is_by = |signature: &&[u8], signers: &[Vec<u8>]| {
        signers
            .iter()
            .any(|signer| is_signed(signature, &hash, signer).is_some())
    };
    let signatures = image.signatures();
    // One that is forbidden by its hash comes with the signature, or is one of those allowed: a
    // certificate that is in neither takes part in nothing.
    let mut forbidden_signers = forbidden.certificates.clone();
    forbidden_signers.extend(
        signatures
            .iter()
            .filter_map(|signature| embedded(signature))
            .flatten()
            .chain(allowed.certificates.iter().map(Vec::as_slice))
            .filter(|certificate| forbidden.names(certificate))
            .map(<[u8]>::to_vec),
    );
    if signatures
        .iter()
        .any(|signature| is_by(signature, &forbidden_signers))
    {
        return Err(Refused::Forbidden);
    }
    if signatures
        .iter()
        .any(|signature| is_by(signature, &allowed.certificates))
    {
        Ok(())
    } else {
        Err(Refused::NotSigned)
    }
}

/// What `db` or `dbx` holds.
#[derive(Default)]
struct Signers {
    certificates: Vec<Vec<u8>>,
    /// SHA-256 of images.
    hashes: Vec<[u8; 32]>,
    /// SHA-256, SHA-384 or SHA-512 of certificates, of what is signed of them. Each comes with the
    /// time of its revocation, from which only a timestamp in the signature could exempt an image;
    /// our images have none, so it is revoked for all of them.
    certificate_hashes: Vec<Vec<u8>>,
}

impl Signers {
    /// Empty where the firmware has none.
    fn read(variable: &Path) -> Self {
        let bytes = std::fs::read(variable).unwrap_or_default();
        // The variable's attributes come first.
        Self::parse(bytes.get(4..).unwrap_or_default())
    }

    /// A row of EFI_SIGNATURE_LIST.
    fn parse(mut lists: &[u8]) -> Self {
        const LIST_HEADER_BYTES: usize = 28;
        const OWNER_BYTES: usize = 16;
        const TIME_BYTES: usize = 16;
        /// EFI_CERT_X509_GUID and EFI_CERT_SHA256_GUID.
        const EFI_CERT_X509_GUID: [u8; 16] = [
            0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b,
            0xf0, 0x72,
        ];
        const EFI_CERT_SHA256_GUID: [u8; 16] = [
            0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93,
            0x43, 0x28,
        ];
        /// `EFI_CERT_X509_SHA256_GUID`, `EFI_CERT_X509_SHA384_GUID` and
        /// `EFI_CERT_X509_SHA512_GUID`, with the hash's length.
        const CERTIFICATE_HASHES: [([u8; 16], usize); 3] = [
            (
                [
                    0x92, 0xa4, 0xd2, 0x3b, 0xc0, 0x96, 0x79, 0x40, 0xb4, 0x20, 0xfc, 0xf9, 0x8e,
                    0xf1, 0x03, 0xed,
                ],
                32,
            ),
            (
                [
                    0x6e, 0x87, 0x76, 0x70, 0xc2, 0x80, 0xe6, 0x4e, 0xaa, 0xd2, 0x28, 0xb3, 0x49,
                    0xa6, 0x86, 0x5b,
                ],
                48,
            ),
            (
                [
                    0x63, 0xbf, 0x6d, 0x44, 0x02, 0x25, 0xda, 0x4c, 0xbc, 0xfa, 0x24, 0x65, 0xd2,
                    0xb0, 0xfe, 0x9d,
                ],
                64,
            ),
        ];
        let mut signers = Self::default();
        while let Some(header) = lists.first_chunk::<LIST_HEADER_BYTES>() {
            let number = |at: usize| {
                u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                    as usize
            };
            let (length, extra, size) = (number(16), number(20), number(24));
            let entries = LIST_HEADER_BYTES
                .checked_add(extra)
                .and_then(|start| lists.get(start..length));
            let (Some(entries), true) = (entries, size > OWNER_BYTES) else {
                break;
            };
            let hash_of_certificate = CERTIFICATE_HASHES
                .iter()
                .find(|(kind, _)| header.starts_with(kind))
                .map(|&(_, length)| length);
            for entry in entries.chunks_exact(size) {
                let data = &entry[OWNER_BYTES..];
                if header.starts_with(&EFI_CERT_X509_GUID) {
                    signers.certificates.push(data.to_vec());
                } else if let Some(length) = hash_of_certificate {
                    if data.len() == length + TIME_BYTES {
                        signers.certificate_hashes.push(data[..length].to_vec());
                    }
                } else if let (true, Ok(hash)) =
                    (header.starts_with(&EFI_CERT_SHA256_GUID), data.try_into())
                {
                    signers.hashes.push(hash);
                }
            }
            lists = &lists[length..];
        }
        signers
    }

    /// Whether the certificate is one of those that are named by their hash.
    fn names(&self, certificate: &[u8]) -> bool {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return false;
        };
        let signed = certificate.tbs_certificate.as_ref();
        let is_it = |hash: &[u8]| self.certificate_hashes.iter().any(|one| one == hash);
        is_it(&Sha256::digest(signed))
            || is_it(&Sha384::digest(signed))
            || is_it(&Sha512::digest(signed))
    }
}

/// The elements of the `SignedData` in a PKCS#7 structure: `version`, `digestAlgorithms`,
/// `contentInfo`, `certificates`, `signerInfos` (RFC 2315, 7 and 9).
fn signed_data(signature: &[u8]) -> Option<Vec<Element<'_>>> {
    children_of(&first(children_of(&first(signature)?)?.get(1)?.data)?)
}

fn certificates<'a>(signed_data: &[Element<'a>]) -> Option<Vec<Element<'a>>> {
    let certificates = signed_data
        .iter()
        .find(|part| part.raw.first() == Some(&0xa0))?;
    children(certificates.data)
}

/// The certificates that come with the signature.
fn embedded(signature: &[u8]) -> Option<Vec<&[u8]>> {
    let found = certificates(&signed_data(signature)?)?;
    Some(found.into_iter().map(|one| one.raw).collect())
}

/// Whether this PKCS#7 structure signs the image's hash, by this certificate or by one that it
/// issued.
fn is_signed(signature: &[u8], hash: &[u8; 32], trusted: &[u8]) -> Option<()> {
    let signed_data = signed_data(signature)?;
    let content = children_of(signed_data.get(2)?)?;
    let content = first(content.get(1)?.data)?;
    // SpcIndirectDataContent: data, messageDigest (algorithm, digest).
    let digest_info = children_of(children_of(&content)?.get(1)?)?;
    if digest_info.get(1)?.data != hash {
        return None;
    }
    let certificates = certificates(&signed_data)?;
    let signers = signed_data.last()?;
    for signer in children(signers.data)? {
        // version, issuer and number, digestAlgorithm, [0] attributes, algorithm, signature
        let parts = children_of(&signer)?;
        let (attributes, value) = (parts.get(3)?, parts.get(5)?);
        if attributes.raw.first() != Some(&0xa0)
            || message_digest(attributes)? != Sha256::digest(content.data).as_slice()
        {
            continue;
        }
        // Signed as what they are, a SET.
        let mut signed = attributes.raw.to_vec();
        *signed.first_mut()? = 0x31;
        if verify(trusted, &signed, value.data).is_some() {
            return Some(());
        }
        for certificate in &certificates {
            if issued(certificate.raw, trusted).is_some()
                && verify(certificate.raw, &signed, value.data).is_some()
            {
                return Some(());
            }
        }
    }
    None
}

/// The value of the attribute 1.2.840.113549.1.9.4.
fn message_digest<'a>(attributes: &Element<'a>) -> Option<&'a [u8]> {
    const ID: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x04];
    children(attributes.data)?.iter().find_map(|attribute| {
        let parts = children_of(attribute)?;
        (parts.first()?.data == ID).then_some(())?;
        Some(first(parts.get(1)?.data)?.data)
    })
}

fn verify(certificate: &[u8], signed: &[u8], signature: &[u8]) -> Option<()> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let key = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key)
        .verify(signed, signature)
        .ok()
}

fn issued(certificate: &[u8], by: &[u8]) -> Option<()> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    verify(
        by,
        certificate.tbs_certificate.as_ref(),
        &certificate.signature_value.data,
    )
}

/// One element of DER.
struct Element<'a> {
    raw: &'a [u8],
    data: &'a [u8],
}

fn children_of<'a>(element: &Element<'a>) -> Option<Vec<Element<'a>>> {
    children(element.data)
}

fn children(mut der: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let element = first(der)?;
        der = &der[element.raw.len()..];
        found.push(element);
    }
    Some(found)
}

/// What follows it may be padding.
fn first(der: &[u8]) -> Option<Element<'_>> {
    let (rest, any) = Any::from_der(der).ok()?;
    Some(Element {
        raw: &der[..der.len() - rest.len()],
        data: any.data,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A PE file of two sections, signed by systemd-sbsign with `signer`, whose certificate `ca`
    /// issued. `other` has nothing to do with them.
    const SIGNED: &[u8] = include_bytes!("testdata/signed.efi");
    const SIGNER: &[u8] = include_bytes!("testdata/signer.der");
    const CA: &[u8] = include_bytes!("testdata/ca.der");
    const OTHER: &[u8] = include_bytes!("testdata/other.der");

    fn signers(certificates: &[&[u8]]) -> Signers {
        let certificates = certificates.iter().map(|it| it.to_vec()).collect();
        Signers {
            certificates,
            ..Signers::default()
        }
    }

    fn judged(bytes: &[u8], allowed: &[&[u8]], forbidden: &[&[u8]]) -> Result<(), Refused> {
        let image = KernelImage::new(bytes.to_vec());
        judge(&image, &signers(allowed), &signers(forbidden))
    }

    #[test]
    fn a_signature_counts_by_its_key_or_by_the_one_that_issued_it() {
        assert_eq!(judged(SIGNED, &[OTHER, SIGNER], &[]), Ok(()));
        assert_eq!(judged(SIGNED, &[CA], &[OTHER]), Ok(()));
        assert_eq!(judged(SIGNED, &[OTHER], &[]), Err(Refused::NotSigned));
        assert_eq!(judged(SIGNED, &[CA], &[SIGNER]), Err(Refused::Forbidden));
    }

    #[test]
    fn every_byte_that_is_signed_counts() {
        // The headers without the checksum, the place of the signature and what follows the section
        // table; both sections.
        for at in (64..152).chain(156..232).chain(512..1536) {
            let mut bytes = SIGNED.to_vec();
            bytes[at] ^= 1;
            assert!(judged(&bytes, &[SIGNER], &[]).is_err(), "{at}");
        }
        for at in 0..SIGNED.len() - 64 {
            assert!(judged(&SIGNED[..at], &[SIGNER], &[]).is_err(), "{at}");
        }
    }

    #[test]
    fn an_image_whose_hash_is_forbidden_is_refused() {
        let image = KernelImage::new(SIGNED.to_vec());
        let mut forbidden = signers(&[]);
        forbidden.hashes.push(image.hash().unwrap());
        assert_eq!(
            judge(&image, &signers(&[SIGNER]), &forbidden),
            Err(Refused::Forbidden)
        );
    }

    #[test]
    fn an_image_whose_signer_is_forbidden_by_its_hash_is_refused() {
        let signed_part = |der| {
            let (_, certificate) = X509Certificate::from_der(der).unwrap();
            certificate.tbs_certificate.as_ref().to_vec()
        };
        let image = KernelImage::new(SIGNED.to_vec());
        for (allowed, named, expected) in [
            (SIGNER, SIGNER, Err(Refused::Forbidden)),
            (CA, SIGNER, Err(Refused::Forbidden)),
            (CA, CA, Err(Refused::Forbidden)),
            (CA, OTHER, Ok(())),
        ] {
            let named = signed_part(named);
            for hash in [
                Sha256::digest(&named).to_vec(),
                Sha384::digest(&named).to_vec(),
                Sha512::digest(&named).to_vec(),
            ] {
                let forbidden = Signers {
                    certificate_hashes: vec![hash],
                    ..Signers::default()
                };
                assert_eq!(judge(&image, &signers(&[allowed]), &forbidden), expected);
            }
        }
    }

    #[test]
    fn the_firmware_s_lists_are_read() {
        let list = |kind: &str, data: &[u8]| {
            let kind = base16ct::lower::decode_vec(kind).unwrap();
            let size = u32::try_from(16 + data.len()).unwrap();
            let lengths = [28 + size, 0, size].map(u32::to_le_bytes).concat();
            [&kind, lengths.as_slice(), &[7; 16], data].concat()
        };
        let lists = [
            list("a159c0a5e494a74a87b5ab155c2bf072", SIGNER),
            list("2616c4c14c509240aca941f936934328", &[9; 32]),
            list("92a4d23bc0967940b420fcf98ef103ed", &[1; 32 + 16]),
            list("6e877670c280e64eaad228b349a6865b", &[2; 48 + 16]),
            list("63bf6d440225da4cbcfa2465d2b0fe9d", &[3; 64 + 16]),
        ]
        .concat();
        let signers = Signers::parse(&lists);
        assert_eq!(signers.certificates, [SIGNER]);
        assert_eq!(signers.hashes, [[9; 32]]);
        assert_eq!(
            signers.certificate_hashes,
            [vec![1; 32], vec![2; 48], vec![3; 64]]
        );
        for length in 0..lists.len() {
            Signers::parse(&lists[..length]);
        }
    }

    #[test]
    fn the_image_says_what_it_is() {
        let image = KernelImage::new(SIGNED.to_vec());
        assert_eq!(image.release("IMAGE_VERSION").as_deref(), Some("0.2.0"));
        assert_eq!(image.release("IMAGE"), None);
        assert_eq!(image.command_line("roothash").unwrap().len(), 64);
        assert_eq!(image.command_line("quiet"), None);
    }
}
