//! What `wit/platform.wit` generates.

#![allow(missing_docs, reason = "generated")]

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "platform-plugin",
    imports: { default: trappable },
});
