//! The file that a recording goes to.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{OpenOptionsExt as _, fchown},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::target::Invoker;

/// A file that was made for a recording. It belongs to whoever called sudo, and only
/// they can read it: it tells what a process did.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    file: File,
    /// Whether it was there before.
    replaced: bool,
}

impl Output {
    pub(super) fn create(
        path: Option<&Path>,
        default_name: &str,
        invoker: Option<&Invoker>,
    ) -> anyhow::Result<Self> {
        let path = path.unwrap_or(Path::new(default_name)).to_owned();
        let replaced = path.exists();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            // In a directory that others can write to, a link could lead root anywhere.
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .with_context(|| {
                let why = if path.is_symlink() {
                    ", which is a symbolic link, and these are not followed"
                } else {
                    ""
                };
                format!(
                    "cannot write the recording to {}{why}; choose another place with -o",
                    path.display()
                )
            })?;
        if let Some((uid, gid)) = invoker.map(Invoker::owner) {
            fchown(&file, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to its owner", path.display()))?;
        }
        Ok(Self { path, file, replaced })
    }

    pub(super) fn file(&self) -> anyhow::Result<File> {
        self.file.try_clone().context("cannot open the recording twice")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless it is a file or device that was there before.
    pub(super) fn remove(&self) {
        if !self.replaced
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("the empty {} stays behind: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbolic_link_is_refused_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let refused = Output::create(Some(&link), "", None).unwrap_err().to_string();
        assert!(refused.contains("symbolic link, and these are not followed"), "{refused}");
        assert!(!file.exists());
        Output::create(Some(&file), "", None).unwrap();
        let nowhere = folder.path().join("none/file");
        let refused = Output::create(Some(&nowhere), "", None).unwrap_err().to_string();
        assert!(!refused.contains("link"), "{refused}");
    }
}
