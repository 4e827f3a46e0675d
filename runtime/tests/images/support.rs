//! Real registries on free ports, images made in memory, and a look at what was mounted.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_runtime::images::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use flotilla_runtime::images::{
    Credentials, Digest, HostConfig, Image, ImageError, Images, PullError, PullProgress, RegistryConfig,
};
use tempfile::TempDir;
use tokio::sync::watch;

const START_WAIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(1);
pub const USER: &str = "sinbad";
pub const PASSWORD: &str = "open sesame";
/// bcrypt of [`PASSWORD`].
const HTPASSWD: &str = "sinbad:$2b$04$8bce3f0GOJxPFO9pDWIU/efiMt/BCXACmyWtaAEnrEDgdhdZYWFU2\n";

/// Debian's docker-registry with a storage of its own.
pub struct Registry {
    pub port: u16,
    pub directory: TempDir,
    process: Child,
}

#[derive(Default)]
pub struct RegistryOptions {
    pub tls: bool,
    pub password: bool,
}

impl Registry {
    pub fn start(options: &RegistryOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| directory.path().join(name);
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            path("storage").display()
        );
        if options.tls {
            let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
            std::fs::write(path("cert.pem"), made.cert.pem()).unwrap();
            std::fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
            config += &format!(
                "  tls: {{certificate: {}, key: {}}}\n",
                path("cert.pem").display(),
                path("key.pem").display()
            );
        }
        if options.password {
            std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
            config += &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", path("htpasswd").display());
        }
        std::fs::write(path("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", path("config.yml").to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry must be installed");
        let registry = Self { port, directory, process };
        eventually("the registry answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        registry
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.host())
    }

    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// Uploads with skopeo, as a user would.
    pub fn push(&self, layout: &Path, tag: &str, image: &str, options: &RegistryOptions) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"]);
        if options.password {
            command.arg(format!("--dest-creds={USER}:{PASSWORD}"));
        }
        command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{}", self.name(image)));
        run(&mut command);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < START_WAIT, "not within {START_WAIT:?}: {what}");
        // Looking without a pause would take the time that the other side needs.
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A store of its own, with its mounts undone in the end.
pub struct Node {
    pub images: Images,
    pub directory: Arc<TempDir>,
    restarted: bool,
}

impl Node {
    pub fn new(config: RegistryConfig) -> Self {
        Self::open(tempfile::tempdir().unwrap(), config)
    }

    /// Opens the store in `images` below `directory`.
    pub fn open(directory: TempDir, config: RegistryConfig) -> Self {
        let images = Images::open(&directory.path().join("images"), config).unwrap();
        Self { images, directory: directory.into(), restarted: false }
    }

    /// The same store, opened again; mounts stay.
    pub fn restart(self) -> Self {
        self.restart_with(insecure(&[]))
    }

    pub fn restart_with(mut self, config: RegistryConfig) -> Self {
        self.restarted = true;
        let directory = self.directory.clone();
        let path = directory.path().join("images");
        drop(self);
        // A dropped pull may hold on to the store for a moment.
        let opened = std::cell::OnceCell::new();
        eventually("the store opens", || {
            let images = Images::open(&path, config.clone());
            images.is_ok_and(|images| opened.set(images).is_ok())
        });
        let images = opened.into_inner().unwrap();
        Self { images, directory, restarted: false }
    }

    /// A node that may speak plain HTTP with `hosts`.
    pub fn insecure(hosts: &[&str]) -> Self {
        Self::new(insecure(hosts))
    }

    pub async fn pull(&self, reference: &str) -> Result<Image, PullError> {
        self.images.pull(reference, None, watch::channel(PullProgress::default()).0).await
    }

    pub async fn pull_as(&self, reference: &str, credentials: &Credentials) -> Result<Image, PullError> {
        self.images.pull(reference, Some(credentials), watch::channel(PullProgress::default()).0).await
    }

    /// Imports an image of these layers, lowest first.
    pub async fn import(&self, layers: Vec<Vec<u8>>) -> Result<Image, ImageError> {
        let archive = image(layers).archive("test.local/image:v1");
        Ok(self.images.import(archive.as_slice(), None).await?.remove(0))
    }

    /// Imports an image of these layers and mounts it.
    pub async fn mounted(&self, layers: Vec<Vec<u8>>) -> PathBuf {
        let image = self.import(layers).await.unwrap();
        self.mount(&image, "c1")
    }

    /// Mounts `image` and gives the path.
    pub fn mount(&self, image: &Image, id: &str) -> PathBuf {
        self.images.mount(image, id, &self.directory.path().join("rootfs").join(id)).unwrap().path
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.restarted {
            for (id, _) in self.images.mounts() {
                self.images.unmount(&id).unwrap();
            }
        }
    }
}

pub fn insecure(hosts: &[&str]) -> RegistryConfig {
    let host = || HostConfig { insecure_http: true, ..HostConfig::default() };
    let hosts = hosts.iter().map(|name| (name.to_string(), host())).collect();
    RegistryConfig { hosts, ..RegistryConfig::default() }
}

/// An image with busybox, made by umoci; gives the OCI layout, whose tag is `v1`.
pub fn busybox_layout(directory: &Path) -> PathBuf {
    let layout = directory.join("layout");
    let image = format!("{}:v1", layout.display());
    let root = directory.join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static must be installed");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    run(Command::new("umoci").args(["init", "--layout"]).arg(&layout));
    run(Command::new("umoci").args(["new", "--image", &image]));
    run(Command::new("umoci").args(["insert", "--image", &image]).arg(root.join("bin")).arg("/bin"));
    run(Command::new("umoci").args(["config", "--image", &image, "--config.entrypoint=/bin/sh", "--config.env=A=b"]));
    layout
}

/// An image made in memory: blobs by digest, and the manifest's.
pub struct Made {
    pub blobs: Vec<(Digest, Vec<u8>)>,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
}

/// Makes an image of uncompressed layers.
pub fn image(layers: Vec<Vec<u8>>) -> Made {
    let tars = layers.clone();
    image_of(layers, &tars)
}

/// Makes an image of `layers` as they are, whose contents are said to be `tars`.
pub fn image_of(layers: Vec<Vec<u8>>, tars: &[Vec<u8>]) -> Made {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/true"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let layer = |bytes: &Vec<u8>| Descriptor::new(OCI_LAYER, Digest::of(bytes), bytes.len() as u64);
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
        layers: layers.iter().map(layer).collect(),
    };
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let digests = layers.iter().map(|bytes| Digest::of(bytes)).collect();
    let manifest_digest = Digest::of(&manifest);
    let blobs = layers.into_iter().chain([config, manifest]).map(|bytes| (Digest::of(&bytes), bytes)).collect();
    Made { blobs, manifest: manifest_digest, layers: digests }
}

impl Made {
    /// As an OCI layout in a tarball, under `name`.
    pub fn archive(&self, name: &str) -> Vec<u8> {
        let size = self.blobs.last().unwrap().1.len() as u64;
        let mut descriptor = Descriptor::new(OCI_MANIFEST, self.manifest, size);
        descriptor.annotations = Some([("org.opencontainers.image.ref.name".to_owned(), name.to_owned())].into());
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [descriptor]});
        let mut archive = Layer::new().file("index.json", &serde_json::to_vec(&index).unwrap());
        for (digest, bytes) in &self.blobs {
            let path = format!("blobs/sha256/{}", digest.hex());
            archive = archive.file(&path, bytes);
        }
        archive.done()
    }
}

/// A tarball in the making.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn file(self, path: &str, contents: &[u8]) -> Self {
        self.entry(path, tar::EntryType::Regular, "", 0o644, contents)
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(path, tar::EntryType::Directory, "", mode, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Symlink, target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, tar::EntryType::Link, target, 0o644, b"")
    }

    pub fn entry(mut self, path: &str, kind: tar::EntryType, link: &str, mode: u32, contents: &[u8]) -> Self {
        let mut header = header(path, kind, link, mode, contents.len() as u64);
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
        self
    }

    pub fn raw(mut self, header: &tar::Header, contents: &[u8]) -> Self {
        self.0.append(header, contents).unwrap();
        self
    }

    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A header that holds whatever it is told, however hostile.
pub fn header(path: &str, kind: tar::EntryType, link: &str, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
