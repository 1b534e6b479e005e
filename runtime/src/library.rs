//! Machines and models that are known by their facts, inside this binary: what a platform is tested on.

use crate::error::{Failure, Result};
use crate::startup;
use anyhow::{Context, anyhow};
use plinth_platform::facts::{Facts, ModelFacts};
use std::path::{Path, PathBuf};

include!(concat!(env!("OUT_DIR"), "/library.rs"));

/// Every machine, by name.
pub fn machines() -> Result<Vec<(String, Facts)>> {
    MACHINES
        .iter()
        .map(|(name, text)| Ok(((*name).to_owned(), read(name, text)?)))
        .collect()
}

/// Every model, by name.
pub fn models() -> Result<Vec<(String, ModelFacts)>> {
    MODELS
        .iter()
        .map(|(name, text)| Ok(((*name).to_owned(), read(name, text)?)))
        .collect()
}

/// The machines of a folder instead.
pub fn in_folder(folder: &Path) -> Result<Vec<(String, Facts)>> {
    let named = files(folder)?.into_iter().map(|path| {
        let facts = startup::facts(Some(&path))?;
        Ok((stem(&path), Facts::clone(&facts)))
    });
    named.collect()
}

/// Every file of facts in a folder, in the order of their names.
///
/// # Errors
/// The folder cannot be read, or holds none.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read the folder '{shown}'"))
        .map_err(Failure::Input)?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    files.sort();
    match files.is_empty() {
        false => Ok(files),
        true => Err(Failure::Input(anyhow!(
            "'{shown}' holds no facts: expected *.json, as `plinth facts --json` prints them"
        ))),
    }
}

/// What a file is called, without its ending.
pub fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

fn read<T: serde::de::DeserializeOwned>(name: &str, text: &str) -> Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("the library's '{name}'"))
        .map_err(Failure::Failed)
}
