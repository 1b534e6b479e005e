//! A result may not depend on what else is in the batch, on chunks, on preemption, or on cached prefixes: to the bit.

use crate::support::{Answer, answers, engine, prompt, request, roomy};
use plinth_engine::{EngineOptions, Request};

/// 32 requests of many lengths; some share a beginning.
fn requests() -> Vec<Request> {
    let shared = prompt(99, 40);
    let lengths = [1, 2, 15, 16, 17, 31, 33, 48, 63, 90];
    let prompt = |n: usize| match n % 3 {
        0 => [&shared[..], &prompt(n, 1 + n % 7)].concat(),
        _ => prompt(n, lengths[n % lengths.len()]),
    };
    (0..32)
        .map(|n| Request {
            prompt_logprobs: n % 5 == 1,
            ..request(prompt(n), 4 + n as u32 % 20)
        })
        .collect()
}

/// Each request on its own, computed whole.
fn alone() -> Vec<Answer> {
    let mut engine = engine(roomy());
    requests()
        .into_iter()
        .flat_map(|request| answers(&mut engine, vec![request]))
        .collect()
}

fn check(options: EngineOptions, want: &[Answer]) -> plinth_engine::Stats {
    let mut engine = engine(options);
    let got = answers(&mut engine, requests());
    for (n, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(
            got.essence(),
            want.essence(),
            "request {n} with {options:?}"
        );
        assert_eq!(got.end, want.end, "request {n}");
    }
    engine.stats()
}

#[test]
fn company_chunks_preemption_and_prefixes_change_no_bit() {
    let want = alone();
    assert!(want.iter().all(|answer| !answer.logprobs.is_empty()));
    for max_num_seqs in [1, 8, 32] {
        check(
            EngineOptions {
                max_num_seqs,
                ..roomy()
            },
            &want,
        );
    }
    for max_batched_tokens in [1, 7, 512] {
        check(
            EngineOptions {
                max_batched_tokens,
                ..roomy()
            },
            &want,
        );
    }
    check(
        EngineOptions {
            chunked_prefill: false,
            max_batched_tokens: 100,
            ..roomy()
        },
        &want,
    );

    let tight = EngineOptions {
        num_blocks: 8,
        ..roomy()
    };
    let stats = check(tight, &want);
    assert!(stats.preemptions > 3, "a tiny cache preempts: {stats:?}");

    let cached = EngineOptions {
        prefix_caching: true,
        max_num_seqs: 4,
        ..roomy()
    };
    let stats = check(cached, &want);
    let uncached = check(
        EngineOptions {
            max_num_seqs: 4,
            ..roomy()
        },
        &want,
    );
    assert!(
        stats.computed_tokens < uncached.computed_tokens,
        "prefixes are reused: {stats:?}"
    );

    let all_at_once = EngineOptions {
        prefix_caching: true,
        num_blocks: 8,
        max_batched_tokens: 7,
        ..roomy()
    };
    let stats = check(all_at_once, &want);
    assert!(stats.preemptions > 3, "{stats:?}");
}

#[test]
fn blocks_of_other_sizes_change_no_bit() {
    let want = alone();
    for block_size in [32, 64] {
        check(
            EngineOptions {
                block_size,
                num_blocks: 100,
                prefix_caching: true,
                ..roomy()
            },
            &want,
        );
    }
}
