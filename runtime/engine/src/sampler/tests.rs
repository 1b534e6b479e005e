use super::*;
use plinth_kernels::Selection;
use proptest::prelude::*;
use std::sync::LazyLock;

static KERNELS: LazyLock<KernelSet> =
    LazyLock::new(|| KernelSet::bind(&Selection::best()).expect("this machine's kernels bind"));

/// The filters as a definition: sort everything, then walk. Gives the ids that may be drawn, likeliest first.
fn naive_candidates(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
    let mut all: Vec<(TokenId, f64)> = (0..)
        .zip(logits.iter().map(|&l| f64::from(l / params.temperature)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let max = all[0].1;
    let weight = |logit: f64| (logit - max).exp();
    all.retain(|&(_, logit)| weight(logit) >= f64::from(params.min_p));
    if params.top_k > 0 {
        all.truncate(params.top_k as usize);
    }
    let total: f64 = all.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for (id, logit) in all {
        kept.push(id);
        sum += weight(logit);
        if params.top_p < 1.0 && sum >= f64::from(params.top_p) * total {
            break;
        }
    }
    kept
}

fn params() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    }
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(params, &[0, 1], 8)
}

proptest! {
    #[test]
    fn filters_keep_what_their_definition_says(
        logits in proptest::collection::vec(-8i32..8, 1..700),
        temperature in 1u32..6,
        top_k in 0u32..40,
        top_p in 1u32..10,
        min_p in 0u32..4,
    ) {
        // Steps wide enough that single and double precision agree on which side of a border a token is.
        let logits: Vec<f32> = logits.iter().enumerate().map(|(n, &l)| l as f32 * 0.37 + n as f32 * 1e-3).collect();
        let params = SamplingParams {
            temperature: temperature as f32 * 0.5,
            top_k,
            top_p: top_p as f32 * 0.1,
            min_p: min_p as f32 * 0.1,
            ..params()
        };
        let (_, max) = candidates::argmax(&KERNELS, &logits).expect("finite");
        let likeliest = candidates::Likeliest::new(&KERNELS, (&logits, max), params.temperature, params.min_p);
        let ids: Vec<_> = likeliest.keep(&params).into_iter().map(|(id, _)| id).collect();
        prop_assert_eq!(ids, naive_candidates(&logits, &params));
    }

    #[test]
    fn log_sum_exp_is_what_it_says(logits in proptest::collection::vec(-50.0f32..50.0, 1..300)) {
        let naive = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        // The sum's relative error, 1.4e-6 and 1.8e-7 for each unit of the exponents that count (down to -25), is the
        // absolute one of its logarithm.
        prop_assert!((log_sum_exp(&KERNELS, &logits) - naive).abs() < 6e-6);
    }
}

#[test]
fn greedy_takes_the_likeliest_and_of_equals_the_first() {
    let draw = |logits: &[f32]| {
        sampler(SamplingParams::default())
            .draw(&KERNELS, &mut logits.to_vec())
            .map(|drawn| drawn.id)
    };
    assert_eq!(draw(&[0.0, 3.0, 3.0, 1.0]), Some(1));
    assert_eq!(draw(&[-1.0, -2.0]), Some(0));
    assert_eq!(draw(&[f32::NEG_INFINITY, -5.0]), Some(1));
}

#[test]
fn logits_that_are_no_numbers_draw_nothing() {
    for logits in [
        [0.0, f32::NAN],
        [f32::NEG_INFINITY; 2],
        [f32::INFINITY, 0.0],
    ] {
        assert_eq!(
            sampler(params()).draw(&KERNELS, &mut logits.to_vec()),
            None,
            "{logits:?}"
        );
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.1f32, 0.2, 0.3, 0.4].map(f32::ln);
    let mut sampler = sampler(params());
    let mut counts = [0; 4];
    for _ in 0..20_000 {
        counts[sampler
            .draw(&KERNELS, &mut logits.to_vec())
            .expect("finite")
            .id as usize] += 1;
    }
    // Five standard deviations of a binomial count.
    for (n, count) in counts.into_iter().enumerate() {
        let p = (n + 1) as f64 / 10.0;
        let tolerance = 5.0 * (20_000.0 * p * (1.0 - p)).sqrt();
        assert!(
            (f64::from(count) - 20_000.0 * p).abs() < tolerance,
            "token {n}: {count}"
        );
    }
}

#[test]
fn the_same_seed_draws_the_same_and_another_does_not() {
    let run = |seed| {
        let mut sampler = sampler(SamplingParams { seed, ..params() });
        (0..50)
            .map(|_| sampler.draw(&KERNELS, &mut [0.0; 8]).expect("finite").id)
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn penalties_count_what_occurred() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..params()
    };
    let mut sampler = sampler(params);
    sampler.observe(3);
    sampler.observe(3);
    let mut logits = [4.0, -4.0, 4.0, 4.0, 0.0, 0.0, 0.0, 0.0];
    sampler.adjust(&mut logits);
    // 0 and 1 are in the prompt; 3 was generated twice.
    assert_eq!(logits[..4], [2.0, -8.0, 4.0, 2.0 - 0.5 - 2.0 * 0.25]);
}

#[test]
fn ends_are_banned_before_the_least_length_and_bias_moves() {
    let params = SamplingParams {
        min_tokens: 1,
        eos_ids: vec![2],
        stop_ids: vec![3],
        logit_bias: vec![(5, 7.5)],
        ..SamplingParams::default()
    };
    let mut sampler = sampler(params);
    let logits = [0.0, 1.0, 9.0, 8.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(
        sampler
            .draw(&KERNELS, &mut logits.clone())
            .map(|drawn| drawn.id),
        Some(5)
    );
    sampler.observe(5);
    assert_eq!(
        sampler
            .draw(&KERNELS, &mut logits.clone())
            .map(|drawn| drawn.id),
        Some(2)
    );
}

#[test]
fn log_probabilities_are_of_the_raw_logits() {
    let params = SamplingParams {
        logprobs: Some(2),
        logit_bias: vec![(0, 100.0)],
        ..SamplingParams::default()
    };
    let probabilities = [0.1f32, 0.2, 0.3, 0.4];
    let drawn = sampler(params)
        .draw(&KERNELS, &mut probabilities.map(f32::ln))
        .expect("finite");
    let logprob = drawn.logprob.expect("asked for");
    assert_eq!(drawn.id, 0);
    assert!((logprob.logprob - 0.1f32.ln()).abs() < 1e-6);
    let ids: Vec<_> = logprob.top.iter().map(|top| top.0).collect();
    assert_eq!(ids, [3, 2]);
    assert!((logprob.top[0].1 - 0.4f32.ln()).abs() < 1e-6);
}

/// Whatever is asked for, a token comes at the same place of the way as if everything had been sorted.
#[test]
fn draws_walk_from_the_likeliest_down() {
    let mut random = random::Random::new(9);
    for spread in [0.5, 6.0, 60.0] {
        let logits: Vec<f32> = (0..5000)
            .map(|_| (random.uniform() as f32 - 0.5) * spread)
            .collect();
        let mut sorted: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let max = sorted[0].1;
        let weight = |logit: f32| f64::from(logit - max).exp();
        let total: f64 = sorted.iter().map(|&(_, logit)| weight(logit)).sum();
        let mut before = 0.0;
        for (n, &(id, logit)) in sorted.iter().enumerate() {
            let middle = (before + weight(logit) / 2.0) / total;
            before += weight(logit);
            // Beyond, a weight is lost in the rounding of the sum.
            if weight(logit) > 1e-4 * total / 5000.0 && n % 7 == 0 {
                let drawn = candidates::draw(&KERNELS, (&logits, max), &params(), middle);
                assert_eq!(drawn, id, "{n}th of spread {spread}");
            }
        }
        let last = candidates::draw(&KERNELS, (&logits, max), &params(), 1.0 - 1e-16);
        assert!(weight(logits[last as usize]) <= weight(sorted[100].1));
    }
}
