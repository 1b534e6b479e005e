//! A tiny model, an engine around it, and what a request came to.

use plinth_engine::{
    Engine, EngineOptions, Event, FinishReason, Loading, Model, Request, RequestId, SamplingParams,
    Usage,
};
use plinth_formats::synthetic::{self, Options, tiny_vocabulary};
use plinth_formats::{ModelConfig, Packed, RopeConfig, RopeLayout, RopeScaling, Sizes};
use plinth_kernels::{Format, KernelSet, KvDtype, Selection, Workers};
use std::collections::BTreeMap;
use std::path::Path;

pub const MAX_MODEL_LEN: usize = 160;

/// Plenty of everything; tests take from it.
pub fn roomy() -> EngineOptions {
    EngineOptions {
        block_size: 16,
        num_blocks: 400,
        kv_dtype: KvDtype::F32,
        max_model_len: MAX_MODEL_LEN,
        max_num_seqs: 64,
        max_batched_tokens: 512,
        chunked_prefill: true,
        prefix_caching: false,
        max_draft: 0,
    }
}

pub fn config() -> ModelConfig {
    let sizes = Sizes {
        num_layers: 2,
        hidden_size: 48,
        intermediate_size: 80,
        num_heads: 6,
        num_kv_heads: 2,
        head_dim: 8,
        vocab_size: tiny_vocabulary().tokens.len(),
        context_length: MAX_MODEL_LEN,
    };
    let rope = RopeConfig {
        base: 10_000.0,
        dims: 8,
        layout: RopeLayout::Interleaved,
        scaling: RopeScaling::None,
    };
    ModelConfig::llama(sizes, 1e-5, rope)
}

/// An engine over the tiny model. The model is made anew, from the same seed.
pub fn engine(options: EngineOptions) -> Engine {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    let synthetic = Options {
        format: Format::F32,
        tied: true,
        biases: true,
        seed: 3,
    };
    synthetic::write(&path, &config(), &synthetic, &tiny_vocabulary()).expect("it can be written");
    let model = model(&path, &options, &Selection::best());
    Engine::new(model, options).expect("the options make sense")
}

/// The model of a file, on these kernels and two threads.
pub fn model(path: &Path, options: &EngineOptions, selection: &Selection) -> Model {
    let file = plinth_formats::open(path).expect("it opens");
    let kernels = KernelSet::bind(selection).expect("the kernels bind on this machine");
    let workers = Workers::new(2, &[]).expect("two threads");
    let loading = Loading {
        max_model_len: options.max_model_len,
        max_batched_tokens: options.max_batched_tokens,
        packed: Packed::Pack,
        progress: &|_, _| {},
    };
    Model::load(&file, kernels, workers, loading).expect("it loads")
}

/// A prompt of `len` tokens that depends on `seed`.
pub fn prompt(seed: usize, len: usize) -> Vec<u32> {
    (0..len)
        .map(|n| ((seed * 7919 + n * 104_729 + n * n * 31) % 260 + 3) as u32)
        .collect()
}

pub fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    let sampling = SamplingParams {
        max_tokens,
        logprobs: Some(2),
        ..SamplingParams::default()
    };
    Request {
        prompt,
        sampling,
        prompt_logprobs: false,
        stop: None,
    }
}

/// What came of a request. Log probabilities are compared as bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub logprobs: Vec<u32>,
    pub prompt_logprobs: Vec<Option<u32>>,
    pub end: Option<FinishReason>,
    pub usage: Usage,
}

impl Answer {
    /// What may not depend on how the engine got there.
    pub fn essence(&self) -> (&[u32], &[u32], &[Option<u32>]) {
        (&self.ids, &self.logprobs, &self.prompt_logprobs)
    }

    fn hear(&mut self, event: Event) {
        assert_eq!(self.end, None, "an event after the end: {event:?}");
        match event {
            Event::PromptLogprobs(logprobs) => {
                self.prompt_logprobs = logprobs.iter().map(|l| l.map(f32::to_bits)).collect();
            }
            Event::Token { id, logprob } => {
                self.ids.push(id);
                self.logprobs.extend(logprob.map(|l| l.logprob.to_bits()));
            }
            Event::Finished { reason, usage } => {
                self.end = Some(reason);
                self.usage = usage;
            }
        }
    }
}

/// Runs until all is done, checking the blocks after every step.
pub fn run(engine: &mut Engine) -> BTreeMap<RequestId, Answer> {
    let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
    let mut steps = 0;
    while engine.has_work() {
        let before = engine.stats();
        for output in engine.step() {
            answers
                .entry(output.request)
                .or_default()
                .hear(output.event);
        }
        engine.check_integrity();
        let after = engine.stats();
        assert!(
            after.computed_tokens > before.computed_tokens,
            "a step without a token: {before:?}"
        );
        steps += 1;
        assert!(steps < 100_000, "it does not end");
    }
    let blocks = engine.stats().blocks;
    assert_eq!(blocks.in_use, 0, "nothing runs: {blocks:?}");
    answers
}

/// Submits all at once and gives the answers in the same order.
pub fn answers(engine: &mut Engine, requests: Vec<Request>) -> Vec<Answer> {
    let ids: Vec<_> = requests
        .into_iter()
        .map(|r| engine.submit(r).expect("it is accepted"))
        .collect();
    let mut answers = run(engine);
    ids.iter()
        .map(|id| answers.remove(id).expect("every request is answered"))
        .collect()
}
