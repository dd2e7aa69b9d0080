//! Kernels as Debian packages them: the newest of a series that apt offers, kept
//! unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{find_in_path, output, run as run_command};

/// A kernel with the drivers of virtual machines built in: nothing to load before the
/// first program runs.
const FLAVOUR: &str = "-cloud-amd64";

/// The kernel's file. What is unpacked already is taken if apt offers nothing newer, or
/// cannot fetch it.
pub(super) fn kernel(series: &str, folder: &Path) -> Result<PathBuf> {
    let unpacked = newest(series, &folders(folder)?).map(str::to_owned);
    let fetched = offered(series).and_then(|package| fetch(&package, folder));
    match (fetched, unpacked) {
        (Ok(kernel), _) => Ok(kernel),
        (Err(error), Some(unpacked)) => {
            eprintln!("{error:#}; {unpacked} is here and taken instead");
            fetch(&unpacked, folder)
        }
        (Err(error), None) => Err(error),
    }
}

fn folders(folder: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn offered(series: &str) -> Result<String> {
    if find_in_path("apt-get").is_none() || find_in_path("dpkg").is_none() {
        bail!("kernels come from Debian's archive, and this system has no apt");
    }
    let mut search = Command::new("apt-cache");
    search.args(["search", "--names-only", &format!("^linux-image-{series}.")]);
    let found = output(&mut search)?;
    let name = |line: &str| line.split_once(' ').map(|(name, _description)| name.to_owned());
    let names: Vec<String> = found.lines().filter_map(name).collect();
    newest(series, &names)
        .map(str::to_owned)
        .with_context(|| format!("apt offers no linux-image-{series}.*{FLAVOUR}"))
}

/// The package of the series with the highest number.
fn newest<'a>(series: &str, packages: &'a [String]) -> Option<&'a str> {
    let version = |package: &&str| -> Option<Vec<u32>> {
        let version = package.strip_prefix("linux-image-")?.strip_suffix(FLAVOUR)?;
        version.strip_prefix(series)?.strip_prefix('.')?;
        Some(version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect())
    };
    packages
        .iter()
        .map(String::as_str)
        .filter(|package| version(package).is_some())
        .max_by_key(|package| version(package))
}

/// Downloads and unpacks the package, unless that is done.
fn fetch(package: &str, folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join(package);
    if !unpacked.exists() {
        let fresh = folder.join(format!("{package}.fresh"));
        if fresh.exists() {
            fs::remove_dir_all(&fresh).context("cannot remove what an interrupted run left")?;
        }
        fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
        run_command(
            Command::new("apt-get").current_dir(&fresh).args(["download", "--quiet", package]),
        )?;
        let archive = files(&fresh, |name| name.ends_with(".deb"))?;
        run_command(Command::new("dpkg").arg("--extract").arg(&archive).arg(&fresh))?;
        // The modules are most of it, and nothing needs one.
        for rest in ["lib", "usr"] {
            let rest = fresh.join(rest);
            if rest.exists() {
                fs::remove_dir_all(&rest)
                    .with_context(|| format!("cannot remove {}", rest.display()))?;
            }
        }
        fs::remove_file(&archive)
            .with_context(|| format!("cannot remove {}", archive.display()))?;
        fs::rename(&fresh, &unpacked)
            .with_context(|| format!("cannot rename {}", fresh.display()))?;
    }
    files(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))
}

/// The first file of such a name.
fn files(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    folders(folder)?
        .iter()
        .find(|name| wanted(name))
        .map(|name| folder.join(name))
        .with_context(|| format!("{} lacks a file that the package should have", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_the_series_is_taken() {
        let packages = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "linux-image-cloud-amd64",
        ]
        .map(str::to_owned);
        assert_eq!(newest("6.1", &packages), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest("6.12", &packages), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest("6.6", &packages), None);
    }
}
