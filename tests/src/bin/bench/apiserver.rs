//! A kube-apiserver over an etcd of its own, with TLS and certificates on both sides and defaults otherwise. No distribution
//! has one in a package, so it is measured only where somebody says where theirs is.
//!
//! Invariant: both go away with [`Apiserver`], and with this process if it is killed.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use flotilla_tests::api::{Papers, Rest};
use http::Method;

use crate::etcd::{Etcd, die_with_us, free_ports, log_tail};

/// Names the program.
const VARIABLE: &str = "KUBE_APISERVER";
const START_WAIT: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The kube-apiserver to measure, if there is one.
pub fn program() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

pub struct Apiserver {
    process: Child,
    port: u16,
    etcd: Etcd,
}

impl Apiserver {
    /// Starts both and waits until the API is ready.
    ///
    /// # Errors
    /// If it does not become so.
    pub async fn start(program: &Path) -> anyhow::Result<Self> {
        let etcd = Etcd::start(1).await?;
        let port = free_ports(1)?[0];
        let log = File::create(etcd.path("apiserver.log"))?;
        let mut command = Command::new(program);
        command.arg("--etcd-servers").arg(format!("https://{}", etcd.door(0).address));
        command.args(["--bind-address", "127.0.0.1", "--secure-port", &port.to_string()]);
        command.args(["--authorization-mode", "RBAC", "--service-cluster-ip-range", "10.96.0.0/16"]);
        // Nobody makes the accounts that pods are to run as.
        command.args(["--disable-admission-plugins", "ServiceAccount"]);
        command.args(["--service-account-issuer", "https://localhost"]);
        command.arg("--cert-dir").arg(etcd.path("apiserver"));
        for (flag, file) in [
            ("etcd-cafile", "ca.pem"),
            ("etcd-certfile", "node.pem"),
            ("etcd-keyfile", "node.key"),
            ("client-ca-file", "ca.pem"),
            ("tls-cert-file", "node.pem"),
            ("tls-private-key-file", "node.key"),
            ("service-account-key-file", "node.pem"),
            ("service-account-signing-key-file", "node.key"),
        ] {
            command.arg(format!("--{flag}")).arg(etcd.path(file));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_us(&mut command);
        let process = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        let apiserver = Self { process, port, etcd };
        let deadline = Instant::now() + START_WAIT;
        while let Err(error) = apiserver.ready().await {
            let why = || format!("not ready:\n{}", log_tail(&apiserver.etcd.path("apiserver.log")));
            anyhow::ensure!(Instant::now() < deadline, error.context(why()));
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(apiserver)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let mut rest = Rest::connect(self.at(), &self.papers()?).await?;
        rest.ok(Method::GET, "/readyz", None).await?;
        rest.ok(Method::GET, "/api/v1/namespaces/default", None).await.map(drop)
    }

    pub fn at(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Those of one who may do everything.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn papers(&self) -> anyhow::Result<Papers> {
        Papers::for_others(&fs::read_to_string(self.etcd.path("bundle.pem"))?)
    }

    /// Of the API server and its etcd.
    pub fn pids(&self) -> Vec<u32> {
        [Some(self.process.id()), self.etcd.pid(0)].into_iter().flatten().collect()
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
