//! Arrivals and cancellations in any order: blocks stay accounted for, everybody is answered, and rightly.

use crate::support::{answers, engine, prompt, request, roomy, run};
use plinth_engine::EngineOptions;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Act {
    Submit {
        seed: usize,
        len: usize,
        max_tokens: u32,
    },
    Cancel(usize),
    Step(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..6usize, 1..70usize, 1..12u32).prop_map(|(seed, len, max_tokens)| Act::Submit { seed, len, max_tokens }),
        1 => (0..40usize).prop_map(Act::Cancel),
        3 => (1..6usize).prop_map(Act::Step),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nobody_starves_and_no_block_is_lost(
        acts in proptest::collection::vec(act(), 1..60),
        num_blocks in 6usize..20,
        max_num_seqs in 1usize..8,
        max_batched_tokens in 1usize..64,
        prefix_caching: bool,
        max_draft in 0usize..8,
    ) {
        let options = EngineOptions { num_blocks, max_num_seqs, max_batched_tokens, prefix_caching, max_draft, ..roomy() };
        let mut engine = engine(options);
        let mut submitted = Vec::new();
        let mut early: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        let mut live = BTreeMap::new();
        for act in acts {
            match act {
                Act::Submit { seed, len, max_tokens } => {
                    let id = engine.submit(request(prompt(seed, len), max_tokens)).expect("it fits");
                    live.insert(id, (seed, len, max_tokens));
                    submitted.push(id);
                }
                Act::Cancel(n) => if let Some(id) = submitted.get(n) {
                    engine.cancel(*id);
                    live.remove(id);
                },
                Act::Step(steps) => for _ in 0..steps {
                    for output in engine.step() {
                        prop_assert!(live.contains_key(&output.request), "an answer to nobody");
                        if let plinth_engine::Event::Token { id, .. } = output.event {
                            early.entry(output.request).or_default().push(id);
                        }
                    }
                    engine.check_integrity();
                },
            }
        }
        let mut late = run(&mut engine);
        let mut calm = crate::support::engine(roomy());
        for (id, (seed, len, max_tokens)) in live {
            let mut got = early.remove(&id).unwrap_or_default();
            got.extend(late.remove(&id).unwrap_or_default().ids);
            let want = answers(&mut calm, vec![request(prompt(seed, len), max_tokens)]).remove(0).ids;
            prop_assert_eq!(got, want);
        }
    }
}
