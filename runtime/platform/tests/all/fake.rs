//! A platform that says what a test wants, and what the floor says otherwise; machines; a model.

use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::floor::Floor;
use plinth_platform::plan::Origin;
use plinth_platform::policy::*;
use plinth_platform::registry::{Candidate, Registry};
use std::sync::{Arc, Mutex};

/// Variables with their values.
pub type Environment = Vec<(String, String)>;

/// What a fake says differently from the floor. Copied for each registry.
#[derive(Clone)]
pub struct Fake {
    pub id: String,
    pub probe: Result<Probe, String>,
    pub env_allowlist: Vec<String>,
    pub defaults: Vec<Patch>,
    pub check: ConfigCheck,
    pub batch: Option<BatchDefaults>,
    pub attention: Option<Decision>,
    pub kv_bytes: Option<u64>,
    /// The node that a rank is for.
    pub numa: Option<u32>,
    /// Every environment that it was shown.
    pub seen_env: Arc<Mutex<Vec<Environment>>>,
}

pub fn available(score: u32) -> Probe {
    Probe::Available(Availability {
        devices: Vec::new(),
        score,
        notes: Vec::new(),
    })
}

pub fn diagnostic(severity: Severity, message: &str) -> Diagnostic {
    Diagnostic {
        severity,
        code: "made-up".to_owned(),
        path: None,
        message: message.to_owned(),
        fix: Some(format!("undo '{message}'")),
    }
}

pub fn patch(path: &str, value: Value) -> Patch {
    Patch {
        path: path.to_owned(),
        value,
        reason: "a test wants it".to_owned(),
        overrides_user: false,
    }
}

impl Fake {
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            probe: Ok(available(10)),
            env_allowlist: Vec::new(),
            defaults: Vec::new(),
            check: ConfigCheck::default(),
            batch: None,
            attention: None,
            kv_bytes: None,
            numa: None,
            seen_env: Arc::default(),
        }
    }

    pub fn unavailable(id: &str, why: &str) -> Self {
        Self {
            probe: Ok(Probe::Unavailable(vec![diagnostic(Severity::Reject, why)])),
            ..Self::new(id)
        }
    }

    pub fn failing(id: &str, why: &str) -> Self {
        Self {
            probe: Err(why.to_owned()),
            ..Self::new(id)
        }
    }

    pub fn built_in(self) -> Candidate {
        self.from(Origin::BuiltIn)
    }

    pub fn file(self, path: &str) -> Candidate {
        self.from(Origin::File {
            path: path.to_owned(),
        })
    }

    fn from(self, origin: Origin) -> Candidate {
        Candidate {
            digest: format!("sha256:of-{}", self.id),
            platform: Box::new(self),
            origin,
        }
    }

    fn fault(&self, question: &str, message: &str) -> Fault {
        Fault {
            platform: self.id.clone(),
            digest: format!("sha256:of-{}", self.id),
            question: question.to_owned(),
            message: message.to_owned(),
        }
    }
}

type Asked<T> = Result<T, Fault>;

impl Platform for Fake {
    fn describe(&mut self) -> Asked<Descriptor> {
        Ok(Descriptor {
            id: self.id.clone(),
            env_allowlist: self.env_allowlist.clone(),
            ..Floor.describe()?
        })
    }
    fn probe(&mut self, facts: &Arc<Facts>) -> Asked<Probe> {
        let mut seen = self.seen_env.lock().expect("no test panics here");
        seen.push(facts.env.clone());
        drop(seen);
        let answer = self.probe.clone();
        answer.map_err(|message| self.fault("probe", &message))
    }
    fn device_capabilities(
        &mut self,
        facts: &Arc<Facts>,
        device: u32,
    ) -> Asked<Result<Capabilities, Diagnostic>> {
        Floor.device_capabilities(facts, device)
    }
    fn batch_defaults(&mut self, facts: &Arc<Facts>, usage: &str, n: u32) -> Asked<BatchDefaults> {
        match &self.batch {
            Some(batch) => Ok(batch.clone()),
            None => Floor.batch_defaults(facts, usage, n),
        }
    }
    fn default_config(
        &mut self,
        _: &Arc<Facts>,
        _: &ModelFacts,
        _: &EngineConfig,
    ) -> Asked<Vec<Patch>> {
        Ok(self.defaults.clone())
    }
    fn check_config(
        &mut self,
        _: &Arc<Facts>,
        _: &ModelFacts,
        _: &EngineConfig,
    ) -> Asked<ConfigCheck> {
        Ok(self.check.clone())
    }
    fn select_attention(&mut self, facts: &Arc<Facts>, query: &AttentionQuery) -> Asked<Decision> {
        match &self.attention {
            Some(decision) => Ok(decision.clone()),
            None => Floor.select_attention(facts, query),
        }
    }
    fn select_vision_attention(
        &mut self,
        facts: &Arc<Facts>,
        q: &AttentionQuery,
    ) -> Asked<Decision> {
        Floor.select_vision_attention(facts, q)
    }
    fn choose_block_size(
        &mut self,
        facts: &Arc<Facts>,
        query: &BlockQuery,
    ) -> Asked<Result<BlockPlan, Diagnostic>> {
        Floor.choose_block_size(facts, query)
    }
    fn kernel_priority(
        &mut self,
        facts: &Arc<Facts>,
        op: &str,
        shape: &OpShape,
    ) -> Asked<Decision> {
        Floor.kernel_priority(facts, op, shape)
    }
    fn plan_graphs(
        &mut self,
        facts: &Arc<Facts>,
        query: &GraphQuery,
    ) -> Asked<Result<GraphPlan, Diagnostic>> {
        Floor.plan_graphs(facts, query)
    }
    fn plan_memory(
        &mut self,
        facts: &Arc<Facts>,
        config: &EngineConfig,
        device: u32,
        used: u64,
    ) -> Asked<Result<u64, Diagnostic>> {
        match self.kv_bytes {
            Some(bytes) => Ok(Ok(bytes)),
            None => Floor.plan_memory(facts, config, device, used),
        }
    }
    fn plan_threads(
        &mut self,
        facts: &Arc<Facts>,
        n: u32,
    ) -> Asked<Result<ThreadPlan, Diagnostic>> {
        let mut answer = Floor.plan_threads(facts, n)?;
        if let Ok(plan) = &mut answer {
            plan.ranks.iter_mut().for_each(|rank| rank.numa = self.numa);
        }
        Ok(answer)
    }
    fn plan_parallel(&mut self, facts: &Arc<Facts>, config: &EngineConfig) -> Asked<ParallelPlan> {
        Floor.plan_parallel(facts, config)
    }
    fn plan_kv_transfer(&mut self, facts: &Arc<Facts>) -> Asked<KvTransferPlan> {
        Floor.plan_kv_transfer(facts)
    }
    fn request_rules(&mut self, facts: &Arc<Facts>, config: &EngineConfig) -> Asked<Vec<Rule>> {
        Floor.request_rules(facts, config)
    }
}

pub fn registry(candidates: impl IntoIterator<Item = Candidate>) -> Registry {
    let mut registry = Registry::default();
    for candidate in candidates {
        registry.register(candidate);
    }
    registry
}

/// Machines on file, with the catalogue of this build.
pub fn machines() -> Vec<(&'static str, Facts)> {
    macro_rules! on_file {
        ($($name:literal),*) => {
            [$(($name, include_str!(concat!("../../../../tests/facts/", $name, ".json")))),*]
        };
    }
    let files = on_file![
        "epyc-zen3",
        "xeon-spr-2s",
        "arm-graviton3",
        "h100-box",
        "small-container"
    ];
    files
        .into_iter()
        .map(|(name, text)| {
            let mut facts: Facts = serde_json::from_str(text).expect(name);
            facts.kernels = plinth_kernels::catalog();
            (name, facts)
        })
        .collect()
}

/// A machine with AVX2.
pub fn machine() -> Facts {
    machines().remove(0).1
}

/// A small dense model in `format`.
pub fn model(format: &str) -> ModelFacts {
    ModelFacts {
        arch: "llama".to_owned(),
        dtype: "f32".to_owned(),
        quantization: Some(format.to_owned()),
        formats: vec![(format.to_owned(), 90 << 20)],
        weight_bytes: 90 << 20,
        head_size: 64,
        num_heads: 9,
        num_kv_heads: 3,
        layers: 30,
        hidden_size: 576,
        intermediate_size: 1536,
        vocab_size: 49152,
        max_len: 8192,
        mla: None,
        vision: None,
        hybrid: false,
        state_bytes: None,
        moe: false,
        traits: Vec::new(),
    }
}
