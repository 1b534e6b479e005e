//! The one place that trusts compiled code: an artifact that this installation made, its MAC verified.

#![allow(
    unsafe_code,
    reason = "Wasmtime believes what an artifact says; see below why these may be believed"
)]

use wasmtime::Engine;
use wasmtime::component::Component;

/// An artifact whose MAC was verified with the key of this installation.
pub(crate) struct Verified<'a>(&'a [u8]);

impl<'a> Verified<'a> {
    /// `artifact` was serialised by this installation: the caller has verified its MAC over exactly these bytes.
    pub fn new(artifact: &'a [u8]) -> Self {
        Self(artifact)
    }
}

/// Loads it. `None` if it is of another version or for other settings.
pub(crate) fn deserialize(engine: &Engine, artifact: &Verified<'_>) -> Option<Component> {
    // SAFETY: `deserialize` needs bytes that `Component::serialize` gave and nobody changed since. A `Verified` is made
    // only by `cache::Cache::find`, after an HMAC over all of them with a key that only this user can read; the bytes
    // are in our memory, not in a mapped file that could change afterwards. Another version of Wasmtime, other settings
    // and another CPU are refused by `deserialize` itself.
    unsafe { Component::deserialize(engine, artifact.0) }.ok()
}
