//! What foresight costs: questions about machines that are on file, and 5,000 plans; `cargo bench -p plinth-host`.
//!
//! 100 machines (those of `tests/facts`, some of them twice) with 50 models (those of `tests/models`, of other depths), as
//! vLLM's catalogue has them, all asked of the built-in guests on one thread.

#[path = "../tests/all/guests.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod guests;

use plinth_platform::exchange::Question;
use plinth_platform::facts::{Engine, Facts, Kernel, ModelFacts, Version};
use plinth_platform::plan::Origin;
use plinth_platform::policy::Platform;
use plinth_platform::registry::{Candidate, Registry};
use plinth_platform::resolve::{Wishes, resolve};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const GUESTS: [&str; 5] = ["cpu", "cuda", "rocm", "tpu", "xpu"];

fn read<T: serde::de::DeserializeOwned>(folder: &str) -> Vec<T> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests")
        .join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("it is in the repository")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    files.sort();
    let parse = |path: &std::path::PathBuf| {
        let text = std::fs::read(path).expect("it can be read");
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    files.iter().map(parse).collect()
}

/// The kernels of vLLM's build for a vendor's devices.
fn kernels(vendor: &str) -> Vec<Kernel> {
    let build = match vendor {
        "nvidia" => "cuda",
        "amd" => "rocm",
        "intel" => "xpu",
        "google" => "tpu",
        "habana" => "gaudi",
        _ => "cpu",
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../src/catalogues/vllm-0.22.1/{build}.json"));
    let text = std::fs::read(path).expect("it is in the repository");
    let mut whole: serde_json::Value = serde_json::from_slice(&text).expect("it is JSON");
    serde_json::from_value(whole["kernels"].take()).expect("it holds kernels")
}

fn machines() -> Vec<Arc<Facts>> {
    let on_file: Vec<Facts> = read("facts");
    let of_vllm = |facts: &Facts| {
        let vendor = facts
            .devices
            .first()
            .map_or("", |device| device.vendor.as_str());
        Arc::new(Facts {
            kernels: kernels(vendor),
            engine: Engine {
                name: "vllm".to_owned(),
                version: Version {
                    major: 0,
                    minor: 22,
                    patch: 1,
                },
            },
            ..facts.clone()
        })
    };
    on_file.iter().cycle().take(100).map(of_vllm).collect()
}

fn models() -> Vec<ModelFacts> {
    let on_file: Vec<ModelFacts> = read("models");
    let deeper = |(n, model): (usize, &ModelFacts)| ModelFacts {
        layers: model.layers + (n / on_file.len()) as u32,
        ..model.clone()
    };
    on_file
        .iter()
        .cycle()
        .enumerate()
        .take(50)
        .map(deeper)
        .collect()
}

fn registry() -> Registry {
    let host = guests::host();
    let mut registry = Registry::default();
    for name in GUESTS {
        let guest = host
            .load_bytes(name, &guests::component(name))
            .expect("it loads");
        registry.register(Candidate {
            digest: guest.digest().to_owned(),
            platform: Box::new(guest),
            origin: Origin::BuiltIn,
        });
    }
    registry
}

/// Id of the platform, what it was asked about, and what it was asked.
type Asked = (String, Arc<Facts>, Question);

fn main() {
    let (machines, models) = (machines(), models());
    let mut asked: BTreeMap<&str, Vec<Asked>> = BTreeMap::new();
    // Every question of one plan of each machine and model on file, with who was asked.
    for facts in &machines[..59] {
        for model in &models[..3] {
            let mut registry = registry();
            let logs = registry.record();
            let _ = resolve(&mut registry, facts, model, &Wishes::default());
            for (id, _, log) in logs {
                for (facts, exchange) in log.exchanges() {
                    let question = exchange.question;
                    let of_its_name = asked.entry(question.name()).or_default();
                    of_its_name.push((id.clone(), facts, question));
                }
            }
        }
    }
    let host = guests::host();
    let mut loaded: BTreeMap<_, _> = GUESTS
        .iter()
        .map(|name| {
            let guest = host
                .load_bytes(name, &guests::component(name))
                .expect("it loads");
            ((*name).to_owned(), guest)
        })
        .collect();
    let mut all: Vec<Duration> = Vec::new();
    for (name, questions) in &asked {
        let mut taken = Vec::new();
        for (id, facts, question) in questions {
            let Some(guest) = loaded.get_mut(id) else {
                continue;
            };
            if *name != "probe" {
                // Facts are handed over once, and paid for there.
                let _ = guest.probe(facts);
                std::hint::black_box(question.ask(guest, facts));
            }
            for _ in 0..5 {
                let started = Instant::now();
                std::hint::black_box(question.ask(guest, facts));
                taken.push(started.elapsed());
            }
        }
        taken.sort();
        let late = taken[taken.len() * 99 / 100];
        println!(
            "{name:<24} {:>8.1?} median {late:>8.1?} p99  ({} asked)",
            taken[taken.len() / 2],
            questions.len()
        );
        if *name != "probe" {
            all.extend(taken);
        }
    }
    all.sort();
    let median = all[all.len() / 2];
    println!(
        "{:<24} {median:>8.1?} median, {:.0} decisions a second",
        "all but probe",
        1.0 / median.as_secs_f64()
    );

    let mut registry = registry();
    let started = Instant::now();
    let mut served = 0;
    for facts in &machines {
        for model in &models {
            served += usize::from(resolve(&mut registry, facts, model, &Wishes::default()).is_ok());
        }
    }
    let plans = machines.len() * models.len();
    let taken = started.elapsed();
    println!(
        "{plans} plans in {taken:.2?} ({:.2?} each, {served} served)",
        taken / plans as u32
    );
}
