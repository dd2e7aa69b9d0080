//! The first file system of an emulated machine: a folder, archived as the kernel
//! wants it.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{output, show};

pub(super) struct Image {
    folder: PathBuf,
    /// Everything in it, relative to it, a folder before what is in it.
    entries: Vec<PathBuf>,
}

impl Image {
    pub(super) fn new(folder: PathBuf) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        let mut image = Self { folder, entries: Vec::new() };
        // The places where the machine finds its kernel's file systems.
        for place in ["bin", "dev", "proc", "sys", "tmp"] {
            image.add_folder(Path::new(place))?;
        }
        Ok(image)
    }

    /// A program, in `/bin`, with the libraries that it is linked to where it expects them.
    pub(super) fn add_program(&mut self, program: &Path, name: &str) -> Result<()> {
        self.add_file(program, &Path::new("bin").join(name))?;
        for library in libraries(program)? {
            let place = library.strip_prefix("/").unwrap_or(&library).to_owned();
            if !self.entries.contains(&place) {
                self.add_file(&library, &place)?;
            }
        }
        Ok(())
    }

    /// An executable text, in the uppermost folder.
    pub(super) fn add_script(&mut self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.entries.push(PathBuf::from(name));
        Ok(())
    }

    fn add_file(&mut self, source: &Path, place: &Path) -> Result<()> {
        if let Some(folder) = place.parent() {
            self.add_folder(folder)?;
        }
        // Follows links, so that the file itself is at the place.
        fs::copy(source, self.folder.join(place))
            .with_context(|| format!("cannot copy {}", source.display()))?;
        self.entries.push(place.to_owned());
        Ok(())
    }

    fn add_folder(&mut self, place: &Path) -> Result<()> {
        let path = self.folder.join(place);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut above: Vec<&Path> = place.ancestors().collect();
        above.reverse();
        for folder in above.into_iter().filter(|folder| !folder.as_os_str().is_empty()) {
            if !self.entries.iter().any(|entry| entry == folder) {
                self.entries.push(folder.to_owned());
            }
        }
        Ok(())
    }

    /// Archives it beside its folder, everything owned by root.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let path = self.folder.with_extension("cpio");
        let archive =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut cpio = Command::new("cpio");
        cpio.current_dir(&self.folder)
            .args(["--create", "--null", "--quiet", "--format=newc", "--owner=0:0"])
            .stdin(Stdio::piped())
            .stdout(archive);
        let shown = show(&cpio);
        eprintln!("$ {shown} > {}", path.display());
        let mut child = cpio.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        let names: Vec<&[u8]> =
            self.entries.iter().map(|entry| entry.as_os_str().as_bytes()).collect();
        // Dropped at the end of the statement, which ends the list.
        let told = child.stdin.take().map(|mut list| list.write_all(&names.join(&0)));
        let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
        told.transpose().with_context(|| format!("`{shown}` does not listen"))?;
        if !status.success() {
            bail!("`{shown}` failed: {status}");
        }
        Ok(path)
    }
}

/// The files that the dynamic loader would map besides the program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    // The loader's own list; it fails for a program that needs no loader.
    match output(Command::new("ldd").arg(program)) {
        Ok(list) => Ok(list.lines().filter_map(library).collect()),
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<PathBuf> {
    let (path, _address) = line.trim().rsplit_once(" (")?;
    let path = path.rsplit_once(" => ").map_or(path, |(_, path)| path);
    path.starts_with('/').then(|| PathBuf::from(OsStr::new(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_loaders_list() {
        let list = "\tlinux-vdso.so.1 (0x00007fec5528c000)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fec55094000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007fec5528e000)\n\
                    \tlibnone.so => not found\n";
        let found: Vec<PathBuf> = list.lines().filter_map(library).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }
}
