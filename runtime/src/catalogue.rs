//! Which kernels there are to choose from: this build's, those of another engine, or those in a file.

use crate::error::{Failure, Result};
use anyhow::Context;
use plinth_platform::facts::{Engine, Facts, Kernel};
use serde::Deserialize;
use std::borrow::Cow;

/// The kernels of a build of an engine, as data.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Catalogue {
    /// Where it comes from, for whoever reads the file.
    #[allow(dead_code, reason = "for readers of the file")]
    about: String,
    engine: Engine,
    /// Optional packages that the build has.
    #[serde(default)]
    packages: Vec<String>,
    /// Services that are taken to be within reach where the facts say nothing of services.
    #[serde(default)]
    services: Vec<String>,
    kernels: Vec<Kernel>,
}

/// Builds of vLLM 0.22.1 (commit 0decac0d9), by the vendor of the devices that they are for.
const VLLM: [(&str, &str, &str); 6] = [
    (
        "nvidia",
        "cuda",
        include_str!("catalogues/vllm-0.22.1/cuda.json"),
    ),
    (
        "amd",
        "rocm",
        include_str!("catalogues/vllm-0.22.1/rocm.json"),
    ),
    (
        "intel",
        "xpu",
        include_str!("catalogues/vllm-0.22.1/xpu.json"),
    ),
    (
        "google",
        "tpu",
        include_str!("catalogues/vllm-0.22.1/tpu.json"),
    ),
    (
        "habana",
        "gaudi",
        include_str!("catalogues/vllm-0.22.1/gaudi.json"),
    ),
    ("", "cpu", include_str!("catalogues/vllm-0.22.1/cpu.json")),
];

/// What `--catalogue` may name besides a file.
pub const NAMES: &str = "plinth, vllm-0.22.1 (the build for the machine's devices), vllm-0.22.1/cuda, /rocm, /xpu, /tpu, /gaudi or /cpu";

/// Fills in this build's kernels where the facts list none.
pub fn own(facts: &mut Facts) {
    if facts.kernels.is_empty() {
        facts.kernels = plinth_kernels::catalog();
    }
}

/// Puts a catalogue in the place of the facts' own.
///
/// # Errors
/// It is neither known nor a file that holds one.
pub fn apply(facts: &mut Facts, name: &str) -> Result<()> {
    if name == "plinth" {
        facts.engine = Engine::plinth();
        facts.kernels = plinth_kernels::catalog();
        return Ok(());
    }
    let build = match name.strip_prefix("vllm-0.22.1") {
        Some("") => Some(build_for(facts)),
        Some(rest) => rest.strip_prefix('/'),
        None => None,
    };
    let known = VLLM.iter().find(|(_, name, _)| Some(*name) == build);
    let text = match known {
        Some((.., text)) => Cow::Borrowed(*text),
        None => {
            let read = std::fs::read_to_string(name).with_context(|| {
                format!("--catalogue: found '{name}', expected {NAMES}, or a file that can be read")
            });
            Cow::Owned(read.map_err(Failure::Input)?)
        }
    };
    let catalogue = serde_json::from_str(&text)
        .with_context(|| format!("'{name}' does not hold a catalogue"))
        .map_err(Failure::Input)?;
    install(facts, catalogue);
    Ok(())
}

fn install(facts: &mut Facts, catalogue: Catalogue) {
    facts.engine = catalogue.engine;
    facts.kernels = catalogue.kernels;
    facts.packages.extend(catalogue.packages);
    facts.packages.sort();
    facts.packages.dedup();
    if facts.services.is_empty() {
        facts.services = catalogue.services;
    }
}

/// The build that someone would install on this machine.
fn build_for(facts: &Facts) -> &'static str {
    let vendor = facts
        .devices
        .first()
        .map_or("", |device| device.vendor.as_str());
    let known = VLLM.iter().find(|(of, ..)| *of == vendor);
    known.map_or("cpu", |(_, build, _)| build)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_catalogue_reads_and_names_each_kernel_once() {
        for (_, build, text) in VLLM {
            let catalogue: Catalogue =
                serde_json::from_str(text).unwrap_or_else(|error| panic!("{build}: {error}"));
            let ids: BTreeSet<_> = catalogue.kernels.iter().map(|kernel| &kernel.id).collect();
            assert_eq!(ids.len(), catalogue.kernels.len(), "{build}: an id twice");
            for op in ["attention", "matmul", "elementwise"] {
                let has = catalogue.kernels.iter().any(|kernel| kernel.op == op);
                assert!(has, "{build} has no kernel of {op}");
            }
        }
    }
}
