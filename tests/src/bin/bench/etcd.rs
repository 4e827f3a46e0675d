//! Debian's etcd with one or three members on this machine: TLS with certificates on both sides, for clients and
//! between members, and defaults otherwise. Members talk over the loopback device.
//!
//! Invariant: members and their data go away with [`Etcd`], and members with this process if it is killed.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::client::{Door, SERVER_NAME, System, etcd_status};

pub const ETCD: &str = "etcd";
/// Where every system under measurement keeps its data: a disk rather than memory.
pub const DISK: &str = "/var/tmp";
const START_WAIT: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(25);
const LOG_TAIL_LINES: usize = 10;

pub struct Etcd {
    dir: TempDir,
    members: Vec<Member>,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

impl Etcd {
    /// Starts so many members and waits until they agree on a leader.
    ///
    /// # Errors
    /// If they do not.
    pub async fn start(count: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir_in(DISK)?;
        let ports = free_ports(count * 2)?;
        let members = ports.chunks(2).enumerate().map(|(number, ports)| Member {
            name: format!("m{number}"),
            client_port: ports[0],
            peer_port: ports[1],
            process: None,
        });
        let mut etcd = Self { members: members.collect(), dir };
        etcd.make_certificates()?;
        for member in 0..count {
            etcd.switch_on(member)?;
        }
        etcd.leader().await?;
        Ok(etcd)
    }

    pub fn door(&self, member: usize) -> Door {
        let address = format!("127.0.0.1:{}", self.members[member].client_port);
        Door { system: System::Etcd, address, credentials: self.path("bundle.pem") }
    }

    /// The members but for one.
    pub fn others(&self, member: usize) -> Vec<Door> {
        (0..self.members.len()).filter(|one| *one != member).map(|one| self.door(one)).collect()
    }

    /// Waits until every member is up and knows the same leader, and tells which one that is.
    ///
    /// # Errors
    /// If that takes long.
    pub async fn leader(&self) -> anyhow::Result<usize> {
        let deadline = Instant::now() + START_WAIT;
        loop {
            match self.agreed_leader().await {
                Ok(leader) => return Ok(leader),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context(format!("etcd has no leader:\n{}", log_tail(&self.path("log")))));
                }
                Err(_) => tokio::time::sleep(ASK_AGAIN).await,
            }
        }
    }

    async fn agreed_leader(&self) -> anyhow::Result<usize> {
        let mut ids = Vec::new();
        let mut leaders = Vec::new();
        for member in 0..self.members.len() {
            let status = etcd_status(&self.door(member)).await?;
            ids.push(status.member());
            leaders.push(status.leader);
        }
        let first = leaders[0];
        anyhow::ensure!(leaders.iter().all(|leader| *leader == first), "members see different leaders");
        ids.iter().position(|id| *id == first).context("no leader yet")
    }

    pub fn pid(&self, member: usize) -> Option<u32> {
        self.members[member].process.as_ref().map(Child::id)
    }

    /// SIGKILL, and back without waiting for the end.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn kill(&mut self, member: usize) -> std::io::Result<()> {
        self.members[member].process.as_mut().map_or(Ok(()), Child::kill)
    }

    /// Starts a member again that was killed, and waits until all agree on a leader.
    ///
    /// # Errors
    /// If they do not.
    pub async fn restart(&mut self, member: usize) -> anyhow::Result<()> {
        if let Some(mut killed) = self.members[member].process.take() {
            killed.wait()?;
        }
        self.switch_on(member)?;
        self.leader().await.map(drop)
    }

    /// Called from the main thread: the kernel takes the member down with the thread that started it.
    fn switch_on(&mut self, number: usize) -> anyhow::Result<()> {
        let member = &self.members[number];
        let client_url = format!("https://127.0.0.1:{}", member.client_port);
        let peer_url = format!("https://127.0.0.1:{}", member.peer_port);
        let log = File::options().append(true).create(true).open(self.path("log"))?;
        let mut command = Command::new(ETCD);
        command.args(["--name", &member.name, "--initial-cluster", &self.everyone(), "--logger=zap"]);
        command.arg("--data-dir").arg(self.path(&member.name));
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        for (flag, file) in [("trusted-ca", "ca.pem"), ("cert", "node.pem"), ("key", "node.key")] {
            command.arg(format!("--{flag}-file")).arg(self.path(file));
            command.arg(format!("--peer-{flag}-file")).arg(self.path(file));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        die_with_us(&mut command);
        let process = command.spawn().context("etcd does not start: is etcd-server installed?")?;
        self.members[number].process = Some(process);
        Ok(())
    }

    fn everyone(&self) -> String {
        let urls = self.members.iter().map(|member| format!("{}=https://127.0.0.1:{}", member.name, member.peer_port));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A CA, and one certificate under it for members and clients, and whoever else is measured.
    fn make_certificates(&self) -> anyhow::Result<()> {
        let (ca_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let mut ca_params = CertificateParams::default();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key)?.pem();
        let mut params =
            CertificateParams::new([SERVER_NAME, "127.0.0.1", flotilla_tests::api::SERVER_NAME].map(String::from))?;
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &Issuer::new(ca_params, ca_key))?.pem();
        fs::write(self.path("ca.pem"), &ca)?;
        fs::write(self.path("node.pem"), &certificate)?;
        fs::write(self.path("node.key"), key.serialize_pem())?;
        Ok(fs::write(self.path("bundle.pem"), [key.serialize_pem(), certificate, ca].concat())?)
    }

    /// A file of its directory.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }
}

/// Has a command end with this process.
pub fn die_with_us(command: &mut Command) {
    // SAFETY: one system call, in a child that has one thread.
    unsafe {
        command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
    }
}

/// The last lines of a log.
pub fn log_tail(path: &Path) -> String {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// All different: each is held until the last is found.
pub fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    held.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}
