//! The bytes that each token stands for, in one allocation.

use crate::vocabulary::Kind;

/// The bytes of every token.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token ends.
    ends: Vec<u32>,
}

/// How the texts of a vocabulary spell bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every byte is a printable character, as GPT-2 has it.
    ByteLevel,
    /// A space is `▁`, and single bytes are `<0xNN>`.
    SentencePiece,
}

impl Pieces {
    pub(super) fn new<'t>(
        spelling: Spelling,
        tokens: impl Iterator<Item = (&'t str, Kind)>,
    ) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let byte_of = ByteCharacters::new();
        for (text, kind) in tokens {
            match (spelling, kind) {
                (Spelling::SentencePiece, Kind::Byte) => match byte_token(text) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(text.as_bytes()),
                },
                (_, Kind::Control | Kind::Unknown) | (Spelling::ByteLevel, Kind::UserDefined) => {
                    bytes.extend_from_slice(text.as_bytes());
                }
                (Spelling::SentencePiece, _) => {
                    bytes.extend_from_slice(text.replace('▁', " ").as_bytes())
                }
                (Spelling::ByteLevel, _) => byte_of.decode(text, &mut bytes),
            }
            // A vocabulary beyond 4 GiB cannot be had: its file's strings are counted by 32 bits of tokens.
            ends.push(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        }
        bytes.shrink_to_fit();
        Self { bytes, ends }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a token; none for an id that there is not.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else {
            return &[];
        };
        let start = id.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start as usize..end as usize]
    }
}

/// The byte that `<0xNN>` spells.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's printable characters for bytes: printable Latin-1 stands for itself, the others follow from U+0100 on.
struct ByteCharacters {
    bytes: [Option<u8>; 512],
}

impl ByteCharacters {
    fn new() -> Self {
        let mut bytes = [None; 512];
        let mut shifted = 256;
        for byte in 0..=255u8 {
            if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
                bytes[usize::from(byte)] = Some(byte);
            } else {
                bytes[shifted] = Some(byte);
                shifted += 1;
            }
        }
        Self { bytes }
    }

    /// A character that stands for no byte stands for itself.
    fn decode(&self, text: &str, out: &mut Vec<u8>) {
        for c in text.chars() {
            match self.bytes.get(c as usize) {
                Some(&Some(byte)) => out.push(byte),
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}
