//! What a client asks for, and what it hears.

use std::collections::BTreeSet;

/// Index into the vocabulary.
pub type TokenId = u32;

/// Names a request as long as its engine lives. Later requests have greater ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(crate) u64);

/// Tokens to continue.
pub struct Request {
    /// What is there already; at least one token.
    pub prompt: Vec<TokenId>,
    /// How to go on.
    pub sampling: SamplingParams,
    /// Also report the log probability of every prompt token but the first. Such a request takes no cached prefix.
    pub prompt_logprobs: bool,
    /// Ends the answer by something that the engine does not know, such as a text.
    pub stop: Option<Box<dyn StopCondition>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("prompt", &self.prompt)
            .field("sampling", &self.sampling)
            .field("prompt_logprobs", &self.prompt_logprobs)
            .field("stop", &self.stop.is_some())
            .finish()
    }
}

/// Decides after each token whether the answer is complete. Called on the engine's thread: be quick.
pub trait StopCondition: Send {
    /// `token` was generated. True ends the answer.
    fn push(&mut self, token: TokenId) -> bool;
}

/// How tokens are drawn, and when to stop.
///
/// The order is: penalties, bias, bans, temperature, min-p, top-k, top-p, draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the likeliest token, of equals the one with the lowest id.
    pub temperature: f32,
    /// Draw from the `top_k` likeliest only; 0 for all.
    pub top_k: u32,
    /// Draw from the fewest tokens that together have this probability; over 0, up to 1.
    pub top_p: f32,
    /// Leave out tokens less likely than this share of the likeliest; 0 to 1.
    pub min_p: f32,
    /// Divides positive logits of tokens that occurred in prompt or answer, and multiplies negative ones; over 0.
    /// (Keskar et al., arXiv 1909.05858, section 4.1.)
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens that were generated; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted once for each time a token was generated; -2 to 2.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same tokens.
    pub seed: u64,
    /// Tokens that end the answer.
    pub stop_ids: Vec<TokenId>,
    /// Tokens by which the model itself ends its answer.
    pub eos_ids: Vec<TokenId>,
    /// Go on where the model would end.
    pub ignore_eos: bool,
    /// Neither `eos_ids` nor `stop_ids` are drawn before this many tokens.
    pub min_tokens: u32,
    /// Most tokens; at least 1.
    pub max_tokens: u32,
    /// Log probabilities to report: none, or the chosen token's and those of the n likeliest. They are the natural
    /// logarithm of the softmax of the raw logits, before anything above.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            stop_ids: Vec::new(),
            eos_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            max_tokens: u32::MAX,
            logprobs: None,
        }
    }
}

/// Most alternatives whose log probability can be asked for.
const MAX_LOGPROBS: u32 = 1000;

impl SamplingParams {
    /// Is every field in its range? `vocab_size` bounds the ids.
    ///
    /// # Errors
    /// The first field that is not, with what was found and expected.
    pub fn validate(&self, vocab_size: usize) -> Result<(), RequestError> {
        let float = |field, found: f32, expected, ok: fn(f32) -> bool| match ok(found) {
            true => Ok(()),
            false => Err(RequestError::sampling(field, found, expected)),
        };
        float(
            "temperature",
            self.temperature,
            "a number from 0 to 100",
            |x| (0.0..=100.0).contains(&x),
        )?;
        float("top_p", self.top_p, "a number over 0, up to 1", |x| {
            x > 0.0 && x <= 1.0
        })?;
        float("min_p", self.min_p, "a number from 0 to 1", |x| {
            (0.0..=1.0).contains(&x)
        })?;
        float(
            "repetition_penalty",
            self.repetition_penalty,
            "a number over 0, up to 100",
            |x| x > 0.0 && x <= 100.0,
        )?;
        let penalty: fn(f32) -> bool = |x| (-2.0..=2.0).contains(&x);
        float(
            "presence_penalty",
            self.presence_penalty,
            "a number from -2 to 2",
            penalty,
        )?;
        float(
            "frequency_penalty",
            self.frequency_penalty,
            "a number from -2 to 2",
            penalty,
        )?;
        if self.max_tokens == 0 {
            return Err(RequestError::sampling("max_tokens", 0, "at least 1"));
        }
        if self.min_tokens > self.max_tokens {
            let expected = format!("at most max_tokens, which is {}", self.max_tokens);
            return Err(RequestError::sampling(
                "min_tokens",
                self.min_tokens,
                expected,
            ));
        }
        if let Some(found) = self.logprobs.filter(|&n| n > MAX_LOGPROBS) {
            return Err(RequestError::sampling(
                "logprobs",
                found,
                format!("at most {MAX_LOGPROBS}"),
            ));
        }
        let known = |field, id: TokenId| match (id as usize) < vocab_size {
            true => Ok(()),
            false => Err(RequestError::sampling(
                field,
                id,
                format!("a token id under {vocab_size}"),
            )),
        };
        self.stop_ids
            .iter()
            .try_for_each(|&id| known("stop_ids", id))?;
        self.eos_ids
            .iter()
            .try_for_each(|&id| known("eos_ids", id))?;
        let mut biased = BTreeSet::new();
        for &(id, bias) in &self.logit_bias {
            known("logit_bias", id)?;
            if !bias.is_finite() {
                return Err(RequestError::sampling(
                    "logit_bias",
                    bias,
                    "a finite number",
                ));
            }
            if !biased.insert(id) {
                return Err(RequestError::sampling(
                    "logit_bias",
                    format!("token {id} twice"),
                    "each once",
                ));
            }
        }
        Ok(())
    }
}

/// A request that is not accepted. Always the request's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A sampling parameter out of its range.
    #[error("{field}: found {found}, expected {expected}")]
    Sampling {
        /// Which.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// Nothing to continue.
    #[error("the prompt is empty: expected at least one token")]
    EmptyPrompt,
    /// A token that the model does not have.
    #[error("the prompt's token {position} is {id}, expected a token id under {vocab_size}")]
    UnknownToken {
        /// Where in the prompt.
        position: usize,
        /// The id.
        id: TokenId,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// No room for an answer.
    #[error(
        "the prompt has {prompt} tokens, and the context ends at {max_model_len}: shorten the prompt, or raise the \
         longest context (--max-model-len)"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of prompt and answer together.
        max_model_len: usize,
    },
    /// The prompt and its answer can never be in the KV cache at once.
    #[error(
        "prompt and answer may take {needed} tokens, and the KV cache holds {capacity}: lower max_tokens, or give the \
         cache more memory (--kv-cache-memory)"
    )]
    CacheTooSmall {
        /// Tokens that may be needed.
        needed: usize,
        /// Tokens that there is room for.
        capacity: usize,
    },
    /// Without chunked prefill a prompt must fit into one step.
    #[error(
        "the prompt has {prompt} tokens, and a step carries {max_batched_tokens}: raise it \
         (--max-num-batched-tokens), or allow chunked prefill"
    )]
    StepTooSmall {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of a step.
        max_batched_tokens: usize,
    },
    /// The engine's thread is gone.
    #[error("the engine has stopped")]
    Stopped,
}

impl RequestError {
    fn sampling(field: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Self::Sampling {
            field,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}

/// What a client hears of its request, in order. `Finished` is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// One log probability a prompt token, given all before it; none for the first. Comes before any token.
    PromptLogprobs(Vec<Option<f32>>),
    /// A token was generated. The one that ends the answer is reported too.
    Token {
        /// Which.
        id: TokenId,
        /// Its log probability, if asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
}

/// Log probability of a token, and of the likeliest ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Of the chosen token.
    pub logprob: f32,
    /// The likeliest, most likely first.
    pub top: Vec<(TokenId, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop id or condition did.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The client cancelled it.
    Cancelled,
    /// Something went wrong, in words.
    Error(String),
}

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, taken from the prefix cache when the request was first scheduled.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Times that it had to give its KV blocks away.
    pub preemptions: usize,
    /// Tokens that were computed ahead on the guess that they would be drawn.
    pub drafted_tokens: usize,
    /// Of those, drawn and generated.
    pub accepted_tokens: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut SamplingParams), message: &str) {
        let mut params = SamplingParams::default();
        change(&mut params);
        let error = params.validate(100).expect_err("out of range").to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        SamplingParams::default()
            .validate(100)
            .expect("the defaults are in range");
        refused(|p| p.temperature = f32::NAN, "temperature: found NaN");
        refused(|p| p.temperature = -0.5, "temperature: found -0.5");
        refused(|p| p.temperature = f32::INFINITY, "temperature: found inf");
        refused(|p| p.top_p = 0.0, "top_p: found 0");
        refused(|p| p.min_p = 1.5, "min_p: found 1.5");
        refused(
            |p| p.repetition_penalty = 0.0,
            "repetition_penalty: found 0",
        );
        refused(|p| p.presence_penalty = 3.0, "presence_penalty: found 3");
        refused(
            |p| p.frequency_penalty = f32::NAN,
            "frequency_penalty: found NaN",
        );
        refused(|p| p.max_tokens = 0, "max_tokens: found 0");
        refused(
            |p| (p.min_tokens, p.max_tokens) = (5, 4),
            "min_tokens: found 5, expected at most max_tokens",
        );
        refused(|p| p.logprobs = Some(1001), "logprobs: found 1001");
        refused(
            |p| p.stop_ids = vec![100],
            "stop_ids: found 100, expected a token id under 100",
        );
        refused(
            |p| p.logit_bias = vec![(3, f32::NAN)],
            "logit_bias: found NaN",
        );
        refused(
            |p| p.logit_bias = vec![(3, 1.0), (3, 2.0)],
            "logit_bias: found token 3 twice",
        );
    }
}
