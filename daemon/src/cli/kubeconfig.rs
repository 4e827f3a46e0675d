//! `kubeconfig`: what `kubectl` and other Kubernetes clients need to talk to this cluster.

use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rcgen::KeyPair;
use serde_json::json;

use super::DONE;
use super::credentials::issue;
use super::output::parse_lifetime;
use super::session::{Session, ask};
use crate::proto::ClusterStatusRequest;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla kubeconfig > ~/.kube/config
  flotilla kubeconfig --user ci --group developers --ttl 30d > ci.kubeconfig
  flotilla kubeconfig --address https://flotilla.example.com:6443 > ~/.kube/config")]
pub struct KubeconfigArgs {
    /// Whom the cluster shall see: the certificate's user
    #[arg(long, default_value = "admin")]
    user: String,
    /// The user's groups; `system:masters` may do everything
    #[arg(long = "group", value_name = "GROUP", default_value = "system:masters")]
    groups: Vec<String>,
    /// How long the certificate is good
    #[arg(long, value_name = "DURATION", default_value = "365d", allow_hyphen_values = true, value_parser = parse_lifetime)]
    ttl: u64,
    /// Where clients reach the API; the node that answers unless told otherwise
    #[arg(long, value_name = "URL")]
    address: Option<String>,
}

pub async fn print(session: &Session, args: &KubeconfigArgs) -> anyhow::Result<u8> {
    let server = match &args.address {
        Some(url) => url.clone(),
        None => own_address(session).await?,
    };
    let (key, issued) = issue(session, &args.user, &args.groups, args.ttl).await?;
    session.say(config(&server, &args.user, &session.namespace, &key, &issued.certificate, &issued.ca)?.trim_end())?;
    eprintln!("good until {}", issued.expires);
    Ok(DONE)
}

async fn own_address(session: &Session) -> anyhow::Result<String> {
    let status = session.cluster().status(ask(ClusterStatusRequest {})).await?.into_inner();
    match status.addresses.first() {
        Some(address) => Ok(format!("https://{address}")),
        None => bail!("{} knows no address of its own: name one with --address", status.node),
    }
}

fn config(
    server: &str,
    user: &str,
    namespace: &str,
    key: &KeyPair,
    certificate: &str,
    ca: &str,
) -> anyhow::Result<String> {
    let pem = |text: &str| STANDARD.encode(format!("{}\n", text.trim()));
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "flotilla", "cluster": {"server": server, "certificate-authority-data": pem(ca)}}],
        "users": [{
            "name": user,
            "user": {"client-certificate-data": pem(certificate), "client-key-data": pem(&key.serialize_pem())},
        }],
        "contexts": [{
            "name": "flotilla",
            "context": {"cluster": "flotilla", "user": user, "namespace": namespace},
        }],
        "current-context": "flotilla",
    });
    Ok(serde_saphyr::to_string(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_configuration_holds_what_a_client_needs() {
        let key = KeyPair::generate().unwrap();
        let yaml = config("https://10.0.0.1:6443", "admin", "default", &key, "CERT", "CA\n").unwrap();
        let read: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read["current-context"], "flotilla");
        assert_eq!(read["clusters"][0]["cluster"]["server"], "https://10.0.0.1:6443");
        assert_eq!(read["clusters"][0]["cluster"]["certificate-authority-data"], "Q0EK");
        let data = read["users"][0]["user"]["client-key-data"].as_str().unwrap();
        assert!(String::from_utf8(STANDARD.decode(data).unwrap()).unwrap().contains("PRIVATE KEY"));
    }
}
