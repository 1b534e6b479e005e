//! The questions that a platform answers, and the shapes of its answers.
//!
//! Twin of the `platform` interface in `wit/platform.wit`; the two share their sentences. A platform decides and never
//! acts: the same facts give the same answers, on any machine.

use crate::facts::{Facts, GraphSupport, MlaDims, ModelFacts, Version};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who decides: a sandboxed component, or the native floor.
///
/// Every method is one question. The host asks at startup only, never between two tokens. Facts come as an [`Arc`], so that
/// a platform that keeps its own form of them sees at a glance whether they are still the same.
///
/// # Errors
/// [`Fault`] is not an answer but the failure to give one: a trap, a time-out, a limit. A platform that has nothing to
/// offer says so in its answer, with reasons.
pub trait Platform {
    /// Name, vendor, versions; constant over the life of the component.
    fn describe(&mut self) -> Result<Descriptor, Fault>;
    /// Can this platform serve on these facts?
    fn probe(&mut self, facts: &Arc<Facts>) -> Result<Probe, Fault>;
    /// Dtypes, quantisation and features of one device (index into its own availability; 0 for a CPU).
    fn device_capabilities(
        &mut self,
        facts: &Arc<Facts>,
        device: u32,
    ) -> Result<Result<Capabilities, Diagnostic>, Fault>;
    /// Tokens a step and sequences at once, where the user named none.
    fn batch_defaults(
        &mut self,
        facts: &Arc<Facts>,
        usage: &str,
        world_size: u32,
    ) -> Result<BatchDefaults, Fault>;
    /// Patches that set defaults, before the configuration is checked. May not override the user.
    fn default_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Result<Vec<Patch>, Fault>;
    /// Patches and findings on the whole configuration; a finding of severity `reject` ends the start.
    fn check_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Result<ConfigCheck, Fault>;
    /// The attention kernel of one phase.
    fn select_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault>;
    /// The attention kernel of a vision encoder.
    fn select_vision_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Result<Decision, Fault>;
    /// Tokens in a KV block, for the chosen attention kernels.
    fn choose_block_size(
        &mut self,
        facts: &Arc<Facts>,
        query: &BlockQuery,
    ) -> Result<Result<BlockPlan, Diagnostic>, Fault>;
    /// The kernel of any other operation (`matmul`, `elementwise`).
    fn kernel_priority(
        &mut self,
        facts: &Arc<Facts>,
        op: &str,
        shape: &OpShape,
    ) -> Result<Decision, Fault>;
    /// Graph capture.
    fn plan_graphs(
        &mut self,
        facts: &Arc<Facts>,
        query: &GraphQuery,
    ) -> Result<Result<GraphPlan, Diagnostic>, Fault>;
    /// Bytes for the KV cache, when `used` bytes are taken by weights and activations.
    fn plan_memory(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
        device: u32,
        used: u64,
    ) -> Result<Result<u64, Diagnostic>, Fault>;
    /// Worker threads and the CPUs they run on.
    fn plan_threads(
        &mut self,
        facts: &Arc<Facts>,
        ranks: u32,
    ) -> Result<Result<ThreadPlan, Diagnostic>, Fault>;
    /// How several devices work together.
    fn plan_parallel(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
    ) -> Result<ParallelPlan, Fault>;
    /// Where buffers for moving KV between machines live.
    fn plan_kv_transfer(&mut self, facts: &Arc<Facts>) -> Result<KvTransferPlan, Fault>;
    /// Rules that the host applies to every request, natively.
    fn request_rules(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
    ) -> Result<Vec<Rule>, Fault>;
}

/// A platform could not answer. Names who failed at what; the message says how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Platform id, or the file where no id was learnt.
    pub platform: String,
    /// `sha256:…` of the component; empty for the floor.
    pub digest: String,
    /// The question, such as `select-attention`.
    pub question: String,
    /// What went wrong, with the limit where there was one.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "platform '{}' failed in {}: {}",
            self.platform, self.question, self.message
        )?;
        if !self.digest.is_empty() {
            write!(f, " ({})", self.digest)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Probably not what the user wants.
    Warn,
    /// Cannot be served.
    Reject,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// How grave.
    pub severity: Severity,
    /// Stable short code for scripts: `no-driver`.
    pub code: String,
    /// The configuration field or fact it is about (`max-num-seqs`, `host.isa`); absent if it is about the whole.
    pub path: Option<String>,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it; absent if nothing can be done.
    pub fix: Option<String>,
}

/// Who a platform is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Id: lower-case letters, digits and hyphens, 1 to 32 bytes.
    pub id: String,
    /// Who made it.
    pub vendor: String,
    /// Its own version.
    pub version: Version,
    /// Environment variable that hides devices (`CUDA_VISIBLE_DEVICES`); absent if there is none.
    pub visible_devices_var: Option<String>,
    /// Environment variables it wants to see among the facts; the host passes these and no others.
    pub env_allowlist: Vec<String>,
    /// Quantisation names it serves beyond the host's own.
    pub extra_quantization: Vec<String>,
}

/// Answer to `probe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// It can serve.
    Available(Availability),
    /// It cannot, and why.
    Unavailable(Vec<Diagnostic>),
}

/// What an available platform offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// Indices into `facts.devices`; empty for a platform that runs on the host's CPU.
    pub devices: Vec<u32>,
    /// Among built-in platforms the highest score wins; 10 is a CPU, 100 an accelerator.
    pub score: u32,
    /// Findings worth knowing.
    pub notes: Vec<Diagnostic>,
}

/// What one device can compute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Activation dtypes in order of preference; the first serves `auto`.
    pub dtypes: Vec<String>,
    /// KV-cache dtypes in order of preference.
    pub kv_dtypes: Vec<String>,
    /// Quantisation that may be served; absent means all that the catalogue has.
    pub quantization: Option<Vec<String>>,
    /// `e4m3fn`, `e4m3fnuz`, `e5m2`; absent where there is no FP8.
    pub fp8_format: Option<String>,
    /// Graph capture is to be had.
    pub graph: bool,
    /// Open list: `pinned-memory`, `sleep`, `mx`, `hybrid-kv`.
    pub features: Vec<String>,
    /// Compute capability that kernels' requirements are held against, where the platform derives one from the device's
    /// architecture; absent means that of the facts, if there is one.
    #[serde(default)]
    pub capability: Option<(u32, u32)>,
}

/// Answer to `batch-defaults`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchDefaults {
    /// Tokens that one step may carry.
    pub max_batched_tokens: u32,
    /// Sequences that may run at once.
    pub max_num_seqs: u32,
    /// Why.
    pub reason: String,
}

/// When graphs are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphMode {
    /// Never.
    #[default]
    None,
    /// Between attention calls.
    Piecewise,
    /// Whole steps.
    Full,
    /// Whole steps that only decode.
    FullDecodeOnly,
    /// Whole steps where they decode, piecewise where they prefill.
    FullAndPiecewise,
}

/// What was asked for, and what the checks have made of it so far. `user_set` names the fields that the user wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineConfig {
    /// Activation dtype; `auto` until decided.
    pub dtype: String,
    /// KV-cache dtype; `auto` until decided.
    pub kv_dtype: String,
    /// Tokens in a KV block; 0 until decided.
    pub block_size: u32,
    /// Longest context served, in tokens; 0 until decided (the model's own, or what fits).
    pub max_model_len: u32,
    /// Sequences that may run at once; 0 until decided.
    pub max_num_seqs: u32,
    /// Tokens that one step may carry; 0 until decided.
    pub max_batched_tokens: u32,
    /// A prompt may be computed in several steps.
    pub chunked_prefill: bool,
    /// Full blocks are kept and shared between requests with the same beginning.
    pub prefix_caching: bool,
    /// The next step is scheduled while the last still runs.
    pub async_scheduling: bool,
    /// Shared prefixes are attended to once for several sequences.
    pub cascade_attention: bool,
    /// Graph capture.
    pub graph_mode: GraphMode,
    /// Batch sizes for which graphs are captured.
    pub capture_sizes: Vec<u32>,
    /// Attention kernel that the user asked for; absent means the platform chooses.
    pub attention_backend: Option<String>,
    /// Worker threads that the user asked for; 0 means the platform chooses.
    pub threads: u32,
    /// Devices that share every layer.
    pub tensor_parallel: u32,
    /// Devices that hold consecutive layers.
    pub pipeline_parallel: u32,
    /// The vendor's own all-reduce may be used.
    pub custom_allreduce: bool,
    /// Share of the memory budget that may be taken, 0 to 1.
    pub memory_utilization: f64,
    /// Bytes for the KV cache as the user fixed them; absent means what is left.
    pub kv_bytes: Option<u64>,
    /// Most tokens drafted ahead for a sequence, 0 to 64; 0: none. Plinth drafts from the sequence's own n-grams.
    pub spec_tokens: u32,
    /// Adapters may be loaded.
    pub lora: bool,
    /// Fields that the user wrote, by the names above in kebab-case.
    pub user_set: Vec<String>,
    /// What has no field yet.
    pub extra: Vec<(String, String)>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            dtype: "auto".into(),
            kv_dtype: "auto".into(),
            block_size: 0,
            max_model_len: 0,
            max_num_seqs: 0,
            max_batched_tokens: 0,
            chunked_prefill: true,
            prefix_caching: true,
            async_scheduling: false,
            cascade_attention: false,
            graph_mode: GraphMode::None,
            capture_sizes: Vec::new(),
            attention_backend: None,
            threads: 0,
            tensor_parallel: 1,
            pipeline_parallel: 1,
            custom_allreduce: false,
            memory_utilization: 0.9,
            kv_bytes: None,
            spec_tokens: 0,
            lora: false,
            user_set: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// The value of a patch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A count or a number of bytes.
    Unsigned(u64),
    /// A share.
    Float(f64),
    /// A name.
    Text(String),
    /// A list of counts.
    Numbers(Vec<u64>),
}

/// A change to the configuration, with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Patch {
    /// Field of [`EngineConfig`] in kebab-case, such as `max-num-seqs`.
    pub path: String,
    /// The new value.
    pub value: Value,
    /// Why.
    pub reason: String,
    /// The platform knows that the user set this field and means to override it. The host then refuses the start and
    /// shows the reason, or grants it visibly: never silently.
    pub overrides_user: bool,
}

/// A kernel that was not chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its id in the catalogue.
    pub id: String,
    /// Every reason, not the first.
    pub reasons: Vec<String>,
}

/// A choice among kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The one to use: first of `ranking`, or the one of `ranking` that the user asked for.
    pub selected: String,
    /// All valid ones, best first.
    pub ranking: Vec<String>,
    /// The others, with reasons.
    pub rejected: Vec<Rejected>,
    /// Findings worth knowing; the first of severity `info` says why the selected one won.
    pub notes: Vec<Diagnostic>,
}

/// Answer to a question about kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// One was chosen.
    Chosen(Choice),
    /// None was.
    Refused(KernelRefusal),
}

/// No kernel was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRefusal {
    /// Why, in a sentence.
    pub message: String,
    /// Those that could serve, best first, where a kernel was asked for that cannot; else empty.
    pub ranking: Vec<String>,
    /// The others.
    pub rejected: Vec<Rejected>,
}

/// Answer to `check-config`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigCheck {
    /// Changes.
    pub patches: Vec<Patch>,
    /// Findings.
    pub diagnostics: Vec<Diagnostic>,
}

/// Question about attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionQuery {
    /// Device index; 0 for a CPU.
    pub device: u32,
    /// `prefill`, `decode`, or `any` where one kernel must serve both; `encode` for a vision encoder.
    pub phase: String,
    /// `full`, `sliding-window`, `mla`.
    pub layer_kind: String,
    /// Width of one head.
    pub head_size: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key/value heads.
    pub num_kv_heads: u32,
    /// Activation dtype.
    pub dtype: String,
    /// KV-cache dtype.
    pub kv_dtype: String,
    /// Tokens in a block where they are fixed already.
    pub block_size: Option<u32>,
    /// Kernel that the user asked for.
    pub requested: Option<String>,
    /// Open list: `sinks`, `non-causal`, `sparse`, `mm-prefix`, `per-head-scales`, `batch-invariant`, `encoder`,
    /// `encoder-only`, `encoder-decoder`, `index-topk`. One that the platform does not know must be answered with a
    /// rejection that names it.
    pub traits: Vec<String>,
    /// Widths, for a layer of the kind `mla`.
    #[serde(default)]
    pub mla: Option<MlaDims>,
    /// The configuration so far.
    pub config: EngineConfig,
}

/// Question about the block size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockQuery {
    /// Device index; 0 for a CPU.
    pub device: u32,
    /// Attention kernels that were chosen (one, or decode and prefill).
    pub backends: Vec<String>,
    /// The model.
    pub model: ModelFacts,
    /// The configuration so far.
    pub config: EngineConfig,
    /// Bytes of one state page of a hybrid model.
    pub state_page_bytes: Option<u64>,
}

/// Answer to `choose-block-size`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockPlan {
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Tokens in a state block of a hybrid model.
    pub state_block_size: Option<u32>,
    /// Bytes of a state page after padding.
    pub state_page_padded: Option<u64>,
    /// Name of the KV layout.
    pub kv_layout: Option<String>,
    /// Why.
    pub reason: String,
}

/// Shape of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpShape {
    /// Rows of activations; absent where the kernel must serve any number.
    pub m: Option<u32>,
    /// Outputs.
    pub n: u32,
    /// Inputs.
    pub k: u32,
    /// Activation dtype.
    pub dtype: String,
    /// Weight format.
    pub format: Option<String>,
    /// Open list, as for attention.
    pub traits: Vec<String>,
}

/// Question about graphs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphQuery {
    /// What is wished for, and the sizes that bound it.
    pub config: EngineConfig,
    /// The least that the chosen attention kernels support.
    pub weakest: GraphSupport,
    /// The kernel that supports no more than that.
    pub kernel: String,
}

/// Answer to `plan-graphs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphPlan {
    /// When.
    pub mode: GraphMode,
    /// For which batch sizes.
    pub capture_sizes: Vec<u32>,
    /// Findings.
    pub notes: Vec<Diagnostic>,
}

/// Worker threads of one rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankBinding {
    /// The rank.
    pub rank: u32,
    /// Logical CPUs, one worker each.
    pub cpus: Vec<u32>,
    /// NUMA node for its memory.
    pub numa: Option<u32>,
}

/// Answer to `plan-threads`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadPlan {
    /// One entry a rank.
    pub ranks: Vec<RankBinding>,
    /// Logical CPUs left to other work.
    pub reserved: Vec<u32>,
    /// Findings; the first of severity `info` says which limit decided.
    pub notes: Vec<Diagnostic>,
}

/// Answer to `plan-parallel`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParallelPlan {
    /// Collective library: `none`, `nccl`, `gloo`.
    pub collective: String,
    /// Use the vendor's own all-reduce.
    pub custom_allreduce: bool,
    /// `in-process`, `multi-process`.
    pub executor: String,
    /// How logits come together: `none`, `gather`, `all-gather`.
    pub gather: String,
    /// Findings.
    pub notes: Vec<Diagnostic>,
}

/// Answer to `plan-kv-transfer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvTransferPlan {
    /// Where buffers may live: `cpu`, `cuda`.
    pub buffer_devices: Vec<String>,
    /// `DRAM`, `VRAM`; absent where no transfer is supported.
    pub memory_type: Option<String>,
}

/// A rule on requests, applied natively.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Field of a request: `prompt-len`, `max-tokens`, `temperature`, `top-k`, `min-p`, `seed`, `logprobs`.
    pub field: String,
    /// `at-most`, `at-least`, `absent`: refuse what breaks it. `cap`: lower `max-tokens` to the operand.
    pub op: String,
    /// A number; empty for `absent`.
    pub operand: String,
    /// The rule holds for prompts of this many tokens, both included; absent means for all.
    #[serde(default)]
    pub prompts: Option<(u32, u32)>,
    /// What the caller is told.
    pub message: String,
}
