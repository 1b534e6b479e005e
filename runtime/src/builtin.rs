//! The platforms inside this binary: components like any vendor's, loaded by the same loader.

/// Id and component of each.
pub const COMPONENTS: [(&str, &[u8]); 5] = [
    ("cpu", include_bytes!(concat!(env!("OUT_DIR"), "/cpu.wasm"))),
    (
        "cuda",
        include_bytes!(concat!(env!("OUT_DIR"), "/cuda.wasm")),
    ),
    (
        "rocm",
        include_bytes!(concat!(env!("OUT_DIR"), "/rocm.wasm")),
    ),
    ("tpu", include_bytes!(concat!(env!("OUT_DIR"), "/tpu.wasm"))),
    ("xpu", include_bytes!(concat!(env!("OUT_DIR"), "/xpu.wasm"))),
];
