//! How much a component asks of the compiler, counted before it compiles anything.
//!
//! Time and memory of a compiler grow with functions, locals and nesting faster than with the file. A policy is small.

use super::LoadError;
use wasmparser::{Chunk, Parser, Payload};

/// Most functions of a component.
const FUNCTIONS: u64 = 20_000;

/// Most types, imports, exports and instances, each.
const ITEMS: u64 = 20_000;

/// Most locals of a function.
const LOCALS: u64 = 5_000;

/// Longest function, in bytes.
const BODY: usize = 512 << 10;

/// Modules and components inside each other.
const NESTING: usize = 8;

/// Modules and components in all.
const PARTS: u64 = 64;

/// Counts, and refuses what no policy needs. What is broken is left to the compiler, which says it better.
pub(super) fn check(name: &str, bytes: &[u8]) -> Result<(), LoadError> {
    let mut count = Count::default();
    match count.walk(bytes) {
        Ok(()) => Ok(()),
        Err(Stop::Broken) => Ok(()),
        Err(Stop::TooMuch { found, expected }) => Err(LoadError::TooLarge {
            name: name.to_owned(),
            found,
            expected,
        }),
    }
}

#[derive(Default)]
struct Count {
    functions: u64,
    items: u64,
    parts: u64,
}

enum Stop {
    Broken,
    TooMuch { found: String, expected: String },
}

impl From<wasmparser::BinaryReaderError> for Stop {
    fn from(_: wasmparser::BinaryReaderError) -> Self {
        Self::Broken
    }
}

fn within(what: &str, found: u64, most: u64) -> Result<(), Stop> {
    match found <= most {
        true => Ok(()),
        false => Err(Stop::TooMuch {
            found: format!("{found} {what}"),
            expected: format!("at most {most}"),
        }),
    }
}

impl Count {
    fn walk(&mut self, mut bytes: &[u8]) -> Result<(), Stop> {
        let mut parser = Parser::new(0);
        let mut outer = Vec::new();
        loop {
            let (payload, consumed) = match parser.parse(bytes, true)? {
                Chunk::Parsed { payload, consumed } => (payload, consumed),
                Chunk::NeedMoreData(_) => return Err(Stop::Broken),
            };
            match payload {
                Payload::ModuleSection { parser: inner, .. }
                | Payload::ComponentSection { parser: inner, .. } => {
                    self.parts += 1;
                    within("modules and components", self.parts, PARTS)?;
                    within(
                        "modules inside each other",
                        outer.len() as u64 + 1,
                        NESTING as u64,
                    )?;
                    outer.push(std::mem::replace(&mut parser, inner));
                }
                Payload::End(_) => match outer.pop() {
                    Some(parent) => parser = parent,
                    None => return Ok(()),
                },
                other => self.payload(&other)?,
            }
            bytes = &bytes[consumed..];
        }
    }

    fn payload(&mut self, payload: &Payload<'_>) -> Result<(), Stop> {
        let items = match payload {
            Payload::TypeSection(section) => section.count(),
            Payload::ImportSection(section) => section.count(),
            Payload::ExportSection(section) => section.count(),
            Payload::TableSection(section) => section.count(),
            Payload::GlobalSection(section) => section.count(),
            Payload::ElementSection(section) => section.count(),
            Payload::DataSection(section) => section.count(),
            Payload::InstanceSection(section) => section.count(),
            Payload::CoreTypeSection(section) => section.count(),
            Payload::ComponentInstanceSection(section) => section.count(),
            Payload::ComponentAliasSection(section) => section.count(),
            Payload::ComponentTypeSection(section) => section.count(),
            Payload::ComponentCanonicalSection(section) => section.count(),
            Payload::ComponentImportSection(section) => section.count(),
            Payload::ComponentExportSection(section) => section.count(),
            Payload::FunctionSection(section) => {
                self.functions += u64::from(section.count());
                return within("functions", self.functions, FUNCTIONS);
            }
            Payload::CodeSectionEntry(body) => return Self::body(body),
            _ => 0,
        };
        self.items += u64::from(items);
        within("types, imports, exports and instances", self.items, ITEMS)
    }

    fn body(body: &wasmparser::FunctionBody<'_>) -> Result<(), Stop> {
        within(
            "bytes of one function",
            body.range().len() as u64,
            BODY as u64,
        )?;
        let mut locals = 0;
        for local in body.get_locals_reader()? {
            locals += u64::from(local?.0);
        }
        within("locals of one function", locals, LOCALS)
    }
}
