//! A pod's volumes, made on the node before its containers.
//!
//! Invariant: a volume lives under the pod's own directory, but for hostPath; removing the pod removes it.
//! Invariant: what comes from a Secret is laid down in memory, never on a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod, Volume, VolumeProjection,
};
use flotilla_api::quantity;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::debug;

use super::source::{Place, SourceError, Sources, field, resource};

const DEFAULT_MODE: i32 = 0o644;
/// How often a volume with a token is tried before the pod waits as for any other, and the pause between.
const TOKEN_ATTEMPTS: usize = 8;
const TOKEN_PAUSE: Duration = Duration::from_millis(150);

/// Makes all volumes of a pod under `dir`; gives the path of each by name. Making them again changes nothing in an
/// emptyDir and refreshes what is projected.
///
/// # Errors
/// In kubelet's words, if a source is missing or cannot be laid down.
pub async fn make(
    sources: &Sources,
    pod: &Pod,
    place: &Place,
    dir: &Path,
) -> Result<BTreeMap<String, PathBuf>, SourceError> {
    let mut paths = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let at = dir.join(&volume.name);
        let made = if is_laid_down_already(volume, &at) && holds_token(volume) {
            // It is brought up to date every now and then: a container that comes back waits for nobody.
            Ok(at.clone())
        } else {
            make_in_time(sources, pod, place, volume, &at).await
        };
        let path = match made {
            // A node that is cut off has what it had.
            Err(error) if is_laid_down_already(volume, &at) => {
                debug!(volume = volume.name, %error, "a volume stays as it was");
                at
            }
            made => made.map_err(|error| {
                SourceError(format!("MountVolume.SetUp failed for volume \"{}\" : {error}", volume.name))
            })?,
        };
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

/// As [`make_one`]. The account and the certificate of a new namespace are made a moment after it: they are waited for.
async fn make_in_time(
    sources: &Sources,
    pod: &Pod,
    place: &Place,
    volume: &Volume,
    at: &Path,
) -> Result<PathBuf, SourceError> {
    let attempts = if holds_token(volume) { TOKEN_ATTEMPTS } else { 1 };
    for _ in 1..attempts {
        if let Ok(path) = make_one(sources, pod, place, volume, at).await {
            return Ok(path);
        }
        tokio::time::sleep(TOKEN_PAUSE).await;
    }
    make_one(sources, pod, place, volume, at).await
}

fn is_laid_down_already(volume: &Volume, at: &Path) -> bool {
    is_projected(volume) && at.join(DATA).is_dir()
}

fn holds_token(volume: &Volume) -> bool {
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    sources.into_iter().any(|source| source.service_account_token.is_some())
}

/// Whether anything in the pod's volumes can change while the pod runs.
pub fn are_projected(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(is_projected)
}

/// Whether its files come from the API.
pub fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Lays projected volumes down again, where they exist. One whose source is missing stays as it is.
pub async fn refresh(sources: &Sources, pod: &Pod, place: &Place, dir: &Path) {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|volume| is_projected(volume)) {
        let path = dir.join(&volume.name);
        if path.is_dir()
            && let Err(error) = make_one(sources, pod, place, volume, &path).await
        {
            debug!(volume = volume.name, %error, "a volume is not brought up to date");
        }
    }
}

/// Unmounts what is mounted under a pod's volume directory and removes it.
///
/// # Errors
/// If something cannot be removed.
pub fn remove(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        // Only a volume in memory is a mount; for the others this fails and nothing is lost.
        _ = umount2(&entry?.path(), MntFlags::MNT_DETACH);
    }
    fs::remove_dir_all(dir)
}

async fn make_one(
    sources: &Sources,
    pod: &Pod,
    place: &Place,
    volume: &Volume,
    path: &Path,
) -> Result<PathBuf, SourceError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(host) = &volume.host_path {
        return host_path(host);
    }
    if let Some(empty) = &volume.empty_dir {
        empty_dir(empty, path, fs_group(pod)).map_err(io_error)?;
        return Ok(path.to_owned());
    }
    let files = if let Some(source) = &volume.config_map {
        let values = sources.config_map(namespace, &source.name).await?;
        let values = present(values, "configmap", &source.name, source.optional)?;
        select(values, source.items.as_deref(), source.default_mode, source.optional)?
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.clone().unwrap_or_default();
        let values = present(sources.secret(namespace, &name).await?, "secret", &name, source.optional)?;
        select(values, source.items.as_deref(), source.default_mode, source.optional)?
    } else if let Some(source) = &volume.downward_api {
        downward(pod, place, source.items.as_deref().unwrap_or_default(), source.default_mode)?
    } else if let Some(source) = &volume.projected {
        let mut files = Vec::new();
        for projection in source.sources.iter().flatten() {
            files.extend(project(sources, pod, place, path, projection, source.default_mode).await?);
        }
        files
    } else {
        return Err(SourceError("this kind of volume is not available".into()));
    };
    if holds_secrets(volume) {
        in_memory(path).map_err(io_error)?;
    }
    lay_down(path, &files, fs_group(pod)).map_err(io_error)?;
    Ok(path.to_owned())
}

fn holds_secrets(volume: &Volume) -> bool {
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    volume.secret.is_some() || projected.into_iter().any(|source| source.secret.is_some()) || holds_token(volume)
}

/// Mounts memory at `path`, unless it is there.
fn in_memory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    if let Some(parent) = path.parent()
        && device(parent)? != device(path)?
    {
        return Ok(());
    }
    Ok(mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))?)
}

async fn project(
    sources: &Sources,
    pod: &Pod,
    place: &Place,
    path: &Path,
    projection: &VolumeProjection,
    mode: Option<i32>,
) -> Result<Vec<Projected>, SourceError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    if let Some(source) = &projection.config_map {
        let values = sources.config_map(namespace, &source.name).await?;
        let values = present(values, "configmap", &source.name, source.optional)?;
        select(values, source.items.as_deref(), mode, source.optional)
    } else if let Some(source) = &projection.secret {
        let values = present(sources.secret(namespace, &source.name).await?, "secret", &source.name, source.optional)?;
        select(values, source.items.as_deref(), mode, source.optional)
    } else if let Some(source) = &projection.downward_api {
        downward(pod, place, source.items.as_deref().unwrap_or_default(), mode)
    } else if let Some(source) = &projection.service_account_token {
        let current = fs::read_to_string(path.join(&source.path)).ok();
        let token = sources.token(pod, source, current).await?;
        let owner = common_user(pod);
        let given = mode.unwrap_or(DEFAULT_MODE) as u32 & 0o777;
        // One user or group that reads it is enough.
        let mode = if owner.is_some() || fs_group(pod).is_some() { 0o600 } else { given };
        Ok(vec![Projected { path: source.path.clone(), content: token.into_bytes(), mode, owner }])
    } else {
        Err(SourceError("this kind of projection is not available".into()))
    }
}

/// A file to lay down in a volume.
struct Projected {
    path: String,
    content: Vec<u8>,
    mode: u32,
    /// `None`: root.
    owner: Option<u32>,
}

/// The group that owns the pod's volumes.
fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// The user that all containers run as, where the pod says so.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let all = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(all));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then_some(first).and_then(|user| u32::try_from(user).ok())
}

fn present(
    values: Option<BTreeMap<String, Vec<u8>>>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>, SourceError> {
    match values {
        Some(values) => Ok(values),
        None if optional == Some(true) => Ok(BTreeMap::new()),
        None => Err(SourceError(format!("{kind} \"{name}\" not found"))),
    }
}

fn select(
    mut values: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<Vec<Projected>, SourceError> {
    let mode = |mode: Option<i32>| mode.or(default_mode).unwrap_or(DEFAULT_MODE) as u32 & 0o777;
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let files =
            values.into_iter().map(|(path, content)| Projected { path, content, mode: mode(None), owner: None });
        return Ok(files.collect());
    };
    let mut files = Vec::new();
    for item in items {
        match values.remove(&item.key) {
            Some(content) => {
                files.push(Projected { path: item.path.clone(), content, mode: mode(item.mode), owner: None })
            }
            None if optional == Some(true) => {}
            None => return Err(SourceError(format!("references non-existent config key: {}", item.key))),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    place: &Place,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Vec<Projected>, SourceError> {
    items
        .iter()
        .map(|item| {
            let content = match (&item.field_ref, &item.resource_field_ref) {
                (Some(selector), _) => field(pod, place, selector)?,
                (None, Some(selector)) => resource(pod, None, selector)?,
                (None, None) => String::new(),
            };
            let mode = item.mode.or(default_mode).unwrap_or(DEFAULT_MODE) as u32 & 0o777;
            Ok(Projected { path: item.path.clone(), content: content.into_bytes(), mode, owner: None })
        })
        .collect()
}

/// Makes the volume hold exactly these files, all at once, as kubelet does: they are in a directory of their own, to
/// which `..data` points, and each name in the volume leads through it. Nothing is written if nothing changed, so that a
/// reader who watches is not woken for nothing.
fn lay_down(dir: &Path, files: &[Projected], group: Option<u32>) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    // Validation refuses such paths; they must not reach the disk even if it did not.
    for file in files {
        let mut components = Path::new(&file.path).components();
        let inside = components.clone().all(|component| matches!(component, Component::Normal(_)));
        let hidden = components.next().is_none_or(|first| first.as_os_str().as_bytes().starts_with(b".."));
        if !inside || hidden {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} leaves the volume", file.path)));
        }
    }
    let data = dir.join(DATA);
    if !is_laid_down(&data, files, group)? {
        let fresh = fresh_name();
        for file in files {
            write(&dir.join(&fresh), file, group)?;
        }
        if files.is_empty() {
            DirBuilder::new().mode(0o755).create(dir.join(&fresh))?;
        }
        link(Path::new(&fresh), &data)?;
    }
    let names: BTreeSet<OsString> = files.iter().filter_map(|file| first_component(&file.path)).collect();
    for name in &names {
        let (at, target) = (dir.join(name), Path::new(DATA).join(name));
        if !fs::read_link(&at).is_ok_and(|found| found == target) {
            link(&target, &at)?;
        }
    }
    remove_others(dir, &names)
}

/// The link through which all files of a volume are reached.
const DATA: &str = "..data";

fn first_component(path: &str) -> Option<OsString> {
    Path::new(path).components().next().map(|first| first.as_os_str().to_owned())
}

/// A name that no directory of the volume has had: by the clock as kubelet's, and a number of our own.
fn fresh_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let now = jiff::Timestamp::now();
    format!(
        "..{}.{}-{}",
        now.strftime("%Y_%m_%d_%H_%M_%S"),
        now.subsec_nanosecond(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whether `data` leads to these files and no others.
fn is_laid_down(data: &Path, files: &[Projected], group: Option<u32>) -> io::Result<bool> {
    if fs::read_link(data).is_err() || !data.is_dir() {
        return Ok(false);
    }
    let same = |file: &Projected| {
        let path = data.join(&file.path);
        let found = fs::symlink_metadata(&path);
        found.is_ok_and(|found| {
            found.is_file()
                && found.permissions().mode() & 0o777 == mode(file, group)
                && group.is_none_or(|group| found.gid() == group)
                && file.owner.is_none_or(|owner| found.uid() == owner)
                && found.len() == file.content.len() as u64
        }) && fs::read(&path).is_ok_and(|content| content == file.content)
    };
    Ok(files.iter().all(same) && count(data)? == files.iter().map(|file| &file.path).collect::<BTreeSet<_>>().len())
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// The pod's group may read what the pod may.
fn mode(file: &Projected, group: Option<u32>) -> u32 {
    if group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn write(root: &Path, file: &Projected, group: Option<u32>) -> io::Result<()> {
    let path = root.join(&file.path);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let mut out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    out.write_all(&file.content)?;
    if group.is_some() || file.owner.is_some() {
        std::os::unix::fs::fchown(&out, file.owner, group)?;
    }
    // The daemon's umask must not decide what the pod may read.
    out.set_permissions(fs::Permissions::from_mode(mode(file, group)))
}

/// Makes `at` a link to `target`, in one step for whoever reads through it.
fn link(target: &Path, at: &Path) -> io::Result<()> {
    let scratch = at.with_file_name("..tmp");
    _ = fs::remove_file(&scratch);
    std::os::unix::fs::symlink(target, &scratch)?;
    if fs::symlink_metadata(at).is_ok_and(|found| found.is_dir()) {
        fs::remove_dir_all(at)?;
    }
    fs::rename(&scratch, at)
}

/// Removes what is in the volume beside these names and what `..data` leads to.
fn remove_others(dir: &Path, names: &BTreeSet<OsString>) -> io::Result<()> {
    let current = fs::read_link(dir.join(DATA))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == DATA || current.as_os_str() == name || names.contains(&name) {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn empty_dir(source: &EmptyDirVolumeSource, path: &Path, group: Option<u32>) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source.size_limit.as_ref().and_then(|limit| quantity::bytes(limit).ok()).filter(|bytes| *bytes > 0);
        let options = limit.map_or("mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    }
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    // What is made in it belongs to the pod's group too.
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, SourceError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(io_error)?;
        }
        "FileOrCreate" if !path.exists() => {
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&path).map_err(io_error)?;
        }
        _ => {}
    }
    let found = fs::metadata(&path);
    let fits = match (kind, &found) {
        ("", _) => true,
        (_, Err(_)) => false,
        ("Directory" | "DirectoryOrCreate", Ok(found)) => found.is_dir(),
        ("File" | "FileOrCreate", Ok(found)) => found.is_file(),
        ("Socket", Ok(found)) => found.file_type().is_socket(),
        ("CharDevice", Ok(found)) => found.file_type().is_char_device(),
        ("BlockDevice", Ok(found)) => found.file_type().is_block_device(),
        _ => false,
    };
    match fits {
        true => Ok(path),
        false => Err(SourceError(format!("hostPath type check failed: {} is not a {kind}", source.path))),
    }
}

fn io_error(error: io::Error) -> SourceError {
    SourceError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> Projected {
        Projected { path: path.into(), content: b"x".to_vec(), mode: 0o640, owner: None }
    }

    #[test]
    fn files_are_laid_down_with_their_modes_and_none_leaves_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        lay_down(dir.path(), &[file("a"), file("b/c")], None).unwrap();
        let mode = || fs::metadata(dir.path().join("b/c")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o640);
        lay_down(dir.path(), &[file("b/c")], Some(0)).unwrap();
        assert_eq!(mode(), 0o640);
        lay_down(dir.path(), &[Projected { mode: 0o400, ..file("b/c") }], Some(0)).unwrap();
        assert_eq!(mode(), 0o440, "the pod's group may read it");
        for bad in ["../x", "/etc/x", "a/../../x", "..data", "..x/y", ""] {
            assert!(lay_down(dir.path(), &[file(bad)], None).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_follow_their_source_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let target = || fs::read_link(at("..data")).unwrap();
        lay_down(dir.path(), &[file("a"), file("b/c"), file("b/d")], None).unwrap();
        let before = target();
        lay_down(dir.path(), &[file("a"), file("b/c"), file("b/d")], None).unwrap();
        assert_eq!(target(), before, "what did not change is not laid down again");
        let new = || Projected { content: b"new".to_vec(), ..file("a") };
        lay_down(dir.path(), &[new(), file("b/c")], None).unwrap();
        assert_ne!(target(), before);
        assert!(!at("").join(&before).exists(), "what was there before is gone");
        assert_eq!(fs::read(at("a")).unwrap(), b"new");
        assert_eq!(fs::read_link(at("a")).unwrap(), Path::new("..data/a"));
        assert!(at("b/c").exists() && !at("b/d").exists());
        lay_down(dir.path(), &[new()], None).unwrap();
        assert!(fs::symlink_metadata(at("b")).is_err());
        lay_down(dir.path(), &[], None).unwrap();
        assert_eq!(fs::read_dir(at("..data")).unwrap().count(), 0);
    }

    #[test]
    fn a_volume_of_plain_files_becomes_one_of_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        fs::write(dir.path().join("b/c"), "old").unwrap();
        fs::write(dir.path().join("a"), "old").unwrap();
        lay_down(dir.path(), &[file("a"), file("b/c")], None).unwrap();
        assert_eq!(fs::read(dir.path().join("b/c")).unwrap(), b"x");
        assert!(fs::read_link(dir.path().join("a")).is_ok());
    }

    #[test]
    fn one_user_owns_the_token_if_all_containers_run_as_it() {
        let user =
            |spec: serde_json::Value| common_user(&serde_json::from_value(serde_json::json!({"spec": spec})).unwrap());
        let as_user = |user: i64| serde_json::json!({"name": "c", "securityContext": {"runAsUser": user}});
        assert_eq!(user(serde_json::json!({"containers": [as_user(7), as_user(7)]})), Some(7));
        assert_eq!(user(serde_json::json!({"containers": [as_user(7), as_user(8)]})), None);
        assert_eq!(
            user(serde_json::json!({"containers": [{"name": "c"}], "securityContext": {"runAsUser": 9}})),
            Some(9)
        );
        assert_eq!(user(serde_json::json!({"containers": [{"name": "c"}]})), None);
    }

    #[test]
    fn keys_are_selected_and_missing_ones_named() {
        let values = || BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
        let item = |key: &str| KeyToPath { key: key.into(), path: "p".into(), mode: Some(0o600), ..Default::default() };
        let picked = select(values(), Some(&[item("k")]), None, None).unwrap();
        assert_eq!((picked[0].path.as_str(), picked[0].mode), ("p", 0o600));
        assert!(select(values(), Some(&[item("z")]), None, None).is_err_and(|error| error.0.contains("key: z")));
        assert!(select(values(), Some(&[item("z")]), None, Some(true)).unwrap().is_empty());
    }

    #[test]
    fn what_is_secret_is_laid_down_in_memory_once() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("volumes");
        let path = volumes.join("v");
        for _ in 0..2 {
            in_memory(&path).unwrap();
            lay_down(&path, &[file("a")], None).unwrap();
        }
        assert_eq!(nix::sys::statfs::statfs(&path).unwrap().filesystem_type(), nix::sys::statfs::TMPFS_MAGIC);
        umount2(&path, MntFlags::empty()).unwrap();
        assert!(!path.join("a").exists(), "it was mounted once");
        remove(&volumes).unwrap();
        let volume = |json| serde_json::from_value::<Volume>(json).unwrap();
        assert!(holds_secrets(&volume(serde_json::json!({"name": "v", "secret": {"secretName": "s"}}))));
        let projected = serde_json::json!({"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}});
        assert!(holds_secrets(&volume(projected)));
        assert!(!holds_secrets(&volume(serde_json::json!({"name": "v", "configMap": {"name": "s"}}))));
    }

    #[test]
    fn an_empty_dir_in_memory_is_mounted_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("volumes");
        let source = EmptyDirVolumeSource { medium: Some("Memory".into()), ..Default::default() };
        empty_dir(&source, &volumes.join("v"), None).unwrap();
        fs::write(volumes.join("v/file"), "x").unwrap();
        remove(&volumes).unwrap();
        assert!(!volumes.exists());
    }
}
