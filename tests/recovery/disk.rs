//! A disk that can be full.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of a few megabytes in memory.
pub struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    /// `None` where nothing can be mounted.
    pub fn new(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0700"),
                "tmpfs",
            ])
            .arg(path)
            .output()
            .ok()?;
        mounted.status.success().then(|| Self(path.to_owned()))
    }

    /// Takes all that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }

    /// Gives back what [`Self::fill`] took.
    pub fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }

    /// Whether somebody else gets a single block.
    pub fn is_full(&self) -> bool {
        let probe = self.0.join("probe");
        let full = fs::write(&probe, [0; 4096]).is_err();
        let _ = fs::remove_file(probe);
        full
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
