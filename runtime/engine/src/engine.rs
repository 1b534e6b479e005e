//! The engine: one step after another, for one owner.

use crate::batch::{Batch, Purpose, Wanted};
use crate::kv_cache::{BlockCounts, KvBlocks};
use crate::model::{Model, Units};
use crate::request::{Event, FinishReason, Request, RequestError, RequestId};
use crate::sampler::{Drawn, log_sum_exp};
use crate::scheduler::Scheduler;
use crate::sequence::{Appended, Sequence};
use crate::speculation;
use plinth_kernels::{KernelSet, KvCache, KvCacheError, KvDtype, KvLayout, Record};
use std::sync::atomic::{AtomicU32, Ordering};

/// Sizes, as the plan has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens in a KV block.
    pub block_size: usize,
    /// KV blocks.
    pub num_blocks: usize,
    /// Type of the KV cache's elements.
    pub kv_dtype: KvDtype,
    /// Most tokens of prompt and answer together.
    pub max_model_len: usize,
    /// Sequences that run at once.
    pub max_num_seqs: usize,
    /// Tokens of a step.
    pub max_batched_tokens: usize,
    /// A prompt may be computed in several steps.
    pub chunked_prefill: bool,
    /// Full blocks are kept and shared between requests with the same beginning.
    pub prefix_caching: bool,
    /// Most tokens that are drafted ahead for a sequence; 0: none. A step with drafts has fewer rows than
    /// [`plinth_kernels::MANY_ROWS`], and no more than kernels of few rows take, whatever is allowed here.
    pub max_draft: usize,
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The plan's fault.
    #[error("{field}: found {found}, expected {expected}")]
    Options {
        /// Which size.
        field: &'static str,
        /// What it is.
        found: usize,
        /// What it may be.
        expected: String,
    },
    /// The plan's or the machine's fault.
    #[error(transparent)]
    Cache(#[from] KvCacheError),
}

/// An event of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Whose.
    pub request: RequestId,
    /// What.
    pub event: Event,
}

/// How the engine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// KV blocks.
    pub blocks: BlockCounts,
    /// Steps so far.
    pub steps: u64,
    /// Tokens computed so far, recomputed ones included.
    pub computed_tokens: u64,
    /// Tokens generated so far.
    pub generated_tokens: u64,
    /// Times that a request gave its blocks away.
    pub preemptions: u64,
    /// Tokens computed ahead so far, on the guess that they would be drawn.
    pub drafted_tokens: u64,
    /// Of those, drawn and generated.
    pub accepted_tokens: u64,
}

/// Runs requests on a model.
pub struct Engine {
    model: Model,
    cache: KvCache,
    options: EngineOptions,
    blocks: KvBlocks,
    scheduler: Scheduler,
    next_id: u64,
    steps: u64,
    computed_tokens: u64,
    generated_tokens: u64,
    drafted_tokens: u64,
    accepted_tokens: u64,
}

impl Engine {
    /// An engine with an empty cache.
    ///
    /// # Errors
    /// Sizes that make no sense together, or no memory.
    pub fn new(model: Model, options: EngineOptions) -> Result<Self, EngineError> {
        options.check(&model)?;
        let config = model.config();
        let layout = KvLayout {
            layers: config.num_layers,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            block_size: options.block_size,
            num_blocks: options.num_blocks,
            dtype: options.kv_dtype,
        };
        Ok(Self {
            cache: KvCache::new(layout)?,
            blocks: KvBlocks::new(
                options.num_blocks,
                options.block_size,
                options.prefix_caching,
            ),
            scheduler: Scheduler::new(options, model.few_rows().min(speculation::MOST_ROWS)),
            model,
            options,
            next_id: 0,
            steps: 0,
            computed_tokens: 0,
            generated_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
        })
    }

    /// The model that it runs.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Keeps the calling thread, which is about to take steps, where the model's memory is near to it.
    pub fn stay_near_memory(&self) {
        self.model.stay_near_memory();
    }

    /// Sizes.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, RequestError> {
        self.check(&request)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let vocab_size = self.model.config().vocab_size;
        self.scheduler
            .waiting
            .push_back(Sequence::new(id, request, vocab_size));
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let vocab_size = self.model.config().vocab_size;
        let EngineOptions {
            max_model_len,
            max_batched_tokens,
            chunked_prefill,
            ..
        } = self.options;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(RequestError::EmptyPrompt);
        }
        if let Some(position) = request
            .prompt
            .iter()
            .position(|&id| id as usize >= vocab_size)
        {
            return Err(RequestError::UnknownToken {
                position,
                id: request.prompt[position],
                vocab_size,
            });
        }
        // A scored prompt may fill the context: the token that follows it is only drawn, never computed.
        if prompt > max_model_len || (prompt == max_model_len && !request.prompt_logprobs) {
            return Err(RequestError::PromptTooLong {
                prompt,
                max_model_len,
            });
        }
        if !chunked_prefill && prompt > max_batched_tokens {
            return Err(RequestError::StepTooSmall {
                prompt,
                max_batched_tokens,
            });
        }
        request.sampling.validate(vocab_size)?;
        // The last token of an answer is never computed.
        let answer = request.sampling.max_tokens as usize - 1;
        let needed = prompt.saturating_add(answer).min(max_model_len);
        let capacity = self.blocks.capacity();
        if needed > capacity {
            return Err(RequestError::CacheTooSmall { needed, capacity });
        }
        Ok(())
    }

    /// Gives a request up. Its blocks are free at once, and nothing more is heard of it. False if it was not there.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        self.scheduler.remove(request, &mut self.blocks).is_some()
    }

    /// Is there something to do?
    pub fn has_work(&self) -> bool {
        !self.scheduler.running.is_empty() || !self.scheduler.waiting.is_empty()
    }

    /// Computes one step, and says what came of it.
    pub fn step(&mut self) -> Vec<Output> {
        let shares = self.scheduler.schedule(&mut self.blocks);
        let batch = Batch::new(&self.scheduler.running, &shares);
        let mut draws = Draws {
            max_model_len: self.options.max_model_len,
            appended: Vec::new(),
            accepted: vec![0; shares.len()],
            ended: vec![false; shares.len()],
        };
        if !batch.tokens.is_empty() {
            self.steps += 1;
            self.computed_tokens += batch.tokens.len() as u64;
            let running = &mut self.scheduler.running;
            let vocab_size = self.model.config().vocab_size;
            self.model
                .forward(&batch, &mut self.cache, &mut |wanted, logits, units| {
                    score(wanted, logits, vocab_size, running, units);
                    for (wanted, logits) in wanted.iter().zip(logits.chunks_exact_mut(vocab_size)) {
                        draws.row(wanted, logits, (running, units.kernels));
                    }
                });
        }
        let served = self.scheduler.running.iter_mut().zip(&shares);
        for ((sequence, share), &accepted) in served.zip(&draws.accepted) {
            // Cells of rows that do not count are written again by the rows that take their place.
            sequence.computed += share.known + accepted;
            self.blocks
                .offer(&mut sequence.table, &sequence.tokens[..sequence.computed]);
            if !share.draft.tokens.is_empty() {
                self.blocks.trim(&mut sequence.table, sequence.computed);
                sequence.tried(&share.draft, accepted);
                self.drafted_tokens += share.draft.tokens.len() as u64;
                self.accepted_tokens += accepted as u64;
            }
        }
        let outputs = self.commit(draws.appended);
        #[cfg(debug_assertions)]
        self.check_integrity();
        outputs
    }

    /// Begins a record of what the operations of the steps that follow cost. Steps are a little slower with it, and
    /// compute the same.
    pub fn record(&mut self) {
        self.model.record();
    }

    /// Ends the record, and gives it.
    pub fn take_record(&mut self) -> Option<Record> {
        self.model.take_record()
    }

    /// Says what was appended, and takes out what is finished.
    fn commit(&mut self, appended: Vec<(usize, Option<Appended>)>) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut finished = Vec::new();
        for (n, appended) in appended {
            let sequence = &mut self.scheduler.running[n];
            let request = sequence.id;
            let mut say = |event| outputs.push(Output { request, event });
            if let Some(logprobs) = sequence.prompt_logprobs.take() {
                say(Event::PromptLogprobs(logprobs));
            }
            let end = match appended {
                None => {
                    let message = "the model's logits are not numbers: its weights are broken";
                    Some(FinishReason::Error(message.to_owned()))
                }
                Some(Appended { drawn, end }) => {
                    let Drawn { id, logprob } = drawn;
                    self.generated_tokens += 1;
                    say(Event::Token { id, logprob });
                    end
                }
            };
            if let Some(reason) = end {
                say(Event::Finished {
                    reason,
                    usage: sequence.usage(),
                });
                finished.push(request);
            }
        }
        for request in finished {
            self.scheduler.remove(request, &mut self.blocks);
        }
        outputs
    }

    /// How it stands.
    pub fn stats(&self) -> Stats {
        Stats {
            waiting: self.scheduler.waiting.len(),
            running: self.scheduler.running.len(),
            blocks: self.blocks.counts(),
            steps: self.steps,
            computed_tokens: self.computed_tokens,
            generated_tokens: self.generated_tokens,
            preemptions: self.scheduler.preemptions,
            drafted_tokens: self.drafted_tokens,
            accepted_tokens: self.accepted_tokens,
        }
    }

    /// **Invariant:** free, cached and used blocks are all blocks, and nobody holds what he was not given.
    ///
    /// **Panics** if not. Called after every step of a debug build.
    pub fn check_integrity(&self) {
        let Scheduler {
            running, waiting, ..
        } = &self.scheduler;
        let held = running
            .iter()
            .chain(waiting)
            .map(|sequence| &sequence.table);
        self.blocks.check_integrity(held);
        for sequence in waiting {
            assert!(
                sequence.table.blocks().is_empty(),
                "{:?} waits and holds blocks",
                sequence.id
            );
        }
    }
}

impl EngineOptions {
    fn check(&self, model: &Model) -> Result<(), EngineError> {
        let within = |field, found: usize, most: usize| match (1..=most).contains(&found) {
            true => Ok(()),
            false => Err(EngineError::Options {
                field,
                found,
                expected: format!("1 to {most}"),
            }),
        };
        within("max-num-seqs", self.max_num_seqs, usize::MAX)?;
        within(
            "max-batched-tokens",
            self.max_batched_tokens,
            model.max_batched_tokens(),
        )?;
        within("max-model-len", self.max_model_len, model.max_model_len())?;
        within("num-blocks", self.num_blocks, u32::MAX as usize)
    }
}

/// What is drawn in a step, row after row: a row behind a draft counts only if the draft's token was drawn before it.
struct Draws {
    max_model_len: usize,
    /// Position in `Scheduler::running`, and what was appended there; `None` for logits that are not numbers.
    appended: Vec<(usize, Option<Appended>)>,
    /// For each running sequence, rows behind its own tokens that count.
    accepted: Vec<usize>,
    /// For each running sequence: its further rows do not count.
    ended: Vec<bool>,
}

impl Draws {
    fn row(
        &mut self,
        wanted: &Wanted,
        logits: &mut [f32],
        (running, kernels): (&mut [Sequence], &KernelSet),
    ) {
        let n = wanted.sequence;
        let Purpose::Draw { draft } = wanted.purpose else {
            return;
        };
        if self.ended[n] {
            return;
        }
        let appended = running[n].draw(kernels, logits, self.max_model_len);
        let goes_on = appended.as_ref().filter(|appended| appended.end.is_none());
        match goes_on.is_some_and(|appended| Some(appended.drawn.id) == draft) {
            true => self.accepted[n] += 1,
            false => self.ended[n] = true,
        }
        self.appended.push((n, appended));
    }
}

/// Writes down the log probabilities of prompt tokens, which needs one pass over each row of logits.
fn score(
    wanted: &[Wanted],
    logits: &[f32],
    vocab_size: usize,
    running: &mut [Sequence],
    units: &Units<'_>,
) {
    if wanted
        .iter()
        .all(|w| matches!(w.purpose, Purpose::Draw { .. }))
    {
        return;
    }
    let scores: Vec<_> = wanted.iter().map(|_| AtomicU32::new(0)).collect();
    units.workers.run(wanted.len(), &|n, _| {
        if let Purpose::Score { token, .. } = wanted[n].purpose {
            let row = &logits[n * vocab_size..(n + 1) * vocab_size];
            let score = (f64::from(row[token as usize]) - log_sum_exp(units.kernels, row)) as f32;
            scores[n].store(score.to_bits(), Ordering::Relaxed);
        }
    });
    for (wanted, score) in wanted.iter().zip(scores) {
        let scored = &mut running[wanted.sequence].prompt_logprobs;
        if let (Purpose::Score { position, .. }, Some(logprobs)) = (wanted.purpose, scored) {
            logprobs[position] = Some(f32::from_bits(score.into_inner()));
        }
    }
}
