use crate::support::{all, smollm};
use plinth_text::{Detokenizer, Special, StopStrings, Tokenizer};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};

static TOKENIZERS: LazyLock<Vec<Arc<Tokenizer>>> =
    LazyLock::new(|| all().into_iter().map(Arc::new).collect());

fn stream(mut detokenizer: Detokenizer, ids: &[u32]) -> String {
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

proptest! {
    #[test]
    fn streamed_text_is_the_decoded_text(ids in prop::collection::vec(0u32..720, 0..60)) {
        for tokenizer in TOKENIZERS.iter() {
            let detokenizer = || Detokenizer::new(tokenizer.clone());
            prop_assert_eq!(stream(detokenizer(), &ids), tokenizer.decode(&ids, true));
            prop_assert_eq!(stream(detokenizer().with_special(), &ids), tokenizer.decode(&ids, false));
        }
    }

    #[test]
    fn text_comes_back_whole(text in any::<String>()) {
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text, Special::Plain);
            // U+2581 is SentencePiece's space.
            prop_assert_eq!(tokenizer.decode(&ids, false).replace('▁', " "), text.replace('▁', " "));
        }
    }

    #[test]
    fn stop_strings_are_found_wherever_the_chunks_end(
        text in "[abc]{0,40}",
        stops in prop::collection::vec("[abc]{1,4}", 0..3),
        cuts in prop::collection::vec(0usize..41, 0..8),
    ) {
        let found = stops.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        let end = found.min().map(|(_, start)| start);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let mut stop_strings = StopStrings::new(stops);
        let mut emitted = String::new();
        let mut stopped = false;
        for pair in cuts.windows(2) {
            let step = stop_strings.push(&text[pair[0]..pair[1]]);
            emitted.push_str(&step.emit);
            stopped = step.stopped;
        }
        emitted.push_str(&stop_strings.finish());
        prop_assert_eq!(emitted, &text[..end.unwrap_or(text.len())]);
        prop_assert_eq!(stopped, end.is_some());
    }
}

#[test]
fn a_character_is_held_until_it_is_whole() {
    let tokenizer = Arc::new(smollm());
    let ids = tokenizer.encode("👍", Special::Plain);
    assert!(ids.len() > 1, "the fixture has no token for it");
    let mut detokenizer = Detokenizer::new(tokenizer);
    let texts: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert!(
        texts[..texts.len() - 1].iter().all(String::is_empty),
        "{texts:?}"
    );
    assert_eq!(texts.last().map(String::as_str), Some("👍"));
}

#[test]
fn a_character_that_is_never_completed_is_replaced() {
    let tokenizer = Arc::new(smollm());
    let ids = tokenizer.encode("👍", Special::Plain);
    let mut detokenizer = Detokenizer::new(tokenizer);
    assert_eq!(detokenizer.push(ids[0]), "");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn an_answer_that_goes_on_keeps_its_first_space() {
    let tokenizer = TOKENIZERS[2].clone();
    let ids = tokenizer.encode("the", Special::Plain);
    assert_eq!(stream(Detokenizer::new(tokenizer.clone()), &ids), "the");
    assert_eq!(
        stream(Detokenizer::new(tokenizer).continuing(), &ids),
        " the"
    );
}
