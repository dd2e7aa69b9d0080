//! Opening files that others have put where they are.

use std::{fs::File, io, os::fd::AsFd, path::Path};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// Opens a regular file for reading. The path counts from `root` as if that were the root
/// of the file system: neither `..` nor a symbolic link leads out of it.
///
/// # Errors
///
/// If there is none, or it is no regular file.
pub(crate) fn open_in_root(root: impl AsFd, path: &Path) -> io::Result<File> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    open(root, path, resolve)
}

/// Opens a regular file of this directory for reading, and follows no link.
///
/// # Errors
///
/// If there is none, or it is no regular file.
pub(crate) fn open_in_directory(directory: impl AsFd, name: &str) -> io::Result<File> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    open(directory, Path::new(name), resolve)
}

fn open(directory: impl AsFd, path: &Path, resolve: ResolveFlag) -> io::Result<File> {
    // Opening a pipe would wait for its other end, opening a terminal make it ours.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve);
    let file = File::from(openat2(directory, path, how)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("inside"), "x").unwrap();
        symlink(outside.path(), folder.path().join("out")).unwrap();
        symlink("/inside", folder.path().join("absolute")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let root = File::open(folder.path()).unwrap();
        let opens = |path: &str| open_in_root(&root, Path::new(path)).is_ok();
        assert!(opens("/inside") && opens("inside") && opens("../inside") && opens("/absolute"));
        assert!(!opens("/out") && !opens("/pipe") && !opens("/") && !opens("/none"));
        assert!(open_in_directory(&root, "inside").is_ok());
        for name in ["absolute", "out", "pipe", "../inside", "/inside"] {
            assert!(open_in_directory(&root, name).is_err(), "{name}");
        }
    }
}
