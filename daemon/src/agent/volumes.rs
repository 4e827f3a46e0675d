//! A pod's volumes, made on the node before its containers.
//!
//! Invariant: a volume lives under the pod's own directory, but for hostPath; removing the pod removes it.
//! Invariant: what comes from a Secret is laid down in memory, never on a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use flotilla_api::k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EmptyDirVolumeSource, HostPathVolumeSource, KeyToPath, Pod, Volume, VolumeProjection,
};
use flotilla_api::quantity;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::debug;

use super::source::{Place, SourceError, Sources, field, resource};

const DEFAULT_MODE: i32 = 0o644;

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
        let path = make_one(sources, pod, place, volume, &dir.join(&volume.name)).await.map_err(|error| {
            SourceError(format!("MountVolume.SetUp failed for volume \"{}\": {error}", volume.name))
        })?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

/// Whether anything in the pod's volumes can change while the pod runs.
pub fn are_projected(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(is_projected)
}

fn is_projected(volume: &Volume) -> bool {
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
        empty_dir(empty, path).map_err(io_error)?;
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
            files.extend(project(sources, pod, place, namespace, projection, source.default_mode).await?);
        }
        files
    } else {
        return Err(SourceError("this kind of volume is not available".into()));
    };
    if holds_secrets(volume) {
        in_memory(path).map_err(io_error)?;
    }
    lay_down(path, &files).map_err(io_error)?;
    Ok(path.to_owned())
}

fn holds_secrets(volume: &Volume) -> bool {
    let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    volume.secret.is_some() || projected.into_iter().any(|source| source.secret.is_some())
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
    namespace: &str,
    projection: &VolumeProjection,
    mode: Option<i32>,
) -> Result<Vec<Projected>, SourceError> {
    if let Some(source) = &projection.config_map {
        let values = sources.config_map(namespace, &source.name).await?;
        let values = present(values, "configmap", &source.name, source.optional)?;
        select(values, source.items.as_deref(), mode, source.optional)
    } else if let Some(source) = &projection.secret {
        let values = present(sources.secret(namespace, &source.name).await?, "secret", &source.name, source.optional)?;
        select(values, source.items.as_deref(), mode, source.optional)
    } else if let Some(source) = &projection.downward_api {
        downward(pod, place, source.items.as_deref().unwrap_or_default(), mode)
    } else {
        Err(SourceError("this kind of projection is not available".into()))
    }
}

/// A file to lay down in a volume.
struct Projected {
    path: String,
    content: Vec<u8>,
    mode: u32,
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
        let files = values.into_iter().map(|(path, content)| Projected { path, content, mode: mode(None) });
        return Ok(files.collect());
    };
    let mut files = Vec::new();
    for item in items {
        match values.remove(&item.key) {
            Some(content) => files.push(Projected { path: item.path.clone(), content, mode: mode(item.mode) }),
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
            Ok(Projected { path: item.path.clone(), content: content.into_bytes(), mode })
        })
        .collect()
}

/// Makes the files be exactly these. Each is replaced at once, so that a reader never sees half of one, and only if it
/// differs, so that a reader who watches is not woken for nothing.
fn lay_down(dir: &Path, files: &[Projected]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let mut kept = BTreeSet::new();
    for file in files {
        let relative = Path::new(&file.path);
        // Validation refuses such paths; they must not reach the disk even if it did not.
        if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} leaves the volume", file.path)));
        }
        let path = dir.join(relative);
        if !is_laid_down(&path, file) {
            replace(&path, file)?;
        }
        kept.extend(path.ancestors().take_while(|part| *part != dir).map(Path::to_path_buf));
    }
    remove_others(dir, &kept)
}

fn is_laid_down(path: &Path, file: &Projected) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        found.is_file() && found.permissions().mode() & 0o777 == file.mode && found.len() == file.content.len() as u64
    }) && fs::read(path).is_ok_and(|content| content == file.content)
}

fn replace(path: &Path, file: &Projected) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let scratch = path.with_file_name(format!("..{}", path.file_name().unwrap_or_default().to_string_lossy()));
    _ = fs::remove_file(&scratch);
    let mut out = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(&scratch)?;
    out.write_all(&file.content)?;
    // The daemon's umask must not decide what the pod may read.
    out.set_permissions(fs::Permissions::from_mode(file.mode))?;
    fs::rename(&scratch, path)
}

/// Removes what is under `dir` and not kept.
fn remove_others(dir: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
        match (kept.contains(&path), is_dir) {
            (true, true) => remove_others(&path, kept)?,
            (true, false) => {}
            (false, true) => fs::remove_dir_all(&path)?,
            (false, false) => fs::remove_file(&path)?,
        }
    }
    Ok(())
}

fn empty_dir(source: &EmptyDirVolumeSource, path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source.size_limit.as_ref().and_then(|limit| quantity::bytes(limit).ok()).filter(|bytes| *bytes > 0);
        let options = limit.map_or("mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
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
        Projected { path: path.into(), content: b"x".to_vec(), mode: 0o640 }
    }

    #[test]
    fn files_are_laid_down_with_their_modes_and_none_leaves_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        lay_down(dir.path(), &[file("a"), file("b/c")]).unwrap();
        let mode = fs::metadata(dir.path().join("b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        for bad in ["../x", "/etc/x", "a/../../x"] {
            assert!(lay_down(dir.path(), &[file(bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_follow_their_source() {
        let dir = tempfile::tempdir().unwrap();
        lay_down(dir.path(), &[file("a"), file("b/c"), file("b/d")]).unwrap();
        let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.path().join(path)).unwrap());
        let before = inode("b/c");
        lay_down(dir.path(), &[Projected { content: b"new".to_vec(), ..file("a") }, file("b/c")]).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"new");
        assert_eq!(inode("b/c"), before, "what did not change stays the same file");
        assert!(!dir.path().join("b/d").exists());
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
            lay_down(&path, &[file("a")]).unwrap();
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
        empty_dir(&source, &volumes.join("v")).unwrap();
        fs::write(volumes.join("v/file"), "x").unwrap();
        remove(&volumes).unwrap();
        assert!(!volumes.exists());
    }
}
