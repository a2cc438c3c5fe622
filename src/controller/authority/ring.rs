//! The keys that sign: how they are made, take over from each other, and sign. Pure but for randomness: the caller says what time it is.
//!
//! One of them signs. When half of its time is over, the next one is made and published, so that whoever checks certificates learns of it
//! before it signs anything; after three quarters it takes over. The certificate of the old one stays published until it expires, which is
//! long after everything that it signed has: what is signed holds for an eighth of a signer's time.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType, SubjectPublicKeyInfo,
};
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem, prelude::FromDer as _};

use crate::api::identity::agent_server_name;

/// What is signed holds for this part of a signer's time.
const LEAF_SHARE: i64 = 8;
/// What is signed is signed anew when this part of its time is over: 2 of 3.
const RENEW_AFTER: (i64, i64) = (2, 3);
/// Clocks of others may be behind ours by this many seconds, or by a tenth of the time that something holds if that is less.
const SKEW: i64 = 300;
/// Keys of the Secret.
const CURRENT: [&str; 2] = ["ca.crt", "ca.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const OLD: &str = "old.crt";

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// What was kept cannot be used.
    #[error(
        "{0} cannot be read; delete the Secret to have new keys made, which all who trust the old ones must then learn of"
    )]
    Unreadable(&'static str),
    /// The cryptography library refuses.
    #[error("signing failed: {0}")]
    Library(#[from] rcgen::Error),
    /// No such time.
    #[error("the clock of this machine is wrong")]
    Clock,
}

/// From when until when something holds, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: i64,
    until: i64,
}

impl Span {
    fn length(self) -> i64 {
        self.until.saturating_sub(self.from)
    }

    /// When `part` of `whole` of it is over.
    fn after(self, (part, whole): (i64, i64)) -> i64 {
        self.from.saturating_add(self.length().saturating_mul(part).checked_div(whole).unwrap_or(i64::MAX))
    }
}

/// One who signs.
#[derive(Clone, Debug)]
struct Signer {
    certificate: String,
    key: String,
    span: Span,
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Ring {
    current: Signer,
    next: Option<Signer>,
    /// Certificates of those who signed before.
    old: Vec<String>,
}

/// For whom a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The node.
    pub node: &'a str,
    /// Names by which all agents are reached.
    pub names: &'a [String],
    /// The public key, PEM.
    pub public_key: &'a str,
}

impl Ring {
    /// New keys, which hold for `validity`.
    ///
    /// # Errors
    /// What the cryptography library says.
    pub fn new(validity: Duration, now: i64) -> Result<Self, RingError> {
        Ok(Self { current: Signer::new(validity, now)?, next: None, old: Vec::new() })
    }

    /// What `write` wrote.
    ///
    /// # Errors
    /// `Unreadable`.
    pub fn read(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, RingError> {
        let text = |key: &str| data.get(key).and_then(|bytes| String::from_utf8(bytes.clone()).ok());
        let signer = |[certificate, key]: [&'static str; 2]| match (text(certificate), text(key)) {
            (None, None) => Ok(None),
            (Some(certificate_), Some(key)) => {
                let span = span(&certificate_).ok_or(RingError::Unreadable(certificate))?;
                KeyPair::from_pem(&key).map_err(|_| RingError::Unreadable(certificate))?;
                Ok(Some(Signer { certificate: certificate_, key, span }))
            }
            _ => Err(RingError::Unreadable(certificate)),
        };
        let current = signer(CURRENT)?.ok_or(RingError::Unreadable("ca.crt"))?;
        Ok(Self { current, next: signer(NEXT)?, old: split(&text(OLD).unwrap_or_default()) })
    }

    /// The data of the Secret; keys that are not wanted any more are there without a value.
    pub fn write(&self) -> BTreeMap<&'static str, Option<String>> {
        let [next_certificate, next_key] = NEXT;
        let [certificate, key] = CURRENT;
        let next = self.next.as_ref();
        BTreeMap::from([
            (certificate, Some(self.current.certificate.clone())),
            (key, Some(self.current.key.clone())),
            (next_certificate, next.map(|next| next.certificate.clone())),
            (next_key, next.map(|next| next.key.clone())),
            (OLD, Some(self.old.concat()).filter(|old| !old.is_empty())),
        ])
    }

    /// Does what is due at `now`; whether something changed.
    ///
    /// # Errors
    /// What the cryptography library says.
    pub fn turn(&mut self, validity: Duration, now: i64) -> Result<bool, RingError> {
        let known = self.old.len();
        self.old.retain(|old| span(old).is_some_and(|span| span.until > now));
        let mut changed = self.old.len() != known;
        if self.next.is_none() && now >= self.current.span.after((1, 2)) {
            self.next = Some(Signer::new(validity, now)?);
            changed = true;
        }
        if let Some(next) = self.next.take_if(|next| takes_over(self.current.span, next.span, now)) {
            let old = std::mem::replace(&mut self.current, next);
            self.old.push(old.certificate);
            changed = true;
        }
        Ok(changed)
    }

    /// The certificates of all who sign, signed, or will sign, as PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let old = self.old.iter().map(String::as_str);
        [self.current.certificate.as_str()].into_iter().chain(next).chain(old).collect()
    }

    /// Whether `certificate` is one for `subject` that need not be signed anew yet.
    pub fn is_good(&self, certificate: &str, subject: &Subject<'_>, now: i64) -> bool {
        let signers: Vec<_> =
            [&self.current.certificate].into_iter().chain(&self.old).filter_map(|pem| name(pem)).collect();
        parsed(certificate, |found| {
            let key = SubjectPublicKeyInfo::from_pem(subject.public_key).map(|key| key.subject_public_key_info());
            let span = span_of(found);
            key.is_ok_and(|key| found.public_key().raw == key)
                && signers.iter().any(|signer| signer == found.issuer().as_raw())
                && (span.from..span.after(RENEW_AFTER)).contains(&now)
                && dns_names(found) == named(subject)
        })
        .unwrap_or(false)
    }

    /// Signs a certificate for `subject`. Only the public key is taken from whom it is for: what it names is said here.
    ///
    /// # Errors
    /// If the public key is none, or the cryptography library refuses.
    pub fn sign(&self, subject: &Subject<'_>, now: i64) -> Result<String, RingError> {
        let key = SubjectPublicKeyInfo::from_pem(subject.public_key)?;
        let mut params = CertificateParams::new(wanted_names(subject))?;
        for address in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])] {
            params.subject_alt_names.push(SanType::IpAddress(address));
        }
        params.distinguished_name.push(DnType::CommonName, "vitrine-agent");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let share = self.current.span.length().checked_div(LEAF_SHARE).unwrap_or(0);
        let until = now.saturating_add(share).min(self.current.span.until);
        (params.not_before, params.not_after) = (at(now.saturating_sub(skew(share)))?, at(until)?);
        let issuer = Issuer::from_ca_cert_pem(&self.current.certificate, KeyPair::from_pem(&self.current.key)?)?;
        Ok(params.signed_by(&key, &issuer)?.pem())
    }
}

impl Signer {
    fn new(validity: Duration, now: i64) -> Result<Self, RingError> {
        let seconds = i64::try_from(validity.as_secs()).unwrap_or(i64::MAX);
        let span = Span { from: now.saturating_sub(skew(seconds)), until: now.saturating_add(seconds) };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Vitrine {:016x}", rand::random::<u64>()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (at(span.from)?, at(span.until)?);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem(), span })
    }
}

/// Whether `next`, which was published for a while, is to sign from now on. It is published for an eighth of its time at least, unless the
/// current one expires before.
fn takes_over(current: Span, next: Span, now: i64) -> bool {
    let known = next.after((1, LEAF_SHARE));
    now >= current.until || (now >= current.after((3, 4)) && now >= known)
}

fn skew(seconds: i64) -> i64 {
    seconds.checked_div(10).unwrap_or(0).min(SKEW)
}

fn at(seconds: i64) -> Result<OffsetDateTime, RingError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| RingError::Clock)
}

/// The names that a certificate for `subject` has, in order.
fn wanted_names(subject: &Subject<'_>) -> Vec<String> {
    let mut names: Vec<_> = subject.names.iter().cloned().chain([agent_server_name(subject.node)]).collect();
    names.sort();
    names.dedup();
    names
}

/// Those of them that are no addresses.
fn named(subject: &Subject<'_>) -> Vec<String> {
    wanted_names(subject).into_iter().filter(|name| name.parse::<IpAddr>().is_err()).collect()
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let mut names: Vec<_> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect();
    names.sort();
    names
}

fn parsed<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&pem.contents).ok()?;
    Some(look(&certificate))
}

fn span_of(certificate: &X509Certificate<'_>) -> Span {
    let validity = certificate.validity();
    Span { from: validity.not_before.timestamp(), until: validity.not_after.timestamp() }
}

fn span(pem: &str) -> Option<Span> {
    parsed(pem, span_of)
}

/// The subject's name, as it is encoded.
fn name(pem: &str) -> Option<Vec<u8>> {
    parsed(pem, |certificate| certificate.subject().as_raw().to_vec())
}

/// The certificates in `pem`, each for itself.
fn split(pem: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----\n";
    pem.split_inclusive(END).filter(|part| span(part).is_some()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const VALIDITY: Duration = Duration::from_hours(24 * 400);
    const NOW: i64 = 1_800_000_000;

    fn names() -> Vec<String> {
        vec!["vitrine-data.vitrine-system.svc".to_owned(), "localhost".to_owned()]
    }

    fn stored(ring: &Ring) -> BTreeMap<String, Vec<u8>> {
        ring.write().into_iter().filter_map(|(key, text)| Some((key.to_owned(), text?.into_bytes()))).collect()
    }

    #[test]
    fn what_is_signed_is_always_by_somebody_published_long_before_and_until_it_expires() {
        let (key, names) = (KeyPair::generate().unwrap().public_key_pem(), names());
        let subject = Subject { node: "n1", names: &names, public_key: &key };
        let mut ring = Ring::new(VALIDITY, NOW).unwrap();
        let (mut certificate, mut published) = (ring.sign(&subject, NOW).unwrap(), vec![(NOW, ring.bundle())]);
        let mut signers = vec![parsed(&certificate, |c| c.issuer().as_raw().to_vec()).unwrap()];
        for day in 0..1500 {
            let now = NOW + day * DAY;
            ring.turn(VALIDITY, now).unwrap();
            ring = Ring::read(&stored(&ring)).unwrap();
            published.push((now, ring.bundle()));
            if !ring.is_good(&certificate, &subject, now) {
                certificate = ring.sign(&subject, now).unwrap();
                assert!(ring.is_good(&certificate, &subject, now));
            }
            let (issuer, span) = parsed(&certificate, |c| (c.issuer().as_raw().to_vec(), span_of(c))).unwrap();
            assert!(span.until > now, "day {day}: an expired certificate serves");
            let in_bundle = |bundle: &str| split(bundle).iter().any(|pem| name(pem).as_ref() == Some(&issuer));
            assert!(in_bundle(&ring.bundle()), "day {day}: its signer is not published");
            if signers.last() != Some(&issuer) {
                // Whoever read the bundle a month ago knows the new signer.
                let (_, before) = published.iter().rev().find(|(at, _)| *at <= now - 30 * DAY).unwrap();
                assert!(in_bundle(before), "day {day}: the new signer was not published for a month");
                signers.push(issuer);
            }
            assert!(split(&ring.bundle()).len() <= 3, "day {day}");
        }
        // The first signs for 300 days, and each later one, which was made 100 days before it signs, for 200.
        assert_eq!(signers.len(), 7);
    }

    #[test]
    fn a_certificate_is_good_for_its_key_and_names_only() {
        let (key, other) =
            (KeyPair::generate().unwrap().public_key_pem(), KeyPair::generate().unwrap().public_key_pem());
        let (ring, names) = (Ring::new(VALIDITY, NOW).unwrap(), names());
        let subject = Subject { node: "n1", names: &names, public_key: &key };
        let certificate = ring.sign(&subject, NOW).unwrap();
        assert!(ring.is_good(&certificate, &subject, NOW + 30 * DAY));
        assert!(!ring.is_good(&certificate, &subject, NOW + 35 * DAY), "it is due");
        assert!(!ring.is_good(&certificate, &Subject { public_key: &other, ..subject.clone() }, NOW));
        assert!(!ring.is_good(&certificate, &Subject { node: "n2", ..subject.clone() }, NOW));
        assert!(!ring.is_good(&certificate, &Subject { names: &[], ..subject.clone() }, NOW));
        assert!(!Ring::new(VALIDITY, NOW).unwrap().is_good(&certificate, &subject, NOW), "another one's");
        assert!(!ring.is_good("nonsense", &subject, NOW));
        assert!(ring.sign(&Subject { public_key: "nonsense", ..subject }, NOW).is_err());
    }

    #[test]
    fn an_operator_that_was_away_for_years_begins_anew() {
        let mut ring = Ring::new(VALIDITY, NOW).unwrap();
        let old = ring.bundle();
        let later = NOW + 1000 * DAY;
        assert!(ring.turn(VALIDITY, later).unwrap());
        ring.turn(VALIDITY, later).unwrap();
        assert!(!ring.bundle().contains(&old) && ring.current.span.until > later);
    }

    #[test]
    fn keys_that_cannot_be_read_are_said_to_be_so() {
        let mut data = stored(&Ring::new(VALIDITY, NOW).unwrap());
        data.insert("ca.key".to_owned(), b"nonsense".to_vec());
        let error = Ring::read(&data).unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("delete the Secret"), "{error}");
        assert!(Ring::read(&BTreeMap::new()).is_err());
    }
}
