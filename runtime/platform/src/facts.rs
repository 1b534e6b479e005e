//! What the host measured: plain serialisable data that may as well come from a file about another machine.
//!
//! A fact is never a decision. Twin of the `types` interface in `wit/platform.wit`; the two share their sentences.

use serde::{Deserialize, Serialize};

/// Everything a platform may look at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The processor and its memory.
    pub host: HostFacts,
    /// Accelerators that a driver listed, by index. Empty where there is none.
    #[serde(default)]
    pub devices: Vec<DeviceFacts>,
    /// What a driver said where it could not list devices, one line per probed driver ("cuda: libcuda.so.1 not found").
    #[serde(default)]
    pub driver_notes: Vec<DriverNote>,
    /// The native kernels of this build: the only ids that a platform may select. A facts file may leave it out: the
    /// catalogue of the build that reads it is then filled in.
    #[serde(default)]
    pub kernels: Vec<Kernel>,
    /// Environment variables, only those on the platform's own allow-list. Empty in the facts as detected.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Optional packages of the engine that can be loaded, sorted (`tokenspeed_mla`, `aiter`).
    #[serde(default)]
    pub packages: Vec<String>,
    /// Network services within reach, sorted (`nvidia-artifactory`, from which some kernels are fetched).
    #[serde(default)]
    pub services: Vec<String>,
    /// The engine that will run what is decided. A facts file may leave it out: it is then this build's.
    #[serde(default = "Engine::plinth")]
    pub engine: Engine,
    /// What matrix products cost on this machine, where they were measured. Not handed to guests: it settles from how
    /// many rows on a kernel for many rows serves, which the runtime decides itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub costs: Vec<MatmulCost>,
}

/// What one matrix product costs, with its weights in the nearest cache that holds them: it was run again and again.
///
/// Reading weights from farther away takes at least [`weight_bytes`](Self::weight_bytes) over the bandwidth there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatmulCost {
    /// Id of the kernel in the catalogue.
    pub kernel: String,
    /// Format of the weights.
    pub format: String,
    /// Outputs: rows of the weights.
    pub outputs: u32,
    /// Inputs: columns of the weights.
    pub inputs: u32,
    /// Bytes of the weights, packed.
    pub weight_bytes: u64,
    /// Rows of activations that are multiplied at once.
    pub tokens: u32,
    /// Microseconds at the median, on as many threads as the budget has.
    pub us: f64,
}

/// The engine that will run what is decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// `plinth`, `vllm`: whose kernels the catalogue lists, and whose measurements a default should rest on.
    pub name: String,
    /// Its version.
    pub version: Version,
}

impl Engine {
    /// This build.
    pub fn plinth() -> Self {
        let part = |text: &str| text.parse().unwrap_or(0);
        Self {
            name: "plinth".to_owned(),
            version: Version {
                major: part(env!("CARGO_PKG_VERSION_MAJOR")),
                minor: part(env!("CARGO_PKG_VERSION_MINOR")),
                patch: part(env!("CARGO_PKG_VERSION_PATCH")),
            },
        }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// A driver that was looked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverNote {
    /// Which driver: "cuda".
    pub driver: String,
    /// What was found instead of devices, such as "libcuda.so.1 not found".
    pub found: String,
    /// What a person can do about it; absent if there is nothing to do.
    #[serde(default)]
    pub fix: Option<String>,
}

/// A semantic version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Incompatible changes.
    pub major: u16,
    /// Additions (for 0.x: incompatible changes).
    pub minor: u16,
    /// Repairs.
    pub patch: u16,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The processor, its memory, and the limits that this process runs under.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// `x86_64`, `aarch64`, `riscv64`, `powerpc64le`, `s390x`: the name as Rust and Linux write it.
    pub arch: String,
    /// Vendor as the CPU gives it ("GenuineIntel", "AuthenticAMD", "ARM"); empty if unknown.
    #[serde(default)]
    pub vendor: String,
    /// Marketing name; empty if unknown.
    #[serde(default)]
    pub model: String,
    /// Instruction-set features as Linux names them (`avx2`, `fma`, `f16c`, `avx512f`, `avx512_vnni`, `amx_int8`,
    /// `asimd`, `asimddp`, `i8mm`, `sve`), sorted, without those that the kernel or a hypervisor hides.
    pub isa: Vec<String>,
    /// Every logical CPU that is online.
    pub logical: Vec<LogicalCpu>,
    /// NUMA nodes, in order of id; at least one.
    pub numa: Vec<NumaNode>,
    /// Caches that one core sees, smallest first.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// What this process may use.
    pub budget: Budget,
    /// `linux`, `macos`, `windows`.
    pub os: String,
    /// True under the Windows Subsystem for Linux, where pinned host memory is not to be had.
    #[serde(default)]
    pub wsl: bool,
}

/// One logical CPU (a hardware thread).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogicalCpu {
    /// The operating system's number of it.
    pub id: u32,
    /// Physical core, unique over all sockets: two logical CPUs of one core are SMT siblings.
    pub core: u32,
    /// NUMA node it belongs to.
    pub node: u32,
    /// May this process run on it (affinity mask and cpuset)?
    pub allowed: bool,
}

/// One NUMA node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaNode {
    /// The operating system's number of it.
    pub id: u32,
    /// Bytes of memory on the node.
    pub total: u64,
    /// Bytes free for a new process.
    pub available: u64,
    /// May this process allocate on it (cpuset.mems)?
    pub visible: bool,
}

/// One cache level as the first allowed CPU sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u8,
    /// Bytes.
    pub bytes: u64,
    /// Logical CPUs that share it.
    pub shared_by: u32,
}

/// What this process may use, after every limit that the operating system puts on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Worker threads worth starting: whole cores, never under 1.
    pub threads: u32,
    /// Which limit decided `threads`, in words: "cgroup v2 cpu.max 765000/100000 at /sys/fs/cgroup/a: 7.65 cores",
    /// "affinity: 4 of 64 CPUs", "8 physical cores".
    pub threads_limit: String,
    /// Bytes of memory this process may still take.
    pub memory: u64,
    /// Which limit decided `memory`: "cgroup v2 memory.max at …", "MemAvailable".
    pub memory_limit: String,
}

/// One accelerator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFacts {
    /// Index in the driver's order.
    pub index: u32,
    /// `nvidia`, `amd`, `intel`, `google`, `habana`.
    pub vendor: String,
    /// Marketing name.
    pub name: String,
    /// The driver's unique id, where it has one.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Architecture: `sm_90`, `gfx942`; empty if unknown.
    #[serde(default)]
    pub arch: String,
    /// Compute capability (major, minor), where the vendor has such a thing.
    #[serde(default)]
    pub capability: Option<(u32, u32)>,
    /// Bytes on the device.
    pub memory_total: u64,
    /// Bytes free.
    pub memory_free: u64,
    /// Streaming multiprocessors, compute units or cores.
    #[serde(default)]
    pub compute_units: Option<u32>,
    /// Shares the host's memory.
    #[serde(default)]
    pub integrated: bool,
    /// NUMA node nearest to it.
    #[serde(default)]
    pub numa: Option<u32>,
    /// Anything else worth knowing, such as `driver=550.54`, `p2p`, `ecc`.
    #[serde(default)]
    pub features: Vec<String>,
    /// Links to other devices.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// A link between two devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Index of the other device.
    pub device: u32,
    /// `nvlink`, `xgmi`, `pcie`.
    pub link: String,
    /// Hops on that link; 1 is direct.
    pub hops: u32,
}

/// One natively implemented kernel: what it is and what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// Unique id, such as `cpu.avx512.attention.f16`.
    pub id: String,
    /// Operation: `attention`, `matmul`, `elementwise`.
    pub op: String,
    /// Where it runs and who provides it: `cpu`, `cuda`.
    pub provider: String,
    /// Activation dtypes it accepts: `f32`, `f16`, `bf16`.
    pub dtypes: Vec<String>,
    /// For attention: dtypes of the KV cache. Else empty.
    #[serde(default)]
    pub kv_dtypes: Vec<String>,
    /// For matmul: weight formats (`f32`, `q4_1`, `q6_k`). Else empty.
    #[serde(default)]
    pub formats: Vec<String>,
    /// For attention: head sizes it accepts; empty means any.
    #[serde(default)]
    pub head_sizes: Vec<HeadSize>,
    /// For attention: KV block sizes it accepts.
    #[serde(default)]
    pub block_sizes: Vec<BlockSize>,
    /// All of these must hold, in the words of [`crate::requirement`].
    #[serde(default)]
    pub requires: Vec<String>,
    /// Open list of what else holds of it: `decode`, `prefill`, `batch-invariant`, `int8-activations`, `causal`.
    #[serde(default)]
    pub traits: Vec<String>,
    /// Graph capture it supports.
    #[serde(default)]
    pub graph: GraphSupport,
    /// For attention: names of the KV layouts it can read; empty means it does not matter.
    #[serde(default)]
    pub kv_layouts: Vec<String>,
    /// Rank among the kernels of its op as the catalogue sees it: higher is faster on a machine that meets its
    /// requirements. The native floor picks by it alone.
    pub rank: u32,
}

/// A KV block size, in tokens, that a kernel accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockSize {
    /// This one only.
    Exact(u32),
    /// Every multiple of this.
    MultipleOf(u32),
}

impl BlockSize {
    /// Does a block of `tokens` fit?
    pub fn accepts(self, tokens: u32) -> bool {
        match self {
            Self::Exact(size) => tokens == size,
            Self::MultipleOf(unit) => tokens > 0 && tokens.is_multiple_of(unit),
        }
    }
}

/// A width of an attention head that a kernel accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadSize {
    /// This one only.
    Exact(u32),
    /// Evenly spaced ones.
    Range(HeadRange),
}

/// Widths of an attention head, evenly spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRange {
    /// The least.
    pub least: u32,
    /// The most.
    pub most: u32,
    /// Every width is a multiple of this; at least 1.
    pub multiple_of: u32,
}

impl HeadSize {
    /// Is a head of this width accepted?
    pub fn accepts(self, width: u32) -> bool {
        match self {
            Self::Exact(only) => width == only,
            Self::Range(range) => {
                (range.least..=range.most).contains(&width)
                    && range.multiple_of > 0
                    && width.is_multiple_of(range.multiple_of)
            }
        }
    }
}

impl std::fmt::Display for HeadSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(only) => write!(f, "{only}"),
            Self::Range(HeadRange {
                least,
                most,
                multiple_of: 1,
            }) => write!(f, "{least} to {most}"),
            Self::Range(range) => write!(
                f,
                "multiples of {} from {} to {}",
                range.multiple_of, range.least, range.most
            ),
        }
    }
}

/// What a kernel can do inside a captured graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphSupport {
    /// Not capturable.
    #[default]
    Never,
    /// One token per sequence.
    SingleTokenDecode,
    /// The same number of tokens for every sequence.
    UniformBatch,
    /// Any batch.
    Always,
}

/// The model, as far as a hardware decision may depend on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// Architecture: `llama`, `qwen3`, `deepseek_v3`.
    pub arch: String,
    /// Dtype of the weights as stored, or of the unquantised part: `f32`, `f16`, `bf16`.
    pub dtype: String,
    /// Quantisation of most weights: `q4_1`, `fp8`, `awq`; absent for a float model.
    #[serde(default)]
    pub quantization: Option<String>,
    /// Every weight format that the file holds, with the bytes of each.
    #[serde(default)]
    pub formats: Vec<(String, u64)>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Width of one head.
    pub head_size: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key/value heads.
    pub num_kv_heads: u32,
    /// Layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width of the feed-forward part.
    pub intermediate_size: u32,
    /// Vocabulary.
    pub vocab_size: u32,
    /// Longest context the model was made for, in tokens.
    pub max_len: u32,
    /// Multi-head latent attention, where the model has it.
    #[serde(default)]
    pub mla: Option<MlaDims>,
    /// The vision encoder, where the model has one.
    #[serde(default)]
    pub vision: Option<VisionDims>,
    /// Layers that are not attention (state space) alternate with those that are.
    #[serde(default)]
    pub hybrid: bool,
    /// Bytes of the state that such a layer keeps for a sequence; absent if the model is not hybrid, or it is unknown.
    #[serde(default)]
    pub state_bytes: Option<u64>,
    /// Mixture of experts.
    #[serde(default)]
    pub moe: bool,
    /// Open list: `sliding-window`, `sinks`, `soft-cap`, `multimodal`.
    #[serde(default)]
    pub traits: Vec<String>,
}

/// The part of a model that sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionDims {
    /// Width of one head of the encoder.
    pub head_size: u32,
    /// Its heads.
    pub num_heads: u32,
}

/// Widths of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaDims {
    /// Part of a query head without rotation.
    pub nope: u32,
    /// Part with rotation.
    pub rope: u32,
    /// Width of a value head.
    pub v: u32,
    /// Rank of the compressed KV.
    pub lora_rank: u32,
}
