//! A plan as a flat list of decisions, each with a path that a person can type: to ask why, and to compare plans.

use crate::plan::{DecidedBy, Plan};
use crate::policy::{Rejected, Severity};
use crate::settings::{get, show};
use serde::Serialize;

/// One decision of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Such as `attention.decode` or `batch.max-num-seqs`.
    pub path: String,
    /// What was decided.
    pub value: String,
    /// `user`, `plinth`, or the id of the platform.
    pub by: String,
    /// Why.
    pub reason: String,
    /// For kernels: what else could serve, best first.
    pub others: Vec<String>,
    /// For kernels: what could not, and why.
    pub rejected: Vec<Rejected>,
    /// It follows from other numbers step by step, so that a little change of those is a little change of it.
    pub gradual: bool,
}

/// Settings that are decisions of their own, with the group that a person looks for them in.
const SETTINGS: [(&str, &str); 10] = [
    ("dtype", "dtype"),
    ("kv-dtype", "kv-cache.dtype"),
    ("max-model-len", "context"),
    ("max-num-seqs", "batch.max-num-seqs"),
    ("max-batched-tokens", "batch.max-batched-tokens"),
    ("chunked-prefill", "scheduler.chunked-prefill"),
    ("prefix-caching", "scheduler.prefix-caching"),
    ("async-scheduling", "scheduler.async-scheduling"),
    ("spec-tokens", "scheduler.draft-tokens"),
    ("memory-utilization", "memory.share"),
];

/// All decisions of a plan, in the order in which they were made.
pub fn of(plan: &Plan) -> Vec<Decision> {
    let mut list = Vec::new();
    let who = |by: DecidedBy| match by {
        DecidedBy::User => "user".to_owned(),
        DecidedBy::Platform => plan.platform.id.clone(),
        DecidedBy::Floor => "plinth".to_owned(),
    };
    let platform = plan.platform.id.clone();
    let mut add = |path: &str, value: String, by: String, reason: &str| {
        list.push(Decision {
            path: path.to_owned(),
            value,
            by,
            reason: reason.to_owned(),
            others: Vec::new(),
            rejected: Vec::new(),
            gradual: false,
        });
    };
    let chosen = &plan.platform;
    add(
        "platform",
        chosen.id.clone(),
        who(chosen.by),
        &chosen.reason,
    );
    for (name, path) in SETTINGS {
        let setting = plan.settings.iter().find(|setting| setting.path == name);
        if let (Some(setting), Some(value)) = (setting, get(&plan.engine, name)) {
            let value = show(&value).trim_matches('\'').to_owned();
            add(path, value, who(setting.by), &setting.reason);
        }
    }
    let formats = plan.capabilities.fp8_format.clone();
    add(
        "fp8-format",
        formats.unwrap_or_else(|| "none".to_owned()),
        platform.clone(),
        "what the device computes in",
    );
    let block = &plan.block;
    add(
        "kv-cache.block-size",
        block.block_size.to_string(),
        platform.clone(),
        &block.reason,
    );
    let layout = block.kv_layout.clone();
    add(
        "kv-cache.layout",
        layout.unwrap_or_else(|| "the kernel's own".to_owned()),
        platform.clone(),
        "what the attention kernel reads",
    );
    let mode = get(&plan.engine, "graph-mode")
        .map(|mode| show(&mode))
        .unwrap_or_default();
    let note = plan
        .graphs
        .notes
        .iter()
        .find(|note| note.severity == Severity::Info);
    let why = note.map_or("the platform gives no reason", |note| note.message.as_str());
    add(
        "graphs.mode",
        mode.trim_matches('\'').to_owned(),
        platform.clone(),
        why,
    );
    let sizes = &plan.graphs.capture_sizes;
    let shown = match sizes.as_slice() {
        [] => "none".to_owned(),
        list => format!("{} up to {}", list.len(), list.last().unwrap_or(&0)),
    };
    add("graphs.sizes", shown, platform.clone(), why);
    add(
        "parallel.collective",
        plan.parallel.collective.clone(),
        platform.clone(),
        "how devices that share a model talk",
    );
    add(
        "parallel.custom-allreduce",
        plan.parallel.custom_allreduce.to_string(),
        platform,
        "whether the vendor's own is used",
    );
    let threads = &plan.thread_reason;
    add(
        "threads",
        plan.threads.workers.to_string(),
        who(threads.by),
        &threads.reason,
    );
    for selection in &plan.selections {
        let path = match selection.subject.as_str() {
            "" => selection.op.clone(),
            subject => format!("{}.{subject}", selection.op),
        };
        let others = selection
            .ranking
            .iter()
            .filter(|id| **id != selection.selected);
        list.push(Decision {
            path,
            value: selection.selected.clone(),
            by: who(selection.by),
            reason: selection.reason.clone(),
            others: others.cloned().collect(),
            rejected: selection.rejected.clone(),
            gradual: false,
        });
    }
    for (n, rule) in plan.rules.iter().enumerate() {
        list.push(Decision {
            path: format!("requests.{n}"),
            value: format!("{} {} {}", rule.field, rule.op, rule.operand)
                .trim_end()
                .to_owned(),
            by: plan.platform.id.clone(),
            reason: rule.message.clone(),
            others: Vec::new(),
            rejected: Vec::new(),
            gradual: false,
        });
    }
    list.extend(memory(plan, &who(plan.memory.by)));
    list
}

fn memory(plan: &Plan, by: &str) -> Vec<Decision> {
    let memory = &plan.memory;
    let gradual = |path: &str, value: String, reason: &str| Decision {
        path: path.to_owned(),
        value,
        by: by.to_owned(),
        reason: reason.to_owned(),
        others: Vec::new(),
        rejected: Vec::new(),
        gradual: true,
    };
    let bytes = crate::text::bytes;
    vec![
        gradual(
            "memory.weights",
            bytes(memory.weights),
            "the weights that one device holds",
        ),
        gradual("memory.kv-cache", bytes(memory.kv_bytes), &memory.reason),
        gradual(
            "memory.sequences",
            memory.full_sequences.to_string(),
            "how many fit at the full context",
        ),
    ]
}
