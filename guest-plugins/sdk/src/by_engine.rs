//! One platform with two sets of rules, by the engine that is asked about.

use crate::platform::Platform;
use crate::prelude::{
    AttentionQuery, BatchPlan, BlockPlan, BlockQuery, Capabilities, CheckResult, Decision,
    Descriptor, Diagnostic, EngineConfig, Facts, GraphPlan, GraphQuery, KvTransferPlan, ModelFacts,
    OpShape, ParallelPlan, Patch, ProbeResult, Rule, ThreadPlan,
};
use crate::vllm;
use std::marker::PhantomData;

/// Decides as `V` where vLLM's kernels are asked about, and as `P` otherwise. It is who `P` says it is.
pub struct ByEngine<P, V>(PhantomData<(P, V)>);

macro_rules! by_engine {
    ($(fn $question:ident(facts $(, $name:ident: $kind:ty)*) -> $answer:ty;)*) => {
        impl<P: Platform, V: Platform> Platform for ByEngine<P, V> {
            fn describe() -> Descriptor {
                P::describe()
            }

            $(fn $question(facts: &Facts $(, $name: $kind)*) -> $answer {
                match vllm::asks(facts) {
                    true => V::$question(facts $(, $name)*),
                    false => P::$question(facts $(, $name)*),
                }
            })*
        }
    };
}

by_engine! {
    fn probe(facts) -> ProbeResult;
    fn device_capabilities(facts, device: u32) -> Result<Capabilities, Diagnostic>;
    fn batch_defaults(facts, usage: &str, world_size: u32) -> BatchPlan;
    fn default_config(facts, model: &ModelFacts, config: &EngineConfig) -> Vec<Patch>;
    fn check_config(facts, model: &ModelFacts, config: &EngineConfig) -> CheckResult;
    fn select_attention(facts, query: &AttentionQuery) -> Decision;
    fn select_vision_attention(facts, query: &AttentionQuery) -> Decision;
    fn choose_block_size(facts, query: &BlockQuery) -> Result<BlockPlan, Diagnostic>;
    fn kernel_priority(facts, op: &str, shape: &OpShape) -> Decision;
    fn plan_graphs(facts, query: &GraphQuery) -> Result<GraphPlan, Diagnostic>;
    fn plan_memory(facts, config: &EngineConfig, device: u32, used: u64) -> Result<u64, Diagnostic>;
    fn plan_threads(facts, ranks: u32) -> Result<ThreadPlan, Diagnostic>;
    fn plan_parallel(facts, config: &EngineConfig) -> ParallelPlan;
    fn plan_kv_transfer(facts) -> KvTransferPlan;
    fn request_rules(facts, config: &EngineConfig) -> Vec<Rule>;
}
