//! Tokens in, tokens out, over a paged KV cache.

#![forbid(unsafe_code)]
