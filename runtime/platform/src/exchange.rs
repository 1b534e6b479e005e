//! Questions and answers as data: to record a plan as it was made, and to ask the same again of another platform.

use crate::facts::{Facts, ModelFacts};
use crate::policy::{
    AttentionQuery, BatchDefaults, BlockPlan, BlockQuery, Capabilities, ConfigCheck, Decision,
    Descriptor, Diagnostic, EngineConfig, Fault, GraphPlan, GraphQuery, KvTransferPlan, OpShape,
    ParallelPlan, Patch, Platform, Probe, Rule, ThreadPlan,
};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard};

type Asked<T> = Result<T, Fault>;

/// Every question of the interface, with all that it is asked with but the facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(
    missing_docs,
    reason = "the methods of `Platform` of the same names say it"
)]
pub enum Question {
    Describe,
    Probe,
    DeviceCapabilities {
        device: u32,
    },
    BatchDefaults {
        usage: String,
        world_size: u32,
    },
    DefaultConfig {
        model: ModelFacts,
        config: EngineConfig,
    },
    CheckConfig {
        model: ModelFacts,
        config: EngineConfig,
    },
    SelectAttention(AttentionQuery),
    SelectVisionAttention(AttentionQuery),
    ChooseBlockSize(BlockQuery),
    KernelPriority {
        op: String,
        shape: OpShape,
    },
    PlanGraphs(GraphQuery),
    PlanMemory {
        config: EngineConfig,
        device: u32,
        used: u64,
    },
    PlanThreads {
        ranks: u32,
    },
    PlanParallel {
        config: EngineConfig,
    },
    PlanKvTransfer,
    RequestRules {
        config: EngineConfig,
    },
}

/// The answer to each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(
    missing_docs,
    reason = "each carries what the method of `Platform` gives"
)]
pub enum Answer {
    Describe(Descriptor),
    Probe(Probe),
    DeviceCapabilities(Result<Capabilities, Diagnostic>),
    BatchDefaults(BatchDefaults),
    DefaultConfig(Vec<Patch>),
    CheckConfig(ConfigCheck),
    SelectAttention(Decision),
    SelectVisionAttention(Decision),
    ChooseBlockSize(Result<BlockPlan, Diagnostic>),
    KernelPriority(Decision),
    PlanGraphs(Result<GraphPlan, Diagnostic>),
    PlanMemory(Result<u64, Diagnostic>),
    PlanThreads(Result<ThreadPlan, Diagnostic>),
    PlanParallel(ParallelPlan),
    PlanKvTransfer(KvTransferPlan),
    RequestRules(Vec<Rule>),
    /// There was none.
    Fault(String),
}

impl Question {
    /// Its name in the interface.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Probe => "probe",
            Self::DeviceCapabilities { .. } => "device-capabilities",
            Self::BatchDefaults { .. } => "batch-defaults",
            Self::DefaultConfig { .. } => "default-config",
            Self::CheckConfig { .. } => "check-config",
            Self::SelectAttention(_) => "select-attention",
            Self::SelectVisionAttention(_) => "select-vision-attention",
            Self::ChooseBlockSize(_) => "choose-block-size",
            Self::KernelPriority { .. } => "kernel-priority",
            Self::PlanGraphs(_) => "plan-graphs",
            Self::PlanMemory { .. } => "plan-memory",
            Self::PlanThreads { .. } => "plan-threads",
            Self::PlanParallel { .. } => "plan-parallel",
            Self::PlanKvTransfer => "plan-kv-transfer",
            Self::RequestRules { .. } => "request-rules",
        }
    }

    /// Asks it. A platform that fails to answer is an answer too.
    pub fn ask(&self, platform: &mut dyn Platform, facts: &Arc<Facts>) -> Answer {
        self.put(platform, facts)
            .unwrap_or_else(|fault| Answer::Fault(fault.message))
    }

    fn put(&self, p: &mut dyn Platform, f: &Arc<Facts>) -> Asked<Answer> {
        Ok(match self {
            Self::Describe => Answer::Describe(p.describe()?),
            Self::Probe => Answer::Probe(p.probe(f)?),
            Self::DeviceCapabilities { device } => {
                Answer::DeviceCapabilities(p.device_capabilities(f, *device)?)
            }
            Self::BatchDefaults { usage, world_size } => {
                Answer::BatchDefaults(p.batch_defaults(f, usage, *world_size)?)
            }
            Self::DefaultConfig { model, config } => {
                Answer::DefaultConfig(p.default_config(f, model, config)?)
            }
            Self::CheckConfig { model, config } => {
                Answer::CheckConfig(p.check_config(f, model, config)?)
            }
            Self::SelectAttention(query) => Answer::SelectAttention(p.select_attention(f, query)?),
            Self::SelectVisionAttention(query) => {
                Answer::SelectVisionAttention(p.select_vision_attention(f, query)?)
            }
            Self::ChooseBlockSize(query) => Answer::ChooseBlockSize(p.choose_block_size(f, query)?),
            Self::KernelPriority { op, shape } => {
                Answer::KernelPriority(p.kernel_priority(f, op, shape)?)
            }
            Self::PlanGraphs(query) => Answer::PlanGraphs(p.plan_graphs(f, query)?),
            Self::PlanMemory {
                config,
                device,
                used,
            } => Answer::PlanMemory(p.plan_memory(f, config, *device, *used)?),
            Self::PlanThreads { ranks } => Answer::PlanThreads(p.plan_threads(f, *ranks)?),
            Self::PlanParallel { config } => Answer::PlanParallel(p.plan_parallel(f, config)?),
            Self::PlanKvTransfer => Answer::PlanKvTransfer(p.plan_kv_transfer(f)?),
            Self::RequestRules { config } => Answer::RequestRules(p.request_rules(f, config)?),
        })
    }
}

/// A question, the facts that it was about, and the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// What was asked.
    pub question: Question,
    /// What was answered.
    pub answer: Answer,
}

/// An exchange, with the facts that were seen when it was asked.
pub type Seen = (Arc<Facts>, Exchange);

/// What was asked of a platform, in order: a recorder writes it, and whoever set the recorder up reads it.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    /// What was written down so far.
    pub fn exchanges(&self) -> Vec<Seen> {
        self.entries().clone()
    }

    /// A panic while it was held is a bug elsewhere: what was written down still stands.
    fn entries(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A platform that writes down what it is asked and what it answers.
pub struct Recorder {
    inner: Box<dyn Platform>,
    log: Log,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// Records `inner` into `log`.
    pub fn new(inner: Box<dyn Platform>, log: Log) -> Self {
        Self { inner, log }
    }

    fn record(&mut self, facts: &Arc<Facts>, question: Question) -> Asked<Answer> {
        let answered = question.put(self.inner.as_mut(), facts);
        let answer = match &answered {
            Ok(answer) => answer.clone(),
            Err(fault) => Answer::Fault(fault.message.clone()),
        };
        let exchange = Exchange { question, answer };
        self.log.entries().push((Arc::clone(facts), exchange));
        answered
    }
}

/// The answer of the kind that the question asks for, which it is by construction.
macro_rules! recorded {
    ($self:ident, $facts:ident, $question:expr => $answer:ident) => {
        match $self.record($facts, $question)? {
            Answer::$answer(answer) => Ok(answer),
            other => unreachable!("asked for {}, answered {other:?}", stringify!($answer)),
        }
    };
}

impl Platform for Recorder {
    fn describe(&mut self) -> Asked<Descriptor> {
        // Asked before there are facts, and the same whatever they are.
        self.inner.describe()
    }

    fn probe(&mut self, facts: &Arc<Facts>) -> Asked<Probe> {
        recorded!(self, facts, Question::Probe => Probe)
    }

    fn device_capabilities(
        &mut self,
        facts: &Arc<Facts>,
        device: u32,
    ) -> Asked<Result<Capabilities, Diagnostic>> {
        recorded!(self, facts, Question::DeviceCapabilities { device } => DeviceCapabilities)
    }

    fn batch_defaults(
        &mut self,
        facts: &Arc<Facts>,
        usage: &str,
        world_size: u32,
    ) -> Asked<BatchDefaults> {
        let usage = usage.to_owned();
        recorded!(self, facts, Question::BatchDefaults { usage, world_size } => BatchDefaults)
    }

    fn default_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Asked<Vec<Patch>> {
        let (model, config) = (model.clone(), config.clone());
        recorded!(self, facts, Question::DefaultConfig { model, config } => DefaultConfig)
    }

    fn check_config(
        &mut self,
        facts: &Arc<Facts>,
        model: &ModelFacts,
        config: &EngineConfig,
    ) -> Asked<ConfigCheck> {
        let (model, config) = (model.clone(), config.clone());
        recorded!(self, facts, Question::CheckConfig { model, config } => CheckConfig)
    }

    fn select_attention(&mut self, facts: &Arc<Facts>, query: &AttentionQuery) -> Asked<Decision> {
        recorded!(self, facts, Question::SelectAttention(query.clone()) => SelectAttention)
    }

    fn select_vision_attention(
        &mut self,
        facts: &Arc<Facts>,
        query: &AttentionQuery,
    ) -> Asked<Decision> {
        recorded!(self, facts, Question::SelectVisionAttention(query.clone()) => SelectVisionAttention)
    }

    fn choose_block_size(
        &mut self,
        facts: &Arc<Facts>,
        query: &BlockQuery,
    ) -> Asked<Result<BlockPlan, Diagnostic>> {
        recorded!(self, facts, Question::ChooseBlockSize(query.clone()) => ChooseBlockSize)
    }

    fn kernel_priority(
        &mut self,
        facts: &Arc<Facts>,
        op: &str,
        shape: &OpShape,
    ) -> Asked<Decision> {
        let (op, shape) = (op.to_owned(), shape.clone());
        recorded!(self, facts, Question::KernelPriority { op, shape } => KernelPriority)
    }

    fn plan_graphs(
        &mut self,
        facts: &Arc<Facts>,
        query: &GraphQuery,
    ) -> Asked<Result<GraphPlan, Diagnostic>> {
        recorded!(self, facts, Question::PlanGraphs(query.clone()) => PlanGraphs)
    }

    fn plan_memory(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
        device: u32,
        used: u64,
    ) -> Asked<Result<u64, Diagnostic>> {
        let config = config.clone();
        recorded!(self, facts, Question::PlanMemory { config, device, used } => PlanMemory)
    }

    fn plan_threads(
        &mut self,
        facts: &Arc<Facts>,
        ranks: u32,
    ) -> Asked<Result<ThreadPlan, Diagnostic>> {
        recorded!(self, facts, Question::PlanThreads { ranks } => PlanThreads)
    }

    fn plan_parallel(&mut self, facts: &Arc<Facts>, config: &EngineConfig) -> Asked<ParallelPlan> {
        let config = config.clone();
        recorded!(self, facts, Question::PlanParallel { config } => PlanParallel)
    }

    fn plan_kv_transfer(&mut self, facts: &Arc<Facts>) -> Asked<KvTransferPlan> {
        recorded!(self, facts, Question::PlanKvTransfer => PlanKvTransfer)
    }

    fn request_rules(&mut self, facts: &Arc<Facts>, config: &EngineConfig) -> Asked<Vec<Rule>> {
        let config = config.clone();
        recorded!(self, facts, Question::RequestRules { config } => RequestRules)
    }
}
