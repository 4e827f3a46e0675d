//! The default engine: youki's libcontainer, called as a library.
//!
//! Invariant: called only in a process with one thread (see the module above).

use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};

use super::capabilities::Held;
use super::launch::Launch;
use super::{At, Engine, EngineError, chain};

pub struct Libcontainer;

impl Engine for Libcontainer {
    fn create(&self, at: At<'_>, bundle: &Path, console: Option<&Path>) -> Result<i32, EngineError> {
        let container = builder(at, Launch::plain())?
            .with_console_socket(console)
            .as_init(bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()
            .map_err(failed)?;
        container.pid().map(|pid| pid.as_raw()).ok_or_else(|| EngineError::Failed("no init process".into()))
    }

    fn start(&self, at: At<'_>) -> Result<(), EngineError> {
        load(at)?.start().map_err(failed)
    }

    /// libcontainer does not give the container's seccomp profile to further processes, so the launcher loads it. That
    /// takes CAP_SYS_ADMIN until `execve`, which the bounding set then takes away again.
    fn exec(&self, at: At<'_>, bundle: &Path, process: &Path, console: Option<&Path>) -> Result<i32, EngineError> {
        let seccomp = profile_of(bundle)?;
        if seccomp.is_some() {
            lend_sys_admin(process)?;
        }
        let pid = builder(at, Launch::with(seccomp))?
            .with_console_socket(console)
            .as_tenant()
            .with_process(Some(process))
            .with_detach(true)
            .build()
            .map_err(failed)?;
        Ok(pid.as_raw())
    }

    fn delete(&self, at: At<'_>) -> Result<(), EngineError> {
        if !at.root.join(at.id).exists() {
            return Ok(());
        }
        load(at)?.delete(true).map_err(failed)
    }
}

fn builder(at: At<'_>, launch: Launch) -> Result<ContainerBuilder, EngineError> {
    let builder = ContainerBuilder::new(at.id.to_owned(), SyscallType::default()).with_executor(launch);
    builder.with_root_path(at.root).and_then(ContainerBuilder::validate_id).map_err(failed)
}

fn load(at: At<'_>) -> Result<Container, EngineError> {
    Container::load(at.root.join(at.id)).map_err(failed)
}

fn profile_of(bundle: &Path) -> Result<Option<LinuxSeccomp>, EngineError> {
    let spec = Spec::load(bundle.join("config.json")).map_err(|error| EngineError::Failed(chain(&error)))?;
    Ok(spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()))
}

fn lend_sys_admin(path: &Path) -> Result<(), EngineError> {
    let io = |source| EngineError::Io { path: path.into(), source };
    let text = std::fs::read(path).map_err(io)?;
    let bad = |error: serde_json::Error| EngineError::Failed(error.to_string());
    let mut process: Process = serde_json::from_slice(&text).map_err(bad)?;
    if process.no_new_privileges() == Some(true) || !Held::now().contains("CAP_SYS_ADMIN") {
        return Ok(());
    }
    let Some(mut lent) = process.capabilities().clone() else { return Ok(()) };
    let with_admin = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut set = set.clone().unwrap_or_default();
        set.insert(oci_spec::runtime::Capability::SysAdmin);
        Some(set)
    };
    let (effective, permitted) = (with_admin(lent.effective()), with_admin(lent.permitted()));
    lent.set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(lent));
    std::fs::write(path, serde_json::to_vec(&process).map_err(bad)?).map_err(io)
}

fn failed(error: libcontainer::error::LibcontainerError) -> EngineError {
    EngineError::Failed(chain(&error))
}
