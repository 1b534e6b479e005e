//! From the engine's tokens to text: stop texts, and the answer as it grows.

use plinth_engine::{Event, FinishReason, StopCondition, Stream, TokenId, TokenLogprob, Usage};
use plinth_text::{Detokenizer, StopStrings, Tokenizer};
use std::sync::Arc;

/// Ends an answer by its text. Lives on the engine's thread, where it sees every token before the next is computed.
pub struct TextStop {
    text: Detokenizer,
    stops: StopStrings,
}

impl TextStop {
    /// `None` if there is nothing to stop at.
    pub fn new(tokenizer: &Arc<Tokenizer>, stops: &[String]) -> Option<Self> {
        let text = Detokenizer::new(Arc::clone(tokenizer)).continuing();
        (!stops.is_empty()).then(|| Self {
            text,
            stops: StopStrings::new(stops.to_vec()),
        })
    }
}

impl StopCondition for TextStop {
    fn push(&mut self, token: TokenId) -> bool {
        let text = self.text.push(token);
        self.stops.push(&text).stopped
    }
}

/// An answer that is complete.
#[derive(Debug)]
pub struct Answer {
    pub ids: Vec<TokenId>,
    pub text: String,
    pub logprobs: Option<Vec<TokenLogprob>>,
    pub finish_reason: FinishReason,
    pub usage: Usage,
}

/// An answer on its way.
pub struct Collector {
    stream: Stream,
    detokenizer: Detokenizer,
    stops: StopStrings,
    stopped: bool,
    answer: Answer,
}

impl Collector {
    /// Collects the events of `stream`.
    pub fn new(stream: Stream, tokenizer: &Arc<Tokenizer>, stops: Vec<String>) -> Self {
        Self {
            stream,
            detokenizer: Detokenizer::new(Arc::clone(tokenizer)).continuing(),
            stops: StopStrings::new(stops),
            stopped: false,
            answer: Answer {
                ids: Vec::new(),
                text: String::new(),
                logprobs: None,
                finish_reason: FinishReason::Cancelled,
                usage: Usage::default(),
            },
        }
    }

    /// Waits for more text. `None` when the answer is complete.
    pub fn next_text(&mut self) -> Option<String> {
        let text = match self.stream.next()? {
            Event::Token { id, logprob } => {
                self.answer.ids.push(id);
                if let Some(logprob) = logprob {
                    self.answer.logprobs.get_or_insert_default().push(logprob);
                }
                let text = self.detokenizer.push(id);
                self.emit(&text)
            }
            Event::PromptLogprobs(_) => String::new(),
            Event::Finished { reason, usage } => {
                self.answer.finish_reason = reason;
                self.answer.usage = usage;
                let rest = self.detokenizer.finish();
                let mut text = self.emit(&rest);
                if !self.stopped {
                    text.push_str(&self.stops.finish());
                }
                text
            }
        };
        self.answer.text.push_str(&text);
        Some(text)
    }

    fn emit(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let pushed = self.stops.push(text);
        self.stopped = pushed.stopped;
        pushed.emit
    }

    /// The answer, as far as it has come.
    pub fn into_answer(self) -> Answer {
        self.answer
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// The engine could not finish it.
    pub fn finish(mut self) -> anyhow::Result<Answer> {
        while self.next_text().is_some() {}
        match &self.answer.finish_reason {
            FinishReason::Error(why) => Err(anyhow::anyhow!("{why}")),
            _ => Ok(self.answer),
        }
    }
}
