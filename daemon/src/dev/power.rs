//! Switching nodes and their daemons on and off, and pulling cables.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use super::error::{DevError, Doing};
use super::fabric::{MAX_NODES, Nat};
use super::process::Process;
use super::ready::START_WAIT;
use super::record::NodeRecord;
use super::space::Space;
use super::{Cluster, cgroups, remove_dir};
use crate::config::DEFAULT_PORT;

impl Cluster {
    /// Gives the next node its number, name and directories, without switching it on.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add_node(&mut self) -> Result<String, DevError> {
        self.add(None)
    }

    /// As [`Self::add_node`], for a node behind a router of its own that masquerades. Its address on the cluster's network is
    /// the router's, and its daemon knows only one behind it.
    ///
    /// # Errors
    /// If there are too many.
    pub fn add_node_behind(&mut self, nat: Nat) -> Result<String, DevError> {
        self.add(Some(nat))
    }

    fn add(&mut self, nat: Option<Nat>) -> Result<String, DevError> {
        let count = self.record.nodes.len() + 1;
        let too_many = DevError::TooManyNodes { asked: count, max: MAX_NODES };
        let number = u8::try_from(count).ok().filter(|_| count <= MAX_NODES).ok_or(too_many)?;
        let name = format!("node-{number}");
        let (name_of, roaming) = (name.clone(), nat.is_some());
        let node = NodeRecord { number, host: number, name: name_of, space: None, daemon: None, roaming, nat };
        self.record.nodes.push(node);
        self.places.save(&self.record)?;
        Ok(name)
    }

    /// Starts the daemon of a node, and switches the node on first if it is off.
    ///
    /// # Errors
    /// If the system refuses. That the daemon then ends again is found by waiting for it.
    pub fn start(&mut self, node: &str, join: Option<&str>) -> Result<Process, DevError> {
        if let Ok(running) = self.daemon(node) {
            return Ok(running);
        }
        let space = match self.space(node) {
            Ok(space) => space,
            Err(DevError::NodeOff(_)) => self.switch_on(node)?,
            Err(error) => return Err(error),
        };
        let daemon = space.spawn_detached(self.daemon_command(node, join)?)?;
        self.change(node, |record| record.daemon = Some(daemon))?;
        Ok(daemon)
    }

    /// What a machine finds after power came back: its disks, and nothing in `/run` or in control groups.
    fn switch_on(&mut self, node: &str) -> Result<Space, DevError> {
        let NodeRecord { number, host, nat, .. } = *self.node(node)?;
        cgroups::remove(&self.places.node_cgroup(node))?;
        let run = self.places.node_run(node);
        remove_dir(&run)?;
        for dir in [&run, &self.places.data(node)] {
            fs::create_dir_all(dir).doing(|| format!("cannot make {}", dir.display()))?;
        }
        let space = Space::machine(&self.places.dir(), node)?;
        self.change(node, |record| (record.space, record.daemon) = (Some(space), None))?;
        match nat {
            None => self.record.fabric.plug_in(&space, number, host)?,
            Some(nat) => self.record.fabric.plug_in_behind(&self.places.dir(), &space, number, host, nat)?,
        }
        Ok(space)
    }

    fn daemon_command(&self, node: &str, join: Option<&str>) -> Result<Command, DevError> {
        let places = &self.places;
        let address = SocketAddr::new(self.address(node)?.into(), DEFAULT_PORT).to_string();
        let log = places.log(node);
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&log)
            .doing(|| format!("cannot write {}", log.display()))?;
        let errors = log.try_clone().doing(|| "cannot write the log".into())?;
        let mut command = Command::new(&self.record.binary);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"FLOTILLA_")) {
            command.env_remove(name);
        }
        command.arg("up").arg("--config").arg(places.config());
        command.arg("--data-dir").arg(places.data(node)).arg("--run-dir").arg(places.node_run(node));
        command.args(["--name", node]);
        match self.node(node)?.roaming {
            true => command.args(["--listen", &format!("0.0.0.0:{DEFAULT_PORT}")]),
            false => command.args(["--listen", &address, "--advertise", &address]),
        };
        command.args(["--cgroup-parent", &places.node_cgroup(node)]);
        // A secret among the arguments could be read by everyone on the machine.
        command.envs(join.map(|token| ("FLOTILLA_JOIN", token)));
        command.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
        Ok(command)
    }

    /// From its next start on, the daemon of a node finds out the machine's addresses by itself.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn let_roam(&mut self, node: &str) -> Result<(), DevError> {
        self.change(node, |record| record.roaming = true)
    }

    /// SIGKILL for the daemon alone; its containers run on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_daemon(&self, node: &str) -> Result<(), DevError> {
        let daemon = self.daemon(node)?;
        daemon.signal(Signal::SIGKILL)?;
        self.wait_ended(daemon, node)
    }

    /// SIGTERM for the daemon alone, as systemd stops it.
    ///
    /// # Errors
    /// If it does not run, or does not end in time.
    pub fn stop_daemon(&self, node: &str) -> Result<(), DevError> {
        let daemon = self.daemon(node)?;
        daemon.signal(Signal::SIGTERM)?;
        self.wait_ended(daemon, node)
    }

    fn wait_ended(&self, daemon: Process, node: &str) -> Result<(), DevError> {
        match daemon.wait_gone(START_WAIT) {
            true => Ok(()),
            false => Err(self.too_slow(format!("the end of {node}'s daemon"), node)),
        }
    }

    /// The machine is gone at once: its cable first, so that not even a reset leaves it, then all its processes.
    ///
    /// # Errors
    /// If it is off already.
    pub fn pull_plug(&self, node: &str) -> Result<(), DevError> {
        let space = self.space(node)?;
        self.cut(node)?;
        space.kill()
    }

    /// Holds the daemon still without ending it.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self, node: &str) -> Result<(), DevError> {
        let daemon = self.daemon(node)?;
        daemon.signal(Signal::SIGSTOP)?;
        match daemon.wait_paused(START_WAIT) {
            true => Ok(()),
            false => Err(self.too_slow(format!("the pause of {node}'s daemon"), node)),
        }
    }

    /// # Errors
    /// If the daemon does not run.
    pub fn resume(&self, node: &str) -> Result<(), DevError> {
        self.daemon(node)?.signal(Signal::SIGCONT)
    }

    /// Pulls the node's cable out.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn cut(&self, node: &str) -> Result<(), DevError> {
        self.record.fabric.set_link(self.node(node)?.number, false)
    }

    /// Puts the node's cable back.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn heal(&self, node: &str) -> Result<(), DevError> {
        self.record.fabric.set_link(self.node(node)?.number, true)
    }

    /// Gives a node another address, as networks do that hand them out anew. A daemon that runs is not told.
    ///
    /// # Errors
    /// If there is no such node, or the system refuses.
    pub fn renumber(&mut self, node: &str) -> Result<Ipv4Addr, DevError> {
        let NodeRecord { number, host, .. } = *self.node(node)?;
        // Host numbers above those of nodes are free.
        let next = if host == number { number + MAX_NODES as u8 } else { number };
        if let Ok(space) = self.space(node) {
            self.record.fabric.renumber(&space, host, next)?;
        }
        self.change(node, |record| record.host = next)?;
        self.address(node)
    }

    fn change(&mut self, node: &str, change: impl FnOnce(&mut NodeRecord)) -> Result<(), DevError> {
        let error = self.no_node(node);
        let record = self.record.nodes.iter_mut().find(|record| record.name == node).ok_or(error)?;
        change(record);
        self.places.save(&self.record)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::Options;
    use super::*;

    /// A program that takes the daemon's arguments and does nothing: what is tested are the plugs and cables.
    fn idle_program(dir: &std::path::Path) -> PathBuf {
        let path = dir.join("idle");
        fs::write(&path, "#!/bin/sh\nexec sleep 600\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Takes its cluster down when the test ends, however it ends.
    struct Held {
        options: Options,
        _dir: tempfile::TempDir,
    }

    impl Drop for Held {
        fn drop(&mut self) {
            Cluster::down(&self.options.root, &self.options.name).unwrap();
        }
    }

    fn in_a_box(name: &str) -> Held {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{name}-{}", std::process::id());
        let options = Options { root: dir.path().join("c"), name, binary: idle_program(dir.path()), subnet: None };
        Held { options, _dir: dir }
    }

    #[test]
    fn a_node_goes_through_stopped_off_and_on_again() {
        let held = in_a_box("power");
        let mut cluster = Cluster::create(&held.options).unwrap();
        let node = cluster.add_node().unwrap();
        let state = |cluster: &Cluster| (cluster.states()[0].state, cluster.states()[0].linked);
        assert_eq!(state(&cluster), ("off", false));
        let first = cluster.start(&node, None).unwrap();
        assert_eq!(state(&cluster), ("running", true));
        assert_eq!(cluster.start(&node, None).unwrap(), first);
        cluster.pause(&node).unwrap();
        assert_eq!(state(&cluster), ("paused", true));
        cluster.resume(&node).unwrap();
        cluster.kill_daemon(&node).unwrap();
        assert_eq!(state(&cluster), ("stopped", true));
        cluster.start(&node, None).unwrap();
        cluster.cut(&node).unwrap();
        assert_eq!(state(&cluster), ("running", false));
        cluster.heal(&node).unwrap();
        fs::write(cluster.places().node_run(&node).join("left"), "").unwrap();
        cluster.pull_plug(&node).unwrap();
        assert_eq!(state(&cluster), ("off", false));
        assert!(matches!(cluster.kill_daemon(&node), Err(DevError::NoDaemon(_))));
        cluster.start(&node, None).unwrap();
        assert_eq!(state(&cluster), ("running", true));
        assert!(!cluster.places().node_run(&node).join("left").exists());
    }

    #[test]
    fn a_cluster_goes_away_whole_even_without_its_record() {
        let held = in_a_box("down");
        let options = &held.options;
        let mut cluster = Cluster::create(options).unwrap();
        assert!(matches!(Cluster::create(options), Err(DevError::Exists { .. })));
        let node = cluster.add_node().unwrap();
        let daemon = cluster.start(&node, None).unwrap();
        let holders = [cluster.space(&node).unwrap().holder, cluster.record.fabric.space.holder];
        fs::remove_file(cluster.places().dir().join("cluster.json")).unwrap();
        assert!(Cluster::down(&options.root, &options.name).unwrap());
        assert!(!Cluster::down(&options.root, &options.name).unwrap());
        assert!(holders.iter().all(|holder| holder.wait_gone(Duration::ZERO)) && !daemon.is_alive());
        assert!(!cluster.places().dir().exists() && !cluster.places().run().exists());
        assert_eq!(Cluster::list(&options.root), Vec::<String>::new());
    }
}
