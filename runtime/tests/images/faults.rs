//! Registries that hang, break off, or lie: small servers that misbehave exactly so.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flotilla_runtime::images::manifest::OCI_MANIFEST;
use flotilla_runtime::images::{HostConfig, PullError, PullProgress, RegistryConfig};
use tokio::sync::watch;

use crate::support::*;

/// What happens to a request for a layer.
#[derive(Clone, Copy, PartialEq)]
pub enum Layers {
    Served,
    /// Half of what is left, and then the connection is closed.
    Halved,
    /// Half of what is left, and then silence.
    Hung,
    Spoiled,
    Endless,
    Missing,
}

/// A registry of one image under any name.
pub struct Server {
    port: u16,
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// `behave` decides by the number of the layer request, from 0.
    pub fn start(made: Made, behave: impl Fn(usize) -> Layers + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), requests.clone());
        let thread = std::thread::spawn(move || {
            let mut hung = Vec::new();
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                hung.extend(serve(stream.unwrap(), &made, &counted, &behave));
            }
        });
        Self { port, stop, requests, thread: Some(thread) }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn layer_requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers one request; gives the connection back if it is to hang.
fn serve(
    mut stream: TcpStream,
    made: &Made,
    counter: &AtomicUsize,
    behave: &impl Fn(usize) -> Layers,
) -> Option<TcpStream> {
    // A client that lost interest may not be running to say so.
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => request.extend(&buffer[..count]),
            _ => return None,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let path = request.split(' ').nth(1).unwrap();
    let name = path.rsplit('/').next().unwrap();
    let named = made.blobs.iter().find(|(digest, _)| digest.to_string() == name);
    let (digest, bytes) = match path.contains("/manifests/") {
        true => made.blobs.last().unwrap(),
        false => named.unwrap(),
    };
    let mut behaviour = Layers::Served;
    if made.layers.contains(digest) {
        behaviour = behave(counter.fetch_add(1, Ordering::SeqCst));
    }
    let range = request.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let start: usize = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let rest = &bytes[start..];
    let status = match (behaviour, start) {
        (Layers::Missing, _) => "404 Not Found".to_owned(),
        (_, 0) => "200 OK".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{}", bytes.len() - 1, bytes.len()),
    };
    let length =
        if behaviour == Layers::Endless { String::new() } else { format!("Content-Length: {}\r\n", rest.len()) };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {OCI_MANIFEST}\r\n{length}Connection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
    match behaviour {
        Layers::Served | Layers::Missing => drop(stream.write_all(rest)),
        Layers::Spoiled => drop(stream.write_all(&vec![7; rest.len()])),
        Layers::Endless => while stream.write_all(&[0; 65536]).is_ok() {},
        Layers::Halved => drop(stream.write_all(&rest[..rest.len() / 2])),
        Layers::Hung => {
            let _ = stream.write_all(&rest[..rest.len() / 2]);
            return Some(stream);
        }
    }
    None
}

pub fn made() -> Made {
    let noise: Vec<u8> = (0..400_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    image(vec![Layer::new().file("noise", &noise).done()])
}

pub fn impatient(host: &str) -> Node {
    Node::new(RegistryConfig { stall_timeout_ms: 1000, ..insecure(&[host]) })
}

#[tokio::test]
async fn a_registry_that_hangs_is_named_and_the_next_pull_goes_on() {
    let server = Server::start(made(), |request| if request == 0 { Layers::Hung } else { Layers::Served });
    let node = impatient(&server.host());
    let name = format!("{}/a:b", server.host());
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.to_string(), format!("registry {} sent nothing for 1 s", server.host()));
    let (sender, progress) = watch::channel(PullProgress::default());
    let image = node.images.pull(&name, None, sender).await.unwrap();
    assert_eq!(progress.borrow().done_bytes, progress.borrow().total_bytes);
    assert!(node.mount(&image, "c1").join("noise").exists());
    assert_eq!(server.layer_requests(), 2);
}

#[tokio::test]
async fn a_registry_that_accepts_and_says_nothing_is_stalled() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let start = Instant::now();
    let error = impatient(&host).pull(&format!("{host}/a:b")).await.unwrap_err();
    assert!(matches!(error, PullError::Stalled { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_broken_download_is_resumed() {
    let server = Server::start(made(), |request| if request < 2 { Layers::Halved } else { Layers::Served });
    let node = impatient(&server.host());
    let image = node.pull(&format!("{}/a:b", server.host())).await.unwrap();
    assert!(node.mount(&image, "c1").join("noise").exists());
    assert_eq!(server.layer_requests(), 3);
}

#[tokio::test]
async fn a_registry_that_always_breaks_off_is_given_up() {
    let server = Server::start(made(), |_| Layers::Halved);
    let error = impatient(&server.host()).pull(&format!("{}/a:b", server.host())).await.unwrap_err();
    assert!(matches!(error, PullError::Interrupted { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_digest_is_said_with_both_digests_and_nothing_is_kept() {
    let made = made();
    let layer = made.layers[0];
    let server = Server::start(made, |request| if request == 0 { Layers::Spoiled } else { Layers::Served });
    let node = impatient(&server.host());
    let name = format!("{}/a:b", server.host());
    let error = node.pull(&name).await.unwrap_err();
    assert!(
        matches!(error, PullError::DigestMismatch { expected, actual, .. } if expected == layer && actual != layer)
    );
    assert!(error.to_string().contains(&layer.to_string()), "{error}");
    node.pull(&name).await.unwrap();
}

#[tokio::test]
async fn a_bad_resumed_download_starts_again() {
    let server = Server::start(made(), |request| match request {
        0 => Layers::Hung,
        1 => Layers::Spoiled,
        _ => Layers::Served,
    });
    let node = impatient(&server.host());
    let name = format!("{}/a:b", server.host());
    node.pull(&name).await.unwrap_err();
    node.pull(&name).await.unwrap();
    assert_eq!(server.layer_requests(), 3);
}

#[tokio::test]
async fn a_layer_that_does_not_end_is_cut_off() {
    let server = Server::start(made(), |_| Layers::Endless);
    let error = impatient(&server.host()).pull(&format!("{}/a:b", server.host())).await.unwrap_err();
    assert!(matches!(error, PullError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_missing_layer_is_not_found() {
    let server = Server::start(made(), |_| Layers::Missing);
    let error = impatient(&server.host()).pull(&format!("{}/a:b", server.host())).await.unwrap_err();
    assert_eq!(error.reason(), "NotFound");
}

#[tokio::test]
async fn pulls_of_one_image_share_the_download() {
    let server = Server::start(made(), |_| Layers::Served);
    let node = impatient(&server.host());
    let name = format!("{}/a:b", server.host());
    let pulls = futures::future::join_all((0..8).map(|_| node.pull(&name))).await;
    assert!(pulls.iter().all(Result::is_ok));
    assert_eq!(server.layer_requests(), 1);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_what_the_next_one_uses() {
    let server = Server::start(made(), |request| if request == 0 { Layers::Hung } else { Layers::Served });
    let node = Node::insecure(&[&server.host()]);
    let name = format!("{}/a:b", server.host());
    let (sender, mut progress) = watch::channel(PullProgress::default());
    {
        let pull = node.images.pull(&name, None, sender);
        tokio::pin!(pull);
        tokio::select! {
            result = &mut pull => panic!("{result:?}"),
            _ = progress.wait_for(|progress| progress.done_bytes > 500_000) => {}
        }
    }
    let node = node.restart_with(insecure(&[&server.host()]));
    node.pull(&name).await.unwrap();
    assert_eq!(server.layer_requests(), 2);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_passed_over_when_it_fails() {
    let (mirror, registry) = (Server::start(made(), |_| Layers::Spoiled), Server::start(made(), |_| Layers::Served));
    let http = || HostConfig { insecure_http: true, ..HostConfig::default() };
    let mirrored = HostConfig { mirrors: vec![format!("http://{}", mirror.host())], ..http() };
    let hosts = [(mirror.host(), http()), (registry.host(), mirrored)].into();
    let node = Node::new(RegistryConfig { hosts, ..RegistryConfig::default() });
    node.pull(&format!("{}/a:b", registry.host())).await.unwrap();
    assert_eq!((mirror.layer_requests(), registry.layer_requests()), (1, 1));
}

#[tokio::test]
async fn a_mirror_over_plain_http_must_be_configured_so() {
    let mirrored = HostConfig { mirrors: vec!["http://127.0.0.1:1".into()], ..HostConfig::default() };
    let hosts = [("example.org".to_owned(), mirrored)].into();
    let node = Node::new(RegistryConfig { hosts, ..RegistryConfig::default() });
    let error = node.pull("example.org/a:b").await.unwrap_err();
    assert_eq!(error.reason(), "BadConfiguration");
    assert!(error.to_string().contains("insecure_http"), "{error}");
}

const CHILD_STORE: &str = "IMAGES_TEST_STORE";
const CHILD_IMAGE: &str = "IMAGES_TEST_IMAGE";

/// Not a test of its own, but the process that the next one kills.
#[tokio::test]
async fn pulled_by_a_process_that_is_killed() {
    let (Ok(store), Ok(image)) = (std::env::var(CHILD_STORE), std::env::var(CHILD_IMAGE)) else { return };
    let host = image.split('/').next().unwrap();
    let images = flotilla_runtime::images::Images::open(store.as_ref(), insecure(&[host])).unwrap();
    let _ = images.pull(&image, None, watch::channel(PullProgress::default()).0).await;
}

fn pull_and_kill_when(name: &str, store: &std::path::Path, what: &str, condition: impl Fn() -> bool) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::pulled_by_a_process_that_is_killed"])
        .env(CHILD_STORE, store)
        .env(CHILD_IMAGE, name)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually(what, condition);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_pull_whose_process_is_killed_is_finished_by_the_next() {
    let server = Server::start(made(), |request| if request == 0 { Layers::Hung } else { Layers::Served });
    let name = format!("{}/a:b", server.host());
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("images");
    let received = || -> u64 {
        let files = std::fs::read_dir(store.join("ingest")).into_iter().flatten();
        files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
    };
    pull_and_kill_when(&name, &store, "half of the layer is there", || received() > 500_000);
    let node = Node::open(directory, insecure(&[&server.host()]));
    assert!(node.images.list().is_empty());
    let image = node.pull(&name).await.unwrap();
    assert_eq!(server.layer_requests(), 2);
    assert!(node.mount(&image, "c1").join("noise").exists());
}

#[tokio::test]
async fn unpacking_whose_process_is_killed_leaves_no_half_layer() {
    let layers = (0..12).map(|layer| {
        let files = (0..100).fold(Layer::new(), |tar, file| tar.file(&format!("{layer}-{file}"), &[layer; 3000]));
        files.done()
    });
    let server = Server::start(image(layers.collect()), |_| Layers::Served);
    let name = format!("{}/a:b", server.host());
    for unpacked_before_kill in [0, 4, 8] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("images");
        let unpacked = || std::fs::read_dir(store.join("layers")).map_or(0, Iterator::count);
        let unpacking = || std::fs::read_dir(store.join("tmp")).is_ok_and(|mut files| files.next().is_some());
        pull_and_kill_when(&name, &store, "layers are there", || unpacked() > unpacked_before_kill && unpacking());
        let node = Node::open(directory, insecure(&[&server.host()]));
        let image = node.pull(&name).await.unwrap();
        let root = node.mount(&image, "c1");
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 12 * 100);
        assert!((0..12u8).all(|layer| std::fs::read(root.join(format!("{layer}-99"))).unwrap() == [layer; 3000]));
    }
}

#[tokio::test]
async fn a_full_disk_is_said_to_be_full() {
    let directory = tempfile::tempdir().unwrap();
    let small = directory.path().join("images");
    std::fs::create_dir(&small).unwrap();
    nix::mount::mount(Some("tmpfs"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=3m")).unwrap();
    let server = Server::start(made(), |_| Layers::Served);
    let node = Node::open(directory, insecure(&[&server.host()]));
    let error = node.pull(&format!("{}/a:b", server.host())).await.unwrap_err();
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(error.reason(), "DiskFull", "{error}");
}
