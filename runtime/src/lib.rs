//! Plinth as a library: the composition root of the runtime.
