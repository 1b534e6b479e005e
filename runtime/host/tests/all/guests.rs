//! What the tests share: guests built from their source, and a machine to ask them about.

#[path = "../../../../guest-plugins/build_guests.rs"]
mod build_guests;

use plinth_host::{Guest, Host, HostOptions, LogSink};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::plan::Origin;
use plinth_platform::policy::{AttentionQuery, EngineConfig};
use plinth_platform::registry::{Candidate, Registry};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Where the guests lie, built once. Beside the profiles' folders, as the binary's build script has it.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-plugins");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guests");
        let built = build_guests::build_guests(
            &source,
            &target,
            &["cpu", "cuda", "rocm", "tpu", "xpu", "hostile"],
        );
        built.unwrap_or_else(|why| panic!("{why}"))
    })
}

/// The component of a guest.
pub fn component(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A host with a cache that all tests share, since an unoptimised compiler takes seconds.
pub fn host() -> Host {
    host_with_log(None)
}

pub fn host_with_log(log: Option<LogSink>) -> Host {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-cache");
    let options = HostOptions {
        cache: Some(folder.join("guests")),
        key: Some(folder),
        log,
        ..HostOptions::default()
    };
    Host::new(&options).expect("WebAssembly runs on this machine")
}

pub fn hostile() -> Guest {
    let loaded = host().load_bytes("hostile.wasm", &component("hostile"));
    loaded.expect("it is hostile only when it runs")
}

/// A machine with AVX2 and no AVX-512, and the catalogue of this build.
pub fn facts() -> Arc<Facts> {
    let text = include_str!("../../../../tests/facts/epyc-zen3.json");
    let mut facts: Facts = serde_json::from_str(text).expect("the fixture is facts");
    facts.kernels = plinth_kernels::catalog();
    Arc::new(facts)
}

/// A question about attention on that machine.
pub fn attention() -> AttentionQuery {
    AttentionQuery {
        device: 0,
        phase: "decode".to_owned(),
        layer_kind: "full".to_owned(),
        head_size: 64,
        num_heads: 9,
        num_kv_heads: 3,
        dtype: "f32".to_owned(),
        kv_dtype: "f16".to_owned(),
        block_size: None,
        requested: None,
        traits: Vec::new(),
        mla: None,
        config: EngineConfig::default(),
    }
}

pub fn facts_with_attack(attack: &str) -> Arc<Facts> {
    let env = vec![("ATTACK".to_owned(), attack.to_owned())];
    Arc::new(Facts {
        env,
        ..Facts::clone(&facts())
    })
}

/// The built-in `cpu`, and the hostile one as a file.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let path = "hostile.wasm".to_owned();
    for (name, origin) in [("cpu", Origin::BuiltIn), ("hostile", Origin::File { path })] {
        let guest = host().load_bytes(name, &component(name));
        let guest = guest.unwrap_or_else(|error| panic!("{error}"));
        registry.register(Candidate {
            digest: guest.digest().to_owned(),
            platform: Box::new(guest),
            origin,
        });
    }
    registry
}

/// A small dense model.
pub fn model() -> ModelFacts {
    ModelFacts {
        arch: "llama".to_owned(),
        dtype: "f32".to_owned(),
        quantization: Some("q4_1".to_owned()),
        formats: vec![("q4_1".to_owned(), 90 << 20)],
        weight_bytes: 90 << 20,
        head_size: 64,
        num_heads: 9,
        num_kv_heads: 3,
        layers: 30,
        hidden_size: 576,
        intermediate_size: 1536,
        vocab_size: 49152,
        max_len: 8192,
        mla: None,
        vision: None,
        hybrid: false,
        state_bytes: None,
        moe: false,
        traits: Vec::new(),
    }
}
