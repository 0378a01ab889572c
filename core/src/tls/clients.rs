//! When the certificates of those clients end that were here: a client whose certificate ends is a
//! Vault that stays sealed at its next restart.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Peer;

/// So many identities are remembered; one more, and the one that was not here for the longest time
/// is forgotten.
const MAX_IDENTITIES: usize = 1024;
const DAY: i64 = 24 * 60 * 60;
/// One that ended so long ago belongs to a client that is no more.
const KEEP_EXPIRED: i64 = 7 * DAY;

/// So many certificates of one identity: nodes of a cluster may share a name, and one of them may
/// not be renewed.
const MAX_CERTIFICATES_PER_IDENTITY: usize = 4;
/// Until then whoever has renewed its certificate may come with the one before: connections that
/// were open, a restart node by node.
const RENEWAL_OVERLAP: i64 = 60 * 60;
/// Who did not come for so long has no use for its certificate. Vault's seal comes each ten
/// minutes.
const ACTIVE_WITHIN: i64 = DAY;

/// The certificates of each identity that was here since the start.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<HashMap<String, Vec<SeenCertificate>>>);

#[derive(Clone, Copy, Debug)]
struct SeenCertificate {
    not_before: i64,
    not_after: i64,
    first: i64,
    last: i64,
}

/// Of the certificates with which an identity comes, the one that ends first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientCertificate {
    /// Whose it is.
    pub identity: String,
    /// When it began, seconds since 1970.
    pub not_before: i64,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
}

impl ClientCertificate {
    /// From when on it should have been renewed, seconds since 1970: so many days before its end,
    /// but of one that lives for less than two months not before two thirds of its life. One
    /// that lives for less than two days is renewed all the time; it is late when it has ended.
    pub fn renewal_due(&self, days: u32) -> i64 {
        let life = self.not_after.saturating_sub(self.not_before).max(0);
        let margin = if life < 2 * DAY {
            0
        } else {
            (i64::from(days) * DAY).min(life / 3)
        };
        self.not_after.saturating_sub(margin)
    }
}

impl Clients {
    /// The peer's certificate was found good. `now` is in seconds since 1970.
    pub(super) fn saw(&self, peer: &Peer, now: u64) {
        let certificate = peer.chain.first().map(|der| X509Certificate::from_der(der));
        let Some(Ok((_, certificate))) = certificate else {
            return;
        };
        let validity = certificate.validity();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let new = SeenCertificate {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            first: now,
            last: now,
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get_mut(peer.identity.as_str()) {
            if let Some(same) = known.iter_mut().find(|seen| seen.age() == new.age()) {
                same.last = now;
                return;
            }
            if known.len() >= MAX_CERTIFICATES_PER_IDENTITY {
                let oldest = known.iter().enumerate().min_by_key(|(_, seen)| seen.last);
                if let Some(at) = oldest.map(|(at, _)| at) {
                    known.swap_remove(at);
                }
            }
            known.push(new);
            return;
        }
        if all.len() >= MAX_IDENTITIES {
            let last = |known: &[SeenCertificate]| known.iter().map(|seen| seen.last).max();
            let oldest = all.iter().min_by_key(|(_, known)| last(known));
            if let Some(oldest) = oldest.map(|(identity, _)| identity.clone()) {
                all.remove(&oldest);
            }
        }
        all.insert(peer.identity.as_str().to_owned(), vec![new]);
    }

    /// Those that end first come first.
    pub(super) fn list(&self, now: i64) -> Vec<ClientCertificate> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, known| {
            newest(known).is_some_and(|seen| now.saturating_sub(seen.not_after) < KEEP_EXPIRED)
        });
        let mut list: Vec<_> = all
            .iter()
            .filter_map(|(identity, known)| {
                let seen = ends_first(known, now)?;
                Some(ClientCertificate {
                    identity: identity.clone(),
                    not_before: seen.not_before,
                    not_after: seen.not_after,
                })
            })
            .collect();
        drop(all);
        list.sort_by(|one, other| {
            (one.not_after, &one.identity).cmp(&(other.not_after, &other.identity))
        });
        list
    }
}

impl SeenCertificate {
    /// By which the newer one is known.
    fn age(&self) -> (i64, i64) {
        (self.not_before, self.not_after)
    }
}

fn newest(known: &[SeenCertificate]) -> Option<&SeenCertificate> {
    known.iter().max_by_key(|seen| seen.age())
}

/// Of the newest certificate, and of those with which somebody still comes though there is a newer
/// one, the one that ends first.
fn ends_first(known: &[SeenCertificate], now: i64) -> Option<SeenCertificate> {
    let newest = newest(known)?;
    let in_use = |seen: &&SeenCertificate| {
        seen.last > newest.first.saturating_add(RENEWAL_OVERLAP)
            && now.saturating_sub(seen.last) < ACTIVE_WITHIN
    };
    let others = known.iter().filter(in_use);
    others
        .chain([newest])
        .min_by_key(|seen| seen.not_after)
        .copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{CertificateParams, KeyPair, SanType};
    use time::OffsetDateTime;

    use super::*;

    fn peer(name: &str, from: i64, until: i64) -> Peer {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(until).unwrap();
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Peer::new(vec![der.der().to_vec()], "192.0.2.1:1".parse().unwrap()).unwrap()
    }

    #[test]
    fn the_newest_certificate_of_an_identity_counts() {
        let clients = Clients::default();
        for (name, from, until) in [
            ("a", 100, 10_000),
            ("b", 100, 5_000),
            ("a", 200, 3_000),
            ("a", 150, 20_000),
        ] {
            clients.saw(&peer(name, from, until), 1);
        }
        let ends = |now| -> Vec<(String, i64)> {
            let list = clients.list(now);
            list.into_iter()
                .map(|one| (one.identity, one.not_after))
                .collect()
        };
        assert_eq!(
            ends(0),
            [("dns:a".to_owned(), 3_000), ("dns:b".to_owned(), 5_000)]
        );
        assert_eq!(ends(3_000 + KEEP_EXPIRED), [("dns:b".to_owned(), 5_000)]);
    }

    #[test]
    fn one_that_is_not_renewed_is_seen_beside_one_of_the_same_name_that_is() {
        let clients = Clients::default();
        let (old, new) = (peer("a", 0, 50 * DAY), peer("a", DAY, 90 * DAY));
        let at = |at: i64| u64::try_from(at).unwrap();
        let end = |now| clients.list(now).first().map(|one| one.not_after / DAY);
        clients.saw(&old, 0);
        assert_eq!(end(0), Some(50));
        clients.saw(&new, at(DAY));
        assert_eq!(end(DAY), Some(90));
        // A connection that was open.
        clients.saw(&old, at(DAY + RENEWAL_OVERLAP));
        assert_eq!(end(DAY + RENEWAL_OVERLAP), Some(90));
        clients.saw(&old, at(DAY + RENEWAL_OVERLAP + 1));
        clients.saw(&new, at(DAY + RENEWAL_OVERLAP + 2));
        assert_eq!(end(DAY + RENEWAL_OVERLAP + 3), Some(50));
        // Renewed by now, or gone.
        clients.saw(&new, at(2 * DAY + RENEWAL_OVERLAP + 1));
        assert_eq!(end(2 * DAY + RENEWAL_OVERLAP + 1), Some(90));
        // However many there were.
        for later in 0..100 {
            clients.saw(&peer("a", DAY + later, 80 * DAY), at(3 * DAY + later));
        }
        assert_eq!(
            clients.0.lock().unwrap()["dns:a"].len(),
            MAX_CERTIFICATES_PER_IDENTITY
        );
    }

    #[test]
    fn no_number_of_identities_is_too_much() {
        let clients = Clients::default();
        let mut peer = peer("a", 0, 10_000);
        for at in 0..MAX_IDENTITIES + 10 {
            peer.identity = format!("dns:a{at}.example").parse().unwrap();
            clients.saw(&peer, at as u64);
        }
        let list = clients.list(0);
        assert_eq!(list.len(), MAX_IDENTITIES);
        assert!(!list.iter().any(|one| one.identity == "dns:a0.example"));
        let last = format!("dns:a{}.example", MAX_IDENTITIES + 9);
        assert!(list.iter().any(|one| one.identity == last));
    }

    #[test]
    fn short_lives_are_not_late_all_the_time() {
        let due = |days: i64| {
            let certificate = ClientCertificate {
                identity: String::new(),
                not_before: 0,
                not_after: days * DAY,
            };
            certificate.renewal_due(14) / DAY
        };
        assert_eq!(
            [due(365), due(60), due(30), due(3), due(1)],
            [351, 46, 20, 2, 1]
        );
    }
}
