//! One request: accepted or refused, stopped, cancelled, cached, scored; and the thread around the engine.

use crate::support::{MAX_MODEL_LEN, answers, engine, prompt, request, roomy, run};
use plinth_engine::{
    EngineHandle, EngineOptions, Event, FinishReason, Request, SamplingParams, StopCondition,
    TokenId,
};

fn refused(options: EngineOptions, request: Request, message: &str) {
    let error = engine(options)
        .submit(request)
        .expect_err("it is refused")
        .to_string();
    assert!(error.contains(message), "{error}");
}

#[test]
fn what_cannot_be_served_is_refused_with_numbers() {
    refused(roomy(), request(vec![], 1), "the prompt is empty");
    refused(
        roomy(),
        request(vec![5, 9999], 1),
        "the prompt's token 1 is 9999, expected a token id under 266",
    );
    refused(
        roomy(),
        request(prompt(1, 160), 1),
        "the prompt has 160 tokens, and the context ends at 160",
    );
    let small = EngineOptions {
        num_blocks: 3,
        ..roomy()
    };
    refused(
        small,
        request(prompt(1, 40), 10),
        "may take 49 tokens, and the KV cache holds 48",
    );
    let whole = EngineOptions {
        chunked_prefill: false,
        max_batched_tokens: 32,
        ..roomy()
    };
    refused(
        whole,
        request(prompt(1, 33), 1),
        "33 tokens, and a step carries 32",
    );
    let sampling = SamplingParams {
        top_p: f32::NAN,
        ..SamplingParams::default()
    };
    refused(
        roomy(),
        Request {
            sampling,
            ..request(prompt(1, 3), 1)
        },
        "top_p: found NaN",
    );
}

#[test]
fn an_answer_ends_at_its_length_and_at_the_context() {
    let mut engine = engine(roomy());
    let got = answers(
        &mut engine,
        vec![request(prompt(1, 10), 5), request(prompt(2, 150), 1000)],
    );
    assert_eq!(
        (got[0].ids.len(), &got[0].end),
        (5, &Some(FinishReason::Length))
    );
    assert_eq!(
        (got[1].ids.len(), &got[1].end),
        (MAX_MODEL_LEN - 150, &Some(FinishReason::Length))
    );
    assert_eq!(got[1].usage.prompt_tokens, 150);
    assert_eq!(got[1].usage.completion_tokens, 10);
}

#[test]
fn stop_ids_ends_and_conditions_stop_unless_told_otherwise() {
    let free = answers(&mut engine(roomy()), vec![request(prompt(4, 20), 12)])
        .remove(0)
        .ids;
    let third = free[2];
    let first = free
        .iter()
        .position(|&id| id == third)
        .expect("it is there");
    let with = |change: &dyn Fn(&mut Request)| {
        let mut request = request(prompt(4, 20), 12);
        change(&mut request);
        answers(&mut engine(roomy()), vec![request]).remove(0)
    };
    let stopped = with(&|r| r.sampling.stop_ids = vec![third]);
    assert_eq!(
        (stopped.ids, stopped.end),
        (free[..=first].to_vec(), Some(FinishReason::Stop))
    );
    let ended = with(&|r| r.sampling.eos_ids = vec![third]);
    assert_eq!(
        (ended.ids, ended.end),
        (free[..=first].to_vec(), Some(FinishReason::Stop))
    );
    let ignored = with(&|r| (r.sampling.eos_ids, r.sampling.ignore_eos) = (vec![third], true));
    assert_eq!(
        (ignored.ids, ignored.end),
        (free.clone(), Some(FinishReason::Length))
    );
    let late = with(&|r| (r.sampling.eos_ids, r.sampling.min_tokens) = (vec![third], 12));
    assert!(
        !late.ids[..12].contains(&third),
        "ends are not drawn before the least length"
    );

    struct After(usize);
    impl StopCondition for After {
        fn push(&mut self, _: TokenId) -> bool {
            self.0 -= 1;
            self.0 == 0
        }
    }
    let told = with(&|r| r.stop = Some(Box::new(After(4))));
    assert_eq!(
        (told.ids, told.end),
        (free[..4].to_vec(), Some(FinishReason::Stop))
    );
}

#[test]
fn cancelling_frees_at_once() {
    let mut engine = engine(roomy());
    let long = engine.submit(request(prompt(1, 60), 90)).expect("accepted");
    let waiting = engine.submit(request(prompt(2, 60), 90)).expect("accepted");
    engine.step();
    assert!(engine.stats().blocks.in_use > 0);
    assert!(engine.cancel(long));
    assert!(engine.cancel(waiting));
    assert!(!engine.cancel(waiting), "it is gone");
    engine.check_integrity();
    assert_eq!(engine.stats().blocks.in_use, 0);
    assert!(!engine.has_work());
    assert!(run(&mut engine).is_empty());
}

#[test]
fn a_second_request_finds_the_first_ones_prefix() {
    let mut engine = engine(EngineOptions {
        prefix_caching: true,
        ..roomy()
    });
    let first = answers(&mut engine, vec![request(prompt(1, 50), 3)]).remove(0);
    assert_eq!(first.usage.cached_tokens, 0);
    let again = answers(&mut engine, vec![request(prompt(1, 50), 3)]).remove(0);
    assert_eq!(again.usage.cached_tokens, 48);
    assert_eq!(again.essence(), first.essence());
    // Of a prompt of whole blocks the last token is computed all the same, and with it its block.
    let exact = answers(&mut engine, vec![request(prompt(1, 48), 3)]).remove(0);
    assert_eq!(exact.usage.cached_tokens, 32);
    let other = answers(&mut engine, vec![request(prompt(2, 50), 3)]).remove(0);
    assert_eq!(other.usage.cached_tokens, 0);
}

#[test]
fn cached_blocks_give_way_to_new_ones() {
    let mut engine = engine(EngineOptions {
        prefix_caching: true,
        num_blocks: 10,
        ..roomy()
    });
    for seed in 0..20 {
        answers(&mut engine, vec![request(prompt(seed, 100), 20)]);
        assert!(engine.stats().blocks.cached <= 10);
    }
    let last = answers(&mut engine, vec![request(prompt(19, 100), 2)]).remove(0);
    assert_eq!(last.usage.cached_tokens, 96, "the latest is still there");
}

#[test]
fn prompt_tokens_are_scored_as_if_they_had_been_drawn() {
    let mut engine = engine(roomy());
    let drawn = answers(&mut engine, vec![request(prompt(6, 30), 12)]).remove(0);
    let whole = [prompt(6, 30), drawn.ids.clone()].concat();
    let scored = Request {
        prompt_logprobs: true,
        ..request(whole, 1)
    };
    let scored = answers(&mut engine, vec![scored]).remove(0).prompt_logprobs;
    assert_eq!(scored.len(), 42);
    assert_eq!(scored[0], None);
    assert!(scored[1..].iter().all(Option::is_some));
    let of_answer: Vec<_> = scored[30..].iter().copied().flatten().collect();
    assert_eq!(of_answer, drawn.logprobs);
}

#[test]
fn the_same_seed_gives_the_same_tokens_in_any_company() {
    let sampled = |seed| {
        let sampling = SamplingParams {
            temperature: 1.5,
            top_p: 0.95,
            seed,
            max_tokens: 20,
            ..SamplingParams::default()
        };
        Request {
            sampling,
            ..request(prompt(3, 12), 20)
        }
    };
    let alone = answers(&mut engine(roomy()), vec![sampled(7)])
        .remove(0)
        .ids;
    let company = (0..8).map(sampled).collect();
    let together = answers(&mut engine(roomy()), company);
    assert_eq!(together[7].ids, alone);
    assert_ne!(together[6].ids, alone);
}

#[test]
fn a_handle_streams_cancels_and_ends_with_its_engine() {
    let handle = EngineHandle::spawn(engine(roomy())).expect("a thread");
    let want = answers(&mut engine(roomy()), vec![request(prompt(1, 10), 6)])
        .remove(0)
        .ids;
    let stream = handle.submit(request(prompt(1, 10), 6)).expect("accepted");
    let ids: Vec<_> = stream
        .filter_map(|event| match event {
            Event::Token { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(ids, want);

    let mut endless = handle
        .submit(request(prompt(2, 10), 150))
        .expect("accepted");
    assert!(matches!(endless.next(), Some(Event::Token { .. })));
    endless.cancel();
    // The cancellation is answered before the next message is.
    let stats = handle.stats().expect("it runs");
    assert_eq!(
        (stats.running, stats.waiting, stats.blocks.in_use),
        (0, 0, 0)
    );

    let mut stream = handle
        .submit(request(prompt(2, 10), 150))
        .expect("accepted");
    drop(handle);
    let last = stream.by_ref().last().expect("it ends");
    assert!(
        matches!(&last, Event::Finished { reason: FinishReason::Error(why), .. } if why.contains("stopped")),
        "{last:?}"
    );
    assert_eq!(stream.next(), None);
}
