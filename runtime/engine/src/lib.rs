//! Tokens in, tokens out, over a paged KV cache.
//!
//! A step is three calls: schedule, run, commit. Nothing here knows text, files, a clock or a platform: the sizes come
//! from the plan, the randomness from each request's seed. One owner drives the [`Engine`]; [`EngineHandle`] puts it on
//! a thread of its own and talks to it in messages.

#![forbid(unsafe_code)]

mod engine;
mod handle;
mod request;

mod batch;
mod scheduler;
mod sequence;
mod speculation;

mod kv_cache;

mod model;
mod sampler;

pub use engine::{Engine, EngineError, EngineOptions, Output, Stats};
pub use handle::{EngineHandle, Stream};
pub use model::{Loading, Model, ModelError};
pub use request::{
    Event, FinishReason, Request, RequestError, RequestId, SamplingParams, StopCondition, TokenId,
    TokenLogprob, Usage,
};
