//! From the generated interface, which hands over owned values, to the trait, which looks at them.

use crate::platform::Platform;
use crate::prelude::{
    AttentionQuery, BatchPlan, BlockPlan, BlockQuery, Capabilities, CheckResult, Decision,
    Descriptor, Diagnostic, EngineConfig, Facts, GraphPlan, GraphQuery, Guest, KvTransferPlan,
    ModelFacts, OpShape, ParallelPlan, Patch, ProbeResult, Rule, ThreadPlan,
};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

thread_local! {
    /// What was probed last. A component has one thread.
    static FACTS: RefCell<Option<Rc<Facts>>> = const { RefCell::new(None) };
}

/// The facts that a question is about.
fn facts() -> Rc<Facts> {
    let known = FACTS.with_borrow(Clone::clone);
    known.expect("the host probes before it asks")
}

/// A platform as a component exports it.
pub struct Exported<P>(PhantomData<P>);

impl<P: Platform> Guest for Exported<P> {
    fn describe() -> Descriptor {
        P::describe()
    }

    fn probe(f: Facts) -> ProbeResult {
        let answer = P::probe(&f);
        FACTS.set(Some(Rc::new(f)));
        answer
    }

    fn device_capabilities(device: u32) -> Result<Capabilities, Diagnostic> {
        P::device_capabilities(&facts(), device)
    }

    fn batch_defaults(usage: String, world_size: u32) -> BatchPlan {
        P::batch_defaults(&facts(), &usage, world_size)
    }

    fn default_config(m: ModelFacts, c: EngineConfig) -> Vec<Patch> {
        P::default_config(&facts(), &m, &c)
    }

    fn check_config(m: ModelFacts, c: EngineConfig) -> CheckResult {
        P::check_config(&facts(), &m, &c)
    }

    fn select_attention(q: AttentionQuery) -> Decision {
        P::select_attention(&facts(), &q)
    }

    fn select_vision_attention(q: AttentionQuery) -> Decision {
        P::select_vision_attention(&facts(), &q)
    }

    fn choose_block_size(q: BlockQuery) -> Result<BlockPlan, Diagnostic> {
        P::choose_block_size(&facts(), &q)
    }

    fn kernel_priority(op: String, shape: OpShape) -> Decision {
        P::kernel_priority(&facts(), &op, &shape)
    }

    fn plan_graphs(q: GraphQuery) -> Result<GraphPlan, Diagnostic> {
        P::plan_graphs(&facts(), &q)
    }

    fn plan_memory(c: EngineConfig, device: u32, used: u64) -> Result<u64, Diagnostic> {
        P::plan_memory(&facts(), &c, device, used)
    }

    fn plan_threads(ranks: u32) -> Result<ThreadPlan, Diagnostic> {
        P::plan_threads(&facts(), ranks)
    }

    fn plan_parallel(c: EngineConfig) -> ParallelPlan {
        P::plan_parallel(&facts(), &c)
    }

    fn plan_kv_transfer() -> KvTransferPlan {
        P::plan_kv_transfer(&facts())
    }

    fn request_rules(c: EngineConfig) -> Vec<Rule> {
        P::request_rules(&facts(), &c)
    }
}
