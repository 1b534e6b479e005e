//! A started model: text in, text out, under the plan's rules.

use crate::answer::{Collector, TextStop};
use crate::error::{Failure, Result};
use crate::pack_cache::PackedWeights;
use anyhow::{Context, anyhow};
use plinth_engine::{EngineHandle, Request, SamplingParams};
use plinth_formats::ModelFile;
use plinth_platform::plan::Plan;
use plinth_platform::rule::{self, RequestView};
use plinth_text::{ChatOptions, ChatTemplate, Message, Special, Tokenizer};
use std::sync::Arc;

/// Everything that answers prompts.
pub struct Session {
    /// Why it runs as it does.
    pub plan: Plan,
    /// Text to tokens and back.
    pub text: Arc<Tokenizer>,
    /// Tokens in, tokens out.
    pub engine: EngineHandle,
    /// Let messages hold control tokens.
    pub trust_content: bool,
    /// What became of the packed weights, if they were to be kept.
    pub packed: Option<PackedWeights>,
    template: Option<ChatTemplate>,
}

impl Session {
    /// Joins the parts.
    pub fn new(
        file: &ModelFile,
        plan: Plan,
        text: Arc<Tokenizer>,
        engine: EngineHandle,
    ) -> Result<Self> {
        let source = file.chat_template().map_err(Failure::input)?;
        let template = source
            .map(|source| ChatTemplate::new(&source, &text))
            .transpose();
        let template = template
            .with_context(|| format!("'{}': its chat template", file.path().display()))
            .map_err(Failure::Input)?;
        Ok(Self {
            plan,
            text,
            engine,
            trust_content: false,
            packed: None,
            template,
        })
    }

    /// Tells what became of the packed weights; if it shall be quiet, only what went wrong.
    pub fn tell_packed(&self, quiet: bool) {
        if let Some(packed) = &self.packed {
            packed.tell(quiet);
        }
    }

    /// Does the model have a chat template?
    pub fn can_chat(&self) -> bool {
        self.template.is_some()
    }

    /// The tokens of a prompt that is continued as it is; control tokens in it are parsed.
    pub fn encode_raw(&self, text: &str) -> Vec<u32> {
        self.text.with_bos(self.text.encode(text, Special::Parse))
    }

    /// The tokens of a chat.
    pub fn encode_chat(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        let template = self.template.as_ref().ok_or_else(|| {
            anyhow!("the model has no chat template: give a plain prompt (--raw, or \"prompt\" in a batch)")
        })?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let options = ChatOptions {
            now: now
                .ok()
                .and_then(|since| i64::try_from(since.as_secs()).ok()),
            trust_content: self.trust_content,
            ..ChatOptions::default()
        };
        Ok(template.encode(&self.text, messages, &options)?)
    }

    /// Tokens that may follow a prompt of `prompt` tokens.
    pub fn room(&self, prompt: usize) -> u32 {
        let len = self.plan.engine.max_model_len;
        // A prompt that leaves no room is refused by the engine, which knows both numbers.
        len.saturating_sub(u32::try_from(prompt).unwrap_or(u32::MAX))
            .max(1)
    }

    /// Sends a request, after the plan's rules have judged it.
    pub fn submit(
        &self,
        prompt: Vec<u32>,
        mut sampling: SamplingParams,
        stops: Vec<String>,
    ) -> anyhow::Result<Collector> {
        let view = RequestView {
            prompt_len: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            max_tokens: Some(sampling.max_tokens),
            temperature: Some(sampling.temperature),
            top_k: (sampling.top_k > 0).then_some(sampling.top_k),
            top_p: (sampling.top_p < 1.0).then_some(sampling.top_p),
            min_p: (sampling.min_p > 0.0).then_some(sampling.min_p),
            seed: (sampling.seed > 0).then_some(sampling.seed),
            logprobs: sampling.logprobs,
        };
        let platform = &self.plan.platform.id;
        let cap = rule::judge(&self.plan.rules, &view);
        let cap = cap
            .map_err(|message| anyhow!("refused by a rule of platform '{platform}': {message}"))?;
        sampling.max_tokens = cap.map_or(sampling.max_tokens, |cap| sampling.max_tokens.min(cap));
        if let Some(empty) = stops.iter().position(String::is_empty) {
            return Err(anyhow!(
                "stop: text {empty} is empty, expected at least one character"
            ));
        }
        let stop = TextStop::new(&self.text, &stops);
        let request = Request {
            prompt,
            sampling,
            prompt_logprobs: false,
            stop: stop.map(|stop| Box::new(stop) as _),
        };
        let stream = self.engine.submit(request)?;
        Ok(Collector::new(stream, &self.text, stops))
    }
}
