//! The life of containers, as the daemon sees it, with real ones.

mod common;

use std::time::Duration;

use common::{Node, exit, output, read, run, running, said, sandbox, state};
use flotilla_runtime::cgroup::{Cgroup, Limits};
use flotilla_runtime::pods::{LastWords, LogRotation, Mount, MountKind, PodsError, SandboxSpec, User};

#[tokio::test]
async fn a_container_runs_to_its_end_and_leaves_nothing() {
    let node = Node::new();
    let pods = node.open().await;
    let pod = pods.create_sandbox(sandbox("a")).await.unwrap();
    assert!(pod.ready && pod.ip.is_none());
    let key = run(&pods, "a", node.container("main", "echo out; echo err >&2; exit 7")).await;
    let ended = exit(&pods, "a", &key).await;
    assert_eq!((ended.code, ended.signal, ended.oom_killed, ended.reason.as_str()), (7, None, false, "Error"));
    let log = read(&node.log_path("main"));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_by_key(|line| line.contains("stderr"));
    for (line, rest) in lines.iter().zip(["stdout F out", "stderr F err"]) {
        let (time, text) = line.split_once(' ').unwrap();
        assert_eq!((time.len(), text), (30, rest), "{log}");
    }
    assert_eq!(output(&pods, "a", &key).await.len(), "out\nerr\n".len());
    pods.remove_container("a", &key).await.unwrap();
    assert!(state(&pods, "a", &key).is_none());
    pods.remove_sandbox("a").await.unwrap();
    assert!(pods.list().is_empty());
    assert!(!node.config.root.join("a").exists() && !node.config.run.join("a").exists());
    assert!(!Cgroup::new(&format!("{}/poduid-a", node.config.cgroup_parent)).unwrap().exists());
    pods.close().await;
}

#[tokio::test]
async fn term_first_and_kill_after_the_grace() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let polite =
        run(&pods, "a", node.container("polite", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")).await;
    let deaf = run(&pods, "a", node.container("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done")).await;
    said(&pods, "a", &polite, "up").await;
    said(&pods, "a", &deaf, "up").await;
    running(&pods, "a", &polite).await;
    running(&pods, "a", &deaf).await;
    pods.stop_container("a", &polite, Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit(&pods, "a", &polite).await.code, 3);
    pods.stop_container("a", &deaf, Duration::from_millis(100)).await.unwrap();
    assert_eq!(exit(&pods, "a", &deaf).await.code, 137);
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn limits_hold_and_an_oom_kill_is_told_as_such() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut greedy = node.container("greedy", "tail /dev/zero");
    greedy.limits.memory_bytes = Some(16 << 20);
    let greedy = run(&pods, "a", greedy).await;
    let ended = exit(&pods, "a", &greedy).await;
    assert_eq!((ended.code, ended.oom_killed, ended.reason.as_str()), (137, true, "OOMKilled"), "{ended:?}");

    // The shell that can't fork ends, so another one tries: the container itself stays to be looked at.
    let mut bounded = node.container("bounded", "(for i in $(seq 30); do sleep 30 & done); exec sleep 30");
    bounded.limits = Limits {
        pids: Some(10),
        cpu_quota_us: Some(20_000),
        cpu_period_us: Some(100_000),
        cpu_shares: Some(512),
        ..Limits::default()
    };
    let bounded = run(&pods, "a", bounded).await;
    said(&pods, "a", &bounded, "can't fork").await;
    let group = Cgroup::new(&format!("{}/poduid-a/{bounded}", node.config.cgroup_parent)).unwrap();
    assert!(group.usage().pids <= 10);
    if !flotilla_runtime::cgroup::is_v2() {
        let cpu = std::path::Path::new("/sys/fs/cgroup/cpu").join(group.path().strip_prefix("/").unwrap());
        assert_eq!(read(&cpu.join("cpu.cfs_quota_us")).trim(), "20000");
        assert_eq!(read(&cpu.join("cpu.shares")).trim(), "512");
    }
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn a_pods_own_limit_is_above_its_containers() {
    let node = Node::new();
    let pods = node.open().await;
    let mut spec = sandbox("a");
    spec.limits.memory_bytes = Some(16 << 20);
    pods.create_sandbox(spec).await.unwrap();
    let key = run(&pods, "a", node.container("main", "tail /dev/zero")).await;
    assert_eq!(exit(&pods, "a", &key).await.reason, "OOMKilled");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn a_bad_command_is_an_exit_with_words() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut bad = node.container("bad", "");
    bad.args = vec!["/no/such/file".into()];
    let error = pods.create_container("a", bad).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/file"), "{error}");
    let ended = exit(&pods, "a", "bad-0").await;
    assert_eq!((ended.code, ended.reason.as_str()), (127, "StartError"), "{ended:?}");
    assert!(ended.message.contains("/no/such/file"), "{ended:?}");
    pods.remove_container("a", "bad-0").await.unwrap();

    let mut broken = node.container("broken", "");
    std::fs::write(broken.rootfs.join("bin/broken"), "\x7fELF, but not really").unwrap();
    std::process::Command::new("chmod").arg("+x").arg(broken.rootfs.join("bin/broken")).status().unwrap();
    broken.args = vec!["/bin/broken".into()];
    let broken = run(&pods, "a", broken).await;
    assert_eq!(exit(&pods, "a", &broken).await.code, 126);
    assert!(output(&pods, "a", &broken).await.contains("/bin/broken"));
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn what_a_container_leaves_as_its_last_words_is_in_its_exit() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let leaving = |name: &str, script: &str| {
        let mut spec = node.container(name, script);
        spec.user = User { uid: 1234, gid: 1234, additional_gids: vec![] };
        spec.last_words = Some(LastWords { path: "/dev/termination-log".into(), max_bytes: 20, or_log: true });
        spec
    };
    for (name, script, words) in [
        (
            "writes",
            "echo to-the-log; echo 0123456789 0123456789 bye > /dev/termination-log; exit 3",
            "6789 0123456789 bye\n",
        ),
        ("prints", "echo to-the-log; exit 3", "to-the-log\n"),
        ("succeeds", "echo to-the-log", ""),
        ("goes-on", "cd /dev; rm termination-log; ln -s /etc/hostname termination-log; exit 0", ""),
    ] {
        let key = run(&pods, "a", leaving(name, script)).await;
        assert_eq!(exit(&pods, "a", &key).await.message, words, "{name}");
    }
    let silent = run(&pods, "a", node.container("silent", "echo to-the-log; exit 3")).await;
    assert_eq!(exit(&pods, "a", &silent).await.message, "");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn containers_that_share_their_processes_share_nothing_of_the_node() {
    let node = Node::new();
    let pods = node.open().await;
    let spec = SandboxSpec { share_pid: true, ..sandbox("a") };
    let ready = pods.create_sandbox(spec).await.unwrap();
    let first = run(&pods, "a", node.container("first", "sleep 1234 & echo up; sleep 4321")).await;
    said(&pods, "a", &first, "up").await;
    let looks = "ps -o pid,user,args; kill -9 1; kill 1; ls /proc/1/root/; cat /proc/1/exe";
    let mut plain = node.container("plain", looks);
    let mut tracer =
        node.container("tracer", "exec 2>&1; ls -A /proc/1/root/ /proc/1/fd/ && echo looked; echo > /proc/1/exe");
    plain.user = User { uid: 65535, gid: 65535, additional_gids: vec![] };
    tracer.capabilities_add = vec!["SYS_PTRACE".into()];
    let plain = run(&pods, "a", plain).await;
    assert_eq!(exit(&pods, "a", &plain).await.code, 1);
    let seen = output(&pods, "a", &plain).await;
    assert!(seen.contains("/pause pause") && seen.contains("sleep 1234") && seen.contains("sleep 4321"), "{seen}");
    let denied = |path: &str| seen.contains(&format!("{path}: Permission denied"));
    assert!(denied("/proc/1/root/") && denied("'/proc/1/exe'"), "{seen}");
    let tracer = run(&pods, "a", tracer).await;
    assert_ne!(exit(&pods, "a", &tracer).await.code, 0);
    let seen = output(&pods, "a", &tracer).await;
    assert!(seen.starts_with("/proc/1/fd/:\n\n/proc/1/root/:\nlooked\n") && seen.contains("Text file busy"), "{seen}");
    // What a container leaves behind ends with it, and all with the pod.
    pods.stop_container("a", &first, Duration::ZERO).await.unwrap();
    pods.remove_container("a", &first).await.unwrap();
    let last = run(&pods, "a", node.container("last", "ps -o args; sleep 5678")).await;
    said(&pods, "a", &last, "pause").await;
    assert!(!output(&pods, "a", &last).await.contains("sleep 1234"));
    let shim = ready.shim_pid.unwrap();
    let children = read(std::path::Path::new(&format!("/proc/{shim}/task/{shim}/children")));
    assert_eq!(children.split_whitespace().count(), 2, "pause and the container: {children}");
    pods.remove_sandbox("a").await.unwrap();
    let is_gone = |pid: &&str| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(children.split_whitespace().all(|pid| is_gone(&pid)));
}

#[tokio::test]
async fn a_container_is_as_its_specification_says() {
    let node = Node::new();
    let pods = node.open().await;
    let mut spec = sandbox("a");
    spec.dns = vec!["nameserver 10.9.8.7".into()];
    pods.create_sandbox(spec).await.unwrap();
    let source = node.dir.path().join("volume");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "from the volume\n").unwrap();
    let script = "id; pwd; cat /data/file /etc/resolv.conf; hostname; echo V=$V; echo x >/data/y; echo x >/scratch/y; \
                  mount -t tmpfs none /tmp; mkdir /new; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
                  cat /proc/1/oom_score_adj; echo done";
    let mut spec = node.container("main", script);
    spec.user = User { uid: 1000, gid: 1001, additional_gids: vec![1002] };
    spec.cwd = "/srv/made".into();
    spec.env = vec![("V".into(), "a b=c".into())];
    spec.read_only_rootfs = true;
    spec.no_new_privileges = true;
    spec.oom_score_adj = Some(500);
    spec.mounts = vec![
        Mount { destination: "/data".into(), kind: MountKind::Bind { source }, read_only: true },
        Mount {
            destination: "/scratch".into(),
            kind: MountKind::Tmpfs { size_bytes: Some(1 << 20) },
            read_only: false,
        },
    ];
    let key = run(&pods, "a", spec).await;
    let text = said(&pods, "a", &key, "done").await;
    for wanted in [
        "uid=1000 gid=1001 groups=1002",
        "/srv/made",
        "from the volume",
        "nameserver 10.9.8.7",
        "\na\n",
        "V=a b=c",
        "can't create /data/y: Read-only",
        "mount: permission denied",
        "can't create directory '/new': Read-only",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "\n500\n",
    ] {
        assert!(text.contains(wanted), "no {wanted:?} in {text}");
    }
    assert!(!text.contains("/scratch/y"), "{text}");
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn a_privileged_container_may_mount() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let mut spec = node.container("main", "mount -t tmpfs none /tmp && ls /dev && echo done");
    spec.privileged = true;
    let key = run(&pods, "a", spec).await;
    assert_eq!(exit(&pods, "a", &key).await.code, 0, "{}", output(&pods, "a", &key).await);
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn logs_rotate_by_size_and_long_lines_come_in_pieces() {
    let mut node = Node::new();
    node.config.log = LogRotation { max_bytes: 100_000, max_files: 3 };
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; seq 20000; echo the-end";
    let mut spec = node.container("main", script);
    std::os::unix::fs::symlink("busybox", spec.rootfs.join("bin/tr")).unwrap();
    spec.limits = Limits::default();
    let key = run(&pods, "a", spec).await;
    assert_eq!(exit(&pods, "a", &key).await.code, 0);
    let dir = node.log_path("main").parent().unwrap().to_owned();
    let mut sizes: Vec<u64> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 100_000), "{sizes:?}");
    let text = output(&pods, "a", &key).await;
    assert!(text.ends_with("19999\n20000\nthe-end\n"));
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn usage_is_told_per_pod_and_container() {
    let node = Node::new();
    let pods = node.open().await;
    pods.create_sandbox(sandbox("a")).await.unwrap();
    let key =
        run(&pods, "a", node.container("main", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo up; sleep 60"))
            .await;
    said(&pods, "a", &key, "up").await;
    let usage = pods.stats("a").unwrap();
    assert!(usage.pod.cpu_ns > 0 && usage.pod.memory_working_set_bytes > 0 && usage.pod.pids >= 1, "{usage:?}");
    assert_eq!(usage.containers.len(), 1);
    assert!(pods.node_stats().memory_total_bytes > usage.pod.memory_usage_bytes);
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn what_is_not_sensible_is_refused() {
    let node = Node::new();
    let pods = node.open().await;
    for id in ["", "../x", "a/b", ".hidden"] {
        let error = pods.create_sandbox(sandbox(id)).await.unwrap_err();
        assert!(matches!(error, PodsError::Invalid(_)), "{id:?}: {error}");
    }
    pods.create_sandbox(sandbox("a")).await.unwrap();
    assert!(matches!(pods.create_sandbox(sandbox("a")).await, Err(PodsError::Exists(_))));
    let mut nameless = node.container("../x", "true");
    nameless.name = "../x".into();
    assert!(pods.create_container("a", nameless).await.is_err());
    let mut empty = node.container("empty", "");
    empty.args.clear();
    assert!(pods.create_container("a", empty).await.is_err());
    let twice = node.container("twice", "sleep 60");
    pods.create_container("a", twice.clone()).await.unwrap();
    assert!(pods.create_container("a", twice).await.is_err());
    assert!(pods.remove_container("a", "twice-0").await.is_err());
    pods.stop_container("a", "twice-0", Duration::from_secs(20)).await.unwrap();
    pods.remove_container("a", "twice-0").await.unwrap();
    pods.remove_sandbox("a").await.unwrap();
    pods.remove_sandbox("a").await.unwrap();
}

#[tokio::test]
async fn many_pods_at_once() {
    let node = Node::new();
    let pods = node.open().await;
    let one = |n: usize| {
        let (pods, node) = (&pods, &node);
        async move {
            let id = format!("pod{n}");
            pods.create_sandbox(sandbox(&id)).await.unwrap();
            let key = run(pods, &id, node.container(&format!("main{n}"), &format!("echo {n}; exit {n}"))).await;
            assert_eq!(exit(pods, &id, &key).await.code, n as i32);
            assert_eq!(output(pods, &id, &key).await, format!("{n}\n"));
            pods.remove_sandbox(&id).await.unwrap();
        }
    };
    futures::future::join_all((0..12).map(one)).await;
    assert!(pods.list().is_empty());
}
