//! A rehearsal's own CA, which dies with the call that makes it.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use super::{Ceremony, RunError, disk};

const CERTIFICATE_FILE: &str = "rehearsal-certificate.pem";
/// The CA's certificate, for whoever wants to connect to a rehearsed appliance.
pub(super) const CA_FILE: &str = "rehearsal-ca.pem";

/// Signs the request, unless an answer is there already or an earlier run did.
pub(super) fn issue(ceremony: &mut Ceremony<'_>, request: &str) -> Result<(), RunError> {
    let made = sign(request).map_err(|error| {
        RunError::refused(format!(
            "the rehearsal's certificate can't be made: {error}"
        ))
    })?;
    disk::write(&ceremony.folder.join(CA_FILE), made.0.as_bytes(), 0o644)?;
    disk::write(
        &ceremony.folder.join(CERTIFICATE_FILE),
        made.1.as_bytes(),
        0o644,
    )?;
    ceremony.ui.say(
        "REHEARSAL: a throwaway CA signs the request here and now; in a ceremony your CA does.",
    )?;
    Ok(())
}

/// What takes the place of an answer that only a real CA could give. A directory of answers may
/// bring its own even to a rehearsal, so that there are clients to try it with.
pub(super) fn answer(ceremony: &mut Ceremony<'_>, id: &str) -> Option<PathBuf> {
    let own = match id {
        "certificate.pem" => CERTIFICATE_FILE,
        "client_ca.pem" => CA_FILE,
        _ => return None,
    };
    Some(
        ceremony
            .ui
            .offered(id)
            .unwrap_or_else(|| ceremony.folder.join(own)),
    )
}

fn sign(request: &str) -> Result<(String, String), rcgen::Error> {
    let year = i32::from(
        jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .year(),
    );
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "REHEARSAL throwaway CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + 2, 1, 1);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut request = CertificateSigningRequestParams::from_pem(request)?;
    request.params.not_before = date_time_ymd(year - 1, 1, 1);
    request.params.not_after = date_time_ymd(year + 2, 1, 1);
    request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    request.params.use_authority_key_identifier_extension = true;
    let certificate = request.signed_by(&issuer)?;
    Ok((issuer.pem(), certificate.pem()))
}
