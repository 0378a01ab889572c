//! Which of the configured CRLs speaks of a certificate (RFC 5280, section 6.3.3).
//!
//! A CRL belongs to the key of a CA that verifies its signature, not to the CA's name: a CA that
//! has a new key under its old name has two series of CRLs. Of one key, the CRL with the highest
//! number counts, as soon as it has begun; when it ends, the clients of that key are refused, and
//! nobody else's.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::ptr;

use rustls::crypto::WebPkiSupportedAlgorithms;

use super::TlsError;
use super::authority::{Authorities, Authority};
use super::crl::{Crl, Subject, is_minimal};
use super::files::{Expiry, date};
use super::refusal::Refusal;

/// The lists in force, and those that begin later.
#[derive(Debug)]
pub(super) struct Revocation {
    /// The highest number of each key and scope first.
    lists: Vec<Crl>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A CA on the way from a client's certificate to an anchor.
pub(super) struct Issuer<'a> {
    /// Its name's one form.
    pub(super) name: &'a [u8],
    /// `SubjectPublicKeyInfo`, DER.
    pub(super) spki: &'a [u8],
    /// The subject key identifier.
    pub(super) key_id: Option<&'a [u8]>,
    /// RFC 5280, section 6.3.3 (f): the key usage, if there is one, has cRLSign.
    pub(super) may_sign: bool,
}

impl Revocation {
    /// Finds each list's key, and refuses what contradicts. `now` is in seconds since 1970.
    pub(super) fn new(
        mut lists: Vec<Crl>,
        authorities: &Authorities,
        algorithms: WebPkiSupportedAlgorithms,
        now: i64,
    ) -> Result<Self, TlsError> {
        if let Some(problem) = problems(&mut lists, authorities, &algorithms, now).next() {
            return Err(problem);
        }
        let mut kept: Vec<Crl> = Vec::new();
        for list in lists {
            // What is older than one that has begun is never asked again.
            let superseded = kept.iter().any(|newer| {
                same_series(newer, &list)
                    && (newer.is_the_same_as(&list)
                        || (newer.this_update <= now && newer.number > list.number))
            });
            if !superseded {
                kept.push(list);
            }
        }
        let new = Self {
            lists: kept,
            algorithms,
        };
        new.warn_of_ended(authorities, now);
        new.warn_of_revoked(authorities, now);
        Ok(new)
    }

    /// Its clients are refused: whoever has it in the bundle wants to know why.
    fn warn_of_revoked(&self, authorities: &Authorities, now: i64) {
        for authority in authorities.iter() {
            let asked = authorities
                .issuers_of(authority)
                .map(|issuer| self.check(&authority.as_subject(), &issuer.as_issuer(), now));
            let revoked: Option<Vec<_>> = asked
                .map(|answer| match answer {
                    Err(Refusal::Revoked { issuer, number }) => Some((issuer, number)),
                    _ => None,
                })
                .collect();
            // Of several that issued it, one that has not revoked it is enough.
            if let Some((issuer, number)) = revoked.and_then(|mut all| all.pop()) {
                tracing::warn!(
                    "the client CA {} is revoked, by number {number} of the CRLs of {issuer}: its clients, and those of the CAs below it, are refused; remove it from tls.client_ca",
                    authority.name()
                );
            }
        }
    }

    fn warn_of_ended(&self, authorities: &Authorities, now: i64) {
        for authority in authorities.iter().filter(|one| !one.has_ended(now)) {
            if let Some(newest) = self.of(authority).next()
                && self.of(authority).all(|list| list.next_update <= now)
            {
                tracing::warn!(
                    file = %newest.file.display(),
                    "{}", ended_text(newest)
                );
            }
        }
    }

    /// No client can come in, since of every CA of the bundle, or of those above it, the lists have
    /// ended: the newest one of one of them.
    pub(super) fn ended(&self, authorities: &Authorities, now: i64) -> Option<TlsError> {
        let mut ended: Option<&Crl> = None;
        for authority in authorities.iter().filter(|one| !one.has_ended(now)) {
            ended = Some(self.ended_above(authority, authorities, now, &mut Vec::new())?);
        }
        ended.map(|list| TlsError {
            file: list.file.clone(),
            problem: ended_text(list),
        })
    }

    /// The list that has ended of the CA or of one above it, if there is one on each way up.
    ///
    /// `passed`: those on the way here. CAs may have issued each other.
    fn ended_above<'a>(
        &'a self,
        authority: &'a Authority,
        authorities: &'a Authorities,
        now: i64,
        passed: &mut Vec<&'a Authority>,
    ) -> Option<&'a Crl> {
        if passed.iter().any(|one| ptr::eq(*one, authority)) {
            return None;
        }
        if self.of(authority).all(|list| list.next_update <= now) {
            return self.of(authority).next();
        }
        passed.push(authority);
        let mut ended = None;
        for issuer in authorities.issuers_of(authority) {
            ended = self.ended_above(issuer, authorities, now, passed);
            if ended.is_none() {
                break;
            }
        }
        passed.pop();
        ended
    }

    /// The newest first.
    fn of<'a>(&'a self, authority: &'a Authority) -> impl Iterator<Item = &'a Crl> {
        self.lists.iter().filter(|list| list.is_of(authority))
    }

    /// What is older than what is in force is not taken for its successor. `now` is in seconds
    /// since 1970: what has not begun by then is not in force, and may be withdrawn.
    pub(super) fn follows(&self, in_force: &Self, now: i64) -> Result<(), TlsError> {
        for old in in_force.lists.iter().filter(|old| old.this_update <= now) {
            let of_its_key: Vec<&Crl> = self
                .lists
                .iter()
                .filter(|new| self.have_one_key(new, old))
                .collect();
            let mut begun = of_its_key.iter().filter(|new| new.this_update <= now);
            // One that begins later takes nobody's place yet, so the one before it is asked.
            let successor = begun.clone().find(|new| new.scope == old.scope);
            match successor {
                Some(new) => new.follows(old)?,
                None if of_its_key.iter().any(|new| new.scope == old.scope) => {}
                // Nobody whom it spoke of is let in by what was said before it.
                None => {
                    let before = begun.find(|new| {
                        new.scope.overlaps(&old.scope) && new.this_update < old.this_update
                    });
                    if let Some(new) = before {
                        return Err(new.went_back(old));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the two are of one key. Where only one's is known, the other is tried by it; where
    /// none is, both name it.
    fn have_one_key(&self, one: &Crl, other: &Crl) -> bool {
        if one.issuer != other.issuer {
            return false;
        }
        match (one.key(), other.key()) {
            (Some(key), _) => other.is_signed_by(key, &self.algorithms),
            (None, Some(key)) => one.is_signed_by(key, &self.algorithms),
            (None, None) => one.key_id == other.key_id,
        }
    }

    /// Whether the lists of the issuer's key say that the certificate is good.
    pub(super) fn check(
        &self,
        subject: &Subject<'_>,
        issuer: &Issuer<'_>,
        now: i64,
    ) -> Result<(), Refusal> {
        // It may be the same CA, written in a way that was not seen to be the same.
        let elsewhere = self
            .lists
            .iter()
            .filter(|list| self.is_by_another_name(list, issuer));
        if let Some(list) = elsewhere
            .filter(|list| list.this_update <= now)
            .find(|list| list.names(subject.serial))
        {
            return Err(revoked_by(list));
        }
        let own: Vec<&Crl> = self
            .lists
            .iter()
            .filter(|list| self.is_of(list, issuer))
            .filter(|list| list.scope.covers(subject))
            .collect();
        // One that is written in another way than in the list would not be found there.
        if own.is_empty() || !is_minimal(subject.serial) {
            return Err(Refusal::UnknownStatus);
        }
        if !issuer.may_sign {
            return Err(Refusal::NoCrlSigner);
        }
        let mut answer = Err(Refusal::UnknownStatus);
        for (at, list) in own.iter().enumerate() {
            if list.this_update > now {
                continue;
            }
            // The lists are in the order of their numbers; one with a lower number says nothing
            // more.
            let newer = own.iter().take(at).any(|other| {
                other.scope == list.scope && other.this_update <= now && other.number > list.number
            });
            if newer {
                continue;
            }
            if list.names(subject.serial) {
                return Err(revoked_by(list));
            }
            if now < list.next_update {
                answer = Ok(());
            } else if answer.is_err() {
                answer = Err(Refusal::ListEnded(ended_text(list)));
            }
        }
        answer
    }

    fn is_of(&self, list: &Crl, issuer: &Issuer<'_>) -> bool {
        // Its key identifier is a hint only (RFC 5280, section 6.3.3 (g): who signed it counts).
        list.issuer == issuer.name && list.is_signed_by(issuer.spki, &self.algorithms)
    }

    /// A list of the issuer's key under another name, which only a CA that clients send along can
    /// have here: of the bundle's it is refused when it is loaded. Its key identifier saves a
    /// signature over a list that may be large.
    fn is_by_another_name(&self, list: &Crl, issuer: &Issuer<'_>) -> bool {
        list.issuer != issuer.name
            && list.key_id.is_some()
            && list.key_id.as_deref() == issuer.key_id
            && list.is_signed_by(issuer.spki, &self.algorithms)
    }
}

/// When each series of lists ends, with the one that ends last.
pub(super) fn ends(lists: &[Crl], authorities: &Authorities) -> Vec<Expiry> {
    let algorithms = super::provider().signature_verification_algorithms;
    for list in lists {
        // What is wrong with it was said when it was loaded.
        let _ = claim(list, authorities, &algorithms);
    }
    let is_last = |one: &&Crl| {
        !lists.iter().any(|other| {
            same_series(one, other)
                && (&other.number, other.next_update) > (&one.number, one.next_update)
        })
    };
    let mut found: Vec<Expiry> = lists
        .iter()
        .filter(is_last)
        .map(|list| Expiry {
            file: list.file.clone(),
            name: list.issuer_name.clone(),
            end: list.next_update,
            is_crl: true,
        })
        .collect();
    // The same list may be there twice.
    found.dedup_by(|one, other| one.name == other.name && one.end == other.end);
    found
}

impl Crl {
    /// Of the CA's key, under the CA's name.
    fn is_of(&self, authority: &Authority) -> bool {
        self.key() == Some(authority.spki()) && self.issuer == authority.subject()
    }

    /// Of one key and scope.
    fn follows(&self, old: &Self) -> Result<(), TlsError> {
        if self.number < old.number || self.this_update < old.this_update {
            return Err(self.went_back(old));
        }
        if self.number == old.number && !self.is_the_same_as(old) {
            // Nothing tells which of the two is the older one.
            if !self.names_all_of(old) {
                return Err(self.lets_in());
            }
            // Refusing it would leave in whoever it names besides.
            tracing::warn!(
                file = %self.file.display(),
                "the CRL number {} of {} has changed, but not its number: its CA should count",
                self.number, self.issuer_name
            );
        }
        Ok(())
    }

    fn lets_in(&self) -> TlsError {
        TlsError {
            file: self.file.clone(),
            problem: format!(
                "the CRL of {} has the number {} of the one in force, and lacks certificates that that one names: a CRL with a higher number lets them in, or a restart if the CA does not count",
                self.issuer_name, self.number,
            ),
        }
    }

    fn went_back(&self, old: &Self) -> TlsError {
        TlsError {
            file: self.file.clone(),
            problem: format!(
                "the CRL of {} went back: it has the number {} and is of {}, and number {} of {} is in force; put the newer one there again, or restart if the CA counts again",
                self.issuer_name,
                self.number,
                date(self.this_update),
                old.number,
                date(old.this_update)
            ),
        }
    }
}

/// Finds each list's key, puts the lists in their order, and says what can't be of them together
/// and with the CAs: the first that is found, and the others for whoever asks on.
pub(super) fn problems<'a>(
    lists: &'a mut [Crl],
    authorities: &'a Authorities,
    algorithms: &'a WebPkiSupportedAlgorithms,
    now: i64,
) -> impl Iterator<Item = TlsError> + 'a {
    // A stable order: what is said of two lists does not depend on the order of the files.
    lists.sort_by(|one, other| {
        Reverse(&one.number)
            .cmp(&Reverse(&other.number))
            .then_with(|| one.file.cmp(&other.file))
    });
    let lists = &*lists;
    let claims = lists
        .iter()
        .filter_map(|list| claim(list, authorities, algorithms).err());
    let pairs = lists
        .iter()
        .enumerate()
        .flat_map(|(at, older)| lists.iter().take(at).map(move |newer| (newer, older)));
    // Asked when the claims are through, by which the lists know their keys.
    let contradictions = pairs
        .filter(|(newer, older)| same_series(newer, older))
        .filter_map(|(newer, older)| contradiction(newer, older).err());
    let missing = authorities
        .iter()
        .filter(move |one| !one.has_ended(now))
        .filter(|one| !lists.iter().any(|list| list.is_of(one)))
        .map(|one| TlsError {
            file: lists
                .first()
                .map_or_else(PathBuf::new, |list| list.file.clone()),
            problem: format!(
                "no CRL that is signed by the key of the client CA {} is configured, so all its clients would be refused: add it to tls.crls",
                one.name()
            ),
        });
    claims.chain(contradictions).chain(missing)
}

/// Finds the CA of the bundle that signed it. A list of none of them may be of a CA that clients
/// send along.
fn claim(
    list: &Crl,
    authorities: &Authorities,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<(), TlsError> {
    let refuse = |problem: String| TlsError {
        file: list.file.clone(),
        problem,
    };
    let named: Vec<_> = authorities
        .iter()
        .filter(|one| one.subject() == list.issuer)
        .collect();
    if let Some(signer) = named
        .iter()
        .find(|one| list.is_signed_by(one.spki(), algorithms))
    {
        let may_sign = named
            .iter()
            .any(|one| one.spki() == signer.spki() && one.may_sign_crls());
        return if may_sign {
            Ok(())
        } else {
            Err(refuse(format!(
                "the CA {} may not sign CRLs: the key usage of its certificate has no cRLSign",
                signer.name()
            )))
        };
    }
    let claimed = named
        .iter()
        .find(|one| one.key_id().is_some() && one.key_id() == list.key_id.as_deref());
    if let Some(authority) = claimed {
        return Err(refuse(format!(
            "the signature of the CRL number {} is not good, though it names the key of the CA {}: it was changed, or is of a CA with the same name",
            list.number,
            authority.name()
        )));
    }
    // It would be asked about nobody's certificate, and nobody would miss it.
    let by_another_name = authorities
        .iter()
        .find(|one| list.is_signed_by(one.spki(), algorithms));
    if let Some(authority) = by_another_name {
        return Err(refuse(format!(
            "the CRL number {} is signed by the key of the CA {}, but its issuer is {}: have it issued under the name in the CA's certificate, or add the CA's certificate of that name to tls.client_ca",
            list.number,
            authority.name(),
            list.issuer_name
        )));
    }
    // Its key is found when a client first shows it; until then, nothing else tells whether it is
    // newer than another.
    if list.key_id.is_none() {
        return Err(refuse(format!(
            "the CRL number {} of {} is signed by no key in tls.client_ca, and does not say by which: it has no key identifier (authorityKeyIdentifier), which RFC 5280 requires; have it issued with one (`openssl ca`: `crl_extensions` with `authorityKeyIdentifier = keyid`), or add its CA to tls.client_ca",
            list.number, list.issuer_name
        )));
    }
    if !named.is_empty() {
        tracing::warn!(
            file = %list.file.display(),
            "the CRL number {} of {} is signed by no key of that CA in tls.client_ca",
            list.number, list.issuer_name
        );
    } else if let Some(below) = authorities.iter().find(|one| one.is_below(list)) {
        tracing::warn!(
            file = %list.file.display(),
            "the CRL number {} of {} is asked about nobody: in tls.client_ca there is {}, which that CA issued, and a path ends there; add the CA itself to tls.client_ca for its CRL to count",
            list.number, list.issuer_name, below.name()
        );
    }
    Ok(())
}

/// Whether two lists are of one key and speak of the same certificates. Of CAs that are not in the
/// bundle the key is known only by what the lists say.
fn same_series(one: &Crl, other: &Crl) -> bool {
    one.issuer == other.issuer
        && one.scope == other.scope
        && match (one.key(), other.key()) {
            (Some(one), Some(other)) => one == other,
            (None, None) => one.key_id.is_some() && one.key_id == other.key_id,
            _ => false,
        }
}

fn revoked_by(list: &Crl) -> Refusal {
    Refusal::Revoked {
        issuer: list.issuer_name.clone(),
        number: list.number.to_string(),
    }
}

/// `newer` has the same number or a higher one.
fn contradiction(newer: &Crl, older: &Crl) -> Result<(), TlsError> {
    let problem = if newer.number == older.number {
        if newer.is_the_same_as(older) {
            return Ok(());
        }
        "has the same number and other content"
    } else if newer.this_update < older.this_update {
        "has a lower number and was made later"
    } else {
        return Ok(());
    };
    Err(TlsError {
        file: older.file.clone(),
        problem: format!(
            "the CRLs of {} contradict each other: number {} here {problem} than number {} in {}; remove the one that its CA does not publish",
            older.issuer_name,
            older.number,
            newer.number,
            newer.file.display()
        ),
    })
}

fn ended_text(list: &Crl) -> String {
    format!(
        "the CRL number {} of {} ended on {}: fetch its successor; until then the clients of that CA, and of those below it, are refused",
        list.number,
        list.issuer_name,
        date(list.next_update)
    )
}
