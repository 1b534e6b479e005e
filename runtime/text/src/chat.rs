//! Chats to prompts, by the model's own template.
//!
//! **Text of a message can never forge a turn.** A template is text in, text out: once rendered, `<|im_end|>` in a
//! message looks like the one that the template wrote. So the messages are rendered twice more with marks, single
//! private-use characters, in place of message text (see [`marks`]):
//!
//! 1. with a mark for each of its visible characters. Where this gives, with the marks undone, the plain rendering, it
//!    is known of every character whether template or message wrote it;
//! 2. otherwise the template looked into the text (for `</think>`, say), and only what could be part of a control
//!    token's spelling is marked. This rendering counts when it has the control tokens of the first; else the first does.
//!
//! **Invariant:** the control tokens of a prompt are those of the rendering in which message text is opaque.

mod environment;
mod json;
mod marks;
mod time;

use crate::error::TemplateError;
use crate::tokenizer::{Guard, Guarded, Tokenizer};
use environment::Inputs;
use marks::{Marks, Restored};
use minijinja::Environment;
use serde_json::Value;
use std::ops::Range;

/// Roles that a message may have. A template writes the role itself, so it is not for the sender of text to choose freely.
const ROLES: [&str; 8] = [
    "system",
    "developer",
    "user",
    "assistant",
    "model",
    "tool",
    "function",
    "ipython",
];

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, ….
    pub role: String,
    /// What is said.
    pub content: String,
}

/// How a chat is rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatOptions {
    /// Ends the prompt with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// The time that templates may ask for with `strftime_now`, in seconds since 1970, of the zone that is meant. None:
    /// templates are told that there is no clock.
    pub now: Option<i64>,
    /// Recognises control tokens in messages, as other engines do. Messages can then forge turns.
    pub trust_content: bool,
    /// More variables for the template (`tools`, `enable_thinking`, …). Their texts are message text.
    pub variables: Vec<(String, Value)>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            now: None,
            trust_content: false,
            variables: Vec::new(),
        }
    }
}

/// A stretch of a rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// May it hold control tokens?
    pub kind: SegmentKind,
}

/// May a stretch of a prompt hold control tokens?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Yes: written by the template. (Message text that spells no part of a control token may be here as well.)
    Template,
    /// No: text of a message.
    Content,
}

/// A chat template, bound to the tokens of its model.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    guarded: Guarded,
    bos: String,
    eos: String,
}

/// A prompt, and where in it control tokens are not recognised.
struct Prompt {
    text: String,
    content: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// The template `source`, in Jinja as Hugging Face uses it, for a model with this tokenizer.
    ///
    /// **Errors**: [`TemplateError::Syntax`].
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        if let Some(mark) = source.chars().find(|&c| marks::is_mark(c)) {
            let found = u32::from(mark);
            return Err(TemplateError::Syntax(format!(
                "found U+{found:X}, a private-use character, expected none: they mark message text"
            )));
        }
        let text = |id: Option<u32>| id.map_or(String::new(), |id| tokenizer.piece(id));
        Ok(Self {
            environment: environment::new(source)?,
            guarded: tokenizer.guarded(|text| environment::writes(source, text)),
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
        })
    }

    /// The prompt of these messages, in pieces: where control tokens are recognised, and where not.
    ///
    /// **Errors**: the template fails or refuses, or a role is not known.
    pub fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<Segment>, TemplateError> {
        let prompt = self.prompt(messages, options)?;
        let mut segments = Vec::new();
        let mut push = |range: Range<usize>, kind| {
            if !range.is_empty() {
                let text = prompt.text[range].to_owned();
                segments.push(Segment { text, kind });
            }
        };
        let mut done = 0;
        for range in prompt.content {
            push(done..range.start, SegmentKind::Template);
            done = range.end;
            push(range, SegmentKind::Content);
        }
        push(done..prompt.text.len(), SegmentKind::Template);
        Ok(segments)
    }

    /// The tokens of the prompt of these messages, with the token that begins a text where the vocabulary asks for it and
    /// the template does not write it. `tokenizer` is the one that the template was made for.
    ///
    /// **Errors**: as for [`ChatTemplate::render`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TemplateError> {
        let prompt = self.prompt(messages, options)?;
        let guard = Guard {
            ranges: &prompt.content,
            guarded: &self.guarded,
        };
        Ok(tokenizer.with_bos(tokenizer.encode_guarded(&prompt.text, guard)))
    }

    fn prompt(&self, messages: &[Message], options: &ChatOptions) -> Result<Prompt, TemplateError> {
        check_roles(messages, options)?;
        let plain = self.run(
            messages,
            options,
            |text| Ok(text.to_owned()),
            |key| Ok(key.to_owned()),
        )?;
        if options.trust_content {
            return Ok(Prompt {
                text: plain,
                content: Vec::new(),
            });
        }
        let opaque = self.marked(messages, options, Marks::hide)?;
        if opaque.text == plain {
            return Ok(opaque.into());
        }
        let spellings = self.marked(messages, options, |marks, text| {
            marks.hide_spellings(text, &self.guarded)
        })?;
        let same_turns = self.control_tokens(&spellings) == self.control_tokens(&opaque);
        Ok(if same_turns { spellings } else { opaque }.into())
    }

    /// Renders with marks that `hide` puts into message text, and undoes them.
    fn marked(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        hide: impl Fn(&mut Marks, &str) -> Result<String, TemplateError>,
    ) -> Result<Restored, TemplateError> {
        let marks = std::cell::RefCell::new(Marks::default());
        let rendered = self.run(
            messages,
            options,
            |text| hide(&mut marks.borrow_mut(), text),
            // Templates look keys up by name: no more is hidden than must be.
            |key| marks.borrow_mut().hide_spellings(key, &self.guarded),
        )?;
        Ok(marks.into_inner().restore(&rendered))
    }

    fn run(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        text: impl Fn(&str) -> Result<String, TemplateError>,
        key: impl Fn(&str) -> Result<String, TemplateError>,
    ) -> Result<String, TemplateError> {
        let contents: Result<Vec<String>, _> = messages
            .iter()
            .map(|message| text(&message.content))
            .collect();
        let variables: Result<Vec<(&str, Value)>, _> = options
            .variables
            .iter()
            .map(|(name, value)| Ok((name.as_str(), json::map_texts(value, &text, &key)?)))
            .collect();
        environment::render(
            &self.environment,
            &Inputs {
                roles: messages
                    .iter()
                    .map(|message| message.role.as_str())
                    .collect(),
                contents: contents?,
                variables: variables?,
                add_generation_prompt: options.add_generation_prompt,
                now: options.now,
                bos: &self.bos,
                eos: &self.eos,
            },
        )
    }

    fn control_tokens(&self, restored: &Restored) -> Vec<u32> {
        self.guarded.found(&restored.text, &restored.content)
    }
}

impl From<Restored> for Prompt {
    fn from(Restored { text, content }: Restored) -> Self {
        Self { text, content }
    }
}

fn check_roles(messages: &[Message], options: &ChatOptions) -> Result<(), TemplateError> {
    let known = |role: &str| options.trust_content || ROLES.contains(&role);
    match messages.iter().position(|message| !known(&message.role)) {
        None => Ok(()),
        Some(index) => Err(TemplateError::Role {
            index,
            found: messages[index].role.clone(),
            known: ROLES.join(", "),
        }),
    }
}
