//! Reads the header of a GGUF file: metadata and the places of its tensors.
//!
//! **Invariant:** no length in the file is believed further than its bytes reach. Memory grows with what was read, never
//! with what was announced.

use super::value::{Array, Metadata, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::{Checked, Problem, shown};
use crate::tensors::{Place, TensorInfo};
use plinth_kernels::Format;
use std::collections::HashSet;
use std::io::{BufReader, Read};

/// A header whose every part lies inside the file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub metadata: Metadata,
    /// As the file has them: several tensors of a model may be one here.
    pub tensors: Vec<TensorInfo>,
}

impl Gguf {
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|info| info.name == name)
    }
}

/// Reads the header of a file of `file_len` bytes.
pub(crate) fn read(file: impl Read, file_len: u64) -> Checked<Gguf> {
    let mut reader = Reader {
        file: BufReader::with_capacity(1 << 16, file),
        position: 0,
        file_len,
    };
    let magic: [u8; 4] = reader.bytes("the header")?;
    if &magic != MAGIC {
        return Err(Problem::field(
            "first four bytes",
            shown(&String::from_utf8_lossy(&magic)),
            "'GGUF'",
        )
        .fix("this is not a GGUF file"));
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        let problem = Problem::field("version", version, "2 or 3");
        return Err(problem
            .fix("convert the model again with a current tool (big-endian files are not read)"));
    }
    let num_tensors = reader.count("the number of tensors", 8 + 4 + 8 + 4 + 8)?;
    let num_values = reader.count("the number of metadata values", 8 + 4 + 1)?;
    let metadata = reader.metadata(num_values)?;
    let alignment = alignment(&metadata)?;
    let mut tensors = Vec::new();
    for n in 0..num_tensors {
        tensors.push(reader.tensor(n)?);
    }
    let data = reader.position.next_multiple_of(alignment);
    place(&mut tensors, data, alignment, file_len)?;
    Ok(Gguf { metadata, tensors })
}

fn alignment(metadata: &Metadata) -> Checked<u64> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.count(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && (8..=1 << 20).contains(&alignment) {
        return Ok(alignment);
    }
    Err(Problem::field(
        format!("metadata '{KEY}'"),
        alignment,
        "a power of two from 8 to 1048576",
    ))
}

/// Offsets in the file count from the beginning of the data; here they are made to count from that of the file.
fn place(tensors: &mut [TensorInfo], data: u64, alignment: u64, file_len: u64) -> Checked<()> {
    for info in tensors {
        let field = || format!("tensor '{}'", info.name);
        let Place { offset, bytes, .. } = info.place;
        if !offset.is_multiple_of(alignment) {
            let found = format!("its bytes at {offset}");
            return Err(Problem::field(
                field(),
                found,
                format!("a multiple of the alignment {alignment}"),
            ));
        }
        let end = data
            .checked_add(offset)
            .and_then(|begin| begin.checked_add(bytes));
        if end.is_none_or(|end| end > file_len) {
            let found = format!("{bytes} bytes from {offset} of the data on");
            let expected = format!("bytes inside the file of {file_len} bytes");
            return Err(Problem::field(field(), found, expected)
                .fix("the file was cut off: fetch it again"));
        }
        info.place.offset += data;
    }
    Ok(())
}

struct Reader<R> {
    file: BufReader<R>,
    position: u64,
    file_len: u64,
}

impl<R: Read> Reader<R> {
    fn bytes<const N: usize>(&mut self, what: &str) -> Checked<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Checked<()> {
        let left = self.file_len.saturating_sub(self.position);
        if bytes.len() as u64 > left {
            return Err(self.cut_off(what, bytes.len() as u64));
        }
        self.file
            .read_exact(bytes)
            .map_err(Problem::io(format!("read {what}")))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn cut_off(&self, what: &str, needed: u64) -> Problem {
        let left = self.file_len.saturating_sub(self.position);
        let found = format!("{left} bytes up to the end of the file");
        let expected = format!("at least {needed} bytes");
        Problem::field(
            format!("{what}, at byte {}", self.position),
            found,
            expected,
        )
        .fix("the file was cut off or is broken: fetch it again")
    }

    fn u32(&mut self, what: &str) -> Checked<u32> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &str) -> Checked<u64> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    /// A number of things of which each takes at least `least` bytes of what is left of the file.
    fn count(&mut self, what: &str, least: u64) -> Checked<u64> {
        let at = self.position;
        let count = self.u64(what)?;
        let left = self.file_len - self.position;
        if count.checked_mul(least).is_none_or(|bytes| bytes > left) {
            let expected = format!(
                "at most {}, all that the {left} bytes left can hold",
                left / least
            );
            let problem = Problem::field(format!("{what}, at byte {at}"), count, expected);
            return Err(problem.fix("the file was cut off or is broken: fetch it again"));
        }
        Ok(count)
    }

    fn string(&mut self, what: &str) -> Checked<String> {
        let at = self.position;
        let len = self.count(what, 1)?;
        // A broken length can still claim the whole file: believe it a piece at a time.
        const PIECE: u64 = 1 << 20;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < len {
            let begin = bytes.len();
            bytes.resize(begin + PIECE.min(len - begin as u64) as usize, 0);
            self.fill(&mut bytes[begin..], what)?;
        }
        String::from_utf8(bytes).map_err(|_| {
            Problem::field(
                format!("{what}, at byte {at}"),
                "bytes that are not UTF-8",
                "a text",
            )
        })
    }

    fn metadata(&mut self, num_values: u64) -> Checked<Metadata> {
        let mut values = Vec::new();
        let mut keys = HashSet::new();
        for n in 0..num_values {
            let key = self.string(&format!("the key of metadata value {n}"))?;
            if key.is_empty() {
                return Err(Problem::field(
                    format!("the key of metadata value {n}"),
                    "an empty text",
                    "a name",
                ));
            }
            let field = format!("metadata {}", shown(&key));
            if !keys.insert(key.clone()) {
                return Err(Problem::field(field, "it twice", "each key once"));
            }
            let type_id = self.u32(&field)?;
            let value = self.value(type_id, &field, 0)?;
            values.push((key, value));
        }
        Ok(Metadata(values))
    }

    fn value(&mut self, type_id: u32, field: &str, depth: u32) -> Checked<Value> {
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(self.bytes(field)?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes(field)?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes(field)?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes(field)?)),
            4 => Value::U32(self.u32(field)?),
            5 => Value::I32(i32::from_le_bytes(self.bytes(field)?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes(field)?)),
            7 => match self.bytes::<1>(field)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => {
                    return Err(Problem::field(
                        field,
                        format!("the byte {other}"),
                        "0 or 1 for a truth value",
                    ));
                }
            },
            8 => Value::String(self.string(field)?),
            9 => Value::Array(self.array(field, depth)?),
            10 => Value::U64(self.u64(field)?),
            11 => Value::I64(i64::from_le_bytes(self.bytes(field)?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes(field)?)),
            other => {
                return Err(Problem::field(
                    field,
                    format!("type {other}"),
                    "a type from 0 to 12",
                ));
            }
        })
    }

    fn array(&mut self, field: &str, depth: u32) -> Checked<Array> {
        const DEEPEST: u32 = 3;
        if depth > DEEPEST {
            return Err(Problem::field(
                field,
                "lists in lists in lists",
                format!("at most {DEEPEST} deep"),
            ));
        }
        let type_id = self.u32(field)?;
        let least = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        let count = self.count(field, least)?;
        Ok(match type_id {
            5 => {
                Array::I32(self.list(count, |reader| Ok(i32::from_le_bytes(reader.bytes(field)?)))?)
            }
            6 => {
                Array::F32(self.list(count, |reader| Ok(f32::from_le_bytes(reader.bytes(field)?)))?)
            }
            8 => Array::String(self.list(count, |reader| reader.string(field))?),
            _ => Array::Other(
                type_id,
                self.list(count, |reader| reader.value(type_id, field, depth + 1))?,
            ),
        })
    }

    fn list<T>(
        &mut self,
        count: u64,
        mut read: impl FnMut(&mut Self) -> Checked<T>,
    ) -> Checked<Vec<T>> {
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(read(self)?);
        }
        Ok(list)
    }

    fn tensor(&mut self, n: u64) -> Checked<TensorInfo> {
        let name = self.string(&format!("the name of tensor {n}"))?;
        if name.is_empty() {
            return Err(Problem::field(
                format!("the name of tensor {n}"),
                "an empty text",
                "a name",
            ));
        }
        let field = format!("tensor {}", shown(&name));
        let num_dims = self.u32(&field)?;
        if !(1..=4).contains(&num_dims) {
            return Err(Problem::field(
                field,
                format!("{num_dims} dimensions"),
                "1 to 4",
            ));
        }
        let mut dims = [1u64; 4];
        for dim in dims.iter_mut().take(num_dims as usize) {
            *dim = self.u64(&field)?;
        }
        let format = format_of(self.u32(&field)?, &field)?;
        let offset = self.u64(&field)?;
        let (rows, cols, bytes) = sizes(dims, format, &field)?;
        let place = Place {
            file: 0,
            offset,
            bytes,
        };
        Ok(TensorInfo {
            matrices: dims[2] as usize,
            ..TensorInfo::new(name, format, rows, cols, place)
        })
    }
}

/// Rows (of all matrices, where there are several), columns and bytes of a tensor, of which the first dimension lies side
/// by side.
fn sizes(dims: [u64; 4], format: Format, field: &str) -> Checked<(usize, usize, u64)> {
    let wrong = |expected: &str| Problem::field(field, format!("dimensions {dims:?}"), expected);
    if dims.contains(&0) {
        return Err(wrong("dimensions of at least 1"));
    }
    if dims[3] != 1 {
        return Err(wrong("at most three of them"));
    }
    let rows = dims[1].checked_mul(dims[2]);
    let rows = rows.and_then(|rows| usize::try_from(rows).ok());
    let rows = rows.ok_or_else(|| wrong("dimensions that fit this machine"))?;
    let cols = usize::try_from(dims[0]).map_err(|_| wrong("dimensions that fit this machine"))?;
    let Some(row_bytes) = format.row_bytes(cols) else {
        return Err(wrong(&format!(
            "rows of whole {format} blocks of {} elements",
            format.block_len()
        )));
    };
    let bytes = row_bytes
        .checked_mul(rows)
        .filter(|_| rows.checked_mul(cols).is_some());
    let bytes = bytes.ok_or_else(|| wrong("a number of bytes that does not wrap"))?;
    Ok((rows, cols, bytes as u64))
}

fn format_of(type_id: u32, field: &str) -> Checked<Format> {
    let format = Format::ALL
        .into_iter()
        .find(|&format| type_of(format) == Some(type_id));
    format.ok_or_else(|| {
        let known: Vec<_> = Format::ALL
            .into_iter()
            .filter(|&format| type_of(format).is_some())
            .map(Format::name)
            .collect();
        let found = match name_of(type_id) {
            Some(name) => format!("the quantisation {name}"),
            None => format!("type {type_id}"),
        };
        Problem::field(field, found, format!("one of {}", known.join(", ")))
            .fix("this quantisation is not supported: take the model in another one")
    })
}

/// The number that GGUF gives a format, if it has it.
pub(super) fn type_of(format: Format) -> Option<u32> {
    Some(match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2K => 10,
        Format::Q3K => 11,
        Format::Q4K => 12,
        Format::Q5K => 13,
        Format::Q6K => 14,
        Format::Iq4Nl => 20,
        Format::Iq4Xs => 23,
        Format::BF16 => 30,
        Format::Mxfp4 => 39,
        Format::Int4 => return None,
    })
}

/// Names of the types that exist but are not read, so that an error can say which it is.
fn name_of(type_id: u32) -> Option<&'static str> {
    Some(match type_id {
        9 => "q8_1",
        15 => "q8_k",
        16 => "iq2_xxs",
        17 => "iq2_xs",
        18 => "iq3_xxs",
        19 => "iq1_s",
        21 => "iq3_s",
        22 => "iq2_s",
        24 => "i8",
        25 => "i16",
        26 => "i32",
        27 => "i64",
        28 => "f64",
        29 => "iq1_m",
        34 => "tq1_0",
        35 => "tq2_0",
        _ => return None,
    })
}
