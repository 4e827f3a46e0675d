//! How long from asking for a container that runs `/bin/true` to its recorded exit, and what a shim weighs.
//!
//! `cargo run --release -p flotilla-runtime --example start_bench [-- ROUNDS]`, as root, with busybox-static installed;
//! `runc` is measured beside when it is there: as an engine of ours, and bare (`runc run`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use flotilla_runtime::Pods;
use flotilla_runtime::engine::EngineChoice;
use flotilla_runtime::pods::{Config, ContainerSpec, SandboxSpec};
use flotilla_runtime::state::Phase;

const BUSYBOX: &str = "/usr/bin/busybox";
const RUNC: &str = "/usr/sbin/runc";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let first = args.next();
    if first.as_deref() == Some("shim".as_ref()) {
        return flotilla_runtime::shim_main(args);
    }
    let rounds = first.and_then(|n| n.to_str()?.parse().ok()).unwrap_or(20);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    match runtime.block_on(all(rounds)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

async fn all(rounds: usize) -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("start-bench-{}", std::process::id()));
    let rootfs = rootfs(&dir)?;
    let mut result = ours(&dir.join("l"), EngineChoice::Libcontainer, &rootfs, rounds).await;
    if result.is_ok() && Path::new(RUNC).exists() {
        result = ours(&dir.join("r"), EngineChoice::Command { path: RUNC.into() }, &rootfs, rounds).await;
        bare_runc(&dir, &rootfs, rounds)?;
    }
    fs::remove_dir_all(&dir)?;
    result
}

fn rootfs(dir: &Path) -> Result<PathBuf, Failure> {
    let rootfs = dir.join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy(BUSYBOX, rootfs.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/true"))?;
    Ok(rootfs)
}

async fn ours(dir: &Path, engine: EngineChoice, rootfs: &Path, rounds: usize) -> Result<(), Failure> {
    let name = match &engine {
        EngineChoice::Libcontainer => "shim with libcontainer".to_owned(),
        EngineChoice::Command { path } => format!("shim with {}", path.display()),
    };
    let config = Config {
        root: dir.join("pods"),
        run: dir.join("run"),
        engine,
        cgroup_parent: format!("/flotilla-bench-{}", std::process::id()),
        ..Config::default()
    };
    let parent = flotilla_runtime::cgroup::Cgroup::new(&config.cgroup_parent)?;
    let pods = Pods::open(config).await?;
    let began = Instant::now();
    let pod = pods
        .create_sandbox(SandboxSpec {
            id: "bench".into(),
            uid: "bench".into(),
            hostname: "bench".into(),
            host_network: true,
            ..SandboxSpec::default()
        })
        .await?;
    println!("{name}: sandbox made in {:.1} ms", ms(began.elapsed()));
    let (mut started, mut ended) = (Vec::new(), Vec::new());
    for attempt in 0..rounds {
        let spec = ContainerSpec {
            name: "true".into(),
            attempt: attempt as u32,
            rootfs: rootfs.into(),
            args: vec!["/bin/true".into()],
            log_path: dir.join("true.log"),
            ..ContainerSpec::default()
        };
        let key = format!("true-{attempt}");
        let mut changes = pods.subscribe();
        let began = Instant::now();
        pods.create_container("bench", spec).await?;
        pods.start_container("bench", &key).await?;
        started.push(began.elapsed());
        while !has_ended(&pods, &key) {
            changes.recv().await?;
        }
        ended.push(began.elapsed());
        pods.remove_container("bench", &key).await?;
    }
    println!("{name}: create and start {}", spread(started));
    println!("{name}: create to recorded exit {}", spread(ended));
    if let Some(pid) = pod.shim_pid {
        println!("{name}: shim {}", weight(pid));
    }
    pods.remove_sandbox("bench").await?;
    parent.remove(Duration::from_secs(5))?;
    pods.close().await;
    Ok(())
}

fn has_ended(pods: &Pods, key: &str) -> bool {
    let Some(pod) = pods.get("bench") else { return false };
    pod.containers.iter().any(|c| c.key() == key && matches!(c.phase, Phase::Exited(_)))
}

fn bare_runc(dir: &Path, rootfs: &Path, rounds: usize) -> Result<(), Failure> {
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle)?;
    Command::new(RUNC).arg("spec").current_dir(&bundle).status()?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["root"]["path"] = serde_json::json!(rootfs);
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    let mut ended = Vec::new();
    for round in 0..rounds {
        let began = Instant::now();
        let mut run = Command::new(RUNC);
        run.args([
            "--root".as_ref(),
            dir.join("runc").as_os_str(),
            "run".as_ref(),
            "--bundle".as_ref(),
            bundle.as_os_str(),
        ]);
        if !run.arg(format!("bench-{round}")).stdin(Stdio::null()).stdout(Stdio::null()).status()?.success() {
            return Err("runc run failed".into());
        }
        ended.push(began.elapsed());
    }
    println!("bare runc: run to end {}", spread(ended));
    Ok(())
}

fn weight(pid: i32) -> String {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("?").trim().to_owned()
    };
    format!(
        "RSS {}, PSS {}, threads {}",
        field("status", "VmRSS:"),
        field("smaps_rollup", "Pss:"),
        field("status", "Threads:")
    )
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).or(times.last()).copied().unwrap_or_default();
    format!("median {:.1} ms, p90 {:.1} ms (n={})", ms(at(50)), ms(at(90)), times.len())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
