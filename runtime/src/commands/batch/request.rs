//! One line of a batch: what may stand in it, and the engine request that it means.

use anyhow::{Context, bail, ensure};
use plinth_engine::SamplingParams;
use plinth_text::Message;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A request as it is written. A field that does not exist is an error, not a wish ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    pub id: Option<serde_json::Value>,
    pub prompt: Option<String>,
    pub prompt_ids: Option<Vec<u32>>,
    pub messages: Option<Vec<ChatMessage>>,
    pub max_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub seed: Option<u64>,
    pub stop: Option<StopTexts>,
    pub stop_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub logprobs: Option<u32>,
}

/// One message of a chat.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    pub role: String,
    pub content: String,
}

/// One text or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum StopTexts {
    One(String),
    Several(Vec<String>),
}

/// What the model is to continue.
#[derive(Debug)]
pub enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Messages(Vec<Message>),
}

impl BatchRequest {
    /// Reads one line.
    pub fn parse(line: &str) -> anyhow::Result<Self> {
        let mut json = serde_json::Deserializer::from_str(line);
        // Says which field is wrong, which serde_json alone does not.
        let request: Self =
            serde_path_to_error::deserialize(&mut json).context("not a valid request")?;
        json.end().context("not a valid request")?;
        if let Some(id) = &request.id {
            ensure!(
                id.is_string() || id.is_number(),
                "id: found {id}, expected a string or a number"
            );
        }
        Ok(request)
    }

    /// The prompt: exactly one of the three ways to give it.
    pub fn take_prompt(&mut self) -> anyhow::Result<Prompt> {
        match (
            self.prompt.take(),
            self.prompt_ids.take(),
            self.messages.take(),
        ) {
            (Some(text), None, None) => Ok(Prompt::Text(text)),
            (None, Some(ids), None) => Ok(Prompt::Ids(ids)),
            (None, None, Some(messages)) => {
                let message = |ChatMessage { role, content }| Message { role, content };
                Ok(Prompt::Messages(
                    messages.into_iter().map(message).collect(),
                ))
            }
            (None, None, None) => bail!("no prompt: give one of prompt, prompt_ids, messages"),
            _ => bail!("more than one prompt: give one of prompt, prompt_ids, messages"),
        }
    }

    /// The texts that end the answer.
    pub fn stop_texts(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(StopTexts::One(text)) => vec![text.clone()],
            Some(StopTexts::Several(texts)) => texts.clone(),
        }
    }

    /// How to draw tokens. `room` is how many tokens may follow where the request does not say.
    pub fn sampling(&self, eos_ids: &[u32], room: u32) -> anyhow::Result<SamplingParams> {
        let defaults = SamplingParams::default();
        let logit_bias = self.logit_bias.iter().flatten().map(|(id, &bias)| {
            let id = id
                .parse()
                .with_context(|| format!("logit_bias: '{id}' is not a token id"))?;
            anyhow::Ok((id, bias))
        });
        Ok(SamplingParams {
            temperature: self.temperature.unwrap_or(0.0),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self
                .repetition_penalty
                .unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: logit_bias.collect::<anyhow::Result<_>>()?,
            seed: self.seed.unwrap_or(0),
            stop_ids: self.stop_ids.clone().unwrap_or_default(),
            eos_ids: eos_ids.to_vec(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: self.min_tokens.unwrap_or(0),
            max_tokens: self.max_tokens.unwrap_or(room),
            logprobs: self.logprobs,
        })
    }
}
