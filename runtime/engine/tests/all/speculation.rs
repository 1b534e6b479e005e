//! Drafts change how many steps an answer takes, and nothing of the answer: to the bit.

use crate::families::{FAMILIES, folder};
use crate::support::{MAX_MODEL_LEN, answers, config, engine, model, prompt, request, roomy};
use plinth_engine::{
    Engine, EngineOptions, FinishReason, Request, SamplingParams, Stats, StopCondition, TokenId,
};
use plinth_formats::synthetic::{self, Options, tiny_vocabulary};
use plinth_kernels::{Format, Selection};
use std::path::Path;

fn drafting(options: EngineOptions) -> EngineOptions {
    EngineOptions {
        max_draft: 8,
        ..options
    }
}

/// `len` tokens that say the same again and again.
fn refrain(seed: usize, len: usize) -> Vec<u32> {
    let verse = prompt(seed, 5 + seed % 7);
    verse.into_iter().cycle().take(len).collect()
}

/// Prompts that repeat themselves, and some that do not.
fn prompts(vocab_size: usize) -> Vec<Vec<u32>> {
    let prompts = (0..6).flat_map(|n| [refrain(n, 20 + 3 * n), prompt(n, 9 + n)]);
    let fit = |prompt: Vec<u32>| prompt.iter().map(|id| id % vocab_size as u32).collect();
    prompts.map(fit).collect()
}

/// Each request by itself, with drafts and without, on the kernels that this machine would be given.
fn alone(
    plain: &mut Engine,
    drafted: &mut Engine,
    requests: impl Fn() -> Vec<Request>,
    what: &str,
) -> Stats {
    for (n, (one, other)) in requests().into_iter().zip(requests()).enumerate() {
        let want = answers(plain, vec![one]).remove(0);
        let got = answers(drafted, vec![other]).remove(0);
        assert_eq!(got.essence(), want.essence(), "{what}, request {n}");
        assert_eq!(got.end, want.end, "{what}, request {n}");
        let tokens = |usage: plinth_engine::Usage| (usage.prompt_tokens, usage.completion_tokens);
        assert_eq!(tokens(got.usage), tokens(want.usage), "{what}, request {n}");
    }
    let stats = drafted.stats();
    assert_eq!(stats.generated_tokens, plain.stats().generated_tokens);
    stats
}

/// Some drafts were right and some were wrong, or the test shows nothing.
fn both_happened(stats: &Stats) {
    assert!(stats.accepted_tokens > 20, "{stats:?}");
    assert!(
        stats.drafted_tokens > stats.accepted_tokens + 20,
        "{stats:?}"
    );
}

fn at(path: &Path, options: EngineOptions) -> Engine {
    let model = model(path, &options, &Selection::best());
    Engine::new(model, options).expect("the options make sense")
}

#[test]
fn every_family_answers_the_same() {
    let options = EngineOptions {
        max_model_len: 64,
        ..roomy()
    };
    let mut sums = (0, 0);
    for family in FAMILIES {
        for path in [folder(family), folder(family).join("model.gguf")] {
            let mut plain = at(&path, options);
            let mut drafted = at(&path, drafting(options));
            let vocab_size = plain.model().config().vocab_size;
            let requests = || {
                let prompts = prompts(vocab_size).into_iter();
                prompts.map(|prompt| request(prompt, 24)).collect()
            };
            let what = path.display().to_string();
            let stats = alone(&mut plain, &mut drafted, requests, &what);
            sums.0 += stats.drafted_tokens;
            sums.1 += stats.accepted_tokens;
        }
    }
    assert!(sums.1 > 100 && sums.0 > sums.1 + 100, "{sums:?}");
}

/// Quantised weights are multiplied with quantised activations, in groups of rows; and a long context is cut by segments.
#[test]
fn every_format_answers_the_same() {
    let mut config = config();
    config.context_length = 1200;
    config.hidden_size = 64;
    config.intermediate_size = 96;
    config.num_heads = 8;
    let folder = tempfile::tempdir().expect("a temporary folder");
    for format in Format::ALL
        .into_iter()
        .filter(|format| format.can_quantize())
    {
        let path = folder.path().join(format!("{format}.gguf"));
        let synthetic = Options {
            format,
            tied: true,
            biases: false,
            seed: 5,
        };
        synthetic::write(&path, &config, &synthetic, &tiny_vocabulary()).expect("it is written");
        let options = EngineOptions {
            max_model_len: 1200,
            ..roomy()
        };
        let mut plain = at(&path, options);
        let mut drafted = at(&path, drafting(options));
        let requests = || {
            let short = prompts(266).into_iter().map(|prompt| request(prompt, 40));
            let long = [request(refrain(3, 1015), 40), request(prompt(3, 505), 40)];
            short.chain(long).collect()
        };
        both_happened(&alone(&mut plain, &mut drafted, requests, format.name()));
    }
}

/// Draws with every filter and penalty, each request with a seed of its own.
fn sampled() -> Vec<Request> {
    let change: [fn(&mut SamplingParams); 6] = [
        |p| p.top_k = 3,
        |p| (p.top_p, p.top_k) = (0.9, 8),
        |p| (p.min_p, p.repetition_penalty) = (0.3, 1.1),
        |p| (p.presence_penalty, p.frequency_penalty) = (0.5, 0.2),
        |p| (p.temperature, p.frequency_penalty) = (0.0, 0.4),
        |p| p.logit_bias = vec![(7, 4.0), (8, 4.0)],
    ];
    let prompts = prompts(266).into_iter().enumerate();
    let sampled = prompts.map(|(n, prompt)| {
        let mut request = request(prompt, 50);
        request.sampling.temperature = 0.8;
        request.sampling.seed = n as u64;
        request.sampling.top_k = 2;
        change[n / 2 % change.len()](&mut request.sampling);
        request
    });
    sampled.collect()
}

#[test]
fn a_seed_draws_the_same() {
    let (mut plain, mut drafted) = (engine(roomy()), engine(drafting(roomy())));
    both_happened(&alone(&mut plain, &mut drafted, sampled, "sampled"));
}

#[test]
fn company_preemption_prefixes_and_chunks_draw_the_same() {
    let mut plain = engine(roomy());
    let alone = sampled().into_iter().map(|r| answers(&mut plain, vec![r]));
    let want: Vec<_> = alone.flatten().collect();
    let few = EngineOptions {
        max_num_seqs: 3,
        ..roomy()
    };
    let tight = EngineOptions {
        num_blocks: 8,
        ..roomy()
    };
    let mut both = (0, 0);
    for options in [roomy(), few, tight] {
        for prefix_caching in [false, true] {
            for max_batched_tokens in [512, 5, 1] {
                let options = EngineOptions {
                    prefix_caching,
                    max_batched_tokens,
                    ..drafting(options)
                };
                let mut engine = engine(options);
                // The second time, beginnings are in the cache: none may hold what was only guessed.
                for _ in 0..2 {
                    for (n, got) in answers(&mut engine, sampled()).iter().enumerate() {
                        assert_eq!(got.essence(), want[n].essence(), "{n} with {options:?}");
                        assert_eq!(got.end, want[n].end, "{n} with {options:?}");
                    }
                }
                let stats = engine.stats();
                let room = options.max_num_seqs < 12 && max_batched_tokens > 3;
                assert!(stats.drafted_tokens > 0 || !room, "{options:?}: {stats:?}");
                if max_batched_tokens == 1 {
                    assert_eq!(stats.drafted_tokens, 0, "a draft takes no row of others");
                }
                if options.num_blocks == 8 {
                    both.0 += stats.preemptions;
                    both.1 += stats.accepted_tokens;
                }
            }
        }
    }
    assert!(
        both.0 > 3 && both.1 > 3,
        "drafts beside preemptions: {both:?}"
    );
}

/// Ends the answer with the `n`th token.
struct After(usize);

impl StopCondition for After {
    fn push(&mut self, _: TokenId) -> bool {
        self.0 -= 1;
        self.0 == 0
    }
}

#[test]
fn an_answer_ends_where_it_would() {
    // One whose answer repeats itself, so that ends fall into drafts.
    let (seed, free) = (0..40)
        .find_map(|seed| {
            let mut engine = engine(drafting(roomy()));
            let request = request(refrain(seed, 30), 60);
            let answer = answers(&mut engine, vec![request]).remove(0);
            (engine.stats().accepted_tokens > 25).then_some((seed, answer))
        })
        .expect("some tiny answer repeats itself");
    let (mut plain, mut drafted) = (engine(roomy()), engine(drafting(roomy())));
    let mut check = |change: &dyn Fn(&mut Request)| {
        let requests = || {
            let mut request = request(refrain(seed, 30), 60);
            change(&mut request);
            vec![request]
        };
        alone(&mut plain, &mut drafted, requests, "ends");
    };
    for n in 1..60 {
        let token = free.ids[n];
        check(&|r| r.sampling.max_tokens = n as u32);
        check(&|r| r.stop = Some(Box::new(After(n))));
        check(&|r| (r.sampling.stop_ids, r.sampling.min_tokens) = (vec![token], n as u32));
        check(&|r| (r.sampling.eos_ids, r.sampling.min_tokens) = (vec![token], n as u32 / 2));
        check(&|r| (r.sampling.eos_ids, r.sampling.ignore_eos) = (vec![token], true));
    }
    both_happened(&drafted.stats());
    // At the end of the context, wherever in a block or a draft that is.
    for len in 17..40 {
        let options = EngineOptions {
            max_model_len: 60 + len,
            num_blocks: (60 + len).div_ceil(16),
            ..roomy()
        };
        let requests = || vec![request(refrain(seed, 60), 1000)];
        let (mut plain, mut drafted) = (engine(options), engine(drafting(options)));
        let stats = alone(&mut plain, &mut drafted, requests, "context");
        assert_eq!(stats.preemptions, 0, "drafts take no block that is needed");
        assert!(60 + len <= MAX_MODEL_LEN);
    }
}

#[test]
fn a_text_that_repeats_itself_takes_fewer_steps() {
    let bias = (0..4).map(|n| (10 + n, 50.0)).collect::<Vec<_>>();
    let repeating = || {
        let mut request = request(refrain(1, 30), 100);
        request.sampling.logit_bias = bias.clone();
        vec![request]
    };
    let (mut plain, mut drafted) = (engine(roomy()), engine(drafting(roomy())));
    let stats = alone(&mut plain, &mut drafted, repeating, "repeating");
    assert_eq!(plain.stats().drafted_tokens, 0);
    assert!(
        2 * stats.steps < plain.stats().steps,
        "{stats:?}, {:?}",
        plain.stats()
    );
}

#[test]
fn many_sequences_get_no_drafts() {
    let requests: Vec<_> = (0..12).map(|n| request(refrain(n, 30), 40)).collect();
    let mut engine = engine(drafting(roomy()));
    let got = answers(&mut engine, requests);
    assert!(got.iter().all(|a| a.end == Some(FinishReason::Length)));
    assert_eq!(engine.stats().drafted_tokens, 0, "{:?}", engine.stats());
}
