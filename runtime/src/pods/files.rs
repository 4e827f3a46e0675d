//! The files that a sandbox brings into its containers: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`, `/dev/shm`.
//!
//! Invariant: nothing follows a symbolic link out of a container's root file system.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::SandboxSpec;
use super::sandbox::Places;

/// The size of `/dev/shm`, as containerd and Docker have it.
const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// Writes the files and returns where they belong.
pub fn write(places: &Places, spec: &SandboxSpec, ip: Option<Ipv4Addr>) -> io::Result<Vec<(PathBuf, &'static str)>> {
    let files = list(places);
    let texts = [hosts(spec, ip), format!("{}\n", spec.hostname), resolv_conf(spec)];
    for ((path, _), text) in files.iter().zip(texts) {
        fs::write(path, text)?;
    }
    Ok(files)
}

pub fn list(places: &Places) -> Vec<(PathBuf, &'static str)> {
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
        .map(|(name, destination)| (places.state.join(name), destination))
        .into()
}

fn hosts(spec: &SandboxSpec, ip: Option<Ipv4Addr>) -> String {
    let mut text = match spec.host_network {
        true => fs::read_to_string("/etc/hosts").unwrap_or_else(|_| "127.0.0.1\tlocalhost\n".into()),
        false => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
                  fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .into(),
    };
    if let Some(ip) = ip {
        let names = [&spec.full_name, &spec.hostname].into_iter().filter(|name| !name.is_empty());
        let names: Vec<&str> = names.map(String::as_str).collect();
        text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
    for alias in &spec.host_aliases {
        text.push_str(alias);
        text.push('\n');
    }
    text
}

fn resolv_conf(spec: &SandboxSpec) -> String {
    if spec.dns.is_empty() {
        return fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    }
    spec.dns.iter().map(|line| format!("{line}\n")).collect()
}

/// An empty file that a container of any user may write to.
pub fn make_for_all(path: &Path) -> io::Result<()> {
    let file = fs::File::create(path)?;
    // The mask of the process does not count.
    file.set_permissions(fs::Permissions::from_mode(0o666))
}

pub fn mount_shm(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let options = format!("mode=1777,size={SHM_BYTES}");
    Ok(mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// What is not mounted is unmounted already.
pub fn unmount_shm(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a container's working directory where it is missing, as Docker does; a symbolic link on the way is left to
/// the engine.
pub fn make_cwd(rootfs: &Path, cwd: &str) -> io::Result<()> {
    let mut dir = open_dir(None, rootfs.as_os_str().as_encoded_bytes())?;
    for part in cwd.split('/').filter(|part| !part.is_empty()) {
        if part == "." || part == ".." {
            return Ok(());
        }
        dir = match open_dir(Some(&dir), part.as_bytes()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                let name = CString::new(part)?;
                // SAFETY: an open directory and a terminated string.
                if unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o755) } < 0 {
                    return Err(io::Error::last_os_error());
                }
                open_dir(Some(&dir), part.as_bytes())?
            }
            Err(_) => return Ok(()),
            Ok(next) => next,
        };
    }
    Ok(())
}

fn open_dir(parent: Option<&OwnedFd>, name: &[u8]) -> io::Result<OwnedFd> {
    let name = CString::new(name)?;
    let parent = parent.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a terminated string, and a result that nobody else owns.
    let fd = unsafe { libc::openat(parent, name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: checked to be a descriptor above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_directory_is_made_but_not_through_links() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        make_cwd(root.path(), "/srv/app").unwrap();
        assert!(root.path().join("srv/app").is_dir());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        make_cwd(root.path(), "/link/made").unwrap();
        assert!(!outside.path().join("made").exists());
        make_cwd(root.path(), "/../escaped").unwrap();
        assert!(!root.path().parent().unwrap().join("escaped").exists());
    }

    #[test]
    fn the_pod_knows_its_own_name() {
        let spec =
            SandboxSpec { hostname: "web-1".into(), host_aliases: vec!["10.0.0.9 db".into()], ..Default::default() };
        let text = hosts(&spec, Some(Ipv4Addr::new(10, 1, 0, 2)));
        assert!(
            text.contains("127.0.0.1\tlocalhost\n")
                && text.contains("10.1.0.2\tweb-1\n")
                && text.ends_with("10.0.0.9 db\n")
        );
        let named = SandboxSpec { full_name: "web-1.web.default.svc.cluster.local".into(), ..spec };
        let text = hosts(&named, Some(Ipv4Addr::new(10, 1, 0, 2)));
        assert!(text.contains("10.1.0.2\tweb-1.web.default.svc.cluster.local\tweb-1\n"), "{text}");
    }
}
