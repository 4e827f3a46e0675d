//! A real registry on the machine, where the nodes reach it: Debian's `docker-registry`.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::image::{Layout, run};

const START_WAIT: Duration = Duration::from_secs(20);
/// Not the usual 5000, where the machine may have a registry of its own.
pub const PORT: u16 = 15_000;

/// A registry; killed and removed when it is dropped.
pub struct Registry {
    pub address: SocketAddr,
    process: Option<Child>,
    dir: TempDir,
}

impl Registry {
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(at: IpAddr) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mut registry = Self { address: SocketAddr::new(at, PORT), process: None, dir };
        fs::write(registry.config(), registry.configuration()).expect("a file can be written");
        registry.resume();
        registry
    }

    /// Images of the registry at `at`, in the words of the daemon's configuration.
    #[must_use]
    pub fn trust(at: SocketAddr) -> String {
        format!("[registries.\"{at}\"]\ninsecure_http = true\n")
    }

    /// SIGKILL; what was pushed stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have died by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it after it was killed.
    ///
    /// # Panics
    /// If it does not start.
    pub fn resume(&mut self) {
        let log = fs::File::create(self.dir.path().join("log")).expect("a file can be written");
        let access = fs::OpenOptions::new().create(true).append(true).open(self.access_log());
        let access = access.expect("a file can be written");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.config()).env("OTEL_TRACES_EXPORTER", "none");
        command.stdin(Stdio::null()).stdout(access).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("docker-registry is needed ({error}): make setup"));
        self.process = Some(child);
        let deadline = Instant::now() + START_WAIT;
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the registry does not start: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Pushes an image and returns the reference by which nodes pull it.
    ///
    /// # Panics
    /// If that fails.
    #[must_use]
    pub fn push(&self, image: &Layout) -> String {
        self.push_as(image, image.tag)
    }

    /// As [`Self::push`], under another name.
    ///
    /// # Panics
    /// If that fails.
    pub fn push_as(&self, image: &Layout, name: &str) -> String {
        let reference = self.reference(name);
        let from = format!("oci:{}:{}", image.dir.display(), image.tag);
        let to = format!("docker://{reference}");
        run("skopeo", &["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", &from, &to]);
        reference
    }

    #[must_use]
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}:1", self.address)
    }

    /// Flips a byte of each layer of an image, behind the registry's back.
    ///
    /// # Panics
    /// If there is no layer.
    pub fn damage_layers(&self, name: &str) {
        self.rewrite_layers(name, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }

    fn rewrite_layers(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let links = self.storage().join("docker/registry/v2/repositories").join(name).join("_layers/sha256");
        let mut changed = 0;
        for link in fs::read_dir(links).expect("the image was pushed").flatten() {
            let digest = link.file_name().into_string().expect("digests are text");
            let blobs = self.storage().join("docker/registry/v2/blobs/sha256");
            let blob = blobs.join(&digest[..2]).join(&digest).join("data");
            let mut bytes = fs::read(&blob).expect("a layer can be read");
            if bytes.starts_with(&[0x1f, 0x8b]) {
                change(&mut bytes);
                fs::write(&blob, bytes).expect("a layer can be written");
                changed += 1;
            }
        }
        assert!(changed > 0, "{name} has no layer");
    }

    fn configuration(&self) -> String {
        format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {}\n",
            self.storage().display(),
            self.address
        )
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yml")
    }

    fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    /// The paths of all blobs that were fetched from it, one for each request that was answered.
    ///
    /// # Panics
    /// If the registry keeps no log.
    #[must_use]
    pub fn blobs_fetched(&self) -> Vec<String> {
        let log = fs::read_to_string(self.access_log()).expect("the log can be read");
        // `10.99.0.1 - - [25/Nov/2026:21:00:00 +0000] "GET /v2/name/blobs/sha256:… HTTP/1.1" 200 1234 "" "agent"`
        let paths = log.lines().filter_map(|line| line.split_once("\"GET ")?.1.split(' ').next());
        paths.filter(|path| path.contains("/blobs/")).map(str::to_owned).collect()
    }

    fn access_log(&self) -> PathBuf {
        self.dir.path().join("access")
    }

    /// A directory for images on their way into the registry.
    #[must_use]
    pub fn workshop(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::image;

    #[test]
    fn images_are_made_and_pushed_with_other_tools() {
        let registry = Registry::start(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 77)));
        let nginx = registry.push(&image::nginx(registry.workshop()));
        let busybox = registry.push(&image::busybox(registry.workshop()));
        for reference in [nginx, busybox] {
            run("skopeo", &["inspect", "--tls-verify=false", &format!("docker://{reference}")]);
        }
        registry.damage_layers("nginx");
    }
}
