//! What can be wrong with a vocabulary, and with a chat.

/// A vocabulary that no tokenizer can be built from. Whose fault: the model file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// There are no tokens.
    #[error(
        "tokens: the list is empty; take a model file that was converted together with its tokenizer"
    )]
    Empty,
    /// The pre-tokenizer's name is not known.
    #[error(
        "pre: the pre-tokenizer '{found}' is not known; known are {known}; text would be cut in the wrong places, so take a model with one of these"
    )]
    PreTokenizer {
        /// Its name.
        found: String,
        /// All names that are known.
        known: String,
    },
    /// A list that has one entry per token is of another length.
    #[error("{field}: found {found} entries, expected {expected}, one a token")]
    Length {
        /// Which list.
        field: &'static str,
        /// Its length.
        found: usize,
        /// Number of tokens.
        expected: usize,
    },
    /// An entry of a list makes no sense.
    #[error("{field}[{index}]: found {found}, expected {expected}")]
    Entry {
        /// Which list.
        field: &'static str,
        /// Which entry.
        index: usize,
        /// What is there.
        found: String,
        /// What should be there.
        expected: &'static str,
    },
    /// The id of a special token is not in the vocabulary.
    #[error("{field}: found id {id}, expected one below {tokens}, the number of tokens")]
    Id {
        /// Which token.
        field: &'static str,
        /// Its id.
        id: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// Some text could not be encoded.
    #[error(
        "tokens: none for the byte 0x{byte:02x}, and no unknown token to stand for it; take a model file with the whole vocabulary"
    )]
    Byte {
        /// The byte.
        byte: u8,
    },
    /// `tokenizer.json` cannot be read.
    #[error("tokenizer.json: {0}; take the file again from where the model comes from")]
    HuggingFace(String),
    /// `tokenizer.json` asks for something that is not supported.
    #[error(
        "tokenizer.json: {field}: found {found}, expected {expected}; convert the model to GGUF with its tokenizer"
    )]
    Unsupported {
        /// Path of the field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What is supported.
        expected: &'static str,
    },
}

/// A chat that cannot be made into a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid. Whose fault: the model file.
    #[error("chat_template: {0}; give another template, or send a raw prompt")]
    Syntax(String),
    /// The template fails on these messages. Whose fault: model file or request.
    #[error("chat_template: {0}")]
    Render(String),
    /// The template refuses these messages, in its own words. Whose fault: the request.
    #[error("messages: the model's chat template refuses them: {0}")]
    Refused(String),
    /// A role that is not known. Whose fault: the request.
    #[error("messages[{index}].role: found '{found}', expected one of {known}")]
    Role {
        /// Which message.
        index: usize,
        /// Its role.
        found: String,
        /// All roles that are known.
        known: String,
    },
    /// More different special spellings in the messages than can be told apart. Whose fault: the request.
    #[error("messages: more than {limit} different private-use characters; remove them")]
    Marks {
        /// How many can be told apart.
        limit: usize,
    },
}
