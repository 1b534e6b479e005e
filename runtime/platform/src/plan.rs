//! The plan: every checked answer with who gave it and why, frozen before the first kernel is bound.
//!
//! Made by the resolver and by nothing else; read by whoever binds kernels, starts the engine, or shows
//! a person why this machine runs a model the way it does.

use crate::facts::{Engine, ModelFacts, Version};
use crate::policy::{
    Availability, BlockPlan, Capabilities, Diagnostic, EngineConfig, GraphPlan, KvTransferPlan,
    ParallelPlan, Rejected, Rule, Value,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that was decided. Immutable by custom: nothing changes a plan after it was resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Version of the runtime that resolved it.
    pub runtime: Engine,
    /// `sha256:…` of the facts in canonical order, without the environment.
    pub facts_digest: String,
    /// The model that it is for.
    pub model: ModelFacts,
    /// Who decided.
    pub platform: ChosenPlatform,
    /// Every platform that was registered, refused or not loadable, with what became of it.
    pub probes: Vec<ProbeRecord>,
    /// What the first device can compute, as the platform says.
    pub capabilities: Capabilities,
    /// The configuration, with nothing left undecided.
    pub engine: EngineConfig,
    /// Who decided each field of `engine`, in the order of its fields.
    pub settings: Vec<Setting>,
    /// What the kernel set is bound from.
    pub kernels: KernelChoices,
    /// Why those kernels: ranking, rejections and reasons.
    pub selections: Vec<Selection>,
    /// KV blocks.
    pub block: BlockPlan,
    /// Graph capture.
    pub graphs: GraphPlan,
    /// Worker threads.
    pub threads: ThreadChoice,
    /// Why those threads.
    pub thread_reason: ThreadReason,
    /// Bytes.
    pub memory: MemoryBudget,
    /// Several devices.
    pub parallel: ParallelPlan,
    /// Moving KV between machines.
    pub kv_transfer: KvTransferPlan,
    /// Rules on requests.
    pub rules: Vec<Rule>,
    /// What a person should know: skipped plugins, failed probes, wishes granted otherwise.
    pub findings: Vec<Finding>,
    /// `sha256:…` of what was decided. Equal digests mean the same kernels, sizes and rules by the same platform. What
    /// changes from minute to minute (free memory, and with it the facts) and where files lie are not part of it.
    pub digest: String,
}

/// The kernels to bind, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelChoices {
    /// Attention over a chunk of a prompt.
    pub attention_prefill: String,
    /// Attention of one new token a sequence.
    pub attention_decode: String,
    /// Weight format and the matrix multiplication for it, one entry for every format of the model.
    pub matmul: Vec<(String, String)>,
    /// As `matmul`, where steps of many rows have another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matmul_many: Vec<(String, String)>,
    /// Rows of a step from which on the entry of `matmul_many` serves, by weight format, where costs were measured. The
    /// kernels' own number for formats without an entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub many_from: Vec<(String, u32)>,
    /// Everything that goes over rows: norms, rotation, activation functions.
    pub elementwise: String,
}

/// Worker threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadChoice {
    /// How many, at least 1.
    pub workers: u32,
    /// Logical CPU of each worker. Empty: threads are not pinned.
    pub cpus: Vec<u32>,
    /// NUMA node of each worker, in whose memory its share of the weights lies. Empty: threads are not pinned, and nobody
    /// knows where they run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<u32>,
}

impl ThreadChoice {
    /// The nodes that have workers, in order, and how many.
    pub fn by_node(&self) -> Vec<(u32, usize)> {
        let mut workers = BTreeMap::new();
        for node in &self.nodes {
            *workers.entry(*node).or_default() += 1;
        }
        workers.into_iter().collect()
    }
}

/// Why the threads are what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadReason {
    /// Who decided the number.
    pub by: DecidedBy,
    /// Which limit decided.
    pub reason: String,
    /// Why they are pinned, or not.
    pub pinning: String,
    /// NUMA node for memory, where one was named.
    pub numa: Option<u32>,
    /// Logical CPUs left to other work.
    pub reserved: Vec<u32>,
}

/// Bytes, against what the machine or its cgroup has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryBudget {
    /// Weights on one device.
    pub weights: u64,
    /// Buffers of one step and its logits: an upper bound.
    pub activations: u64,
    /// The KV cache: `num_blocks` times `kv_block_bytes`.
    pub kv_bytes: u64,
    /// One KV block over all layers, keys and values.
    pub kv_block_bytes: u64,
    /// KV blocks.
    pub num_blocks: u32,
    /// Tokens that the KV cache holds.
    pub kv_tokens: u64,
    /// Sequences of `max_model_len` tokens that fit at once.
    pub full_sequences: u64,
    /// Bytes free to this process on the machine, or free on the device.
    pub available: u64,
    /// `available` times the share that may be taken.
    pub usable: u64,
    /// Which limit decided `available`.
    pub limit: String,
    /// Who decided `kv_bytes`.
    pub by: DecidedBy,
    /// Why `kv_bytes` is what it is.
    pub reason: String,
}

/// Whose word it was. A user beats a platform, a platform beats the floor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    /// The runtime's own default or arithmetic.
    #[default]
    Floor,
    /// The chosen platform.
    Platform,
    /// The user.
    User,
}

/// Where a platform came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A component inside this binary.
    BuiltIn,
    /// A component file.
    File {
        /// Where it lies.
        path: String,
    },
    /// The native floor.
    Floor,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built in"),
            Self::File { path } => write!(f, "file {}", crate::text::quote(path)),
            Self::Floor => f.write_str("native floor"),
        }
    }
}

/// The platform that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChosenPlatform {
    /// Its id.
    pub id: String,
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: Version,
    /// Where it came from.
    pub origin: Origin,
    /// `sha256:…` of the component; empty for the floor.
    pub digest: String,
    /// Positions in the facts' list of devices; empty for a platform on the host's CPU.
    pub devices: Vec<u32>,
    /// Environment variables that it saw.
    pub env: Vec<(String, String)>,
    /// Who chose it: the user, or the resolver (the floor).
    pub by: DecidedBy,
    /// Why it and no other.
    pub reason: String,
}

/// What became of one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// Its id; empty where none was learnt.
    pub id: String,
    /// Its version, where it was learnt.
    pub version: Option<Version>,
    /// Where it came from.
    pub origin: Origin,
    /// `sha256:…` of the component; empty for the floor, and where the file could not be read.
    pub digest: String,
    /// What it answered.
    pub outcome: Outcome,
    /// Why the resolver went on without it after it was available: it failed in a later question.
    #[serde(default)]
    pub set_aside: Option<String>,
}

/// Answer to a probe, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It can serve.
    Available(Availability),
    /// It cannot, and why.
    Unavailable(Vec<Diagnostic>),
    /// It trapped, ran out of a limit, or gave an answer that cannot be; in words.
    Failed(String),
    /// It was never asked: the file could not be loaded, or the registry refused it; in words.
    Refused(String),
}

/// One field of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name in kebab-case.
    pub path: String,
    /// Its value; absent where the field is (`kv-bytes`, `attention-backend`).
    pub value: Option<Value>,
    /// Who decided.
    pub by: DecidedBy,
    /// Why.
    pub reason: String,
    /// What the user had asked for, where it was granted otherwise.
    #[serde(default)]
    pub wanted: Option<Value>,
}

/// One choice among kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Operation: `attention`, `matmul`, `elementwise`.
    pub op: String,
    /// What of it: `prefill`, `decode`, a weight format (`q4_1`, `q4_1 many-rows`); empty for `elementwise`.
    pub subject: String,
    /// The kernel.
    pub selected: String,
    /// All valid ones, best first.
    pub ranking: Vec<String>,
    /// Every other kernel of the operation, with reasons.
    pub rejected: Vec<Rejected>,
    /// Who decided.
    pub by: DecidedBy,
    /// Why this one won.
    pub reason: String,
    /// Rows of a step from which on it serves, where costs were measured; only of a kernel for many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_rows: Option<u32>,
}

/// Something that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Id of the platform that it comes from or is about; a file where no id was learnt; empty for the runtime itself.
    pub about: String,
    /// What.
    pub diagnostic: Diagnostic,
}
