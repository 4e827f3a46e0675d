//! The authority and what it signs, identities on disk, and TLS on TCP with them.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use flotilla_net::*;
use rustls::pki_types::ServerName;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn groups(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn client(authority: &Authority, user: &str, in_groups: &[&str]) -> (NodeKey, CertificateDer<'static>) {
    let key = NodeKey::generate().expect("a key");
    let csr = key.request().expect("a request");
    let signed = authority.sign_client(&csr, user, &groups(in_groups), LIFETIME, SystemTime::now());
    (key, signed.expect("signs"))
}

#[test]
fn a_nodes_certificate_names_it() {
    let authority = authority();
    let identity = identity(&authority, 7);
    let subject = identity.subject();
    assert_eq!(subject.user, "system:node:node-7");
    assert_eq!(subject.groups, ["system:nodes"]);
    let expected = NodeSubject { cluster: authority.cluster(), id: 7, name: "node-7".into() };
    assert_eq!(subject.node, Some(expected));
    assert_eq!(subject.key_fingerprint, identity.key().fingerprint());
    let left = subject.not_after.duration_since(SystemTime::now()).expect("in the future");
    assert!(left <= LIFETIME && left > LIFETIME - Duration::from_secs(60));
    let due = subject.renew_at().duration_since(SystemTime::now()).expect("in the future");
    assert!(due <= LIFETIME * 2 / 3 && due > LIFETIME / 2);
}

#[test]
fn a_users_certificate_keeps_every_group_in_order() {
    let authority = authority();
    for names in [&[][..], &["one"], &["one", "two"], &["system:masters", "b", "a", "ä"]] {
        let (_, certificate) = client(&authority, "anna", names);
        let subject = Subject::of(&certificate).expect("reads");
        assert_eq!((subject.user.as_str(), subject.groups.as_slice()), ("anna", groups(names).as_slice()));
        assert_eq!(subject.node, None);
    }
}

#[test]
fn no_user_is_named_like_a_node() {
    let authority = authority();
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let sign = |user: &str, names: &[&str]| {
        authority.sign_client(&csr, user, &groups(names), LIFETIME, SystemTime::now()).map(|_| ())
    };
    assert!(matches!(sign("system:node:node-1", &[]), Err(AuthorityError::Reserved(_))));
    assert!(matches!(sign("anna", &["a", "system:nodes"]), Err(AuthorityError::Reserved(_))));
    assert!(matches!(sign("", &[]), Err(AuthorityError::User)));
    assert!(matches!(sign("a\nb", &[]), Err(AuthorityError::User)));
    assert!(sign("anna", &["staff"]).is_ok());
}

#[test]
fn a_request_gives_its_key_and_nothing_else() {
    // A request that asks for another node's name and for being an authority.
    let mut params = rcgen::CertificateParams::new(vec!["other.example".to_string()]).expect("parameters");
    params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:other");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let uri = format!("flotilla://{}/node/99", ClusterId::generate());
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().expect("a URI")));
    let key = rcgen::KeyPair::generate().expect("a key");
    let csr = params.serialize_request(&key).expect("a request");
    let authority = authority();
    let signed = authority.sign_client(csr.der(), "anna", &[], LIFETIME, SystemTime::now()).expect("signs");
    let subject = Subject::of(&signed).expect("reads");
    assert_eq!((subject.user.as_str(), subject.node), ("anna", None));
    let (_, parsed) = x509_parser::parse_x509_certificate(&signed).expect("parses");
    assert!(!parsed.is_ca());
    assert!(parsed.subject_alternative_name().expect("reads").is_none());
}

#[test]
fn what_a_nodes_servers_show_is_no_leave_to_call() {
    let authority = authority();
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let dns = ["a".to_owned()];
    let names = ServingNames { dns: &dns, addresses: &[[10, 0, 0, 1].into()] };
    let signed = authority.sign_serving(&csr, "a", &names, LIFETIME, SystemTime::now()).expect("signs");
    let (_, parsed) = x509_parser::parse_x509_certificate(&signed).expect("parses");
    let usage = parsed.extended_key_usage().expect("reads").expect("is there").value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any);
    assert_eq!(parsed.subject_alternative_name().expect("reads").expect("is there").value.general_names.len(), 2);
    let dns: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
    let many = ServingNames { dns: &dns, addresses: &[] };
    let refused = authority.sign_serving(&csr, "a", &many, LIFETIME, SystemTime::now());
    assert!(matches!(refused, Err(AuthorityError::Request(_))));
}

#[test]
fn no_server_of_a_node_passes_for_the_api() {
    let authority = authority();
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let sign = |dns: &str, address: [u8; 4]| {
        let (dns, addresses) = ([dns.to_owned()], [address.into()]);
        let names = ServingNames { dns: &dns, addresses: &addresses };
        authority.sign_serving(&csr, "a", &names, LIFETIME, SystemTime::now()).map(|_| ())
    };
    let address = [10, 0, 0, 1];
    for dns in ["a", "db.default.svc", "*.db.default.svc", "kubernetes.red"] {
        sign(dns, address).expect(dns);
    }
    for dns in ["localhost", "kubernetes", "Kubernetes.Default.svc", "kubernetes.default.", "*.default.svc"] {
        assert!(matches!(sign(dns, address), Err(AuthorityError::Request(_))), "{dns}");
    }
    assert!(matches!(sign("a", [127, 0, 0, 1]), Err(AuthorityError::Request(_))));
}

#[test]
fn what_is_no_request_or_out_of_bounds_is_refused() {
    let authority = authority();
    let csr = NodeKey::generate().expect("a key").request().expect("a request");
    let names = |name| NodeNames { id: 1, name, addresses: &[] };
    let sign = |csr: &[u8], name, lifetime, now| authority.sign_node(csr, &names(name), lifetime, now).map(|_| ());
    let now = SystemTime::now();
    assert!(matches!(sign(b"nonsense", "a", LIFETIME, now), Err(AuthorityError::Request(_))));
    assert!(matches!(sign(&vec![0x30; 9000], "a", LIFETIME, now), Err(AuthorityError::Request(_))));
    assert!(matches!(sign(&csr, "A", LIFETIME, now), Err(AuthorityError::Name(_))));
    assert!(matches!(sign(&csr, "a", Duration::from_secs(59), now), Err(AuthorityError::Lifetime)));
    assert!(matches!(sign(&csr, "a", Duration::MAX, now), Err(AuthorityError::Lifetime)));
    assert!(matches!(sign(&csr, "a", LIFETIME, SystemTime::UNIX_EPOCH), Err(AuthorityError::Clock)));
    let mut forged = csr.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    assert!(matches!(sign(&forged, "a", LIFETIME, now), Err(AuthorityError::Request(_))));
}

#[test]
fn two_certificates_of_one_key_have_different_serials() {
    let authority = authority();
    let key = NodeKey::generate().expect("a key");
    let csr = key.request().expect("a request");
    let names = NodeNames { id: 1, name: "a", addresses: &[] };
    let serial = || {
        let signed = authority.sign_node(&csr, &names, LIFETIME, SystemTime::now()).expect("signs");
        x509_parser::parse_x509_certificate(&signed).expect("parses").1.serial.clone()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn a_sealed_authority_opens_with_its_key_and_signs_on() {
    let authority = authority();
    let key = SealKey::generate();
    let envelope = authority.seal(&key).expect("seals");
    assert!(Authority::unseal(&SealKey::generate(), &envelope).is_err());
    let opened = Authority::unseal(&key, &envelope).expect("opens");
    assert_eq!(opened.cluster(), authority.cluster());
    assert_eq!(opened.fingerprint(), authority.fingerprint());
    let key = NodeKey::generate().expect("a key");
    let names = NodeNames { id: 3, name: "c", addresses: &[] };
    let signed = opened.sign_node(&key.request().expect("a request"), &names, LIFETIME, SystemTime::now());
    let trusted = vec![authority.certificate().clone()];
    assert!(Identity::new(key, signed.expect("signs"), trusted).is_ok());
}

#[test]
fn an_identity_is_kept_whole_and_for_its_owner_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let home = dir.path().join("identity");
    assert!(Identity::load(&home).expect("reads").is_none());
    let authority = authority();
    let made = identity(&authority, 5);
    made.store(&home).expect("stores");
    let read = Identity::load(&home).expect("reads").expect("is there");
    assert_eq!(read.certificate(), made.certificate());
    assert_eq!(read.authorities(), made.authorities());
    assert_eq!((read.id(), read.name(), read.cluster()), (5, "node-5", authority.cluster()));
    let file = home.join("identity.pem");
    assert_eq!(std::fs::metadata(&file).expect("exists").permissions().mode() & 0o777, 0o600);
    assert!(!format!("{made:?}").contains("PRIVATE"));
}

#[test]
fn a_damaged_or_mixed_identity_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("identity.pem");
    let (one, two) = (authority(), authority());
    for text in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        std::fs::write(&file, text).expect("writes");
        assert!(Identity::load(dir.path()).is_err(), "{text}");
    }
    let (a, b) = (identity(&one, 1), identity(&two, 1));
    let mixed = |key: &Identity, certificate: &Identity, by: &Identity| {
        Identity::new(key.key().clone(), certificate.certificate().clone(), by.authorities().to_vec()).map(|_| ())
    };
    assert!(matches!(mixed(&a, &identity(&one, 1), &a), Err(IdentityError::OtherKey)));
    assert!(matches!(mixed(&a, &a, &b), Err(IdentityError::Certificate(CertificateError::Untrusted(_)))));
    let (key, certificate) = client(&one, "anna", &[]);
    let made = Identity::new(key, certificate, a.authorities().to_vec());
    assert!(matches!(made, Err(IdentityError::Certificate(CertificateError::NotANode))));
}

#[test]
fn credentials_change_their_certificate_and_never_their_node() {
    let authority = authority();
    let credentials = Credentials::new(identity(&authority, 1)).expect("credentials");
    let next = identity(&authority, 1);
    credentials.replace(next.clone()).expect("the same node");
    assert_eq!(credentials.identity().certificate(), next.certificate());
    assert!(matches!(credentials.replace(identity(&authority, 2)), Err(CredentialsError::OtherNode)));
}

/// Serves one connection with `server` and calls it with `client`; what the server learned of the client, if it came to that.
async fn over_tcp(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> Result<Option<Subject>, std::io::Error> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = async {
        let (tcp, _) = listener.accept().await?;
        let mut tls = tokio_rustls::TlsAcceptor::from(server).accept(tcp).await?;
        tls.write_all(b"!").await?;
        tls.flush().await?;
        let peer = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        // The caller closes when it has read.
        let _ = tls.read(&mut [0]).await;
        Ok::<_, std::io::Error>(peer.map(|leaf| Subject::of(&leaf).expect("reads")))
    };
    let calling = async {
        let tcp = tokio::net::TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let mut tls = tokio_rustls::TlsConnector::from(client).connect(name, tcp).await?;
        tls.read_exact(&mut [0]).await?;
        tls.shutdown().await
    };
    let (served, called) = tokio::join!(serving, calling);
    called?;
    served
}

#[tokio::test]
async fn a_user_calls_any_node_and_is_known_by_name() {
    let authority = authority();
    let credentials = Credentials::new(identity(&authority, 1)).expect("credentials");
    let server = server_tls(&credentials, &["h2"], ClientAuth::Required).expect("a configuration");
    let (key, certificate) = client(&authority, "anna", &["staff", "ops"]);
    let user = |authority: &Authority| {
        let key = PrivateKeyDer::from(pem_key(&key));
        user_tls(&[authority.certificate().clone()], vec![certificate.clone()], key, &["h2"]).expect("a configuration")
    };
    let peer = over_tcp(server.clone(), user(&authority)).await.expect("talk").expect("a certificate");
    assert_eq!((peer.user.as_str(), peer.groups.len()), ("anna", 2));
    assert!(over_tcp(server, user(&support::authority())).await.is_err(), "a user trusts its own cluster only");
}

/// What a node with a certificate of `signer` is, that trusts `trusted` and shows `bridges`.
fn following(
    signer: &Authority,
    trusted: &[&Authority],
    bridges: Vec<CertificateDer<'static>>,
) -> (tempfile::TempDir, Identity) {
    let made = identity(signer, 1);
    let trusted = trusted.iter().map(|one| one.certificate().clone()).collect();
    let identity = Identity::new(made.key().clone(), made.certificate().clone(), trusted).expect("fits together");
    let dir = tempfile::tempdir().expect("a directory");
    identity.with_bridges(bridges).expect("bridges").store(dir.path()).expect("stores");
    let read = Identity::load(dir.path()).expect("reads").expect("is there");
    (dir, read)
}

#[tokio::test]
async fn a_user_of_the_authority_before_is_served_over_the_bridge_until_that_authority_is_dropped() {
    let old = authority();
    let (new, bridge) = old.succeed(SystemTime::now()).expect("a successor");
    assert_eq!(new.cluster(), old.cluster());
    let (_dir, both) = following(&new, &[&new, &old], vec![bridge.clone()]);
    assert_eq!((both.authorities().len(), both.bridges()), (2, &[bridge][..]), "kept apart on disk");
    assert_eq!(both.issuer(), Some(new.certificate()));
    let credentials = Credentials::new(both).expect("credentials");
    let server = server_tls(&credentials, &["h2"], ClientAuth::Required).expect("a configuration");
    let user = |authority: &Authority| {
        let (key, certificate) = client(authority, "anna", &[]);
        let key = PrivateKeyDer::from(pem_key(&key));
        user_tls(&[authority.certificate().clone()], vec![certificate], key, &["h2"]).expect("a configuration")
    };
    for authority in [&old, &new] {
        let peer = over_tcp(server.clone(), user(authority)).await.expect("talk").expect("a certificate");
        assert_eq!(peer.user, "anna");
    }
    let (_dir, alone) = following(&new, &[&new], Vec::new());
    let same = Identity::new(credentials.identity().key().clone(), credentials.identity().certificate().clone(), {
        alone.authorities().to_vec()
    });
    credentials.replace(same.expect("fits together")).expect("the same node");
    assert!(over_tcp(server.clone(), user(&old)).await.is_err(), "dropped");
    over_tcp(server, user(&new)).await.expect("talk");
}

fn pem_key(key: &NodeKey) -> rustls::pki_types::PrivatePkcs8KeyDer<'static> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(key.to_pem().as_bytes()).expect("PEM")
}

#[tokio::test]
async fn tcp_refuses_other_authorities_and_those_without_a_certificate() {
    let (one, two) = (authority(), authority());
    let credentials = Credentials::new(identity(&one, 1)).expect("credentials");
    let other = Credentials::new(identity(&two, 2)).expect("credentials");
    let friend = Credentials::new(identity(&one, 2)).expect("credentials");
    let server = server_tls(&credentials, &["h2"], ClientAuth::Required).expect("a configuration");
    let node = over_tcp(server.clone(), client_tls(&friend, &["h2"]).expect("a configuration")).await;
    assert_eq!(node.expect("talk").expect("a certificate").node.expect("a node").id, 2);
    assert!(over_tcp(server.clone(), client_tls(&other, &["h2"]).expect("a configuration")).await.is_err());
    assert!(over_tcp(server, nobody(&one)).await.is_err());
    let optional = server_tls(&credentials, &["h2"], ClientAuth::Optional).expect("a configuration");
    assert_eq!(over_tcp(optional, nobody(&one)).await.expect("talk"), None);
}

/// A caller that checks nothing but the authority and shows nothing.
fn nobody(authority: &Authority) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate().clone()).expect("a root");
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyName(verifier.build().expect("a verifier"))))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

#[derive(Debug)]
struct AnyName(Arc<rustls::client::WebPkiServerVerifier>);

impl rustls::client::danger::ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        ocsp: &[u8],
        now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        // Every node's certificate is also good for this host name.
        self.0.verify_server_cert(leaf, chain, &ServerName::try_from("localhost").expect("a name"), ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
