//! Certificates whose subject holds several organizations. Kubernetes keeps one group an `O`, and the certificate maker
//! knows one `O` a name, so the subject is written here and the certificate signed again.

use rcgen::{KeyPair, SigningKey};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::authority::AuthorityError;
use crate::certificate::CertificateError;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const BIT_STRING: u8 = 0x03;
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// `certificate` with the subject `O=group…, CN=user`, signed again with `key`.
pub(crate) fn with_groups(
    certificate: &CertificateDer<'_>,
    user: &str,
    groups: &[String],
    key: &KeyPair,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let malformed = CertificateError::Malformed("it is not X.509");
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed)?;
    let tbs = replace(parsed.tbs_certificate.as_ref(), parsed.subject().as_raw(), &subject(user, groups))?;
    let signature = key.sign(&tbs)?;
    // The algorithm stands within what is signed and again beside the signature.
    let algorithm = algorithm_of(certificate, parsed.tbs_certificate.as_ref())?;
    let signature = element(BIT_STRING, &[&[0], signature.as_slice()].concat());
    Ok(CertificateDer::from(element(SEQUENCE, &[tbs, algorithm, signature].concat())))
}

fn subject(user: &str, groups: &[String]) -> Vec<u8> {
    let organizations = groups.iter().map(|group| attribute(ORGANIZATION, group));
    let parts: Vec<_> = organizations.chain(std::iter::once(attribute(COMMON_NAME, user))).collect();
    element(SEQUENCE, &parts.concat())
}

fn attribute(kind: &[u8], text: &str) -> Vec<u8> {
    let pair = [element(OBJECT_ID, kind), element(UTF8_STRING, text.as_bytes())].concat();
    element(SET, &element(SEQUENCE, &pair))
}

/// The element `outer` with its part `old` (a slice of it) replaced by `new`.
fn replace(outer: &[u8], old: &[u8], new: &[u8]) -> Result<Vec<u8>, CertificateError> {
    let body = body(outer)?;
    let at = (old.as_ptr() as usize)
        .checked_sub(body.as_ptr() as usize)
        .filter(|at| at + old.len() <= body.len())
        .ok_or(CertificateError::Malformed("its subject is elsewhere"))?;
    Ok(element(SEQUENCE, &[&body[..at], new, &body[at + old.len()..]].concat()))
}

/// The signature algorithm of a certificate: the element that follows its `tbs`.
fn algorithm_of(certificate: &[u8], tbs: &[u8]) -> Result<Vec<u8>, CertificateError> {
    let rest = &body(certificate)?[tbs.len()..];
    let length = header_bytes(rest)?.0 + header_bytes(rest)?.1;
    rest.get(..length).map(<[u8]>::to_vec).ok_or(CertificateError::Malformed("its algorithm is cut short"))
}

fn body(element: &[u8]) -> Result<&[u8], CertificateError> {
    let (header, length) = header_bytes(element)?;
    element.get(header..header + length).ok_or(CertificateError::Malformed("it is cut short"))
}

/// The lengths of an element's header and body (DER, X.690 section 8.1.3).
fn header_bytes(element: &[u8]) -> Result<(usize, usize), CertificateError> {
    let malformed = CertificateError::Malformed("a length in it is wrong");
    match *element.get(1).ok_or(malformed.clone())? {
        short @ 0..=0x7f => Ok((2, usize::from(short))),
        long @ 0x81..=0x83 => {
            let octets = usize::from(long & 0x7f);
            let digits = element.get(2..2 + octets).ok_or(malformed)?;
            Ok((2 + octets, digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit))))
        }
        _ => Err(malformed),
    }
}

fn element(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = body.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
        out.push(0x80 | digits.len() as u8);
        out.extend_from_slice(&digits);
    }
    out.extend_from_slice(body);
    out
}
