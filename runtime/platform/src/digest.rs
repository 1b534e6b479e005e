//! Digests of plain data.

use crate::facts::Facts;
use crate::plan::Plan;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// `sha256:…` of what a plan decides. What changes from minute to minute and where files lie are not part of it.
pub(crate) fn of_plan(plan: &Plan) -> String {
    #[derive(Serialize)]
    struct Decided<'a> {
        platform: (&'a str, String, &'a str),
        engine: &'a crate::policy::EngineConfig,
        kernels: &'a crate::plan::KernelChoices,
        block: &'a crate::policy::BlockPlan,
        num_blocks: u32,
        graphs: &'a crate::policy::GraphPlan,
        threads: &'a crate::plan::ThreadChoice,
        parallel: &'a crate::policy::ParallelPlan,
        kv_transfer: &'a crate::policy::KvTransferPlan,
        rules: &'a [crate::policy::Rule],
        model: &'a crate::facts::ModelFacts,
    }
    let Plan {
        platform,
        engine,
        kernels,
        block,
        memory,
        graphs,
        threads,
        parallel,
        kv_transfer,
        rules,
        model,
        ..
    } = plan;
    sha256(&Decided {
        platform: (&platform.id, platform.version.to_string(), &platform.digest),
        engine,
        kernels,
        block,
        num_blocks: memory.num_blocks,
        graphs,
        threads,
        parallel,
        kv_transfer,
        rules,
        model,
    })
}

/// `sha256:…` of facts without the environment, in an order in which equal facts are equal.
pub(crate) fn of_facts(facts: &Facts) -> String {
    let mut facts = facts.clone();
    facts.env.clear();
    facts.host.isa.sort();
    facts.kernels.sort_by(|a, b| a.id.cmp(&b.id));
    sha256(&facts)
}

fn sha256(value: &impl Serialize) -> String {
    let json = serde_json::to_vec(value).expect("plain data with text keys is JSON");
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(json) {
        write!(text, "{byte:02x}").expect("a String takes all that is written to it");
    }
    text
}
