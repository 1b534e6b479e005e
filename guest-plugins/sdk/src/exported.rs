//! From the generated interface, which hands over owned values, to the trait, which looks at them.

use crate::platform::Platform;
use crate::prelude::{
    AttentionQuery, BatchPlan, BlockPlan, BlockQuery, Capabilities, CheckResult, Decision,
    Descriptor, Diagnostic, EngineConfig, Facts, GraphPlan, GraphSupport, Guest, KvTransferPlan,
    ModelFacts, OpShape, ParallelPlan, Patch, ProbeResult, Rule, ThreadPlan,
};
use std::marker::PhantomData;

/// A platform as a component exports it.
pub struct Exported<P>(PhantomData<P>);

impl<P: Platform> Guest for Exported<P> {
    fn describe() -> Descriptor {
        P::describe()
    }

    fn probe(f: Facts) -> ProbeResult {
        P::probe(&f)
    }

    fn device_capabilities(f: Facts, device: u32) -> Capabilities {
        P::device_capabilities(&f, device)
    }

    fn batch_defaults(f: Facts, usage: String, world_size: u32) -> BatchPlan {
        P::batch_defaults(&f, &usage, world_size)
    }

    fn default_config(f: Facts, m: ModelFacts, c: EngineConfig) -> Vec<Patch> {
        P::default_config(&f, &m, &c)
    }

    fn check_config(f: Facts, m: ModelFacts, c: EngineConfig) -> CheckResult {
        P::check_config(&f, &m, &c)
    }

    fn select_attention(f: Facts, q: AttentionQuery) -> Decision {
        P::select_attention(&f, &q)
    }

    fn select_vision_attention(f: Facts, q: AttentionQuery) -> Decision {
        P::select_vision_attention(&f, &q)
    }

    fn choose_block_size(f: Facts, q: BlockQuery) -> Result<BlockPlan, Diagnostic> {
        P::choose_block_size(&f, &q)
    }

    fn kernel_priority(f: Facts, op: String, shape: OpShape) -> Decision {
        P::kernel_priority(&f, &op, &shape)
    }

    fn plan_graphs(
        f: Facts,
        c: EngineConfig,
        weakest: GraphSupport,
    ) -> Result<GraphPlan, Diagnostic> {
        P::plan_graphs(&f, &c, weakest)
    }

    fn plan_memory(f: Facts, c: EngineConfig, device: u32, used: u64) -> Result<u64, Diagnostic> {
        P::plan_memory(&f, &c, device, used)
    }

    fn plan_threads(f: Facts, ranks: u32) -> Result<ThreadPlan, Diagnostic> {
        P::plan_threads(&f, ranks)
    }

    fn plan_parallel(f: Facts, c: EngineConfig) -> ParallelPlan {
        P::plan_parallel(&f, &c)
    }

    fn plan_kv_transfer(f: Facts) -> KvTransferPlan {
        P::plan_kv_transfer(&f)
    }

    fn request_rules(f: Facts, c: EngineConfig) -> Vec<Rule> {
        P::request_rules(&f, &c)
    }
}
