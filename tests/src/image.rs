//! Images made by other tools: `umoci` packs files of this machine into an OCI layout.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const NGINX_CONF: &str = "daemon off;
user root;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 64; }
http {
  access_log off;
  server { listen 80; location / { return 200 \"$hostname\\n\"; } }
}
";

/// What a shell script in a container may want.
const APPLETS: [&str; 22] = [
    "sh", "sleep", "echo", "cat", "hostname", "id", "env", "true", "false", "ls", "kill", "yes", "tar", "wc", "head",
    "stty", "test", "ps", "mkdir", "rm", "nc", "wget",
];

/// An OCI layout with one image in it.
pub struct Layout {
    pub dir: PathBuf,
    pub tag: &'static str,
}

/// Debian's busybox with a shell.
#[must_use]
pub fn busybox(dir: &Path) -> Layout {
    pack(dir, "busybox", &["--config.cmd", "/bin/sh"], |root| {
        copy(Path::new("/bin/busybox"), &root.join("bin/busybox"));
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("an applet can be linked");
        }
        fs::create_dir_all(root.join("tmp")).expect("a directory can be made");
    })
}

/// Debian's nginx with its libraries; it answers each request with its host's name.
#[must_use]
pub fn nginx(dir: &Path) -> Layout {
    pack(dir, "nginx", &["--config.cmd", "/usr/sbin/nginx", "--config.exposedports", "80/tcp"], |root| {
        copy_with_libraries(Path::new("/usr/sbin/nginx"), root);
        for empty in ["run", "tmp", "var/log/nginx", "var/lib/nginx"] {
            fs::create_dir_all(root.join(empty)).expect("a directory can be made");
        }
        write(&root.join("etc/nginx/nginx.conf"), NGINX_CONF);
    })
}

/// An image with a file that does not compress, so that pulling it takes a while.
#[must_use]
pub fn bulky(dir: &Path, size_bytes: usize) -> Layout {
    pack(dir, "bulky", &["--config.cmd", "/bin/sleep", "--config.cmd", "600"], |root| {
        copy(Path::new("/bin/busybox"), &root.join("bin/sleep"));
        let noise: Vec<u8> = (0..size_bytes).map(|_| rand::random()).collect();
        fs::write(root.join("noise"), noise).expect("a file can be written");
    })
}

fn pack(dir: &Path, tag: &'static str, config: &[&str], fill: impl FnOnce(&Path)) -> Layout {
    let layout = dir.join(tag);
    let bundle = dir.join(format!("{tag}-bundle"));
    let image = format!("{}:{tag}", layout.display());
    umoci(&["init", "--layout", &layout.display().to_string()]);
    umoci(&["new", "--image", &image]);
    umoci(&["unpack", "--image", &image, &bundle.display().to_string()]);
    let root = bundle.join("rootfs");
    write(&root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
    write(&root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n");
    fill(&root);
    umoci(&["repack", "--image", &image, &bundle.display().to_string()]);
    umoci(&[&["config", "--image", &image], config].concat());
    fs::remove_dir_all(&bundle).expect("a bundle can be removed");
    Layout { dir: layout, tag }
}

fn umoci(arguments: &[&str]) {
    run("umoci", arguments);
}

/// Runs a tool that must succeed.
pub(crate) fn run(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{tool} is needed ({error}): make setup"));
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file has a directory")).expect("a directory can be made");
    fs::write(path, text).expect("a file can be written");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a file has a directory")).expect("a directory can be made");
    fs::copy(from, to).unwrap_or_else(|error| panic!("{} is needed ({error}): make setup", from.display()));
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).expect("a file's mode can be set");
}

fn copy_with_libraries(program: &Path, root: &Path) {
    let inside = |path: &Path| root.join(path.strip_prefix("/").expect("paths are absolute"));
    copy(program, &inside(program));
    let output = Command::new("ldd").arg(program).output().expect("ldd is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`
    for library in text.split_ascii_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), &inside(Path::new(library)));
    }
}
