//! `credentials`: a key that never leaves this program's output, and a certificate for it.

use anyhow::Context;
use clap::Args;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

use super::DONE;
use super::output::parse_lifetime;
use super::session::{Session, ask};
use crate::proto::{IssueCertificateRequest, IssueCertificateResponse, RevokeUserRequest};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla credentials alice > alice.pem
  flotilla credentials ci --ttl 90d > ci.pem
  flotilla credentials alice --revoke
  flotilla nodes --server node-1:6443 --credentials alice.pem")]
pub struct CredentialsArgs {
    /// Whom the cluster shall see: the certificate's user
    name: String,
    /// The user's groups; `system:masters` may do everything
    #[arg(long = "group", value_name = "GROUP", default_value = "system:masters")]
    groups: Vec<String>,
    /// How long the certificate is good
    #[arg(long, value_name = "DURATION", default_value = "365d", allow_hyphen_values = true, value_parser = parse_lifetime)]
    ttl: u64,
    /// End all certificates that were made for this user until now, instead of making one
    #[arg(long, conflicts_with_all = ["groups", "ttl"])]
    revoke: bool,
}

pub async fn make(session: &Session, args: &CredentialsArgs) -> anyhow::Result<u8> {
    if args.revoke {
        session.cluster().revoke_user(ask(RevokeUserRequest { user: args.name.clone() })).await?;
        // The cluster keeps no list of the certificates that it has made.
        session.say(format!(
            "certificates made for {} until now, if there are any, are worth nothing any more; later ones are good",
            args.name
        ))?;
        return Ok(DONE);
    }
    let (key, issued) = issue(session, &args.name, &args.groups, args.ttl).await?;
    session.say(bundle(&key.serialize_pem(), &issued.certificate, &issued.ca))?;
    eprintln!("good until {}; use it with --server HOST:PORT --credentials FILE", issued.expires);
    Ok(DONE)
}

/// A new key, and the cluster's certificate for it.
pub async fn issue(
    session: &Session,
    user: &str,
    groups: &[String],
    ttl_seconds: u64,
) -> anyhow::Result<(KeyPair, IssueCertificateResponse)> {
    let key = KeyPair::generate().context("cannot make a key")?;
    let csr = signing_request(&key, user)?;
    let request = IssueCertificateRequest { csr, user: user.to_owned(), groups: groups.to_vec(), ttl_seconds };
    let issued = session.cluster().issue_certificate(ask(request)).await?.into_inner();
    Ok((key, issued))
}

fn signing_request(key: &KeyPair, name: &str) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params.serialize_request(key).context("cannot write a certificate request")?;
    request.pem().context("cannot write a certificate request")
}

/// Key, certificate, CA: one PEM file.
fn bundle(key: &str, certificate: &str, ca: &str) -> String {
    [key, certificate, ca].map(str::trim).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_signed_by_its_key() {
        let key = KeyPair::generate().unwrap();
        let pem = signing_request(&key, "alice").unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "CERTIFICATE REQUEST");
        assert_eq!(bundle("k\n", "c\n", "a"), "k\nc\na");
    }
}
