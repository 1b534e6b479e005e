//! Between the generated types and those of `plinth-platform`, field by field: facts and questions go in, answers come
//! out.

use crate::bindings::exports::plinth::platform::platform as ask;
use crate::bindings::plinth::platform::types as wit;
use plinth_platform::{facts, policy};

/// A list, element by element.
pub(crate) fn all<A, B: From<A>>(list: impl IntoIterator<Item = A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}

/// Going in: fields that are borrowed, copied or cloned.
macro_rules! going_in {
    ($from:ty => $to:ty { $($copy:ident)* | $($clone:ident)* | $($into:ident)* | $($list:ident)* | $($option:ident)* }) => {
        impl From<&$from> for $to {
            fn from(from: &$from) -> Self {
                Self {
                    $($copy: from.$copy,)*
                    $($clone: from.$clone.clone(),)*
                    $($into: (&from.$into).into(),)*
                    $($list: all(&from.$list),)*
                    $($option: from.$option.as_ref().map(Into::into),)*
                }
            }
        }
    };
}

/// Coming out: fields that are moved.
macro_rules! coming_out {
    ($from:ty => $to:ty { $($same:ident)* | $($into:ident)* | $($list:ident)* }) => {
        impl From<$from> for $to {
            fn from(from: $from) -> Self {
                Self {
                    $($same: from.$same,)*
                    $($into: from.$into.into(),)*
                    $($list: all(from.$list),)*
                }
            }
        }
    };
}

/// Cases of an enum, both ways.
macro_rules! cases {
    ($a:ty, $b:ty { $($case:ident)* }) => {
        impl From<$a> for $b {
            fn from(from: $a) -> Self {
                match from {
                    $(<$a>::$case => Self::$case,)*
                }
            }
        }

        impl From<$b> for $a {
            fn from(from: $b) -> Self {
                match from {
                    $(<$b>::$case => Self::$case,)*
                }
            }
        }

        impl From<&$a> for $b {
            fn from(from: &$a) -> Self {
                (*from).into()
            }
        }
    };
}

cases!(policy::Severity, wit::Severity { Info Warn Reject });
cases!(policy::GraphMode, wit::GraphMode { None Piecewise Full FullDecodeOnly FullAndPiecewise });
cases!(facts::GraphSupport, wit::GraphSupport { Never SingleTokenDecode UniformBatch Always });

going_in!(facts::Version => wit::Version { major minor patch | | | | });
going_in!(facts::LogicalCpu => wit::LogicalCpu { id core node allowed | | | | });
going_in!(facts::NumaNode => wit::NumaNode { id total available visible | | | | });
going_in!(facts::Cache => wit::Cache { level bytes shared_by | | | | });
going_in!(facts::Budget => wit::Budget { threads memory | threads_limit memory_limit | | | });
going_in!(facts::HostFacts => wit::HostFacts { wsl | arch vendor model isa os | budget | logical numa caches | });
going_in!(facts::Peer => wit::Peer { device hops | link | | | });
going_in!(facts::DeviceFacts => wit::DeviceFacts {
    index capability memory_total memory_free compute_units integrated numa
    | vendor name uuid arch features | | peers |
});
going_in!(facts::DriverNote => wit::DriverNote { | driver found fix | | | });
going_in!(facts::Kernel => wit::Kernel {
    rank | id op provider dtypes kv_dtypes formats requires traits kv_layouts | graph | head_sizes block_sizes |
});
going_in!(facts::Engine => wit::Engine { | name | version | | });
going_in!(facts::Facts => wit::Facts { | env packages services | host engine | devices driver_notes kernels | });
going_in!(facts::MlaDims => wit::MlaDims { nope rope v lora_rank | | | | });
going_in!(facts::VisionDims => wit::VisionDims { head_size num_heads | | | | });
going_in!(facts::ModelFacts => wit::ModelFacts {
    weight_bytes head_size num_heads num_kv_heads layers hidden_size intermediate_size vocab_size max_len hybrid state_bytes moe
    | arch dtype quantization formats traits | | | mla vision
});
going_in!(policy::EngineConfig => wit::EngineConfig {
    block_size max_model_len max_num_seqs max_batched_tokens chunked_prefill prefix_caching async_scheduling
    cascade_attention threads tensor_parallel pipeline_parallel custom_allreduce memory_utilization kv_bytes spec_tokens
    lora
    | dtype kv_dtype capture_sizes attention_backend user_set extra | graph_mode | |
});
going_in!(policy::AttentionQuery => ask::AttentionQuery {
    device head_size num_heads num_kv_heads block_size
    | phase layer_kind dtype kv_dtype requested traits | config | | mla
});
going_in!(policy::BlockQuery => ask::BlockQuery { device state_page_bytes | backends | model config | | });
going_in!(policy::GraphQuery => ask::GraphQuery { | kernel | config weakest | | });
going_in!(policy::OpShape => ask::OpShape { m n k | dtype format traits | | | });

impl From<&facts::BlockSize> for wit::BlockSize {
    fn from(from: &facts::BlockSize) -> Self {
        match *from {
            facts::BlockSize::Exact(tokens) => Self::Exact(tokens),
            facts::BlockSize::MultipleOf(tokens) => Self::MultipleOf(tokens),
        }
    }
}

going_in!(facts::HeadRange => wit::HeadRange { least most multiple_of | | | | });

impl From<&facts::HeadSize> for wit::HeadSize {
    fn from(from: &facts::HeadSize) -> Self {
        match from {
            facts::HeadSize::Exact(width) => Self::Exact(*width),
            facts::HeadSize::Range(range) => Self::Range(range.into()),
        }
    }
}

coming_out!(wit::Version => facts::Version { major minor patch | | });
coming_out!(wit::Diagnostic => policy::Diagnostic { code path message fix | severity | });
coming_out!(ask::Descriptor => policy::Descriptor {
    id vendor visible_devices_var env_allowlist extra_quantization | version |
});
coming_out!(ask::Availability => policy::Availability { devices score | | notes });
coming_out!(ask::Capabilities => policy::Capabilities {
    dtypes kv_dtypes quantization fp8_format graph features capability | |
});
coming_out!(ask::BatchPlan => policy::BatchDefaults { max_batched_tokens max_num_seqs reason | | });
coming_out!(wit::Patch => policy::Patch { path reason overrides_user | value | });
coming_out!(ask::CheckResult => policy::ConfigCheck { | | patches diagnostics });
coming_out!(wit::Rejected => policy::Rejected { id reasons | | });
coming_out!(wit::Refusal => policy::KernelRefusal { message ranking | | rejected });
coming_out!(wit::Choice => policy::Choice { selected ranking | | rejected notes });
coming_out!(ask::BlockPlan => policy::BlockPlan {
    block_size state_block_size state_page_padded kv_layout reason | |
});
coming_out!(ask::GraphPlan => policy::GraphPlan { capture_sizes | mode | notes });
coming_out!(ask::RankBinding => policy::RankBinding { rank cpus numa | | });
coming_out!(ask::ThreadPlan => policy::ThreadPlan { reserved | | ranks notes });
coming_out!(ask::ParallelPlan => policy::ParallelPlan { collective custom_allreduce executor gather | | notes });
coming_out!(ask::KvTransferPlan => policy::KvTransferPlan { buffer_devices memory_type | | });
coming_out!(ask::Rule => policy::Rule { field op operand prompts message | | });

impl From<wit::Value> for policy::Value {
    fn from(from: wit::Value) -> Self {
        match from {
            wit::Value::Boolean(value) => Self::Boolean(value),
            wit::Value::Unsigned(value) => Self::Unsigned(value),
            wit::Value::Float(value) => Self::Float(value),
            wit::Value::Text(value) => Self::Text(value),
            wit::Value::Numbers(value) => Self::Numbers(value),
        }
    }
}

impl From<wit::Decision> for policy::Decision {
    fn from(from: wit::Decision) -> Self {
        match from {
            wit::Decision::Chosen(choice) => Self::Chosen(choice.into()),
            wit::Decision::Refused(refusal) => Self::Refused(refusal.into()),
        }
    }
}

impl From<ask::ProbeResult> for policy::Probe {
    fn from(from: ask::ProbeResult) -> Self {
        match from {
            ask::ProbeResult::Available(availability) => Self::Available(availability.into()),
            ask::ProbeResult::Unavailable(reasons) => Self::Unavailable(all(reasons)),
        }
    }
}
