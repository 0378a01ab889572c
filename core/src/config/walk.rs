//! The way to a file as the kernel goes it: each directory and each link, one by one.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::path::{Component, Path, PathBuf};

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// A directory, a link or the file itself.
pub struct Step {
    /// Where it is, without a link before its last part.
    pub path: PathBuf,
    /// What it is; a link is not followed for this.
    pub seen: Metadata,
    /// Where a link leads, from the root.
    pub target: Option<PathBuf>,
}

/// From the root to the file, as far as it is there.
pub fn walk(file: &Path) -> Vec<Step> {
    let Ok(file) = std::path::absolute(file) else {
        return Vec::new();
    };
    let mut steps = Vec::new();
    let mut at = PathBuf::from("/");
    steps.extend(look(&at));
    let mut ahead: VecDeque<OsString> = parts(&file).into();
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let Some(mut step) = look(&at.join(&part)) else {
            break;
        };
        if !step.seen.is_symlink() {
            at.clone_from(&step.path);
            steps.push(step);
            continue;
        }
        links += 1;
        let Ok(target) = fs::read_link(&step.path) else {
            break;
        };
        if links > MAX_LINKS {
            break;
        }
        // An absolute one takes the place of all before it.
        step.target = Some(at.join(&target));
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        for part in parts(&target).into_iter().rev() {
            ahead.push_front(part);
        }
        steps.push(step);
    }
    steps
}

fn look(path: &Path) -> Option<Step> {
    Some(Step {
        seen: fs::symlink_metadata(path).ok()?,
        path: path.to_owned(),
        target: None,
    })
}

fn parts(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}
